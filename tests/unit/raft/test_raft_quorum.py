"""The arithmetic of majorities, against twins that count in the most naive way."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_server.raft.quorum import VoteResult, agreed, majority, vote_result


def naive_agreed(values: Sequence[int]) -> int:
    """Tries every value: the largest that more than half of the voters have reached."""
    return max(value for value in values if 2 * sum(other >= value for other in values) > len(values))


def naive_vote_result(voters: Sequence[int], votes: Mapping[int, bool]) -> VoteResult:
    """Lets the voters that have not voted vote in every possible way, and looks what may come of it."""
    silent = [voter for voter in voters if voter not in votes]
    outcomes = set()
    for choice in product((True, False), repeat=len(silent)):
        final = {**votes, **dict(zip(silent, choice, strict=True))}
        outcomes.add(2 * sum(final[voter] for voter in voters) > len(voters))
    if outcomes == {True}:
        return VoteResult.WON
    return VoteResult.LOST if outcomes == {False} else VoteResult.PENDING


@pytest.mark.parametrize(("voters", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)])
def test_majority(voters: int, needed: int) -> None:
    assert majority(voters) == needed


@pytest.mark.parametrize("count", range(1, 7))
def test_two_majorities_share_a_voter(count: int) -> None:
    """Raft thesis, section 3.2: what safety rests on."""
    majorities = list(combinations(range(count), majority(count)))
    assert all(set(one) & set(other) for one in majorities for other in majorities)


def test_no_voters_have_no_majority() -> None:
    with pytest.raises(AssertionError):
        majority(0)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9))
def test_agreed_equals_its_naive_twin(values: list[int]) -> None:
    assert agreed(values) == naive_agreed(values)


@given(
    st.integers(1, 7).map(lambda count: tuple(range(1, count + 1))),
    st.dictionaries(st.integers(1, 9), st.booleans()),
)
def test_vote_result_equals_its_naive_twin(voters: tuple[int, ...], votes: dict[int, bool]) -> None:
    """Votes of strangers are among those drawn: they never count."""
    assert vote_result(voters, votes) is naive_vote_result(voters, votes)
