"""Follows the store: lists of keys at one revision, and a thread for each watched subtree that keeps a
mirror.

List at revision R, watch from R + 1, list again after anything that the watch cannot bridge (compaction,
another cluster, an ``interval`` gone by). The watch only moves the mirror; what is *acknowledged* is the
manifest's affair, after a successful apply. While the store is away the last snapshot stays, and so do the
files made from it.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Sequence

from etcd_agent.errors import StoreError
from etcd_agent.keyspace import Mirror, in_subtree, key_text
from etcd_agent.loop import backoff_s
from etcd_agent.values import AgentConfig, Entry, Retry, Snapshot
from etcd_client import Client, Compacted, EtcdError, EventKind, KeyValue, RangeResult, Watch, WatchBatch, ops

logger = logging.getLogger(__name__)

_PATIENCE_S = 1.0


class Store:
    """The agent's two questions to an etcd-compatible store. Raises StoreError, one line."""

    def __init__(self, config: AgentConfig) -> None:
        backend = config.backend
        self.nodes = config.nodes
        self._serializable = backend.serializable
        self._idle_s = backend.watch_idle_s
        self._client = Client(
            config.nodes, timeout_s=backend.request_timeout_s, connect_timeout_s=backend.dial_timeout_s
        )

    def close(self) -> None:
        """End every watch and refuse further calls; from any thread."""
        self._client.close()

    def read(self, tops: Sequence[str]) -> Snapshot:
        """All keys of the subtrees ``tops``, at one revision: several are read in one transaction."""
        try:
            if len(tops) == 1:
                results = [self._client.get_prefix(tops[0], serializable=self._serializable)]
            else:
                reads = [ops.get_prefix(top, serializable=self._serializable) for top in tops]
                txn = self._client.txn(success=reads)
                results = [result for result in txn.responses if isinstance(result, RangeResult)]
                results[:] = [_at(result, txn.revision) for result in results]
            cluster_id = results[0].cluster_id or self._client.get_prefix(tops[0], limit=1).cluster_id
        except EtcdError as error:
            raise StoreError(f"store: {error}") from error
        entries = {
            key_text(kv.key): Entry(kv.value, kv.mod_revision)
            for top, result in zip(tops, results, strict=True)
            for kv in result.kvs
            if in_subtree(key_text(kv.key), top)
        }
        return Snapshot(cluster_id, results[0].revision, entries)

    def watch(self, top: str, start_revision: int) -> Watch:
        """Changes of keys that begin with ``top``, from ``start_revision`` on; resumes by itself."""
        return self._client.watch(prefix=top, start_revision=start_revision, idle_timeout_s=self._idle_s)


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
    """Keeps the snapshot of one subtree current and says so through ``on_change``.

    ``snapshot`` is None until the first list. ``on_change()`` is called from this thread after the first
    list, after every list or batch that changed a key, and when the store goes away; ``error`` is why the
    store is away, None while it is not.
    """

    def __init__(
        self, store: Store, top: str, *, watch: bool, retry: Retry, on_change: Callable[[], None]
    ) -> None:
        super().__init__(name=f"follow {top or '/'}", daemon=True)
        self.top = top
        self.snapshot: Snapshot | None = None
        self._store = store
        self._watching = watch
        self._retry = retry
        self._on_change = on_change
        self._mirror = Mirror(top)
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._list_error: StoreError | None = None
        self._lost_at_s: float | None = None

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
                logger.exception("watch of %s: unexpected", self.top or "/")
                trouble = StoreError(f"store: {type(error).__name__}: {error} (a bug; see the log)")
            if self._stopping.is_set():
                return
            failures += 1
            self._fail(trouble, failures)
            self._wake.wait(backoff_s(self._retry, failures, random.random))

    def _list_and_follow(self) -> None:
        snapshot = self._store.read([self.top])
        if self._list_error is not None:
            logger.info("store: answers again at revision %d", snapshot.revision)
        self._list_error = None
        first = self.snapshot is None
        changed = self._mirror.replace(snapshot.cluster_id, snapshot.revision, snapshot.entries)
        self.snapshot = self._mirror.snapshot()
        if first or changed:
            self._on_change()
        if self._watching:
            self._follow(snapshot.revision + 1)
        else:
            self._wake.wait()

    def _follow(self, start_revision: int) -> None:
        """Take batches until the watch ends for a reason that a new list mends."""
        with self._lock:
            if self._wake.is_set():
                return
            watch = self._watch = self._store.watch(self.top, start_revision)
        try:
            for batch in watch:
                changed = self._mirror.apply(batch.revision, changes(batch))
                self.snapshot = self._mirror.snapshot()
                if changed:
                    self._on_change()
        except Compacted as error:
            logger.info("watch of %s: %s; listing again", self.top or "/", error)
        except EtcdError as error:
            raise StoreError(f"store: {error}") from error
        finally:
            with self._lock:
                self._watch = None
            watch.cancel()

    def _fail(self, error: StoreError, failures: int) -> None:
        first = self._list_error is None
        self._list_error = error
        log = logger.warning if first else logger.debug
        log("%s; the last files stay (attempt %d)", error, failures)
        if first:
            self._on_change()
