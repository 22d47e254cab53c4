"""Which indexes a raft log holds, and of which terms, as a value that never changes.

Terms never go down along a log, so a run of entries of one term is one pair. A new value takes the place of
the old one after each change; any thread may read the one it has. Knows no file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from etcd_server.raft.messages import Entry


class Extent:
    """start_index: what the log begins after. last_index: its last entry, start_index when it is empty.

    runs: (first index, term) of each run of entries of one term, ascending; the first is (start_index,
    start_term), which stands for the place before the first entry.
    """

    __slots__ = ("last_index", "runs")

    def __init__(self, last_index: int, runs: tuple[tuple[int, int], ...]) -> None:
        self.last_index = last_index
        self.runs = runs

    @property
    def start_index(self) -> int:
        return self.runs[0][0]

    @property
    def last_term(self) -> int:
        return self.runs[-1][1]

    def term(self, index: int) -> int:
        """Term of the entry at `index`, for start_index <= index <= last_index."""
        return self.runs[bisect_right(self.runs, index, key=_first) - 1][1]

    def appended(self, entries: Sequence[Entry]) -> Extent:
        """With `entries` in place of everything from the first of them on.

        Raises ValueError when they do not follow the log, are not consecutive or of a term that goes down.
        """
        first, last = entries[0], entries[-1]
        if not self.start_index < first.index <= self.last_index + 1:
            raise ValueError(f"entry {first.index} does not follow the log ({self})")
        if last.index != first.index + len(entries) - 1:
            raise ValueError(f"entries {first.index}..{last.index} are not consecutive")
        if first.index == self.last_index + 1 and first.term == last.term == self.last_term:
            return Extent(last.index, self.runs)
        runs = list(self.runs[: max(1, bisect_right(self.runs, first.index - 1, key=_first))])
        for entry in entries:
            if entry.term < runs[-1][1]:
                raise ValueError(
                    f"entry {entry.index} is of term {entry.term}, after one of term {runs[-1][1]}"
                )
            if entry.term > runs[-1][1]:
                runs.append((entry.index, entry.term))
        return Extent(last.index, tuple(runs))

    def cut(self, index: int) -> Extent:
        """Without the entries up to `index`, for start_index <= index <= last_index."""
        position = bisect_right(self.runs, index, key=_first)
        return Extent(self.last_index, ((index, self.runs[position - 1][1]), *self.runs[position:]))

    def __str__(self) -> str:
        return f"entries {self.start_index + 1}..{self.last_index}"


def _first(run: tuple[int, int]) -> int:
    return run[0]
