"""state.db: its one transaction, its sizes, and what others may do with the file meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from etcd_server.raft.messages import HardState
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import DamagedFile, DiskFailed, StateRolledBack, UnknownFormat
from etcd_server.storage.maintenance import StateMaintenance, cut_log
from etcd_server.storage.raftlog import RaftLog
from tests.unit.storage.rows import entries, run

SCHEMA = """
CREATE TABLE meta (id INTEGER PRIMARY KEY, applied_index INTEGER);
INSERT INTO meta VALUES (0, 0);
CREATE TABLE items (id INTEGER PRIMARY KEY, value BLOB);
CREATE TABLE named (name TEXT, "of the" TEXT, PRIMARY KEY (name, "of the")) WITHOUT ROWID;
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StateDatabase]:
    database = StateDatabase.open(str(tmp_path / "state.db"), SCHEMA, 1)
    yield database
    database.close()


@pytest.fixture
def maintenance(database: StateDatabase) -> Iterator[StateMaintenance]:
    maintenance = StateMaintenance.open(database.path)
    yield maintenance
    maintenance.close()


def insert(database: StateDatabase, applied_index: int, rows: int = 1, size: int = 1_000) -> None:
    database.begin()
    database.connection.executemany("INSERT INTO items (value) VALUES (?)", [(os.urandom(size),)] * rows)
    database.connection.execute("UPDATE meta SET applied_index = ?", (applied_index,))


def applied_index(connection: apsw.Connection) -> object:
    return connection.execute("SELECT applied_index FROM meta").get


def test_begin_and_commit_may_be_called_at_any_time(database: StateDatabase) -> None:
    database.commit()
    assert not database.in_transaction
    database.begin()
    database.begin()
    assert database.in_transaction
    insert(database, 7)
    database.commit()
    database.commit()
    assert not database.in_transaction
    assert applied_index(database.connection) == 7


def test_closing_gives_up_what_is_not_committed(database: StateDatabase) -> None:
    insert(database, 1)
    database.commit()
    insert(database, 2)
    database.close()
    again = StateDatabase.open(database.path, SCHEMA, 1)
    assert applied_index(again.connection) == 1
    again.close()


def test_an_administrator_reads_along(database: StateDatabase) -> None:
    insert(database, 1)
    database.commit()
    shell = apsw.Connection(database.path, flags=apsw.SQLITE_OPEN_READONLY)
    insert(database, 2)
    assert applied_index(shell) == 1
    database.commit()
    assert applied_index(shell) == 2
    with pytest.raises(apsw.ReadOnlyError):
        shell.execute("DELETE FROM items")
    shell.close()


def test_sizes(database: StateDatabase) -> None:
    assert database.size_bytes == database.size_in_use_bytes
    before = database.size_bytes
    insert(database, 1, rows=1_000)
    assert database.size_bytes > before + 1_000_000
    database.commit()
    assert database.journal_size_bytes > 1_000_000
    assert database.restart_journal()
    database.begin()
    database.connection.execute("DELETE FROM items")
    assert database.size_in_use_bytes < before + 100_000
    free = database.size_bytes - database.size_in_use_bytes
    released = 0
    while count := database.release_space(32):
        assert count <= 32
        released += count
    assert released * 4096 == free
    database.commit()
    assert database.size_bytes == database.size_in_use_bytes
    assert database.restart_journal()
    assert os.path.getsize(database.path) == database.size_bytes


def test_the_journal_begins_again(database: StateDatabase) -> None:
    insert(database, 1, rows=100)
    database.commit()
    length = os.path.getsize(database.path + "-wal")
    for index in range(2, 12):
        assert database.restart_journal()
        insert(database, index, rows=100)
        database.commit()
    assert os.path.getsize(database.path + "-wal") <= 2 * length


# Checkpoints by another connection


def test_a_checkpoint_says_what_is_durable(database: StateDatabase, maintenance: StateMaintenance) -> None:
    assert maintenance.checkpoint().applied_index == 0
    insert(database, 5, rows=100)
    assert maintenance.checkpoint().applied_index == 0  # not committed
    database.commit()
    insert(database, 6)  # the next transaction is open, as it always is
    assert maintenance.checkpoint().applied_index == 5
    assert maintenance.checkpoint().applied_index == 5
    database.commit()
    assert maintenance.checkpoint().applied_index == 6
    assert maintenance.checkpoint() == (6, 0)


def test_a_reader_holds_a_checkpoint_back_but_nobody_else(
    database: StateDatabase, maintenance: StateMaintenance
) -> None:
    insert(database, 1)
    database.commit()
    assert maintenance.checkpoint().applied_index == 1
    reader = apsw.Connection(database.path, flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN; SELECT * FROM meta").fetchall()
    insert(database, 2, rows=100)
    database.commit()
    checkpoint = maintenance.checkpoint()
    assert checkpoint.applied_index == 1
    assert checkpoint.left_size_bytes > 100_000
    assert not database.restart_journal()
    insert(database, 3)
    database.commit()
    reader.close()
    assert maintenance.checkpoint().applied_index == 3
    assert database.restart_journal()


def test_the_log_is_cut_below_what_is_durable_and_keeps_some(tmp_path: Path) -> None:
    log = RaftLog.open(str(tmp_path / "raft.db"), journal_size_bytes=0)
    cut_log(log, 0, 0)
    log.append(HardState(1), entries(1, 100))
    for durable, keep, first in (
        (0, 0, 1),
        (10, 95, 6),
        (10, 50, 11),
        (10, 0, 11),
        (100, 30, 71),
        (100, 0, 101),
    ):
        cut_log(log, durable, keep)
        assert log.first_index() == first
    log.close()


# Damage, and files that are not ours


def test_errors_of_statements(database: StateDatabase) -> None:
    insert(database, 1)
    full = database.failed(apsw.exception_for(apsw.SQLITE_FULL))  # type: ignore[arg-type]
    assert isinstance(full, StateRolledBack)
    assert not database.in_transaction
    insert(database, 1)
    failed = database.failed(apsw.exception_for(apsw.SQLITE_IOERR_READ))  # type: ignore[arg-type]
    assert isinstance(failed, DiskFailed)


def test_files_that_are_not_ours(database: StateDatabase) -> None:
    database.close()
    with pytest.raises(UnknownFormat, match="is of format 1; this version of etcd-py knows format 2"):
        StateDatabase.open(database.path, SCHEMA, 2)
    with pytest.raises(UnknownFormat, match=r"state\.db: not this file of etcd-py"):
        RaftLog.open(database.path)
    os.unlink(database.path)
    run(database.path, "CREATE TABLE somebodys (thing)")
    with pytest.raises(UnknownFormat, match=r"state\.db: not this file of etcd-py"):
        StateDatabase.open(database.path, SCHEMA, 1)


def test_a_damaged_file_is_refused_at_the_start(database: StateDatabase) -> None:
    insert(database, 1, rows=2_000)
    database.commit()
    database.restart_journal()
    database.close()
    path = Path(database.path)
    content = path.read_bytes()
    last_pages = b"\xff" * 8192
    for damaged in (content[: len(content) // 2], bytes(4096) + content[4096:], content[:-8192] + last_pages):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=r"state\.db: the file is damaged: .*; stop the server"):
            StateDatabase.open(database.path, SCHEMA, 1)
        assert path.read_bytes() == damaged


def test_damage_met_later_is_named(database: StateDatabase) -> None:
    insert(database, 1, rows=2_000)
    database.commit()
    database.restart_journal()
    database.close()
    path = Path(database.path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 8192 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)
    database = StateDatabase.open(database.path, SCHEMA, 1)
    with pytest.raises(apsw.Error) as problem:
        database.connection.execute("SELECT max(value) FROM items").fetchall()
    assert isinstance(database.failed(problem.value), DamagedFile)
    database.close()


def test_the_loop_and_the_maintenance_thread_may_copy_at_the_same_time(database: StateDatabase) -> None:
    done = threading.Event()
    durable: list[int] = [0]
    problems: list[BaseException] = []

    def maintain() -> None:
        try:
            maintenance = StateMaintenance.open(database.path)
            while not done.is_set():
                durable.append(maintenance.checkpoint().applied_index)
            maintenance.close()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=maintain)
    thread.start()
    try:
        for index in range(1, 301):
            insert(database, index, rows=20)
            assert durable[-1] < index
            database.commit()
            database.restart_journal()
    finally:
        done.set()
        thread.join(30)
    assert not problems
    assert durable == sorted(durable)
    assert durable[-1] > 0
