"""Several whole members in one thread: engines over real files, joined by a network that the test rules.

Time is a number. A turn of the cluster is one tick: every member that runs takes what has come for it, until
nobody has anything left to say. `apart` names pairs of members between whom nothing gets through.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from etcd_server.api.errors import EtcdError
from etcd_server.api.methods import METHODS
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.machine.members import cluster_id, member_id
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.raft.node import Node
from etcd_server.raft.state import Config
from etcd_server.services.core import Settings
from etcd_server.services.engine import Engine
from etcd_server.services.events import Batch, Effects
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION

TOKEN = "eagle-cluster"
LIMIT_S = 30.0


class One:
    """One member of the cluster, and what has come for it since its last turn."""

    def __init__(self, folder: Path, settings: Settings, first: Sequence[Entry]) -> None:
        folder.mkdir(exist_ok=True)
        self.settings = settings
        self.log = RaftLog.open(str(folder / "raft.db"), journal_size_bytes=1 << 16)
        self.database = StateDatabase.open(str(folder / "state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION)
        machine = Machine(self.database)
        if first and self.log.last_index() == 0:
            self.log.append(HardState(1, 0, len(first)), first)
        members = machine.members.all()
        config = Config(
            member_id=settings.member_id,
            voters=tuple(member.ID for member in members if not member.isLearner),
            learners=tuple(member.ID for member in members if member.isLearner),
            hard_state=self.log.initial()[0],
            applied_index=machine.applied_index,
        )
        self.engine = Engine(
            settings=settings,
            node=Node(config, self.log, random.Random(settings.member_id)),
            log_storage=self.log,
            machine=machine,
            random=random.Random(settings.member_id + 1),
        )
        self.inbox = Batch()
        self.answers: dict[int, bytes | EtcdError] = {}

    @property
    def is_ready(self) -> bool:
        return self.engine.is_ready

    @property
    def members(self) -> list[rpc_pb2.Member]:
        return self.engine.machine.members.all()

    @property
    def has_news(self) -> bool:
        inbox = self.inbox
        return bool(inbox.messages or inbox.forwarded or inbox.persisted or inbox.calls or inbox.connected)

    def close(self) -> None:
        self.engine.stop()
        self.database.close()
        self.log.close()


class Cluster:
    """See the module's docstring. Members are named by their peer URL, "http://NAME:2380"."""

    def __init__(self, folder: Path, *names: str, **settings: Any) -> None:
        self.now = 1000.0
        self.unix_time_s = 1_700_000_000
        self._folder = folder
        self._settings = settings
        self.apart: set[frozenset[int]] = set()
        self.running: dict[int, One] = {}
        self.ids = {name: member_id([self.url(name)], TOKEN) for name in names}
        self.cluster_id = cluster_id(self.ids.values())
        self._next_call_id = 1
        by_id = sorted(self.ids.items(), key=lambda pair: pair[1])
        self._first = [
            Entry(
                index,
                1,
                EntryKind.CONF_CHANGE,
                command_pb2.ConfChange(
                    member=rpc_pb2.Member(ID=number, name=name, peerURLs=[self.url(name)])
                ).SerializeToString(),
            )
            for index, (name, number) in enumerate(by_id, start=1)
        ]
        for name in names:
            self.start(name, first=True)

    @staticmethod
    def url(name: str) -> str:
        return f"http://{name}:2380"

    def start(self, name: str, *, first: bool = False) -> One:
        """Start a member, or start it again."""
        number = self.ids[name]
        settings = Settings(
            cluster_id=self.cluster_id,
            member_id=number,
            member_name=name,
            client_urls=(f"http://{name}:2379",),
            **self._settings,
        )
        one = self.running[number] = One(self._folder / name, settings, self._first if first else ())
        for other in self.running:
            self._connect(number, other, is_up=True)
        return one

    def stop(self, name: str) -> None:
        number = self.ids[name]
        self.running.pop(number).close()
        for other in self.running.values():
            other.inbox.connected.append((number, False))

    def _connect(self, one: int, other: int, *, is_up: bool) -> None:
        if one != other:
            self.running[one].inbox.connected.append((other, is_up))
            self.running[other].inbox.connected.append((one, is_up))

    def separate(self, one: str, other: str) -> None:
        self.apart.add(frozenset({self.ids[one], self.ids[other]}))
        self._connect(self.ids[one], self.ids[other], is_up=False)

    def __getitem__(self, name: str) -> One:
        return self.running[self.ids[name]]

    @property
    def leader(self) -> One:
        [leader] = [one for one in self.running.values() if one.engine.core.is_leader]
        return leader

    @property
    def followers(self) -> list[One]:
        return [one for one in self.running.values() if not one.engine.core.is_leader]

    # --- time -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A heartbeat passes, and everything that follows from it."""
        self.now += 0.1
        for one in self.running.values():
            one.inbox.ticks += 1
        for _ in range(1000):
            busy = [one for one in self.running.values() if one.inbox.ticks or one.has_news]
            if not busy:
                return
            for one in busy:
                self._turn(one)
        raise AssertionError("the members do not come to rest")

    def _turn(self, one: One) -> None:
        batch, one.inbox = one.inbox, Batch()
        batch.unix_time_s = self.unix_time_s
        self._perform(one, one.engine.handle(batch, self.now))

    def _perform(self, one: One, effects: Effects) -> None:
        for ready in effects.persist:
            one.log.append(ready.hard_state, ready.entries)
            one.inbox.persisted = ready.number
        for message in effects.send:
            if self._reaches(one, message.to):
                self.running[message.to].inbox.messages.append(message)
        for forwarded in effects.forward:
            if self._reaches(one, forwarded.to):
                self.running[forwarded.to].inbox.forwarded.append(forwarded)
        one.answers.update(effects.answers)

    def _reaches(self, one: One, other: int) -> bool:
        return other in self.running and frozenset({one.settings.member_id, other}) not in self.apart

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.tick()

    def wait(self, reached: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
        """Let time pass until it is so."""
        end = self.now + limit_s
        while not reached():
            assert self.now < end, "it does not come to it"
            self.tick()

    def wait_ready(self) -> None:
        self.wait(lambda: all(one.is_ready for one in self.running.values()))

    # --- calls ----------------------------------------------------------------------------------------------

    def send(self, one: One, path: str, *requests: Message) -> list[int]:
        """Calls put to a member in one turn; their ids."""
        calls = one.inbox.calls.setdefault(path, [])
        ids = list(range(self._next_call_id, self._next_call_id + len(requests)))
        self._next_call_id += len(requests)
        calls += zip(ids, requests, strict=True)
        return ids

    def result(self, one: One, path: str, call_id: int) -> Any:
        """The response to a call, waited for; raises what it was refused with."""
        self.wait(lambda: call_id in one.answers)
        answer = one.answers.pop(call_id)
        if isinstance(answer, EtcdError):
            raise answer
        return METHODS[path].response.FromString(answer)

    def call(self, one: One, path: str, request: Message) -> Any:
        [call_id] = self.send(one, path, request)
        return self.result(one, path, call_id)

    def close(self) -> None:
        for one in self.running.values():
            one.close()
