"""The real state machine on a disk that loses power, against one that never stops.

Random commands of every kind go into the log, and into a machine on the simulated disk; the same commands,
once they are acknowledged, into a twin on a disk that never fails. Commits, checkpoints, steps of compaction
and cuts of the log happen in between, until the power fails at a random access. Then `verify` must find
nothing wrong, the log must join the state, and after replaying it every row must be the twin's.
"""

from __future__ import annotations

import random
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import StorageError
from etcd_server.storage.maintenance import StateMaintenance, cut_log
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from etcd_server.storage.tables import FactTables
from etcd_server.storage.verify import verify_files
from tests.faults.simdisk import SimulatedDisk

SEEDS = 200
LIVES = 2
ALL = 1 << 40
TABLES = ("revisions", "current", "history", "leases", "members", "alarms", "meta")
LEASES = range(1, 6)


@dataclass
class Member:
    """One member in one life."""

    log: RaftLog
    machine: Machine
    maintenance: StateMaintenance

    @classmethod
    def open(cls, disk: SimulatedDisk, stack: ExitStack) -> Member:
        log = RaftLog.open(disk.path("raft.db"), journal_size_bytes=0, vfs=disk.vfs_name)
        stack.callback(close, log)
        database = StateDatabase.open(
            disk.path("state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION, vfs=disk.vfs_name
        )
        stack.callback(close, database)
        maintenance = StateMaintenance.open(disk.path("state.db"), vfs=disk.vfs_name)
        stack.callback(close, maintenance)
        return cls(log, Machine(database), maintenance)

    def replay(self) -> None:
        first = self.machine.applied_index + 1
        if first <= self.log.last_index():
            for entry in self.log.entries(first, self.log.last_index() + 1, ALL):
                apply(self.machine, entry)


def close(opened: RaftLog | StateDatabase | StateMaintenance) -> None:
    with suppress(StorageError):
        opened.close()


def apply(machine: Machine, entry: Entry) -> None:
    machine.apply(entry.index, entry.term, command_pb2.Batch.FromString(entry.data).commands)


def rows(machine: Machine) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, once all that was compacted is removed."""
    while machine.compaction_pending:
        machine.compact_step(1000)
    machine.commit()
    run = machine.database.connection.execute
    return {table: sorted(run(f"SELECT * FROM {table}").fetchall(), key=repr) for table in TABLES}


class World:
    """The commands, what is known of them, and the twin that never fails."""

    def __init__(self, seed: int, twin: Machine) -> None:
        self.random = random.Random(f"machine {seed}")
        self.twin = twin
        self.unknown: Entry | None = None

    def recovered(self, member: Member) -> None:
        if self.unknown is not None and member.log.last_index() == self.unknown.index:
            apply(self.twin, self.unknown)
        self.unknown = None
        assert member.log.last_index() == self.twin.applied_index, "an acknowledged entry is lost"
        assert member.log.first_index() - 1 <= member.machine.applied_index, "the log does not join the state"
        member.replay()
        assert rows(member.machine) == rows(self.twin)

    def step(self, member: Member) -> None:
        kind = self.random.random()
        if kind < 0.7:
            self.unknown = self.entry(member.log.last_index() + 1)
            member.log.append(HardState(1, 1, self.unknown.index - 1), [self.unknown])
            acknowledged, self.unknown = self.unknown, None
            apply(self.twin, acknowledged)
            apply(member.machine, acknowledged)
        elif kind < 0.8:
            member.machine.commit()
        elif kind < 0.85:
            member.machine.commit()
            member.machine.database.restart_journal()
        elif kind < 0.9 and member.machine.compaction_pending:
            member.machine.compact_step(self.random.randrange(1, 20))
        elif kind < 0.97:
            cut_log(member.log, member.maintenance.checkpoint().applied_index, self.random.randrange(5))
        else:
            member.log.checkpoint()

    def entry(self, index: int) -> Entry:
        commands = [self.command() for _ in range(self.random.randrange(1, 8))]
        batch = command_pb2.Batch(proposal_id=index, commands=commands)
        return Entry(index, 1, EntryKind.NORMAL, batch.SerializeToString())

    def command(self) -> command_pb2.Command:
        kind = self.random.random()
        if kind < 0.6:
            return command_pb2.Command(put=self.put())
        if kind < 0.75:
            return command_pb2.Command(delete_range=self.delete())
        if kind < 0.85:
            operations = [
                rpc_pb2.RequestOp(request_put=self.put()),
                rpc_pb2.RequestOp(request_delete_range=self.delete()),
            ]
            return command_pb2.Command(txn=rpc_pb2.TxnRequest(success=operations))
        if kind < 0.9:
            compaction = rpc_pb2.CompactionRequest(revision=self.random.randrange(1, self.twin.revision + 1))
            return command_pb2.Command(compaction=compaction)
        lease = self.random.choice(LEASES)
        if kind < 0.96:
            return command_pb2.Command(lease_grant=rpc_pb2.LeaseGrantRequest(ID=lease, TTL=60))
        return command_pb2.Command(lease_revoke=rpc_pb2.LeaseRevokeRequest(ID=lease))

    def put(self) -> rpc_pb2.PutRequest:
        value = self.random.randbytes(self.random.choice((0, 10, 100, 127, 128, 2_000)))
        return rpc_pb2.PutRequest(key=self.key(), value=value, lease=self.random.choice((0, 0, 0, *LEASES)))

    def delete(self) -> rpc_pb2.DeleteRangeRequest:
        key = self.key()
        return rpc_pb2.DeleteRangeRequest(
            key=key, range_end=key + b"\x05" if self.random.random() < 0.5 else b""
        )

    def key(self) -> bytes:
        return b"key/%d" % self.random.randrange(20)


def live(seed: int, folder: Path) -> SimulatedDisk:
    """Run one seed. Raises AssertionError or StorageError when a life does not continue the one before it."""
    folder.mkdir()
    with SimulatedDisk(seed, folder / "disk") as disk, ExitStack() as stay:
        database = StateDatabase.open(str(folder / "twin.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION, vfs="unix")
        stay.callback(database.close)
        world = World(seed, Machine(database))
        for _ in range(LIVES):
            disk.cut_power_within(world.random.choice((200, 600, 1500)))
            with suppress(StorageError, apsw.Error), ExitStack() as stack:
                member = Member.open(disk, stack)
                world.recovered(member)
                while not disk.is_dead:
                    world.step(member)
            disk.cut_power()
            disk.restart()
            report = verify_files(disk.path("raft.db"), disk.path("state.db"), vfs=disk.vfs_name)
            assert report.is_sound, report.lines()
            with ExitStack() as stack:
                world.recovered(Member.open(disk, stack))
        return disk


@pytest.mark.parametrize("block", range(10))
def test_a_restarted_member_is_where_one_that_never_stopped_is(block: int, tmp_path: Path) -> None:
    lost = 0
    for seed in range(block * SEEDS // 10, (block + 1) * SEEDS // 10):
        lost += live(seed, tmp_path / str(seed)).unsynced_lost
    assert lost > 0


def test_the_harness_notices_an_applied_index_in_a_transaction_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake behind etcd's issue 13766: the effect of an entry is committed before its index."""
    set_applied = FactTables.set_applied

    def apart(facts: FactTables, index: int, term: int, revision: int) -> None:
        facts._execute("COMMIT")
        facts._execute("BEGIN")
        set_applied(facts, index, term, revision)

    monkeypatch.setattr(FactTables, "set_applied", apart)
    failed = 0
    for seed in range(30):
        try:
            live(seed, tmp_path / str(seed))
        except (AssertionError, apsw.Error):
            failed += 1
    assert failed >= 10
