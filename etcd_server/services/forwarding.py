"""Calls that only the leader can answer, put to another member: passed on, answered there, handed back.

How long a lease still runs is in the memory of the leader alone, so a keepalive that reaches a follower goes
to the leader and its answer comes back (etcd does the same by HTTP between members: server/lease/leasehttp).
A call is sent to whoever leads, again after half a second without an answer and again when another member
leads, until its time is up. A call that must not be done twice is sent once: when the leader changes its
outcome is not known.

At the leader such a call is like one of a client: it gets an id of its own and goes to the same handler.

Invariant: each asker is told once, the answer or an error.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from etcd_server.api import errors
from etcd_server.api.encoding import read_varint
from etcd_server.api.errors import EtcdError
from etcd_server.raft.messages import ForwardProposal
from etcd_server.services.core import Core
from etcd_server.services.events import Forwarded, ForwardedAnswer, ForwardedCall, ProposalRefused

RETRY_S = 0.5
# Ids of other members' calls count down from here; those of the transport's own calls are far above.
FIRST_SERVED_ID = -(1 << 62)

AskedFor = Callable[["bytes | EtcdError"], None]
"""Is given the response, serialised and without its header, or the error."""

_ERRORS: Mapping[str, type[EtcdError]] = {error.text: error for error in errors.every_error()}


@dataclass(frozen=True, slots=True)
class Servable:
    """A kind of call that the leader answers for other members."""

    parse: Callable[[bytes], Message]
    handler: Callable[[list[tuple[int, Any]]], None]


@dataclass(slots=True)
class Asked:
    path: str
    request: bytes
    waiter: AskedFor
    deadline_s: float
    is_repeatable: bool
    sent_to: int = 0
    sent_s: float = 0.0


def without_header(response: bytes) -> bytes:
    """A serialised response of the API without the header that it begins with."""
    if response[:1] != b"\x0a":
        return response
    size, start = read_varint(response, 1)
    return response[start + size :]


class Forwarding:
    """Both ends of forwarded calls, for one member."""

    def __init__(self, core: Core, first_id: int) -> None:
        self._core = core
        self._next_id = first_id
        self._asked: OrderedDict[int, Asked] = OrderedDict()
        self._unsent: list[int] = []
        self._refused: list[int] = []
        self._next_served_id = FIRST_SERVED_ID
        self._served: dict[int, ForwardedCall] = {}
        self.servable: Mapping[str, Servable] = {}
        """By gRPC path; set once, when the services are there."""

    # --- at the member to which the client has put the call -----------------------------------------------

    def ask(
        self, path: str, request: Message, waiter: AskedFor, now: float, *, is_repeatable: bool = True
    ) -> None:
        """Pass a call on to the leader; `waiter` is told."""
        deadline_s = now + self._core.settings.request_timeout_s
        asked = Asked(path, request.SerializeToString(), waiter, deadline_s, is_repeatable)
        self._asked[self._next_id] = asked
        self._unsent.append(self._next_id)
        self._next_id += 1

    def act(self, now: float) -> None:
        """Send what has not been sent yet. When this member leads now, it puts the call to itself."""
        leader_id = self._core.leader_id
        if not self._unsent or not leader_id:
            return
        unsent, self._unsent = self._unsent, []
        own_id = self._core.settings.member_id
        for call_id in unsent:
            asked = self._asked.get(call_id)
            if asked is None:
                continue
            asked.sent_to, asked.sent_s = leader_id, now
            call = ForwardedCall(leader_id, own_id, call_id, asked.path, asked.request)
            if leader_id == own_id:
                self._serve(call)
            else:
                self._core.effects.forward.append(call)

    def tick(self, now: float) -> None:
        """Give up what has taken too long, send again what was not answered."""
        while self._asked:
            call_id, asked = next(iter(self._asked.items()))
            if asked.deadline_s > now:
                break
            del self._asked[call_id]
            asked.waiter(errors.TimedOut() if asked.sent_to else errors.NoLeader())
        self._unsent += self._refused
        self._refused.clear()
        for call_id, asked in self._asked.items():
            if asked.sent_to and asked.is_repeatable and now - asked.sent_s >= RETRY_S:
                asked.sent_to = 0
                self._unsent.append(call_id)

    def leader_changed(self) -> None:
        """Another member leads, or none is known."""
        for call_id, asked in list(self._asked.items()):
            if not asked.sent_to:
                continue
            if asked.is_repeatable:
                asked.sent_to = 0
                self._unsent.append(call_id)
            else:
                del self._asked[call_id]
                asked.waiter(errors.LeaderChanged())

    def _answered(self, answer: ForwardedAnswer) -> None:
        asked = self._asked.get(answer.call_id)
        if asked is None or answer.sender != asked.sent_to:
            return
        if answer.code and answer.text == errors.NotLeader.text:
            # It has lost its place, or does not know yet that it has it. Nothing was done.
            asked.sent_to = 0
            self._refused.append(answer.call_id)
            return
        del self._asked[answer.call_id]
        if answer.code:
            error = _ERRORS.get(answer.text)
            asked.waiter(errors.Internal(answer.text) if error is None else error())
        else:
            asked.waiter(without_header(answer.response))

    # --- at the leader --------------------------------------------------------------------------------------

    def take(self, arrived: Iterable[Forwarded]) -> None:
        """What other members have sent."""
        for one in arrived:
            match one:
                case ForwardedCall():
                    self._serve(one)
                case ForwardedAnswer():
                    self._answered(one)
                case ProposalRefused():
                    self._core.proposals.turned_away(one.proposal_id)

    def refuse(self, proposals: Iterable[ForwardProposal]) -> None:
        """Tell other members which of their proposals raft has not taken."""
        own_id = self._core.settings.member_id
        for proposal in proposals:
            # Both a Batch and a ConfChange (command.proto) begin with the proposal's id.
            if proposal.data[:1] == b"\x08":
                refused = ProposalRefused(proposal.sender, own_id, read_varint(proposal.data, 1)[0])
                self._core.effects.forward.append(refused)

    def _serve(self, call: ForwardedCall) -> None:
        servable = self.servable.get(call.path)
        if not self._core.is_leader:
            self._answer(call, errors.NotLeader())
        elif servable is None:
            self._answer(call, errors.Unimplemented(f"unknown method {call.path}"))
        else:
            try:
                request = servable.parse(call.request)
            except DecodeError:
                self._answer(call, errors.MalformedMessage())
                return
            served_id = self._next_served_id
            self._next_served_id -= 1
            self._served[served_id] = call
            servable.handler([(served_id, request)])

    def collect(self) -> None:
        """Take those answers of the turn that belong to calls of other members, and hand them back."""
        if not self._served:
            return
        core = self._core
        served = [(call_id, answer) for call_id, answer in core.answers if call_id <= FIRST_SERVED_ID]
        if served:
            core.answers[:] = [(call_id, a) for call_id, a in core.answers if call_id > FIRST_SERVED_ID]
            for call_id, answer in served:
                self._answer(self._served.pop(call_id), answer)

    def _answer(self, call: ForwardedCall, answer: bytes | EtcdError) -> None:
        own_id = self._core.settings.member_id
        if isinstance(answer, EtcdError):
            told = ForwardedAnswer(call.sender, own_id, call.call_id, int(answer.code), answer.text, b"")
        else:
            told = ForwardedAnswer(call.sender, own_id, call.call_id, 0, "", answer)
        if call.sender == own_id:
            self._answered(told)
        else:
            self._core.effects.forward.append(told)

    def drop_all(self) -> None:
        """The member stops: everyone who waits is told."""
        while self._asked:
            self._asked.popitem()[1].waiter(errors.Stopped())
