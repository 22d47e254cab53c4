"""The watch hub when a stream does not keep up, and when the store under it is replaced.

Where a test names an etcd issue, it is the class of bug that the issue reports.
"""

from __future__ import annotations

import pytest

from etcd_server.api.proto import rpc_pb2
from tests.unit.machine.watchers_world import World, seen


@pytest.fixture
def world() -> World:
    world = World()
    world.hub.open_stream(7)
    return world


# --- slow readers ---------------------------------------------------------------------------------


def test_a_paused_stream_misses_nothing(world: World) -> None:
    world.create(7, b"a")
    world.put(b"a", b"2")
    world.take(7)
    world.hub.pause(7)
    world.put(b"a", b"3")
    world.put(b"a", b"4")
    world.catch_up()
    assert world.take(7) == []
    assert world.hub.statistics().slow_watchers == 1
    world.hub.resume(7)
    world.catch_up()
    world.put(b"a", b"5")
    assert seen(world.take(7)) == [(3, "+a=3"), (4, "+a=4"), (5, "+a=5")]
    assert world.hub.statistics().slow_watchers == 0


def test_a_stream_paused_while_it_was_behind_goes_on_where_it_stopped(world: World) -> None:
    for number in range(10):
        world.put(b"a", b"%d" % number)
    world.create(7, b"a", start_revision=2)
    world.hub.catch_up(4)
    responses = world.take(7)
    world.hub.pause(7)
    world.hub.pause(7)
    assert not world.hub.catch_up(100)
    world.hub.resume(7)
    world.hub.resume(7)
    world.catch_up()
    responses += world.take(7)
    assert [revision for revision, _ in seen(responses)] == list(range(2, 12))


def test_a_watch_created_on_a_paused_stream_is_answered_and_waits(world: World) -> None:
    world.put(b"a", b"2")
    world.hub.pause(7)
    world.create(7, b"a")
    world.create(7, b"a", start_revision=2)
    world.create(7, b"a", start_revision=3)
    assert [response.created for response in world.take(7)] == [True] * 3
    world.put(b"a", b"3")
    world.catch_up()
    assert world.take(7) == []
    world.hub.resume(7)
    world.catch_up()
    assert {r.watch_id: [revision for revision, _ in seen([r])] for r in world.take(7)} == {
        0: [3],
        1: [2, 3],
        2: [3],
    }


def test_compaction_that_overtakes_a_paused_stream_is_told_not_swallowed(world: World) -> None:
    """etcd #17529: events were lost when a slow stream met a compaction."""
    world.create(7, b"a")
    world.take(7)
    world.hub.pause(7)
    for _ in range(5):
        world.put(b"a")
    world.history.compact(4)
    world.hub.compacted(4)
    world.catch_up()
    assert world.take(7) == []
    world.hub.resume(7)
    world.catch_up()
    (response,) = world.take(7)
    assert (response.canceled, response.compact_revision, len(response.events)) == (True, 4, 0)


def test_what_would_wait_beyond_the_limit_is_left_to_history(world: World) -> None:
    world = World(delivery_limit_bytes=10_000)
    for stream_id in range(50):
        world.hub.open_stream(stream_id)
        world.create(stream_id, b"a")
    world.hub.take_deliveries()
    world.hub.notify([world.history.apply((b"a", b"x" * 1_000)) for _ in range(3)])
    received: dict[int, list[int]] = {stream_id: [] for stream_id in range(50)}
    for _ in range(100):
        more = world.hub.catch_up(1_000)
        deliveries = world.hub.take_deliveries()
        assert sum(len(response) for _, response in deliveries) < 15_000
        for stream_id, data in deliveries:
            response = rpc_pb2.WatchResponse.FromString(data)
            received[stream_id] += [event.kv.mod_revision for event in response.events]
        if not more:
            break
    assert all(revisions == [2, 3, 4] for revisions in received.values())


# --- a store replaced -----------------------------------------------------------------------------


def test_a_restored_store_neither_repeats_nor_skips(world: World) -> None:
    """etcd #15271: after a snapshot was installed, watches went back in time."""
    world.create(7, b"a")
    world.put(b"a", b"2")
    for number in (3, 4):
        world.history.apply((b"a", b"%d" % number))
    world.hub.restored()
    world.catch_up()
    world.put(b"a", b"5")
    assert [revision for revision, _ in seen(world.take(7))] == [2, 3, 4, 5]


def test_a_restored_store_without_the_history_cancels(world: World) -> None:
    world.create(7, b"a")
    world.put(b"a", b"2")
    world.take(7)
    for number in (3, 4, 5):
        world.history.apply((b"a", b"%d" % number))
    world.history.compact(5)
    world.hub.restored()
    world.catch_up()
    (response,) = world.take(7)
    assert (response.canceled, response.compact_revision) == (True, 5)


def test_a_store_that_is_older_is_refused(world: World) -> None:
    world.put(b"a")
    world.history.revision = 1
    with pytest.raises(ValueError, match="store restored at 1, watches are at 2"):
        world.hub.restored()
