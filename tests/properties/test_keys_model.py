"""Ranges and varints against their definitions."""

from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st

from etcd_server.api.encoding import read_varint, varint
from etcd_server.api.keys import Interval, IntervalSet, interval, prefix_end
from etcd_server.api.proto import kv_pb2

few_letters = st.binary(max_size=3).map(lambda data: bytes(b"\0\x01a\xfe\xff"[byte % 5] for byte in data))
keys = few_letters.filter(len)
ALL_SHORT_KEYS = [
    bytes(letters) for size in (1, 2, 3) for letters in product(b"\0\x01a\xfe\xff", repeat=size)
]


@given(keys, few_letters, keys)
def test_a_range_contains_what_the_rules_say(key: bytes, range_end: bytes, candidate: bytes) -> None:
    if range_end == b"":
        expected = candidate == key
    elif range_end == b"\0":
        expected = candidate >= key
    else:
        expected = key <= candidate < range_end
    assert interval(key, range_end).contains(candidate) == expected


@given(few_letters, keys)
def test_a_prefix_is_a_range(prefix: bytes, key: bytes) -> None:
    assert interval(prefix or b"\0", prefix_end(prefix)).contains(key) == key.startswith(prefix)


intervals = st.builds(Interval, keys, st.one_of(st.none(), keys))


@given(intervals, intervals)
def test_overlap_and_cover(one: Interval, other: Interval) -> None:
    # Intervals between keys of up to three letters differ only where such a key, or one just behind it, lies.
    candidates = [key + tail for key in ALL_SHORT_KEYS for tail in (b"", b"\0")]
    in_one = {key for key in candidates if one.contains(key)}
    in_other = {key for key in candidates if other.contains(key)}
    assert one.overlaps(other) == bool(in_one & in_other)
    assert one.is_empty == (not in_one)
    if other.high is not None or one.high is None:
        assert one.covers(other) == (in_other <= in_one)


@given(st.lists(intervals, max_size=6), st.lists(intervals, max_size=6))
def test_a_set_of_intervals_is_their_union(some: list[Interval], others: list[Interval]) -> None:
    sets = []
    for spans in (some, others):
        keys = IntervalSet()
        for span in spans:
            keys.add(span)
        sets.append(keys)
    union = sets[0].union(sets[1])
    for key in (key + tail for key in ALL_SHORT_KEYS for tail in (b"", b"\0")):
        assert (key in union) == any(span.contains(key) for span in some + others)
    joined = list(union)
    for one, next_one in pairwise(joined):
        assert one.high is not None
        assert one.high < next_one.low


@given(st.integers(-(2**63), 2**63 - 1))
def test_varints_are_those_of_protobuf(number: int) -> None:
    data = b"\x30" + varint(number)
    assert kv_pb2.KeyValue.FromString(data).lease == number
    assert number == 0 or data == kv_pb2.KeyValue(lease=number).SerializeToString()
    assert read_varint(data, 1) == (number & 2**64 - 1, len(data))
