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
