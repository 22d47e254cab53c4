"""The watch hub: what etcd's Watch answers, case by case.

Where a test names an etcd issue, it is the class of bug that the issue reports.
"""

from __future__ import annotations

import pytest

from etcd_server.api.proto import rpc_pb2
from tests.unit.machine.watchers_world import World, seen

FROM_KEY = b"\0"
NOPUT = rpc_pb2.WatchCreateRequest.NOPUT
NODELETE = rpc_pb2.WatchCreateRequest.NODELETE


@pytest.fixture
def world() -> World:
    world = World()
    world.hub.open_stream(7)
    return world


# --- creating -------------------------------------------------------------------------------------


def test_created_answer_has_the_current_revision_and_the_first_free_number(world: World) -> None:
    world.put(b"a")
    world.create(7, b"a")
    world.create(7, b"b")
    first, second = world.take(7)
    assert (first.created, first.canceled, first.watch_id, first.header.revision) == (True, False, 0, 2)
    assert second.watch_id == 1


def test_numbers_chosen_by_the_client_are_kept_and_passed_over(world: World) -> None:
    for watch_id in (1, 0, 0, -5):
        world.create(7, b"a", watch_id=watch_id)
    assert [response.watch_id for response in world.take(7)] == [1, 0, 2, -5]


def test_a_freed_number_is_not_used_again(world: World) -> None:
    world.create(7, b"a")
    world.hub.cancel(7, 0)
    world.create(7, b"a")
    assert [response.watch_id for response in world.take(7)] == [0, 0, 1]


def test_duplicate_number_is_refused_and_the_first_watch_goes_on(world: World) -> None:
    world.create(7, b"a", watch_id=3)
    world.create(7, b"b", watch_id=3)
    _, refused = world.take(7)
    assert (refused.created, refused.canceled, refused.watch_id) == (True, True, -1)
    assert refused.cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"
    world.put(b"b")
    assert world.take() == []
    world.put(b"a")
    assert seen(world.take()) == [(3, "+a=v")]


@pytest.mark.parametrize(("key", "range_end"), [(b"b", b"a"), (b"b", b"b"), (b"", b"\0")])
def test_an_empty_range_is_refused_and_no_other(world: World, key: bytes, range_end: bytes) -> None:
    world.create(7, key, range_end)
    (response,) = world.take(7)
    if range_end == FROM_KEY:
        assert not response.canceled
    else:
        assert (response.created, response.canceled, response.watch_id) == (True, True, -1)
        assert response.cancel_reason == "mvcc: watcher range is empty"
        assert response.header.revision == 1


def test_negative_start_is_refused_as_compacted_without_a_compact_revision(world: World) -> None:
    world.create(7, b"b", b"a", start_revision=-1)
    (response,) = world.take(7)
    assert (response.created, response.canceled, response.watch_id) == (True, True, -1)
    assert response.cancel_reason == "etcdserver: mvcc: required revision has been compacted"
    assert response.compact_revision == 0


def test_refuse_answers_with_the_reason_given(world: World) -> None:
    world.hub.refuse(7, "etcdserver: permission denied")
    (response,) = world.take(7)
    assert (response.created, response.canceled, response.watch_id) == (True, True, -1)
    assert response.cancel_reason == "etcdserver: permission denied"


def test_an_empty_key_is_the_smallest_key(world: World) -> None:
    world.create(7, b"")
    world.create(7, b"", FROM_KEY)
    world.take(7)
    world.put(b"\0")
    world.put(b"a")
    assert [(r.watch_id, e.kv.key) for r in world.take(7) for e in r.events] == [
        (0, b"\0"),
        (1, b"\0"),
        (1, b"a"),
    ]


# --- what matches ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "range_end", "matching"),
    [
        (b"a", b"", {b"a"}),
        (b"a", b"b", {b"a", b"a\0", b"ab", b"a\xff"}),
        (b"a", b"a\0", {b"a"}),
        (b"a\xff", b"b", {b"a\xff"}),
        (b"\xff", FROM_KEY, {b"\xff", b"\xffz"}),
        (b"ab", FROM_KEY, {b"ab", b"a\xff", b"b", b"c", b"\xff", b"\xffz"}),
        (b"ab", b"c", {b"ab", b"a\xff", b"b"}),
        (b"\0", FROM_KEY, {b"a", b"a\0", b"ab", b"a\xff", b"b", b"c", b"\xff", b"\xffz"}),
    ],
)
def test_ranges(world: World, key: bytes, range_end: bytes, matching: set[bytes]) -> None:
    world.create(7, key, range_end)
    world.take(7)
    for written in (b"a", b"a\0", b"ab", b"a\xff", b"b", b"c", b"\xff", b"\xffz"):
        world.put(written)
    assert {event.kv.key for response in world.take(7) for event in response.events} == matching


def test_ranges_with_the_same_start_are_told_apart_when_one_ends(world: World) -> None:
    for range_end in (b"c", b"d", b"e"):
        world.create(7, b"a", range_end)
    world.hub.cancel(7, 1)
    world.take(7)
    world.put(b"b")
    assert [response.watch_id for response in world.take(7)] == [0, 2]
    world.put(b"cc")
    assert [response.watch_id for response in world.take(7)] == [2]


def test_nothing_is_left_of_watches_that_have_ended(world: World) -> None:
    for key, range_end in ((b"a", b""), (b"a", b"b"), (b"a", b"c"), (b"a", FROM_KEY)):
        world.create(7, key, range_end)
        world.create(7, key, range_end, start_revision=100)
    world.hub.close_stream(7)
    assert len(world.hub._places.index) == 0
    assert world.hub.statistics().watchers == world.hub.statistics().streams == 0
    world.take()
    world.put(b"a")
    assert world.take() == []


# --- live events ----------------------------------------------------------------------------------


def test_one_response_holds_all_events_of_one_revision(world: World) -> None:
    world.create(7, b"a", b"c")
    world.take(7)
    world.apply((b"a", b"1"), (b"z", b"-"), (b"b", b"2"))
    world.put(b"a", b"3")
    first, second = world.take(7)
    assert seen([first]) == [(2, "+a=1"), (2, "+b=2")]
    assert seen([second]) == [(3, "+a=3")]
    assert (first.header.revision, second.header.revision) == (2, 3)


def test_several_revisions_in_one_call_stay_apart(world: World) -> None:
    world.create(7, b"a")
    world.take(7)
    world.hub.notify([world.history.apply((b"a", b"1")), world.history.apply((b"a", b"2"))])
    assert [(r.header.revision, seen([r])) for r in world.take(7)] == [(2, [(2, "+a=1")]), (3, [(3, "+a=2")])]


def test_a_deletion_has_only_key_and_revision(world: World) -> None:
    world.put(b"a", b"1")
    world.create(7, b"a", prev_kv=True)
    world.take(7)
    world.delete(b"a")
    ((event,),) = [response.events for response in world.take(7)]
    assert event.type == 1
    assert (event.kv.key, event.kv.mod_revision, event.kv.create_revision, event.kv.version) == (
        b"a",
        3,
        0,
        0,
    )
    assert (event.prev_kv.value, event.prev_kv.mod_revision) == (b"1", 2)


def test_prev_kv_is_given_only_to_those_who_asked_and_never_for_a_creation(world: World) -> None:
    world.create(7, b"a", prev_kv=True)
    world.create(7, b"a")
    world.take(7)
    for value in (b"1", b"2", None, b"4"):
        world.apply((b"a", value))
    events = [(r.watch_id, e.HasField("prev_kv"), e.prev_kv.value) for r in world.take(7) for e in r.events]
    assert [event[1:] for event in events if event[0] == 0] == [
        (False, b""),
        (True, b"1"),
        (True, b"2"),
        (False, b""),
    ]
    assert not any(event[1] for event in events if event[0] == 1)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([NOPUT], [(3, "-a")]),
        ([NODELETE], [(2, "+a=1")]),
        ([NOPUT, NODELETE], []),
        ([NOPUT, NOPUT], [(3, "-a")]),
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_filters(world: World, filters: list[int], expected: list[tuple[int, str]], live: bool) -> None:
    if live:
        world.create(7, b"a", filters=filters)
    world.put(b"a", b"1")
    world.delete(b"a")
    if not live:
        world.create(7, b"a", filters=filters, start_revision=1)
        world.catch_up()
    responses = [response for response in world.take(7) if not response.created]
    assert seen(responses) == expected
    assert all(response.events for response in responses)


def test_responses_are_shared_by_streams(world: World) -> None:
    for stream_id in range(100, 110):
        world.hub.open_stream(stream_id)
        world.create(stream_id, b"a", b"b")
    world.hub.take_deliveries()
    world.put(b"a")
    deliveries = world.hub.take_deliveries()
    assert [stream_id for stream_id, _ in deliveries] == list(range(100, 110))
    assert len({id(response) for _, response in deliveries}) == 1


def test_changes_out_of_order_are_refused(world: World) -> None:
    first, second = world.history.apply((b"a", b"1")), world.history.apply((b"a", b"2"))
    with pytest.raises(ValueError, match="changes of revision 3 handed to a watch hub at 1"):
        world.hub.notify([second])
    world.hub.notify([first])
    with pytest.raises(ValueError, match="changes of revision 2 handed to a watch hub at 2"):
        world.hub.notify([first])


# --- history --------------------------------------------------------------------------------------


def test_history_comes_in_one_response_at_the_current_revision_then_live(world: World) -> None:
    world.put(b"a", b"1")
    world.put(b"b", b"-")
    world.put(b"a", b"2")
    world.create(7, b"a", start_revision=1)
    world.catch_up()
    created, history = world.take(7)
    assert created.created
    assert seen([history]) == [(2, "+a=1"), (4, "+a=2")]
    assert history.header.revision == 4
    world.put(b"a", b"3")
    assert seen(world.take(7)) == [(5, "+a=3")]


def test_history_begins_at_the_start_revision(world: World) -> None:
    for value in (b"1", b"2", b"3"):
        world.put(b"a", value)
    world.create(7, b"a", start_revision=3)
    world.catch_up()
    assert seen(world.take(7)) == [(3, "+a=2"), (4, "+a=3")]


def test_the_current_revision_is_history(world: World) -> None:
    world.put(b"a", b"1")
    world.create(7, b"a", start_revision=2)
    world.catch_up()
    assert seen(world.take(7)) == [(2, "+a=1")]


def test_history_without_a_match_sends_nothing(world: World) -> None:
    world.put(b"b")
    world.create(7, b"a", start_revision=1)
    world.catch_up()
    assert [response.created for response in world.take(7)] == [True]


def test_catch_up_is_bounded_by_its_budget_and_never_tears_a_revision(world: World) -> None:
    for number in range(10):
        world.apply((b"a", b"%d" % number), (b"b", b"%d" % number), (b"c", b"%d" % number))
    world.create(7, b"a", b"d", start_revision=2)
    world.take(7)
    collected = []
    while True:
        before = world.history.rows_read
        more = world.hub.catch_up(4)
        assert world.history.rows_read - before <= 6
        (response,) = world.take(7)
        collected.append(response)
        assert len(response.events) % 3 == 0
        if not more:
            break
    assert len(seen(collected)) == 30
    assert seen(collected) == sorted(seen(collected), key=lambda event: event[0])


def test_a_long_history_is_cut_into_responses_of_at_most_a_thousand_revisions(world: World) -> None:
    for number in range(1_500):
        world.put(b"a", b"%d" % number)
    world.create(7, b"a", start_revision=1)
    world.take(7)
    world.catch_up(10_000)
    assert [len(response.events) for response in world.take(7)] == [1_000, 500]


def test_watches_that_are_behind_share_one_reading_of_history(world: World) -> None:
    for number in range(100):
        world.put(b"a", b"%d" % number)
    for start in range(2, 52):
        world.create(7, b"a", start_revision=start)
    world.take(7)
    world.catch_up()
    assert world.history.rows_read == 100
    counts = {response.watch_id: len(response.events) for response in world.take(7)}
    assert counts == {start - 2: 102 - start for start in range(2, 52)}


def test_one_that_is_far_behind_does_not_starve_one_that_is_near(world: World) -> None:
    for number in range(1_000):
        world.put(b"a", b"%d" % number)
    world.create(7, b"a", start_revision=1)
    world.hub.catch_up(10)
    world.create(7, b"a", start_revision=1_000)
    world.take(7)
    world.hub.catch_up(10)
    world.hub.catch_up(10)
    assert 1 in {response.watch_id for response in world.take(7)}


def test_changes_during_catch_up_are_neither_lost_nor_repeated(world: World) -> None:
    for number in range(20):
        world.put(b"a", b"%d" % number)
    world.create(7, b"a", start_revision=1)
    world.take(7)
    responses = []
    for number in range(20, 30):
        world.hub.catch_up(3)
        world.put(b"a", b"%d" % number)
        responses += world.take(7)
    world.catch_up()
    responses += world.take(7)
    assert [revision for revision, _ in seen(responses)] == list(range(2, 32))


@pytest.mark.parametrize("removed", [True, False])
def test_prev_kv_in_history_follows_the_compaction(world: World, removed: bool) -> None:
    for value in (b"1", b"2", b"3"):
        world.put(b"a", value)
    if removed:
        world.history.compact(3)
    else:
        world.history.compacted_revision = 3
    world.create(7, b"a", start_revision=3, prev_kv=True)
    world.catch_up()
    events = [event for response in world.take(7) for event in response.events]
    assert [(e.kv.mod_revision, e.HasField("prev_kv"), e.prev_kv.value) for e in events] == [
        (3, False, b""),
        (4, True, b"2"),
    ]


# --- the future -----------------------------------------------------------------------------------


def test_a_future_start_gets_nothing_before_it(world: World) -> None:
    """etcd #20221: a watch on a future revision was given old events, or progress."""
    world.create(7, b"a", start_revision=4, progress_notify=True)
    (created,) = world.take(7)
    assert created.header.revision == 1
    world.put(b"a", b"2")
    world.put(b"a", b"3")
    world.hub.progress(7)
    world.hub.tick(10_000.0)
    world.catch_up()
    assert world.take(7) == []
    world.put(b"a", b"4")
    assert seen(world.take(7)) == [(4, "+a=4")]
    world.hub.progress(7)
    (progress,) = world.take(7)
    assert (progress.watch_id, progress.header.revision) == (-1, 4)


def test_future_watches_of_several_revisions_start_each_at_its_own(world: World) -> None:
    for start in (5, 3, 4, 3):
        world.create(7, b"a", start_revision=start)
    world.hub.cancel(7, 3)
    world.take(7)
    for _ in range(4):
        world.put(b"a")
    assert [(r.watch_id, r.header.revision) for r in world.take(7)] == [
        (1, 3),
        (1, 4),
        (2, 4),
        (1, 5),
        (2, 5),
        (0, 5),
    ]


def test_a_future_start_survives_a_restored_store(world: World) -> None:
    """etcd #20221, by way of a snapshot: the start must not be forgotten when the store is replaced."""
    world.create(7, b"a", start_revision=4)
    world.create(7, b"a", start_revision=9)
    world.take(7)
    for value in range(2, 7):
        world.history.apply((b"a", b"%d" % value))
    world.hub.restored()
    world.catch_up()
    responses = world.take(7)
    assert [r.watch_id for r in responses] == [0]
    assert seen(responses) == [(4, "+a=4"), (5, "+a=5"), (6, "+a=6")]
    for value in range(7, 10):
        world.put(b"a", b"%d" % value)
    assert [r.header.revision for r in world.take(7) if r.watch_id == 1] == [9]


# --- compaction -----------------------------------------------------------------------------------


def test_a_compacted_start_is_cancelled_after_it_was_created(world: World) -> None:
    for _ in range(5):
        world.put(b"a")
    world.history.compact(4)
    world.create(7, b"a", start_revision=3)
    world.catch_up()
    created, cancelled = world.take(7)
    assert created.created and not created.canceled and created.watch_id == 0
    assert (cancelled.canceled, cancelled.created, cancelled.watch_id) == (True, False, 0)
    assert (cancelled.compact_revision, cancelled.cancel_reason, cancelled.header.revision) == (4, "", 0)
    world.put(b"a")
    assert world.take(7) == []


def test_the_compacted_revision_itself_can_be_watched_deletion_included(world: World) -> None:
    """etcd #18089: a compaction at the revision of a deletion must not eat the event."""
    world.put(b"a")
    world.put(b"b")
    world.delete(b"a")
    world.history.compact(4)
    world.hub.compacted(4)
    world.create(7, b"a", start_revision=4)
    world.catch_up()
    assert seen(world.take(7)) == [(4, "-a")]


def test_compaction_cancels_at_once_those_that_still_wanted_what_is_gone(world: World) -> None:
    for _ in range(9):
        world.put(b"a")
    for start in (2, 5, 6):
        world.create(7, b"a", start_revision=start)
    world.create(7, b"a")
    world.take(7)
    world.history.compact(6)
    world.hub.compacted(6)
    assert [(r.watch_id, r.compact_revision) for r in world.take(7)] == [(0, 6), (1, 6)]
    world.catch_up()
    assert [r.watch_id for r in world.take(7)] == [2]


def test_a_compacted_watch_keeps_its_number_until_it_is_cancelled(world: World) -> None:
    for _ in range(3):
        world.put(b"a")
    world.history.compact(4)
    world.create(7, b"a", start_revision=1, watch_id=5)
    world.catch_up()
    world.create(7, b"a", watch_id=5)
    assert world.take(7)[-1].cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"
    world.hub.cancel(7, 5)
    world.create(7, b"a", watch_id=5)
    cancelled, created = world.take(7)
    assert (cancelled.canceled, cancelled.watch_id, cancelled.compact_revision) == (True, 5, 0)
    assert created.created and not created.canceled


# --- fragments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
def test_fragments_of_one_revision_carry_the_flag_on_all_but_the_last(live: bool) -> None:
    world = World(max_request_bytes=1_000)
    world.hub.open_stream(7)
    operations = [(b"a%d" % number, b"x" * 100_000) for number in range(13)]
    if live:
        world.create(7, b"a", b"b", fragment=True, watch_id=9)
        world.create(7, b"a", b"b")
    world.apply(*operations)
    if not live:
        world.create(7, b"a", b"b", fragment=True, start_revision=1, watch_id=9)
        world.create(7, b"a", b"b", start_revision=1)
        world.catch_up()
    responses = [response for response in world.take(7) if not response.created]
    parts = [response for response in responses if response.watch_id == 9]
    assert [len(part.events) for part in parts] == [5, 5, 3]
    assert [part.fragment for part in parts] == [True, True, False]
    assert all(part.ByteSize() < 1_000 + 512 * 1024 for part in parts)
    assert {part.header.revision for part in parts} == {2}
    (whole,) = [response for response in responses if response.watch_id == 0]
    assert len(whole.events) == 13 and not whole.fragment


def test_a_single_large_event_and_a_small_response_are_not_split() -> None:
    world = World(max_request_bytes=1_000)
    world.watch(7, b"a", b"b", fragment=True)
    world.put(b"a", b"x" * 600_000)
    world.apply((b"a", b"1"), (b"aa", b"2"))
    large, small = world.take(7)
    assert (len(large.events), large.fragment, len(small.events), small.fragment) == (1, False, 2, False)


# --- cancelling -----------------------------------------------------------------------------------


def test_cancel_is_answered_once_and_only_for_a_known_watch(world: World) -> None:
    world.create(7, b"a")
    world.put(b"b")
    world.take(7)
    world.hub.cancel(7, 0)
    world.hub.cancel(7, 0)
    world.hub.cancel(7, 99)
    (response,) = world.take(7)
    assert (response.canceled, response.created, response.watch_id, response.cancel_reason) == (
        True,
        False,
        0,
        "",
    )
    assert response.header.revision == 2
    world.put(b"a")
    assert world.take() == []


def test_cancel_all_names_the_reason_and_leaves_the_stream_usable(world: World) -> None:
    world.create(7, b"a")
    world.create(7, b"a", start_revision=50)
    world.take(7)
    world.hub.cancel_all("etcdserver: no leader")
    assert [(r.watch_id, r.canceled, r.cancel_reason) for r in world.take(7)] == [
        (0, True, "etcdserver: no leader"),
        (1, True, "etcdserver: no leader"),
    ]
    assert world.hub.statistics().watchers == 0
    world.create(7, b"a")
    world.put(b"a")
    assert [r.watch_id for r in world.take(7)] == [2, 2]


def test_requests_on_a_stream_that_has_gone_are_ignored(world: World) -> None:
    world.hub.close_stream(7)
    world.hub.close_stream(7)
    world.create(7, b"a")
    world.hub.cancel(7, 0)
    world.hub.progress(7)
    world.hub.pause(7)
    world.hub.resume(7)
    world.hub.refuse(7, "no")
    assert world.take() == []


# --- statistics -----------------------------------------------------------------------------------


def test_statistics_count(world: World) -> None:
    world.create(7, b"a")
    world.create(7, b"b", start_revision=1)
    world.put(b"a")
    world.put(b"b")
    before = world.hub.statistics()
    assert (before.streams, before.watchers, before.slow_watchers) == (1, 2, 1)
    assert (before.pending_events, before.events_total) == (1, 0)
    world.catch_up()
    world.take(7)
    after = world.hub.statistics()
    assert (after.slow_watchers, after.pending_events, after.events_total) == (0, 0, 2)
