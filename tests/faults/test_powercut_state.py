"""The state and the raft log together on a disk that loses power: replaying gives what was acknowledged.

The state machine here is the smallest that would notice anything: a table that each entry changes, and a
checksum chained over all entries ever applied. Its applied_index is committed with its effect, now and then;
checkpoints are made, the log is cut below them, and the power fails at a random access. Then the state must
be that of an index which the log joins, and applying the rest of the log must give all that was acknowledged.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import apsw
import pytest

from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import StorageError
from etcd_server.storage.maintenance import StateMaintenance, cut_log
from etcd_server.storage.raftlog import RaftLog
from tests.faults.simdisk import SimulatedDisk

SEEDS = 200
LIVES = 3
ALL = 1 << 40
SCHEMA = """
CREATE TABLE meta (id INTEGER PRIMARY KEY, applied_index INTEGER, chain INTEGER);
INSERT INTO meta VALUES (0, 0, 0);
CREATE TABLE items (key INTEGER PRIMARY KEY, value BLOB);
"""


def key(data: bytes) -> int:
    return data[0] if data else -1


@dataclass
class Member:
    """One member in one life: both files open, entries applied as they are committed."""

    log: RaftLog
    database: StateDatabase
    maintenance: StateMaintenance
    applied_index: int = 0
    chain: int = 0

    @classmethod
    def open(cls, disk: SimulatedDisk, stack: ExitStack) -> Member:
        log = RaftLog.open(disk.path("raft.db"), journal_size_bytes=0, vfs=disk.vfs_name)
        stack.callback(close, log)
        database = StateDatabase.open(disk.path("state.db"), SCHEMA, 1, vfs=disk.vfs_name)
        stack.callback(close, database)
        maintenance = StateMaintenance.open(disk.path("state.db"), vfs=disk.vfs_name)
        stack.callback(close, maintenance)
        row = database.connection.execute("SELECT applied_index, chain FROM meta").get
        return cls(log, database, maintenance, *row)

    def append(self, entries: list[Entry]) -> None:
        self.log.append(HardState(1, 1, self.applied_index), entries)

    def apply(self, entries: list[Entry]) -> None:
        self.database.begin()
        execute = self.database.connection.execute
        for entry in entries:
            self.chain = crc32(entry.data, self.chain)
            self.applied_index = entry.index
            execute(
                "INSERT OR REPLACE INTO items VALUES (?, ?)",
                (key(entry.data), entry.data),
            )
        execute("UPDATE meta SET applied_index = ?, chain = ?", (self.applied_index, self.chain))


def close(opened: RaftLog | StateDatabase | StateMaintenance) -> None:
    with suppress(StorageError):
        opened.close()


@dataclass
class World:
    """What has been acknowledged: `chains[n]` is the checksum over entries 1 to n, `data[n]` the nth data."""

    random: random.Random
    chains: list[int] = field(default_factory=lambda: [0])
    data: list[bytes] = field(default_factory=lambda: [b""])
    unknown: list[Entry] = field(default_factory=list)

    def recovered(self, member: Member) -> None:
        """Check what a restarted member found, and bring it up to date."""
        first, last = member.log.first_index(), member.log.last_index()
        acknowledged = len(self.chains) - 1
        assert last in (acknowledged, acknowledged + len(self.unknown)), "an acknowledged entry is lost"
        if last > acknowledged:
            self.acknowledge(self.unknown)
        self.unknown = []
        assert first - 1 <= member.applied_index <= last, "the log does not join the state"
        assert member.chain == self.chains[member.applied_index], "the state is not that of its applied_index"
        if member.applied_index < last:
            member.apply(member.log.entries(member.applied_index + 1, last + 1, ALL))
        assert member.chain == self.chains[last], "replaying the log does not give the acknowledged state"
        expected = {key(data): data for data in self.data[1:]}
        assert dict(member.database.connection.execute("SELECT key, value FROM items")) == expected

    def acknowledge(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.chains.append(crc32(entry.data, self.chains[-1]))
            self.data.append(entry.data)

    def entry(self, index: int) -> Entry:
        return Entry(index, 1, EntryKind.NORMAL, self.random.randbytes(self.random.choice(SIZES)))

    def step(self, member: Member, cut: Callable[[World, Member], None]) -> None:
        kind = self.random.random()
        if kind < 0.75:
            next_index = len(self.chains)
            self.unknown = [
                Entry(
                    next_index + position,
                    1,
                    EntryKind.NORMAL,
                    self.random.randbytes(self.random.choice(SIZES)),
                )
                for position in range(self.random.randrange(1, 6))
            ]
            member.append(self.unknown)
            self.acknowledge(self.unknown)
            member.apply(self.unknown)
            self.unknown = []
        elif kind < 0.88:
            member.database.commit()
            if self.random.random() < 0.3:
                member.database.restart_journal()
        elif kind < 0.97:
            cut(self, member)
        else:
            member.log.checkpoint()


SIZES = (0, 1, 100, 300, 3_000)


def cut_below_the_checkpoint(world: World, member: Member) -> None:
    cut_log(member.log, member.maintenance.checkpoint().applied_index, world.random.randrange(5))


def cut_below_the_commit(world: World, member: Member) -> None:
    """The mistake: what was committed counts as durable."""
    member.database.commit()
    cut_log(member.log, member.applied_index, world.random.randrange(5))


def live(
    seed: int, scratch: Path, cut: Callable[[World, Member], None] = cut_below_the_checkpoint
) -> SimulatedDisk:
    """Run one seed. Raises AssertionError or StorageError when a life does not continue the one before it."""
    world = World(random.Random(f"state {seed}"))
    with SimulatedDisk(seed, scratch) as disk:
        for _ in range(LIVES):
            disk.cut_power_within(world.random.choice((60, 300, 1500)))
            with suppress(StorageError, apsw.Error), ExitStack() as stack:
                member = Member.open(disk, stack)
                world.recovered(member)
                while not disk.is_dead:
                    world.step(member, cut)
            disk.cut_power()
            disk.restart()
            for name in disk.contents():
                if name.endswith(".db"):
                    assert disk.integrity_check(name) == "ok"
            with ExitStack() as stack:
                world.recovered(Member.open(disk, stack))
        return disk


@pytest.mark.parametrize("block", range(10))
def test_the_log_replays_what_the_state_lost(block: int, tmp_path: Path) -> None:
    lost = 0
    for seed in range(block * SEEDS // 10, (block + 1) * SEEDS // 10):
        lost += live(seed, tmp_path / str(seed)).unsynced_lost
    assert lost > 0


def test_the_harness_notices_a_log_cut_too_early(tmp_path: Path) -> None:
    failed = 0
    for seed in range(30):
        try:
            live(seed, tmp_path / str(seed), cut_below_the_commit)
        except (AssertionError, StorageError):
            failed += 1
    assert failed >= 10
