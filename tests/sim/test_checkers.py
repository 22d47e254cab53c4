"""The judges, judged: histories that are known to be right or wrong, and a checker that tries everything."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from etcd_server.api.proto import command_pb2, kv_pb2, rpc_pb2
from etcd_server.raft.messages import Entry, EntryKind
from tests.properties.store_model import Event
from tests.sim.history import Delivery, LeaseStory, Operation, WatchSession, settle_unknown
from tests.sim.invariants import Record
from tests.sim.leases import LeaseLedger
from tests.sim.linearizability import EMPTY, Call, State, agrees, check, perform
from tests.sim.plan import draw_plan
from tests.sim.watch_checks import Truth, check_watch
from tests.sim.world import Violation, World

Put, Range, Delete, Txn = (
    rpc_pb2.PutRequest,
    rpc_pb2.RangeRequest,
    rpc_pb2.DeleteRangeRequest,
    rpc_pb2.TxnRequest,
)

# --- linearizability ----------------------------------------------------------------------------------------


def brute_force(calls: Sequence[Call]) -> bool:
    """Every order of every choice of the calls whose outcome is unknown."""
    known = [call for call in calls if call.response is not None]
    unknown = [call for call in calls if call.response is None]
    return any(
        _explains(order)
        for count in range(len(unknown) + 1)
        for chosen in itertools.combinations(unknown, count)
        for order in itertools.permutations((*known, *chosen))
    )


def _explains(order: Sequence[Call]) -> bool:
    if any(b.completed_s < a.invoked_s for a, b in itertools.combinations(order, 2)):
        return False
    state = EMPTY
    for call in order:
        state, expected = perform(state, call)
        if call.response is not None and not agrees(call, expected):
            return False
    return True


def random_history(seed: int) -> list[Call]:
    """Up to six calls of a store that is right, then perhaps one answer changed, or one call moved."""
    draw = random.Random(seed)
    state: State = EMPTY
    calls, at_s = [], 0.0
    for number in range(draw.randrange(2, 7)):
        key = draw.choice([b"a", b"b"])
        request: Any = draw.choice(
            [
                Put(key=key, value=b"%d" % number),
                Range(key=key),
                Delete(key=key),
                Range(key=b"a", range_end=b"c"),
            ]
        )
        call = Call(request, 0, 0)
        state, response = perform(state, call)
        at_s += 1
        begun_s, ended_s = at_s - draw.uniform(0, 3), at_s + draw.uniform(0, 3)
        calls.append(Call(request, begun_s, ended_s, response))
        if draw.random() < 0.2:
            calls[-1] = replace(calls[-1], response=None, completed_s=draw.choice([inf, ended_s]))
    kind = draw.random()
    position = draw.randrange(len(calls))
    chosen = calls[position]
    if kind < 0.3 and chosen.response is not None:
        wrong = type(chosen.response)()
        wrong.CopyFrom(chosen.response)
        wrong.header.revision += draw.choice([-1, 1])
        calls[position] = replace(chosen, response=wrong)
    elif kind < 0.6:
        late_s = draw.uniform(0, 8)
        calls[position] = replace(chosen, invoked_s=late_s, completed_s=max(late_s, chosen.completed_s))
    return calls


def test_the_search_agrees_with_trying_everything() -> None:
    verdicts = []
    for seed in range(400):
        calls = random_history(seed)
        verdicts.append(brute_force(calls))
        assert (check(calls) is None) == verdicts[-1], f"history {seed}: {calls}"
    assert 60 < sum(verdicts) < 340, "both kinds of histories were tried"


def put(key: bytes, value: bytes, begun_s: float, ended_s: float, revision: int) -> Call:
    response = rpc_pb2.PutResponse(header=rpc_pb2.ResponseHeader(revision=revision))
    return Call(Put(key=key, value=value), begun_s, ended_s, response)


def got(begun_s: float, ended_s: float, revision: int, *kvs: kv_pb2.KeyValue) -> Call:
    header = rpc_pb2.ResponseHeader(revision=revision)
    return Call(
        Range(key=b"a"), begun_s, ended_s, rpc_pb2.RangeResponse(header=header, kvs=kvs, count=len(kvs))
    )


def value(text: bytes, create: int, mod: int, version: int) -> kv_pb2.KeyValue:
    return kv_pb2.KeyValue(key=b"a", value=text, create_revision=create, mod_revision=mod, version=version)


ONE, TWO = value(b"1", 2, 2, 1), value(b"2", 2, 3, 2)
WRITES = [put(b"a", b"1", 0, 1, 2), put(b"a", b"2", 2, 3, 3)]
IN_DOUBT = [WRITES[0], replace(WRITES[1], response=None, completed_s=inf)]

RIGHT = {
    "a read sees the last write": [*WRITES, got(4, 5, 3, TWO)],
    "a read beside a write sees either": [*WRITES, got(2, 3, 2, ONE), got(2, 3, 3, TWO)],
    "an unknown write may have happened": [*IN_DOUBT, got(8, 9, 3, TWO)],
    "an unknown write may never happen": [*IN_DOUBT, got(8, 9, 2, ONE)],
}
WRONG = {
    "a stale read": [*WRITES, got(4, 5, 2, ONE)],
    "a read from the future": [WRITES[0], got(0, 1, 3, TWO), put(b"a", b"2", 2, 3, 3)],
    "a lost write": [WRITES[0], got(2, 3, 1)],
    "a write twice": [*WRITES, got(4, 5, 4, value(b"2", 2, 4, 3))],
    "one revision for two writes": [WRITES[0], put(b"a", b"2", 2, 3, 2)],
    "reads that go back": [*IN_DOUBT, got(4, 5, 3, TWO), got(6, 7, 2, ONE)],
    "a value of nobody": [*WRITES, got(4, 5, 3, value(b"3", 2, 3, 2))],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_one_store_could_have_answered_is_accepted(name: str) -> None:
    assert check(RIGHT[name]) is None


@pytest.mark.parametrize("name", WRONG)
def test_what_no_store_could_have_answered_is_refused(name: str) -> None:
    assert check(WRONG[name])


def test_the_end_of_a_lease_takes_its_keys_at_one_revision() -> None:
    def with_lease(key: bytes, begun_s: float, revision: int) -> Call:
        call = put(key, b"x", begun_s, begun_s + 1, revision)
        call.request.lease = 7
        return call

    ended = rpc_pb2.LeaseRevokeResponse(header=rpc_pb2.ResponseHeader(revision=4))
    writes = [with_lease(b"a", 0, 2), with_lease(b"b", 2, 3), Call(None, 4, 5, ended, revoked=7)]
    assert check([*writes, got(6, 7, 4)]) is None
    assert check([*writes, got(6, 7, 5)])


def test_the_log_tells_what_became_of_unknown_outcomes() -> None:
    batch = command_pb2.Batch(commands=[command_pb2.Command(put=Put(key=b"a", value=b"seen"))])
    entry = Entry(1, 1, EntryKind.NORMAL, batch.SerializeToString())
    ledger = [Record(entry, 5.0, 6.0, [(2, b"")], 2)]
    path = "/etcdserverpb.KV/Put"
    seen = Operation(1, path, Put(key=b"a", value=b"seen"), 1.0)
    unseen = Operation(1, path, Put(key=b"a", value=b"unseen"), 1.0)
    assert settle_unknown([seen, unseen], ledger) == [seen]
    assert (seen.completed_s, seen.response.header.revision) == (6.0, 2)


def test_a_deletion_in_doubt_happened_before_the_last_of_its_likes_was_applied_or_never() -> None:
    batch = command_pb2.Batch(commands=[command_pb2.Command(delete_range=Delete(key=b"a"))])
    entry = Entry(1, 1, EntryKind.NORMAL, batch.SerializeToString())
    ledger = [Record(entry, 5.0, 6.0, [(1, b"")], 1)]
    path = "/etcdserverpb.KV/DeleteRange"
    like = Operation(1, path, Delete(key=b"a"), 1.0)
    unlike = Operation(1, path, Delete(key=b"b"), 1.0)
    assert settle_unknown([like, unlike], ledger) == [like]
    assert (like.completed_s, like.response) == (6.0, None)


def test_a_call_in_doubt_has_no_effect_after_its_end() -> None:
    in_doubt = replace(WRITES[1], response=None, invoked_s=1.5, completed_s=3)
    assert check([WRITES[0], in_doubt, got(4, 5, 3, TWO)]) is None
    assert check([WRITES[0], in_doubt, got(4, 5, 2, ONE)]) is None
    assert check([WRITES[0], in_doubt, got(4, 5, 2, ONE), got(6, 7, 3, TWO)])


# --- watches ------------------------------------------------------------------------------------------------


def changed(key: bytes, revision: int, version: int, *, create: int = 0, deleted: bool = False) -> Event:
    if deleted:
        return Event(revision, True, kv_pb2.KeyValue(key=key, mod_revision=revision), None)
    kv = kv_pb2.KeyValue(
        key=key,
        value=b"%d" % revision,
        create_revision=create or revision,
        mod_revision=revision,
        version=version,
    )
    return Event(revision, False, kv, None)


FIRST, SECOND, OTHER = changed(b"a", 2, 1), changed(b"a", 3, 2, create=2), changed(b"b", 3, 1)
GONE, AGAIN = changed(b"a", 4, 0, deleted=True), changed(b"a", 5, 1)
for after, before in ((SECOND, FIRST), (GONE, SECOND)):
    after.before = before.kv
TRUTH = Truth([FIRST, SECOND, OTHER, GONE, AGAIN], 5)


def sent(*events: Event, revision: int = 5, fragment: bool = False, previous: bool = False) -> Delivery:
    response = rpc_pb2.WatchResponse(header=rpc_pb2.ResponseHeader(revision=revision), fragment=fragment)
    for event in events:
        kind = kv_pb2.Event.DELETE if event.is_deletion else kv_pb2.Event.PUT
        response.events.add(type=kind, kv=event.kv, prev_kv=event.before if previous else None)
    return Delivery(0.0, response)


def session(*deliveries: Delivery, start: int = 2, end: bytes = b"z", **options: Any) -> WatchSession:
    request = rpc_pb2.WatchCreateRequest(key=b"a", range_end=end, start_revision=start, **options)
    return WatchSession(request, (1, 1), list(deliveries), is_current=True)


def test_a_watch_that_gets_everything_is_accepted() -> None:
    whole = session(sent(FIRST), sent(revision=2), sent(SECOND, OTHER), sent(GONE), sent(AGAIN))
    in_fragments = session(sent(FIRST, SECOND, fragment=True), sent(OTHER), sent(GONE, AGAIN))
    with_previous = session(
        *(sent(e, previous=True) for e in (FIRST, SECOND, GONE, AGAIN)), end=b"", prev_kv=True
    )
    for one in (whole, in_fragments, with_previous):
        check_watch([one], TRUTH)


CREATED_TWICE = replace(SECOND, kv=changed(b"a", 3, 1).kv)
WRONG_WATCHES = {
    "filter": session(sent(FIRST), sent(SECOND), sent(GONE), sent(AGAIN), end=b"", filters=[0]),
    "ordered": session(sent(FIRST), sent(GONE), sent(SECOND, OTHER), sent(AGAIN)),
    "unique": session(sent(FIRST), sent(FIRST), sent(SECOND, OTHER), sent(GONE), sent(AGAIN)),
    "atomic": session(sent(FIRST), sent(SECOND), sent(OTHER), sent(GONE), sent(AGAIN)),
    "bookmarkable": session(sent(FIRST), sent(revision=4), sent(SECOND, OTHER), sent(GONE), sent(AGAIN)),
    "resumable": session(sent(GONE), sent(AGAIN)),
    "is create": session(sent(FIRST), sent(CREATED_TWICE, OTHER), sent(GONE), sent(AGAIN)),
    "reliable": session(sent(FIRST), sent(GONE), sent(AGAIN)),
    "prev kv": session(*(sent(e) for e in (FIRST, SECOND, GONE, AGAIN)), end=b"", prev_kv=True),
}


@pytest.mark.parametrize("name", WRONG_WATCHES)
def test_each_of_the_nine_properties_is_missed_when_it_is_not_there(name: str) -> None:
    with pytest.raises(Violation) as caught:
        check_watch([WRONG_WATCHES[name]], TRUTH)
    assert caught.value.check == f"watch {name}"


def test_a_watch_that_stops_short_is_not_reliable() -> None:
    with pytest.raises(Violation, match="4 of 5 events") as caught:
        check_watch([session(sent(FIRST), sent(SECOND, OTHER), sent(GONE))], TRUTH)
    assert caught.value.check == "watch reliable"


# --- leases -------------------------------------------------------------------------------------------------


def end_of_lease(lease_id: int) -> Record:
    command = command_pb2.Command(lease_revoke=rpc_pb2.LeaseRevokeRequest(ID=lease_id))
    data = command_pb2.Batch(commands=[command]).SerializeToString()
    return Record(Entry(1, 1, EntryKind.NORMAL, data), 0.0, 0.0, [(2, b"")], 2)


def test_a_lease_may_end_after_its_time_or_by_its_clients_wish_only() -> None:
    world = World(replace(draw_plan(1), clock_drift=0.1))
    stories = {
        1: LeaseStory(1, 5, alive_s=0.0),
        2: LeaseStory(2, 5, alive_s=7.0),
        3: LeaseStory(3, 5, alive_s=7.0, revoke_asked_s=8.0),
    }
    ledger = LeaseLedger(world, stories)
    world.now = 10.0
    ledger.applied(end_of_lease(1))
    ledger.applied(end_of_lease(3))
    with pytest.raises(Violation, match=r"alive at 7\.000 and ended at 10\.000"):
        ledger.applied(end_of_lease(2))
