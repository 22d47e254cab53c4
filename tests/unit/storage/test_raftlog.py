"""The raft log as raft and its threads see it, on an ordinary disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_server.raft.confchange import Configuration
from etcd_server.raft.messages import Entry, EntryKind, HardState, Snapshot
from etcd_server.storage import raftlog
from etcd_server.storage.errors import DamagedFile, UnknownFormat
from etcd_server.storage.raftlog import RaftLog
from tests.unit.storage.rows import entries, run

ALL = 1 << 40


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "raft.db")


@pytest.fixture
def log(path: str) -> Iterator[RaftLog]:
    log = RaftLog.open(path)
    yield log
    log.close()


def reopened(log: RaftLog) -> RaftLog:
    log.close()
    return RaftLog.open(log.path)


def held(log: RaftLog) -> list[Entry]:
    first, last = log.first_index(), log.last_index()
    return log.entries(first, last + 1, ALL) if first <= last else []


def test_a_new_log_is_empty(log: RaftLog) -> None:
    assert log.initial() == (HardState(), 1, 0)
    assert log.term(0) == 0
    with pytest.raises(IndexError, match="index 1 is not in the log"):
        log.term(1)


def test_what_was_appended_is_there_after_opening_again(path: str) -> None:
    written = [
        Entry(1, 1, EntryKind.EMPTY, b""),
        Entry(2, 1, EntryKind.CONF_CHANGE, b"\0\xff"),
        Entry(3, 4, EntryKind.NORMAL, os.urandom(300_000)),
    ]
    log = RaftLog.open(path)
    log.append(HardState(4, 2**64 - 1, 2), written)
    log.append(None, [])
    log = reopened(log)
    assert log.initial() == (HardState(4, 2**64 - 1, 2), 1, 3)
    assert held(log) == written
    assert [log.term(index) for index in range(4)] == [0, 1, 1, 4]
    log.close()


def test_a_hard_state_alone(log: RaftLog) -> None:
    log.append(HardState(3, 7, 0), [])
    assert log.initial() == (HardState(3, 7, 0), 1, 0)


@pytest.mark.parametrize(
    ("max_bytes", "count"), [(0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (1_000, 10), (ALL, 10)]
)
def test_entries_come_as_many_as_fit_and_at_least_one(log: RaftLog, max_bytes: int, count: int) -> None:
    written = [Entry(index, 1, EntryKind.NORMAL, bytes(100)) for index in range(1, 11)]
    log.append(HardState(1), written)
    assert log.entries(1, 11, max_bytes) == written[:count]


@pytest.mark.parametrize(("low", "high"), [(0, 2), (1, 7), (3, 3), (4, 3), (7, 8)])
def test_entries_that_are_not_there(log: RaftLog, low: int, high: int) -> None:
    log.append(HardState(1), entries(1, 5))
    with pytest.raises(IndexError, match="are not all in the log"):
        log.entries(low, high, ALL)


def test_a_conflicting_suffix_is_replaced(log: RaftLog) -> None:
    log.append(HardState(2), [*entries(1, 3), *entries(4, 9, term=2)])
    log.append(HardState(5), entries(3, 5, term=5))
    assert held(log) == [*entries(1, 2), *entries(3, 5, term=5)]
    log = reopened(log)
    assert [log.term(index) for index in range(6)] == [0, 1, 1, 5, 5, 5]
    log.append(HardState(6), entries(1, 1, term=6))
    assert held(log) == entries(1, 1, term=6)
    log.close()


def test_entries_of_several_readys_joined(log: RaftLog) -> None:
    log.append(HardState(3), [*entries(1, 6), *entries(4, 5, term=2), *entries(5, 7, term=3)])
    assert held(log) == [*entries(1, 3), *entries(4, 4, term=2), *entries(5, 7, term=3)]
    log.append(HardState(4), [*entries(8, 9, term=3), *entries(6, 6, term=4)])
    assert held(log)[-2:] == [*entries(5, 5, term=3), *entries(6, 6, term=4)]


def test_entries_must_follow(log: RaftLog) -> None:
    log.append(HardState(2), entries(1, 3, term=2))
    for wrong, why in (
        (entries(5, 5, term=2), "does not follow"),
        (entries(0, 1, term=2), "does not follow"),
        ([*entries(4, 4, term=2), *entries(6, 6, term=2)], "not consecutive"),
        (entries(4, 4, term=1), "of term 1, after one of term 2"),
    ):
        with pytest.raises(ValueError, match=why):
            log.append(HardState(2), wrong)
    assert held(log) == entries(1, 3, term=2)


def test_a_snapshot_empties_the_log(log: RaftLog) -> None:
    log.append(HardState(2), entries(1, 8, term=2))
    snapshot = Snapshot(20, 3, Configuration((1,)))
    log.append(HardState(3, 0, 20), entries(21, 22, term=3), snapshot)
    log = reopened(log)
    assert log.initial() == (HardState(3, 0, 20), 21, 22)
    assert (log.term(20), log.term(22)) == (3, 3)
    assert held(log) == entries(21, 22, term=3)
    log.close()


def test_cut(log: RaftLog) -> None:
    log.append(HardState(2, 0, 600), [*entries(1, 299), *entries(300, 700, term=2)])
    for index, term in ((100, 1), (100, 1), (50, 1), (299, 1), (500, 2)):
        log.cut(index)
        assert log.term(log.first_index() - 1) == term
    assert log.initial() == (HardState(2, 0, 600), 501, 700)
    with pytest.raises(IndexError):
        log.entries(500, 502, ALL)
    with pytest.raises(ValueError, match="beyond its end"):
        log.cut(701)
    log = reopened(log)
    assert held(log) == entries(501, 700, term=2)
    log.cut(700)
    assert log.initial()[1:] == (701, 700)
    log = reopened(log)
    assert (log.initial()[1:], log.term(700)) == ((701, 700), 2)
    # What was cut was committed, whatever the hard state on disk still says.
    assert log.initial()[0] == HardState(2, 0, 700)
    log.append(None, entries(701, 702, term=2))
    assert held(log) == entries(701, 702, term=2)
    log.close()


def test_rows_left_by_a_cut_that_was_not_finished_go_with_the_next(path: str) -> None:
    log = RaftLog.open(path)
    log.append(HardState(1, 0, 10), entries(1, 10))
    log.close()
    run(path, "UPDATE state SET start_index = 5, start_term = 1")
    log = RaftLog.open(path)
    assert held(log) == entries(6, 10)
    log.cut(6)
    log.close()
    assert run(path, 'SELECT min("index"), count(*) FROM entries') == [(7, 4)]


def test_the_journal_is_allocated_once_and_begins_again_after_a_checkpoint(log: RaftLog) -> None:
    journal = Path(log.path + "-wal")
    size_bytes = journal.stat().st_size
    assert size_bytes >= raftlog.JOURNAL_SIZE_BYTES
    rounds = 0
    while rounds < 3:
        log.append(HardState(1), entries(log.last_index() + 1, log.last_index() + 8, size=10_000))
        if log.checkpoint_is_due:
            assert log.checkpoint()
            assert log.journal_size_bytes == 0
            log.cut(log.last_index() - 1)
            rounds += 1
    assert journal.stat().st_size == size_bytes
    log = reopened(log)
    assert journal.stat().st_size == size_bytes
    log.close()


def test_space_goes_back_to_the_file_system(log: RaftLog) -> None:
    log.append(HardState(1), entries(1, 20, size=50_000))
    log.checkpoint()
    before = os.path.getsize(log.path)
    log.cut(19)
    free = log.free_size_bytes
    assert free > before // 2
    released = 0
    while count := log.release_space(16):
        released += count
    assert released * 4096 == free
    log.checkpoint()
    assert os.path.getsize(log.path) <= before - free + 4096


def test_appends_go_on_while_another_thread_maintains(log: RaftLog) -> None:
    done = threading.Event()
    problems: list[BaseException] = []

    def maintain() -> None:
        try:
            while not done.is_set():
                log.checkpoint()
                log.cut(max(log.first_index() - 1, log.last_index() - 300))
                log.release_space(10)
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=maintain)
    thread.start()
    try:
        for index in range(1, 1500, 3):
            log.append(HardState(1, 1, index - 1), entries(index, index + 2, size=300))
            assert log.entries(log.last_index() - 1, log.last_index() + 1, ALL) == entries(
                index + 1, index + 2, size=300
            )
    finally:
        done.set()
        thread.join(30)
    assert not problems
    assert held(log) == entries(log.first_index(), 1500, size=300)


# Damage, and files that are not ours.


def test_an_entry_that_does_not_match_its_checksum(path: str) -> None:
    log = RaftLog.open(path)
    log.append(HardState(1), entries(1, 9))
    log.close()
    for column in ("data = x'00'", "kind = 1", "checksum = checksum + 1"):
        run(path, f'UPDATE entries SET {column} WHERE "index" = 5')
        log = RaftLog.open(path)
        assert log.entries(1, 5, ALL) == entries(1, 4)
        with pytest.raises(
            DamagedFile, match=r"raft\.db: .*entry 5 does not match its checksum; stop the server"
        ):
            log.entries(1, 10, ALL)
        log.close()


def test_a_missing_entry(path: str) -> None:
    log = RaftLog.open(path)
    log.append(HardState(1), entries(1, 9))
    log.close()
    for index in (7, 6):  # the one is met by reading, the other when the log is opened
        run(path, f'DELETE FROM entries WHERE "index" = {index}')
        with pytest.raises(DamagedFile, match=f"entry {index} is missing"):
            RaftLog.open(path).entries(1, 10, ALL)


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("DELETE FROM state", "the hard state is missing"),
        ('UPDATE state SET "commit" = 99', r"committed up to 99, but holds entries 1\.\.9"),
        ("UPDATE state SET term = 1", "an entry of term 2, but has only seen term 1"),
        ('UPDATE entries SET term = 1 WHERE "index" = 9', "entry 9 is of a term below 2"),
    ],
)
def test_contradictions_are_refused_at_the_start(path: str, statement: str, why: str) -> None:
    log = RaftLog.open(path)
    log.append(HardState(2, 0, 9), entries(1, 9, term=2))
    log.close()
    run(path, statement)
    with pytest.raises(DamagedFile, match=why):
        RaftLog.open(path)


def test_a_log_that_does_not_join_the_state(log: RaftLog) -> None:
    log.check_joins(0)
    log.append(HardState(1, 0, 9), entries(1, 9))
    log.cut(4)
    for applied_index in (4, 9):
        log.check_joins(applied_index)
    for applied_index in (3, 10):
        with pytest.raises(
            DamagedFile, match=rf"has applied entry {applied_index}, but it holds entries 5\.\.9"
        ):
            log.check_joins(applied_index)


def test_a_shortened_or_overwritten_file_is_refused_at_the_start(path: str) -> None:
    log = RaftLog.open(path)
    log.append(HardState(1), entries(1, 50, size=5_000))
    log.checkpoint()
    log.close()
    os.unlink(path + "-wal")
    content = Path(path).read_bytes()
    for damaged in (content[: len(content) // 2], b"\0" * 4096 + content[4096:], os.urandom(len(content))):
        Path(path).write_bytes(damaged)
        with pytest.raises(DamagedFile, match=r"raft\.db: the file is damaged: .*; stop the server"):
            RaftLog.open(path)
        assert Path(path).read_bytes() == damaged


def test_files_that_are_not_ours(path: str) -> None:
    run(path, "CREATE TABLE somebodys (thing)")
    with pytest.raises(UnknownFormat, match=r"raft\.db: not this file of etcd-py"):
        RaftLog.open(path)
    os.unlink(path)
    RaftLog.open(path).close()
    run(path, "PRAGMA user_version = 2")
    with pytest.raises(UnknownFormat, match="is of format 2; this version of etcd-py knows format 1"):
        RaftLog.open(path)
