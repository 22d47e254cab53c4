"""Copies of state.db: consistent whatever is committed meanwhile, looked at before they are used, and put in
the place of state and log by a plan that may be interrupted anywhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.confchange import Configuration
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage import snapshot
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.errors import DamagedFile, DiskFailed, DiskFull, StorageError, UnknownFormat
from etcd_server.storage.filesystem import OPERATING_SYSTEM
from etcd_server.storage.install import Installation, Plan, pending_plan, recover
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from etcd_server.storage.verify import verify

TERM = 3


@dataclass
class Opened:
    """A member's files, with a machine over the state."""

    directory: DataDirectory
    log: RaftLog
    database: StateDatabase
    machine: Machine

    @classmethod
    def open(cls, path: Path) -> Opened:
        with ExitStack() as stack:
            directory = DataDirectory.open(path)
            stack.callback(directory.close)
            log = RaftLog.open(directory.raft_log_path, journal_size_bytes=0)
            stack.callback(log.close)
            recover(directory, log)
            stack.pop_all()
        database = StateDatabase.open(directory.state_path, STATE_SCHEMA, STATE_SCHEMA_VERSION)
        machine = Machine(database)
        log.check_joins(machine.applied_index)
        return cls(directory, log, database, machine)

    def add_member(self, number: int, *, is_learner: bool = False) -> None:
        kinds = command_pb2.ConfChange
        change = kinds(
            kind=kinds.ADD_LEARNER if is_learner else kinds.ADD_VOTER,
            member=rpc_pb2.Member(ID=number, peerURLs=[f"http://10.0.0.{number}:2380"]),
        )
        self._append(EntryKind.CONF_CHANGE, change.SerializeToString())
        self.machine.apply_conf_change(self.log.last_index(), TERM, change)

    def put(self, *keys: bytes, value: bytes = b"value") -> None:
        commands = [command_pb2.Command(put=rpc_pb2.PutRequest(key=key, value=value)) for key in keys]
        self._append(EntryKind.NORMAL, command_pb2.Batch(commands=commands).SerializeToString())
        self.machine.apply(self.log.last_index(), TERM, commands)

    def _append(self, kind: EntryKind, data: bytes) -> None:
        index = self.log.last_index() + 1
        self.log.append(HardState(TERM, 0, index), [Entry(index, TERM, kind, data)])

    def keys(self) -> int:
        return int(self.database.connection.execute("SELECT count(*) FROM current").get)

    def close(self) -> None:
        self.database.close()
        self.log.close()
        self.directory.close()


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened.open(tmp_path / "leader")
    opened.directory.make_snapshot_directory()
    opened.add_member(1)
    opened.add_member(2)
    opened.add_member(0xFFFF_FFFF_FFFF_FFFE, is_learner=True)
    for number in range(50):
        opened.put(*(b"key %d %d" % (number, n) for n in range(20)))
    opened.machine.commit()
    yield opened
    opened.close()


@pytest.fixture
def copy(leader: Opened, tmp_path: Path) -> snapshot.SnapshotFile:
    made = snapshot.make(leader.directory.state_path, str(tmp_path / "copy"))
    assert made is not None
    return made


# --- making -------------------------------------------------------------------------------------------------


def test_a_copy_says_what_it_stands_for(leader: Opened, copy: snapshot.SnapshotFile) -> None:
    assert copy.contents == snapshot.Contents(
        leader.machine.applied_index,
        TERM,
        leader.machine.revision,
        Configuration((1, 2), (0xFFFF_FFFF_FFFF_FFFE,)),
    )
    data = Path(copy.path).read_bytes()
    assert copy.size_bytes == len(data)
    assert copy.sha256 == hashlib.sha256(data).hexdigest()


def test_what_is_not_committed_is_not_in_it(leader: Opened, tmp_path: Path) -> None:
    committed_index = leader.machine.applied_index
    leader.put(b"not committed")
    made = snapshot.make(leader.directory.state_path, str(tmp_path / "copy"))
    assert made is not None and made.contents.applied_index == committed_index


def test_commits_during_the_copying_are_not_in_it(leader: Opened, tmp_path: Path) -> None:
    """The journal even begins anew, as far as it can, and the copy is still of one moment."""
    leader.put(*(b"large %d" % n for n in range(1000)), value=bytes(10_000))
    leader.machine.commit()
    index, count = leader.machine.applied_index, leader.keys()
    rounds = 0

    def write() -> bool:
        nonlocal rounds
        rounds += 1
        leader.put(b"meanwhile %d" % rounds, value=bytes(5000))
        leader.machine.commit()
        leader.database.restart_journal()
        return False

    made = snapshot.make(leader.directory.state_path, str(tmp_path / "copy"), is_cancelled=write)
    assert rounds > 2
    assert made is not None and made.contents.applied_index == index
    connection = apsw.Connection(made.path, flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.execute("SELECT count(*) FROM current").get == count
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    connection.close()
    assert leader.database.restart_journal()


def test_a_copy_can_be_given_up(leader: Opened, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    assert snapshot.make(leader.directory.state_path, str(target), is_cancelled=lambda: True) is None
    assert list(tmp_path.glob("copy*")) == []


def test_a_copy_leaves_room_on_the_device(leader: Opened, tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"no room for a copy of \d+ bytes for another member"):
        snapshot.make(leader.directory.state_path, str(tmp_path / "copy"), least_free_bytes=1 << 60)
    assert list(tmp_path.glob("copy*")) == []


# --- looking into one that has arrived ----------------------------------------------------------------------


def test_another_file_is_refused(tmp_path: Path, leader: Opened) -> None:
    with pytest.raises(UnknownFormat):
        snapshot.look_into(leader.log.path)
    (tmp_path / "text").write_text("no database at all, " * 1000)
    with pytest.raises(DamagedFile):
        snapshot.look_into(str(tmp_path / "text"))
    with pytest.raises(DiskFailed):
        snapshot.look_into(str(tmp_path / "nothing"))


def test_a_copy_cut_short_is_refused(copy: snapshot.SnapshotFile) -> None:
    os.truncate(copy.path, copy.size_bytes // 2)
    with pytest.raises(DamagedFile):
        snapshot.look_into(copy.path)


def test_members_that_make_no_sense_are_refused(copy: snapshot.SnapshotFile) -> None:
    connection = apsw.Connection(copy.path)
    connection.execute("INSERT INTO members VALUES ('nobody', '', '[]', '[]', 0)")
    connection.close()
    with pytest.raises(DamagedFile, match="its members cannot be read"):
        snapshot.look_into(copy.path)


def test_looking_leaves_nothing_behind(copy: snapshot.SnapshotFile, tmp_path: Path) -> None:
    snapshot.look_into(copy.path)
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy"]


# --- putting it in place ------------------------------------------------------------------------------------


@pytest.fixture
def follower_path(tmp_path: Path) -> Path:
    """A member's directory with a state and a log of its own, closed."""
    opened = Opened.open(tmp_path / "follower")
    opened.directory.make_snapshot_directory()
    opened.add_member(1)
    opened.put(b"old")
    opened.machine.commit()
    opened.put(b"old, not committed")
    opened.close()
    return tmp_path / "follower"


class Crash(Exception):
    """The process ends here."""


class Crashing:
    """A file system, and a log, that crash at the N-th thing asked of either: before or after it is done."""

    def __init__(self, crash_at: int, *, after: bool) -> None:
        self.crash_at = crash_at
        self.after = after
        self.done = 0

    def over(self, target: object) -> object:
        return _Counted(self, target)


class _Counted:
    def __init__(self, crashing: Crashing, target: object) -> None:
        self._crashing = crashing
        self._target = target

    def __getattr__(self, name: str) -> object:
        function = getattr(self._target, name)
        if name in ("exists", "chunks"):
            return function

        def counted(*arguments: object) -> object:
            crashing = self._crashing
            crashing.done += 1
            if crashing.done == crashing.crash_at and not crashing.after:
                raise Crash
            result = function(*arguments)
            if crashing.done == crashing.crash_at:
                raise Crash
            return result

        return counted


def install(opened: Opened, copy: snapshot.SnapshotFile, crashing: Crashing) -> None:
    """What a running member does with a copy that it wants."""
    path = os.path.join(opened.directory.snapshot_path, "received")
    shutil.copyfile(copy.path, path)
    installation = Installation(
        opened.directory.state_path,
        opened.directory.plan_path,
        crashing.over(opened.log),  # type: ignore[arg-type]
        files=crashing.over(OPERATING_SYSTEM),  # type: ignore[arg-type]
    )
    contents = copy.contents
    installation.write_plan(
        Plan(path, contents.applied_index, contents.applied_term, HardState(TERM + 1, 2, 10_000))
    )
    opened.database.replace(installation.execute)
    opened.machine.reopen()


def check_installed(opened: Opened, copy: snapshot.SnapshotFile) -> None:
    index = copy.contents.applied_index
    assert opened.machine.applied_index == index
    assert opened.machine.revision == copy.contents.revision
    assert [member.ID for member in opened.machine.members.all()] == list(copy.contents.configuration.members)
    assert opened.log.initial() == (HardState(TERM + 1, 2, index), index + 1, index)
    assert opened.log.term(index) == TERM
    assert os.listdir(opened.directory.snapshot_path) == []


def test_a_snapshot_is_put_in_place(follower_path: Path, copy: snapshot.SnapshotFile) -> None:
    opened = Opened.open(follower_path)
    install(opened, copy, Crashing(0, after=False))
    check_installed(opened, copy)
    opened.put(b"and on it goes")
    opened.machine.commit()
    opened.close()
    assert verify(follower_path).is_sound


STEPS = 12


def test_the_number_of_steps(follower_path: Path, copy: snapshot.SnapshotFile) -> None:
    opened = Opened.open(follower_path)
    crashing = Crashing(0, after=False)
    install(opened, copy, crashing)
    assert crashing.done == STEPS
    opened.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_crash_at_any_step(
    follower_path: Path, copy: snapshot.SnapshotFile, tmp_path: Path, step: int, after: bool
) -> None:
    """The next start finds the old member as it was, or the new one complete: nothing between the two."""
    opened = Opened.open(follower_path)
    with pytest.raises(Crash):
        install(opened, copy, Crashing(step, after=after))
    # A crash closes nothing: what it leaves is looked at in a copy of the directory.
    left = tmp_path / "left"
    shutil.copytree(follower_path, left)
    opened.log.close()
    opened.directory.close()
    planned = (left / "snapshot" / "plan").exists()
    for _ in range(2):
        opened = Opened.open(left)
        if planned or step > 4:
            check_installed(opened, copy)
        else:
            assert opened.machine.applied_index == 2
            assert opened.log.last_index() == 3
        opened.close()
    assert verify(left).is_sound


@pytest.mark.parametrize("again", range(1, 8))
def test_a_crash_while_a_plan_is_repeated(
    follower_path: Path, copy: snapshot.SnapshotFile, again: int
) -> None:
    opened = Opened.open(follower_path)
    with pytest.raises(Crash):
        install(opened, copy, Crashing(9, after=False))
    opened.log.close()
    log = RaftLog.open(opened.directory.raft_log_path, journal_size_bytes=0)
    crashing = Crashing(again, after=again % 2 == 0)
    with pytest.raises(Crash):
        Installation(
            opened.directory.state_path,
            opened.directory.plan_path,
            crashing.over(log),  # type: ignore[arg-type]
            files=crashing.over(OPERATING_SYSTEM),  # type: ignore[arg-type]
        ).execute()
    log.close()
    opened.directory.close()
    opened = Opened.open(follower_path)
    check_installed(opened, copy)
    opened.close()


def test_verify_says_that_a_plan_waits(follower_path: Path, copy: snapshot.SnapshotFile) -> None:
    opened = Opened.open(follower_path)
    with pytest.raises(Crash):
        install(opened, copy, Crashing(8, after=False))
    assert isinstance(pending_plan(opened.directory), StorageError)
    opened.log.close()
    opened.directory.close()
    with pytest.raises(StorageError, match="start the server, which completes that"):
        verify(follower_path)


def test_a_plan_whose_snapshot_is_gone_changes_nothing(
    follower_path: Path, copy: snapshot.SnapshotFile
) -> None:
    opened = Opened.open(follower_path)
    with pytest.raises(Crash):
        install(opened, copy, Crashing(5, after=False))
    opened.log.close()
    opened.directory.close()
    os.unlink(follower_path / "snapshot" / "received")
    for _ in range(2):
        with pytest.raises(DamagedFile, match=r"the snapshot of entry 53, which .* is about, is not there"):
            Opened.open(follower_path)
    os.unlink(follower_path / "snapshot" / "plan")
    opened = Opened.open(follower_path)
    assert opened.log.last_index() == 3
    opened.close()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", DamagedFile),
        (b"[]", DamagedFile),
        (b'{"format": 1, "path": "x"}', DamagedFile),
        (b'{"format": 2}', UnknownFormat),
    ],
)
def test_a_plan_that_cannot_be_read(data: bytes, error: type[StorageError]) -> None:
    with pytest.raises(error, match="/data/snapshot/plan: "):
        Plan.decoded(data, "/data/snapshot/plan")


def test_what_is_left_of_copies_is_removed_at_the_start(follower_path: Path) -> None:
    (follower_path / "snapshot" / "incoming-7").write_bytes(b"half of a")
    Opened.open(follower_path).close()
    assert os.listdir(follower_path / "snapshot") == []
