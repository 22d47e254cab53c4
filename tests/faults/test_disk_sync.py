"""A failed sync is reported, never tried again, and takes nothing that was acknowledged.

And the same life cut off at every single access to the disk, one after the other: no moment is special.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import apsw
import pytest

from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import StorageError, SyncFailed
from etcd_server.storage.maintenance import StateMaintenance, cut_log
from etcd_server.storage.raftlog import RaftLog
from tests.faults.simdisk import SimulatedDisk

ALL = 1 << 40
SCHEMA = "CREATE TABLE meta (id INTEGER PRIMARY KEY, applied_index INTEGER); INSERT INTO meta VALUES (0, 0)"


class Life:
    """The same doings every time: ten appends, each applied, with maintenance in between."""

    def __init__(self, disk: SimulatedDisk, stack: ExitStack) -> None:
        self.acknowledged = 0
        self.log = RaftLog.open(disk.path("raft.db"), journal_size_bytes=0, vfs=disk.vfs_name)
        stack.callback(close, self.log)
        self.database = StateDatabase.open(disk.path("state.db"), SCHEMA, 1, vfs=disk.vfs_name)
        stack.callback(close, self.database)
        self.maintenance = StateMaintenance.open(disk.path("state.db"), vfs=disk.vfs_name)
        stack.callback(close, self.maintenance)

    def run(self) -> None:
        for index in range(1, 11):
            self.log.append(HardState(1, 1, index - 1), [entry(index)])
            self.acknowledged = index
            self.database.begin()
            self.database.connection.execute("UPDATE meta SET applied_index = ?", (index,))
            if index % 2 == 0:
                self.database.commit()
            if index % 4 == 0:
                cut_log(self.log, self.maintenance.checkpoint().applied_index, 1)
                self.log.checkpoint()
            if index == 8:
                self.database.restart_journal()


def entry(index: int) -> Entry:
    return Entry(index, 1, EntryKind.NORMAL, b"entry %d " % index * 100)


def close(opened: RaftLog | StateDatabase | StateMaintenance) -> None:
    with suppress(StorageError):
        opened.close()


def check(disk: SimulatedDisk, acknowledged: int) -> None:
    """Every acknowledged entry is there or cut, and the log joins the state."""
    with ExitStack() as stack:
        life = Life(disk, stack)
        _, first, last = life.log.initial()
        assert last in (acknowledged, acknowledged + 1)
        if first <= last:
            assert life.log.entries(first, last + 1, ALL) == [
                entry(index) for index in range(first, last + 1)
            ]
        applied_index = life.database.connection.execute("SELECT applied_index FROM meta").get
        assert first - 1 <= applied_index <= last


def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    seen = set()
    for number in range(1, 60):
        acknowledged = 0
        with SimulatedDisk(number, tmp_path / str(number)) as disk:
            disk.sync_fails_at = number
            with ExitStack() as stack:
                try:
                    life = Life(disk, stack)
                except SyncFailed:
                    seen.add("open")
                else:
                    try:
                        life.run()
                    except SyncFailed as failure:
                        assert "failed to sync" in str(failure)
                        if life.log._failure is not None:
                            seen.add("log")
                            with pytest.raises(SyncFailed):
                                life.log.append(None, [entry(life.acknowledged + 1)])
                        else:
                            seen.add("state")
                    except apsw.Error:
                        pytest.fail("an error of SQLite came out untranslated")
                    acknowledged = life.acknowledged
                disk.cut_power()
            disk.restart()
            check(disk, acknowledged)
            if disk.syncs < number:
                break
    assert seen == {"open", "log", "state"}


def test_the_power_may_fail_at_any_access(tmp_path: Path) -> None:
    operation, is_complete = 0, False
    while not is_complete:
        operation += 1
        acknowledged = 0
        with SimulatedDisk(operation, tmp_path / str(operation)) as disk:
            disk.cut_power_at(operation)
            with suppress(StorageError, apsw.Error), ExitStack() as stack:
                life = Life(disk, stack)
                try:
                    life.run()
                    is_complete = True
                finally:
                    acknowledged = life.acknowledged
                    disk.cut_power()
            disk.restart()
            check(disk, acknowledged)
    assert operation > 150
