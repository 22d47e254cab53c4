"""Several whole members in one thread: engines over real files, joined by a network that a test can cut.

Time is one number for all of them. A turn of `Cluster.settle` lets every member take what has arrived for it,
until nothing is on the way any more; `pass_time` lets heartbeats pass in between. Links count as up between
members that run and are not cut off from each other, and each member is told of changes, as by real links.
Snapshots are files, made when they are wanted and carried when time passes (`Cluster.carry_copies`).
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from etcd_server.api.errors import EtcdError
from etcd_server.api.methods import METHODS
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import Entry, EntryKind, HardState, InstallSnapshot, Ready, Snapshot
from etcd_server.raft.messages import Message as RaftMessage
from etcd_server.raft.node import Node
from etcd_server.raft.state import Config
from etcd_server.services.core import Settings
from etcd_server.services.engine import Engine
from etcd_server.services.events import (
    STREAM_MESSAGE,
    STREAM_OPEN,
    Batch,
    Effects,
    Forwarded,
    ReceivedSnapshot,
    SnapshotRequest,
)
from etcd_server.storage import snapshot
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.install import Installation, Plan
from etcd_server.storage.maintenance import StateMaintenance
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION

CLUSTER_ID = 0xC1
TURNS_LIMIT = 10_000


class ClusterMember:
    """One member, its files, and what its clients have been told."""

    def __init__(self, cluster: Cluster, number: int, name: str = "", *, is_first: bool = True) -> None:
        """`is_first`: one of those that the cluster begins with; others start with an empty log."""
        self.cluster = cluster
        self.number = number
        self.name = name or f"m{number}"
        self.is_first = is_first
        self.folder = cluster.folder / self.name
        self.folder.mkdir(exist_ok=True)
        self.is_running = False
        self.version = "3.6.0"
        self.answers: dict[int, bytes | EtcdError] = {}
        self.delivered: dict[int, list[bytes]] = {}
        self.ended: dict[int, EtcdError | None] = {}
        self.next_id = number << 32
        self.inbox: list[RaftMessage | Forwarded] = []
        self.connected: list[tuple[int, bool]] = []
        self.versions: list[tuple[int, str]] = []
        self.boots = 0
        self.snapshots_sent: list[tuple[int, bool]] = []
        self.snapshots_received: list[ReceivedSnapshot] = []
        self.installed: list[int] = []
        self.durable_index = 0

    def start(self) -> None:
        self.boots += 1
        first = self.cluster.first_entries()
        self.log = RaftLog.open(str(self.folder / "raft.db"), journal_size_bytes=1 << 16)
        self.installation = Installation(str(self.folder / "state.db"), str(self.folder / "plan"), self.log)
        if self.installation.is_pending:
            self.installation.execute()
        self.database = StateDatabase.open(str(self.folder / "state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION)
        machine = Machine(self.database)
        if self.is_first and self.log.last_index() == 0:
            self.log.append(HardState(1, 0, len(first)), first)
        members = machine.members.all()
        config = Config(
            member_id=self.number,
            voters=tuple(member.ID for member in members if not member.isLearner),
            learners=tuple(member.ID for member in members if member.isLearner),
            hard_state=self.log.initial()[0],
            applied_index=machine.applied_index,
        )
        seed = self.number * 1000 + self.boots
        self.engine = Engine(
            settings=Settings(
                cluster_id=CLUSTER_ID,
                member_id=self.number,
                member_name=self.name,
                client_urls=(f"http://{self.name}:2379",),
                server_version=self.version,
                cluster_version=self.version,
                **self.cluster.settings,
            ),
            node=Node(config, self.log, random.Random(seed)),
            log_storage=self.log,
            machine=machine,
            random=random.Random(seed + 500),
        )
        self.is_running = True
        self.inbox.clear()
        self.connected.clear()
        self.versions.clear()
        self.snapshots_sent.clear()
        self.snapshots_received.clear()
        self.durable_index = 0
        self.cluster.links_changed()

    def crash(self) -> None:
        """As kill -9: the open transaction of the state is gone, the log is there."""
        self.is_running = False
        self.database.rollback()
        self.close()
        self.cluster.links_changed()

    def close(self) -> None:
        self.database.close()
        self.log.close()

    @property
    def is_leader(self) -> bool:
        return self.is_running and self.engine.core.is_leader

    @property
    def has_news(self) -> bool:
        return bool(
            self.inbox or self.connected or self.versions or self.snapshots_sent or self.snapshots_received
        )

    def turn(self, batch: Batch | None = None) -> Effects:
        """One turn with what has arrived, and those that follow until everything is persisted."""
        batch = Batch() if batch is None else batch
        arrived, self.inbox = self.inbox, []
        for message in arrived:
            if isinstance(message, RaftMessage):
                batch.messages.append(message)
            else:
                batch.forwarded.append(message)
        batch.unix_time_s = self.cluster.unix_time_s
        batch.connected, self.connected = self.connected, []
        batch.versions, self.versions = self.versions, []
        batch.snapshots_sent, self.snapshots_sent = self.snapshots_sent, []
        batch.snapshots_received, self.snapshots_received = self.snapshots_received, []
        batch.durable_index, self.durable_index = self.durable_index, 0
        first = effects = self.engine.handle(batch, self.cluster.now)
        while persisted := self._perform(effects):
            again = Batch(persisted=persisted, restored=effects.install is not None)
            effects = self.engine.handle(again, self.cluster.now)
        return first

    def _perform(self, effects: Effects) -> int:
        for message in (*effects.send, *effects.forward):
            self.cluster.carry(self.number, message)
        for ready in effects.persist:
            if ready.snapshot is not None:
                self._install(effects.install, ready)
            self.log.append(ready.hard_state, ready.entries)
        for request in effects.make_snapshots:
            path = str(self.folder / f"copy-{len(self.cluster.copies)}")
            self.cluster.copies.append((self.number, request, snapshot.make(self.database.path, path)))
        for refused in effects.refused_snapshots:
            snapshot.remove(refused.path)
            self.cluster.members[refused.sender].snapshots_sent.append((self.number, False))
        if effects.checkpoint:
            maintenance = StateMaintenance.open(self.database.path)
            self.durable_index = maintenance.checkpoint().applied_index
            maintenance.close()
        self.answers.update(effects.answers)
        for stream_id, message in effects.deliveries:
            self.delivered.setdefault(stream_id, []).append(message)
        self.ended.update(effects.ended)
        if effects.cut_log_to:
            self.log.cut(effects.cut_log_to)
        return effects.persist[-1].number if effects.persist else 0

    def _install(self, received: ReceivedSnapshot | None, ready: Ready) -> None:
        assert received is not None and received.snapshot == ready.snapshot
        stands_for = received.snapshot
        plan = Plan(received.path, stands_for.index, stands_for.term, ready.hard_state)
        self.installation.install(plan, self.database)
        self.installed.append(stands_for.index)
        self.cluster.members[received.sender].snapshots_sent.append((self.number, True))

    # --- as a client ------------------------------------------------------------------------------------

    def send(self, path: str, *requests: Message) -> list[int]:
        """Several calls in one turn, without waiting for anybody else; their ids."""
        ids = [self.next_id + n for n in range(len(requests))]
        self.next_id += len(requests)
        self.turn(Batch(calls={path: list(zip(ids, requests, strict=True))}))
        return ids

    def result(self, path: str, call_id: int) -> Any:
        """The response to a call that has been answered; raises what it was refused with."""
        answer = self.answers.pop(call_id)
        if isinstance(answer, EtcdError):
            raise answer
        return METHODS[path].response.FromString(answer)

    def call(self, path: str, request: Message, limit_s: float = 10.0) -> Any:
        """Put a call and let time pass until it is answered."""
        [call_id] = self.send(path, request)
        self.cluster.wait(lambda: call_id in self.answers, f"{path} at m{self.number}", limit_s)
        return self.result(path, call_id)

    def open(self, path: str, *requests: Message, kinds: Sequence[int] = ()) -> int:
        """Open a stream with its first messages; its id. `kinds`: further events of its beginning."""
        stream_id = self.next_id
        self.next_id += 1
        begun = [(STREAM_OPEN, stream_id, path), *((kind, stream_id, None) for kind in kinds)]
        self.turn(Batch(streams=[*begun, *((STREAM_MESSAGE, stream_id, one) for one in requests)]))
        self.cluster.settle()
        return stream_id

    def say(self, stream_id: int, *requests: Message) -> None:
        self.turn(Batch(streams=[(STREAM_MESSAGE, stream_id, request) for request in requests]))
        self.cluster.settle()

    def heard(self, stream_id: int, path: str) -> list[Any]:
        """What has come on a stream since the last look."""
        return [METHODS[path].response.FromString(message) for message in self.delivered.pop(stream_id, [])]


class Cluster:
    """Members 1 to `size`, all started, ready, and settled."""

    def __init__(self, folder: Path, size: int = 3, *, started: bool = True, **settings: Any) -> None:
        self.folder = folder
        self.settings = settings
        self.now = 1000.0
        self.unix_time_s = 1_700_000_000
        self.size = size
        self.is_cut: Callable[[int, int], bool] = lambda sender, to: False
        self._links: dict[tuple[int, int], bool] = {}
        self.copies: list[tuple[int, SnapshotRequest, snapshot.SnapshotFile | None]] = []
        self.members = {number: ClusterMember(self, number) for number in range(1, size + 1)}
        if started:
            for member in self.members.values():
                member.start()
            self.wait(lambda: all(member.engine.is_ready for member in self.running), "the cluster")

    def first_entries(self) -> list[Entry]:
        kind = command_pb2.ConfChange.ADD_VOTER
        changes = [
            command_pb2.ConfChange(
                kind=kind,
                member=rpc_pb2.Member(ID=number, name=f"m{number}", peerURLs=[f"http://m{number}:2380"]),
            )
            for number in range(1, self.size + 1)
        ]
        return [
            Entry(index, 1, EntryKind.CONF_CHANGE, change.SerializeToString())
            for index, change in enumerate(changes, start=1)
        ]

    def join(self, number: int, name: str) -> ClusterMember:
        """Start a member that has been added."""
        member = self.members[number] = ClusterMember(self, number, name, is_first=False)
        member.start()
        return member

    # --- the network ------------------------------------------------------------------------------------

    def carry(self, sender: int, message: RaftMessage | Forwarded) -> None:
        receiver = self.members.get(message.to)
        if receiver is not None and receiver.is_running and not self.is_cut(sender, message.to):
            assert not isinstance(message, InstallSnapshot), "a snapshot is no message"
            receiver.inbox.append(message)

    def carry_copies(self) -> None:
        """Bring the copies that have been made to those whom they are for, or fail."""
        copies, self.copies = self.copies, []
        for number, (sender, request, copy) in enumerate(copies):
            receiver, from_member = self.members[request.to], self.members[sender]
            if copy is None or not receiver.is_running or self.is_cut(sender, request.to):
                from_member.snapshots_sent.append((request.to, False))
                continue
            contents = copy.contents
            path = shutil.copyfile(copy.path, receiver.folder / f"received-{sender}-{number}")
            stands_for = Snapshot(contents.applied_index, contents.applied_term, contents.configuration)
            receiver.snapshots_received.append(
                ReceivedSnapshot(number, str(path), sender, request.term, stands_for)
            )

    def cut(self, *numbers: int) -> None:
        """Separate these members from the others; without numbers, heal everything."""
        apart = set(numbers)
        self.is_cut = lambda sender, to: (sender in apart) != (to in apart)
        self.links_changed()

    def links_changed(self) -> None:
        """Tell the members which of their links are up now."""
        for sender in self.members.values():
            for receiver in self.members.values():
                pair = (sender.number, receiver.number)
                is_up = sender.is_running and receiver.is_running and not self.is_cut(*pair)
                if sender is not receiver and self._links.get(pair, False) != is_up:
                    self._links[pair] = is_up
                    sender.connected.append((receiver.number, is_up))
                    if is_up:
                        receiver.versions.append((sender.number, sender.version))

    # --- time -------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[ClusterMember]:
        return [member for member in self.members.values() if member.is_running]

    def settle(self) -> None:
        """Let members take what has arrived, until nothing is on the way."""
        for _ in range(TURNS_LIMIT):
            waiting = [member for member in self.running if member.has_news]
            if not waiting:
                return
            for member in waiting:
                member.turn()
        raise AssertionError("the members talk without end")

    def tick(self) -> None:
        """One heartbeat interval."""
        self.settle()
        self.now += 0.1
        self.carry_copies()
        for member in self.running:
            member.turn(Batch(ticks=1))
        self.settle()

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.tick()

    def wait(self, condition: Callable[[], bool], what: str, limit_s: float = 10.0) -> None:
        """Let time pass until the condition holds."""
        self.settle()
        deadline_s = self.now + limit_s
        while not condition():
            assert self.now < deadline_s, f"{what}: not within {limit_s} s"
            self.tick()

    # --- who leads --------------------------------------------------------------------------------------

    @property
    def leader(self) -> ClusterMember:
        [leader] = [member for member in self.running if member.is_leader]
        return leader

    @property
    def followers(self) -> list[ClusterMember]:
        return [member for member in self.running if not member.is_leader]

    def wait_for_leader(self, *besides: ClusterMember) -> ClusterMember:
        """The leader, once there is one that is not among `besides` and all others know it."""
        others = [member for member in self.running if member not in besides]

        def is_agreed() -> bool:
            leaders = {member.engine.core.leader_id for member in others}
            return len(leaders) == 1 and any(member.is_leader for member in others)

        self.wait(is_agreed, "a leader")
        [leader] = [member for member in others if member.is_leader]
        return leader

    def close(self) -> None:
        for member in self.running:
            member.engine.stop()
            member.close()
