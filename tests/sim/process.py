"""The process on a host: the shipped member, and what its shell does, as events in virtual time.

Engine, Machine, StateDatabase and RaftLog run on a `SimulatedDisk`. What the shell (`runtime.py`,
`workers.py`) does in three threads is done here one after another: turns of the loop, late writes of the log
writer, checkpoints and cuts of the keeper. A turn takes all that has arrived; a member that is paused takes
nothing, and a lot afterwards, with all the ticks that it slept through.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import apsw
from google.protobuf.message import Message as Request

from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine, Outcome
from etcd_server.raft.log import LogStorage
from etcd_server.raft.messages import Entry, EntryKind, HardState, Message, Ready, Snapshot
from etcd_server.raft.node import Node
from etcd_server.raft.state import Config
from etcd_server.services.core import Settings
from etcd_server.services.engine import Engine
from etcd_server.services.events import (
    STREAM_HALF_CLOSE,
    STREAM_MESSAGE,
    STREAM_OPEN,
    STREAM_PAUSED,
    STREAM_RESUMED,
    Batch,
    Effects,
    Forwarded,
    ReceivedSnapshot,
    SnapshotRequest,
)
from etcd_server.storage import snapshot
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import DiskFull, StorageError
from etcd_server.storage.install import Installation, Plan
from etcd_server.storage.maintenance import StateMaintenance
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from tests.sim.invariants import Invariants

if TYPE_CHECKING:
    from tests.sim.node import Host

CLUSTER_ID = 0xCDF818194E3A8C32
TURN_S = 0.0002
RETRY_FULL_DISK_S = 0.5
KEEPER_INTERVAL_S = 1.0
LOWEST_ROOM_BYTES = 64 * 1024
SHORT_REST_BYTES = 64 * 1024
MOST_TICKS_AT_ONCE = 100
FAREWELL_S = 1.0
EPOCH_S = 1_700_000_000
VERSION = "3.6.0"

Reply = Callable[["bytes | EtcdError | None"], None]
"""Told once: the serialised answer, the error, or None when the connection broke first."""


@dataclass(slots=True)
class Stream:
    """The client's end of a stream."""

    on_message: Callable[[bytes], None]
    on_end: Callable[[EtcdError | None], None]


class ObservedNode(Node):
    """The shipped node, with everything that it hands out looked at by the invariants."""

    def __init__(
        self, config: Config, storage: LogStorage, random: random.Random, host: Host, invariants: Invariants
    ) -> None:
        super().__init__(config, storage, random)
        self.host = host
        self.invariants = invariants

    def ready(self, *, tell_commit: bool = True) -> Ready | None:
        ready = super().ready(tell_commit=tell_commit)
        if ready is not None:
            self.invariants.taken(self.host, ready)
        return ready

    def read_index(self, context: int) -> None:
        super().read_index(context)
        self.invariants.read_asked(self.host, context)


class ObservedMachine(Machine):
    """The shipped machine, with each outcome compared with what other members and other lives made of it."""

    def __init__(self, database: StateDatabase, host: Host, invariants: Invariants) -> None:
        self.host = host
        self.invariants = invariants
        super().__init__(database)

    def apply(self, index: int, term: int, commands: Iterable[command_pb2.Command]) -> list[Outcome]:
        is_new = index > self.applied_index
        outcomes = super().apply(index, term, commands)
        if is_new:
            self.invariants.applied(self.host, index, outcomes, self.revision)
        return outcomes

    def apply_conf_change(self, index: int, term: int, change: command_pb2.ConfChange) -> Outcome | None:
        outcome = super().apply_conf_change(index, term, change)
        if outcome is not None:
            self.invariants.applied(self.host, index, [outcome], self.revision)
        return outcome


class Process:
    """One life of a member: opened files, an engine, and what is under way between its threads."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = world = host.world
        self.plan = plan = world.plan
        self.batch = Batch()
        self.calls: dict[int, Reply] = {}
        self.streams: dict[int, Stream] = {}
        self.is_paused = False
        self._waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._turn_due = False
        self._unwritten: list[Ready] = []
        self._writing = False
        self._posted = 0
        self._rest_is_short = False
        self._cut_to = 0
        self._full: set[str] = set()
        self._arrived: dict[int, Host] = {}
        self._is_leaving = False
        self._opened: list[Any] = []
        try:
            self._open(plan)
        except BaseException:
            self.abandon()
            raise

    def _open(self, plan: Any) -> None:
        host, world = self.host, self.world
        disk, member_id = host.disk, host.member_id
        self.log = RaftLog.open(disk.path("raft.db"), journal_size_bytes=0, vfs=disk.vfs_name)
        self._opened.append(self.log)
        self.installation = Installation(
            disk.path("state.db"), disk.path("plan"), self.log, vfs=disk.vfs_name, files=disk.files
        )
        if self.installation.is_pending:
            world.counts["installation completed after a crash"] += 1
            self.installation.execute()
        for name in disk.contents():
            if name.startswith(("copy", "received")):
                disk.files.remove(disk.path(name))
        self.database = StateDatabase.open(
            disk.path("state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION, vfs=disk.vfs_name
        )
        self._opened.append(self.database)
        self.maintenance = StateMaintenance.open(disk.path("state.db"), vfs=disk.vfs_name)
        self._opened.append(self.maintenance)
        self.machine = ObservedMachine(self.database, host, host.invariants)
        first_members = host.cluster.first_members
        if self.log.last_index() == 0 and member_id in first_members:
            entries = first_entries(first_members)
            self.log.append(HardState(1, 0, len(entries)), entries)
        self.log.check_joins(self.machine.applied_index)
        members = self.machine.members.all()
        config = Config(
            member_id=member_id,
            voters=tuple(member.ID for member in members if not member.isLearner),
            learners=tuple(member.ID for member in members if member.isLearner),
            hard_state=self.log.initial()[0],
            applied_index=self.machine.applied_index,
            election_ticks=plan.election_ticks,
            pre_vote=plan.pre_vote,
            max_inflight=plan.max_inflight,
            max_message_bytes=plan.max_message_bytes,
            max_apply_bytes=plan.max_apply_bytes,
            recent_entries=plan.recent_entries,
        )
        self.settings = Settings(
            cluster_id=CLUSTER_ID,
            member_id=member_id,
            member_name=f"m{host.number}",
            client_urls=(f"http://10.0.0.{host.number}:2379",),
            server_version=VERSION,
            cluster_version=VERSION,
            heartbeat_interval_s=plan.heartbeat_interval_s,
            election_timeout_s=plan.election_timeout_s,
            snapshot_count=plan.snapshot_count,
            catch_up_entries=plan.catch_up_entries,
            progress_notify_interval_s=3.0,
            commit_interval_s=plan.commit_interval_s,
        )
        life = f"{host.number} {host.lives}"
        self.node = ObservedNode(config, self.log, world.source(f"raft {life}"), host, host.invariants)
        self.engine = Engine(
            settings=self.settings,
            node=self.node,
            log_storage=self.log,
            machine=self.machine,
            random=world.source(f"engine {life}"),
        )

    def begin(self) -> None:
        """The files are open: the loop begins."""
        self.host.invariants.started(self.host, self)
        self._last_tick_s = self.host.local_time() - self.plan.heartbeat_interval_s * self.host.draw.random()
        self._schedule_tick()
        self.after(self.host.draw.uniform(0.5, 1.5) * self.plan.checkpoint_interval_s, self._checkpoint)
        self.after(KEEPER_INTERVAL_S, self._watch_room)
        self.host.cluster.link(self.host, is_up=True)
        self.wake()

    # --- time ---------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen in this process: not if it has ended by then, later if it is paused."""
        self.world.after(delay_s, self._act, action, arguments)

    def _act(self, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self.host.process is not self:
            return
        if self.is_paused:
            self._waiting.append((action, arguments))
            return
        try:
            action(*arguments)
        except (StorageError, apsw.Error) as error:
            self.host.failed(error)

    def pause(self, duration_s: float) -> None:
        """SIGSTOP for a while: time goes on without it, what arrives waits."""
        if not self.is_paused:
            self.is_paused = True
            self.world.trace(self.host.name, "is paused")
            self.world.after(duration_s, self.resume)

    def resume(self) -> None:
        if self.is_paused and self.host.process is self:
            self.is_paused = False
            self.world.trace(self.host.name, "goes on")
            waiting, self._waiting = self._waiting, []
            for action, arguments in waiting:
                self.after(TURN_S, action, *arguments)

    def _schedule_tick(self) -> None:
        due_s = self._last_tick_s + self.plan.heartbeat_interval_s - self.host.local_time()
        self.after(max(0.0, due_s / self.host.rate) + 1e-6, self._tick)

    def _tick(self) -> None:
        self._turn()
        self._schedule_tick()

    # --- the loop -----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something waits for the next turn."""
        if not self._turn_due:
            self._turn_due = True
            self.after(TURN_S, self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        batch, self.batch = self.batch, Batch()
        now_s, interval_s = self.host.local_time(), self.plan.heartbeat_interval_s
        passed = int((now_s - self._last_tick_s) / interval_s)
        if passed:
            batch.ticks = min(passed, MOST_TICKS_AT_ONCE)
            self._last_tick_s += passed * interval_s
        batch.unix_time_s = EPOCH_S + int(self.world.now)
        self._handle(batch, now_s)

    def leave(self) -> None:
        """Another member has said that this one was removed from the cluster: it ends in a moment."""
        if not self._is_leaving:
            self._is_leaving = True
            self.after(FAREWELL_S, self.host.retire)

    def _handle(self, batch: Batch, now_s: float) -> None:
        host = self.host
        self.world.trace(host.name, "turn", batch)
        host.invariants.before_turn(host, self)
        effects = self.engine.handle(batch, now_s)
        self._perform(effects)
        host.invariants.after_turn(host, self)
        if effects.more_work:
            self.wake()
        elif effects.again_within_s < self.plan.heartbeat_interval_s:
            self.after(effects.again_within_s, self.wake)

    def _perform(self, effects: Effects) -> None:
        host = self.host
        for message in effects.send:
            host.invariants.sending(host, self, message)
            self.world.trace(host.name, "sends", message)
            host.network.send(message)
        for forwarded in effects.forward:
            host.network.send(forwarded)
        number = 0
        if effects.install is not None:
            number = self._install(effects.install, effects.persist)
        elif effects.persist:
            number = self._submit(effects.persist)
        for call_id, answer in effects.answers:
            reply = self.calls.pop(call_id, None)
            if reply is not None:
                self.world.after(host.draw.uniform(0.0001, 0.002), reply, answer)
        for stream_id, data in effects.deliveries:
            stream = self.streams.get(stream_id)
            if stream is not None:
                self.world.after(0.0005, stream.on_message, data)
        for stream_id, error in effects.ended:
            stream = self.streams.pop(stream_id, None)
            if stream is not None:
                self.batch.cancelled.append(stream_id)
                self.world.after(0.0005, stream.on_end, error)
        if effects.cut_log_to:
            self._cut_to = max(self._cut_to, effects.cut_log_to)
            self.after(host.draw.uniform(0.001, 0.5), self._cut)
        if effects.committed and self._rest_is_short:
            self._rest_is_short = False
            self.database.restart_journal()
        if effects.checkpoint:
            self.after(host.draw.uniform(0.001, 0.1), self._make_checkpoint)
        for request in effects.make_snapshots:
            self.after(host.draw.uniform(0.001, 0.3), self._copy_state, request)
        for refused in effects.refused_snapshots:
            self._report_snapshot(refused, taken=False)
            host.disk.files.remove(refused.path)
        if number:
            restored = effects.install is not None
            self._handle(Batch(persisted=number, restored=restored), host.local_time())

    def deliver(self, message: Message | Forwarded) -> None:
        """A message of another member has arrived."""
        if isinstance(message, Message):
            self.batch.messages.append(message)
        else:
            self.batch.forwarded.append(message)
        self.wake()

    def linked(self, member_id: int, *, is_up: bool) -> None:
        """The link to another member has come up or gone down."""
        self.batch.connected.append((member_id, is_up))
        if is_up:
            self.batch.versions.append((member_id, VERSION))
        self.wake()

    # --- snapshots ----------------------------------------------------------------------------------------

    def _copy_state(self, request: SnapshotRequest) -> None:
        """Copy the state for another member; the copy then travels for a while."""
        host, disk = self.host, self.host.disk
        path = disk.path(f"copy-{request.to:x}")
        try:
            copy = snapshot.make(self.database.path, path, vfs=disk.vfs_name, files=disk.files)
        except DiskFull:
            copy = None
        if copy is None:
            self._sent(request.to, False)
            return
        data = b"".join(disk.files.chunks(path))
        disk.files.remove(path)
        self.world.counts["snapshot made"] += 1
        self.world.trace(host.name, "sends a snapshot", str(copy.contents))
        self.world.after(host.draw.uniform(0.01, 2.0), self._carry, request, data, copy.contents)

    def _carry(self, request: SnapshotRequest, data: bytes, contents: snapshot.Contents) -> None:
        """The copy arrives, if its way is open and its receiver lives and has use for it."""
        host, receiver = self.host, self.host.cluster.all_hosts.get(request.to)
        is_cut = host.network.is_cut((host.member_id, request.to))
        if receiver is None or receiver.process is None or receiver.process.is_paused or is_cut:
            self.after(0.1, self._sent, request.to, False)
            return
        receiver.process.after(0.0, receiver.process.receive_snapshot, host, request, data, contents)

    def receive_snapshot(
        self, sender: Host, request: SnapshotRequest, data: bytes, contents: snapshot.Contents
    ) -> None:
        """A copy is here, whole."""
        host, disk = self.host, self.host.disk
        number = host.world.counts["snapshot arrived"] = host.world.counts["snapshot arrived"] + 1
        stands_for = Snapshot(contents.applied_index, contents.applied_term, contents.configuration)
        received = ReceivedSnapshot(
            number, disk.path(f"received-{number}"), sender.member_id, request.term, stands_for
        )
        self._arrived[number] = sender
        if self.engine.snapshots.refusal(sender.member_id, request.term, contents.applied_index) is not None:
            self._report_snapshot(received, taken=False)
            return
        try:
            disk.put(f"received-{number}", data)
        except DiskFull:
            disk.files.remove(received.path)
            self._report_snapshot(received, taken=False)
            return
        self.batch.snapshots_received.append(received)
        self.wake()

    def _report_snapshot(self, received: ReceivedSnapshot, *, taken: bool) -> None:
        self.world.counts["snapshot installed" if taken else "snapshot refused"] += 1
        sender = self._arrived.pop(received.number).process
        if sender is not None:
            sender.after(self.host.draw.uniform(0.001, 0.1), sender._sent, self.host.member_id, taken)

    def _sent(self, to: int, taken: bool) -> None:
        """How a snapshot for another member has ended."""
        self.batch.snapshots_sent.append((to, taken))
        self.wake()

    def _install(self, received: ReceivedSnapshot, readies: list[Ready]) -> int:
        """Put a snapshot in the place of state and log, between the writes before it and those behind it."""
        host, disk = self.host, self.host.disk
        self.world.trace(host.name, f"installs a snapshot of entry {received.snapshot.index}")
        gathered, self._unwritten = [*self._unwritten, *readies], []
        host.installing = received.snapshot.index
        if self.plan.power_cut_interval_s and host.draw.random() < 0.4:
            disk.cut_power_within(40)
        for ready in gathered:
            if ready.snapshot is not None:
                assert ready.snapshot == received.snapshot
                self.maintenance.close()
                self._opened.remove(self.maintenance)
                plan = Plan(received.path, ready.snapshot.index, ready.snapshot.term, ready.hard_state)
                self.installation.install(plan, self.database)
                self.maintenance = StateMaintenance.open(self.database.path, vfs=disk.vfs_name)
                self._opened.append(self.maintenance)
                host.synced_index = max(host.synced_index, ready.snapshot.index)
            self.log.append(ready.hard_state, ready.entries)
            host.invariants.written(host, self, ready.entries)
        self._report_snapshot(received, taken=True)
        return gathered[-1].number

    # --- the log writer -----------------------------------------------------------------------------------

    def _submit(self, readies: list[Ready]) -> int:
        """Have these written; the number of the last when that is done at once, otherwise 0."""
        self._unwritten.extend(readies)
        if self._writing:
            return 0
        if self.plan.inline_writes and self.host.draw.random() < 0.5 and not self._full:
            return self._write_now()
        self._writing = True
        self.after(self.host.write_latency_s(), self._write)
        return 0

    def _write_now(self) -> int:
        """Write what has gathered in one synced transaction; the number of its last Ready."""
        readies, self._unwritten = self._unwritten, []
        if not readies:
            return 0  # They were written along with a snapshot.
        hard_state = next((r.hard_state for r in reversed(readies) if r.hard_state is not None), None)
        entries = [entry for ready in readies for entry in ready.entries]
        try:
            self.log.append(hard_state, entries)
        except DiskFull:
            self._unwritten = readies + self._unwritten
            self.world.counts["write met a full disk"] += 1
            self._report("log", full=True)
            self._writing = True
            self.after(RETRY_FULL_DISK_S, self._write)
            return 0
        if "log" in self._full:
            self._report("log", full=False)
        self.host.invariants.written(self.host, self, entries)
        return readies[-1].number

    def _write(self) -> None:
        number = self._write_now()
        self._writing = bool(self._unwritten)
        if number:
            self._writing = False
            # The news takes a moment; the process may end in it.
            self.after(0.00005, self._persisted, number)
            if self._unwritten:
                self._writing = True
                self.after(self.host.write_latency_s(), self._write)

    def _persisted(self, number: int) -> None:
        self.batch.persisted = max(self.batch.persisted, number)
        self.wake()

    # --- the keeper ---------------------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        self._make_checkpoint()
        self.after(self.host.draw.uniform(0.5, 1.5) * self.plan.checkpoint_interval_s, self._checkpoint)

    def _make_checkpoint(self) -> None:
        with contextlib.suppress(DiskFull):
            done = self.maintenance.checkpoint()
            self.host.synced_index = max(self.host.synced_index, done.applied_index)
            self.world.counts["checkpoint"] += 1
            self.batch.durable_index = done.applied_index
            self._rest_is_short = done.left_size_bytes <= SHORT_REST_BYTES
            if self.host.draw.random() < 0.3:
                self.log.checkpoint()
                self.log.release_space(256)
            self.wake()

    def _cut(self) -> None:
        if self._cut_to >= self.log.first_index():
            with contextlib.suppress(DiskFull):
                self.host.invariants.cutting(self.host, self, self._cut_to)
                self.log.cut(self._cut_to)
                self.world.counts["log cut"] += 1

    def _watch_room(self) -> None:
        disk = self.host.disk
        if self.host.cluster.what_is_known_of(self.host)[1]:
            self.leave()
        free_bytes = LOWEST_ROOM_BYTES * 2
        if disk.capacity_bytes is not None:
            free_bytes = disk.capacity_bytes - sum(len(content) for content in disk.contents().values())
        if free_bytes < LOWEST_ROOM_BYTES:
            self._report("device", full=True)
        elif free_bytes >= 2 * LOWEST_ROOM_BYTES:
            self._report("device", full=False)
        self.after(KEEPER_INTERVAL_S, self._watch_room)

    def _report(self, finder: str, *, full: bool) -> None:
        (self._full.add if full else self._full.discard)(finder)
        self.batch.disk_full = bool(self._full)
        self.batch.log_full = "log" in self._full
        self.wake()

    # --- clients ------------------------------------------------------------------------------------------

    def call(self, call_id: int, path: str, request: Request, reply: Reply) -> None:
        """A unary request has arrived."""
        self.calls[call_id] = reply
        self.batch.calls.setdefault(path, []).append((call_id, request))
        self.wake()

    def cancel(self, call_id: int) -> None:
        """A client no longer waits for a call or a stream."""
        if self.calls.pop(call_id, None) is not None or self.streams.pop(call_id, None) is not None:
            self.batch.cancelled.append(call_id)
            self.wake()

    def open_stream(self, stream_id: int, path: str, stream: Stream) -> None:
        self.streams[stream_id] = stream
        self.batch.streams.append((STREAM_OPEN, stream_id, path))
        self.wake()

    def say(self, stream_id: int, request: Request) -> None:
        if stream_id in self.streams:
            self.batch.streams.append((STREAM_MESSAGE, stream_id, request))
            self.wake()

    def half_close(self, stream_id: int) -> None:
        if stream_id in self.streams:
            self.batch.streams.append((STREAM_HALF_CLOSE, stream_id, None))
            self.wake()

    def set_slow(self, stream_id: int, *, slow: bool) -> None:
        """The client stops or goes on reading a stream."""
        if stream_id in self.streams:
            self.batch.streams.append((STREAM_PAUSED if slow else STREAM_RESUMED, stream_id, None))
            self.wake()

    # --- the end ------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Answer those who wait, close the files."""
        effects = self.engine.stop()
        for call_id, answer in effects.answers:
            reply = self.calls.pop(call_id, None)
            if reply is not None:
                self.world.after(0.0005, reply, answer)
        for stream_id, error in effects.ended:
            stream = self.streams.pop(stream_id, None)
            if stream is not None:
                self.world.after(0.0005, stream.on_end, error)
        self._break_connections()
        for opened in reversed(self._opened):
            opened.close()
        self._opened.clear()

    def abandon(self) -> None:
        """The process has ended without a word."""
        self._break_connections()
        for opened in reversed(self._opened):
            with contextlib.suppress(StorageError, apsw.Error):
                opened.close()
        self._opened.clear()

    def _break_connections(self) -> None:
        for reply in self.calls.values():
            self.world.after(0.001, reply, None)
        for stream in self.streams.values():
            self.world.after(0.001, stream.on_end, None)
        self.calls.clear()
        self.streams.clear()
        for sender in self._arrived.values():
            if sender.process is not None:
                sender.process.after(0.1, sender.process._sent, self.host.member_id, False)
        self._arrived.clear()


def first_entries(members: list[int]) -> list[Entry]:
    """What every first member's log begins with."""
    return [
        Entry(
            index,
            1,
            EntryKind.CONF_CHANGE,
            command_pb2.ConfChange(
                kind=command_pb2.ConfChange.ADD_VOTER,
                member=rpc_pb2.Member(
                    ID=member_id, name=f"m{member_id}", peerURLs=[f"http://10.0.0.{member_id}:2380"]
                ),
            ).SerializeToString(deterministic=True),
        )
        for index, member_id in enumerate(members, start=1)
    ]
