"""One member as one object: `handle(batch, now) -> effects`.

The engine owns the raft node, the machine, the watch hub and the services, and is called by one thread. It
reads no clock, no socket and no random source of its own: everything comes in with the batch. What must
happen outside comes out as effects. Whoever calls it performs them in order and calls again; the shell does
so in real time, the simulator in virtual time.

A turn has five steps:

1. news from the clock, from the log and from the other members goes to raft; who leads is known then;
2. time-outs, leases that have run out, what the member says of itself;
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
from math import inf
from typing import Any

from etcd_server.api import errors
from etcd_server.api.methods import METHODS as RPCS
from etcd_server.machine.apply import Machine
from etcd_server.machine.watchers import WatchHub
from etcd_server.raft.errors import ProposalDropped
from etcd_server.raft.log import LogStorage
from etcd_server.raft.messages import InstallSnapshot
from etcd_server.raft.node import Node
from etcd_server.services.announcements import Announcements
from etcd_server.services.applier import Applier
from etcd_server.services.cluster import Cluster
from etcd_server.services.core import Core, Random, Settings
from etcd_server.services.events import STREAM_OPEN, Batch, Effects
from etcd_server.services.forwarding import Forwarding, Servable
from etcd_server.services.hashes import Hashes
from etcd_server.services.health import Health
from etcd_server.services.kv import KV
from etcd_server.services.leadership import Leadership
from etcd_server.services.lease import KEEP_ALIVE, LEASES, TIME_TO_LIVE, Lease
from etcd_server.services.maintenance import Maintenance
from etcd_server.services.proposals import Proposals, Waiter
from etcd_server.services.reads import Reads
from etcd_server.services.snapshots import Snapshots
from etcd_server.services.streams import STREAMS, Streams
from etcd_server.services.upkeep import Upkeep
from etcd_server.services.watch import CATCH_UP_ROWS, Watch
from etcd_server.storage.errors import StateRolledBack

# What a member serves, by gRPC path; any other RPC of etcd is answered UNIMPLEMENTED by the transport.
SERVED = {
    "etcdserverpb.KV": ("Range", "Put", "DeleteRange", "Txn", "Compact"),
    "etcdserverpb.Watch": ("Watch",),
    "etcdserverpb.Lease": ("LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"),
    "etcdserverpb.Cluster": ("MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"),
    "etcdserverpb.Maintenance": ("Status", "Alarm", "MoveLeader", "Hash", "HashKV"),
    "grpc.health.v1.Health": ("Check", "Watch"),
}
METHODS = frozenset(f"/{service}/{method}" for service, methods in SERVED.items() for method in methods)

RANGE = "/etcdserverpb.KV/Range"
# Looking at a learner is always allowed; etcd refuses the hashes, by which one sees how good its copy is.
FOR_LEARNERS = frozenset(f"/etcdserverpb.Maintenance/{method}" for method in ("Status", "Hash", "HashKV"))

# How long followers that wait for nothing may be left without news of what is committed: the next entries
# carry it, mostly come sooner, and spare every member a message, its answer and the turns for both.
COMMIT_NEWS_S = 0.0005

LONGEST_ASSEMBLY_S = 5.0
"""How long after the start of this member the others may come for the first election to be shortened."""

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
        self.forwarding = Forwarding(self.core, first_id)
        self.hub = WatchHub(
            machine,
            self.core.header,
            max_request_bytes=settings.max_request_bytes,
            progress_interval_s=settings.progress_notify_interval_s,
        )
        self.kv = KV(self.core, self.reads)
        self.lease = Lease(self.core, self.reads, self.forwarding, random)
        self.health = Health(self.core)
        self.cluster = Cluster(self.core, self.reads, node, self.forwarding)
        self.maintenance = Maintenance(self.core, self.reads, node)
        self.hashes = Hashes(self.core)
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
            **self.cluster.handlers,
            "/etcdserverpb.Maintenance/Status": self.maintenance.status,
            "/etcdserverpb.Maintenance/Alarm": self.maintenance.alarm,
            "/etcdserverpb.Maintenance/MoveLeader": self.maintenance.move_leader,
            "/etcdserverpb.Maintenance/Hash": self.hashes.hash,
            "/etcdserverpb.Maintenance/HashKV": self.hashes.hash_kv,
            "/grpc.health.v1.Health/Check": self.health.check,
        }
        assert {*self._unary, *STREAMS} == METHODS
        self.applier = Applier(self.core, node, log_storage, self.hub, self.lease)
        for_other_members: dict[str, UnaryHandler] = {
            KEEP_ALIVE: self.lease.renew,
            TIME_TO_LIVE: self.lease.time_to_live,
            LEASES: self.lease.leases,
            **self.cluster.changes,
        }
        self.forwarding.servable = {
            path: Servable(RPCS[path].request.FromString, handler)
            for path, handler in for_other_members.items()
        }
        self._streams = Streams(self.core, self.hub, Watch(self.hub), self.lease, self.health)
        self._leadership = Leadership(self.core)
        self._announcements = Announcements(self.core)
        self._seen_term = machine.applied_term
        self._initial_ticks = settings.initial_ticks
        self._begun_s = inf
        self.snapshots = Snapshots(self.core, node, self.applier, self.hub)
        self._upkeep = Upkeep(self.core, self.applier, self.hub, self.kv, self.snapshots)
        self._owes_commit_since_s: float | None = None
        self.core.members_changed()

    @property
    def is_ready(self) -> bool:
        """The member knows a leader and its own name and client URLs have been applied: it can serve."""
        return self._announcements.is_published and self.core.leader_id != 0

    # --- a turn -------------------------------------------------------------------------------------------

    def handle(self, batch: Batch, now: float) -> Effects:
        """Take one batch, give its effects. `now`: seconds of a clock that only goes forward."""
        core = self.core
        self._begun_s = min(self._begun_s, now)
        effects = core.effects = Effects()
        core.answers = effects.answers
        self.lease.now = self.cluster.now = self.maintenance.now = self.snapshots.now = now
        self.cluster.unix_time_s = batch.unix_time_s
        if batch.disk_full is not None:
            core.disk_full = batch.disk_full
        if batch.log_full is not None:
            core.log_full = batch.log_full
        if batch.restored:
            self.snapshots.restored()
            self._upkeep.restored()
        self._tell_raft(batch, now)
        if batch.ticks:
            self._tick(effects, now)
        self.forwarding.take(batch.forwarded)
        self._take_requests(batch, effects, now)
        self._propose(now)
        self._drain(effects, now)
        if not self._announcements.is_published and core.leader_id:
            self._speak(now)
            if self._propose(now):
                self._drain(effects, now)
        self.snapshots.settle(effects)
        self.forwarding.collect()
        self._upkeep.step(effects, batch.durable_index, now)
        self.hashes.step(effects)
        self._tell_watchers(effects, now)
        for stream_id, _ in effects.ended:
            self._streams.close(stream_id)
        return effects

    def _tell_raft(self, batch: Batch, now: float) -> None:
        """What has happened outside since the last turn, and what that means for who leads."""
        core, node = self.core, self.node
        for member_id, version in batch.versions:
            core.peers.told_version(member_id, version)
        for member_id, is_up in batch.connected:
            core.peers.connected(member_id, is_up=is_up, now=now)
            if not is_up:
                node.report_unreachable(member_id)
        self.snapshots.sent(batch.snapshots_sent)
        if self._initial_ticks and (batch.connected or batch.ticks):
            self._shorten_first_election(now)
        for _ in range(batch.ticks):
            node.tick()
        for message in batch.messages:
            # Without its file this one would leave the member without a state; see `snapshots.py`.
            if type(message) is not InstallSnapshot:
                node.step(message)
        if batch.persisted:
            node.advance(batch.persisted)
        self.snapshots.receive(batch.snapshots_received)
        if node.leader_id != core.leader_id or node.term != core.header.term:
            self._follow_leader(now)

    def _shorten_first_election(self, now: float) -> None:
        """Once after the start, when there are links to others and yet no leader has been heard: let most
        of the election time-out have passed (etcd: server/etcdserver/server.go adjustTicks)."""
        core = self.core
        if core.leader_id or now - self._begun_s > LONGEST_ASSEMBLY_S:
            self._initial_ticks = 0
            return
        own_id = self.settings.member_id
        others = [member.ID for member in self.machine.members.all() if own_id != member.ID]
        present = sum(core.peers.is_connected(number) for number in others)
        if present > 1 or 0 < present == len(others):
            ticks, self._initial_ticks = self._initial_ticks, 0
            for _ in range(ticks):
                self.node.tick()

    def _follow_leader(self, now: float) -> None:
        core, leader_id, term = self.core, self.node.leader_id, self.node.term
        led = core.is_leader and (leader_id != core.leader_id or term != core.header.term)
        if led:
            core.is_leader = False
            self.lease.demote()
            self._leadership.end()
        core.header.set_term(term)
        if not leader_id:
            core.leaderless_s = now
        elif leader_id != core.leader_id:
            self.counters.leader_changes_total += 1
            core.elected_s = now
            self.reads.repeat(now, after_s=0.0)
        core.leader_id = leader_id
        self.forwarding.leader_changed()
        core.proposals.retry()
        if leader_id == self.settings.member_id:
            core.is_leader = True
            self.lease.promote()

    def _tick(self, effects: Effects, now: float) -> None:
        core = self.core
        core.space_exceeded = 0 < self.settings.quota_bytes <= self.machine.database.size_bytes
        for begun_s, waiter in core.proposals.expired(now):
            self.counters.proposals_failed_total += 1
            core.answer(waiter, core.timed_out(begun_s))
        core.proposals.retry()
        self.reads.repeat(now)
        for _, call_id, _ in self.reads.expired(now):
            self.counters.reads_failed_total += 1
            self._refuse(call_id, errors.TimedOut(), effects)
        self.forwarding.tick(now)
        self.cluster.tick()
        self.maintenance.tick()
        self.snapshots.tick()
        self._streams.tick(effects, now)
        if core.is_leader:
            self.lease.expire()
        if core.leader_id:
            self._speak(now)

    def _speak(self, now: float) -> None:
        """Propose what the member has to say of itself, or because it leads."""
        if self.core.is_leader:
            self._leadership.act(now)
        self._announcements.act()

    def _refuse(self, call_id: int, error: errors.EtcdError, effects: Effects) -> None:
        if call_id in self._streams:
            effects.ended.append((call_id, error))
        else:
            effects.answers.append((call_id, error))

    def _take_requests(self, batch: Batch, effects: Effects, now: float) -> None:
        if self.core.is_learner:
            self._turn_learners_clients_away(batch, effects)
        if batch.requiring_leader and not self.core.leader_id:
            requiring = set(batch.requiring_leader)
            self._refuse_calls(batch, effects, errors.NoLeader(), lambda _, call: call[0] in requiring)
        for path, calls in batch.calls.items():
            self._unary[path](calls)
        self._streams.take(batch.streams, effects, now)
        for call_id in batch.cancelled:
            self._streams.close(call_id)
        self.hashes.drop(batch.cancelled)

    def _turn_learners_clients_away(self, batch: Batch, effects: Effects) -> None:
        """What a learner does not do for clients (etcd: isRPCSupportedForLearner). The member's own calls,
        with negative ids, pass."""
        refusal = errors.NotSupportedForLearner()
        as_json = frozenset(batch.gateway_calls)

        def is_refused(path: str, call: tuple[int, Any]) -> bool:
            return (call[0] > 0 or call[0] in as_json) and not (
                path in FOR_LEARNERS or (path == RANGE and call[1].serializable)
            )

        self._refuse_calls(batch, effects, refusal, is_refused)
        opened = {stream_id for kind, stream_id, _ in batch.streams if kind == STREAM_OPEN}
        if opened:
            effects.ended += [(stream_id, refusal) for stream_id in sorted(opened)]
            batch.streams = [event for event in batch.streams if event[1] not in opened]

    @staticmethod
    def _refuse_calls(
        batch: Batch,
        effects: Effects,
        refusal: errors.EtcdError,
        is_refused: Callable[[str, tuple[int, Any]], bool],
    ) -> None:
        """Answer some of the batch's calls with an error, and take them out of it."""
        for path, calls in batch.calls.items():
            effects.answers += [(call[0], refusal) for call in calls if is_refused(path, call)]
            batch.calls[path] = [call for call in calls if not is_refused(path, call)]

    def _tell_watchers(self, effects: Effects, now: float) -> None:
        self.hub.tick(now)
        effects.more_work |= self.hub.catch_up(CATCH_UP_ROWS)
        effects.deliveries.extend(self.hub.take_deliveries())
        self.health.deliver(effects)

    # --- raft ---------------------------------------------------------------------------------------------

    def _propose(self, now: float) -> bool:
        """Hand the turn's changes, reads and forwarded calls over; whether raft has taken any."""
        self.forwarding.act(now)
        proposals = self.core.proposals
        proposals.seal(now)
        any_at_all = False
        while (sealed := proposals.next_sealed()) is not None:
            if sealed.is_own and not self.core.is_leader:
                self._fail(proposals.refused(), errors.NotLeader())
                continue
            try:
                self.node.propose(sealed.data)
            except ProposalDropped:
                if sealed.is_own:
                    self._fail(proposals.refused(), errors.NotLeader())
                    continue
                self._fail(proposals.overflow(), errors.TooManyRequests())
                break
            proposals.taken(self.node.term)
            any_at_all = True
        any_at_all |= self.cluster.propose()
        return self.reads.ask(now) or any_at_all

    def _fail(self, waiters: Iterable[Waiter], error: errors.EtcdError) -> None:
        for waiter in waiters:
            self.counters.proposals_failed_total += 1
            self.core.answer(waiter, error)

    def _drain(self, effects: Effects, now: float) -> None:
        """Take from raft until it has nothing more to say."""
        node, since_s = self.node, self._owes_commit_since_s
        tell_commit = since_s is not None and now - since_s >= COMMIT_NEWS_S
        while (ready := node.ready(tell_commit=tell_commit)) is not None:
            if ready.must_persist:
                effects.persist.append(ready)
            if ready.snapshot is not None:
                self.snapshots.install(ready.snapshot, effects)
            if ready.messages:
                self.snapshots.ask(ready.messages, effects)
            for entry in ready.committed_entries:
                self.applier.apply(entry)
            self.reads.confirmed(ready.read_states)
            if ready.refused:
                self.forwarding.refuse(ready.refused)
        if not node.owes_commit:
            self._owes_commit_since_s = None
        else:
            self._owes_commit_since_s = now if since_s is None or tell_commit else since_s
            effects.again_within_s = COMMIT_NEWS_S
        if self.machine.applied_term != self._seen_term:
            self._seen_term = self.machine.applied_term
            self._fail(self.core.proposals.lost(self._seen_term), errors.LeaderChanged())
        self.reads.serve(self.machine.applied_index)

    # --- the end ------------------------------------------------------------------------------------------

    def hand_over(self) -> bool:
        """Have the most caught-up of the other voters lead from now on, if this member leads; whether that
        is under way: it has happened when `core.is_leader` is False."""
        if not self.core.is_leader:
            return False
        status, peers = self.node.status, self.core.peers
        reached = [
            peer
            for peer in status.peers
            if peer.member_id in status.configuration.voters
            and (peer.recently_active or peers.is_connected(peer.member_id))
        ]
        if not reached:
            return False
        self.node.transfer_leadership(max(reached, key=lambda peer: peer.match_index).member_id)
        return True

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
        core = self.core
        effects = core.effects = Effects()
        core.answers = effects.answers
        for waiter in core.proposals.drop_all():
            core.answer(waiter, errors.Stopped())
        for _, call_id, _ in self.reads.drop_all():
            if call_id not in self._streams:
                core.answer(call_id, errors.Stopped())
        self.cluster.stop()
        self.maintenance.stop()
        self.hashes.stop()
        self.forwarding.drop_all()
        self.forwarding.collect()
        self._streams.end_all(effects)
        with contextlib.suppress(StateRolledBack):
            # Where there is no room for it the next start applies it again, from the log.
            self.machine.commit()
        return effects
