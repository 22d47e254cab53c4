"""`verify` finds nothing in a sound directory, and every kind of damage in one that is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.errors import DirectoryInUse, UnknownFormat
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from etcd_server.storage.verify import verify
from tests.unit.storage.rows import run


def put(key: bytes, value: bytes, lease: int = 0) -> command_pb2.Command:
    return command_pb2.Command(put=rpc_pb2.PutRequest(key=key, value=value, lease=lease))


COMMANDS = [
    [command_pb2.Command(lease_grant=rpc_pb2.LeaseGrantRequest(ID=7, TTL=60))],
    [put(b"a", b"1"), put(b"b", b""), put(b"c", b"3" * 200, lease=7)],  # revisions 2 to 4
    [put(b"a", b"11"), put(b"c", b"33", lease=7)],  # 5, 6
    [command_pb2.Command(delete_range=rpc_pb2.DeleteRangeRequest(key=b"b"))],  # 7
    [put(b"b", b"again"), put(b"\x00\xff", b"bytes")],  # 8, 9
    [command_pb2.Command(compaction=rpc_pb2.CompactionRequest(revision=4))],
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The closed directory of a member that has applied COMMANDS."""
    directory = DataDirectory.open(tmp_path_factory.mktemp("sound") / "data")
    log = RaftLog.open(directory.raft_log_path, journal_size_bytes=0)
    machine = Machine(StateDatabase.open(directory.state_path, STATE_SCHEMA, STATE_SCHEMA_VERSION))
    for index, commands in enumerate(COMMANDS, 1):
        data = command_pb2.Batch(commands=commands).SerializeToString()
        log.append(HardState(1, 1, index), [Entry(index, 1, EntryKind.NORMAL, data)])
        machine.apply(index, 1, commands)
    machine.commit()
    log.cut(2)
    log.close()
    machine.database.close()
    directory.close()
    return directory.path


@pytest.fixture
def data_dir(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "data"))


def test_a_sound_directory(data_dir: Path) -> None:
    names = ("format", "lock", "raft.db", "raft.db-wal", "state.db")
    before = {name: (data_dir / name).read_bytes() for name in names}
    report = verify(data_dir)
    assert report.lines() == [
        "raft.db: 4 entries 3..6, term 1, committed 6",
        "state.db: applied 6, revision 9, compacted 4, 4 keys, 3 old values, 1 leases",
        "no problem was found",
    ]
    assert {name: (data_dir / name).read_bytes() for name in names} == before


def test_a_directory_in_which_nothing_has_been_stored(tmp_path: Path) -> None:
    DataDirectory.open(tmp_path / "data").close()
    report = verify(tmp_path / "data")
    assert report.is_sound
    assert report.facts == ["raft.db: holds nothing", "state.db: holds nothing"]


def test_a_directory_in_use_and_one_that_is_not_ours(data_dir: Path, tmp_path: Path) -> None:
    directory = DataDirectory.open(data_dir)
    with pytest.raises(DirectoryInUse, match="in use by another process"):
        verify(data_dir)
    directory.close()
    with pytest.raises(UnknownFormat):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ('DELETE FROM entries WHERE "index" = 4', "raft.db: entries 4..4 are missing"),
        (
            "UPDATE entries SET data = x'00' WHERE \"index\" = 5",
            "entry 5 does not match its checksum",
        ),
        ('UPDATE state SET "commit" = 77', "it says committed up to 77, but holds"),
        (
            "UPDATE state SET start_index = 5, start_term = 2",
            "entry 6 is of term 1, the one before of",
        ),
        ("DELETE FROM state", "the hard state is missing"),
    ],
)
def test_problems_of_the_log(data_dir: Path, statement: str, problem: str) -> None:
    run(str(data_dir / "raft.db"), statement)
    found = verify(data_dir)
    assert any(problem in line for line in found.problems), found.problems


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM meta", "the row of 'meta' is missing"),
        ("UPDATE meta SET applied_index = 9", "applied up to 9, which the log (entries"),
        ("UPDATE meta SET applied_index = 1", "applied up to 1, which the log (entries 3..6) does not join"),
        (
            "UPDATE meta SET applied_term = 5",
            "entry 6 was applied as one of term 5, but in",
        ),
        ("UPDATE meta SET compacted_revision = 99", "compacted at 99 (done: -1), beyond revision 9"),
        ("UPDATE meta SET revision = 8", "revision 9.0 is newer than the state, which is at 8"),
        ("DELETE FROM revisions WHERE revision >> 24 = 9", "its revision 9.0 is missing"),
        ("DELETE FROM revisions WHERE revision >> 24 = 4", "its revision 4.0 is missing"),
        ("DELETE FROM revisions WHERE revision >> 24 = 4", "4.0, which revision 6.0 supersedes, is missing"),
        ("UPDATE revisions SET kv = x'ffff' WHERE revision >> 24 = 5", "revision 5.0 cannot be read"),
        (
            "UPDATE revisions SET kv = CAST(kv || x'1809' AS BLOB) WHERE revision >> 24 = 5",
            "the KeyValue of revision 9",
        ),
        (
            "UPDATE revisions SET value_size = 1 WHERE revision >> 24 = 5",
            "its value of 1 bytes is not",
        ),
        (
            "UPDATE revisions SET value_size = NULL WHERE revision >> 24 = 5",
            "is a deletion, but holds",
        ),
        (
            "UPDATE revisions SET previous = revision WHERE revision >> 24 = 5",
            "supersedes 5.0, which is",
        ),
        ("UPDATE current SET version = 9 WHERE key = x'61'", "key 'a' does not agree with its KeyValue"),
        ("UPDATE current SET lease = 7 WHERE key = x'61'", "key 'a' does not agree with its KeyValue"),
        (
            "DELETE FROM current WHERE key = x'61'",
            "hold a value, but 3 + 3 are in",
        ),
        ("UPDATE history SET version = 5 WHERE key = x'61'", "key 'a' at revision 2.0 does not agree"),
        (
            "UPDATE history SET superseded = 150994944 WHERE key = x'61'",
            "revision 9.0 should have",
        ),
        ("DELETE FROM history WHERE key = x'62'", "are in current and history"),
        ("DELETE FROM leases", "1 keys are attached to lease 0000000000000007, which does not exist"),
        ("PRAGMA user_version = 9", "state.db: is of format 9"),
        ("PRAGMA application_id = 9", "state.db: not this file of etcd-py"),
    ],
)
def test_problems_of_the_state(data_dir: Path, statement: str, problem: str) -> None:
    run(str(data_dir / "state.db"), statement)
    found = verify(data_dir)
    assert any(problem in line for line in found.problems), found.problems
    assert found.lines()[-1].startswith("what to do: keep a copy of the directory")


def test_many_problems_of_a_kind_are_counted(data_dir: Path) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40)"
    run(
        str(data_dir / "state.db"),
        f"{numbers} INSERT INTO current SELECT CAST('key' || i AS BLOB), i, 1, 1, 0 FROM n",
    )
    problems = verify(data_dir).problems
    assert len(problems) == 12
    assert "state.db: key 'key1': its revision 0.1 is missing, or a deletion" in problems
    assert "state.db: 30 more of the kind 'row'" in problems


@pytest.mark.parametrize("name", ["raft.db", "state.db"])
def test_damaged_pages_and_missing_files(data_dir: Path, name: str) -> None:
    path = data_dir / name
    # The journal of the log outlives it, and would repair the page.
    (data_dir / f"{name}-wal").unlink(missing_ok=True)
    content = bytearray(path.read_bytes())
    content[8192:12288] = os.urandom(4096)
    path.write_bytes(content)
    assert not verify(data_dir).is_sound
    for remove in (lambda: path.write_bytes(b""), path.unlink):
        remove()
        report = verify(data_dir)
        assert f"{name}: holds nothing" in report.facts
        assert "does not" in report.problems[0]
