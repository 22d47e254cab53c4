"""Large things in a real server: many keys, large values and answers, many watchers, a client that does not
read, a lease with many keys. While one client has much, the others are served.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import requests

from etcd_server.api.proto import rpc_pb2
from tests.live import (
    DELETE,
    GRANT,
    REVOKE,
    TXN,
    Calls,
    LiveServer,
    WatchStream,
    assert_no_traceback,
    wait_until,
    watch_request,
)

MAX_REQUEST_BYTES = 1_572_864


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("large"))
    server.start()
    yield server
    assert server.running, server.output
    assert server.stop() == 0
    assert_no_traceback(server.output)
    found = server.verify()
    assert found.returncode == 0, found.stdout


@pytest.fixture
def calls(server: LiveServer) -> Iterator[Calls]:
    with server.calls() as calls:
        yield calls


def fill(calls: Calls, prefix: bytes, count: int, *, lease: int = 0, value: bytes = b"v") -> int:
    """Put keys, a hundred in a txn; the last revision."""
    txn, running, revisions = calls.function(TXN), [], []
    for start in range(0, count, 100):
        operations = [
            rpc_pb2.RequestOp(
                request_put=rpc_pb2.PutRequest(key=b"%s%06d" % (prefix, number), value=value, lease=lease)
            )
            for number in range(start, min(start + 100, count))
        ]
        running.append(txn.future(rpc_pb2.TxnRequest(success=operations), timeout=60))
    for each in running:
        response: rpc_pb2.TxnResponse = each.result()
        revisions.append(response.header.revision)
    return max(revisions)


class Slowest:
    """How long the slowest of many small reads took, measured from beside."""

    def __init__(self, server: LiveServer) -> None:
        self._server = server
        self._over = threading.Event()
        self.slowest_s = 0.0
        self.count = 0

    def __enter__(self) -> Slowest:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        with self._server.calls() as calls:
            while not self._over.is_set():
                begun_s = time.monotonic()
                calls.range(key=b"none")
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun_s)
                self.count += 1

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_a_range_of_100_000_keys(server: LiveServer, calls: Calls) -> None:
    revision = fill(calls, b"many/", 100_000)
    with Slowest(server) as slowest:
        response = calls.range(key=b"many/", range_end=b"many0", timeout_s=60)
    assert response.count == len(response.kvs) == 100_000 and not response.more
    assert [kv.key for kv in response.kvs] == [b"many/%06d" % number for number in range(100_000)]
    assert slowest.slowest_s < 3.0 and slowest.count > 0
    assert calls.range(key=b"many/", range_end=b"many0", count_only=True).count == 100_000
    page = calls.range(key=b"many/", range_end=b"many0", limit=10, sort_order="DESCEND")
    assert [kv.key for kv in page.kvs] == [b"many/%06d" % number for number in range(99_999, 99_989, -1)]
    assert page.more and page.count == 100_000
    answer = requests.post(
        f"{server.url}/v3/kv/range", json={"key": "bWFueS8=", "range_end": "bWFueTA="}, timeout=60
    )
    assert len(answer.json()["kvs"]) == 100_000
    # All of them deleted at one revision; a watch from before it gets one event for each.
    deleted = calls.call(DELETE, rpc_pb2.DeleteRangeRequest(key=b"many/", range_end=b"many0"), 60)
    assert (deleted.deleted, deleted.header.revision) == (100_000, revision + 1)
    stream = WatchStream(calls, watch_request(b"many/", range_end=b"many0", start_revision=revision + 1))
    stream.wait(lambda stream: len(stream.events) >= 100_000)
    assert {event.kv.mod_revision for event in stream.events} == {revision + 1}
    stream.close()


@pytest.mark.parametrize("spare_bytes", [0, 1, 100])
def test_a_value_as_large_as_a_request_may_be(calls: Calls, spare_bytes: int) -> None:
    overhead_bytes = (
        rpc_pb2.PutRequest(key=b"large", value=bytes(MAX_REQUEST_BYTES)).ByteSize() - MAX_REQUEST_BYTES
    )
    value = bytes(MAX_REQUEST_BYTES - overhead_bytes - spare_bytes)
    calls.put(b"large", value, 30)
    assert calls.get(b"large") == value
    with pytest.raises(grpc.RpcError) as caught:
        calls.put(b"large", bytes(len(value) + spare_bytes + 1), 30)
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "etcdserver: request is too large",
    )
    with pytest.raises(grpc.RpcError) as caught:
        calls.put(b"large", bytes(3 * MAX_REQUEST_BYTES), 30)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert calls.get(b"large") == value


def test_1_000_watchers_on_ten_streams(server: LiveServer, calls: Calls) -> None:
    requests_ = [watch_request(b"w/%03d" % (number % 100), watch_id=number + 1) for number in range(100)]
    streams = [WatchStream(calls, *requests_) for _ in range(10)]
    for stream in streams:
        stream.wait(lambda stream: len(stream.responses) >= 100)
    assert metric(server, "etcd_debugging_mvcc_watcher_total") == 1_000
    for number in range(100):
        calls.put(b"w/%03d" % number, b"v")
    for stream in streams:
        stream.wait(lambda stream: len(stream.events) >= 100)
        by_watch = {
            response.watch_id: response.events[0].kv.key for response in stream.responses if response.events
        }
        assert by_watch == {number + 1: b"w/%03d" % number for number in range(100)}
    for stream in streams:
        stream.close()
    wait_until(lambda: metric(server, "etcd_debugging_mvcc_watcher_total") == 0, "the end of the watches")


def test_1_000_watchers_of_one_key(server: LiveServer) -> None:
    channels = [server.calls() for _ in range(4)]
    streams = [
        WatchStream(channels[number % 4], *[watch_request(b"one")] * 100, read_nothing=False)
        for number in range(10)
    ]
    for stream in streams:
        stream.wait(lambda stream: len(stream.responses) >= 100)
    for _ in range(10):
        channels[0].put(b"one", b"v")
    for stream in streams:
        stream.wait(lambda stream: len(stream.events) >= 1_000)
        stream.close()
    for each in channels:
        each.channel.close()


def metric(server: LiveServer, name: str) -> float:
    page = requests.get(f"{server.url}/metrics", timeout=5).text
    return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[1])


def test_a_watcher_that_does_not_read_costs_nobody_else_anything(server: LiveServer) -> None:
    """What it has not read does not gather in the server; when it reads again it gets all of it, in order."""
    with server.calls() as calls, server.calls() as others, server.calls() as deaf_calls:
        revision = calls.range(key=b"none").header.revision
        deaf = WatchStream(deaf_calls, watch_request(b"slow"), read_nothing=True)
        reader = WatchStream(others, watch_request(b"slow"))
        reader.wait(lambda stream: stream.responses)
        # The first answer has been read by nobody; that the watch exists is seen from outside.
        wait_until(lambda: metric(server, "etcd_debugging_mvcc_watcher_total") == 2, "both watches")
        memory_bytes = resident_bytes(server)
        with Slowest(server) as slowest:
            for number in range(150):
                calls.put(b"slow", b"%06d" % number + bytes(500_000))
            reader.wait(lambda stream: len(stream.events) >= 150)
        assert slowest.slowest_s < 1.0
        wait_until(lambda: metric(server, "etcd_debugging_mvcc_slow_watcher_total") == 1, "the slow watcher")
        # 75 MB have been written; far less than that is held for the one that does not read.
        assert resident_bytes(server) - memory_bytes < 60e6
        deaf.read()
        deaf.wait(lambda stream: len(stream.events) >= 150)
        assert [event.kv.mod_revision for event in deaf.events] == [*range(revision + 1, revision + 151)]
        assert [int(event.kv.value[:6]) for event in deaf.events] == [*range(150)]
        calls.put(b"slow", b"live again")
        deaf.wait(lambda stream: stream.last_events and stream.last_events[-1].kv.value == b"live again")
        wait_until(lambda: metric(server, "etcd_debugging_mvcc_slow_watcher_total") == 0, "no slow watcher")
        deaf.close()
        reader.close()


def resident_bytes(server: LiveServer) -> int:
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def test_a_lease_of_10_000_keys_goes_in_one_revision(server: LiveServer, calls: Calls) -> None:
    lease = calls.call(GRANT, rpc_pb2.LeaseGrantRequest(TTL=3600)).ID
    revision = fill(calls, b"leased/", 10_000, lease=lease)
    stream = WatchStream(calls, watch_request(b"leased/", range_end=b"leased0"))
    stream.wait(lambda stream: stream.responses)
    with Slowest(server) as slowest:
        response = calls.call(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease), 30)
    assert response.header.revision == revision + 1
    assert slowest.slowest_s < 2.0
    assert calls.range(key=b"leased/", range_end=b"leased0", count_only=True).count == 0
    stream.wait(lambda stream: len(stream.events) >= 10_000)
    assert {(event.type, event.kv.mod_revision) for event in stream.events} == {(1, revision + 1)}
    stream.close()


def test_an_answer_of_50_mb(server: LiveServer, calls: Calls) -> None:
    value = bytes(1_000_000)
    for number in range(50):
        calls.put(b"huge/%03d" % number, value, 30)
    with Slowest(server) as slowest:
        response = calls.range(key=b"huge/", range_end=b"huge0", timeout_s=60)
    assert [len(kv.value) for kv in response.kvs] == [len(value)] * 50
    assert slowest.slowest_s < 3.0
