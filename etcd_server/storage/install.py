"""Putting a snapshot in the place of the state and the log: a plan, written down before its first step.

Two files change together, state.db and raft.db, and no transaction spans both. So the steps are written to a
file, synced, and only then done. Each may be done twice, and a crash at any point leaves the plan: the next
start does all of it again (`recover`) before anything is opened.

    1  state.db-wal and state.db-shm are removed: the journal of the old state must never meet the new one
    2  the snapshot takes the name state.db
    3  the log is emptied and begins behind the snapshot
    4  the plan is removed

Invariant: while there is a plan nobody opens state.db but the one who executes it, and nothing is appended to
the log but by its step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from etcd_server.raft.confchange import Configuration
from etcd_server.raft.messages import HardState, Snapshot
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.errors import DiskFull, StorageError, UnknownFormat, damaged
from etcd_server.storage.filesystem import OPERATING_SYSTEM, FileSystem
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.reserve import Reserve
from etcd_server.storage.snapshot import look_into, remove

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to take the place of the state and the log.

    path: of the snapshot, a whole and synced file on the same file system as state.db.
    index, term: what the snapshot stands for, where the log is to begin.
    hard_state: to be saved along with it; None: it is on the disk already.
    """

    path: str
    index: int
    term: int
    hard_state: HardState | None = None

    def encoded(self) -> bytes:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()

    @classmethod
    def decoded(cls, data: bytes, path: str) -> Plan:
        """Raises UnknownFormat, DamagedFile (`path` is the plan's, for their text)."""
        try:
            fields = json.loads(data)
            if (found := fields.pop("format")) != FORMAT:
                raise UnknownFormat(
                    f"{path}: is of format {found}; this version of etcd-py knows format {FORMAT}"
                )
            hard_state = fields.pop("hard_state")
            return cls(**fields, hard_state=None if hard_state is None else HardState(**hard_state))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(path, f"it is no plan for a snapshot ({error})") from error


class Installation:
    """The two files of a member, and how a snapshot takes their place."""

    def __init__(
        self,
        state_path: str,
        plan_path: str,
        raft_log: RaftLog,
        *,
        reserve: Reserve | None = None,
        vfs: str | None = None,
        files: FileSystem = OPERATING_SYSTEM,
    ) -> None:
        self._state_path = state_path
        self._plan_path = plan_path
        self._log = raft_log
        self._reserve = reserve
        self._vfs = vfs
        self._files = files

    @property
    def is_pending(self) -> bool:
        """A plan was written and has not been carried out to its end."""
        return self._files.exists(self._plan_path)

    def install(self, plan: Plan, database: StateDatabase) -> None:
        """Put the snapshot in the place of the state, which `database` has open, and of the log.

        When this raises DiskFull or DiskFailed before the plan is on the disk, nothing has been changed;
        after that the next start completes it. Either way the process ends: it has neither state.
        """
        self.write_plan(plan)
        database.replace(self.execute)

    def write_plan(self, plan: Plan) -> None:
        """From here on the snapshot will take the place of the state and the log, whatever happens.

        Raises DiskFull (nothing has been changed), DiskFailed, SyncFailed.
        """
        commit = None if plan.hard_state is None else min(plan.hard_state.commit, plan.index)
        if plan.hard_state is not None and commit != plan.hard_state.commit:
            # Entries behind the snapshot are appended later, and bring their commit index along.
            raised = HardState(plan.hard_state.term, plan.hard_state.vote, plan.index)
            plan = Plan(plan.path, plan.index, plan.term, raised)
        try:
            self._write(plan)
        except DiskFull:
            if self._reserve is None or not self._reserve.held:
                raise
            self._reserve.give_up()
            self._write(plan)

    def _write(self, plan: Plan) -> None:
        files, temporary = self._files, f"{self._plan_path}.new"
        try:
            files.write_synced(temporary, plan.encoded())
        except DiskFull:
            files.remove(temporary)
            raise
        files.rename(temporary, self._plan_path)
        files.sync_directory(os.path.dirname(self._plan_path))
        # The plan names a file: its name has to be there as long.
        files.sync_directory(os.path.dirname(plan.path))

    def execute(self) -> None:
        """Do what the plan says, from its first step; state.db must be closed.

        Raises StorageError; the plan is then still there, and the next start does it all again.
        """
        plan = self._read_plan()
        for step in self._steps(plan):
            step()

    def _read_plan(self) -> Plan:
        return Plan.decoded(b"".join(self._files.chunks(self._plan_path)), self._plan_path)

    def _steps(self, plan: Plan) -> list[Callable[[], None]]:
        files, state_path = self._files, self._state_path
        return [
            lambda: self._check(plan),
            partial(files.remove, f"{state_path}-wal"),
            partial(files.remove, f"{state_path}-shm"),
            lambda: self._rename(plan),
            partial(files.sync_directory, os.path.dirname(state_path)),
            partial(files.sync_directory, os.path.dirname(plan.path)),
            lambda: self._begin_log(plan),
            partial(files.remove, self._plan_path),
            partial(files.sync_directory, os.path.dirname(self._plan_path)),
        ]

    def _check(self, plan: Plan) -> None:
        """Whichever of its two names the snapshot has now, it is there: otherwise the log must stay."""
        path = plan.path if self._files.exists(plan.path) else self._state_path
        found = look_into(path, vfs=self._vfs) if self._files.exists(path) else None
        if found is None or (found.applied_index, found.applied_term) != (plan.index, plan.term):
            raise damaged(
                path, f"the snapshot of entry {plan.index}, which {self._plan_path} is about, is not there"
            )

    def _rename(self, plan: Plan) -> None:
        if self._files.exists(plan.path):
            self._files.rename(plan.path, self._state_path)

    def _begin_log(self, plan: Plan) -> None:
        # The membership is in the state; the log does not hold it.
        snapshot = Snapshot(plan.index, plan.term, Configuration(()))
        self._log.append(plan.hard_state, (), snapshot)


def recover(directory: DataDirectory, raft_log: RaftLog, reserve: Reserve | None = None) -> bool:
    """Carry out a plan that a crash has left, and remove copies that nobody will ask for any more; whether
    there was a plan.

    To be called before state.db is opened. Raises StorageError.
    """
    installation = Installation(directory.state_path, directory.plan_path, raft_log, reserve=reserve)
    was_pending = installation.is_pending
    if was_pending:
        installation.execute()
    if os.path.isdir(directory.snapshot_path):
        for name in os.listdir(directory.snapshot_path):
            remove(os.path.join(directory.snapshot_path, name))
    return was_pending


def pending_plan(directory: DataDirectory) -> StorageError | None:
    """For those who only look: what to say of a directory in which an installation was cut short."""
    if not os.path.exists(directory.plan_path):
        return None
    return StorageError(
        f"{directory.plan_path}: a snapshot was being put in the place of the state; "
        "start the server, which completes that, then look again"
    )
