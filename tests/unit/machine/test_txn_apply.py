"""Transactions with their effects: compares, branches, order, one revision for all."""

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.storage.schema import pack
from tests.unit.machine.machines import ALL, Lab
from tests.unit.machine.operations import delete, nested, put, read, txn, when


def header(revision: int) -> rpc_pb2.ResponseHeader:
    return rpc_pb2.ResponseHeader(revision=revision)


def test_one_revision_for_all_changes(lab: Lab) -> None:
    lab.put(b"x")
    response = lab.txn(txn(then=[put(b"a"), put(b"b"), delete(b"x")]))
    assert response.succeeded
    assert response.header.revision == 3
    assert [kv.mod_revision for kv in lab.range(**ALL).kvs] == [3, 3]
    change = lab.machine.take_changes()[-1]
    assert [(event[0], event[1], event[2]) for event in change[1]] == [
        (0, b"a", pack(3, 0)),
        (0, b"b", pack(3, 1)),
        (1, b"x", pack(3, 2)),
    ]


def test_the_answers_inside_carry_the_revision_they_saw(lab: Lab) -> None:
    lab.put(b"x", b"1")
    response = lab.txn(
        txn(then=[read(b"x"), delete(b"none"), put(b"a", b"1"), read(b"a"), delete(b"x"), delete(b"none")])
    )
    inner = [getattr(each, each.WhichOneof("response") or "") for each in response.responses]
    assert [each.header.revision for each in inner] == [2, 2, 3, 3, 3, 3]
    assert inner[3].kvs[0].mod_revision == 3
    assert [inner[1].deleted, inner[4].deleted, inner[5].deleted] == [0, 1, 0]


def test_a_nested_answer_has_an_empty_header(lab: Lab) -> None:
    response = lab.txn(txn(then=[nested(then=[put(b"a"), read(b"a", count_only=True)])]))
    inner = response.responses[0].response_txn
    assert inner.HasField("header")
    assert inner.header == rpc_pb2.ResponseHeader()
    assert inner.succeeded
    assert inner.responses[1].response_range == rpc_pb2.RangeResponse(header=header(2), count=1)


def test_prev_kv_inside(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.put(b"b", b"2")
    response = lab.txn(txn(then=[put(b"a", b"x", prev_kv=True), delete(b"b", prev_kv=True)]))
    assert response.responses[0].response_put.prev_kv.value == b"1"
    assert response.responses[1].response_delete_range.prev_kvs[0].value == b"2"


def test_a_txn_that_changes_nothing_keeps_the_revision(lab: Lab) -> None:
    lab.put(b"a")
    assert lab.txn(txn(then=[delete(b"none"), nested(then=[read(b"a")])])).header.revision == 2
    assert lab.txn(txn()) == rpc_pb2.TxnResponse(header=header(2), succeeded=True)


def test_failure_branch(lab: Lab) -> None:
    response = lab.txn(txn(when("version", b"a", ">", 0), then=[put(b"a")], otherwise=[put(b"b")]))
    assert not response.succeeded
    assert lab.keys() == [b"b"]


@pytest.mark.parametrize(
    ("target", "value"),
    [("version", 2), ("create_revision", 2), ("mod_revision", 3), ("lease", 7), ("value", b"m")],
)
def test_compare_targets_and_results(lab: Lab, target: str, value: int | bytes) -> None:
    lab.grant(7)
    lab.put(b"a", b"0")
    lab.put(b"a", b"m", lease=7)
    less, more = (b"l", b"n") if isinstance(value, bytes) else (value - 1, value + 1)

    def holds(sign: str, wanted: int | bytes) -> bool:
        return lab.txn(txn(when(target, b"a", sign, wanted))).succeeded

    assert [holds("=", wanted) for wanted in (less, value, more)] == [False, True, False]
    assert [holds("!=", wanted) for wanted in (less, value, more)] == [True, False, True]
    assert [holds(">", wanted) for wanted in (less, value, more)] == [True, False, False]
    assert [holds("<", wanted) for wanted in (less, value, more)] == [False, False, True]


def test_comparing_a_key_that_is_not_there(lab: Lab) -> None:
    for target in ("version", "create_revision", "mod_revision", "lease"):
        assert lab.txn(txn(when(target, b"a", "=", 0))).succeeded
        assert lab.txn(txn(when(target, b"a", "<", 1, b"c"))).succeeded
    for sign in ("=", "!=", "<", ">"):
        assert not lab.txn(txn(when("value", b"a", sign, b""))).succeeded
        assert not lab.txn(txn(when("value", b"a", sign, b"", b"c"))).succeeded


def test_a_range_must_agree_as_a_whole(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.put(b"b", b"2")
    assert lab.txn(txn(when("version", b"a", "=", 1, b"\0"))).succeeded
    assert lab.txn(txn(when("mod_revision", b"a", ">", 1, b"c"))).succeeded
    assert not lab.txn(txn(when("mod_revision", b"a", ">", 2, b"c"))).succeeded
    assert lab.txn(txn(when("value", b"a", "<", b"3", b"c"))).succeeded
    assert not lab.txn(txn(when("value", b"a", "<", b"2", b"c"))).succeeded


def test_a_target_without_its_value_compares_with_nothing(lab: Lab) -> None:
    compare = rpc_pb2.Compare(key=b"a", target=rpc_pb2.Compare.VERSION, create_revision=5)
    assert lab.txn(txn(compare)).succeeded


def test_unknown_targets_and_results_hold_as_in_etcd(lab: Lab) -> None:
    lab.put(b"a")
    unknown = rpc_pb2.Compare(key=b"a", target=9, result=rpc_pb2.Compare.EQUAL)  # type: ignore[arg-type]
    assert lab.txn(txn(unknown)).succeeded
    unknown = rpc_pb2.Compare(key=b"a", target=9, result=rpc_pb2.Compare.LESS)  # type: ignore[arg-type]
    assert not lab.txn(txn(unknown)).succeeded
    unknown = rpc_pb2.Compare(key=b"a", result=9, version=99)  # type: ignore[arg-type]
    assert lab.txn(txn(unknown)).succeeded
    unknown = rpc_pb2.Compare(key=b"a", range_end=b"c", result=9, version=99)  # type: ignore[arg-type]
    assert lab.txn(txn(unknown)).succeeded


def test_all_compares_see_the_state_before_the_txn(lab: Lab) -> None:
    response = lab.txn(
        txn(then=[put(b"a"), nested(when("version", b"a", "=", 0), then=[put(b"b")], otherwise=[put(b"c")])])
    )
    assert response.responses[1].response_txn.succeeded
    assert lab.keys() == [b"a", b"b"]


def test_only_the_operations_that_will_run_are_checked(lab: Lab) -> None:
    lab.txn(txn(then=[put(b"a")], otherwise=[put(b"b", lease=99)]))
    lab.txn(txn(then=[nested(otherwise=[put(b"c", lease=99)]), nested(then=[put(b"d")])]))
    assert lab.keys() == [b"a", b"d"]


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (put(b"z", lease=99), errors.LeaseNotFound),
        (put(b"z", ignore_value=True), errors.KeyNotFound),
        (put(b"z", ignore_lease=True), errors.KeyNotFound),
        (read(b"z", revision=4), errors.FutureRevision),
        (read(b"z", revision=2), errors.Compacted),
        (read(b"z", revision=-2), errors.Compacted),
        (put(b"z", ignore_value=True, lease=99), errors.KeyNotFound),
        (nested(then=[read(b"z", revision=4)]), errors.FutureRevision),
        (nested(then=[nested(), put(b"z", lease=99)]), errors.LeaseNotFound),
    ],
)
def test_an_error_refuses_the_txn_as_a_whole(
    lab: Lab, operation: rpc_pb2.RequestOp, error: type[errors.EtcdError]
) -> None:
    lab.put(b"a", b"1")
    lab.put(b"a", b"2")
    lab.compact(3)
    before = lab.content(("revisions", "current", "history"))
    with pytest.raises(error):
        lab.txn(txn(then=[put(b"b"), delete(b"a"), operation]))
    assert lab.content(("revisions", "current", "history")) == before
    assert lab.machine.revision == 3
    lab.put(b"c")
    assert lab.keys() == [b"a", b"c"]


def test_reading_in_the_past_inside_a_txn(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.put(b"a", b"2")
    response = lab.txn(
        txn(then=[put(b"a", b"3"), read(b"a", revision=2), read(b"a", revision=3), read(b"a")])
    )
    kvs = [each.response_range.kvs[0].value for each in response.responses[1:]]
    assert kvs == [b"1", b"2", b"3"]


def test_a_key_deleted_and_put_in_one_txn_is_new(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.txn(txn(then=[delete(b"a", b"\0"), put(b"a", b"2")]))
    kv = lab.get(b"a")
    assert kv is not None
    assert (kv.create_revision, kv.mod_revision, kv.version) == (3, 3, 1)
    lab.txn(txn(then=[nested(then=[put(b"a", b"3")]), nested(then=[delete(b"a")])]))
    assert lab.get(b"a") is None
    assert lab.get(b"a", revision=3) is not None
    lab.check_tables()


def test_nothing_to_keep_of_what_the_txn_itself_has_deleted(lab: Lab) -> None:
    # etcd's checks let this pass, and its members then die of it. Here the key is new and empty.
    lab.grant(7)
    lab.put(b"b", b"1", lease=7)
    lab.txn(txn(then=[delete(b"a", b"\0"), put(b"b", ignore_value=True, ignore_lease=True)]))
    kv = lab.get(b"b")
    assert kv is not None
    assert (kv.value, kv.lease, kv.version) == (b"", 0, 1)


def test_too_many_changes_for_one_revision(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etcd_server.machine.txn.MAX_CHANGES_PER_REVISION", 5)
    for key in (b"a", b"b", b"c", b"d"):
        lab.put(key)
    with pytest.raises(errors.TooManyOperations):
        lab.txn(txn(then=[put(b"x"), delete(b"a", b"e")]))
    assert lab.keys() == [b"a", b"b", b"c", b"d"]
    lab.txn(txn(then=[put(b"x"), delete(b"a", b"d")]))
    assert lab.keys() == [b"d", b"x"]


def test_a_read_only_txn_is_answered_without_an_entry(lab: Lab) -> None:
    lab.put(b"a", b"1")
    request = txn(when("version", b"a", "=", 1), then=[read(b"a"), read(**ALL, count_only=True)])
    response = rpc_pb2.TxnResponse.FromString(lab.machine.read_txn(request))
    assert response.succeeded
    assert response.responses[0].response_range.kvs[0].value == b"1"
    assert response.responses[0].response_range.header == header(2)
    assert response.responses[1].response_range.count == 1
    assert lab.machine.applied_index == 1
    with pytest.raises(errors.FutureRevision):
        lab.machine.read_txn(txn(then=[read(b"a", revision=3)]))
