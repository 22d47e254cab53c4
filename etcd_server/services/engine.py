"""One member as one object: `handle(batch, now) -> effects`.

The engine owns the raft node, the machine, the watch hub and the services, and is called by one thread. It
reads no clock, no socket and no random source of its own: everything comes in with the batch. What must
happen outside comes out as effects. Whoever calls it performs them in order and calls again; the shell does
so in real time, the simulator in virtual time.

A turn has five steps:

1. time: ticks, leases that have run out, time-outs;
2. news from the log and from the other members goes to raft;
3. requests are checked; reads are gathered, changes are put into one entry, which is proposed;
4. raft is drained: what it wants persisted and sent becomes effects, what is committed is applied and
   answered, reads whose index has been applied are answered;
5. watchers are told, and bounded background work gets a step.

Invariants: an answer to a change leaves only after its entry is committed and applied; the state database is
committed together with its applied_index; the log is never cut beyond a synced checkpoint of the state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.machine.watchers import WatchHub
from etcd_server.raft.confchange import ChangeKind, ConfChange
from etcd_server.raft.errors import ProposalDropped
from etcd_server.raft.log import LogStorage
from etcd_server.raft.messages import Entry, EntryKind, Ready
from etcd_server.raft.node import Node
from etcd_server.services.cluster import Cluster
from etcd_server.services.compactor import Compactor
from etcd_server.services.core import Core, Random, Settings
from etcd_server.services.events import (
    STREAM_HALF_CLOSE,
    STREAM_MESSAGE,
    STREAM_OPEN,
    STREAM_PAUSED,
    STREAM_RESUMED,
    Batch,
    Effects,
)
from etcd_server.services.health import Health
from etcd_server.services.kv import KV
from etcd_server.services.lease import Lease
from etcd_server.services.maintenance import Maintenance
from etcd_server.services.proposals import (
    ALARM,
    CLUSTER_VERSION,
    COMPACTION,
    MEMBER_ATTRIBUTES,
    Proposals,
    Waiter,
)
from etcd_server.services.reads import Reads
from etcd_server.services.watch import CATCH_UP_ROWS, Watch
from etcd_server.storage.errors import StateRolledBack

WATCH = "/etcdserverpb.Watch/Watch"
LEASE_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
STREAMS = (WATCH, LEASE_KEEP_ALIVE, HEALTH_WATCH)

# What a member serves, by gRPC path; any other RPC of etcd is answered UNIMPLEMENTED by the transport.
SERVED = {
    "etcdserverpb.KV": ("Range", "Put", "DeleteRange", "Txn", "Compact"),
    "etcdserverpb.Watch": ("Watch",),
    "etcdserverpb.Lease": ("LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"),
    "etcdserverpb.Cluster": ("MemberList",),
    "etcdserverpb.Maintenance": ("Status", "Alarm"),
    "grpc.health.v1.Health": ("Check", "Watch"),
}
METHODS = frozenset(f"/{service}/{method}" for service, methods in SERVED.items() for method in methods)

COMPACTION_STEP_ROWS = 1_000
RELEASE_STEP_PAGES = 256
# Free pages are used again by later writes; only what is more than this share of the file is given back.
FREE_SHARE = 1 / 8
REPLAY_BYTES = 4 * 1024 * 1024

# What a committed change of the membership means to raft.
RAFT_CHANGES = {
    command_pb2.ConfChange.ADD_VOTER: ChangeKind.ADD_VOTER,
    command_pb2.ConfChange.ADD_LEARNER: ChangeKind.ADD_LEARNER,
    command_pb2.ConfChange.REMOVE: ChangeKind.REMOVE,
    command_pb2.ConfChange.UPDATE: ChangeKind.NOTHING,
    command_pb2.ConfChange.PROMOTE: ChangeKind.ADD_VOTER,
}

UnaryHandler = Callable[[list[tuple[int, Any]]], None]


@dataclass(slots=True)
class Counters:
    """Plain numbers that the metrics page shows; counted by the batch."""

    proposals_committed_total: int = 0
    proposals_applied_total: int = 0
    proposals_failed_total: int = 0
    leader_changes_total: int = 0
    slow_apply_total: int = 0
    reads_failed_total: int = 0


class Engine:
    """A member. `handle` is the whole of its life; `stop` ends it."""

    def __init__(
        self, *, settings: Settings, node: Node, log_storage: LogStorage, machine: Machine, random: Random
    ) -> None:
        first_id = random.getrandbits(31) << 32
        self.settings = settings
        self.node = node
        self._log_storage = log_storage
        self.machine = machine
        self.counters = Counters()
        self.core = Core(settings, machine, Proposals(first_id, settings.request_timeout_s))
        self.reads = Reads(node, first_id, settings.request_timeout_s)
        self.hub = WatchHub(
            machine,
            self.core.header,
            max_request_bytes=settings.max_request_bytes,
            progress_interval_s=settings.progress_notify_interval_s,
        )
        self.kv = KV(self.core, self.reads)
        self.watch = Watch(self.hub)
        self.lease = Lease(self.core, self.reads, random)
        self.cluster = Cluster(self.core, self.reads)
        self.maintenance = Maintenance(self.core, self.reads, node)
        self._compactor = Compactor(settings.auto_compaction_mode, settings.auto_compaction_retention)
        self.health = Health(self.core)
        self._unary: dict[str, UnaryHandler] = {
            "/etcdserverpb.KV/Range": self.kv.range,
            "/etcdserverpb.KV/Put": self.kv.put,
            "/etcdserverpb.KV/DeleteRange": self.kv.delete_range,
            "/etcdserverpb.KV/Txn": self.kv.txn,
            "/etcdserverpb.KV/Compact": self.kv.compact,
            "/etcdserverpb.Lease/LeaseGrant": self.lease.grant,
            "/etcdserverpb.Lease/LeaseRevoke": self.lease.revoke,
            "/etcdserverpb.Lease/LeaseTimeToLive": self.lease.time_to_live,
            "/etcdserverpb.Lease/LeaseLeases": self.lease.leases,
            "/etcdserverpb.Cluster/MemberList": self.cluster.member_list,
            "/etcdserverpb.Maintenance/Status": self.maintenance.status,
            "/etcdserverpb.Maintenance/Alarm": self.maintenance.alarm,
            "/grpc.health.v1.Health/Check": self.health.check,
        }
        assert {*self._unary, *STREAMS} == METHODS
        self._streams: dict[int, str] = {}
        self._committed_s = 0.0
        self._published = False
        self._publishing = False
        self._version_proposed = False
        self._alarm_proposed = False
        self._compacting = machine.compaction_pending
        self._releasing = False
        self._cut_to = 0

    @property
    def is_ready(self) -> bool:
        """The member knows a leader and its own name and client URLs have been applied: it can serve."""
        return self._published and self.core.leader_id != 0

    @property
    def is_idle(self) -> bool:
        """Nobody waits for anything."""
        return not len(self.core.proposals) and not self._streams

    # --- a turn
    # -----------------------------------------------------------------------------------------------

    def handle(self, batch: Batch, now: float) -> Effects:
        """Take one batch, give its effects. `now`: seconds of a clock that only goes forward."""
        effects = Effects()
        self.core.answers = effects.answers
        self.lease.now = now
        if batch.disk_full is not None:
            self.core.disk_full = batch.disk_full
        if batch.ticks:
            self._tick(batch.ticks, now)
        for message in batch.messages:
            self.node.step(message)
        if batch.persisted:
            self.node.advance(batch.persisted)
            self._drain(effects)
            if self.core.is_leader and not self._publishing:
                self._lead(now)
        self._take_requests(batch, effects, now)
        if self._propose(now) or not batch.persisted:
            self._drain(effects)
        self._tell_watchers(effects, now)
        self._background(batch, effects, now)
        return effects

    def _tick(self, ticks: int, now: float) -> None:
        for _ in range(ticks):
            self.node.tick()
        core = self.core
        core.space_exceeded = 0 < self.settings.quota_bytes <= self.machine.database.size_bytes
        self.lease.expire()
        for waiter in core.proposals.expired(now):
            self.counters.proposals_failed_total += 1
            core.answer(waiter, errors.TimedOut())
        for _, call_id, _ in self.reads.expired(now):
            self.counters.reads_failed_total += 1
            core.answer(call_id, errors.TimedOut())
        if core.is_leader:
            self._lead(now)

    def _lead(self, now: float) -> None:
        """What only the leader proposes of itself."""
        core, machine = self.core, self.machine
        if not self._publishing and machine.applied_term == core.header.term:
            self._publishing = True
            self._publish()
        if not self._version_proposed and machine.cluster_version != self.settings.cluster_version:
            self._version_proposed = True
            core.propose(
                CLUSTER_VERSION, command_pb2.ClusterVersion(version=self.settings.cluster_version), None
            )
        if core.refused_for_space and not machine.alarms.no_space and not self._alarm_proposed:
            self._alarm_proposed = True
            alarm = rpc_pb2.AlarmRequest(
                action=rpc_pb2.AlarmRequest.ACTIVATE, memberID=self.settings.member_id, alarm=rpc_pb2.NOSPACE
            )
            core.propose(ALARM, alarm, self._alarm_applied)
        revision = self._compactor.due(machine.revision, now)
        if revision > machine.compacted_revision:
            core.propose(COMPACTION, rpc_pb2.CompactionRequest(revision=revision), None)

    def _publish(self) -> None:
        """Make known what this member is called and where clients find it, unless it is known already: a
        member that was started again on a full disk could not."""
        settings = self.settings
        known = self.machine.members.get(settings.member_id)
        if known is not None and (known.name, tuple(known.clientURLs)) == (
            settings.member_name,
            settings.client_urls,
        ):
            self._published = True
            return
        attributes = command_pb2.MemberAttributes(
            member_id=settings.member_id, name=settings.member_name, client_urls=settings.client_urls
        )
        self.core.propose(MEMBER_ATTRIBUTES, attributes, self._attributes_applied)

    def _attributes_applied(self, outcome: object) -> None:
        self._published = not isinstance(outcome, errors.EtcdError)
        self._publishing = self._published

    def _alarm_applied(self, outcome: object) -> None:
        self.core.refused_for_space = self._alarm_proposed = False

    def _take_requests(self, batch: Batch, effects: Effects, now: float) -> None:
        for path, calls in batch.calls.items():
            self._unary[path](calls)
        for kind, stream_id, payload in batch.streams:
            self._take_stream_event(kind, stream_id, payload, effects, now)
        for call_id in batch.cancelled:
            self._close_stream(call_id)

    def _take_stream_event(
        self, kind: int, stream_id: int, payload: Any, effects: Effects, now: float
    ) -> None:
        if kind == STREAM_OPEN:
            self._streams[stream_id] = payload
            if payload == WATCH:
                self.hub.open_stream(stream_id)
            return
        path = self._streams.get(stream_id)
        if path is None:
            return
        if kind == STREAM_MESSAGE:
            if path == WATCH:
                self.watch.request(stream_id, payload, now)
            elif path == LEASE_KEEP_ALIVE:
                self.lease.keep_alive(stream_id, payload, effects)
            else:
                self.health.watch(stream_id, payload)
        elif kind == STREAM_HALF_CLOSE and path == LEASE_KEEP_ALIVE:
            effects.ended.append((stream_id, None))
            self._close_stream(stream_id)
        elif kind == STREAM_PAUSED and path == WATCH:
            self.hub.pause(stream_id)
        elif kind == STREAM_RESUMED and path == WATCH:
            self.hub.resume(stream_id)

    def _close_stream(self, stream_id: int) -> None:
        path = self._streams.pop(stream_id, None)
        if path == WATCH:
            self.hub.close_stream(stream_id)
        elif path == HEALTH_WATCH:
            self.health.close(stream_id)

    # --- raft
    # -------------------------------------------------------------------------------------------------

    def _propose(self, now: float) -> bool:
        """Hand the turn's changes and reads to raft; whether there were any."""
        core, any_at_all = self.core, self.reads.are_gathered
        for proposal_id, data in core.proposals.take(now):
            any_at_all = True
            try:
                self.node.propose(data)
            except ProposalDropped:
                self._refuse(core.proposals.pop(proposal_id))
        for _, call_id, _ in self.reads.ask(now):
            core.answers.append((call_id, errors.NoLeader()))
        return any_at_all

    def _refuse(self, waiters: Iterable[Waiter]) -> None:
        for waiter in waiters:
            self.counters.proposals_failed_total += 1
            self.core.answer(waiter, errors.NoLeader())

    def _drain(self, effects: Effects) -> None:
        """Take from raft until it has nothing more to say."""
        while (ready := self.node.ready()) is not None:
            if ready.must_persist:
                effects.persist.append(ready)
            effects.send.extend(ready.messages)
            self._follow_leader(ready)
            for entry in ready.committed_entries:
                self._apply(entry)
            self.reads.confirmed(ready.read_states)
        self.reads.serve(self.machine.applied_index)

    def _follow_leader(self, ready: Ready) -> None:
        core = self.core
        if ready.term is not None:
            core.header.set_term(ready.term)
        if ready.leader_id is None:
            return
        core.leader_id = ready.leader_id
        if ready.leader_id:
            self.counters.leader_changes_total += 1
        leads = ready.leader_id == self.settings.member_id
        if leads and not core.is_leader:
            self.lease.promote()
        elif core.is_leader and not leads:
            self.lease.demote()
            self._compactor.reset()
        core.is_leader = leads

    def _apply(self, entry: Entry) -> None:
        """Apply one committed entry, and answer those who wait for it."""
        self.counters.proposals_committed_total += 1
        try:
            self._perform(entry)
        except StateRolledBack:
            self._replay(entry.index - 1)
            self._perform(entry)
        self.counters.proposals_applied_total += 1

    def _perform(self, entry: Entry) -> None:
        core, machine = self.core, self.machine
        if entry.kind == EntryKind.NORMAL:
            batch = command_pb2.Batch.FromString(entry.data)
            outcomes = machine.apply(entry.index, entry.term, batch.commands)
            header, answers = core.header, core.answers
            for waiter, outcome in zip(core.proposals.pop(batch.proposal_id), outcomes, strict=False):
                # The common case, a call answered with success, is written out: it is paid for each put.
                if type(waiter) is int and type(outcome) is tuple:
                    answers.append((waiter, header(outcome[0]) + outcome[1]))
                else:
                    core.answer(waiter, outcome)
            self.lease.applied()
            self.hub.notify(machine.take_changes())
        elif entry.kind == EntryKind.CONF_CHANGE:
            change = command_pb2.ConfChange.FromString(entry.data)
            refused = isinstance(machine.apply_conf_change(entry.index, entry.term, change), errors.EtcdError)
            kind = ChangeKind.NOTHING if refused else RAFT_CHANGES[change.kind]
            self.node.apply_conf_change(ConfChange(kind, change.member.ID))
        else:
            machine.apply(entry.index, entry.term, ())

    def _replay(self, up_to_index: int) -> None:
        """Bring the state back to where it was: a full disk took the open transaction, the log still has it
        all.

        Nobody is told anything again. A second failure is not caught: the process ends, and the next start
        replays."""
        machine = self.machine
        while machine.applied_index < up_to_index:
            for entry in self._log_storage.entries(machine.applied_index + 1, up_to_index + 1, REPLAY_BYTES):
                if entry.kind == EntryKind.NORMAL:
                    machine.apply(entry.index, entry.term, command_pb2.Batch.FromString(entry.data).commands)
                elif entry.kind == EntryKind.CONF_CHANGE:
                    change = command_pb2.ConfChange.FromString(entry.data)
                    machine.apply_conf_change(entry.index, entry.term, change)
                else:
                    machine.apply(entry.index, entry.term, ())
            machine.take_changes()
            machine.take_lease_changes()
            machine.commit()

    # --- watchers and background
    # ------------------------------------------------------------------------------

    def _tell_watchers(self, effects: Effects, now: float) -> None:
        hub = self.hub
        if self.machine.compaction_pending and not self._compacting:
            self._compacting = True
            hub.compacted(self.machine.compacted_revision)
        hub.tick(now)
        effects.more_work = hub.catch_up(CATCH_UP_ROWS)
        effects.deliveries.extend(hub.take_deliveries())
        self.health.deliver(effects)

    def _background(self, batch: Batch, effects: Effects, now: float) -> None:
        """Bounded steps of what need not be done at once: compaction, the commit of the state, the cut of the
        log."""
        if self._compacting:
            self._compact(effects)
        elif self._releasing:
            self._release(effects)
        if (
            self.machine.database.in_transaction
            and now - self._committed_s >= self.settings.commit_interval_s
        ):
            self.commit(now)
            effects.committed = True
        if batch.durable_index:
            cut_to = min(batch.durable_index, self.machine.applied_index - self.settings.catch_up_entries)
            if cut_to - self._cut_to >= self.settings.snapshot_count:
                self._cut_to = effects.cut_log_to = cut_to

    def _compact(self, effects: Effects) -> None:
        applied_index = self.machine.applied_index
        try:
            self._compacting = self.machine.compact_step(COMPACTION_STEP_ROWS)
        except StateRolledBack:
            self._replay(applied_index)
            return
        if self._compacting:
            effects.more_work = True
        else:
            self.kv.compaction_finished()
            self._releasing = True

    def _release(self, effects: Effects) -> None:
        """Give what compaction has freed back to the file system, a step a turn."""
        database, applied_index = self.machine.database, self.machine.applied_index
        size_bytes = database.size_bytes
        self._releasing = size_bytes - database.size_in_use_bytes > size_bytes * FREE_SHARE
        if not self._releasing:
            return
        try:
            effects.more_work = self._releasing = database.release_space(RELEASE_STEP_PAGES) > 0
        except StateRolledBack:
            self._releasing = False
            self.machine.reload()
            self._replay(applied_index)

    def commit(self, now: float) -> None:
        """Commit the state database: what was applied, and applied_index, in one transaction."""
        applied_index = self.machine.applied_index
        try:
            self.machine.commit()
        except StateRolledBack:
            self._replay(applied_index)
        self._committed_s = now

    def turn_away(self, batch: Batch, now: float) -> Effects:
        """A turn of a member that stops: what is under way goes on, nothing new is taken."""
        calls = [call_id for group in batch.calls.values() for call_id, _ in group]
        opened = [stream_id for kind, stream_id, _ in batch.streams if kind == STREAM_OPEN]
        batch.calls, batch.streams = {}, []
        effects = self.handle(batch, now)
        effects.answers.extend((call_id, errors.Stopped()) for call_id in calls)
        effects.ended.extend((stream_id, errors.Stopped()) for stream_id in opened)
        return effects

    def stop(self) -> Effects:
        """The member stops: everyone who waits is told, streams end."""
        effects = Effects()
        core = self.core
        core.answers = effects.answers
        for waiter in core.proposals.drop_all():
            core.answer(waiter, errors.Stopped())
        for _, call_id, _ in self.reads.drop_all():
            core.answer(call_id, errors.Stopped())
        effects.ended.extend((stream_id, errors.Stopped()) for stream_id in self._streams)
        with contextlib.suppress(StateRolledBack):
            # Where there is no room for it the next start applies it again, from the log.
            self.machine.commit()
        return effects
