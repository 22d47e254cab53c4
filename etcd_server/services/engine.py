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
   answered (`applier.py`), reads whose index has been applied are answered;
5. bounded background work gets a step (`upkeep.py`), and watchers are told.

Invariant: an answer to a change leaves only after its entry is committed and applied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from etcd_server.api import errors
from etcd_server.machine.apply import Machine
from etcd_server.machine.watchers import WatchHub
from etcd_server.raft.errors import ProposalDropped
from etcd_server.raft.log import LogStorage
from etcd_server.raft.messages import Ready
from etcd_server.raft.node import Node
from etcd_server.services.applier import Applier
from etcd_server.services.cluster import Cluster
from etcd_server.services.core import Core, Random, Settings
from etcd_server.services.events import STREAM_OPEN, Batch, Effects
from etcd_server.services.health import Health
from etcd_server.services.kv import KV
from etcd_server.services.leadership import Leadership
from etcd_server.services.lease import Lease
from etcd_server.services.maintenance import Maintenance
from etcd_server.services.proposals import Proposals, Waiter
from etcd_server.services.reads import Reads
from etcd_server.services.streams import STREAMS, Streams
from etcd_server.services.upkeep import Upkeep
from etcd_server.services.watch import CATCH_UP_ROWS, Watch
from etcd_server.storage.errors import StateRolledBack

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

UnaryHandler = Callable[[list[tuple[int, Any]]], None]


@dataclass(slots=True)
class Counters:
    """Plain numbers that the metrics page shows."""

    proposals_failed_total: int = 0
    leader_changes_total: int = 0
    reads_failed_total: int = 0


class Engine:
    """A member. `handle` is the whole of its life; `stop` ends it."""

    def __init__(
        self, *, settings: Settings, node: Node, log_storage: LogStorage, machine: Machine, random: Random
    ) -> None:
        first_id = random.getrandbits(31) << 32
        self.settings = settings
        self.node = node
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
        self.lease = Lease(self.core, self.reads, random)
        self.health = Health(self.core)
        cluster = Cluster(self.core, self.reads)
        maintenance = Maintenance(self.core, self.reads, node)
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
            "/etcdserverpb.Cluster/MemberList": cluster.member_list,
            "/etcdserverpb.Maintenance/Status": maintenance.status,
            "/etcdserverpb.Maintenance/Alarm": maintenance.alarm,
            "/grpc.health.v1.Health/Check": self.health.check,
        }
        assert {*self._unary, *STREAMS} == METHODS
        self.applier = Applier(self.core, node, log_storage, self.hub, self.lease)
        self._streams = Streams(self.hub, Watch(self.hub), self.lease, self.health)
        self._leadership = Leadership(self.core)
        self._upkeep = Upkeep(self.core, self.applier, self.hub, self.kv)

    @property
    def is_ready(self) -> bool:
        """The member knows a leader and its own name and client URLs have been applied: it can serve."""
        return self._leadership.is_published and self.core.leader_id != 0

    # --- a turn -------------------------------------------------------------------------------------------

    def handle(self, batch: Batch, now: float) -> Effects:
        """Take one batch, give its effects. `now`: seconds of a clock that only goes forward."""
        effects = Effects()
        self.core.answers = effects.answers
        self.lease.now = now
        if batch.disk_full is not None:
            self.core.disk_full = batch.disk_full
        if batch.log_full is not None:
            self.core.log_full = batch.log_full
        if batch.ticks:
            self._tick(batch.ticks, now)
        for message in batch.messages:
            self.node.step(message)
        if batch.persisted:
            self.node.advance(batch.persisted)
            self._drain(effects)
            if self.core.is_leader and not self._leadership.is_published:
                self._leadership.act(now)
        self._take_requests(batch, effects, now)
        if self._propose(now) or not batch.persisted:
            self._drain(effects)
        self._upkeep.step(effects, batch.durable_index, now)
        self._tell_watchers(effects, now)
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
            self._leadership.act(now)

    def _take_requests(self, batch: Batch, effects: Effects, now: float) -> None:
        for path, calls in batch.calls.items():
            self._unary[path](calls)
        self._streams.take(batch.streams, effects, now)
        for call_id in batch.cancelled:
            self._streams.close(call_id)

    def _tell_watchers(self, effects: Effects, now: float) -> None:
        self.hub.tick(now)
        effects.more_work |= self.hub.catch_up(CATCH_UP_ROWS)
        effects.deliveries.extend(self.hub.take_deliveries())
        self.health.deliver(effects)

    # --- raft ---------------------------------------------------------------------------------------------

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
                self.applier.apply(entry)
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
            self._leadership.end()
        core.is_leader = leads

    # --- the end ------------------------------------------------------------------------------------------

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
        self._streams.end_all(effects)
        with contextlib.suppress(StateRolledBack):
            # Where there is no room for it the next start applies it again, from the log.
            self.machine.commit()
        return effects
