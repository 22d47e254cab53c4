"""Which watched ranges contain a key: the look-up that every change pays.

Exact keys are found in a dict. Prefixes are found in one dict for each length of prefix, so a thousand
prefixes of one length cost one look-up. Whatever else a client asks for (a range that is no prefix, "from
this key on") stands in a list sorted by first key, which is short in practice. A range is registered once,
however many watch it.

Knows keys only: no revision, no stream.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Generic, TypeVar

from etcd_server.api.keys import Interval, prefix_end, single

T = TypeVar("T")


class RangeIndex(Generic[T]):
    """A map from ranges to entries that also answers which entries' ranges contain a key."""

    def __init__(self) -> None:
        self._entries: dict[Interval, T] = {}
        self._keys: dict[bytes, T] = {}
        self._prefixes: dict[int, dict[bytes, T]] = {}
        self._starts: list[bytes] = []
        self._spans: list[tuple[Interval, T]] = []
        """Each other range and its entry, beside its first key in `_starts`."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, interval: Interval) -> T | None:
        """The entry of exactly this range, or None."""
        return self._entries.get(interval)

    def add(self, interval: Interval, entry: T) -> None:
        """Register a range that is not registered yet."""
        self._entries[interval] = entry
        low, high = interval
        if interval == single(low):
            self._keys[low] = entry
        elif high == prefix_end(low):
            self._prefixes.setdefault(len(low), {})[low] = entry
        else:
            position = bisect_right(self._starts, low)
            self._starts.insert(position, low)
            self._spans.insert(position, (interval, entry))

    def remove(self, interval: Interval) -> None:
        """Forget a registered range. Raises KeyError when it is not registered."""
        del self._entries[interval]
        low, high = interval
        if interval == single(low):
            del self._keys[low]
        elif high == prefix_end(low):
            prefixes = self._prefixes[len(low)]
            del prefixes[low]
            if not prefixes:
                del self._prefixes[len(low)]
        else:
            position = bisect_left(self._starts, low)
            while self._spans[position][0] != interval:
                position += 1
            del self._starts[position], self._spans[position]

    def match(self, key: bytes) -> list[T]:
        """The entries of all registered ranges that contain `key`, each once, in no promised order."""
        entry = self._keys.get(key)
        found = [] if entry is None else [entry]
        for length, prefixes in self._prefixes.items():
            # A key shorter than the prefix is cut to itself, which no prefix of that length equals.
            entry = prefixes.get(key[:length])
            if entry is not None:
                found.append(entry)
        if self._spans:
            for (_, high), entry in self._spans[: bisect_right(self._starts, key)]:
                if high is None or key < high:
                    found.append(entry)
        return found
