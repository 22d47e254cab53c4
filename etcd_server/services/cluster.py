"""etcdserverpb.Cluster: the members, and how members come and go.

A change is made by the leader, one at a time: it knows how far each member has come, and whether the one
before has been applied. A member that follows passes the call on. What is wrong with a request is said at
once; whether the quorum stands it is asked when the change's turn comes (`reconfiguration.py`); whether it is
possible at all is decided by the machine when it is applied.

Source: etcd server/etcdserver/api/v3rpc/member.go, server/etcdserver/server.go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import Message

from etcd_server.api import errors, urls
from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.members import member_id
from etcd_server.raft.errors import ProposalDropped
from etcd_server.raft.node import Node
from etcd_server.services import reconfiguration
from etcd_server.services.core import Core
from etcd_server.services.forwarding import Forwarding
from etcd_server.services.proposals import Outcome
from etcd_server.services.reads import Reads

ADD = "/etcdserverpb.Cluster/MemberAdd"
REMOVE = "/etcdserverpb.Cluster/MemberRemove"
UPDATE = "/etcdserverpb.Cluster/MemberUpdate"
PROMOTE = "/etcdserverpb.Cluster/MemberPromote"

READY_PERCENT = 90
"""A learner may be promoted when it has this much of the leader's log (etcd: readyPercentThreshold)."""

Kind = command_pb2.ConfChange
Handler = Callable[[list[tuple[int, Any]]], None]
Request = (
    rpc_pb2.MemberAddRequest
    | rpc_pb2.MemberRemoveRequest
    | rpc_pb2.MemberUpdateRequest
    | rpc_pb2.MemberPromoteRequest
)


@dataclass(frozen=True, slots=True)
class Wish:
    """A change that somebody has asked for and that has not been proposed yet."""

    call_id: int
    path: str
    request: Request
    change: command_pb2.ConfChange
    deadline_s: float


class Cluster:
    """MemberList of any member, and the changes of the membership."""

    def __init__(self, core: Core, reads: Reads, node: Node, forwarding: Forwarding) -> None:
        self._core = core
        self._reads = reads
        self._node = node
        self._forwarding = forwarding
        self._wishes: deque[Wish] = deque()
        self._is_under_way = False
        self.changes: dict[str, Handler] = {
            ADD: self.member_add,
            REMOVE: self.member_remove,
            UPDATE: self.member_update,
            PROMOTE: self.member_promote,
        }
        """What only the leader does, by gRPC path."""
        self.handlers: dict[str, Handler] = {
            "/etcdserverpb.Cluster/MemberList": self.member_list,
            **self.changes,
        }
        self.now = 0.0
        self.unix_time_s = 0
        """Seconds since 1970 at this turn: they go into the IDs of members that are added."""

    # --- the calls ----------------------------------------------------------------------------------------

    def member_list(self, calls: Sequence[tuple[int, rpc_pb2.MemberListRequest]]) -> None:
        linearizable = []
        for call_id, request in calls:
            if request.linearizable:
                linearizable.append((self._list, call_id, request))
            else:
                self._list(call_id, request)
        self._reads.add(linearizable)

    def _list(self, call_id: int, request: rpc_pb2.MemberListRequest) -> None:
        self._reply(call_id, rpc_pb2.MemberListResponse(members=self._core.machine.members.all()))

    def member_add(self, calls: Sequence[tuple[int, rpc_pb2.MemberAddRequest]]) -> None:
        for call_id, request in calls:
            kind = Kind.ADD_LEARNER if request.isLearner else Kind.ADD_VOTER
            self._take(call_id, ADD, request, kind, 0, request.peerURLs)

    def member_remove(self, calls: Sequence[tuple[int, rpc_pb2.MemberRemoveRequest]]) -> None:
        for call_id, request in calls:
            self._take(call_id, REMOVE, request, Kind.REMOVE, request.ID)

    def member_update(self, calls: Sequence[tuple[int, rpc_pb2.MemberUpdateRequest]]) -> None:
        for call_id, request in calls:
            self._take(call_id, UPDATE, request, Kind.UPDATE, request.ID, request.peerURLs)

    def member_promote(self, calls: Sequence[tuple[int, rpc_pb2.MemberPromoteRequest]]) -> None:
        for call_id, request in calls:
            self._take(call_id, PROMOTE, request, Kind.PROMOTE, request.ID)

    def _take(
        self,
        call_id: int,
        path: str,
        request: Request,
        kind: Kind.Kind.ValueType,
        number: int,
        given_urls: Sequence[str] | None = None,
    ) -> None:
        """Queue a change of member `number` (a new one's ID is made of its URLs and the time), or pass the
        call on."""
        peer_urls: tuple[str, ...] = ()
        if given_urls is not None:
            try:
                peer_urls = urls.of_member(given_urls)
            except ValueError:
                self._core.answer(call_id, errors.MemberBadURLs())
                return
        if not self._core.is_leader:
            self._pass_on(call_id, path, request)
            return
        if kind in (Kind.ADD_VOTER, Kind.ADD_LEARNER):
            # etcd leaves the cluster's token out here, unlike for the first members.
            number = member_id(peer_urls, "", self.unix_time_s)
        member = rpc_pb2.Member(ID=number, peerURLs=peer_urls, isLearner=kind == Kind.ADD_LEARNER)
        change = Kind(kind=kind, member=member)
        if kind == Kind.ADD_LEARNER:
            # It goes with the change: members that are set differently apply it alike.
            change.max_learners = self._core.settings.max_learners
        deadline_s = self.now + self._core.settings.request_timeout_s
        self._wishes.append(Wish(call_id, path, request, change, deadline_s))

    # --- another member leads -----------------------------------------------------------------------------

    def _pass_on(self, call_id: int, path: str, request: Message) -> None:
        self._forwarding.ask(path, request, partial(self._passed_on, call_id), self.now, is_repeatable=False)

    def _passed_on(self, call_id: int, answer: bytes | EtcdError) -> None:
        if isinstance(answer, EtcdError):
            self._core.answer(call_id, answer)
        else:
            self._core.answers.append((call_id, self._core.header(0) + answer))

    # --- this member leads --------------------------------------------------------------------------------

    def propose(self) -> bool:
        """Hand the next change to raft if it can be taken now; whether one was."""
        if self._wishes and not self._core.is_leader:
            wishes, self._wishes = self._wishes, deque()
            for wish in wishes:
                self._pass_on(wish.call_id, wish.path, wish.request)
        while self._wishes and not self._is_under_way:
            wish = self._wishes[0]
            refusal = self._refusal(wish.change)
            if refusal is None and not self._hand_over(wish):
                return False
            self._wishes.popleft()
            if refusal is None:
                return True
            self._core.answer(wish.call_id, refusal)
        return False

    def _hand_over(self, wish: Wish) -> bool:
        """False: raft does not take a change now, because another leader's is not applied yet, or because the
        leadership is being transferred; it is tried again with the next turn."""
        proposals = self._core.proposals
        waiter = partial(self._applied, wish)
        change = wish.change.SerializeToString()
        proposal_id, data = proposals.add_change(change, waiter, self._core.header.term, self.now)
        try:
            self._node.propose_conf_change(data)
        except ProposalDropped:
            proposals.pop(proposal_id)
            return False
        self._is_under_way = True
        return True

    def _applied(self, wish: Wish, outcome: Outcome) -> None:
        self._is_under_way = False
        if isinstance(outcome, EtcdError):
            self._core.answer(wish.call_id, outcome)
            return
        members = self._core.machine.members.all()
        responses: dict[str, Any] = {
            ADD: lambda: rpc_pb2.MemberAddResponse(member=wish.change.member, members=members),
            REMOVE: lambda: rpc_pb2.MemberRemoveResponse(members=members),
            UPDATE: lambda: rpc_pb2.MemberUpdateResponse(members=members),
            PROMOTE: lambda: rpc_pb2.MemberPromoteResponse(members=members),
        }
        self._reply(wish.call_id, responses[wish.path]())

    def _reply(self, call_id: int, response: Message) -> None:
        # etcd's answers of this service carry no revision (api/v3rpc/member.go fills in cluster, member and
        # term).
        self._core.answers.append((call_id, self._core.header(0) + response.SerializeToString()))

    # --- may it be done now -------------------------------------------------------------------------------

    def _refusal(self, change: command_pb2.ConfChange) -> EtcdError | None:
        members = self._core.machine.members.all()
        is_strict = self._core.settings.strict_reconfig_check
        match change.kind:
            case Kind.PROMOTE:
                late = self._lateness(change.member.ID)
                if late is not None or not is_strict:
                    return late
                return reconfiguration.refusal_to_promote(members)
            case Kind.ADD_VOTER | Kind.ADD_LEARNER if is_strict:
                is_learner = change.kind == Kind.ADD_LEARNER
                return reconfiguration.refusal_to_add(
                    members, is_learner=is_learner, is_steady=self._is_steady
                )
            case Kind.REMOVE if is_strict:
                return reconfiguration.refusal_to_remove(
                    members,
                    change.member.ID,
                    is_connected=self._core.peers.is_connected,
                    is_steady=self._is_steady,
                )
        return None

    def _lateness(self, number: int) -> EtcdError | None:
        """Why a learner is not in sync: it has less than READY_PERCENT of this leader's log."""
        status = self._node.status
        if number == self._core.settings.member_id:
            return None
        for peer in status.peers:
            if number == peer.member_id:
                if peer.match_index * 100 < status.stable_index * READY_PERCENT:
                    return errors.LearnerNotReady()
                return None
        return errors.MemberNotFound()

    def _is_steady(self, number: int) -> bool:
        """Whether a member has been in touch for as long as counts."""
        return self._core.peers.connected_since_s(number) <= self.now - reconfiguration.HEALTH_INTERVAL_S

    # --- time and the end -----------------------------------------------------------------------------------

    def tick(self) -> None:
        """Give up the changes whose time is up; they have not been proposed."""
        while self._wishes and self._wishes[0].deadline_s <= self.now:
            self._core.answer(self._wishes.popleft().call_id, errors.TimedOut())

    def stop(self) -> None:
        """The member stops: everyone who waits is told."""
        while self._wishes:
            self._core.answer(self._wishes.popleft().call_id, errors.Stopped())
