"""etcdserverpb.Lease, and the leader's clock of leases.

That a lease exists, its TTL and its keys are replicated facts of the machine. When it runs out is known to
the leader alone and lives only in memory (`Lessor`): the leader proposes the revocation of what has run out,
and the applied proposal is what removes the keys, all in one revision. A new leader gives every lease its
full TTL again, since it cannot know which keepalives the old one had answered (etcd: server/lease/lessor.go
Promote, issues 15247 and 16822).

A request about a lease's time that reaches another member is passed on to the leader (`forwarding.py`).
The leader answers it like a linearizable read: after it has made sure that it still leads and has applied
what was committed before.

Invariants: a lease is never revoked while keepalives are answered within its TTL; a keepalive is answered
from the machine's facts, never for a lease that is not there (issue 20616); only the leader of the current
term revokes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from google.protobuf.message import Message

from etcd_server.api import errors
from etcd_server.api.encoding import varint
from etcd_server.api.proto import rpc_pb2
from etcd_server.services.core import Core, Random
from etcd_server.services.forwarding import Forwarding
from etcd_server.services.proposals import LEASE_GRANT, LEASE_REVOKE, Outcome
from etcd_server.services.reads import Reads

KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
TIME_TO_LIVE = "/etcdserverpb.Lease/LeaseTimeToLive"
LEASES = "/etcdserverpb.Lease/LeaseLeases"

MAX_TTL_S = 9_000_000_000
REVOKES_PER_SECOND = 1000
CHECK_INTERVAL_S = 0.5
REVOKE_RETRY_S = 3.0


class Lessor:
    """When each lease runs out, by the leader's clock. Knows nothing while the member does not lead."""

    def __init__(self) -> None:
        self._expiry_s: dict[int, float] = {}
        # One live entry a lease: the one at _scheduled_s. It is put in again when it comes up too early, so
        # that a keepalive need not touch the queue.
        self._queue: list[tuple[float, int]] = []
        self._scheduled_s: dict[int, float] = {}

    def promote(self, ttls: Sequence[tuple[int, int]], now: float, extension_s: float) -> None:
        """Begin to lead: every (lease id, TTL in s) runs its full time again, and an election's time more."""
        self._expiry_s = {lease_id: now + extension_s + ttl_s for lease_id, ttl_s in ttls}
        self._scheduled_s = dict(self._expiry_s)
        self._queue = [(expiry_s, lease_id) for lease_id, expiry_s in self._expiry_s.items()]
        heapq.heapify(self._queue)

    def demote(self) -> None:
        self._expiry_s.clear()
        self._scheduled_s.clear()
        self._queue.clear()

    def renew(self, lease_id: int, ttl_s: float, now: float) -> None:
        """A grant was applied, or a keepalive came: the time starts anew."""
        self._expiry_s[lease_id] = now + ttl_s
        if lease_id not in self._scheduled_s:
            self._schedule(lease_id, now + ttl_s)

    def _schedule(self, lease_id: int, at_s: float) -> None:
        self._scheduled_s[lease_id] = at_s
        heapq.heappush(self._queue, (at_s, lease_id))

    def forget(self, lease_id: int) -> None:
        self._expiry_s.pop(lease_id, None)
        self._scheduled_s.pop(lease_id, None)

    def remaining_s(self, lease_id: int, now: float) -> float | None:
        """Seconds left (negative: run out, not yet revoked); None for a lease that is not known."""
        expiry_s = self._expiry_s.get(lease_id)
        return None if expiry_s is None else expiry_s - now

    def in_order(self, lease_ids: Sequence[int]) -> list[int]:
        """The leases, those that run out first in front; what is not known here comes last."""
        return sorted(lease_ids, key=lambda lease_id: self._expiry_s.get(lease_id, inf))

    def take_expired(self, now: float, limit: int) -> list[int]:
        """Up to `limit` leases that have run out. Each comes again after REVOKE_RETRY_S unless it is
        forgotten."""
        expired: list[int] = []
        while self._queue and self._queue[0][0] <= now and len(expired) < limit:
            scheduled_s, lease_id = heapq.heappop(self._queue)
            if self._scheduled_s.get(lease_id) != scheduled_s:
                continue
            expiry_s = self._expiry_s[lease_id]
            if expiry_s <= now:
                expired.append(lease_id)
            self._schedule(lease_id, expiry_s if expiry_s > now else now + REVOKE_RETRY_S)
        return expired

    def __len__(self) -> int:
        return len(self._expiry_s)


class Lease:
    """LeaseGrant, LeaseRevoke, LeaseKeepAlive, LeaseTimeToLive, LeaseLeases of one member."""

    def __init__(self, core: Core, reads: Reads, forwarding: Forwarding, random: Random) -> None:
        self._core = core
        self._reads = reads
        self._forwarding = forwarding
        self._random = random
        self._renewing: dict[int, int] = {}  # stream id: renewals that are not answered yet
        self._half_closed: set[int] = set()  # streams that end when the last of these is answered
        self._lessor = Lessor()
        self._checked_s = 0.0
        self.now = 0.0
        self.granted_total = 0
        self.renewed_total = 0
        self.revoked_total = 0
        self.expired_total = 0

    # --- unary calls ------------------------------------------------------------------------------------

    def grant(self, calls: Sequence[tuple[int, rpc_pb2.LeaseGrantRequest]]) -> None:
        core = self._core
        for call_id, request in calls:
            if request.TTL > MAX_TTL_S:
                core.answers.append((call_id, errors.LeaseTTLTooLarge()))
                continue
            refused = core.refuses_growth()
            if refused is not None:
                core.answers.append((call_id, refused))
                continue
            lease_id = request.ID
            while lease_id == 0 or (request.ID == 0 and core.machine.leases.exists(lease_id)):
                lease_id = self._random.getrandbits(63)
            ttl_s = max(request.TTL, core.settings.minimum_lease_ttl_s)
            core.propose(LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s), call_id)

    def revoke(self, calls: Sequence[tuple[int, rpc_pb2.LeaseRevokeRequest]]) -> None:
        for call_id, request in calls:
            self._core.propose(LEASE_REVOKE, request, call_id)

    def time_to_live(self, calls: Sequence[tuple[int, rpc_pb2.LeaseTimeToLiveRequest]]) -> None:
        self._ask_leader(TIME_TO_LIVE, self._answer_time_to_live, calls)

    def leases(self, calls: Sequence[tuple[int, rpc_pb2.LeaseLeasesRequest]]) -> None:
        self._ask_leader(LEASES, self._answer_leases, calls)

    def renew(self, calls: Sequence[tuple[int, rpc_pb2.LeaseKeepAliveRequest]]) -> None:
        """Keepalives that another member has passed on."""
        self._ask_leader(KEEP_ALIVE, self._answer_renewal, calls)

    def _ask_leader(
        self, path: str, answer: Callable[[int, Any], None], calls: Sequence[tuple[int, Message]]
    ) -> None:
        """Have calls answered here when this member leads, otherwise by the leader."""
        if self._core.is_leader:
            self._reads.add([(answer, call_id, request) for call_id, request in calls])
            return
        for call_id, request in calls:
            self._pass_on(path, call_id, request)

    def _pass_on(self, path: str, call_id: int, request: Message) -> None:
        core = self._core

        def answered(answer: bytes | errors.EtcdError) -> None:
            if isinstance(answer, errors.EtcdError):
                core.answers.append((call_id, answer))
            else:
                core.reply(call_id, answer)

        self._forwarding.ask(path, request, answered, self.now)

    def _answer_time_to_live(self, call_id: int, request: rpc_pb2.LeaseTimeToLiveRequest) -> None:
        core = self._core
        if not core.is_leader:
            self._pass_on(TIME_TO_LIVE, call_id, request)
            return
        granted_s = core.machine.leases.ttl(request.ID)
        remaining_s = self._lessor.remaining_s(request.ID, self.now)
        response = rpc_pb2.LeaseTimeToLiveResponse(ID=request.ID, TTL=-1)
        if granted_s is not None and remaining_s is not None:
            # A lease that has run out but is not yet revoked shows 0, never less, as a Go duration rounded
            # down.
            response.TTL = max(0, int(remaining_s))
            response.grantedTTL = granted_s
            if request.keys:
                response.keys.extend(core.machine.leases.keys(request.ID))
        core.reply(call_id, response.SerializeToString())

    def _answer_leases(self, call_id: int, request: rpc_pb2.LeaseLeasesRequest) -> None:
        core = self._core
        if not core.is_leader:
            self._pass_on(LEASES, call_id, request)
            return
        response = rpc_pb2.LeaseLeasesResponse()
        for lease_id in self._lessor.in_order([lease_id for lease_id, _ in core.machine.leases.all()]):
            response.leases.add(ID=lease_id)
        core.reply(call_id, response.SerializeToString())

    def _answer_renewal(self, call_id: int, request: rpc_pb2.LeaseKeepAliveRequest) -> None:
        if self._core.is_leader:
            self._core.reply(call_id, self._renew(request.ID))
        else:
            self._pass_on(KEEP_ALIVE, call_id, request)

    def _renew(self, lease_id: int) -> bytes:
        """Renew a lease of the leader's. The answer without its header: id and TTL; TTL 0 (absent in the
        message) for a lease that is gone."""
        remaining_s = self._lessor.remaining_s(lease_id, self.now)
        alive = remaining_s is not None and remaining_s > 0
        ttl_s = self._core.machine.leases.ttl(lease_id) if alive else None
        body = b"\x10" + varint(lease_id & 0xFFFF_FFFF_FFFF_FFFF)
        if ttl_s is None:
            return body
        self._lessor.renew(lease_id, ttl_s, self.now)
        self.renewed_total += 1
        return body + b"\x18" + varint(ttl_s)

    # --- keepalive streams ------------------------------------------------------------------------------

    def keep_alive(self, stream_id: int, request: rpc_pb2.LeaseKeepAliveRequest) -> None:
        """Renew a lease for a stream and say its TTL on it.

        The header of the answer is that of this moment: a client must not see a later revision than one at
        which the lease was there (etcd: server/etcdserver/api/v3rpc/lease.go leaseKeepAlive).
        """
        core = self._core
        header = core.header(core.machine.revision)
        self._renewing[stream_id] = self._renewing.get(stream_id, 0) + 1
        if core.is_leader:
            self._reads.add([(self._renew_for_stream, stream_id, (header, request))])
        else:
            self._pass_on_for_stream(stream_id, header, request)

    def _renew_for_stream(self, stream_id: int, asked: tuple[bytes, rpc_pb2.LeaseKeepAliveRequest]) -> None:
        header, request = asked
        if self._core.is_leader:
            self._tell_stream(stream_id, header + self._renew(request.ID))
        else:
            self._pass_on_for_stream(stream_id, header, request)

    def _pass_on_for_stream(
        self, stream_id: int, header: bytes, request: rpc_pb2.LeaseKeepAliveRequest
    ) -> None:
        def answered(answer: bytes | errors.EtcdError) -> None:
            self._tell_stream(stream_id, header + answer if isinstance(answer, bytes) else answer)

        self._forwarding.ask(KEEP_ALIVE, request, answered, self.now)

    def _tell_stream(self, stream_id: int, answer: bytes | errors.EtcdError) -> None:
        renewing = self._renewing.get(stream_id, 0)
        if not renewing:
            return  # The stream is over.
        self._renewing[stream_id] = renewing - 1
        effects = self._core.effects
        if isinstance(answer, errors.EtcdError):
            effects.ended.append((stream_id, answer))
            self.close(stream_id)
            return
        effects.deliveries.append((stream_id, answer))
        if renewing == 1 and stream_id in self._half_closed:
            effects.ended.append((stream_id, None))
            self.close(stream_id)

    def half_close(self, stream_id: int) -> None:
        """The client will ask for nothing more: the stream ends when all that it asked for is answered."""
        if self._renewing.get(stream_id):
            self._half_closed.add(stream_id)
        else:
            self._core.effects.ended.append((stream_id, None))
            self.close(stream_id)

    def close(self, stream_id: int) -> None:
        self._renewing.pop(stream_id, None)
        self._half_closed.discard(stream_id)

    # --- the clock --------------------------------------------------------------------------------------

    def promote(self) -> None:
        """The member has become the leader."""
        self._lessor.promote(
            self._core.machine.leases.all(), self.now, self._core.settings.election_timeout_s
        )

    def demote(self) -> None:
        self._lessor.demote()

    def applied(self) -> None:
        """Take over what the applied entries have granted and revoked."""
        for lease_id, ttl_s in self._core.machine.take_lease_changes():
            if ttl_s is None:
                self.revoked_total += 1
                self._lessor.forget(lease_id)
                continue
            self.granted_total += 1
            if self._core.is_leader:
                self._lessor.renew(lease_id, ttl_s, self.now)

    def expire(self) -> None:
        """Propose the revocation of what has run out: at most REVOKES_PER_SECOND, all of one look in one
        entry."""
        if not self._core.is_leader or self.now - self._checked_s < CHECK_INTERVAL_S:
            return
        self._checked_s = self.now
        for lease_id in self._lessor.take_expired(self.now, int(REVOKES_PER_SECOND * CHECK_INTERVAL_S)):
            self._core.propose_as_leader(LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease_id), self._expired)

    def _expired(self, outcome: Outcome) -> None:
        if not isinstance(outcome, errors.EtcdError):
            self.expired_total += 1
