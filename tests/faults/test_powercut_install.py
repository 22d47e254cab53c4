"""A snapshot put in the place of state and log on a disk that loses power at any access.

After the power is back the member is the old one, with all that it had acknowledged, or the new one: the
snapshot's state, and a log that begins behind it. A second cut may come in the middle of the next start.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage import snapshot
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import StorageError
from etcd_server.storage.install import Installation, Plan
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from tests.faults.simdisk import SimulatedDisk

SEEDS = 200
ENTRIES = 40
OLD_ENTRIES = 9


def commands(index: int) -> list[command_pb2.Command]:
    key = b"key %d" % (index % 7)
    return [command_pb2.Command(put=rpc_pb2.PutRequest(key=key, value=b"%d" % index * 50))]


def entry(index: int) -> Entry:
    data = command_pb2.Batch(commands=commands(index)).SerializeToString()
    return Entry(index, 1, EntryKind.NORMAL, data)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> tuple[snapshot.SnapshotFile, bytes]:
    """Another member's snapshot, and its bytes."""
    folder = tmp_path_factory.mktemp("leader")
    database = StateDatabase.open(str(folder / "state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION)
    machine = Machine(database)
    for index in range(1, ENTRIES + 1):
        machine.apply(index, 1, commands(index))
    machine.commit()
    made = snapshot.make(database.path, str(folder / "copy"))
    database.close()
    assert made is not None
    return made, Path(made.path).read_bytes()


class Life:
    """The member's files, opened as a start does it: what a plan says comes first."""

    def __init__(self, disk: SimulatedDisk, stack: ExitStack) -> None:
        self.disk = disk
        self.log = RaftLog.open(disk.path("raft.db"), journal_size_bytes=0, vfs=disk.vfs_name)
        stack.callback(closed, self.log.close)
        self.installation = Installation(
            disk.path("state.db"), disk.path("plan"), self.log, vfs=disk.vfs_name, files=disk.files
        )
        if self.installation.is_pending:
            self.installation.execute()
        self.database = StateDatabase.open(
            disk.path("state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION, vfs=disk.vfs_name
        )
        stack.callback(closed, self.database.close)
        self.machine = Machine(self.database)
        self.log.check_joins(self.machine.applied_index)

    def install(self, made: snapshot.SnapshotFile, data: bytes) -> None:
        path = self.disk.put("received", data)
        plan = Plan(path, made.contents.applied_index, made.contents.applied_term, HardState(2, 7, ENTRIES))
        self.installation.write_plan(plan)
        self.database.replace(self.installation.execute)
        self.machine.reopen()


def closed(close: Callable[[], None]) -> None:
    with suppress(StorageError):
        close()


def check(life: Life) -> bool:
    """The member is whole, and whether it is the new one."""
    applied_index, last_index = life.machine.applied_index, life.log.last_index()
    is_new = last_index >= ENTRIES
    if is_new:
        assert (applied_index, last_index) == (ENTRIES, ENTRIES)
        assert life.log.initial() == (HardState(2, 7, ENTRIES), ENTRIES + 1, ENTRIES)
        assert life.machine.revision == ENTRIES + 1
    else:
        assert last_index == OLD_ENTRIES
        for found in life.log.entries(1, OLD_ENTRIES + 1, 1 << 20):
            assert found == entry(found.index)
        for index in range(applied_index + 1, OLD_ENTRIES + 1):
            life.machine.apply(index, 1, commands(index))
        assert life.machine.revision == OLD_ENTRIES + 1
    assert life.database.connection.execute("PRAGMA integrity_check").get == "ok"
    return is_new


def run(seed: int, scratch: Path, copy: tuple[snapshot.SnapshotFile, bytes]) -> bool:
    with SimulatedDisk(seed, scratch) as disk:
        with ExitStack() as stack:
            life = Life(disk, stack)
            for index in range(1, OLD_ENTRIES + 1):
                life.log.append(HardState(1, 0, index), [entry(index)])
                life.machine.apply(index, 1, commands(index))
                if index % 3 == 0:
                    life.machine.commit()
            if seed % 2:
                life.database.restart_journal()
            disk.cut_power_within(110)
            with suppress(StorageError):
                life.install(*copy)
            disk.cut_power()
        for _ in range(2):  # the second start may lose power as well
            disk.restart()
            disk.cut_power_within(60)
            with ExitStack() as stack, suppress(StorageError):
                Life(disk, stack)
            disk.cut_power()
        disk.restart()
        with ExitStack() as stack:
            return check(Life(disk, stack))


def test_old_or_new_and_nothing_between(tmp_path: Path, copy: tuple[snapshot.SnapshotFile, bytes]) -> None:
    news = [run(seed, tmp_path / str(seed), copy) for seed in range(SEEDS)]
    assert 20 < sum(news) < SEEDS - 20, "the power must fail on both sides of the plan"
