"""Membership arithmetic: examples, a naive twin, and the overlap that single steps must keep."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_server.raft.confchange import ChangeKind, ConfChange, Configuration, changed
from etcd_server.raft.quorum import majority

ADD_VOTER, ADD_LEARNER, REMOVE = ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER, ChangeKind.REMOVE


@pytest.mark.parametrize(
    ("kind", "member", "voters", "learners"),
    [
        (ADD_VOTER, 4, (1, 2, 4), (3,)),
        (ADD_VOTER, 3, (1, 2, 3), ()),
        (ADD_VOTER, 1, (1, 2), (3,)),
        (ADD_LEARNER, 4, (1, 2), (3, 4)),
        (ADD_LEARNER, 1, (1, 2), (3,)),
        (REMOVE, 1, (2,), (3,)),
        (REMOVE, 3, (1, 2), ()),
        (REMOVE, 9, (1, 2), (3,)),
        (ChangeKind.NOTHING, 0, (1, 2), (3,)),
    ],
)
def test_changes(kind: ChangeKind, member: int, voters: tuple[int, ...], learners: tuple[int, ...]) -> None:
    before = Configuration((2, 1), (3,))
    assert changed(before, ConfChange(kind, member)) == Configuration(voters, learners)


def test_the_last_voter_stays() -> None:
    only = Configuration((1,), (2,))
    assert changed(only, ConfChange(REMOVE, 1)) == only


@pytest.mark.parametrize(("voters", "learners"), [((1, 1), ()), ((1,), (1,)), ((0,), ())])
def test_impossible_configurations_are_refused(voters: tuple[int, ...], learners: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="unique and not 0"):
        Configuration(voters, learners)


def naive(roles: dict[int, str], change: ConfChange) -> dict[int, str]:
    """A twin that thinks of one role a member."""
    after = dict(roles)
    if change.kind is ADD_VOTER:
        after[change.member_id] = "voter"
    elif change.kind is ADD_LEARNER:
        after.setdefault(change.member_id, "learner")
    elif change.kind is REMOVE:
        after.pop(change.member_id, None)
    return after if "voter" in after.values() else roles


CHANGES = st.lists(st.builds(ConfChange, st.sampled_from(ChangeKind), st.integers(1, 6)), max_size=30)


@given(CHANGES)
def test_any_sequence_equals_the_naive_twin(changes: list[ConfChange]) -> None:
    configuration, roles = Configuration((1,)), {1: "voter"}
    for change in changes:
        configuration, roles = changed(configuration, change), naive(roles, change)
        assert configuration.voters == tuple(sorted(member for member in roles if roles[member] == "voter"))
        assert configuration.members == tuple(sorted(roles))
        assert changed(configuration, change) == configuration, "a second time changes nothing"


@given(CHANGES)
def test_majorities_before_and_after_a_change_overlap(changes: list[ConfChange]) -> None:
    """Raft thesis, section 4.1, figure 4.3: why one step at a time is safe."""
    before = Configuration((1, 2, 3))
    for change in changes:
        after = changed(before, change)
        for one in combinations(before.voters, majority(len(before.voters))):
            for other in combinations(after.voters, majority(len(after.voters))):
                assert set(one) & set(other)
        before = after
