"""What requests look like on the wire: ranges, comparisons, operations."""

from __future__ import annotations

from base64 import b64decode

import pytest

from etcd_client import PutResult, RangeResult, TxnResult, compare, errors, ops
from etcd_client.types import prefix_range_end, to_bytes
from tests.unit.client.fakes import A, FakeTransport, fake_client, kv, ok


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0"), ("é", b"\xc3\xaa")],
)
def test_the_end_of_a_prefix(prefix: bytes | str, end: bytes) -> None:
    assert prefix_range_end(prefix) == end


def test_every_key_is_the_empty_prefix() -> None:
    assert ops.prefix_of("") == (b"\0", b"\0")


def test_keys_are_bytes_or_str() -> None:
    assert to_bytes("a\udcff") == b"a\xff"
    with pytest.raises(TypeError, match="expected bytes or str, got int"):
        to_bytes(5)  # type: ignore[arg-type]


def test_a_range_leaves_out_what_is_default() -> None:
    assert ops.range_body("k") == {"key": "aw=="}
    body = ops.range_body(
        "a",
        "b",
        revision=4,
        limit=2,
        sort_order="DESCEND",
        sort_target="MOD",
        keys_only=True,
        serializable=True,
    )
    assert body == {
        "key": "YQ==",
        "range_end": "Yg==",
        "revision": "4",
        "limit": "2",
        "sort_order": "DESCEND",
        "sort_target": "MOD",
        "keys_only": True,
        "serializable": True,
    }
    with pytest.raises(ValueError, match="expected one of KEY"):
        ops.range_body("a", sort_target="SIZE")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (compare.mod_revision("k") == 7, ("EQUAL", "MOD", "mod_revision", "7")),
        (compare.create_revision("k") != 0, ("NOT_EQUAL", "CREATE", "create_revision", "0")),
        (compare.version("k") > 1, ("GREATER", "VERSION", "version", "1")),
        (compare.lease("k") < 9, ("LESS", "LEASE", "lease", "9")),
        (compare.value("k") == "v", ("EQUAL", "VALUE", "value", "dg==")),
        (compare.exists("k"), ("GREATER", "CREATE", "create_revision", "0")),
        (compare.missing("k"), ("EQUAL", "CREATE", "create_revision", "0")),
    ],
)
def test_a_comparison_says_what_it_reads_like(made: compare.Compare, expected: tuple[str, ...]) -> None:
    result, target, field, operand = expected
    assert made.body == {"key": "aw==", "result": result, "target": target, field: operand}


def test_a_comparison_with_the_wrong_type_is_refused() -> None:
    with pytest.raises(TypeError, match="mod_revision is compared with an int, not str"):
        compare.mod_revision("k") == "7"  # noqa: B015
    with pytest.raises(TypeError, match="compared with bytes or str, not int"):
        compare.value("k") == 7  # noqa: B015


def test_the_results_of_a_txn_come_back_in_order() -> None:
    answer = ok(
        8,
        succeeded=True,
        responses=[
            {"response_range": {"header": {"revision": "7"}, "kvs": [kv("k", "v", 3)], "count": "1"}},
            {"response_put": {"header": {"revision": "8"}}},
            {
                "response_txn": {
                    "header": {"revision": "8"},
                    "responses": [{"response_delete_range": {"deleted": "2"}}],
                }
            },
        ],
    )
    transport = FakeTransport(a=[answer])
    done = fake_client(transport, A).txn(
        [compare.exists("k")],
        [ops.get("k"), ops.put("a", "b"), ops.txn(failure=[ops.delete_prefix("x")])],
        [ops.get("other")],
    )
    found, put, inner = done.responses
    assert isinstance(found, RangeResult)
    assert isinstance(put, PutResult)
    assert isinstance(inner, TxnResult)
    assert (found.kvs[0].value, put.revision, inner.succeeded) == (b"v", 8, False)
    sent = transport.requests[0][2]
    assert (
        b64decode(sent["success"][2]["request_txn"]["failure"][0]["request_delete_range"]["range_end"])
        == b"y"
    )


def test_an_unknown_operation_result_is_a_bad_answer() -> None:
    answer = ok(8, succeeded=True, responses=[{"response_new": {}}])
    with pytest.raises(errors.BadAnswer):
        fake_client(FakeTransport(a=[answer]), A).txn(success=[ops.get("k")])


def test_put_sends_its_options() -> None:
    transport = FakeTransport(a=[ok(9, prev_kv=kv("k", "old", 3))])
    done = fake_client(transport, A).put("k", b"\xff", lease=0x77, prev_kv=True, ignore_lease=False)
    assert done.prev_kv is not None
    assert (done.revision, done.prev_kv.value) == (9, b"old")
    assert transport.requests[0] == (
        "a",
        "/v3/kv/put",
        {"key": "aw==", "value": "/w==", "lease": "119", "prev_kv": True},
    )
