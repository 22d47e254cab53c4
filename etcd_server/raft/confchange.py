"""Who is a member, and how one change makes the next membership.

Pure values: a configuration and a change give a configuration. Only single-step changes exist (Raft thesis,
section 4.1): two configurations that follow each other differ by one voter at most, so that any majority of
the one overlaps any majority of the other. Applying a change a second time changes nothing, because a member
that restarts applies a suffix of its log again.
"""

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class Configuration:
    """Member IDs, sorted, no ID in both: voters count in every majority, learners only receive the log."""

    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        both = (*self.voters, *self.learners)
        if len(set(both)) != len(both) or 0 in both:
            raise ValueError(
                f"member IDs must be unique and not 0: voters {self.voters}, learners {self.learners}"
            )
        object.__setattr__(self, "voters", tuple(sorted(self.voters)))
        object.__setattr__(self, "learners", tuple(sorted(self.learners)))

    @property
    def members(self) -> tuple[int, ...]:
        """Voters and learners, sorted."""
        return tuple(sorted((*self.voters, *self.learners)))


class ChangeKind(IntEnum):
    """What a change does. ADD_VOTER of a learner promotes it; NOTHING is a refused or a purely descriptive
    change."""

    NOTHING = 0
    ADD_VOTER = 1
    ADD_LEARNER = 2
    REMOVE = 3


@dataclass(frozen=True, slots=True)
class ConfChange:
    """One change of membership; `member_id` is meaningless for NOTHING."""

    kind: ChangeKind
    member_id: int = 0


def changed(configuration: Configuration, change: ConfChange) -> Configuration:
    """The configuration after a change.

    A voter is never made a learner (ADD_LEARNER of a voter changes nothing), and the last voter is never
    removed: both would be a change that every member has to refuse alike, so they are refused here, silently
    and alike.
    """
    voters, learners, member = set(configuration.voters), set(configuration.learners), change.member_id
    match change.kind:
        case ChangeKind.ADD_VOTER:
            voters.add(member)
            learners.discard(member)
        case ChangeKind.ADD_LEARNER if member not in voters:
            learners.add(member)
        case ChangeKind.REMOVE if voters != {member}:
            voters.discard(member)
            learners.discard(member)
        case _:
            return configuration
    return Configuration(tuple(voters), tuple(learners))
