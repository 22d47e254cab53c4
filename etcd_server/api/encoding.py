"""Protobuf's wire format, as far as answers are made by joining bytes.

A serialised message is the concatenation of its fields, in any order, and a parser merges what it finds. So
an answer is built from parts that already lie serialised in the database instead of from message objects: the
key-values of a Range are copied, never parsed. Only what that needs is here; requests are parsed by the
generated classes.

Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterable

_UINT64 = (1 << 64) - 1

# Varints below 2**14 ready made, and the same 14 bits as the continued low end of a longer varint: a varint
# of a revision costs two look-ups and one concatenation.
_SHORT = [bytes((n,)) if n < 128 else bytes((n & 127 | 128, n >> 7)) for n in range(1 << 14)]
_CONTINUED = [bytes((n & 127 | 128, n >> 7 | 128)) for n in range(1 << 14)]


def varint(number: int) -> bytes:
    """The base-128 form of an integer; a negative one (int64, int32) takes ten bytes as protobuf wants it."""
    if 0 <= number < 16384:
        return _SHORT[number]
    if 0 < number < 268435456:
        return _CONTINUED[number & 16383] + _SHORT[number >> 14]
    number &= _UINT64
    return _CONTINUED[number & 16383] + varint(number >> 14)


def read_varint(data: bytes, position: int = 0) -> tuple[int, int]:
    """The unsigned number that begins at `position`, and the position behind it.

    Raises ValueError when the data ends inside it or it is longer than ten bytes.
    """
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError(f"varint cut off at byte {position}")
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & _UINT64, position
    raise ValueError(f"varint longer than ten bytes before byte {position}")


def tag(field_number: int, wire_type: int) -> bytes:
    """What a field begins with; wire type 0 is a varint, 2 has a length in front. Numbers below 2048."""
    return _SHORT[field_number << 3 | wire_type]


def integer_field(field_number: int, number: int) -> bytes:
    """An int64, uint64, bool or enum field; nothing for 0, which proto3 leaves out."""
    return _SHORT[field_number << 3] + varint(number) if number else b""


def bytes_field(field_number: int, data: bytes) -> bytes:
    """A bytes or string field; nothing for an empty one, which proto3 leaves out."""
    return _SHORT[field_number << 3 | 2] + varint(len(data)) + data if data else b""


def message_field(field_number: int, message: bytes) -> bytes:
    """A field that holds a serialised message; an empty message is present, unlike empty bytes."""
    return _SHORT[field_number << 3 | 2] + varint(len(message)) + message


def repeated_field(field_number: int, messages: Iterable[bytes]) -> bytes:
    """All elements of a repeated message field, each with its tag and length, in one join."""
    messages = list(messages)
    start = tag(field_number, 2)
    starts = {size: start + varint(size) for size in set(map(len, messages))}
    return b"".join([part for message in messages for part in (starts[len(message)], message)])
