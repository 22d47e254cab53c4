"""Keys and ranges of keys, by etcd's rules.

A request names keys by `key` and `range_end`:

    range_end empty      the one key `key`
    range_end "\\0"       every key from `key` on; with key "\\0" every key there is
    otherwise            key <= k < range_end; nothing when range_end <= key

Everywhere below this module a range is an `Interval`, half open, whose high end is None when it has none.
Keys are never empty and compare bytewise, so "\\0" is the smallest one.

Source: etcd api/etcdserverpb/rpc.proto (RangeRequest), server/etcdserver/txn (mkGteRange).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

FROM_KEY = b"\0"
"""As `range_end`: no upper bound."""


class Interval(NamedTuple):
    """The keys `low <= key < high`; without `high`, all from `low` on."""

    low: bytes
    high: bytes | None

    def contains(self, key: bytes) -> bool:
        return self.low <= key and (self.high is None or key < self.high)

    def overlaps(self, other: Interval) -> bool:
        """Whether some key could lie in both."""
        return not (self.is_empty or other.is_empty) and (
            (self.high is None or other.low < self.high) and (other.high is None or self.low < other.high)
        )

    def covers(self, other: Interval) -> bool:
        """Whether every key of `other` lies in this one."""
        if other.is_empty:
            return True
        if self.low > other.low:
            return False
        return self.high is None or (other.high is not None and other.high <= self.high)

    @property
    def is_empty(self) -> bool:
        return self.high is not None and self.high <= self.low


class IntervalSet:
    """Keys, as the union of intervals: disjoint ones in their order. Looking up costs a binary search."""

    def __init__(self) -> None:
        self._lows: list[bytes] = []
        self._highs: list[bytes | None] = []

    def __len__(self) -> int:
        return len(self._lows)

    def __contains__(self, key: bytes) -> bool:
        at = bisect_right(self._lows, key) - 1
        if at < 0:
            return False
        high = self._highs[at]
        return high is None or key < high

    def __iter__(self) -> Iterator[Interval]:
        return map(Interval, self._lows, self._highs)

    def add(self, span: Interval) -> None:
        """Take in the keys of an interval; those that it overlaps or touches become one with it."""
        if span.is_empty:
            return
        low, high = span
        first = bisect_left(self._lows, low)
        if first and _reaches(self._highs[first - 1], low):
            first -= 1
            low = self._lows[first]
        last = first
        while last < len(self._lows) and _reaches(high, self._lows[last]):
            if high is not None and _reaches(self._highs[last], high):
                high = self._highs[last]
            last += 1
        self._lows[first:last] = [low]
        self._highs[first:last] = [high]

    def union(self, other: IntervalSet) -> IntervalSet:
        """The keys of both, gathered in the larger one; neither of the two may be used any more."""
        larger, smaller = (self, other) if len(self) >= len(other) else (other, self)
        for span in smaller:
            larger.add(span)
        return larger


def _reaches(high: bytes | None, key: bytes) -> bool:
    """Whether an interval that ends with `high` leaves no gap before `key`."""
    return high is None or high >= key


def single(key: bytes) -> Interval:
    """The interval of one key: between a key and itself followed by a zero byte lies no other."""
    return Interval(key, key + b"\0")


def interval(key: bytes, range_end: bytes) -> Interval:
    """What a request's `key` and `range_end` mean."""
    if not range_end:
        return single(key)
    return Interval(key, None if range_end == FROM_KEY else range_end)


def prefix_end(prefix: bytes) -> bytes:
    """The `range_end` that, with `prefix` as the key, names all keys with that prefix.

    The prefix with its last byte raised by one; trailing 0xff bytes, which cannot be raised, are dropped
    first. A prefix of nothing but 0xff (or the empty one, whose key must then be "\\0") has no end.
    """
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else FROM_KEY
