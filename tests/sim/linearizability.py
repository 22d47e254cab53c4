"""Whether a history of calls could have come from one store that does one thing at a time.

The search of Wing and Gong (1993): take any operation that no other had to precede, try it on the state, and
go on with the rest; go back when nothing fits. Lowe (2017) adds the cache: a set of operations done, with the
state they led to, is not tried twice. The state holds the revision, and an answer tells it, so that most
operations fit in one place only and the search hardly ever goes back.

What an operation means is said by the plain model of tests/properties/store_model.py. An operation whose
outcome is unknown may take effect at any time after it was sent, until it is known to have ended, or never.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import rpc_pb2
from tests.properties.store_model import Changing, KeyValue, Model, matching, select
from tests.sim.history import ranges_of

Keys = Mapping[bytes, KeyValue]


@dataclass(frozen=True, slots=True)
class State:
    """A store at one moment."""

    revision: int
    keys: Keys

    def identity(self) -> object:
        return self.revision, frozenset(
            (key, kv.create_revision, kv.mod_revision, kv.version, kv.lease, kv.value)
            for key, kv in self.keys.items()
        )


EMPTY = State(1, {})


@dataclass(frozen=True, slots=True)
class Call:
    """One operation. `response` None: unknown. `revoked`: a lease that this operation ended."""

    request: Any
    invoked_s: float
    completed_s: float
    response: Any = None
    revoked: int = 0
    label: str = ""


class _AnyLease(dict[int, int]):
    """Every lease exists: a put that names another was refused, and is no part of a history."""

    def __contains__(self, lease_id: object) -> bool:
        return True


def perform(state: State, call: Call) -> tuple[State, Any]:
    """What `call` makes of `state`, and its answer. Raises EtcdError for what would have been refused."""
    request = call.request
    if isinstance(request, rpc_pb2.RangeRequest):
        response = select(matching(dict(state.keys), request.key, request.range_end), request)
        response.header.revision = state.revision
        return state, response
    model = Model(state.revision, -1, {state.revision: dict(state.keys)}, [], _AnyLease())
    answer: Any
    if call.revoked:
        change = Changing(model)
        for key in model.keys_of(call.revoked):
            change.delete(rpc_pb2.DeleteRangeRequest(key=key))
        change.finish()
        answer = rpc_pb2.LeaseRevokeResponse()
        answer.header.revision = model.revision
    elif isinstance(request, rpc_pb2.PutRequest):
        answer = model.put(request)
    elif isinstance(request, rpc_pb2.DeleteRangeRequest):
        answer = model.delete(request)
    else:
        # What it reads in the past is checked against the log; here only the present counts.
        model.states = _Past(model.states)
        answer = model.txn(request)
    return State(model.revision, model.now), answer


class _Past(dict[int, Any]):
    """The states of the past, as far as a search knows them: not at all."""

    def __missing__(self, revision: int) -> dict[bytes, KeyValue]:
        return {}


def _reads_the_past(request: Any) -> bool:
    return isinstance(request, rpc_pb2.TxnRequest) and any(
        part is not None and part.revision for part in ranges_of(request)
    )


def agrees(call: Call, expected: Any) -> bool:
    """Whether an answer is the one that the model gives."""
    found = call.response
    if found.header.revision != expected.header.revision:
        return False
    if isinstance(found, rpc_pb2.LeaseRevokeResponse):
        return True
    if _reads_the_past(call.request):
        return bool(found.succeeded == expected.succeeded)
    expected.header.CopyFrom(found.header)
    return bool(found == expected)


class TooHard(Exception):
    """The search was given up."""


def check(calls: Sequence[Call], start: State = EMPTY, most_steps: int = 400_000) -> list[Call] | None:
    """None when the history is linearizable; otherwise calls among which the contradiction lies.

    Raises TooHard after `most_steps` attempts.
    """
    return _Search(calls, start, most_steps).run()


class _Search:
    """The depth-first search, with an explicit stack."""

    def __init__(self, calls: Sequence[Call], start: State, most_steps: int) -> None:
        self._calls = sorted(calls, key=lambda call: (call.invoked_s, call.completed_s))
        self._start = start
        self._steps_left = most_steps
        # The order in which known operations ended: none may be put behind one that began later.
        self._by_end = sorted(
            (n for n, call in enumerate(self._calls) if call.response is not None),
            key=lambda n: self._calls[n].completed_s,
        )

    def run(self) -> list[Call] | None:
        calls = self._calls
        must = sum(1 << n for n, call in enumerate(calls) if call.response is not None)
        done, state = 0, self._start
        seen: set[tuple[int, object]] = set()
        stack: list[tuple[int, State, list[int]]] = []
        candidates = self._candidates(done)
        furthest, stuck = -1, self._start
        while True:
            if done & must == must:
                return None
            moved = False
            while candidates:
                number = candidates.pop()
                self._steps_left -= 1
                if self._steps_left < 0:
                    raise TooHard
                after = self._attempt(state, calls[number])
                if after is None:
                    continue
                then = done | 1 << number
                name = (then, after.identity())
                if name in seen:
                    continue
                seen.add(name)
                stack.append((done, state, candidates))
                done, state = then, after
                candidates = self._candidates(done)
                moved = True
                break
            if moved:
                if (done & must).bit_count() > furthest:
                    furthest, stuck_done, stuck = (done & must).bit_count(), done, state
                continue
            if not stack:
                return self._explain(stuck_done if furthest >= 0 else 0, stuck)
            done, state, candidates = stack.pop()

    def _attempt(self, state: State, call: Call) -> State | None:
        if (
            call.response is not None
            and not state.revision <= call.response.header.revision <= state.revision + 1
        ):
            return None
        try:
            after, expected = perform(state, call)
        except EtcdError:
            return None
        if call.response is None:
            # Whoever explains a history with a call that changed nothing explains it without that call too.
            return after if after.revision != state.revision else None
        return after if agrees(call, expected) else None

    def _candidates(self, done: int) -> list[int]:
        """The operations that may come next: not done, and begun before any other that is left has ended.

        Best last: those whose outcome is known come before those that may never have happened.
        """
        first_end = inf
        for number in self._by_end:
            if not done >> number & 1:
                first_end = self._calls[number].completed_s
                break
        latest_begin = self._calls[done.bit_length() - 1].invoked_s if done else -inf
        known, unknown = [], []
        for number, call in enumerate(self._calls):
            if call.invoked_s > first_end:
                break
            if done >> number & 1:
                continue
            if call.response is not None:
                known.append(number)
            elif call.completed_s >= latest_begin:
                unknown.append(number)
        known.reverse()
        return unknown + known

    def _explain(self, done: int, state: State) -> list[Call]:
        return [self._calls[number] for number in self._candidates(done)]


Checker = Callable[[Sequence[Call]], "list[Call] | None"]
