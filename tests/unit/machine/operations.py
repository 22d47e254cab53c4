"""Short forms of the parts of a TxnRequest."""

from typing import Any

from etcd_server.api.proto import rpc_pb2

RESULTS = {
    "=": rpc_pb2.Compare.EQUAL,
    "!=": rpc_pb2.Compare.NOT_EQUAL,
    ">": rpc_pb2.Compare.GREATER,
    "<": rpc_pb2.Compare.LESS,
}
TARGETS = {
    "version": rpc_pb2.Compare.VERSION,
    "create_revision": rpc_pb2.Compare.CREATE,
    "mod_revision": rpc_pb2.Compare.MOD,
    "value": rpc_pb2.Compare.VALUE,
    "lease": rpc_pb2.Compare.LEASE,
}


def put(key: bytes, value: bytes = b"", **options: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, **options))


def delete(key: bytes, range_end: bytes = b"", **options: Any) -> rpc_pb2.RequestOp:
    request = rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, **options)
    return rpc_pb2.RequestOp(request_delete_range=request)


def read(key: bytes, range_end: bytes = b"", **options: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, range_end=range_end, **options))


def when(target: str, key: bytes, sign: str, wanted: int | bytes, range_end: bytes = b"") -> rpc_pb2.Compare:
    """A compare such as `when("version", b"a", ">", 0)`."""
    compare = rpc_pb2.Compare(target=TARGETS[target], result=RESULTS[sign], key=key, range_end=range_end)
    setattr(compare, target, wanted)
    return compare


def txn(
    *compares: rpc_pb2.Compare,
    then: list[rpc_pb2.RequestOp] | None = None,
    otherwise: list[rpc_pb2.RequestOp] | None = None,
) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(compare=compares, success=then or [], failure=otherwise or [])


def nested(
    *compares: rpc_pb2.Compare,
    then: list[rpc_pb2.RequestOp] | None = None,
    otherwise: list[rpc_pb2.RequestOp] | None = None,
) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_txn=txn(*compares, then=then, otherwise=otherwise))
