"""Live configuration: a program's settings, loaded from a prefix and kept current while it runs.

    config = LiveConfig(client, "/app/", on_change=lambda changes: print(changes.changed))
    connect(config["db/url"])

Keys are relative to the prefix (taken exactly as given, so end it with "/"). Keys and values are str,
decoded as UTF-8; bytes that are not UTF-8 become surrogate escapes, so that nothing is lost and `bytes_of`
gives back exactly what is stored.

Invariants: what a reader sees is the whole prefix at one revision, never half a transaction. Values only
ever move to a newer state; while no server can be reached, the last values stay in force.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType

from etcd_client.client import DEFAULT_IDLE_TIMEOUT_S, Client
from etcd_client.errors import Closed, EtcdError
from etcd_client.follow import Follow, Listing
from etcd_client.session import Backoff
from etcd_client.types import BytesLike, EventKind, WatchBatch, to_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All values as of one store revision."""

    revision: int
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Changes:
    """What became different at `revision`: new values by key, and the keys that are gone.

    Several revisions that arrive together are one Changes; only the last value of a key is in it.
    """

    revision: int
    changed: Mapping[str, str]
    removed: frozenset[str]


class LiveConfig(Mapping[str, str]):
    """The keys under `prefix` as a read-only mapping that follows the store.

    The constructor loads the prefix and raises the errors of `etcd_client.errors` if it cannot. After that
    a thread follows it until `close`, through every loss of servers; `healthy` and `last_error` tell how it
    goes. `on_change` is called in that thread, in order of revisions, after the new values are in force;
    an exception that it raises is logged and stops nothing. Reading is safe from every thread; `snapshot`
    gives a state that stays as it is, for reading several values that belong together.
    """

    def __init__(
        self,
        client: Client,
        prefix: BytesLike,
        on_change: Callable[[Changes], None] | None = None,
        *,
        idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S,
    ) -> None:
        self._prefix = to_bytes(prefix)
        self._on_change = on_change
        self._follow = Follow(client, self._prefix, idle_timeout_s=idle_timeout_s)
        self._backoff = Backoff(client.random)
        self._closing = threading.Event()
        self._moved = threading.Condition()
        self._ended = False
        self._state = Snapshot(0, MappingProxyType({}))
        self._advance(next(self._follow))
        self._thread = threading.Thread(
            target=self._run, name=f"etcd-live-{self._prefix.decode('utf-8', 'replace')}", daemon=True
        )
        self._thread.start()

    def __getitem__(self, key: str) -> str:
        return self._state.values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._state.values)

    def __len__(self) -> int:
        return len(self._state.values)

    def __repr__(self) -> str:
        return f"<LiveConfig {self._prefix!r} revision {self.revision}, {len(self)} keys>"

    def __enter__(self) -> LiveConfig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def revision(self) -> int:
        """The store revision up to which the values are complete. Changes elsewhere do not move it."""
        return self._state.revision

    @property
    def last_error(self) -> EtcdError | None:
        """What keeps it from following now; None when nothing does."""
        return self._follow.last_error

    @property
    def healthy(self) -> bool:
        """It is following: a change in the store will be seen."""
        return not self._ended and self.last_error is None

    def snapshot(self) -> Snapshot:
        """All values at one revision; it never changes."""
        return self._state

    def bytes_of(self, key: str) -> bytes:
        """The value of `key` as it is stored. Raises KeyError."""
        return to_bytes(self[key])

    def wait_for(self, revision: int, timeout_s: float) -> bool:
        """Waits until the values include `revision` (as returned by a put under the prefix).

        False when `timeout_s` is over, or when following has ended.
        """
        with self._moved:
            self._moved.wait_for(lambda: self.revision >= revision or self._ended, timeout_s)
            return self.revision >= revision

    def close(self) -> None:
        """Stops following; the last values stay readable. May be called from `on_change`."""
        self._closing.set()
        self._follow.cancel()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    item = next(self._follow)
                except (StopIteration, Closed):
                    return
                except EtcdError as error:
                    logger.warning("live configuration %r: %s; keeping the last values", self._prefix, error)
                    self._closing.wait(self._backoff.next_s())
                    continue
                self._backoff.reset()
                changes = self._advance(item)
                if changes is not None:
                    self._tell(changes)
        finally:
            with self._moved:
                self._ended = True
                self._moved.notify_all()

    def _advance(self, item: Listing | WatchBatch) -> Changes | None:
        """Puts the state after `item` in force; what that changed, None for nothing."""
        before = self._state.values
        after = self._listed(item) if isinstance(item, Listing) else self._changed(before, item)
        with self._moved:
            self._state = Snapshot(item.revision, before if after == before else MappingProxyType(after))
            self._moved.notify_all()
        changed = {key: value for key, value in after.items() if before.get(key) != value}
        removed = frozenset(before.keys() - after.keys())
        if not changed and not removed:
            return None
        return Changes(item.revision, MappingProxyType(changed), removed)

    def _listed(self, listing: Listing) -> dict[str, str]:
        return {self._relative(kv.key): _text(kv.value) for kv in listing.kvs}

    def _changed(self, before: Mapping[str, str], batch: WatchBatch) -> dict[str, str]:
        after = dict(before)
        for event in batch.events:
            if event.kind is EventKind.PUT:
                after[self._relative(event.kv.key)] = _text(event.kv.value)
            else:
                after.pop(self._relative(event.kv.key), None)
        return after

    def _relative(self, key: bytes) -> str:
        return _text(key[len(self._prefix) :])

    def _tell(self, changes: Changes) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(changes)
        except Exception:
            logger.exception("on_change failed for revision %d of %r", changes.revision, self._prefix)


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogateescape")
