"""What etcd's store means, written as plainly as possible: one dictionary of keys for each revision.

Slow and memory-hungry on purpose: nothing here is clever enough to be wrong in the same way as the machine.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from etcd_server.api import errors
from etcd_server.api.proto import kv_pb2, rpc_pb2

KeyValue = kv_pb2.KeyValue
State = dict[bytes, KeyValue]
R = rpc_pb2.RangeRequest
C = rpc_pb2.Compare


@dataclass
class Event:
    """One change: the KeyValue of a put, or of a deletion its key and mod_revision only."""

    revision: int
    is_deletion: bool
    kv: KeyValue
    before: KeyValue | None


def matching(state: State, key: bytes, range_end: bytes) -> list[KeyValue]:
    """The key-values that a request's key and range_end name, in the order of keys."""
    if not range_end:
        names = [key] if key in state else []
    elif range_end == b"\0":
        names = [name for name in state if name >= key]
    else:
        names = [name for name in state if key <= name < range_end]
    return [state[name] for name in sorted(names)]


def select(kvs: list[KeyValue], request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
    """Filter, sort, cut: etcd's executeRange on what a range has found."""
    count = len(kvs)
    if request.count_only:
        return rpc_pb2.RangeResponse(count=count)
    filtered = [
        kv
        for kv in kvs
        if (not request.max_mod_revision or kv.mod_revision <= request.max_mod_revision)
        and (not request.min_mod_revision or kv.mod_revision >= request.min_mod_revision)
        and (not request.max_create_revision or kv.create_revision <= request.max_create_revision)
        and (not request.min_create_revision or kv.create_revision >= request.min_create_revision)
    ]
    has_filters = any(
        (
            request.max_mod_revision,
            request.min_mod_revision,
            request.max_create_revision,
            request.min_create_revision,
        )
    )
    if request.sort_order == R.NONE and not has_filters and request.limit > 0:
        filtered = filtered[: request.limit + 1]
    field_of = {
        R.KEY: "key",
        R.VERSION: "version",
        R.CREATE: "create_revision",
        R.MOD: "mod_revision",
        R.VALUE: "value",
    }
    filtered.sort(
        key=lambda kv: getattr(kv, field_of[request.sort_target]), reverse=request.sort_order == R.DESCEND
    )
    more = 0 < request.limit < len(filtered)
    shown = filtered[: request.limit] if more else filtered
    response = rpc_pb2.RangeResponse(kvs=shown, more=more, count=count)
    if request.keys_only:
        for kv in response.kvs:
            kv.ClearField("value")
    return response


@dataclass
class Model:
    """The store after every revision. `states[revision]` is what lived then."""

    revision: int = 1
    compacted: int = -1
    states: dict[int, State] = field(default_factory=lambda: {1: {}})
    events: list[Event] = field(default_factory=list)
    leases: dict[int, int] = field(default_factory=dict)

    @property
    def now(self) -> State:
        return self.states[self.revision]

    def keys_of(self, lease_id: int) -> list[bytes]:
        return sorted(key for key, kv in self.now.items() if kv.lease == lease_id)

    # --- requests -----------------------------------------------------------------------------------------

    def range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        if request.revision > self.revision:
            raise errors.FutureRevision
        revision = request.revision if request.revision > 0 else self.revision
        if revision < self.compacted:
            raise errors.Compacted
        return select(matching(self.states[revision], request.key, request.range_end), request)

    def put(self, request: rpc_pb2.PutRequest) -> rpc_pb2.PutResponse:
        if request.lease and request.lease not in self.leases:
            raise errors.LeaseNotFound
        if (request.ignore_value or request.ignore_lease) and request.key not in self.now:
            raise errors.KeyNotFound
        change = Changing(self)
        response = change.put(request)
        change.finish()
        response.header.revision = self.revision
        return response

    def delete(self, request: rpc_pb2.DeleteRangeRequest) -> rpc_pb2.DeleteRangeResponse:
        change = Changing(self)
        response = change.delete(request)
        change.finish()
        response.header.revision = self.revision
        return response

    def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        self._check(request)
        change = Changing(self)
        response = self._execute(change, request)
        change.finish()
        response.header.revision = self.revision
        return response

    def grant(self, lease_id: int, ttl_s: int) -> None:
        if lease_id in self.leases:
            raise errors.LeaseExists
        self.leases[lease_id] = ttl_s

    def revoke(self, lease_id: int) -> None:
        if lease_id not in self.leases:
            raise errors.LeaseNotFound
        change = Changing(self)
        for key in self.keys_of(lease_id):
            change.delete(rpc_pb2.DeleteRangeRequest(key=key))
        change.finish()
        del self.leases[lease_id]

    def compact(self, revision: int) -> None:
        if revision <= self.compacted:
            raise errors.Compacted
        if revision > self.revision:
            raise errors.FutureRevision
        self.compacted = revision

    # --- txns ---------------------------------------------------------------------------------------------

    def _holds(self, compare: rpc_pb2.Compare) -> bool:
        kvs = matching(self.now, compare.key, compare.range_end)
        if not kvs:
            if compare.target == C.VALUE:
                return False
            kvs = [KeyValue()]
        name = {
            C.VERSION: "version",
            C.CREATE: "create_revision",
            C.MOD: "mod_revision",
            C.VALUE: "value",
            C.LEASE: "lease",
        }[compare.target]
        wanted = getattr(compare, name)
        holds: Callable[[Any], bool] = {
            C.EQUAL: lambda found: found == wanted,
            C.NOT_EQUAL: lambda found: found != wanted,
            C.GREATER: lambda found: found > wanted,
            C.LESS: lambda found: found < wanted,
        }[compare.result]
        return all(holds(getattr(kv, name)) for kv in kvs)

    def _branch(self, request: rpc_pb2.TxnRequest) -> tuple[bool, list[rpc_pb2.RequestOp]]:
        succeeded = all(self._holds(compare) for compare in request.compare)
        return succeeded, list(request.success if succeeded else request.failure)

    def _check(self, request: rpc_pb2.TxnRequest) -> None:
        for operation in self._branch(request)[1]:
            if operation.HasField("request_range"):
                revision = operation.request_range.revision
                if revision > self.revision:
                    raise errors.FutureRevision
                if revision != 0 and revision < self.compacted:
                    raise errors.Compacted
            elif operation.HasField("request_put"):
                put = operation.request_put
                if (put.ignore_value or put.ignore_lease) and put.key not in self.now:
                    raise errors.KeyNotFound
                if put.lease and put.lease not in self.leases:
                    raise errors.LeaseNotFound
            elif operation.HasField("request_txn"):
                self._check(operation.request_txn)

    def _execute(self, change: "Changing", request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        succeeded, operations = self._branch(request)
        response = rpc_pb2.TxnResponse(header=rpc_pb2.ResponseHeader(), succeeded=succeeded)
        for operation in operations:
            answer = response.responses.add()
            if operation.HasField("request_range"):
                answer.response_range.CopyFrom(change.range(operation.request_range))
                answer.response_range.header.revision = change.revision
            elif operation.HasField("request_put"):
                answer.response_put.CopyFrom(change.put(operation.request_put))
                answer.response_put.header.revision = change.revision
            elif operation.HasField("request_delete_range"):
                answer.response_delete_range.CopyFrom(change.delete(operation.request_delete_range))
                answer.response_delete_range.header.revision = change.revision
            else:
                answer.response_txn.CopyFrom(self._execute(change, operation.request_txn))
        return response


class Changing:
    """The changes of one request, taken over all at once by `finish`."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.state = dict(model.now)
        self.events: list[Event] = []

    @property
    def revision(self) -> int:
        return self.model.revision + (1 if self.events else 0)

    def range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        past = 0 < request.revision < self.revision
        state = self.model.states[request.revision] if past else self.state
        return select(matching(state, request.key, request.range_end), request)

    def put(self, request: rpc_pb2.PutRequest) -> rpc_pb2.PutResponse:
        main, before = self.model.revision + 1, self.state.get(request.key)
        kept = before or KeyValue()
        kv = KeyValue(
            key=request.key,
            value=kept.value if request.ignore_value else request.value,
            lease=kept.lease if request.ignore_lease else request.lease,
            create_revision=before.create_revision if before else main,
            mod_revision=main,
            version=kept.version + 1,
        )
        self.state[request.key] = kv
        self.events.append(Event(main, False, kv, before))
        return rpc_pb2.PutResponse(prev_kv=before if request.prev_kv else None)

    def delete(self, request: rpc_pb2.DeleteRangeRequest) -> rpc_pb2.DeleteRangeResponse:
        main, kvs = self.model.revision + 1, matching(self.state, request.key, request.range_end)
        for kv in kvs:
            del self.state[kv.key]
            self.events.append(Event(main, True, KeyValue(key=kv.key, mod_revision=main), kv))
        return rpc_pb2.DeleteRangeResponse(deleted=len(kvs), prev_kvs=kvs if request.prev_kv else [])

    def finish(self) -> None:
        if self.events:
            self.model.revision += 1
            self.model.states[self.model.revision] = self.state
            self.model.events += self.events
