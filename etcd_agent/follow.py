"""Follows the store: lists of keys at one revision, and one watch for all subtrees below one key.

List at revision R, watch from R + 1, list again after anything that the watch cannot bridge (compaction,
another cluster, an ``interval`` gone by). A follower only reports; the mirror and what is made of it belong
to the main loop, and what is *acknowledged* is the manifest's affair, after a successful apply. While the
store is away the last keys stay, and so do the files made from them.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NoReturn

from etcd_agent import discovery
from etcd_agent.errors import ConfigError, StoreError
from etcd_agent.keyspace import in_subtree, key_text
from etcd_agent.loop import backoff_s
from etcd_agent.values import AgentConfig, Entry, Retry, Snapshot
from etcd_client import (
    Client,
    Compacted,
    EtcdError,
    EventKind,
    KeyValue,
    PermissionDenied,
    RangeResult,
    Watch,
    WatchBatch,
    ops,
)
from etcd_client.transport import Transport

logger = logging.getLogger(__name__)

_PATIENCE_S = 1.0
# etcd takes 128 operations in a transaction; more subtrees are read as what lies above them all.
_MOST_RANGES = 100


def connect(config: AgentConfig) -> Client:
    """A client as agent.toml wants it. Raises ValueError for files that cannot be used, StoreError if DNS
    names no member.
    """
    return _client(config, config.nodes or discovery.members(config))


def _client(config: AgentConfig, nodes: Sequence[str], transport: Transport | None = None) -> Client:
    backend, credentials = config.backend, config.credentials
    pair = (credentials.client_cert, credentials.client_key)
    return Client(
        nodes,
        transport=transport,
        # As etcd's clients: who answers for DNS cannot name another owner of a good certificate.
        server_name=config.srv.domain if config.srv is not None else None,
        timeout_s=backend.request_timeout_s,
        connect_timeout_s=backend.dial_timeout_s,
        ca_file=credentials.client_cakeys,
        cert=(pair[0], pair[1]) if pair[0] is not None and pair[1] is not None else None,
        user=credentials.username,
        password=partial(_password, credentials.password_file or ""),
    )


def _password(path: str) -> str:
    """Read anew for each token, so that a changed password needs no restart. Raises ValueError."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"password_file {path}: cannot be read: {error}") from error


class Store:
    """The agent's two questions to an etcd-compatible store. Raises StoreError, one line."""

    def __init__(self, config: AgentConfig) -> None:
        """Raises ConfigError: a certificate or a password file cannot be used.

        If DNS names no member, every question is answered with why.
        """
        backend = config.backend
        self._unknown: StoreError | None = None
        self._serializable = backend.serializable
        self._idle_s = backend.watch_idle_s
        try:
            try:
                self.client = connect(config)
            except StoreError as error:
                self._unknown = error
                self.client = _client(
                    config, ["http://nowhere"], discovery.Nowhere(str(error).removeprefix("store: "))
                )
        except ValueError as error:
            raise ConfigError(f"{config.source}: {error}") from error
        self.nodes = () if self._unknown else self.client.endpoints

    def close(self) -> None:
        """End every watch and refuse further calls; from any thread."""
        self.client.close()

    def read(self, tops: Sequence[str], above: str | None = None) -> Snapshot:
        """All keys of the subtrees ``tops``, at one revision: several are read in one transaction.

        Too many for that are read as the one subtree ``above`` them all.
        """
        if self._unknown is not None:
            raise StoreError(str(self._unknown))
        wanted = [above] if above is not None and len(tops) > _MOST_RANGES else list(tops)
        try:
            if len(wanted) == 1:
                results = [self.client.get_prefix(_prefix(wanted[0], tops), serializable=self._serializable)]
            else:
                reads = [ops.get_prefix(top, serializable=self._serializable) for top in wanted]
                txn = self.client.txn(success=reads)
                results = [result for result in txn.responses if isinstance(result, RangeResult)]
                results[:] = [_at(result, txn.revision) for result in results]
            cluster_id = results[0].cluster_id or self.client.get_prefix(tops[0], limit=1).cluster_id
        except (EtcdError, ValueError) as error:  # ValueError: the password file, read for this call
            raise StoreError(f"store: {error}") from error
        entries = {
            key_text(kv.key): Entry(kv.value, kv.mod_revision)
            for top, result in zip(wanted, results, strict=True)
            for kv in result.kvs
            if in_subtree(key_text(kv.key), top)
        }
        return Snapshot(cluster_id, results[0].revision, entries)

    def watch(self, above: str, tops: Sequence[str], start_revision: int) -> Watch:
        """Changes of keys below ``above`` from ``start_revision`` on; resumes by itself."""
        prefix = _prefix(above, tops)
        return self.client.watch(prefix=prefix, start_revision=start_revision, idle_timeout_s=self._idle_s)


def _prefix(above: str, tops: Sequence[str]) -> str:
    """What to ask for: with a slash at its end if the key itself is not wanted."""
    return above if not above or above in tops else f"{above}/"


def _at(result: RangeResult, revision: int) -> RangeResult:
    """A range inside a transaction has no header of its own: the transaction's revision is its revision."""
    return RangeResult(revision, result.kvs, result.more, result.count, result.cluster_id)


def changes(batch: WatchBatch) -> Iterator[tuple[str, Entry | None]]:
    """A watch batch as the mirror takes it."""
    for event in batch.events:
        kv: KeyValue = event.kv
        entry = None if event.kind is EventKind.DELETE else Entry(kv.value, kv.mod_revision)
        yield key_text(kv.key), entry


class Follower(threading.Thread):
    """Follows the subtrees ``tops``, all of them below ``above``, and reports, from this thread.

    ``on_list(snapshot)`` after each list, ``on_batch(batch)`` for what follows it, ``on_trouble()`` when the
    store goes away. In the order in which they come, they give the keys at each revision. ``denied``: the
    store's user may not read all that is below ``above``.
    """

    def __init__(
        self,
        store: Store,
        above: str,
        tops: Sequence[str],
        *,
        watch: bool,
        retry: Retry,
        on_list: Callable[[Snapshot], None],
        on_batch: Callable[[WatchBatch], None],
        on_trouble: Callable[[], None],
    ) -> None:
        super().__init__(name=f"follow {above or '/'}", daemon=True)
        self.above = above
        self.tops = tuple(tops)
        self._store = store
        self._watching = watch
        self._retry = retry
        self._on_list = on_list
        self._on_batch = on_batch
        self._on_trouble = on_trouble
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._list_error: StoreError | None = None
        self._lost_at_s: float | None = None
        self.denied = False

    def trouble(self, now_s: float) -> str | None:
        """Why the store is away, or None; a watch replaced within a second does not count. One caller."""
        if self._list_error is not None:
            return str(self._list_error)
        watch = self._watch
        lost = watch.last_error if watch is not None else None
        if lost is None:
            self._lost_at_s = None
            return None
        self._lost_at_s = now_s if self._lost_at_s is None else self._lost_at_s
        return f"store: {lost}" if now_s - self._lost_at_s >= _PATIENCE_S else None

    def relist(self) -> None:
        """List again soon, from any thread: the periodic guard against anything that was missed."""
        self._wake.set()
        with self._lock:
            if self._watch is not None:
                self._watch.cancel()

    def stop(self) -> None:
        """End the thread; does not wait for it."""
        self._stopping.set()
        self.relist()

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._list_and_follow()
                failures = 0
                continue
            except StoreError as error:
                trouble = error
            except Exception as error:  # a bug must not end the following for ever
                logger.exception("watch of %s: unexpected", self.above or "/")
                trouble = StoreError(f"store: {type(error).__name__}: {error} (a bug; see the log)")
            if self._stopping.is_set():
                return
            failures += 1
            self._fail(trouble, failures)
            self._wake.wait(backoff_s(self._retry, failures, random.random))

    def _list_and_follow(self) -> None:
        try:
            snapshot = self._store.read(self.tops, self.above)
        except StoreError as error:
            if isinstance(error.__cause__, PermissionDenied):
                self._raise(error.__cause__)
            raise
        if self._list_error is not None:
            logger.info("store: answers again at revision %d", snapshot.revision)
        self._list_error = None
        self._on_list(snapshot)
        if self._watching:
            self._follow(snapshot.revision + 1)
        else:
            self._wake.wait()

    def _follow(self, start_revision: int) -> None:
        """Take batches until the watch ends for a reason that a new list mends."""
        with self._lock:
            if self._wake.is_set():
                return
            watch = self._watch = self._store.watch(self.above, self.tops, start_revision)
        try:
            for batch in watch:
                self._on_batch(batch)
        except Compacted as error:
            logger.info("watch of %s: %s; listing again", self.above or "/", error)
        except EtcdError as error:
            self._raise(error)
        finally:
            with self._lock:
                self._watch = None
            watch.cancel()

    def _raise(self, error: EtcdError) -> NoReturn:
        if isinstance(error, PermissionDenied) and self.above not in self.tops:
            self.denied = True
        raise StoreError(f"store: {error}") from error

    def _fail(self, error: StoreError, failures: int) -> None:
        first = self._list_error is None
        self._list_error = error
        log = logger.warning if first else logger.debug
        log("%s; the last files stay (attempt %d)", error, failures)
        if first:
            self._on_trouble()
