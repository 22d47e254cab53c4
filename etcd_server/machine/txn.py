"""Transactions: compare, then do one of two lists of operations, all at one revision.

Three steps, in this order, as in etcd. First all compares are evaluated, those of nested txns too, against
the state before the txn: they choose which operations will run (`_Branch`). Then these are checked, and an
error (a lease that is not there, a revision that is compacted) refuses the txn as a whole. Only then are they
executed, one after another, and a range sees what the operations before it have done. From there on nothing
can fail.

`check_txn` is what can be said of a request without any state; services call it before they propose.

Source: etcd server/etcdserver/txn/txn.go; server/etcdserver/api/v3rpc/key.go (checkTxnRequest,
checkIntervals).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etcd_server.api import errors
from etcd_server.api.encoding import integer_field, message_field, repeated_field
from etcd_server.api.keys import Interval, IntervalSet, interval
from etcd_server.api.proto import kv_pb2, rpc_pb2
from etcd_server.machine.mvcc import Outcome, Store, Write
from etcd_server.storage.schema import MAX_CHANGES_PER_REVISION, main_revision
from etcd_server.storage.tables import Column

LeaseExists = Callable[[int], bool]

_SORT_ORDERS = frozenset(rpc_pb2.RangeRequest.SortOrder.values())
_SORT_TARGETS = frozenset(rpc_pb2.RangeRequest.SortTarget.values())


# --- checks without state -------------------------------------------------------------------------


def check_range(request: rpc_pb2.RangeRequest) -> None:
    """Raises KeyNotProvided, InvalidSortOption."""
    if not request.key:
        raise errors.KeyNotProvided
    if request.sort_order not in _SORT_ORDERS or request.sort_target not in _SORT_TARGETS:
        raise errors.InvalidSortOption


def check_put(request: rpc_pb2.PutRequest) -> None:
    """Raises KeyNotProvided, ValueProvided, LeaseProvided."""
    if not request.key:
        raise errors.KeyNotProvided
    if request.ignore_value and request.value:
        raise errors.ValueProvided
    if request.ignore_lease and request.lease:
        raise errors.LeaseProvided


def check_delete_range(request: rpc_pb2.DeleteRangeRequest) -> None:
    """Raises KeyNotProvided."""
    if not request.key:
        raise errors.KeyNotProvided


def check_txn(request: rpc_pb2.TxnRequest, max_ops: int) -> None:
    """Whether a txn makes sense, whatever the state.

    max_ops: --max-txn-ops; a nested txn may have so many less as the txn around it has.
    Raises TooManyOperations, KeyNotProvided, KeyNotFound (an operation without content), what the checks of
    the single requests raise, and DuplicateKey: the same key changed twice on one path through the txn.
    """
    _check_operations(request, max_ops)
    _written(request.success)
    _written(request.failure)


def _check_operations(request: rpc_pb2.TxnRequest, max_ops: int) -> None:
    operations = max(len(request.compare), len(request.success), len(request.failure))
    if operations > max_ops:
        raise errors.TooManyOperations
    if not all(compare.key for compare in request.compare):
        raise errors.KeyNotProvided
    for branch in (request.success, request.failure):
        for operation in branch:
            match operation.WhichOneof("request"):
                case "request_range":
                    check_range(operation.request_range)
                case "request_put":
                    check_put(operation.request_put)
                case "request_delete_range":
                    check_delete_range(operation.request_delete_range)
                case "request_txn":
                    _check_operations(operation.request_txn, max_ops - operations)
                case _:
                    raise errors.KeyNotFound


def _written(operations: Iterable[rpc_pb2.RequestOp]) -> tuple[set[bytes], IntervalSet]:
    """The keys that a list of operations may put and those it may delete. Raises DuplicateKey.

    The two branches of a nested txn exclude each other, so both may put the same key. As in etcd, the
    deletions of a nested txn are held against the nested txns behind it and against this list's own puts, and
    a deletion "from a key on" is held against no put (etcd takes its `range_end` "\\0" for a bound here; seen
    in 3.4.23 and 3.5.1). A request has room for 100,000 operations, so nothing here may compare each with
    each.
    """
    deletes = IntervalSet()
    own_puts: list[bytes] = []
    nested: list[rpc_pb2.TxnRequest] = []
    for operation in operations:
        match operation.WhichOneof("request"):
            case "request_put":
                own_puts.append(operation.request_put.key)
            case "request_delete_range":
                request = operation.request_delete_range
                deletes.add(Interval(request.key, request.range_end or request.key + b"\0"))
            case "request_txn":
                nested.append(operation.request_txn)
    puts: set[bytes] = set()
    for txn in nested:
        then_puts, then_deletes = _written(txn.success)
        else_puts, else_deletes = _written(txn.failure)
        puts = _joined(puts, _union(then_puts, else_puts), deletes)
        deletes = deletes.union(then_deletes).union(else_deletes)
    own = set(own_puts)
    if len(own) < len(own_puts):
        raise errors.DuplicateKey
    return _joined(puts, own, deletes), deletes


def _joined(puts: set[bytes], more: set[bytes], deletes: IntervalSet) -> set[bytes]:
    """Both sets of keys in one. Raises DuplicateKey when they meet, or `more` meets what is deleted."""
    if not puts.isdisjoint(more) or (deletes and any(key in deletes for key in more)):
        raise errors.DuplicateKey
    return _union(puts, more)


def _union(some: set[bytes], others: set[bytes]) -> set[bytes]:
    """The larger set with the smaller taken in, so that deep nesting does not copy all keys at each level."""
    larger, smaller = (some, others) if len(some) >= len(others) else (others, some)
    larger |= smaller
    return larger


def contains_put(request: rpc_pb2.TxnRequest) -> bool:
    """Whether some path through the txn writes a value: such a txn makes the store larger."""
    return any(
        operation.HasField("request_put")
        or (operation.HasField("request_txn") and contains_put(operation.request_txn))
        for branch in (request.success, request.failure)
        for operation in branch
    )


# --- compares -------------------------------------------------------------------------------------


_COLUMNS = {
    rpc_pb2.Compare.VERSION: ("version", Column.VERSION),
    rpc_pb2.Compare.CREATE: ("create_revision", Column.CREATE),
    rpc_pb2.Compare.MOD: ("mod_revision", Column.MOD),
    rpc_pb2.Compare.VALUE: ("value", Column.VALUE),
    rpc_pb2.Compare.LEASE: ("lease", Column.LEASE),
}
_SIGNS: dict[int, tuple[str, Callable[[Any, Any], bool]]] = {
    rpc_pb2.Compare.EQUAL: ("=", operator.eq),
    rpc_pb2.Compare.NOT_EQUAL: ("<>", operator.ne),
    rpc_pb2.Compare.GREATER: (">", operator.gt),
    rpc_pb2.Compare.LESS: ("<", operator.lt),
}


def compare_holds(store: Store, compare: rpc_pb2.Compare) -> bool:
    """Whether every key of the compare's range has what it says.

    Without any key in the range, the version, revisions and lease are compared as 0, and a value never holds.
    A target that is unknown counts as equal and a result that is unknown as holding, as in etcd.
    """
    name, column = _COLUMNS.get(compare.target, ("version", None))
    sign, holds = _SIGNS.get(compare.result, ("", _always))
    wanted = getattr(compare, name)
    if column is None:
        return holds(0, 0)
    if not compare.range_end and column is not Column.VALUE:
        # One key: the hot path of locks and of compare-and-swap.
        packed, create, version, lease = store.tables.current(compare.key) or (0, 0, 0, 0)
        match column:
            case Column.VERSION:
                return holds(version, wanted)
            case Column.CREATE:
                return holds(create, wanted)
            case Column.MOD:
                return holds(main_revision(packed), wanted)
            case _:
                return holds(lease, wanted)
    low, high = interval(compare.key, compare.range_end)
    some, every = store.tables.compare(low, high, column, sign or "=", wanted)
    if not some:
        return column is not Column.VALUE and holds(0, wanted)
    return every or not sign


def _always(found: Any, wanted: Any) -> bool:
    return True


# --- single requests ------------------------------------------------------------------------------


def apply_put(store: Store, request: rpc_pb2.PutRequest, lease_exists: LeaseExists) -> Outcome:
    """A put with any of its options. Raises LeaseNotFound, KeyNotFound; nothing is changed then."""
    _check_lease(request, lease_exists)
    _check_previous(store, request)
    write = store.write()
    body = _put(write, request)
    return write.finish(), body


def apply_delete_range(store: Store, request: rpc_pb2.DeleteRangeRequest) -> Outcome:
    """Delete a range; without any key in it there is no new revision. Raises TooManyOperations."""
    _check_deletions(store, (request,))
    write = store.write()
    body = _delete_range(write, request)
    return write.finish(), body


def _check_lease(request: rpc_pb2.PutRequest, lease_exists: LeaseExists) -> None:
    if request.lease and not lease_exists(request.lease):
        raise errors.LeaseNotFound


def _check_previous(store: Store, request: rpc_pb2.PutRequest) -> None:
    if (request.ignore_value or request.ignore_lease) and store.tables.current(request.key) is None:
        raise errors.KeyNotFound


def _put(write: Write, request: rpc_pb2.PutRequest) -> bytes:
    value, lease = request.value, request.lease
    kv = None
    if request.prev_kv or request.ignore_value or request.ignore_lease:
        kv = write.latest(request.key)
        # Absent only when this very txn has deleted it, which etcd's check lets pass and then dies of: take
        # nothing.
        before = kv_pb2.KeyValue.FromString(kv or b"")
        value = before.value if request.ignore_value else value
        lease = before.lease if request.ignore_lease else lease
    write.put(request.key, value, lease)
    return message_field(2, kv) if request.prev_kv and kv is not None else b""


def _check_deletions(store: Store, requests: Sequence[rpc_pb2.DeleteRangeRequest], others: int = 0) -> None:
    """Refuse what would not fit into one main revision, before anything is changed.

    others: operations beside the deletions; each may add a change, and one more when it is deleted again.
    """
    number = 2 * others + sum(
        store.tables.count(*interval(request.key, request.range_end)) if request.range_end else 1
        for request in requests
    )
    if number > MAX_CHANGES_PER_REVISION:
        raise errors.TooManyOperations


def _delete_range(write: Write, request: rpc_pb2.DeleteRangeRequest) -> bytes:
    span = interval(request.key, request.range_end)
    previous = repeated_field(3, write.range(span)) if request.prev_kv else b""
    return integer_field(2, write.delete(span)) + previous


# --- transactions ---------------------------------------------------------------------------------


class _Branch(NamedTuple):
    """A txn whose compares have been decided: its outcome and what it will do. `nested` is in the order of
    operations.
    """

    succeeded: bool
    operations: Sequence[rpc_pb2.RequestOp]
    nested: Sequence[_Branch]


def _choose(store: Store, request: rpc_pb2.TxnRequest) -> _Branch:
    succeeded = True
    for compare in request.compare:
        if not compare_holds(store, compare):
            succeeded = False
            break
    operations = request.success if succeeded else request.failure
    nested = [_choose(store, op.request_txn) for op in operations if op.HasField("request_txn")]
    return _Branch(succeeded, operations, nested)


def _flat(branch: _Branch) -> Iterator[rpc_pb2.RequestOp]:
    """Every operation that will run, in order, nested txns dissolved."""
    nested = iter(branch.nested)
    for operation in branch.operations:
        if operation.HasField("request_txn"):
            yield from _flat(next(nested))
        else:
            yield operation


def _check(store: Store, branch: _Branch, lease_exists: LeaseExists) -> None:
    """Raises what refuses the txn as a whole, in the order of the operations (etcd 3.6)."""
    deletions, others = [], 0
    for operation in _flat(branch):
        match operation.WhichOneof("request"):
            case "request_range":
                store.check_revision(operation.request_range.revision)
            case "request_put":
                # The other way round than for a put by itself, in etcd up to 3.6.
                _check_previous(store, operation.request_put)
                _check_lease(operation.request_put, lease_exists)
                others += 1
            case "request_delete_range":
                deletions.append(operation.request_delete_range)
    if deletions:
        _check_deletions(store, deletions, others)


def apply_txn(store: Store, request: rpc_pb2.TxnRequest, lease_exists: LeaseExists) -> Outcome:
    """Execute a txn. Raises FutureRevision, Compacted, LeaseNotFound, KeyNotFound, TooManyOperations; nothing
    is changed then.
    """
    store.operations.txns += 1
    branch = _choose(store, request)
    _check(store, branch, lease_exists)
    write = store.write()
    body = _execute(store, write, branch)
    return write.finish(), body


def read_txn(store: Store, request: rpc_pb2.TxnRequest) -> bytes:
    """The answer to a txn whose operations are all ranges, without its header. Raises FutureRevision,
    Compacted.
    """
    store.operations.txns += 1
    branch = _choose(store, request)
    _check(store, branch, lambda lease_id: False)
    return _execute(store, store.write(), branch)


def _execute(store: Store, write: Write, branch: _Branch) -> bytes:
    nested = iter(branch.nested)
    responses = []
    for operation in branch.operations:
        match operation.WhichOneof("request"):
            case "request_range":
                revision = write.revision
                body = store.range(operation.request_range, revision)
                responses.append(message_field(1, _header(revision) + body))
            case "request_put":
                body = _put(write, operation.request_put)
                responses.append(message_field(2, _header(write.revision) + body))
            case "request_delete_range":
                body = _delete_range(write, operation.request_delete_range)
                responses.append(message_field(3, _header(write.revision) + body))
            case "request_txn":
                # The header of a nested answer is there and empty, in etcd as here.
                responses.append(message_field(4, b"\x0a\x00" + _execute(store, write, next(nested))))
    return integer_field(2, branch.succeeded) + repeated_field(3, responses)


def _header(revision: int) -> bytes:
    """The header of an answer inside a txn: a revision and nothing else."""
    return message_field(1, integer_field(3, revision))
