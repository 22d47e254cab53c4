"""Progress: that a client may be told "you have everything up to this revision" only when it has."""

from __future__ import annotations

import pytest

from tests.unit.machine.watchers_world import World, seen


@pytest.fixture
def world() -> World:
    world = World(progress_interval_s=10.0)
    world.hub.open_stream(7)
    return world


def test_a_request_is_answered_for_the_whole_stream(world: World) -> None:
    world.create(7, b"a")
    world.create(7, b"b")
    world.put(b"z")
    world.take(7)
    world.hub.progress(7)
    (response,) = world.take(7)
    assert (response.watch_id, response.header.revision, len(response.events)) == (-1, 2, 0)
    assert not response.created and not response.canceled


def test_a_stream_without_watches_is_not_answered(world: World) -> None:
    world.hub.progress(7)
    assert world.take(7) == []
    world.create(7, b"a")
    assert len(world.take(7)) == 1


def test_a_watch_that_waits_for_a_later_revision_withholds_the_answer(world: World) -> None:
    world.create(7, b"a")
    world.create(7, b"a", start_revision=3)
    world.take(7)
    world.hub.progress(7)
    world.put(b"z")
    world.put(b"z")
    assert world.take(7) == []
    world.hub.progress(7)
    assert [(r.watch_id, r.header.revision) for r in world.take(7)] == [(-1, 3)]


def test_the_answer_never_precedes_events_that_it_covers(world: World) -> None:
    """etcd #15220: a progress notice overtook events of a watch that was behind."""
    world.put(b"a", b"2")
    world.put(b"a", b"3")
    world.create(7, b"a", start_revision=2)
    world.create(7, b"b")
    world.take(7)
    world.hub.progress(7)
    assert world.take(7) == []
    world.hub.catch_up(1)
    assert seen(world.take(7)) == [(2, "+a=2")]
    world.catch_up()
    events, progress = world.take(7)
    assert seen([events]) == [(3, "+a=3")]
    assert (progress.watch_id, progress.header.revision) == (-1, 3)
    world.catch_up()
    assert world.take(7) == []


def test_a_request_on_a_paused_stream_is_answered_after_what_it_missed(world: World) -> None:
    world.create(7, b"a")
    world.take(7)
    world.hub.pause(7)
    world.put(b"a", b"2")
    world.hub.progress(7)
    world.hub.tick(100.0)
    assert world.take(7) == []
    world.hub.resume(7)
    world.catch_up()
    events, progress = world.take(7)
    assert seen([events]) == [(2, "+a=2")]
    assert (progress.watch_id, progress.header.revision) == (-1, 2)


def test_a_request_on_a_paused_stream_that_missed_nothing_is_answered_on_resume(world: World) -> None:
    world.create(7, b"a")
    world.take(7)
    world.hub.pause(7)
    world.hub.progress(7)
    world.hub.resume(7)
    assert [response.watch_id for response in world.take(7)] == [-1]


def test_a_compacted_watch_does_not_hold_the_answer_back(world: World) -> None:
    for _ in range(4):
        world.put(b"a")
    world.create(7, b"a", start_revision=2)
    world.create(7, b"b")
    world.hub.progress(7)
    world.history.compact(5)
    world.take(7)
    world.catch_up()
    assert [(r.watch_id, r.canceled) for r in world.take(7)] == [(0, True), (-1, False)]


def test_cancelling_the_watch_that_is_behind_lets_the_answer_go(world: World) -> None:
    world.put(b"a")
    world.create(7, b"a", start_revision=1)
    world.create(7, b"b")
    world.hub.progress(7)
    world.take(7)
    world.hub.cancel(7, 0)
    assert [(r.watch_id, r.canceled) for r in world.take(7)] == [(0, True), (-1, False)]


def test_notices_come_at_each_interval_with_up_to_a_tenth_more(world: World) -> None:
    world.create(7, b"a", now=100.0, progress_notify=True)
    world.create(7, b"b", now=100.0)
    world.put(b"z")
    world.take(7)
    world.hub.tick(109.9)
    assert world.take(7) == []
    world.hub.tick(111.1)
    (notice,) = world.take(7)
    assert (notice.watch_id, notice.header.revision, len(notice.events)) == (0, 2, 0)
    world.hub.tick(121.0)
    assert world.take(7) == []
    world.hub.tick(122.3)
    assert len(world.take(7)) == 1


def test_intervals_of_different_streams_are_spread() -> None:
    world = World(progress_interval_s=10.0)
    for stream_id in range(100):
        world.watch(stream_id, b"a", progress_notify=True)
    served = []
    for step in range(12):
        world.hub.tick(10.0 + step / 10)
        served.append(len(world.take()))
    assert sum(served) == 100
    assert max(served) <= 20


def test_an_interval_in_which_events_were_sent_has_no_notice(world: World) -> None:
    world.create(7, b"a", progress_notify=True)
    world.put(b"a")
    world.take(7)
    world.hub.tick(20.0)
    assert world.take(7) == []
    world.hub.tick(40.0)
    assert len(world.take(7)) == 1
    world.put(b"b")
    world.hub.tick(60.0)
    assert len(world.take(7)) == 1


def test_events_before_the_watch_joined_its_range_do_not_count(world: World) -> None:
    world.create(7, b"a")
    world.put(b"a")
    world.create(7, b"a", progress_notify=True)
    world.take(7)
    world.hub.tick(20.0)
    assert [response.watch_id for response in world.take(7)] == [1]


@pytest.mark.parametrize("paused_before", [True, False])
def test_events_count_whether_live_or_from_history(world: World, paused_before: bool) -> None:
    world.create(7, b"a", progress_notify=True)
    if paused_before:
        world.hub.pause(7)
    world.put(b"a")
    world.hub.pause(7)
    world.hub.resume(7)
    world.catch_up()
    world.take(7)
    world.hub.tick(20.0)
    assert world.take(7) == []


def test_events_that_were_filtered_out_do_not_count(world: World) -> None:
    world.create(7, b"a", progress_notify=True, filters=[0])
    world.put(b"a")
    world.take(7)
    world.hub.tick(20.0)
    (notice,) = world.take(7)
    assert notice.header.revision == 2


def test_no_notice_while_behind(world: World) -> None:
    world.put(b"a")
    world.create(7, b"b", start_revision=1, progress_notify=True)
    world.take(7)
    world.hub.tick(20.0)
    assert world.take(7) == []
    world.catch_up()
    world.hub.tick(40.0)
    assert len(world.take(7)) == 1


def test_notices_end_with_the_watch(world: World) -> None:
    world.create(7, b"a", progress_notify=True)
    world.hub.cancel(7, 0)
    world.take(7)
    world.hub.tick(20.0)
    assert world.take(7) == []


def test_the_interval_is_at_least_a_tenth_of_a_second() -> None:
    world = World(progress_interval_s=0.0)
    world.watch(7, b"a", progress_notify=True)
    world.hub.tick(0.09)
    assert world.take(7) == []
    world.hub.tick(0.12)
    assert len(world.take(7)) == 1
