"""Watches through everything that happens to long streams, over the scripted transport."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from etcd_client import Compacted, Watch, WatchBatch, errors
from etcd_client.transport import ConnectFailed, ConnectionLost, IdleTimeout
from tests.unit.client.fakes import (
    LIMIT_S,
    FakeResponse,
    FakeTransport,
    Stream,
    cancelled,
    created,
    delete_event,
    error_frame,
    fake_client,
    progress,
    put_events,
    refused,
)


def start_revisions(transport: FakeTransport) -> list[int]:
    return [int(body["create_request"].get("start_revision", 0)) for _, _, body in transport.requests]


def watching(transport: FakeTransport, **options: Any) -> Watch:
    return fake_client(transport).watch(prefix="k", **options)


def pairs(batch: WatchBatch) -> list[tuple[bytes, bytes]]:
    return [(event.kv.key, event.kv.value) for event in batch.events]


@pytest.mark.parametrize(
    "trouble",
    [
        Stream(created(5), put_events(("k", "1", 6)), end=None),
        Stream(created(5), put_events(("k", "1", 6)), end=ConnectionLost("reset")),
        Stream(created(5), put_events(("k", "1", 6)), end=IdleTimeout("silent")),
        Stream(created(5), put_events(("k", "1", 6)), error_frame(14, "etcdserver: no leader")),
        Stream(created(5), put_events(("k", "1", 6)), error_frame(13, "internal")),
        Stream(created(5), put_events(("k", "1", 6)), cancelled("etcdserver: no leader")),
        Stream(created(5), put_events(("k", "1", 6)), b'{"result":{"hea'),
        Stream(created(5), put_events(("k", "1", 6)), b"rubbish\n"),
    ],
)
def test_a_watch_resumes_elsewhere_after_the_last_revision_delivered(trouble: Stream) -> None:
    transport = FakeTransport(a=[trouble], b=[Stream(created(7), put_events(("k", "2", 7)), end=Stream.hold)])
    with watching(transport) as watch:
        assert pairs(next(watch)) == [(b"k", b"1")]
        assert pairs(next(watch)) == [(b"k", b"2")]
        assert start_revisions(transport) == [0, 7]
        assert transport.asked == "ab"
        assert watch.connected
        assert watch.last_error is None
        assert trouble.closed


@pytest.mark.parametrize(
    "trouble",
    [ConnectFailed("refused"), ConnectionLost("reset"), refused(14, "etcdserver: no leader", 503), Stream()],
)
def test_a_watch_keeps_trying_to_begin(trouble: object) -> None:
    transport = FakeTransport(a=[trouble], b=[Stream(created(5), put_events(("k", "1", 6)))])
    assert pairs(next(watching(transport))) == [(b"k", b"1")]
    assert start_revisions(transport) == [0, 0]


def test_nothing_is_lost_between_now_and_the_first_event() -> None:
    transport = FakeTransport(
        a=[Stream(created(5))], b=[Stream(created(9), put_events(("k", "1", 8), ("k", "2", 9)))]
    )
    assert next(watching(transport)).revision == 9
    assert start_revisions(transport) == [0, 6], "the first stream began after revision 5"


def test_a_watch_is_asked_to_end_without_a_leader_and_to_report_progress() -> None:
    transport = FakeTransport(a=[Stream(created(5), put_events(("k", "1", 6)))])
    next(watching(transport, start_revision=3, prev_kv=True, deletes=False, idle_timeout_s=44))
    assert transport.raw[0].headers["Grpc-Metadata-hasleader"] == "true"
    assert transport.raw[0].body_timeout_s == 44
    assert transport.requests[0][2] == {
        "create_request": {
            "key": "aw==",
            "range_end": "bA==",
            "prev_kv": True,
            "progress_notify": True,
            "filters": ["NODELETE"],
            "start_revision": "3",
        }
    }


def test_progress_moves_the_place_to_resume_from() -> None:
    transport = FakeTransport(
        a=[Stream(created(5), progress(20))], b=[Stream(created(25), put_events(("k", "1", 25)))]
    )
    watch = watching(transport)
    assert next(watch) == WatchBatch(revision=20, events=(), cluster_id=7)
    assert next(watch).revision == 25
    assert start_revisions(transport) == [0, 21]


def test_a_header_that_runs_ahead_of_history_does_not_move_it() -> None:
    transport = FakeTransport(
        a=[Stream(created(50), put_events(("k", "1", 10), revision=50))],
        b=[Stream(created(50), put_events(("k", "2", 11), revision=50))],
    )
    watch = watching(transport, start_revision=10)
    assert next(watch).revision == 10
    assert next(watch).revision == 11
    assert start_revisions(transport) == [10, 11]


def test_frames_may_be_cut_anywhere() -> None:
    frames = b"".join(json.dumps(f).encode() + b"\n" for f in (created(5), put_events(("k", "1", 6))))
    for size in (1, 2, 7, len(frames)):
        pieces = [frames[start : start + size] for start in range(0, len(frames), size)]
        assert pairs(next(watching(FakeTransport(a=[Stream(*pieces)])))) == [(b"k", b"1")]


def test_events_are_told_apart() -> None:
    transport = FakeTransport(a=[Stream(created(5), put_events(("k", "1", 6)), delete_event("k", 7))])
    watch = watching(transport)
    assert next(watch).events[0].is_create
    deleted = next(watch).events[0]
    assert (deleted.kind.value, deleted.kv.key, deleted.kv.mod_revision) == ("DELETE", b"k", 7)
    assert not deleted.is_create


@pytest.mark.parametrize(
    "frames",
    [
        [created(9), cancelled(compact_revision=7)],
        [created(9), cancelled("etcdserver: mvcc: required revision has been compacted", 7)],
        [cancelled("etcdserver: mvcc: required revision has been compacted", 7, with_created=True)],
    ],
)
def test_compaction_is_told_to_the_caller(frames: list[object]) -> None:
    watch = watching(FakeTransport(a=[Stream(*frames)]), start_revision=3)
    with pytest.raises(Compacted) as caught:
        next(watch)
    assert caught.value.compact_revision == 7
    with pytest.raises(StopIteration):
        next(watch)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (Stream(cancelled("mvcc: watcher range is empty", with_created=True)), errors.InvalidArgument),
        (Stream(cancelled("etcdserver: permission denied", with_created=True)), errors.PermissionDenied),
        (Stream(error_frame(16, "etcdserver: invalid auth token")), errors.Unauthenticated),
        (FakeResponse(b"Not Found", 404), errors.Unsupported),
    ],
)
def test_the_callers_own_faults_are_raised(script: FakeResponse, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        next(watching(FakeTransport(a=[script])))


def test_another_cluster_is_noticed() -> None:
    transport = FakeTransport(
        a=[Stream(created(5), put_events(("k", "1", 6)))], b=[Stream(created(9, cluster_id=8))]
    )
    watch = watching(transport)
    next(watch)
    with pytest.raises(errors.ClusterChanged):
        next(watch)


def test_a_store_that_went_back_is_not_waited_for_in_silence() -> None:
    transport = FakeTransport(
        a=[Stream(created(5), put_events(("k", "1", 6))), Stream(created(7), put_events(("k", "2", 7)))],
        b=[Stream(created(2), end=Stream.hold)],
    )
    watch = watching(transport)
    next(watch)
    assert next(watch).revision == 7, "the member that lags is left for one that does not"
    assert transport.asked == "aba"


def test_a_revision_in_the_future_may_be_waited_for() -> None:
    transport = FakeTransport(
        a=[Stream(created(5))], b=[Stream(created(5), put_events(("k", "1", 10)), end=Stream.hold)]
    )
    with watching(transport, start_revision=10) as watch:
        assert next(watch).revision == 10


def test_an_event_from_before_the_place_of_resumption_is_not_delivered_twice() -> None:
    transport = FakeTransport(
        a=[Stream(created(5), put_events(("k", "1", 6))), Stream(created(7), put_events(("k", "2", 7)))],
        b=[Stream(created(6), put_events(("k", "1", 6)))],
    )
    watch = watching(transport)
    assert [next(watch).revision, next(watch).revision] == [6, 7]


def test_cancel_from_another_thread_ends_a_blocked_next() -> None:
    stream = Stream(created(5), end=Stream.hold)
    watch = watching(FakeTransport(a=[stream]))
    seen: list[list[WatchBatch]] = []
    thread = threading.Thread(target=lambda: seen.append(list(watch)))
    thread.start()
    assert stream.reached_end.wait(LIMIT_S)
    watch.cancel()
    watch.cancel()
    thread.join(LIMIT_S)
    assert seen == [[]]
    assert stream.closed
    assert not watch.connected


def test_cancel_ends_the_wait_between_attempts() -> None:
    transport = FakeTransport(a=[ConnectFailed("refused")] * 99, b=[ConnectFailed("refused")] * 99)
    watch = watching(transport)
    thread = threading.Thread(target=lambda: list(watch))
    thread.start()
    watch.cancel()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert list(watch) == []


def test_closing_the_client_ends_its_watches() -> None:
    stream = Stream(created(5), end=Stream.hold)
    client = fake_client(FakeTransport(a=[stream]))
    watch = client.watch("k")
    thread = threading.Thread(target=lambda: list(watch))
    thread.start()
    assert stream.reached_end.wait(LIMIT_S)
    client.close()
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_a_watch_needs_a_key_or_a_prefix() -> None:
    client = fake_client(FakeTransport())
    for options in ({}, {"key": "a", "prefix": "b"}, {"key": "a", "start_revision": -1}):
        with pytest.raises(ValueError, match="watch: "):
            client.watch(**options)
