"""What writers ask for: requests out of the whole of their fields, not a list of nice ones.

Values are unique, so that the log shows whose an entry is. A request that makes no sense (a key changed twice
in one transaction) is drawn again, now and then it is sent all the same.
"""

from __future__ import annotations

import random
from typing import Any, Protocol

from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.txn import check_txn
from tests.sim.history import DELETE, PUT, RANGE, TXN
from tests.sim.plan import Plan

R = rpc_pb2.RangeRequest
C = rpc_pb2.Compare

MOST_OPERATIONS = 128
TARGETS = {
    "version": C.VERSION,
    "create_revision": C.CREATE,
    "mod_revision": C.MOD,
    "value": C.VALUE,
    "lease": C.LEASE,
}
LIMITS = ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision")


class Known(Protocol):
    """What clients have learned so far."""

    highest_revision: int
    live_leases: list[int]

    def value(self) -> bytes: ...


class Requests:
    """Draws requests for one writer."""

    def __init__(self, draw: random.Random, plan: Plan, known: Known) -> None:
        self._draw = draw
        self._plan = plan
        self._known = known

    def next(self) -> tuple[str, Any]:
        """The path of a method, and a request for it."""
        kind = self._draw.random()
        if kind < 0.4:
            return PUT, self._put(self._key())
        if kind < 0.48:
            return DELETE, self._delete()
        if kind < 0.65:
            return TXN, self._sensible_txn()
        return RANGE, self._range()

    def _key(self) -> bytes:
        return b"k%02d" % self._draw.randrange(self._plan.keys)

    def _span(self) -> tuple[bytes, bytes]:
        """A key and a range_end."""
        return self._draw.choice(
            [
                (self._key(), b""),
                (self._key(), b""),
                (self._key(), self._key() + b"\0"),
                (b"k", b"l"),
                (self._key(), b"\0"),
            ]
        )

    def _put(self, key: bytes) -> rpc_pb2.PutRequest:
        draw, leases = self._draw, self._known.live_leases
        request = rpc_pb2.PutRequest(key=key, prev_kv=draw.random() < 0.2)
        if draw.random() < 0.05:
            request.ignore_value = True
        else:
            request.value = self._known.value()
        if draw.random() < 0.05:
            request.ignore_lease = True
        elif leases and draw.random() < 0.2:
            request.lease = draw.choice(leases)
        return request

    def _delete(self) -> rpc_pb2.DeleteRangeRequest:
        key, end = self._span()
        return rpc_pb2.DeleteRangeRequest(key=key, range_end=end, prev_kv=self._draw.random() < 0.3)

    def _range(self) -> rpc_pb2.RangeRequest:
        draw = self._draw
        key, end = self._span()
        request = R(key=key, range_end=end, serializable=draw.random() < 0.2)
        if draw.random() < 0.4:
            request.limit = draw.choice([0, 1, 3])
            request.sort_order = draw.choice(R.SortOrder.values())
            request.sort_target = draw.choice(R.SortTarget.values())
            request.keys_only = draw.random() < 0.2
            request.count_only = draw.random() < 0.2
            for limit in LIMITS:
                if draw.random() < 0.1:
                    setattr(request, limit, draw.randrange(1, self._known.highest_revision + 1))
        if draw.random() < 0.15:
            request.revision = self._past()
        return request

    def _past(self) -> int:
        """A revision of late, compacted perhaps, or one to come."""
        return max(1, self._known.highest_revision - self._draw.randrange(-2, 30))

    # --- transactions -------------------------------------------------------------------------------------

    def _sensible_txn(self) -> rpc_pb2.TxnRequest:
        while True:
            request = self._txn(depth=0)
            try:
                check_txn(request, MOST_OPERATIONS)
            except EtcdError:
                if self._draw.random() < 0.9:
                    continue
            return request

    def _txn(self, depth: int) -> rpc_pb2.TxnRequest:
        draw = self._draw
        request = rpc_pb2.TxnRequest(compare=[self._compare() for _ in range(draw.randrange(3))])
        for branch in (request.success, request.failure):
            for key in sorted({self._key() for _ in range(draw.randrange(4))}):
                kind = draw.random()
                if kind < 0.55:
                    branch.add().request_put.CopyFrom(self._put(key))
                elif kind < 0.7:
                    end = draw.choice([b"", b"", key + b"\0", b"\0"])
                    branch.add().request_delete_range.key = key
                    branch[-1].request_delete_range.range_end = end
                elif kind < 0.93 or depth == 2:
                    branch.add().request_range.CopyFrom(R(key=key, range_end=draw.choice([b"", b"l"])))
                else:
                    branch.add().request_txn.CopyFrom(self._txn(depth + 1))
            if draw.random() < 0.15:
                branch.add().request_range.CopyFrom(self._range())
        return request

    def _compare(self) -> rpc_pb2.Compare:
        draw, known = self._draw, self._known
        name = draw.choice([*TARGETS])
        compare = C(key=self._key(), target=TARGETS[name], result=draw.choice(C.CompareResult.values()))
        if draw.random() < 0.2:
            compare.range_end = draw.choice([b"\0", b"l", self._key()])
        if name == "value":
            compare.value = draw.choice([b"", b"v", b"v5"])
        elif name == "lease":
            compare.lease = draw.choice([0, 0, *known.live_leases])
        else:
            setattr(compare, name, draw.choice([0, 1, 2, known.highest_revision]))
        return compare
