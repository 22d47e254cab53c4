"""Linearizable reads without a write to the log: ReadIndex in rounds (Raft thesis, section 6.4).

A leader notes its commit index, has a majority confirm that it still leads, and then lets reads be served
once that index is applied. Many reads share a round, and rounds are numbered: a member that confirms round 7
has confirmed all before it. A round belongs to one leader in one term; it is dropped with the leadership and
never taken up again (etcd issues 20418 and 21375 are what happens otherwise).
"""

from collections import deque
from typing import NamedTuple


class Reader(NamedTuple):
    """Who asked: a member, its incarnation, and the context that it wants back."""

    member_id: int
    incarnation: int
    context: int


class ReadQueue:
    """Reads on their way through rounds. `waiting` have no round yet; `latest_round` is the one to be
    confirmed."""

    __slots__ = ("_rounds", "latest_round", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Reader] = []
        self._rounds: deque[tuple[int, int, list[Reader]]] = deque()
        self.latest_round = 0

    def begin(self, commit_index: int) -> None:
        """Opens the next round with all that wait. Confirmations must start after this: it fixes their
        index."""
        self.latest_round += 1
        self._rounds.append((self.latest_round, commit_index, self.waiting))
        self.waiting = []

    def confirmed(self, read_round: int) -> list[tuple[Reader, int]]:
        """A majority has confirmed this round: the readers of all rounds up to it, each with its index."""
        ready: list[tuple[Reader, int]] = []
        while self._rounds and self._rounds[0][0] <= read_round:
            _, index, readers = self._rounds.popleft()
            ready += [(reader, index) for reader in readers]
        return ready
