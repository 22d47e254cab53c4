"""Follow and LiveConfig over the scripted transport."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from etcd_client import Changes, Follow, Listing, LiveConfig, errors
from etcd_client.transport import ConnectFailed
from tests.unit.client.fakes import (
    LIMIT_S,
    FakeTransport,
    Stream,
    cancelled,
    created,
    delete_event,
    fake_client,
    kv,
    ok,
    put_events,
    refused,
)


def listing(revision: int, **values: str) -> Any:
    kvs = [kv(f"/app/{key}", value, revision) for key, value in values.items()]
    return ok(revision, kvs=kvs, count=str(len(kvs)))


class Recorder:
    """Collects the callbacks; `wait(n)` waits until there are n."""

    def __init__(self) -> None:
        self.seen: list[Changes] = []
        self._more = threading.Condition()

    def __call__(self, changes: Changes) -> None:
        with self._more:
            self.seen.append(changes)
            self._more.notify_all()

    def wait(self, count: int) -> list[Changes]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.seen) >= count, LIMIT_S), self.seen
            return self.seen


def test_it_loads_then_follows_and_tells_what_changed() -> None:
    transport = FakeTransport(
        a=[
            listing(5, a="1", b="2"),
            Stream(created(5), put_events(("/app/a", "9", 6)), delete_event("/app/b", 7), end=Stream.hold),
        ]
    )
    told = Recorder()
    with LiveConfig(fake_client(transport), "/app/", told) as config:
        first, second = told.wait(2)
        assert first == Changes(6, {"a": "9"}, frozenset())
        assert second == Changes(7, {}, frozenset({"b"}))
        assert dict(config) == {"a": "9"}
        assert (config["a"], config.revision, len(config), config.get("b", "none")) == ("9", 7, 1, "none")
        assert config.wait_for(7, LIMIT_S)
        assert not config.wait_for(8, 0.01)
        assert config.healthy
    assert not config.healthy
    assert dict(config) == {"a": "9"}, "readable after close"
    assert transport.requests[1][2]["create_request"]["start_revision"] == "6"


def test_a_transaction_is_seen_whole() -> None:
    batch = put_events(("/app/x", "new", 6), ("/app/y", "new", 6))
    transport = FakeTransport(a=[listing(5, x="old", y="old"), Stream(created(5), batch, end=Stream.hold)])
    told = Recorder()
    with LiveConfig(fake_client(transport), "/app/", told) as config:
        before = config.snapshot()
        assert told.wait(1) == [Changes(6, {"x": "new", "y": "new"}, frozenset())]
        assert config.snapshot().values == {"x": "new", "y": "new"}
        assert before.values in ({"x": "old", "y": "old"}, {"x": "new", "y": "new"})


def test_after_a_compaction_it_lists_again_and_tells_the_difference_once() -> None:
    transport = FakeTransport(
        a=[
            listing(5, a="1", b="2", c="3"),
            Stream(created(5), cancelled(compact_revision=40)),
            listing(50, a="1", b="changed", d="new"),
            Stream(created(50), end=Stream.hold),
        ]
    )
    told = Recorder()
    with LiveConfig(fake_client(transport), "/app/", told) as config:
        assert told.wait(1) == [Changes(50, {"b": "changed", "d": "new"}, frozenset({"c"}))]
        assert config.wait_for(50, LIMIT_S)
        assert config.revision == 50


def test_a_lost_server_leaves_the_last_values_in_force() -> None:
    stream = Stream(created(5))
    gone: list[Any] = [ConnectFailed("refused")] * 1000
    transport = FakeTransport(a=[listing(5, a="1"), stream, *gone], b=gone)
    with LiveConfig(fake_client(transport), "/app/") as config:
        assert stream.reached_end.wait(LIMIT_S)
        waiting = threading.Event()
        while config.healthy:
            waiting.wait(0.01)
        assert isinstance(config.last_error, errors.NotNow)
        assert dict(config) == {"a": "1"}


def test_it_cannot_be_made_without_the_first_values() -> None:
    transport = FakeTransport(a=[denied()])
    with pytest.raises(errors.PermissionDenied):
        LiveConfig(fake_client(transport), "/app/")


def denied() -> Any:
    return refused(7, "etcdserver: permission denied", 403)


def test_a_callback_that_fails_stops_nothing() -> None:
    stream = Stream(
        created(5), put_events(("/app/a", "2", 6)), put_events(("/app/a", "3", 7)), end=Stream.hold
    )
    told = Recorder()

    def fail_once(changes: Changes) -> None:
        told(changes)
        if len(told.seen) == 1:
            raise RuntimeError("the callback's own trouble")

    with LiveConfig(fake_client(FakeTransport(a=[listing(5, a="1"), stream])), "/app/", fail_once) as config:
        assert [changes.revision for changes in told.wait(2)] == [6, 7]
        assert config["a"] == "3"


def test_a_callback_may_close_it() -> None:
    stream = Stream(created(5), put_events(("/app/a", "2", 6)), end=Stream.hold)
    closed = threading.Event()
    transport = FakeTransport(a=[listing(5, a="1"), stream])
    ready = threading.Event()
    made: list[LiveConfig] = []

    def close(changes: Changes) -> None:
        assert ready.wait(LIMIT_S)
        made[0].close()
        closed.set()

    made.append(LiveConfig(fake_client(transport), "/app/", close))
    ready.set()
    assert closed.wait(LIMIT_S)
    made[0].close()
    assert not made[0].wait_for(99, LIMIT_S), "does not wait for what cannot come"


def test_bytes_that_are_not_text_are_kept() -> None:
    binary = ok(5, kvs=[{"key": "L2FwcC//", "value": "/wD+", "mod_revision": "5"}], count="1")
    transport = FakeTransport(a=[binary, Stream(created(5), end=Stream.hold)])
    with LiveConfig(fake_client(transport), "/app/") as config:
        (key,) = config
        assert config.bytes_of(key) == b"\xff\x00\xfe"
        assert key.encode("utf-8", "surrogateescape") == b"\xff"


def test_closing_the_client_ends_it() -> None:
    stream = Stream(created(5), end=Stream.hold)
    client = fake_client(FakeTransport(a=[listing(5, a="1"), stream]))
    config = LiveConfig(client, "/app/")
    assert stream.reached_end.wait(LIMIT_S)
    client.close()
    assert not config.wait_for(6, LIMIT_S)
    assert not config.healthy
    assert config["a"] == "1"


def test_follow_goes_on_after_a_listing_that_failed() -> None:
    transport = FakeTransport(
        a=[denied(), listing(5, a="1"), Stream(created(5), put_events(("/app/a", "2", 6)))]
    )
    follow = Follow(fake_client(transport), "/app/")
    with pytest.raises(errors.PermissionDenied):
        next(follow)
    assert isinstance(follow.last_error, errors.PermissionDenied)
    first = next(follow)
    assert isinstance(first, Listing)
    assert (first.revision, len(first.kvs)) == (5, 1)
    assert str(follow.last_error) == "None"
    assert next(follow).revision == 6
    follow.cancel()
    assert list(follow) == []
