"""A real server whose disk is full: what it refuses, what it goes on doing, and how it comes back.

Each scenario runs in a mount namespace of its own, with the data directory on a small file system that is
gone with it (needs root): tmpfs, which says at once when it is full, and ext4, which may say so late.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import requests

from etcd_server.api.proto import rpc_pb2
from tests.live import (
    COMPACT,
    DELETE,
    GRANT,
    STATUS,
    TXN,
    Calls,
    LiveServer,
    WatchStream,
    assert_no_traceback,
    assert_one_line,
    in_mount_namespace,
    wait_until,
    watch_request,
)

Outcome = tuple[grpc.StatusCode, str | None]
NO_SPACE: Outcome = (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")


def mount(kind: str, folder: Path, size: str) -> Path:
    """An empty file system in this process's mount namespace."""
    disk = folder / "disk"
    disk.mkdir()
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk))
    else:
        image = folder / "image"
        run("truncate", "-s", size, str(image))
        run("mkfs.ext4", "-q", "-m", "0", str(image))
        run("mount", "-o", "loop", str(image), str(disk))
    return disk


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class Junk:
    """Another program's file, which takes all the room there is."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._path = disk / "junk"

    def fill(self) -> None:
        """Leave no room at all, though the server gives its reserve up meanwhile."""
        with open(self._path, "ab", buffering=0) as file:
            for size in (1 << 20, 65_536, 4_096, 512):
                while self.free_bytes:
                    try:
                        file.write(b"x" * size)
                    except OSError:
                        break

    @property
    def free_bytes(self) -> int:
        status = os.statvfs(self._disk)
        return status.f_bavail * status.f_frsize

    def remove(self) -> None:
        self._path.unlink()


@contextmanager
def on_a_small_disk(kind: str, folder: str, size: str = "64m") -> Iterator[tuple[LiveServer, Junk]]:
    disk = mount(kind, Path(folder), size)
    server = LiveServer(Path(folder), data_dir=disk / "data")
    try:
        yield server, Junk(disk)
    finally:
        server.kill()
        run("umount", str(disk))
    assert_no_traceback(server.output)


class Ledger:
    """Writes, and what was answered."""

    def __init__(self) -> None:
        self.acknowledged: dict[bytes, bytes] = {}
        self._count = 0

    def put(self, calls: Calls, size: int = 1_000, timeout_s: float = 10) -> Outcome:
        """The status and text of one more put."""
        self._count += 1
        key = b"%06d" % self._count
        value = (b"%s " % key).ljust(size, b".")
        try:
            calls.put(key, value, timeout_s)
        except grpc.RpcError as error:
            return error.code(), error.details()
        self.acknowledged[key] = value
        return grpc.StatusCode.OK, None

    def put_until_refused(self, calls: Calls, size: int = 1_000) -> None:
        wait_until(lambda: self.put(calls, size) == NO_SPACE, "the refusal of a write")

    def put_until_taken(self, calls: Calls) -> float:
        """How many seconds it took."""
        begun_s = time.monotonic()
        wait_until(lambda: self.put(calls)[0] == grpc.StatusCode.OK, "a write that is taken")
        return time.monotonic() - begun_s

    def check(self, calls: Calls) -> None:
        """Every answered write is there."""
        found = {kv.key: kv.value for kv in calls.everything(timeout_s=30).kvs}
        assert {key: found.get(key) for key in self.acknowledged} == self.acknowledged


def check_that_reading_goes_on(server: LiveServer, calls: Calls, ledger: Ledger) -> None:
    ledger.check(calls)
    key = next(iter(ledger.acknowledged))
    assert calls.range(key=key, serializable=True).kvs[0].value == ledger.acknowledged[key]
    for page in ("health", "livez", "readyz", "version", "metrics"):
        assert requests.get(f"{server.url}/{page}", timeout=5).status_code == 200, page
    assert calls.call(STATUS, rpc_pb2.StatusRequest()).leader
    stream = WatchStream(calls, watch_request(key, start_revision=2))
    stream.wait(lambda stream: stream.events)
    stream.close()


def check_that_writing_is_refused(calls: Calls, ledger: Ledger) -> None:
    for _ in range(20):
        assert ledger.put(calls) == NO_SPACE
    put = rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=b"k", value=b"v"))
    for path, request in (
        (TXN, rpc_pb2.TxnRequest(success=[put])),
        (GRANT, rpc_pb2.LeaseGrantRequest(TTL=60)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            calls.call(path, request)
        assert (caught.value.code(), caught.value.details()) == NO_SPACE


def scenario_writes_are_refused_until_there_is_room(kind: str, folder: str) -> None:
    ledger = Ledger()
    with on_a_small_disk(kind, folder) as (server, junk):
        server.start()
        with server.calls() as calls:
            for _ in range(50):
                assert ledger.put(calls)[0] == grpc.StatusCode.OK
            for round_ in range(3):
                junk.fill()
                ledger.put_until_refused(calls)
                # What the server gave up so that everything answered fits is taken away too.
                junk.fill()
                check_that_writing_is_refused(calls, ledger)
                check_that_reading_goes_on(server, calls, ledger)
                junk.remove()
                assert ledger.put_until_taken(calls) < 4.0, round_
            ledger.check(calls)
        warnings = [entry["msg"] for entry in server.log if entry["level"] == "warn"]
        assert [message.split(";")[0] for message in warnings] == [
            "no space left for writes",
            "there is room again",
        ] * 3
        assert server.stop() == 0
        assert server.verify().returncode == 0


def scenario_large_writes_meet_the_end_of_the_disk(kind: str, folder: str) -> None:
    """Faster than the server looks at its disk: the log itself meets the end."""
    ledgers = [Ledger() for _ in range(8)]
    with on_a_small_disk(kind, folder) as (server, junk):
        server.start()
        with server.calls() as calls:
            for ledger in ledgers:
                assert ledger.put(calls)[0] == grpc.StatusCode.OK
            outcomes: set[Outcome] = set()

            def write(number: int, ledger: Ledger) -> None:
                ledger._count = number * 10_000
                for _ in range(40):
                    outcomes.add(ledger.put(calls, 1_000_000, timeout_s=30))

            threads = [
                threading.Thread(target=write, args=(number, ledger))
                for number, ledger in enumerate(ledgers, 1)
            ]
            for thread in threads:
                thread.start()
            junk.fill()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            kinds = {code.name for code, _ in outcomes}
            assert kinds <= {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE"} and NO_SPACE in outcomes, outcomes
            for ledger in ledgers:
                ledger.check(calls)
            check_that_reading_goes_on(server, calls, ledgers[0])
            junk.remove()
            assert ledgers[0].put_until_taken(calls) < 4.0
            for ledger in ledgers:
                ledger.check(calls)
        server.kill()
        assert server.verify().returncode == 0, server.verify().stdout
        server.start()
        with server.calls() as calls:
            for ledger in ledgers:
                ledger.check(calls)


def scenario_killed_and_started_while_full(kind: str, folder: str) -> None:
    ledger = Ledger()
    with on_a_small_disk(kind, folder) as (server, junk):
        server.start()
        with server.calls() as calls:
            for _ in range(200):
                assert ledger.put(calls, 10_000)[0] == grpc.StatusCode.OK
            junk.fill()
            ledger.put_until_refused(calls)
        for stop in (server.kill, server.kill, server.stop, server.kill):
            junk.fill()
            stop()
            assert server.verify().returncode == 0
            junk.fill()
            server.start()
            with server.calls() as calls:
                ledger.put_until_refused(calls)
                check_that_writing_is_refused(calls, ledger)
                check_that_reading_goes_on(server, calls, ledger)
        junk.remove()
        with server.calls() as calls:
            assert ledger.put_until_taken(calls) < 4.0
            ledger.check(calls)
        assert server.stop() == 0
        assert server.verify().returncode == 0


def scenario_first_start_on_a_full_disk(kind: str, folder: str) -> None:
    with on_a_small_disk(kind, folder) as (server, junk):
        junk.fill()
        for _ in range(2):
            done = server.run_to_the_end()
            assert done.returncode == 1
            assert_one_line(done.stderr, str(server.data_dir), "[Nn]o space left on")
        junk.remove()
        server.start()
        with server.calls() as calls:
            assert Ledger().put(calls)[0] == grpc.StatusCode.OK
        assert server.stop() == 0


def scenario_stopped_while_full(kind: str, folder: str) -> None:
    ledger = Ledger()
    with on_a_small_disk(kind, folder) as (server, junk):
        server.start()
        with server.calls() as calls:
            for _ in range(50):
                assert ledger.put(calls)[0] == grpc.StatusCode.OK
            junk.fill()
            ledger.put_until_refused(calls)
            junk.fill()
            begun_s = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.wait_for_exit() == 0, server.output
            assert time.monotonic() - begun_s < 4.0
        verified = server.verify()
        assert verified.returncode == 0, verified.stdout + verified.stderr
        junk.remove()
        server.start()
        with server.calls() as calls:
            ledger.check(calls)
            assert ledger.put(calls)[0] == grpc.StatusCode.OK


def scenario_full_of_its_own_data(kind: str, folder: str) -> None:
    """Nobody else is to blame: deleting and compacting make the room."""
    ledger = Ledger()
    with on_a_small_disk(kind, folder, "96m") as (server, _):
        server.start()
        with server.calls() as calls:
            ledger.put_until_refused(calls, 100_000)
            check_that_reading_goes_on(server, calls, ledger)
            keys = sorted(ledger.acknowledged)
            deletion = calls.call(DELETE, rpc_pb2.DeleteRangeRequest(key=keys[0], range_end=b"9"))
            assert deletion.deleted >= len(keys)
            ledger.acknowledged.clear()
            calls.call(COMPACT, rpc_pb2.CompactionRequest(revision=deletion.header.revision, physical=True))
            assert ledger.put_until_taken(calls) < 10.0
            for _ in range(10):
                assert ledger.put(calls, 100_000)[0] == grpc.StatusCode.OK
            ledger.check(calls)
        assert server.stop() == 0
        assert server.verify().returncode == 0


CASES: tuple[tuple[Callable[[str, str], None], str], ...] = (
    (scenario_writes_are_refused_until_there_is_room, "tmpfs"),
    (scenario_writes_are_refused_until_there_is_room, "ext4"),
    (scenario_large_writes_meet_the_end_of_the_disk, "ext4"),
    (scenario_killed_and_started_while_full, "tmpfs"),
    (scenario_killed_and_started_while_full, "ext4"),
    (scenario_first_start_on_a_full_disk, "tmpfs"),
    (scenario_first_start_on_a_full_disk, "ext4"),
    (scenario_stopped_while_full, "tmpfs"),
    (scenario_stopped_while_full, "ext4"),
    (scenario_full_of_its_own_data, "tmpfs"),
)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize(
    ("scenario", "kind"),
    CASES,
    ids=[f"{case[0].__name__.removeprefix('scenario_')}-{case[1]}" for case in CASES],
)
def test_full_disk(scenario: Callable[[str, str], None], kind: str, tmp_path: Path) -> None:
    in_mount_namespace("tests.faults.test_full_disk", scenario.__name__, kind, str(tmp_path))
