"""What clients asked for, what they were told, and when: the evidence that the checkers judge.

An operation whose answer never came may have happened at any time after it was sent, or never. The log tells
more: what is in no entry did not happen, and what was applied happened before that (etcd:
tests/robustness/validate/patch_history.go). Values are unique, so an entry shows whose it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from etcd_server.api.errors import EtcdError, OutcomeUnknown
from etcd_server.api.methods import METHODS
from etcd_server.api.proto import command_pb2, kv_pb2, rpc_pb2
from etcd_server.raft.messages import EntryKind
from tests.sim.invariants import Record

PUT = "/etcdserverpb.KV/Put"
DELETE = "/etcdserverpb.KV/DeleteRange"
TXN = "/etcdserverpb.KV/Txn"
RANGE = "/etcdserverpb.KV/Range"
COMPACT = "/etcdserverpb.KV/Compact"
LEASE_GRANT = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE = "/etcdserverpb.Lease/LeaseRevoke"
WRITES = ("put", "delete_range", "txn")


@dataclass(slots=True)
class Operation:
    """One call. `completed_s` is infinite while its outcome is not known. `member`: who was asked, in which
    life."""

    client: int
    path: str
    request: Any
    invoked_s: float
    completed_s: float = inf
    response: Any = None
    error: EtcdError | None = None
    member: tuple[int, int] = (0, 0)

    @property
    def succeeded(self) -> bool:
        return self.response is not None

    def __str__(self) -> str:
        outcome = self.response if self.response is not None else self.error
        text = " ".join(f"{self.request} -> {'unknown' if outcome is None else outcome!r}".split())
        return f"[{self.invoked_s:.3f}, {self.completed_s:.3f}] client {self.client} {self.path} {text}"


@dataclass(slots=True)
class Delivery:
    """One message on a watch stream: a parsed WatchResponse."""

    at_s: float
    response: rpc_pb2.WatchResponse


@dataclass(slots=True)
class WatchSession:
    """One watch on one stream, from its creation to its end. `request`: as it was created."""

    request: rpc_pb2.WatchCreateRequest
    member: tuple[int, int]
    deliveries: list[Delivery] = field(default_factory=list)
    may_lack_previous: bool = False
    """The store was compacted in this run, so a value from before that may be gone."""
    is_current: bool = False
    """It is still open at the end of a run in which everything has come to rest."""
    begun_s: float = 0.0


@dataclass(slots=True)
class LeaseStory:
    """What a client knows of one lease. `alive_s`: when it sent the last request that was answered by "it
    lives", the grant or a keepalive."""

    lease_id: int
    ttl_s: int
    alive_s: float
    revoke_asked_s: float = inf
    ended_s: float = inf
    """When its end was first applied by a member."""


@dataclass(slots=True)
class History:
    """All that clients have seen in one run."""

    operations: list[Operation] = field(default_factory=list)
    watches: list[list[WatchSession]] = field(default_factory=list)
    """For each watch that a client wants, its sessions in order: each goes on where the last one ended."""
    leases: dict[int, LeaseStory] = field(default_factory=dict)


def commands(ledger: Sequence[Record]) -> Iterable[tuple[Record, int, str, Any]]:
    """(record, position in its entry, kind, request) of every replicated command, in order."""
    for record in ledger:
        if record.entry.kind is EntryKind.NORMAL:
            batch = command_pb2.Batch.FromString(record.entry.data)
            for position, command in enumerate(batch.commands):
                kind = command.WhichOneof("kind")
                assert kind is not None
                yield record, position, kind, getattr(command, kind)


def written_values(request: Any) -> list[bytes]:
    """The values that a put or txn would write."""
    if isinstance(request, rpc_pb2.PutRequest):
        return [] if request.ignore_value else [request.value]
    if isinstance(request, rpc_pb2.TxnRequest):
        parts = [request_of(operation) for operation in (*request.success, *request.failure)]
        return [value for part in parts for value in written_values(part)]
    return []


def request_of(operation: rpc_pb2.RequestOp) -> Any:
    """The request that one operation of a txn is."""
    return getattr(operation, operation.WhichOneof("request") or "")


def ranges_of(request: rpc_pb2.TxnRequest) -> Iterator[rpc_pb2.RangeRequest | None]:
    """The ranges of a txn and of those in it; None for each operation that would change something."""
    for operation in (*request.success, *request.failure):
        part = request_of(operation)
        if isinstance(part, rpc_pb2.TxnRequest):
            yield from ranges_of(part)
        else:
            yield part if isinstance(part, rpc_pb2.RangeRequest) else None


def settle_unknown(operations: Iterable[Operation], ledger: Sequence[Record]) -> list[Operation]:
    """The operations that count: refused ones had no effect, and of those with an unknown outcome the log
    shows which never happened, what became of the others, and by when.

    What writes no value does not show whose it is: it may be any of its likes in the log, and so it happened
    before the last of them was applied, or never."""
    found: dict[bytes, tuple[Record, int]] = {}
    likes: dict[tuple[str, bytes], float] = {}
    for record, position, kind, request in commands(ledger):
        for value in written_values(request):
            found[value] = (record, position)
        if kind in WRITES:
            name = type(request).__name__, request.SerializeToString(deterministic=True)
            likes[name] = record.applied_s if record.applied_s >= 0 else inf
    kept = []
    for operation in operations:
        if not operation.succeeded and operation.completed_s == inf:
            values = written_values(operation.request)
            if values:
                if values[0] not in found:
                    continue
                _learn(operation, *found[values[0]])
            elif operation.path in (PUT, DELETE, TXN):
                request = operation.request
                name = type(request).__name__, request.SerializeToString(deterministic=True)
                if name not in likes:
                    continue
                operation.completed_s = likes[name]
        if operation.succeeded or operation.error is None or isinstance(operation.error, OutcomeUnknown):
            kept.append(operation)
    return kept


def _learn(operation: Operation, record: Record, position: int) -> None:
    """The outcome of an operation, from the log."""
    if record.applied_s < 0:
        return
    operation.completed_s = record.applied_s
    outcome = record.outcomes[position]
    if isinstance(outcome, EtcdError):
        operation.error = outcome
        return
    operation.response = METHODS[operation.path].response.FromString(outcome[1])
    operation.response.header.revision = outcome[0]


def kv_text(kv: kv_pb2.KeyValue) -> str:
    return f"{kv.key!r}={kv.value[:20]!r} create {kv.create_revision} mod {kv.mod_revision} v{kv.version}"
