"""The client library against every server that can be started here: etcd 3.4, etcd 3.5, etcd-py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from etcd_client import (
    Changes,
    Client,
    Compacted,
    Event,
    EventKind,
    FailedPrecondition,
    FutureRevision,
    InvalidArgument,
    Lease,
    LiveConfig,
    NotFound,
    OutcomeUnknown,
    PutResult,
    RangeResult,
    Unreachable,
    compare,
    ops,
)
from tests.servers import Server, available_servers, free_ports, start_server

LIMIT_S = 15.0
_numbers = count()


@pytest.fixture(scope="module", params=available_servers())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(request.param, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        yield made


@pytest.fixture
def prefix() -> str:
    """A part of the key space that no other test uses."""
    return f"/t{next(_numbers)}/"


def test_put_get_delete(client: Client, prefix: str) -> None:
    key = f"{prefix}k"
    first = client.put(key, "1")
    second = client.put(key, b"\x00\xff", prev_kv=True)
    assert second.revision == first.revision + 1
    assert second.prev_kv is not None
    assert second.prev_kv.value == b"1"
    found = client.get(key)
    assert found is not None
    assert (found.value, found.version, found.create_revision, found.mod_revision) == (
        b"\x00\xff",
        2,
        first.revision,
        second.revision,
    )
    old = client.get(key, revision=first.revision)
    assert old is not None
    assert old.value == b"1"
    assert client.get(key, serializable=True) == found
    deleted = client.delete(key, prev_kv=True)
    assert (deleted.deleted, deleted.prev_kvs) == (1, (found,))
    assert client.get(key) is None
    assert client.delete(key).revision == deleted.revision


def test_ranges(client: Client, prefix: str) -> None:
    for name in "abcd":
        client.put(prefix + name, name * 2)
    found = client.get_prefix(prefix, limit=2, sort_order="DESCEND")
    assert [kv.key for kv in found.kvs] == [f"{prefix}d".encode(), f"{prefix}c".encode()]
    assert (found.count, found.more) == (4, True)
    assert found.cluster_id == client.status().cluster_id
    assert client.get_prefix(prefix, count_only=True).count == 4
    assert {kv.value for kv in client.get_prefix(prefix, keys_only=True).kvs} == {b""}
    assert [kv.value for kv in client.range(f"{prefix}b", f"{prefix}d").kvs] == [b"bb", b"cc"]
    assert client.delete_prefix(prefix).deleted == 4
    with pytest.raises(FutureRevision):
        client.get("k", revision=10**9)
    with pytest.raises(InvalidArgument, match="key is not provided"):
        client.get("")


def test_put_can_keep_the_value_or_the_lease(client: Client, prefix: str) -> None:
    key = f"{prefix}k"
    with client.lease(30) as lease:
        client.put(key, "v", lease=lease.lease_id)
        client.put(key, "w", ignore_lease=True)
        client.put(key, ignore_value=True, ignore_lease=True)
        found = client.get(key)
        assert found is not None
        assert (found.value, found.lease, found.version) == (b"w", lease.lease_id, 3)


def test_transactions(client: Client, prefix: str) -> None:
    key = f"{prefix}k"
    made = client.txn([compare.missing(key)], [ops.put(key, "mine")], [ops.get(key)])
    again = client.txn([compare.missing(key)], [ops.put(key, "theirs")], [ops.get(key)])
    assert (made.succeeded, again.succeeded) == (True, False)
    (found,) = again.responses
    assert isinstance(found, RangeResult)
    assert found.kvs[0].value == b"mine"
    swapped = client.txn(
        [compare.mod_revision(key) == made.revision, compare.value(key) == "mine", compare.version(key) < 2],
        [
            ops.put(key, "new", prev_kv=True),
            ops.txn([compare.lease(key) == 0], [ops.put(f"{prefix}inner", "x")]),
            ops.get_prefix(prefix),
        ],
    )
    assert swapped.succeeded
    put, _, listing = swapped.responses
    assert isinstance(put, PutResult)
    assert isinstance(listing, RangeResult)
    assert put.prev_kv is not None
    assert (put.prev_kv.value, listing.count) == (b"mine", 2)
    with pytest.raises(InvalidArgument, match="duplicate key"):
        client.txn(success=[ops.put(key), ops.put(key)])


def test_leases(client: Client, prefix: str) -> None:
    lease = client.lease(60)
    client.put(f"{prefix}a", "1", lease=lease.lease_id)
    info = lease.time_to_live(keys=True)
    assert (info.granted_ttl_s, info.keys) == (60, (f"{prefix}a".encode(),))
    assert 58 <= info.ttl_s <= 60
    assert lease.keep_alive_once() == 60
    assert lease.lease_id in client.leases()
    assert client.existing_lease(lease.lease_id).ttl_s == 60
    with pytest.raises(FailedPrecondition, match="lease already exists"):
        client.lease(5, lease_id=lease.lease_id)
    lease.revoke()
    assert client.get(f"{prefix}a") is None
    for gone in (lease.revoke, lease.keep_alive_once, lambda: client.existing_lease(lease.lease_id)):
        with pytest.raises(NotFound):
            gone()
    assert lease.time_to_live().ttl_s == -1


def test_a_lease_is_kept_alive_for_as_long_as_it_is_used(client: Client, prefix: str) -> None:
    lease: Lease
    with client.lease(2) as lease, client.watch(f"{prefix}k", start_revision=1) as watch:
        client.put(f"{prefix}k", lease=lease.lease_id)
        assert next(watch).events[0].kind is EventKind.PUT
        assert not lease.lost.wait(lease.ttl_s + 1.5)
        assert client.get(f"{prefix}k") is not None
    assert client.get(f"{prefix}k") is None


def test_a_lease_left_alone_runs_out(client: Client, prefix: str) -> None:
    lease = client.lease(1)
    client.put(f"{prefix}k", lease=lease.lease_id)
    with client.watch(f"{prefix}k", idle_timeout_s=LIMIT_S) as watch:
        assert next(watch).events[0].kind is EventKind.DELETE
    with pytest.raises(NotFound):
        lease.keep_alive_once()


def test_watch_history_and_news(client: Client, prefix: str) -> None:
    first = client.put(f"{prefix}a", "1").revision
    client.put(f"{prefix}a", "2")
    client.txn(success=[ops.put(f"{prefix}b", "x"), ops.put(f"{prefix}c", "y"), ops.delete(f"{prefix}a")])
    seen: list[Event] = []
    with client.watch(prefix=prefix, start_revision=first, prev_kv=True) as watch:
        while len(seen) < 5:
            seen.extend(next(watch).events)
        client.put(f"{prefix}b", "new")
        seen.extend(next(watch).events)
    told = [(event.kind.value, event.kv.key[-1:], event.kv.mod_revision - first) for event in seen]
    assert told == [
        ("PUT", b"a", 0),
        ("PUT", b"a", 1),
        ("PUT", b"b", 2),
        ("PUT", b"c", 2),
        ("DELETE", b"a", 2),
        ("PUT", b"b", 3),
    ]
    assert [event.prev_kv.value if event.prev_kv else None for event in seen] == [
        None,
        b"1",
        None,
        None,
        b"2",
        b"x",
    ]


def test_watch_filters(client: Client, prefix: str) -> None:
    first = client.put(f"{prefix}k", "1").revision
    client.delete(f"{prefix}k")
    with client.watch(prefix=prefix, start_revision=first, puts=False) as watch:
        assert next(watch).events[0].kind is EventKind.DELETE


def test_a_silent_watch_is_replaced_and_loses_nothing(client: Client, prefix: str) -> None:
    with client.watch(prefix=prefix, idle_timeout_s=0.3) as watch:
        timer = threading.Timer(1.0, lambda: client.put(f"{prefix}k", "late"))
        timer.start()
        try:
            assert next(watch).events[0].kv.value == b"late"
        finally:
            timer.join()


def test_cancel_ends_a_watch_that_waits(client: Client, prefix: str) -> None:
    watch = client.watch(prefix=prefix)
    thread = threading.Thread(target=lambda: list(watch))
    thread.start()
    deadline_s = time.monotonic() + LIMIT_S
    while not watch.connected and time.monotonic() < deadline_s:
        time.sleep(0.01)
    started_s = time.monotonic()
    watch.cancel()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert time.monotonic() - started_s < 2


def test_compaction(client: Client, prefix: str) -> None:
    first = client.put(f"{prefix}k", "1").revision
    last = client.put(f"{prefix}k", "2").revision
    assert client.compact(last) == last
    with pytest.raises(Compacted):
        client.get(f"{prefix}k", revision=first)
    with pytest.raises(Compacted) as caught:
        next(client.watch(f"{prefix}k", start_revision=first))
    assert caught.value.compact_revision == last
    with pytest.raises(Compacted):
        client.compact(last)
    with pytest.raises(FutureRevision):
        client.compact(last + 100)


def test_status_and_members(server: Server, client: Client) -> None:
    status = client.status(server.url)
    assert status.is_leader
    assert status.version.startswith("3.")
    (member,) = client.member_list()
    assert (member.member_id, member.name, member.client_urls) == (status.member_id, "m1", (server.url,))


def test_live_configuration(client: Client, prefix: str) -> None:
    client.put(f"{prefix}db/url", "db1")
    told: list[Changes] = []
    with LiveConfig(client, prefix, told.append) as config:
        assert dict(config) == {"db/url": "db1"}
        done = client.txn(success=[ops.put(f"{prefix}db/url", "db2"), ops.put(f"{prefix}pool", "8")])
        assert config.wait_for(done.revision, LIMIT_S)
        assert dict(config) == {"db/url": "db2", "pool": "8"}
        gone = client.delete(f"{prefix}pool")
        assert config.wait_for(gone.revision, LIMIT_S)
        assert dict(config) == {"db/url": "db2"}
    assert told == [
        Changes(done.revision, {"db/url": "db2", "pool": "8"}, frozenset()),
        Changes(gone.revision, {}, frozenset({"pool"})),
    ]


@pytest.mark.parametrize("kind", available_servers())
def test_a_server_that_comes_back(kind: str, tmp_path: Path) -> None:
    """SIGKILL, an outage, a restart: values stay in force, and then news arrive, compaction or not."""
    dead_port = free_ports(1)[0]
    running = start_server(kind, tmp_path)
    try:
        with Client([f"http://127.0.0.1:{dead_port}", running.url], timeout_s=2) as client:
            client.put("/app/a", "1")
            with LiveConfig(client, "/app/", idle_timeout_s=5) as config:
                running.kill()
                with pytest.raises((Unreachable, OutcomeUnknown)):
                    client.put("/app/a", "lost")
                assert config["a"] == "1"
                running.start()
                client.put("/app/a", "2")
                last = client.put("/app/b", "3").revision
                client.compact(last)
                assert config.wait_for(last, LIMIT_S)
                assert dict(config) == {"a": "2", "b": "3"}
                assert config.healthy
    finally:
        running.stop()
