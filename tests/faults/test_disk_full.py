"""A full disk costs the writes that it refuses and nothing else; when there is room again, they go through.

First on a simulated disk that fills up at every possible point of an append, then on real file systems of a
few megabytes, each in a mount namespace of its own (needs root).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest

from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import DiskFull, StateRolledBack
from etcd_server.storage.maintenance import StateMaintenance
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.reserve import Reserve
from tests.faults.simdisk import SimulatedDisk

ALL = 1 << 40
SCHEMA = """
CREATE TABLE meta (id INTEGER PRIMARY KEY, applied_index INTEGER);
INSERT INTO meta VALUES (0, 0);
CREATE TABLE items (id INTEGER PRIMARY KEY, value BLOB);
"""


def entry(index: int, size: int = 5_000) -> Entry:
    return Entry(index, 1, EntryKind.NORMAL, os.urandom(size))


@pytest.mark.parametrize("room_bytes", range(0, 26_000, 1_000))
def test_an_append_that_does_not_fit_changes_nothing(room_bytes: int, tmp_path: Path) -> None:
    with SimulatedDisk(1, tmp_path / "disk") as disk:
        log = RaftLog.open(disk.path("raft.db"), journal_size_bytes=0, vfs=disk.vfs_name)
        kept = [entry(1), entry(2)]
        log.append(HardState(1, 7, 1), kept)
        disk.capacity_bytes = disk.size_bytes("raft.db") + disk.size_bytes("raft.db-wal") + room_bytes
        refused = entry(3, 20_000)
        with pytest.raises(DiskFull, match=r"raft\.db: no space left"):
            log.append(HardState(2, 8, 2), [refused])
        assert log.initial() == (HardState(1, 7, 1), 1, 2)
        assert log.entries(1, 3, ALL) == kept
        disk.capacity_bytes = None
        log.append(HardState(2, 8, 2), [refused])
        log.close()
        log = RaftLog.open(disk.path("raft.db"), journal_size_bytes=0, vfs=disk.vfs_name)
        assert log.initial() == (HardState(2, 8, 2), 1, 3)
        assert log.entries(1, 4, ALL) == [*kept, refused]
        log.close()


@pytest.mark.parametrize("room_bytes", range(0, 80_000, 8_000))
def test_a_commit_that_does_not_fit_leaves_the_state_of_the_last_one(room_bytes: int, tmp_path: Path) -> None:
    with SimulatedDisk(1, tmp_path / "disk") as disk:
        database = StateDatabase.open(disk.path("state.db"), SCHEMA, 1, vfs=disk.vfs_name)
        insert(database, 1, 20)
        database.commit()
        disk.capacity_bytes = disk.size_bytes("state.db") + disk.size_bytes("state.db-wal") + room_bytes
        insert(database, 2, 40)
        with pytest.raises(StateRolledBack, match=r"state\.db: no space left"):
            database.commit()
        assert not database.in_transaction
        assert found(database) == (1, 20)
        disk.capacity_bytes = None
        insert(database, 2, 40)
        database.commit()
        assert found(database) == (2, 60)
        database.close()
        assert disk.integrity_check("state.db") == "ok"


def insert(database: StateDatabase, applied_index: int, rows: int) -> None:
    database.begin()
    try:
        for _ in range(rows):
            database.connection.execute("INSERT INTO items (value) VALUES (?)", (os.urandom(3_000),))
        database.connection.execute("UPDATE meta SET applied_index = ?", (applied_index,))
    except apsw.Error as error:
        raise database.failed(error) from error


def found(database: StateDatabase) -> tuple[object, ...]:
    return tuple(
        database.connection.execute("SELECT applied_index, (SELECT count(*) FROM items) FROM meta").get
    )


# On real file systems: each scenario gets an empty one of 8 MiB.


def fill(path: Path) -> None:
    """Leave no room at all."""
    with open(path / "junk", "ab", buffering=0) as junk:
        for size in (65_536, 4_096, 1):
            while free_size_bytes(path):
                try:
                    junk.write(b"x" * size)
                except OSError:
                    break


def free_size_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def scenario_append(path: Path) -> None:
    log = RaftLog.open(str(path / "raft.db"))
    fill(path)
    count = 0
    with pytest.raises(DiskFull):
        while True:  # the journal that was allocated in advance takes some
            log.append(HardState(1, 1, count), [entry(count + 1, 50_000)])
            count += 1
    assert count > 0
    for _ in range(3):
        with pytest.raises(DiskFull):
            log.append(HardState(2, 1, count), [entry(count + 1, 50_000)])
    with pytest.raises(DiskFull):
        log.checkpoint()
    assert log.initial() == (HardState(1, 1, count - 1), 1, count)
    assert len(log.entries(1, count + 1, ALL)) == count
    (path / "junk").unlink()
    log.append(HardState(2, 1, count), [entry(count + 1, 50_000)])
    assert log.checkpoint()
    log.close()
    assert RaftLog.open(str(path / "raft.db")).initial() == (HardState(2, 1, count), 1, count + 1)


def scenario_commit_with_reserve(path: Path) -> None:
    reserve = Reserve.open(str(path / "reserve"))
    assert reserve.held
    database = StateDatabase.open(str(path / "state.db"), SCHEMA, 1, reserve=reserve)
    maintenance = StateMaintenance.open(database.path)
    insert(database, 1, 10)
    database.commit()
    fill(path)
    insert(database, 2, 40)
    database.commit()
    assert not reserve.held
    assert found(database) == (2, 50)
    fill(path)
    assert not reserve.take()
    with pytest.raises(DiskFull):
        maintenance.checkpoint()
    insert(database, 3, 40)
    with pytest.raises(StateRolledBack):
        database.commit()
    assert found(database) == (2, 50)
    (path / "junk").unlink()
    assert reserve.take()
    insert(database, 3, 40)
    database.commit()
    assert maintenance.checkpoint().applied_index == 3
    assert database.restart_journal()
    maintenance.close()
    database.close()


def scenario_start_on_a_full_disk(path: Path) -> None:
    reserve = Reserve.open(str(path / "reserve"))
    log = RaftLog.open(str(path / "raft.db"))
    database = StateDatabase.open(str(path / "state.db"), SCHEMA, 1, reserve=reserve)
    log.append(HardState(1, 1, 1), [entry(1)])
    insert(database, 1, 10)
    database.commit()
    fill(path)
    log.close()
    database.close()
    fill(path)
    reserve = Reserve.open(str(path / "reserve"))
    assert not reserve.held
    log = RaftLog.open(str(path / "raft.db"))
    assert len(log.entries(1, 2, ALL)) == 1
    database = StateDatabase.open(str(path / "state.db"), SCHEMA, 1, reserve=reserve)
    assert found(database) == (1, 10)


SCENARIOS: tuple[Callable[[Path], None], ...] = (
    scenario_append,
    scenario_commit_with_reserve,
    scenario_start_on_a_full_disk,
)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_on_a_small_file_system(scenario: Callable[[Path], None], tmp_path: Path) -> None:
    script = (
        'mount -t tmpfs -o size=8m tmpfs "$1" && exec "$2" -c '
        '"import sys, pathlib, tests.faults.test_disk_full as scenarios;'
        ' getattr(scenarios, sys.argv[1])(pathlib.Path(sys.argv[2]))" "$3" "$1"'
    )
    arguments = [str(tmp_path), sys.executable, scenario.__name__]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
