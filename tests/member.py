"""A whole member without a wire, threads or a clock: the engine over real files, its effects performed at
once.

`Member.call` puts one request through as many turns as it needs and gives the parsed response, or raises the
error that the client would have been told. Time is a number that the test moves.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from etcd_server.api.errors import EtcdError
from etcd_server.api.methods import METHODS
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.raft.node import Node
from etcd_server.raft.state import Config
from etcd_server.services.core import Settings
from etcd_server.services.engine import Engine
from etcd_server.services.events import STREAM_MESSAGE, STREAM_OPEN, Batch, Effects
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import StorageError
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION

MEMBER_ID = 0x8E9E05C52164694D
CLUSTER_ID = 0xCDF818194E3A8C32


class Member:
    """One member in one folder; make another on the same folder to restart it.

    vfs: name of the SQLite VFS to use. seed: of what the engine draws; another one for each start of a member
    that is ended in the midst of things, as its proposals must have other numbers.
    """

    def __init__(self, folder: Path, *, vfs: str | None = None, seed: int = 2, **settings: Any) -> None:
        self.now = 1000.0
        self.settings = Settings(cluster_id=CLUSTER_ID, member_id=MEMBER_ID, **settings)
        self._opened: list[RaftLog | StateDatabase] = []
        try:
            self._start(folder, vfs, seed)
        except BaseException:
            self.abandon()
            raise

    def _start(self, folder: Path, vfs: str | None, seed: int) -> None:
        self.log = RaftLog.open(str(folder / "raft.db"), journal_size_bytes=1 << 16, vfs=vfs)
        self._opened.append(self.log)
        self.database = StateDatabase.open(
            str(folder / "state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION, vfs=vfs
        )
        self._opened.append(self.database)
        machine = Machine(self.database)
        self.log.check_joins(machine.applied_index)
        if self.log.last_index() == 0:
            change = command_pb2.ConfChange(
                kind=command_pb2.ConfChange.ADD_VOTER,
                member=rpc_pb2.Member(ID=MEMBER_ID, name="default", peerURLs=["http://localhost:2380"]),
            )
            entry = Entry(1, 1, EntryKind.CONF_CHANGE, change.SerializeToString())
            self.log.append(HardState(1, 0, 1), [entry])
        voters = tuple(member.ID for member in machine.members.all())
        config = Config(
            member_id=MEMBER_ID,
            voters=voters,
            hard_state=self.log.initial()[0],
            applied_index=machine.applied_index,
        )
        self.engine = Engine(
            settings=self.settings,
            node=Node(config, self.log, random.Random(1)),
            log_storage=self.log,
            machine=machine,
            random=random.Random(seed),
        )
        self.answers: dict[int, bytes | EtcdError] = {}
        self.delivered: dict[int, list[bytes]] = {}
        self.ended: dict[int, EtcdError | None] = {}
        self._next_id = 1
        self._persisted = 0
        for _ in range(20):
            self.turn(Batch(ticks=1))
            if self.engine.is_ready:
                return
        raise AssertionError("the member does not become ready")

    def turn(self, batch: Batch | None = None) -> Effects:
        """One turn and what follows from it, until everything is persisted."""
        effects = self.engine.handle(batch if batch is not None else Batch(), self.now)
        self._perform(effects)
        while self._persisted:
            number, self._persisted = self._persisted, 0
            self._perform(self.engine.handle(Batch(persisted=number), self.now))
        return effects

    def _perform(self, effects: Effects) -> None:
        for ready in effects.persist:
            self.log.append(ready.hard_state, ready.entries)
            self._persisted = ready.number
        self.answers.update(effects.answers)
        for stream_id, message in effects.deliveries:
            self.delivered.setdefault(stream_id, []).append(message)
        self.ended.update(effects.ended)
        if effects.cut_log_to:
            self.log.cut(effects.cut_log_to)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, heartbeat by heartbeat."""
        end = self.now + seconds
        while self.now < end:
            self.now += self.settings.heartbeat_interval_s
            self.turn(Batch(ticks=1))

    def send(self, path: str, *requests: Message) -> list[int]:
        """Several calls in one turn; their ids."""
        ids = [self._next_id + n for n in range(len(requests))]
        self._next_id += len(requests)
        self.turn(Batch(calls={path: list(zip(ids, requests, strict=True))}))
        return ids

    def result(self, path: str, call_id: int) -> Any:
        """The response to a call that has been answered; raises what it was refused with."""
        answer = self.answers.pop(call_id)
        if isinstance(answer, EtcdError):
            raise answer
        return METHODS[path].response.FromString(answer)

    def call(self, path: str, request: Message) -> Any:
        [call_id] = self.send(path, request)
        return self.result(path, call_id)

    def open(self, path: str, *requests: Message) -> int:
        """Open a stream with its first messages; its id."""
        stream_id = self._next_id
        self._next_id += 1
        self.turn(Batch(streams=[(STREAM_OPEN, stream_id, path)]))
        self.say(stream_id, *requests)
        return stream_id

    def say(self, stream_id: int, *requests: Message) -> None:
        self.turn(Batch(streams=[(STREAM_MESSAGE, stream_id, request) for request in requests]))

    def heard(self, stream_id: int, path: str) -> list[Any]:
        """What has come on a stream since the last look."""
        return [METHODS[path].response.FromString(message) for message in self.delivered.pop(stream_id, [])]

    def abandon(self) -> None:
        """Close the files as a crash would, whatever the disk says to it."""
        for opened in self._opened:
            with suppress(StorageError):
                opened.close()

    def close(self) -> None:
        self.engine.stop()
        self.database.close()
        self.log.close()
