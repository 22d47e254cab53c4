"""What is said of a txn without looking at any state. The cases were compared with etcd 3.4.23 and 3.5.1."""

import time

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.txn import check_txn, contains_put
from tests.unit.machine.operations import delete, nested, put, read, txn, when

NO_KEY = rpc_pb2.Compare(target=rpc_pb2.Compare.VERSION)


@pytest.mark.parametrize(
    "request_",
    [
        txn(),
        txn(when("version", b"a", "=", 1), then=[put(b"a")], otherwise=[put(b"a")]),
        txn(then=[put(b"a"), put(b"b"), read(b"a"), delete(b"c")]),
        txn(then=[nested(then=[put(b"a")], otherwise=[put(b"a")])]),
        txn(then=[nested(then=[put(b"a")]), nested(then=[delete(b"a")])]),
        txn(then=[delete(b"a", b"\0"), put(b"c")]),
        txn(then=[delete(b"a", b"\0"), put(b"a")]),
        txn(then=[delete(b"d", b"a"), put(b"d"), put(b"b")]),
        txn(then=[delete(b"d", b"d"), put(b"d")]),
        txn(then=[delete(b"a"), delete(b"a", b"c")]),
    ],
)
def test_allowed(request_: rpc_pb2.TxnRequest) -> None:
    check_txn(request_, max_ops=128)


@pytest.mark.parametrize(
    "request_",
    [
        txn(then=[put(b"a"), put(b"a")]),
        txn(otherwise=[put(b"a"), put(b"a")]),
        txn(then=[put(b"a"), delete(b"a")]),
        txn(then=[delete(b"a", b"d"), put(b"c")]),
        txn(then=[put(b"c"), delete(b"a", b"d")]),
        txn(then=[put(b"a"), nested(then=[put(b"a")])]),
        txn(then=[put(b"a"), nested(otherwise=[put(b"a")])]),
        txn(then=[put(b"a"), nested(then=[delete(b"a")])]),
        txn(then=[delete(b"a"), nested(otherwise=[put(b"a")])]),
        txn(then=[nested(then=[delete(b"a")]), nested(then=[put(b"a")])]),
        txn(then=[nested(then=[put(b"a")]), nested(otherwise=[put(b"a")])]),
        txn(then=[nested(then=[nested(then=[put(b"a")])]), put(b"a")]),
    ],
)
def test_the_same_key_twice_on_one_path(request_: rpc_pb2.TxnRequest) -> None:
    with pytest.raises(errors.DuplicateKey):
        check_txn(request_, max_ops=128)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (txn(NO_KEY), errors.KeyNotProvided),
        (txn(then=[put(b"")]), errors.KeyNotProvided),
        (txn(otherwise=[read(b"")]), errors.KeyNotProvided),
        (txn(then=[delete(b"")]), errors.KeyNotProvided),
        (txn(then=[nested(then=[put(b"")])]), errors.KeyNotProvided),
        (txn(then=[rpc_pb2.RequestOp()]), errors.KeyNotFound),
        (txn(then=[put(b"a", b"1", ignore_value=True)]), errors.ValueProvided),
        (txn(then=[put(b"a", lease=1, ignore_lease=True)]), errors.LeaseProvided),
        (txn(then=[read(b"a", sort_order=9)]), errors.InvalidSortOption),
        (txn(then=[read(b"a", sort_target=9)]), errors.InvalidSortOption),
        # The first error counts: operations before duplicates, the number of operations before everything.
        (txn(then=[put(b"a"), put(b"a"), put(b"")]), errors.KeyNotProvided),
        (txn(NO_KEY, then=[put(b"")] * 5), errors.TooManyOperations),
    ],
)
def test_refused(request_: rpc_pb2.TxnRequest, error: type[errors.EtcdError]) -> None:
    with pytest.raises(error):
        check_txn(request_, max_ops=4)


def test_each_list_may_be_as_long_as_allowed() -> None:
    reads, compares = [read(b"a")] * 3, [when("version", b"a", "=", 1)] * 3
    check_txn(txn(*compares, then=reads, otherwise=reads), max_ops=3)
    for request in (txn(*compares), txn(then=reads), txn(otherwise=reads)):
        with pytest.raises(errors.TooManyOperations):
            check_txn(request, max_ops=2)


def test_a_nested_txn_has_what_the_one_around_it_leaves() -> None:
    request = txn(then=[nested(then=[read(b"a")] * 2), read(b"b")])
    check_txn(request, max_ops=4)
    with pytest.raises(errors.TooManyOperations):
        check_txn(request, max_ops=3)


def test_contains_put() -> None:
    assert contains_put(txn(otherwise=[put(b"a")]))
    assert contains_put(txn(then=[nested(otherwise=[put(b"a")])]))
    assert not contains_put(txn(then=[delete(b"a"), read(b"a"), nested(then=[read(b"b")])]))


def test_a_hundred_thousand_operations_are_checked_in_a_moment() -> None:
    def many(start: int, operations: int) -> rpc_pb2.TxnRequest:
        """One level with puts and deletions of distinct keys, half of each."""
        keys = [b"%06d" % number for number in range(start, start + operations)]
        return txn(then=[put(key) if number % 2 else delete(key) for number, key in enumerate(keys)])

    inner = [rpc_pb2.RequestOp(request_txn=many(number * 700, 700)) for number in range(140)]
    started = time.process_time()
    check_txn(txn(then=inner), max_ops=1000)
    assert time.process_time() - started < 10, "the check compares each operation with each other"
