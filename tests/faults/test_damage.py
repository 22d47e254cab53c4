"""Damaged files of a stopped member: the server refuses to start, or ends when it meets the damage, with one
line that names the file and says what to do, and `etcd-py verify` names it too. It never serves what was not
written.

The directory that is damaged is one whose log has been cut, so that neither file can be made from the other,
and without the journal of the log, which would hide damage in the file itself as long as it holds the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from etcd_server.api.proto import rpc_pb2
from tests.live import GRANT, PUT, Calls, LiveServer, assert_no_traceback, assert_one_line, wait_until

PAGE_BYTES = 4096
KEYS = 400
FLAGS = ("--snapshot-count", "100", "--snapshot-catchup-entries", "10")


def key(number: int) -> bytes:
    return b"key %06d" % number


def value(number: int) -> bytes:
    return b"value %06d " % number * 60


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a member that holds something in every table and was stopped."""
    server = LiveServer(tmp_path_factory.mktemp("stopped"), flags=FLAGS)
    server.start()
    with server.calls() as calls:
        for _ in range(500):
            calls.put(b"large", bytes(60_000))
        fill(calls)
    assert server.stop() == 0
    report = server.verify().stdout
    assert " entries 1.." not in report, f"the log has not been cut: {report}"
    for suffix in ("-wal", "-shm"):
        (server.data_dir / f"raft.db{suffix}").unlink()
    return server.data_dir


def fill(calls: Calls) -> None:
    calls.call(GRANT, rpc_pb2.LeaseGrantRequest(ID=7, TTL=3600))
    for number in range(KEYS):
        lease = 7 if number % 10 == 0 else 0
        calls.call(PUT, rpc_pb2.PutRequest(key=key(number), value=value(number), lease=lease))
    for number in range(50):
        calls.put(key(number), value(number))


@pytest.fixture
def server(stopped: Path, tmp_path: Path) -> Iterator[LiveServer]:
    """A server that is not started, on a copy of that directory."""
    server = LiveServer(tmp_path)
    shutil.copytree(stopped, server.data_dir)
    yield server
    server.kill()


def test_an_undamaged_copy_serves(server: LiveServer) -> None:
    assert server.verify().returncode == 0
    server.start()
    with server.calls() as calls:
        check_values(calls)
    assert server.stop() == 0


def check_values(calls: Calls) -> None:
    found = {kv.key: kv.value for kv in calls.range(key=b"key", range_end=b"kez", timeout_s=30).kvs}
    assert found == {key(number): value(number) for number in range(KEYS)}


# --- damage that a start meets


def header(path: Path) -> None:
    overwrite(path, 0, b"\0" * 100)


def another_file(path: Path) -> None:
    path.write_bytes(b"this was never a database\n" * 1000)


def truncated(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def deleted(path: Path) -> None:
    path.unlink()


def the_other_file(path: Path) -> None:
    other = path.with_name({"raft.db": "state.db", "state.db": "raft.db"}[path.name])
    path.write_bytes(other.read_bytes())


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("name", ["raft.db", "state.db"])
@pytest.mark.parametrize("damage", [header, another_file, truncated, empty, deleted, the_other_file])
def test_a_start_refuses(server: LiveServer, damage: Callable[[Path], None], name: str) -> None:
    damage(server.data_dir / name)
    before = sizes(server.data_dir)
    done = server.run_to_the_end()
    assert done.returncode == 1
    assert_one_line(done.stderr, r"(raft|state)\.db", "verify|backup|not this file|replace")
    found = server.verify()
    assert found.returncode == 1, found.stdout
    assert_no_traceback(found.stdout + found.stderr)
    assert ".db" in found.stdout + found.stderr
    # Nothing that could still be of use to somebody is gone.
    after = sizes(server.data_dir)
    assert {each: after.get(each, 0) >= size for each, size in before.items()} == dict.fromkeys(before, True)


def sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir() if path.suffix == ".db"}


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"member 1\ncluster 2\n"])
def test_a_damaged_identity(server: LiveServer, damage: bytes) -> None:
    (server.data_dir / "identity").write_bytes(damage)
    done = server.run_to_the_end()
    assert done.returncode == 1
    assert_one_line(done.stderr, "identity: damaged")


@pytest.mark.parametrize("damage", [b"", b"etcd-py data directory, format 9\n", b"\xff" * 100])
def test_a_damaged_format(server: LiveServer, damage: bytes) -> None:
    (server.data_dir / "format").write_bytes(damage)
    done = server.run_to_the_end()
    assert done.returncode == 1
    assert_one_line(done.stderr, "format")
    found = server.verify()
    assert found.returncode == 1
    assert_no_traceback(found.stdout + found.stderr)


# --- damage anywhere


@pytest.mark.parametrize("name", ["raft.db", "state.db"])
@pytest.mark.parametrize("part", range(8))
def test_a_damaged_page_is_never_served(server: LiveServer, name: str, part: int) -> None:
    """Whichever page it is: the start is refused, or a read that meets it ends the process, or it was of no
    account; `verify` finds it unless it held nothing."""
    path = server.data_dir / name
    pages = path.stat().st_size // PAGE_BYTES
    page = 1 + (pages - 1) * part // 8
    before = path.read_bytes()
    overwrite(
        path, page * PAGE_BYTES, bytes(byte ^ 0x55 for byte in before[page * PAGE_BYTES :][:PAGE_BYTES])
    )
    found = server.verify()
    assert_no_traceback(found.stdout + found.stderr)
    server.launch()
    try:
        with server.calls() as calls:
            wait_until(lambda: ended(server) or answers(calls), "a start, or its refusal")
            if not ended(server):
                check_values(calls)
                calls.put(b"other", b"key")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    if wait_until(lambda: ended(server) or healthy(server), "health, or the end") and ended(server):
        assert server.wait_for_exit() == 1
        assert_one_line(server.output, rf"{name}: the file is damaged")
        assert found.returncode == 1, found.stdout
    else:
        assert server.stop() == 0
    assert_no_traceback(server.output)


def ended(server: LiveServer) -> bool:
    return not server.running


def healthy(server: LiveServer) -> bool:
    with server.calls() as calls:
        return answers(calls)


def answers(calls: Calls) -> bool:
    try:
        calls.range(key=b"none", timeout_s=1)
    except grpc.RpcError:
        return False
    return True


def test_a_flipped_bit_in_an_entry_of_the_log(server: LiveServer) -> None:
    """SQLite's pages carry no checksum; the entries of the log do."""
    path = server.data_dir / "raft.db"
    data = bytearray(path.read_bytes())
    data[data.index(value(49)[:100])] ^= 1
    path.write_bytes(data)
    found = server.verify()
    assert found.returncode == 1
    assert "does not match its checksum" in found.stdout


def test_a_state_that_is_gone_is_made_again_from_a_whole_log(tmp_path: Path) -> None:
    server = LiveServer(tmp_path)
    server.start()
    with server.calls() as calls:
        fill(calls)
        revision = calls.range(key=b"none").header.revision
    server.kill()
    for path in server.data_dir.glob("state.db*"):
        path.unlink()
    assert server.verify().returncode == 0
    server.start()
    with server.calls() as calls:
        check_values(calls)
        assert calls.range(key=b"none").header.revision == revision
    assert server.stop() == 0
