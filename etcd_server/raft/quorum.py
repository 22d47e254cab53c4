"""The arithmetic of majorities: what a set of voters has agreed on. Nothing else is in here.

A majority of n voters is n // 2 + 1 of them; two majorities of the same voters always share one (Raft thesis,
section 3.2). No voters have no majority: callers never ask.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum


class VoteResult(Enum):
    """What a vote has come to: it can only leave PENDING once."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def majority(voter_count: int) -> int:
    """The smallest number of voters that is more than half of them."""
    assert voter_count > 0, "no voters have no majority"
    return voter_count // 2 + 1


def agreed(values: Iterable[int]) -> int:
    """The largest number that a majority has reached: one value a voter (thesis, section 3.5: commitment)."""
    descending = sorted(values, reverse=True)
    return descending[majority(len(descending)) - 1]


def vote_result(voters: Sequence[int], votes: Mapping[int, bool]) -> VoteResult:
    """Counts the votes of voters, and of nobody else; a voter absent from `votes` has not voted yet."""
    needed = majority(len(voters))
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if granted >= needed:
        return VoteResult.WON
    return VoteResult.LOST if len(voters) - refused < needed else VoteResult.PENDING
