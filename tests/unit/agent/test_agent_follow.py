"""The follower against a store that is a script: lists, batches, errors, and what it makes of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import pytest

from etcd_agent.errors import StoreError
from etcd_agent.follow import Follower, Store, changes
from etcd_agent.keyspace import Mirror
from etcd_agent.values import Retry, Snapshot
from etcd_client import Compacted, Event, EventKind, KeyValue, PermissionDenied, WatchBatch
from tests.unit.agent.support import snapshot


def put(key: str, value: str, revision: int) -> WatchBatch:
    kv = KeyValue(key.encode(), value.encode(), revision, revision, 1)
    return WatchBatch(revision, (Event(EventKind.PUT, kv),), 7)


class ScriptedWatch:
    """Gives its batches, raises its error, or stays open until it is cancelled."""

    def __init__(self, items: Sequence[WatchBatch | Exception]) -> None:
        self.items = items
        self.last_error: Exception | None = None
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[WatchBatch]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item
        self._cancelled.wait(10)

    def cancel(self) -> None:
        self._cancelled.set()


class ScriptedStore:
    """Answers each ``read`` and each ``watch`` with the next line of its script; the last line repeats."""

    def __init__(
        self, reads: Sequence[Snapshot | Exception], watches: Sequence[Sequence[WatchBatch | Exception]]
    ) -> None:
        self.reads = list(reads)
        self.watches = list(watches)
        self.starts: list[int] = []
        self.read_at_s: list[float] = []

    def read(self, tops: Sequence[str], above: str) -> Snapshot:
        self.read_at_s.append(time.monotonic())
        answer = self.reads.pop(0) if len(self.reads) > 1 else self.reads[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def watch(self, above: str, tops: Sequence[str], start_revision: int) -> ScriptedWatch:
        self.starts.append(start_revision)
        return ScriptedWatch(self.watches.pop(0) if len(self.watches) > 1 else self.watches[0])


class Followed:
    """A follower of a script, the mirror that its reports make, and what the mirror says has changed."""

    def __init__(self, store: ScriptedStore, *, watch: bool = True) -> None:
        self.store = store
        self.changes = threading.Semaphore(0)
        retry = Retry(backoff_s=0.02, max_backoff_s=0.08, jitter=False)
        self.mirror = Mirror(["/a"])
        self.listed = False
        self.follower = Follower(
            cast(Store, store),
            "/a",
            ["/a"],
            watch=watch,
            retry=retry,
            on_list=self.on_list,
            on_batch=self.on_batch,
            on_trouble=self.changes.release,
        )
        self.follower.start()

    def on_list(self, listed: Snapshot) -> None:
        changed = self.mirror.replace(listed.cluster_id, listed.revision, listed.entries)
        if changed or not self.listed:
            self.changes.release()
        self.listed = True

    def on_batch(self, batch: WatchBatch) -> None:
        if self.mirror.apply(batch.revision, changes(batch)):
            self.changes.release()

    def wait_change(self) -> None:
        assert self.changes.acquire(timeout=5)

    def values(self) -> dict[str, str]:
        return {key: entry.value.decode() for key, entry in self.mirror.snapshot().entries.items()}

    def close(self) -> None:
        self.follower.stop()
        self.follower.join(5)
        assert not self.follower.is_alive()


@pytest.fixture
def follow() -> Iterator[Callable[..., Followed]]:
    made: list[Followed] = []

    def start(store: ScriptedStore, **options: bool) -> Followed:
        made.append(Followed(store, **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_list_then_watch_from_the_next_revision(follow: Callable[..., Followed]) -> None:
    store = ScriptedStore([snapshot({"/a/x": "1"}, 10)], [[put("/a/x", "2", 11), put("/ab", "other", 12)]])
    followed = follow(store)
    followed.wait_change()
    followed.wait_change()
    wait_for(lambda: followed.mirror.revision == 12)
    assert followed.values() == {"/a/x": "2"}
    assert store.starts == [11]
    assert not followed.changes.acquire(blocking=False), "a change beside the subtree is none"


def test_compaction_lists_again_at_once(follow: Callable[..., Followed]) -> None:
    reads = [snapshot({"/a/x": "1"}, 10), snapshot({"/a/x": "9"}, 50)]
    store = ScriptedStore(reads, [[Compacted("compacted")], []])
    followed = follow(store)
    followed.wait_change()
    followed.wait_change()
    wait_for(lambda: store.starts == [11, 51])
    assert followed.values() == {"/a/x": "9"}


def test_a_store_that_is_away_is_tried_with_backoff(
    follow: Callable[..., Followed],
) -> None:
    away = StoreError("store: refused")
    last = snapshot({"/a/x": "2"}, 20)
    reads: list[Snapshot | Exception] = [snapshot({"/a/x": "1"}, 10), *[away] * 5, last]
    store = ScriptedStore(reads, [[put("/a/x", "1b", 11), PermissionDenied("no")], []])
    followed = follow(store)
    followed.wait_change()
    followed.wait_change()
    followed.wait_change()  # the trouble itself is news
    assert followed.follower.trouble(0.0) is not None
    assert followed.values()["/a/x"] in ("1b", "2")
    followed.wait_change()
    wait_for(lambda: followed.follower.trouble(0.0) is None)
    assert followed.values() == {"/a/x": "2"}
    gaps = [later - earlier for earlier, later in zip(store.read_at_s, store.read_at_s[1:], strict=False)]
    assert gaps[1] >= 0.04 and gaps[3] >= 0.08, "each failure waits longer, up to the limit"


def test_a_watch_that_is_refused_each_time_does_not_spin(follow: Callable[..., Followed]) -> None:
    store = ScriptedStore([snapshot({"/a/x": "1"}, 10)], [[PermissionDenied("no")]])
    followed = follow(store)
    wait_for(lambda: len(store.starts) >= 5)
    assert store.read_at_s[4] - store.read_at_s[0] >= 0.02 + 0.04 + 0.08 + 0.08
    assert "no" in str(followed.follower.trouble(0.0)) or followed.follower.trouble(0.0) is None


def test_a_bug_does_not_end_the_following(follow: Callable[..., Followed]) -> None:
    store = ScriptedStore([RuntimeError("oops"), snapshot({"/a/x": "1"}, 10)], [[]])
    followed = follow(store)
    followed.wait_change()
    followed.wait_change()
    assert followed.values() == {"/a/x": "1"}


def test_relist_finds_what_the_watch_missed(follow: Callable[..., Followed]) -> None:
    store = ScriptedStore([snapshot({"/a/x": "1"}, 10), snapshot({"/a/x": "2"}, 11)], [[]])
    followed = follow(store)
    followed.wait_change()
    followed.follower.relist()
    followed.wait_change()
    assert followed.values() == {"/a/x": "2"}
    followed.follower.relist()
    wait_for(lambda: len(store.read_at_s) == 3)
    assert not followed.changes.acquire(timeout=0.05), "the same keys again are no change"


def test_without_watch_only_relist_reads(follow: Callable[..., Followed]) -> None:
    store = ScriptedStore([snapshot({"/a/x": "1"}, 10)], [[]])
    followed = follow(store, watch=False)
    followed.wait_change()
    assert store.starts == []
    followed.follower.relist()
    wait_for(lambda: len(store.read_at_s) == 2)


def test_a_watch_that_is_replaced_within_a_second_is_no_trouble(follow: Callable[..., Followed]) -> None:
    followed = follow(ScriptedStore([snapshot({"/a/x": "1"}, 10)], [[]]))
    followed.wait_change()
    wait_for(lambda: followed.follower._watch is not None)
    watch = cast(ScriptedWatch, followed.follower._watch)
    watch.last_error = RuntimeError("idle")
    assert followed.follower.trouble(100.0) is None
    assert followed.follower.trouble(100.9) is None
    assert followed.follower.trouble(101.1) == "store: idle"
    watch.last_error = None
    assert followed.follower.trouble(101.2) is None
