"""Transactions, nested and not, against the model."""

from typing import Any

from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.txn import check_txn
from tests.properties.store_twins import LEASES, Twins, deletions, ends, keys, puts, ranges, values

FIELDS = ["version", "create_revision", "mod_revision", "value", "lease"]


@st.composite
def compares(draw: st.DrawFn) -> rpc_pb2.Compare:
    target = draw(st.integers(0, 4))
    wanted: Any = draw(values if FIELDS[target] == "value" else st.integers(0, 6))
    compare = rpc_pb2.Compare(
        key=draw(keys),
        range_end=draw(ends),
        target=target,  # type: ignore[arg-type]
        result=draw(st.sampled_from(rpc_pb2.Compare.CompareResult.values())),
    )
    setattr(compare, FIELDS[target], wanted)
    return compare


def operations(nested: st.SearchStrategy[rpc_pb2.TxnRequest]) -> st.SearchStrategy[rpc_pb2.RequestOp]:
    return st.one_of(
        puts().map(lambda request: rpc_pb2.RequestOp(request_put=request)),
        ranges().map(lambda request: rpc_pb2.RequestOp(request_range=request)),
        deletions().map(lambda request: rpc_pb2.RequestOp(request_delete_range=request)),
        nested.map(lambda request: rpc_pb2.RequestOp(request_txn=request)),
    )


def txns(nested: st.SearchStrategy[rpc_pb2.TxnRequest]) -> st.SearchStrategy[rpc_pb2.TxnRequest]:
    branch = st.lists(operations(nested), max_size=3)
    return st.builds(
        lambda compare, then, otherwise: rpc_pb2.TxnRequest(compare=compare, success=then, failure=otherwise),
        st.lists(compares(), max_size=2),
        branch,
        branch,
    )


any_txn = st.recursive(st.just(rpc_pb2.TxnRequest()), txns, max_leaves=4)


def ranges_of(request: rpc_pb2.TxnRequest) -> list[rpc_pb2.RangeRequest]:
    found = []
    for operation in (*request.success, *request.failure):
        if operation.HasField("request_range"):
            found.append(operation.request_range)
        elif operation.HasField("request_txn"):
            found += ranges_of(operation.request_txn)
    return found


class Transactions(Twins):
    """Whatever passes the checks is applied as a whole, or refused as a whole."""

    @rule(lease_id=st.sampled_from(LEASES))
    def grant(self, lease_id: int) -> None:
        self.both(lambda: self.lab.grant(lease_id) and None, lambda: self.model.grant(lease_id, 60))

    @rule(request=any_txn)
    def txn(self, request: rpc_pb2.TxnRequest) -> None:
        request = rpc_pb2.TxnRequest.FromString(request.SerializeToString())
        for each in ranges_of(request):
            self.looking_back(each)
        try:
            check_txn(request, max_ops=128)
        except EtcdError:
            assume(False)
        self.both(lambda: self.lab.txn(request), lambda: self.model.txn(request))

    @rule(compare=st.lists(compares(), max_size=2), then=st.lists(ranges(), max_size=3))
    def read_only_txn(self, compare: list[rpc_pb2.Compare], then: list[rpc_pb2.RangeRequest]) -> None:
        for each in then:
            self.looking_back(each)
        request = rpc_pb2.TxnRequest(
            compare=compare, success=[rpc_pb2.RequestOp(request_range=each) for each in then]
        )

        def real() -> rpc_pb2.TxnResponse:
            response = rpc_pb2.TxnResponse.FromString(self.lab.machine.read_txn(request))
            response.header.revision = self.lab.machine.revision
            return response

        self.both(real, lambda: self.model.txn(request))


TestTransactions = Transactions.TestCase
TestTransactions.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
