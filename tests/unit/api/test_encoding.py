"""Field framing: what is joined here is what protobuf's own parser reads."""

import pytest

from etcd_server.api.encoding import (
    bytes_field,
    integer_field,
    message_field,
    read_varint,
    repeated_field,
    tag,
    varint,
)
from etcd_server.api.proto import kv_pb2, rpc_pb2


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (0, b"\x00"),
        (1, b"\x01"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (300, b"\xac\x02"),
        (16383, b"\xff\x7f"),
        (16384, b"\x80\x80\x01"),
        (2**28 - 1, b"\xff\xff\xff\x7f"),
        (2**28, b"\x80\x80\x80\x80\x01"),
        (2**63 - 1, b"\xff" * 8 + b"\x7f"),
        (2**64 - 1, b"\xff" * 9 + b"\x01"),
        (-1, b"\xff" * 9 + b"\x01"),
        (-(2**63), b"\x80" * 9 + b"\x01"),
    ],
)
def test_varint(number: int, data: bytes) -> None:
    assert varint(number) == data
    assert read_varint(b"x" + data + b"x", 1) == (number & 2**64 - 1, 1 + len(data))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff\xff"])
def test_a_varint_that_is_cut_off_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="cut off"):
        read_varint(data)


def test_a_varint_without_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="ten bytes"):
        read_varint(b"\x80" * 11)


def test_fields_are_those_of_protobuf() -> None:
    kv = kv_pb2.KeyValue(key=b"k", mod_revision=70_000, value=b"v" * 300, lease=-5)
    data = bytes_field(1, b"k") + integer_field(3, 70_000) + bytes_field(5, b"v" * 300) + integer_field(6, -5)
    assert data == kv.SerializeToString()


def test_proto3_leaves_out_what_is_empty() -> None:
    assert integer_field(3, 0) == b""
    assert integer_field(3, False) == b""
    assert bytes_field(3, b"") == b""


def test_an_empty_message_is_there() -> None:
    response = rpc_pb2.PutResponse.FromString(message_field(1, b""))
    assert response.HasField("header")


def test_tag_of_a_great_field_number() -> None:
    assert rpc_pb2.Compare.FromString(tag(64, 2) + b"\x01z").range_end == b"z"


def test_repeated_field() -> None:
    kvs = [kv_pb2.KeyValue(key=b"k" * size) for size in (0, 1, 1, 200, 20_000)]
    body = repeated_field(2, [kv.SerializeToString() for kv in kvs])
    assert list(rpc_pb2.RangeResponse.FromString(body).kvs) == kvs
    assert repeated_field(2, []) == b""
