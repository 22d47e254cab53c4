"""Ranges of keys: membership, overlap, prefixes, and the special ends of etcd."""

import pytest

from etcd_server.api.keys import FROM_KEY, Interval, IntervalSet, interval, prefix_end, single


@pytest.mark.parametrize(
    ("key", "range_end", "inside", "outside"),
    [
        (b"a", b"", [b"a"], [b"", b"a\0", b"b"]),
        (b"a", b"c", [b"a", b"a\0", b"b\xff"], [b"c", b"A"]),
        (b"b", FROM_KEY, [b"b", b"c", b"\xff\xff"], [b"a\xff"]),
        (b"\0", FROM_KEY, [b"\0", b"a", b"\xff"], []),
        (b"b", b"b", [], [b"b", b"a"]),
        (b"b", b"a", [], [b"a", b"b"]),
    ],
)
def test_interval(key: bytes, range_end: bytes, inside: list[bytes], outside: list[bytes]) -> None:
    span = interval(key, range_end)
    assert all(span.contains(each) for each in inside)
    assert not any(span.contains(each) for each in outside)


def test_an_interval_whose_end_is_not_behind_its_start_is_empty() -> None:
    assert interval(b"b", b"a").is_empty
    assert interval(b"b", b"b").is_empty
    assert not interval(b"b", b"").is_empty
    assert not interval(b"b", FROM_KEY).is_empty


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"a", b"b"),
        (b"foo/", b"foo0"),
        (b"a\xff", b"b"),
        (b"a\xfe\xff\xff", b"a\xff"),
        (b"\xff", FROM_KEY),
        (b"\xff\xff", FROM_KEY),
        (b"", FROM_KEY),
    ],
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


def test_intervals_that_touch_do_not_overlap() -> None:
    assert not Interval(b"a", b"b").overlaps(Interval(b"b", b"c"))
    assert Interval(b"a", b"b\0").overlaps(Interval(b"b", b"c"))
    assert Interval(b"m", None).overlaps(Interval(b"a", None))
    assert not Interval(b"m", None).overlaps(Interval(b"a", b"m"))


def test_an_empty_interval_overlaps_nothing() -> None:
    empty = Interval(b"m", b"m")
    assert not empty.overlaps(Interval(b"a", None))
    assert not Interval(b"a", None).overlaps(empty)


def test_covers() -> None:
    assert Interval(b"a", None).covers(Interval(b"b", None))
    assert Interval(b"a", None).covers(single(b"a"))
    assert not Interval(b"a", b"z").covers(Interval(b"b", None))
    assert not Interval(b"b", b"z").covers(single(b"a"))
    assert Interval(b"a", b"b").covers(Interval(b"a", b"b"))
    assert not Interval(b"a", b"b").covers(Interval(b"a", b"b\0"))
    assert Interval(b"x", b"y").covers(Interval(b"q", b"q"))


def test_a_set_of_intervals_joins_what_touches() -> None:
    keys = IntervalSet()
    for low, high in ((b"d", b"e"), (b"a", b"b"), (b"x", b"a"), (b"f", b"g"), (b"b", b"c")):
        keys.add(Interval(low, high))
    assert list(keys) == [Interval(b"a", b"c"), Interval(b"d", b"e"), Interval(b"f", b"g")]
    assert b"b" in keys
    assert b"c" not in keys
    keys.add(Interval(b"b", b"f"))
    assert list(keys) == [Interval(b"a", b"g")]
    keys.add(Interval(b"p", None))
    assert b"\xff" in keys
    keys.add(Interval(b"q", b"r"))
    keys.add(Interval(b"0", None))
    assert list(keys) == [Interval(b"0", None)]
