"""The server as a process: how it starts, what it prints, what signals do to it, what systemd is told."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import requests

from etcd_server.api.proto import rpc_pb2
from tests.live import (
    LEASES,
    Calls,
    LiveServer,
    WatchStream,
    assert_no_traceback,
    assert_one_line,
    systemd_socket,
    verify,
    wait_until,
    watch_request,
)

STOPPED = "etcdserver: server stopped"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path)
    yield server
    server.stop()


def messages(server: LiveServer) -> list[str]:
    return [entry["msg"] for entry in server.log]


# --- starting


def test_what_a_start_writes_to_the_log(server: LiveServer) -> None:
    server.start()
    wait_until(lambda: len(server.log) == 4, "ready to serve")
    assert messages(server) == [
        "serving client traffic",
        "serving peer traffic",
        "published local member to cluster through raft",
        "ready to serve client requests",
    ]
    assert [entry["level"] for entry in server.log] == ["info"] * 4
    assert server.stop() == 0
    assert messages(server)[4:] == ["received signal; shutting down"]
    assert server.log[4]["signal"] == "SIGTERM"
    assert len(server.output.splitlines()) == 5


def test_the_same_ports_can_be_used_again_at_once(server: LiveServer) -> None:
    for _ in range(3):
        server.start()
        with server.calls() as calls:
            calls.put(b"k", b"v")
        server.kill()
    server.start()


@pytest.mark.parametrize("port", ["client_port", "peer_port"])
def test_a_port_in_use_costs_nothing(server: LiveServer, port: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", getattr(server, port)))
        other.listen()
        done = server.run_to_the_end()
    assert done.returncode == 1
    assert_one_line(done.stderr, f"127.0.0.1:{getattr(server, port)}", "[Aa]ddress (already )?in use")
    assert not server.data_dir.exists()


def test_a_directory_in_use_is_left_alone(server: LiveServer, tmp_path: Path) -> None:
    server.start()
    (tmp_path / "second").mkdir()
    second = LiveServer(tmp_path / "second", data_dir=server.data_dir)
    before = sorted(os.listdir(server.data_dir))
    done = second.run_to_the_end()
    assert done.returncode == 1
    assert_one_line(done.stderr, str(server.data_dir), "in use by another process")
    assert sorted(os.listdir(server.data_dir)) == before
    with server.calls() as calls:
        calls.put(b"k", b"v")
        assert calls.get(b"k") == b"v"


def etcds(directory: Path) -> None:
    (directory / "member" / "wal").mkdir(parents=True)


def somebody_elses(directory: Path) -> None:
    directory.mkdir()
    (directory / "thesis.tex").write_text("years of work")


def of_a_newer_version(directory: Path) -> None:
    directory.mkdir()
    (directory / "format").write_text("etcd-py data directory, format 2\n")


def below_a_file(directory: Path) -> None:
    directory.write_text("a file")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (etcds, "data directory of an etcd"),
        (somebody_elses, "thesis.tex"),
        (of_a_newer_version, "newer version"),
        (below_a_file, "expected a directory, found a file"),
    ],
)
def test_a_directory_that_cannot_be_used_is_left_as_it_is(
    server: LiveServer, prepare: Callable[[Path], None], said: str
) -> None:
    prepare(server.data_dir)
    before = contents(server.data_dir)
    done = server.run_to_the_end()
    assert done.returncode == 1
    assert_one_line(done.stderr, str(server.data_dir), said)
    assert contents(server.data_dir) == before


def contents(path: Path) -> dict[str, bytes | None]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(found): found.read_bytes() if found.is_file() else None for found in path.rglob("*")}


@pytest.mark.parametrize("parent", ["/proc", "/sys"])
def test_a_directory_that_cannot_be_written(tmp_path: Path, parent: str) -> None:
    data_dir = Path(parent) / "etcd-py"
    done = LiveServer(tmp_path, data_dir=data_dir).run_to_the_end()
    assert done.returncode == 1
    assert_one_line(done.stderr, str(data_dir), "No such file|not permitted|Permission denied|Read-only")


# --- stopping


class Writer:
    """Puts unique values until it is told to stop or the server is gone."""

    def __init__(self, calls: Calls, name: str) -> None:
        self.acknowledged: list[bytes] = []
        self.failures: list[tuple[grpc.StatusCode, str | None]] = []
        self._calls = calls
        self._name = name
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for number in range(1_000_000):
            key = b"%s/%d" % (self._name.encode(), number)
            try:
                self._calls.put(key, key)
            except grpc.RpcError as error:
                self.failures.append((error.code(), error.details()))
                return
            self.acknowledged.append(key)
            if self._over.is_set():
                return

    def join(self) -> None:
        self._over.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load(server: LiveServer, number: signal.Signals) -> None:
    server.start()
    session = requests.Session()
    assert session.get(f"{server.url}/version", timeout=5).ok
    with server.calls() as calls, server.calls() as watching:
        streams = [WatchStream(watching, watch_request(b"w", range_end=b"x")) for _ in range(20)]
        for stream in streams:
            stream.wait(lambda stream: stream.responses)
        lease_requests = threading.Event()

        def keep_alive() -> Iterator[rpc_pb2.LeaseKeepAliveRequest]:
            yield rpc_pb2.LeaseKeepAliveRequest(ID=1)
            lease_requests.wait(30)

        keep = watching.stream("/etcdserverpb.Lease/LeaseKeepAlive", keep_alive())
        assert next(keep).ID == 1
        web = requests.post(
            f"{server.url}/v3/watch", data='{"create_request":{"key":"dw=="}}', stream=True, timeout=20
        )
        lines = web.iter_lines()
        assert json.loads(next(lines))["result"]["created"]
        writers = [Writer(calls, f"w{n}") for n in range(16)]
        wait_until(lambda: all(len(writer.acknowledged) > 5 for writer in writers), "writes")

        begun_s = time.monotonic()
        server.signal(number)
        assert server.wait_for_exit() == 0
        assert time.monotonic() - begun_s < 3.0

        for stream in streams:
            stream.wait(lambda stream: stream.error)
            assert stream.error is not None
            assert (stream.error.code(), stream.error.details()) == (grpc.StatusCode.UNAVAILABLE, STOPPED)
            stream.close()
        with pytest.raises(grpc.RpcError) as caught:
            next(keep)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, STOPPED)
        lease_requests.set()
        assert json.loads(next(lines))["error"]["message"] == STOPPED
        assert next(lines, None) is None
        for writer in writers:
            writer.join()
            assert {code for code, _ in writer.failures} <= {grpc.StatusCode.UNAVAILABLE}
    assert_no_traceback(server.output)
    assert verify(server.data_dir).returncode == 0
    server.start()
    with server.calls() as calls:
        found = {kv.key for kv in calls.range(key=b"w", range_end=b"x", keys_only=True, timeout_s=20).kvs}
    acknowledged = {key for writer in writers for key in writer.acknowledged}
    assert acknowledged <= found
    # What was not answered may have happened: one write at most for each writer.
    assert len(found - acknowledged) <= len(writers)


def test_an_idle_stop_is_quick_and_leaves_nothing_to_replay(server: LiveServer) -> None:
    server.start()
    with server.calls() as calls:
        calls.put(b"k", b"v")
        begun_s = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit() == 0
        assert time.monotonic() - begun_s < 1.5
    # The last checkpoint has copied the journal into the file.
    assert not (server.data_dir / "state.db-wal").exists()


def test_a_stop_does_not_wait_for_a_client_that_reads_nothing(server: LiveServer) -> None:
    server.start()
    with server.calls() as calls, server.calls() as watching:
        deaf = WatchStream(watching, watch_request(b"big"), read_nothing=True)
        wait_until(lambda: watchers(server) == 1, "the watch")
        for _ in range(20):
            calls.put(b"big", os.urandom(1_000_000))
        begun_s = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit() == 0
        assert time.monotonic() - begun_s < 8.0
        deaf.close()
    assert_no_traceback(server.output)


def watchers(server: LiveServer) -> float:
    return metric(server, "etcd_debugging_mvcc_watcher_total")


def metric(server: LiveServer, name: str) -> float:
    page = requests.get(f"{server.url}/metrics", timeout=5).text
    return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[1])


# --- signals and systemd


def test_sighup_opens_the_log_file_again(tmp_path: Path) -> None:
    path = tmp_path / "etcd-py.log"
    server = LiveServer(tmp_path, flags=["--log-outputs", str(path)])
    server.start()
    try:
        moved = tmp_path / "etcd-py.log.1"
        path.rename(moved)
        server.signal(signal.SIGHUP)
        wait_until(path.exists, "a new log file")
        assert server.stop() == 0
        assert "ready to serve client requests" in moved.read_text()
        assert [json.loads(line)["msg"] for line in path.read_text().splitlines()] == [
            "received signal; shutting down"
        ]
        assert server.output == ""
    finally:
        server.stop()


def test_what_systemd_is_told(tmp_path: Path) -> None:
    with systemd_socket(tmp_path) as (address, received):
        server = LiveServer(tmp_path, environment={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
        server.start()
        try:

            def told() -> list[str]:
                return [message for _, message in list(received)]

            wait_until(lambda: "READY=1" in told(), "READY=1")
            with server.calls() as calls:
                calls.put(b"k", b"v")
            wait_until(lambda: "STATUS=leader of term 2, revision 2" in told(), "the status")
            wait_until(lambda: told().count("WATCHDOG=1") >= 4, "four pings of the watchdog")
            pings = [at_s for at_s, message in received if message == "WATCHDOG=1"]
            gaps = [after - before for before, after in itertools.pairwise(pings)]
            assert min(gaps) > 0.3 and max(gaps) < 0.9, gaps
            before_us = time.monotonic_ns() // 1000
            server.signal(signal.SIGHUP)
            wait_until(lambda: told().count("READY=1") == 2, "READY=1 after the reload")
            [reloading] = [message for message in told() if message.startswith("RELOADING=1")]
            kind, moment = reloading.splitlines()
            name, _, microseconds = moment.partition("=")
            assert (kind, name) == ("RELOADING=1", "MONOTONIC_USEC")
            assert before_us <= int(microseconds) <= time.monotonic_ns() // 1000
            assert told().index(reloading) < len(told()) - 1 - told()[::-1].index("READY=1")
            assert server.stop() == 0
            wait_until(lambda: "STOPPING=1" in told(), "STOPPING=1")
            assert told().index("READY=1") < told().index("STOPPING=1")
        finally:
            server.stop()
    assert_no_traceback(server.output)


@pytest.mark.parametrize("value", ["", "soon", "-5"])
def test_a_senseless_watchdog_setting_is_no_reason_not_to_start(tmp_path: Path, value: str) -> None:
    server = LiveServer(tmp_path, environment={"WATCHDOG_USEC": value})
    server.start()
    assert server.stop() == 0
    assert_no_traceback(server.output)


# --- a thread that fails

BROKEN = """
import sys
from etcd_server.cli import main
{patch}
sys.exit(main(sys.argv[1:]))
"""
SYNC_FAILS = """
from etcd_server.storage.errors import SyncFailed
from etcd_server.storage.raftlog import RaftLog
append = RaftLog.append
def failing(self, hard_state, entries, snapshot=None):
    if any(b"poison" in entry.data for entry in entries):
        raise SyncFailed("raft.db: the disk failed to sync (disk I/O error); check it before starting again")
    append(self, hard_state, entries, snapshot)
RaftLog.append = failing
"""
WRITER_HAS_A_BUG = SYNC_FAILS.replace("raise SyncFailed(", "raise ZeroDivisionError(")
KEEPER_HAS_A_BUG = """
from etcd_server.storage.maintenance import StateMaintenance
def failing(self):
    raise ZeroDivisionError("a mistake")
StateMaintenance.checkpoint = failing
import etcd_server.workers
etcd_server.workers.CHECKPOINT_INTERVAL_S = 1.0
"""
LOOP_HAS_A_BUG = """
from etcd_server.machine.apply import Machine
apply = Machine.apply
def failing(self, index, term, commands):
    if any(command.put.key == b"poison" for command in commands):
        raise ZeroDivisionError("a mistake")
    return apply(self, index, term, commands)
Machine.apply = failing
"""


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (SYNC_FAILS, "the disk failed to sync"),
        (WRITER_HAS_A_BUG, "ZeroDivisionError"),
        (KEEPER_HAS_A_BUG, "ZeroDivisionError"),
        (LOOP_HAS_A_BUG, "ZeroDivisionError"),
    ],
    ids=["sync", "writer", "keeper", "loop"],
)
def test_a_failure_ends_the_process_with_one_line(tmp_path: Path, patch: str, said: str) -> None:
    server = LiveServer(tmp_path)
    sound = server._command
    server._command = [sys.executable, "-c", BROKEN.format(patch=patch), *sound[1:]]
    server.start()
    with server.calls() as calls:
        calls.put(b"before", b"1")
        with pytest.raises(grpc.RpcError) as caught:
            for _ in range(100):
                calls.put(b"poison", b"2", timeout_s=5)
                time.sleep(0.1)
        # Nobody can know whether it happened: never an answer that says it did not.
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert server.wait_for_exit() == 1
    assert_one_line(server.output, said)
    assert verify(server.data_dir).returncode == 0
    server._command = sound
    server.start()
    with server.calls() as calls:
        assert calls.get(b"before") == b"1"
        calls.put(b"after", b"3")
        assert {kv.key for kv in calls.everything().kvs} >= {b"before", b"after"}
        assert not calls.call(LEASES, rpc_pb2.LeaseLeasesRequest()).leases
    assert server.stop() == 0
