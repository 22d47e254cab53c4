"""The raft log on a disk that loses power: what was appended is there, and nothing else.

Each seed is a few lives of one log. In each, appends (with overwritten suffixes, membership changes, big
entries), cuts, checkpoints and clean restarts follow at random until the power fails at a random access; then
the log has to hold exactly what was acknowledged, or that and all of the append that was under way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage import files
from etcd_server.storage.errors import StorageError
from etcd_server.storage.raftlog import RaftLog
from tests.faults.simdisk import SimulatedDisk

SEEDS = 200
LIVES = 3
ALL = 1 << 40


@dataclass(frozen=True)
class Model:
    """What the log should hold. `entries` keeps those that were cut, too."""

    hard_state: HardState = field(default_factory=HardState)
    entries: tuple[Entry, ...] = ()
    start_index: int = 0

    def appended(self, hard_state: HardState | None, entries: list[Entry]) -> Model:
        kept = self.entries[: entries[0].index - 1] if entries else self.entries
        return replace(self, hard_state=hard_state or self.hard_state, entries=(*kept, *entries))


@dataclass
class Life:
    """The random doings with one open log, against a model of it."""

    random: random.Random
    log: RaftLog
    model: Model
    possible: list[Model] = field(default_factory=list)

    def step(self) -> None:
        """Do one thing; `possible` is what the log may hold while it is being done."""
        kind = self.random.random()
        if kind < 0.8:
            self._append()
        elif kind < 0.9:
            self.log.checkpoint()
        elif kind < 0.97:
            self._cut()
        else:
            self.log.release_space(self.random.randrange(1, 20))

    def _append(self) -> None:
        commit, last = self.model.hard_state.commit, len(self.model.entries)
        term = max(1, self.model.hard_state.term) + (self.random.random() < 0.15)
        first = last + 1
        if last > commit and term > self.model.hard_state.term and self.random.random() < 0.5:
            first = self.random.randrange(commit + 1, last + 2)
        entries = [self._entry(first + position, term) for position in range(self.random.randrange(6))]
        after = self.model.appended(None, entries)
        hard_state = None
        if entries or term != self.model.hard_state.term or self.random.random() < 0.5:
            commit = self.random.randrange(commit, len(after.entries) + 1)
            vote = self.random.choice((0, 1, 2**64 - 1, 0x8E9E05C52164694D))
            hard_state = HardState(term, vote, commit)
        after = self.model.appended(hard_state, entries)
        self.possible = [self.model, after]
        self.log.append(hard_state, entries)
        self.model = after
        self.possible = [after]

    def _entry(self, index: int, term: int) -> Entry:
        size = self.random.choice((0, 1, 30, 300, 300, 2_000, 40_000))
        return Entry(index, term, self.random.choice([*EntryKind]), self.random.randbytes(size))

    def _cut(self) -> None:
        commit = self.model.hard_state.commit
        if commit > self.model.start_index:
            index = self.random.randrange(self.model.start_index, commit + 1)
            # A cut is not synced, and may be taken back by a power cut until an append has been.
            self.model = replace(self.model, start_index=index)
            self.possible = [self.model]
            self.log.cut(index)


def check(log: RaftLog, possible: list[Model]) -> Model:
    """The model that the log agrees with, after reading everything in it; AssertionError if none."""
    hard_state, first, last = log.initial()
    found = tuple(log.entries(first, last + 1, ALL)) if last >= first else ()
    for model in possible:
        commit = max(model.hard_state.commit, first - 1)
        if (
            first - 1 <= model.start_index
            and hard_state == replace(model.hard_state, commit=commit)
            and found == model.entries[first - 1 :]
        ):
            assert [log.term(index) for index in range(first, last + 1)] == [e.term for e in found]
            if first > 1:
                assert log.term(first - 1) == model.entries[first - 2].term
            return replace(model, start_index=first - 1, hard_state=hard_state)
    raise AssertionError(f"{hard_state}, entries {first}..{last}: none of {len(possible)} possible outcomes")


def open_log(disk: SimulatedDisk) -> RaftLog:
    return RaftLog.open(disk.path("raft.db"), journal_size_bytes=0, vfs=disk.vfs_name)


def live(
    seed: int, scratch: Path, prepare: Callable[[SimulatedDisk], None] = lambda disk: None
) -> SimulatedDisk:
    """Run one seed. Raises AssertionError or StorageError when the log does not hold what it should."""
    chance = random.Random(f"raft log {seed}")
    possible = [Model()]
    with SimulatedDisk(seed, scratch) as disk:
        prepare(disk)
        for _ in range(LIVES):
            disk.cut_power_within(chance.choice((40, 200, 1000)))
            with suppress(StorageError), opened(disk) as log:
                # While the file is opened again, nothing may be lost either.
                life = Life(chance, log, check(log, possible), possible)
                possible = [life.model]
                while not disk.is_dead:
                    try:
                        life.step()
                    finally:
                        possible = life.possible or [life.model]
            disk.cut_power()
            disk.restart()
            with opened(disk) as log:
                possible = [check(log, possible)]
            assert disk.integrity_check("raft.db") == "ok"
        return disk


@contextmanager
def opened(disk: SimulatedDisk) -> Iterator[RaftLog]:
    log = open_log(disk)
    try:
        yield log
    finally:
        with suppress(StorageError):
            log.close()


@pytest.mark.parametrize("block", range(10))
def test_every_acknowledged_append_survives(block: int, tmp_path: Path) -> None:
    lost = 0
    for seed in range(block * SEEDS // 10, (block + 1) * SEEDS // 10):
        lost += live(seed, tmp_path / str(seed)).unsynced_lost
    # A run in which no unsynced write was ever lost would have shown nothing.
    assert lost > 0


@pytest.mark.parametrize("synchronous", ["NORMAL", "OFF"])
def test_the_harness_notices_a_log_that_does_not_sync(
    synchronous: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(path: str, **options: Any) -> apsw.Connection:
        connection = raftlog_connect(path, **options)
        connection.pragma("synchronous", synchronous)
        return connection

    raftlog_connect = files.connect
    monkeypatch.setattr("etcd_server.storage.raftlog.connect", careless)
    assert failures(tmp_path, 30) >= 15


def test_the_harness_notices_a_disk_that_lies(tmp_path: Path) -> None:
    def lie(disk: SimulatedDisk) -> None:
        disk.syncs_lie = True

    assert failures(tmp_path, 30, lie) >= 15


def failures(tmp_path: Path, seeds: int, prepare: Callable[[SimulatedDisk], None] = lambda disk: None) -> int:
    count = 0
    for seed in range(seeds):
        try:
            live(seed, tmp_path / str(seed), prepare)
        except (AssertionError, StorageError):
            count += 1
    return count


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (live(7, tmp_path / name) for name in ("first", "second"))
    assert first.contents() == second.contents()
    assert first.operations == second.operations
