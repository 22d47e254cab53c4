"""The fields of one member's consensus state, and the transitions between its roles.

    FOLLOWER ──timeout──► PRE_CANDIDATE ──majority would vote──► CANDIDATE ──majority──► LEADER
       ▲                       │                                     │                      │
       └───────────────────────┴─── lost, or a leader appears ───────┴── higher term, or ───┘
                                                                         no quorum answers

A member without PreVote, the only voter, and a member that was told to campaign at once go to CANDIDATE
directly. What the roles do is in election, replication and requests; this module only changes the fields, and
keeps the invariants: `term` never falls; within a term `vote` is set once; a leader never changes its mind
about the leader.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from etcd_server.raft.confchange import Configuration
from etcd_server.raft.log import Log, LogStorage
from etcd_server.raft.messages import (
    NO_MEMBER,
    Entry,
    EntryKind,
    ForwardProposal,
    HardState,
    Message,
    ReadState,
    Snapshot,
)
from etcd_server.raft.progress import Progress
from etcd_server.raft.reads import ReadQueue

MIB = 1 << 20


class Random(Protocol):
    """The only randomness of the core: `random.Random` has it."""

    def randrange(self, start: int, stop: int, /) -> int:
        """A whole number with start <= number < stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a member starts with: who it is, what it had saved, and its limits. Ticks are the caller's unit of
    time.

    voters, learners: the membership as of applied_index. hard_state: as last persisted. applied_index: up to
    where the state machine is on disk. election_ticks: a follower campaigns after election_ticks to 2 *
    election_ticks - 1 ticks of silence. max_message_bytes: data in one append; max_inflight: unanswered
    appends to one member. max_apply_bytes: data in the committed entries of one Ready. max_uncommitted_bytes:
    data that a leader takes before it is committed. recent_entries, recent_bytes: kept in memory though
    persisted and applied (at most twice as much, for a moment).
    """

    member_id: int
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    hard_state: HardState = field(default_factory=HardState)
    applied_index: int = 0
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    pre_vote: bool = True
    check_quorum: bool = True
    max_message_bytes: int = MIB
    max_inflight: int = 512
    max_apply_bytes: int = 16 * MIB
    max_uncommitted_bytes: int = 256 * MIB
    recent_entries: int = 5_000
    recent_bytes: int = 8 * MIB

    def __post_init__(self) -> None:
        if self.member_id == NO_MEMBER:
            raise ValueError("member_id must not be 0")
        if not 1 <= self.heartbeat_ticks < self.election_ticks:
            raise ValueError(
                f"election_ticks ({self.election_ticks}) must exceed heartbeat_ticks ({self.heartbeat_ticks})"
            )
        if self.max_inflight < 1:
            raise ValueError(f"max_inflight ({self.max_inflight}) must be at least 1")


class Role(Enum):
    """What a member is in its term."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Raft:
    """One member. `messages` go out with the next Ready; `promises` wait until what they promise is on disk;
    `refused` are other members' proposals that this one has not taken.

    `peers`: all other members. `progress`: only while leading, one for each member, itself included.
    `term_start_index`: the leader's own EMPTY entry; once it is committed, commit_index is known to be the
    cluster's. `pending_change_index`: no membership change is proposed before this index is applied.
    `append_due`: there may be something to send to followers. `transfer_target`: who is to lead next.
    `election_elapsed` counts ticks since the leader was heard (follower), since the campaign began
    (candidate), since the quorum was checked (leader).
    """

    __slots__ = (
        "append_due",
        "config",
        "configuration",
        "election_elapsed",
        "election_timeout",
        "heartbeat_elapsed",
        "incarnation",
        "leader_id",
        "log",
        "member_id",
        "messages",
        "peers",
        "pending_change_index",
        "progress",
        "promises",
        "random",
        "read_states",
        "reads",
        "refused",
        "role",
        "snapshot",
        "sole_voter",
        "term",
        "term_start_index",
        "transfer_target",
        "uncommitted_bytes",
        "vote",
        "votes",
    )

    def __init__(self, config: Config, storage: LogStorage, random: Random) -> None:
        self.config = config
        self.member_id = config.member_id
        self.random = random
        self.log = Log(
            storage,
            commit=config.hard_state.commit,
            applied=config.applied_index,
            recent_entries=config.recent_entries,
            recent_bytes=config.recent_bytes,
        )
        self.incarnation = random.randrange(1, 1 << 62)
        self.messages: list[Message] = []
        self.promises: list[Message] = []
        self.read_states: list[ReadState] = []
        self.refused: list[ForwardProposal] = []
        self.snapshot: Snapshot | None = None
        self.term = config.hard_state.term
        self.vote = config.hard_state.vote
        self.progress: dict[int, Progress] = {}
        self.pending_change_index = 0
        self.term_start_index = 0
        self.heartbeat_elapsed = 0
        self.set_configuration(Configuration(config.voters, config.learners))
        self._reset(self.term, NO_MEMBER, Role.FOLLOWER)

    # Membership

    def set_configuration(self, configuration: Configuration) -> None:
        """From now on these are the members. A leader starts to probe the new ones."""
        self.configuration = configuration
        self.peers = tuple(member for member in configuration.members if member != self.member_id)
        self.sole_voter = configuration.voters == (self.member_id,)
        if self.progress:
            self._match_progress()

    @property
    def is_voter(self) -> bool:
        """Whether this member may campaign and counts in majorities."""
        return self.member_id in self.configuration.voters

    def _match_progress(self) -> None:
        """One Progress for each member, and none for anybody else."""
        known = self.progress
        next_index = self.log.last_index + 1
        self.progress = {
            member: known.get(member) or Progress(next_index, self.config.max_inflight)
            for member in (self.member_id, *self.peers)
        }

    # Roles

    def become_follower(self, term: int, leader_id: int) -> None:
        """Follows leader_id, 0 when it is not known, in this or a later term."""
        self._reset(term, leader_id, Role.FOLLOWER)

    def become_pre_candidate(self) -> None:
        """Asks whether it would win: changes neither term nor vote (thesis, section 9.6)."""
        self._reset(self.term, NO_MEMBER, Role.PRE_CANDIDATE)
        self.votes[self.member_id] = True

    def become_candidate(self) -> None:
        """Campaigns in a new term. Its own vote counts when it is on disk, like any other (thesis, section
        3.8)."""
        self._reset(self.term + 1, NO_MEMBER, Role.CANDIDATE)
        self.vote = self.member_id

    def become_leader(self) -> None:
        """Leads this term, and starts it with an EMPTY entry: committing that commits all before it (thesis,
        section 3.6.2), and tells the leader how far the cluster has committed (section 6.4)."""
        assert self.role is Role.CANDIDATE
        self._reset(self.term, self.member_id, Role.LEADER)
        self._match_progress()
        self.progress[self.member_id].accepted(self.log.stable_index, 0)
        self.uncommitted_bytes = 0
        self.term_start_index = self.log.last_index + 1
        # A change of membership waits for an entry of the own term (erratum to the thesis, section 4.1).
        self.pending_change_index = self.term_start_index
        self.append(EntryKind.EMPTY, b"")

    def _reset(self, term: int, leader_id: int, role: Role) -> None:
        """What every transition does. Nothing that a role gathered outlives it."""
        assert term >= self.term
        if term != self.term:
            self.term = term
            self.vote = NO_MEMBER
        self.role = role
        self.leader_id = leader_id
        self.votes: dict[int, bool] = {}
        self.progress = {}
        self.reads = ReadQueue()
        self.transfer_target = NO_MEMBER
        self.append_due = False
        self.uncommitted_bytes = 0
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        ticks = self.config.election_ticks
        self.election_timeout = self.random.randrange(ticks, 2 * ticks)

    # Output

    def append(self, kind: EntryKind, data: bytes) -> None:
        """Adds an entry to the leader's own log; the followers get it with the next Ready."""
        log = self.log
        log.append(Entry(log.last_index + 1, self.term, kind, data))
        self.append_due = True

    def send(self, message: Message) -> None:
        """A message that promises nothing about this member's disk."""
        self.messages.append(message)

    def promise(self, message: Message) -> None:
        """A message that others will rely on after a crash of this member: a vote, a campaign, an answer to
        an append. It waits until all that this member knows now is on disk."""
        self.promises.append(message)
