"""The operations of a transaction, as plain functions that make frozen values, and the requests' JSON bodies.

The bodies are etcdserverpb messages in proto3 JSON (etcd's rpc.proto); `Client` sends the same ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from etcd_client.compare import Compare
from etcd_client.types import BytesLike, Json, base64_text, prefix_range_end, to_bytes

SORT_ORDERS = ("NONE", "ASCEND", "DESCEND")
SORT_TARGETS = ("KEY", "VERSION", "CREATE", "MOD", "VALUE")


class RangeOptions(TypedDict, total=False):
    """Options of a read; a missing one means the default.

    revision: read the store as it was then (None or 0 = now). limit: at most so many keys (0 = all).
    sort_order: NONE, ASCEND or DESCEND. sort_target: KEY, VERSION, CREATE, MOD or VALUE. serializable:
    answered by one member without asking the others, possibly stale. keys_only: no values.
    count_only: no keys.
    min_/max_mod_revision, min_/max_create_revision: leave out keys outside (0 = no bound).
    """

    revision: int | None
    limit: int
    sort_order: str
    sort_target: str
    serializable: bool
    keys_only: bool
    count_only: bool
    min_mod_revision: int
    max_mod_revision: int
    min_create_revision: int
    max_create_revision: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, as etcdserverpb.RequestOp in proto3 JSON. `repeatable`: it changes nothing."""

    body: Json
    repeatable: bool


def get(key: BytesLike, range_end: BytesLike | None = None, **options: Unpack[RangeOptions]) -> Operation:
    """Reads a key or a range; options as `range_body`."""
    return Operation({"request_range": range_body(key, range_end, **options)}, repeatable=True)


def get_prefix(prefix: BytesLike, **options: Unpack[RangeOptions]) -> Operation:
    """Reads all keys that begin with `prefix`; options as `range_body`."""
    return get(*prefix_of(prefix), **options)


def put(
    key: BytesLike,
    value: BytesLike = b"",
    *,
    lease: int = 0,
    prev_kv: bool = False,
    ignore_value: bool = False,
    ignore_lease: bool = False,
) -> Operation:
    """Writes a key; options as Client.put."""
    body = put_body(
        key, value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
    )
    return Operation({"request_put": body}, repeatable=False)


def delete(key: BytesLike, range_end: BytesLike | None = None, *, prev_kv: bool = False) -> Operation:
    """Deletes a key or a range."""
    return Operation({"request_delete_range": delete_body(key, range_end, prev_kv=prev_kv)}, repeatable=False)


def delete_prefix(prefix: BytesLike, *, prev_kv: bool = False) -> Operation:
    """Deletes all keys that begin with `prefix`."""
    return delete(*prefix_of(prefix), prev_kv=prev_kv)


def txn(
    compare: Sequence[Compare] = (),
    success: Sequence[Operation] = (),
    failure: Sequence[Operation] = (),
) -> Operation:
    """A transaction inside a transaction."""
    body = txn_body(compare, success, failure)
    return Operation({"request_txn": body}, all(op.repeatable for op in (*success, *failure)))


def prefix_of(prefix: BytesLike) -> tuple[bytes, bytes]:
    """`(key, range_end)` of all keys that begin with `prefix`; the empty prefix is every key."""
    return (to_bytes(prefix) or b"\0", prefix_range_end(prefix))


_NUMBER_OPTIONS = (
    "revision",
    "limit",
    "min_mod_revision",
    "max_mod_revision",
    "min_create_revision",
    "max_create_revision",
)
_FLAG_OPTIONS = ("serializable", "keys_only", "count_only")


def range_body(key: BytesLike, range_end: BytesLike | None = None, **options: Unpack[RangeOptions]) -> Json:
    """etcdserverpb.RangeRequest in proto3 JSON. Raises ValueError for an unknown sort."""
    order, target = options.get("sort_order", "NONE"), options.get("sort_target", "KEY")
    if order not in SORT_ORDERS or target not in SORT_TARGETS:
        raise ValueError(
            f"sort by {target!r} {order!r}: expected one of {', '.join(SORT_TARGETS)} "
            f"and one of {', '.join(SORT_ORDERS)}"
        )
    body: Json = {"key": base64_text(key)}
    if range_end is not None:
        body["range_end"] = base64_text(range_end)
    body |= {name: str(number) for name in _NUMBER_OPTIONS if (number := options.get(name))}
    if order != "NONE" or target != "KEY":
        body |= {"sort_order": order, "sort_target": target}
    return body | {name: True for name in _FLAG_OPTIONS if options.get(name)}


def put_body(
    key: BytesLike,
    value: BytesLike = b"",
    *,
    lease: int = 0,
    prev_kv: bool = False,
    ignore_value: bool = False,
    ignore_lease: bool = False,
) -> Json:
    """etcdserverpb.PutRequest in proto3 JSON."""
    body: Json = {"key": base64_text(key), "value": base64_text(value)}
    if lease:
        body["lease"] = str(lease)
    flags = {"prev_kv": prev_kv, "ignore_value": ignore_value, "ignore_lease": ignore_lease}
    return body | {name: True for name, flag in flags.items() if flag}


def delete_body(key: BytesLike, range_end: BytesLike | None = None, *, prev_kv: bool = False) -> Json:
    """etcdserverpb.DeleteRangeRequest in proto3 JSON."""
    body: Json = {"key": base64_text(key)}
    if range_end is not None:
        body["range_end"] = base64_text(range_end)
    if prev_kv:
        body["prev_kv"] = True
    return body


def txn_body(compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]) -> Json:
    """etcdserverpb.TxnRequest in proto3 JSON."""
    return {
        "compare": [comparison.body for comparison in compare],
        "success": [operation.body for operation in success],
        "failure": [operation.body for operation in failure],
    }
