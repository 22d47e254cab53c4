"""The checks of a finished run: the log against a plain model, clients' histories, watches, leases, states.

The model of tests/properties/store_model.py is given every entry of the ledger. Its outcomes must be those
that the members had, its states what they hold, its events what watchers were sent. The linearizability
checker, which knows nothing of the log's order, has the last word on what clients saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.mvcc import Outcome
from etcd_server.raft.messages import EntryKind
from tests.properties.store_model import Event, Model, matching, select
from tests.sim.history import RANGE, History, Operation, commands, ranges_of, settle_unknown
from tests.sim.invariants import Invariants, Record
from tests.sim.linearizability import Call, TooHard, check
from tests.sim.node import Host
from tests.sim.watch_checks import Truth, check_watch
from tests.sim.world import Violation, World

# What the model knows nothing of: it changes no key and no lease.
BESIDES = ("alarm", "member_attributes", "cluster_version")

RESPONSES: dict[str, Any] = {
    "put": rpc_pb2.PutResponse,
    "delete_range": rpc_pb2.DeleteRangeResponse,
    "txn": rpc_pb2.TxnResponse,
}


@dataclass(slots=True)
class Replay:
    """The model after the whole ledger, and the revocations of leases in it."""

    model: Model = field(default_factory=Model)
    revoked: list[tuple[Record, int, int]] = field(default_factory=list)
    """(record, lease id, revision)."""


def judge(world: World, invariants: Invariants, history: History, hosts: Sequence[Host]) -> None:
    """All checks of a finished run. Raises Violation."""
    replay = replay_ledger(invariants.ledger)
    check_states(replay.model, hosts)
    check_members(invariants.ledger, hosts)
    check_reads(history.operations, replay.model)
    if replay.model.leases:
        raise Violation(
            "lease outlived", f"nobody keeps them alive, but they are there: {replay.model.leases}"
        )
    truth = Truth(as_watchers_see(replay.model), replay.model.revision)
    for sessions in history.watches:
        for session in sessions:
            session.may_lack_previous = replay.model.compacted > 0
        check_watch(sessions, truth)
    check_linearizability(world, invariants, history, replay)


def as_watchers_see(model: Model) -> list[Event]:
    """The events of the log. What was before is what was there at the revision before, even where one
    transaction has changed a key twice; who makes a key is shown nothing (etcd: api/v3rpc/watch.go)."""
    return [
        event
        if event.kv.version == 1
        else replace(event, before=model.states[event.revision - 1].get(event.kv.key))
        for event in model.events
    ]


# --- the log and the states ---------------------------------------------------------------------------------


def replay_ledger(ledger: Sequence[Record]) -> Replay:
    """Give the model every entry. Raises Violation where a member's outcome was another."""
    replay = Replay()
    for record, position, kind, request in commands(ledger):
        expected = _perform(replay, record, kind, request)
        if record.applied_s < 0 or kind in BESIDES:
            continue
        if position >= len(record.outcomes):
            raise Violation("replay", f"entry {record.entry.index} has {len(record.outcomes)} outcomes")
        _compare_outcomes(record, kind, request, record.outcomes[position], expected, replay.model.revision)
    return replay


def _perform(replay: Replay, record: Record, kind: str, request: Any) -> Any:
    model = replay.model
    try:
        match kind:
            case "put":
                return model.put(request)
            case "delete_range":
                return model.delete(request)
            case "txn":
                return model.txn(request)
            case "compaction":
                return model.compact(request.revision)
            case "lease_grant":
                return model.grant(request.ID, request.TTL)
            case "lease_revoke":
                model.revoke(request.ID)
                replay.revoked.append((record, request.ID, model.revision))
    except EtcdError as error:
        return error
    return None


def _compare_outcomes(
    record: Record, kind: str, request: Any, found: Outcome, expected: Any, revision: int
) -> None:
    where = f"entry {record.entry.index}, {kind} {' '.join(str(request).split())}"
    if isinstance(found, EtcdError) or isinstance(expected, EtcdError):
        if type(found) is not type(expected):
            raise Violation("replay", f"{where}: {found!r}, the model says {expected!r}")
        return
    if found[0] != revision:
        raise Violation("replay", f"{where}: revision {found[0]}, the model says {revision}")
    if kind in RESPONSES:
        response = RESPONSES[kind].FromString(found[1])
        expected.ClearField("header")
        if response != expected:
            raise Violation("replay", f"{where}: {response}, the model says {expected}")


def check_states(model: Model, hosts: Sequence[Host]) -> None:
    """Members that have applied the same hold the same, and it is what the model holds."""
    dumps: dict[int, tuple[str, dict[str, Any]]] = {}
    for host in hosts:
        process = host.process
        if process is None:
            continue
        machine = process.machine
        if machine.applied_index == len(host.invariants.ledger):
            _check_against_model(host, model)
        dump = {table: _rows(host, table) for table in ("current", "leases", "members", "alarms")}
        if not machine.compaction_pending:
            dump |= {table: _rows(host, table) for table in ("revisions", "history")}
        other = dumps.setdefault(machine.applied_index, (host.name, dump))
        for table in dump.keys() & other[1].keys():
            if dump[table] != other[1][table]:
                raise Violation("equal states", f"{host.name} and {other[0]} differ in table {table}")
        found = process.database.connection.execute("PRAGMA integrity_check").get
        if found != "ok":
            raise Violation("integrity", f"{host.name}: {found}")


def check_members(ledger: Sequence[Record], hosts: Sequence[Host]) -> None:
    """Every member knows the members that the changes in the log have made, in its state and in its raft."""
    learners: dict[int, bool] = {}
    for record in ledger:
        if record.entry.kind is EntryKind.CONF_CHANGE and isinstance(record.outcomes[0], tuple):
            change = command_pb2.ConfChange.FromString(record.entry.data)
            if change.kind == change.REMOVE:
                del learners[change.member.ID]
            elif change.kind != change.UPDATE:
                learners[change.member.ID] = change.kind == change.ADD_LEARNER
    for host in hosts:
        process = host.process
        if process is None or process.machine.applied_index != len(ledger):
            continue
        stored = {int(row[0], 16): bool(row[4]) for row in _rows(host, "members")}
        configuration = process.node.status.configuration
        counted = {
            **dict.fromkeys(configuration.voters, False),
            **dict.fromkeys(configuration.learners, True),
        }
        for found in (stored, counted):
            if found != learners:
                raise Violation("members", f"{host.name} has {found}, the log says {learners}")


def _rows(host: Host, table: str) -> list[Any]:
    assert host.process is not None
    return host.process.database.connection.execute(f"SELECT * FROM {table}").fetchall()


def _check_against_model(host: Host, model: Model) -> None:
    assert host.process is not None
    machine = host.process.machine
    body = machine.range(rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
    found = list(rpc_pb2.RangeResponse.FromString(body).kvs)
    if found != matching(model.now, b"\0", b"\0") or machine.revision != model.revision:
        raise Violation(
            "state", f"{host.name} at revision {machine.revision} does not hold what the log says"
        )
    if dict(machine.leases.all()) != model.leases:
        raise Violation("state", f"{host.name} has leases {machine.leases.all()}, the log {model.leases}")
    if machine.compacted_revision != model.compacted:
        raise Violation("state", f"{host.name} is compacted at {machine.compacted_revision}")


# --- clients ------------------------------------------------------------------------------------------------


def check_reads(operations: Sequence[Operation], model: Model) -> None:
    """Every answer to a range is what the log says of the revision that it shows; local reads included.
    What one life of a member tells never goes back."""
    for operation in operations:
        if operation.path != RANGE or not operation.succeeded:
            continue
        request, response = operation.request, operation.response
        shown = request.revision or response.header.revision
        state = model.states.get(shown)
        if state is None:
            raise Violation("reads", f"no revision {shown} was ever there: {operation}")
        expected = select(matching(state, request.key, request.range_end), request)
        expected.header.CopyFrom(response.header)
        if expected != response:
            raise Violation("reads", f"{operation}, the log says {expected.kvs}, count {expected.count}")


def check_linearizability(world: World, invariants: Invariants, history: History, replay: Replay) -> None:
    """Writes and reads of the present, as one store in some order. Raises Violation."""
    calls = []
    for operation in settle_unknown(history.operations, invariants.ledger):
        request = operation.request
        if isinstance(request, rpc_pb2.RangeRequest):
            if request.serializable or request.revision or not operation.succeeded:
                continue
        elif isinstance(request, rpc_pb2.TxnRequest):
            if _is_local_read(request) or (_is_read(request) and not operation.succeeded):
                continue
        elif not isinstance(request, rpc_pb2.PutRequest | rpc_pb2.DeleteRangeRequest):
            continue
        calls.append(
            Call(
                request, operation.invoked_s, operation.completed_s, operation.response, label=str(operation)
            )
        )
    for record, lease_id, revision in replay.revoked:
        name = (record.entry.index, record.entry.term)
        response = rpc_pb2.LeaseRevokeResponse()
        response.header.revision = revision
        written_s = invariants.written_s.get(name, record.committed_s)
        calls.append(
            Call(None, written_s, record.committed_s, response, lease_id, f"the end of lease {lease_id}")
        )
    try:
        contradiction = check(calls)
    except TooHard:
        world.counts["history too hard to judge"] += 1
        return
    world.counts["operation judged"] += len(calls)
    if contradiction is not None:
        raise Violation("linearizable", "no order explains\n" + "\n".join(c.label for c in contradiction[:8]))


def _is_read(request: rpc_pb2.TxnRequest) -> bool:
    return all(part is not None for part in ranges_of(request))


def _is_local_read(request: rpc_pb2.TxnRequest) -> bool:
    return all(part is not None and part.serializable for part in ranges_of(request))
