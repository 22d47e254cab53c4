"""The operational pages of a member, put together: what it knows of itself, the reads that a page rests on,
metrics.

`operations.py` decides what a page says; here the facts are gathered from the engine. A page that needs reads
is answered when the engine has answered them, in the same turn or a later one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from etcd_server.api.errors import EtcdError, NoLeader
from etcd_server.api.proto import rpc_pb2
from etcd_server.services.engine import Engine
from etcd_server.services.events import Batch
from etcd_server.transport import operations, v2members
from etcd_server.transport.answers import HttpAnswer
from etcd_server.transport.metrics import DISK_BUCKETS_S, Histogram, Metrics, MetricsSnapshot
from etcd_server.transport.operations import HealthSnapshot, Read, Versions
from etcd_server.transport.peers import Links
from etcd_server.transport.snapshot_files import SnapshotFiles
from etcd_server.transport.wire import Transport

Respond = Callable[[HttpAnswer], None]

RANGE = "/etcdserverpb.KV/Range"
# What /health and its like read: etcd asks for a key that need not be there.
HEALTH_KEY = b"health"


@dataclass(slots=True)
class Durations:
    """Histograms that the shell feeds, once for a batch."""

    log_sync: Histogram = field(default_factory=lambda: Histogram(DISK_BUCKETS_S))
    state_commit: Histogram = field(default_factory=lambda: Histogram(DISK_BUCKETS_S))


def timed(histogram: Histogram) -> Callable[[Callable[[], object]], object]:
    """Runs a function and observes how long it took, in s."""

    def run(function: Callable[[], object]) -> object:
        begun_s = time.monotonic()
        result = function()
        histogram.observe(time.monotonic() - begun_s)
        return result

    return run


class Pages:
    """/health, /livez, /readyz, /version, /metrics and the lists of members of one member."""

    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        links: Links,
        files: SnapshotFiles,
        durations: Durations,
        own_version: str,
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._links = links
        self._files = files
        self._durations = durations
        self._own_version = own_version
        self._metrics = Metrics(self._snapshot)
        self._health_answers = {True: 0, False: 0}
        self._checks_last: dict[tuple[str, ...], float] = {}
        self._checks: dict[tuple[str, ...], float] = {}

    def answer(self, batch: Batch, method: str, target: str, respond: Respond) -> None:
        """Answer one request, once the reads that it needs are answered; they are added to the batch."""
        needed = sorted(operations.checks_needed(method, target), key=lambda read: read.value)
        errors: dict[Read, str | None] = {}

        def answered(read: Read, answer: bytes | EtcdError) -> None:
            errors[read] = answer.text if isinstance(answer, EtcdError) else None
            if len(errors) == len(needed):
                respond(self._page(method, target, errors))

        if Read.LINEARIZABLE in needed and not self._engine.core.leader_id:
            # It would wait for a leader, longer than whoever asks for this page.
            errors[Read.LINEARIZABLE] = NoLeader.text
        if len(errors) == len(needed):
            respond(self._page(method, target, errors))
        for read in needed:
            if read in errors:
                continue
            request = rpc_pb2.RangeRequest(
                key=HEALTH_KEY, keys_only=True, serializable=read is Read.SERIALIZABLE
            )
            self._transport.ask(batch, RANGE, request, partial(answered, read))

    def answer_members(
        self,
        batch: Batch,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        respond: Respond,
    ) -> None:
        """Answer one request about the members; a change is added to the batch as a call."""
        asked = v2members.ask(method, target, headers, body, self._membership())
        if isinstance(asked, HttpAnswer):
            respond(asked)
            return
        call = asked

        def answered(outcome: bytes | EtcdError) -> None:
            respond(v2members.answer(call, outcome, self._membership(call.member_id)))

        self._transport.ask(batch, call.path, call.request, answered)

    def _membership(self, member_id: int = 0) -> v2members.Membership:
        engine = self._engine
        members = engine.machine.members
        removed = frozenset({member_id} if members.is_removed(member_id) else ())
        return v2members.Membership(engine.settings.cluster_id, engine.core.leader_id, members.all(), removed)

    def _page(self, method: str, target: str, errors: dict[Read, str | None]) -> HttpAnswer:
        engine = self._engine
        health = HealthSnapshot(
            has_leader=engine.core.leader_id != 0,
            is_learner=engine.core.is_learner,
            alarms=tuple(rpc_pb2.AlarmType.Name(alarm.alarm) for alarm in engine.machine.alarms.all()),
            serializable_read=errors.get(Read.SERIALIZABLE),
            linearizable_read=errors.get(Read.LINEARIZABLE),
        )
        settings = engine.settings
        versions = Versions(
            etcdserver=settings.server_version,
            etcdcluster=engine.machine.cluster_version,
            storage=settings.cluster_version,
            etcdpy=self._own_version,
        )
        for page, name, error in operations.check_results(method, target, health):
            self._count(page, name, error)
        return operations.answer(method, target, health, versions, self._metrics.render)

    def _count(self, page: str, name: str, error: str | None) -> None:
        good = error is None
        if page == "health":
            self._health_answers[good] += 1
            return
        self._checks_last[page, name] = float(good)
        key = (page, name, "success" if good else "error")
        self._checks[key] = self._checks.get(key, 0.0) + 1

    def _snapshot(self) -> MetricsSnapshot:
        engine, transport = self._engine, self._transport
        machine, core, counters = engine.machine, engine.core, engine.counters
        watches = engine.hub.statistics()
        wire = transport.statistics()
        traffic, files = self._links.traffic(), self._files
        return MetricsSnapshot(
            server_version=engine.settings.server_version,
            cluster_version=".".join(machine.cluster_version.split(".")[:2]),
            member_id=f"{engine.settings.member_id:x}",
            has_leader=core.leader_id != 0,
            is_leader=core.is_leader,
            is_learner=engine.core.is_learner,
            leader_changes=counters.leader_changes_total,
            proposals_committed=engine.applier.applied_total,
            proposals_applied=engine.applier.applied_total,
            proposals_pending=len(core.proposals),
            proposals_failed=counters.proposals_failed_total,
            read_indexes_failed=counters.reads_failed_total,
            health_successes=self._health_answers[True],
            health_failures=self._health_answers[False],
            health_checks_last=self._checks_last,
            health_checks=self._checks,
            alarms={
                (str(alarm.memberID), rpc_pb2.AlarmType.Name(alarm.alarm)): 1.0
                for alarm in machine.alarms.all()
            },
            quota=max(engine.settings.quota_bytes, 0),
            log_sync=self._durations.log_sync.value(),
            state_commit=self._durations.state_commit.value(),
            database_size=machine.database.size_bytes,
            database_in_use=machine.database.size_in_use_bytes,
            revision=machine.revision,
            compacted_revision=machine.compacted_revision,
            puts=machine.operations.puts,
            deletes=machine.operations.deletes,
            ranges=machine.operations.ranges,
            txns=machine.operations.txns,
            watch_streams=watches.streams,
            watchers=watches.watchers,
            slow_watchers=watches.slow_watchers,
            events=watches.events_total,
            pending_events=watches.pending_events,
            leases_granted=engine.lease.granted_total,
            leases_renewed=engine.lease.renewed_total,
            leases_revoked=engine.lease.revoked_total,
            leases_expired=engine.lease.expired_total,
            snapshot_apply_in_progress=files.receiving > 0,
            snapshots_sent=files.sent_tally.succeeded,
            snapshots_not_sent=files.sent_tally.failed,
            snapshots_being_sent=files.sent_tally.under_way,
            snapshot_send_duration=files.sent_tally.durations(),
            snapshots_received=files.received_tally.succeeded,
            snapshots_not_received=files.received_tally.failed,
            snapshots_being_received=files.received_tally.under_way,
            snapshot_receive_duration=files.received_tally.durations(),
            snapshot_save_duration=files.save_duration.value(),
            peers_active=traffic.active,
            peers_disconnected=traffic.disconnected,
            peer_sent=traffic.sent_bytes,
            peer_received=traffic.received_bytes,
            peer_sent_failures=traffic.sent_failures,
            peer_received_failures=traffic.received_failures,
            peer_round_trip={to: histogram.value() for to, histogram in traffic.round_trips.items()},
            grpc_received=wire["bytes_received_total"],
            grpc_sent=wire["bytes_sent_total"],
            rpcs_started=transport.started,
            rpcs_handled=transport.handled,
        )
