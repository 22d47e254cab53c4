"""What goes into the core and what comes out of it: entries, hard state, messages between members, Ready.

Everything here is a frozen value without behaviour. Message kinds are this project's own: each kind of Figure
2 of the Raft paper, and of chapters 3, 4, 6 and 9 of the thesis, is one class that holds just its fields.
Member IDs are integers, never 0; index 0 and term 0 come before the first entry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from etcd_server.raft.confchange import Configuration

NO_MEMBER = 0


class EntryKind(IntEnum):
    """NORMAL: data of the state machine. CONF_CHANGE: data of a membership change. EMPTY: a leader's first
    entry."""

    NORMAL = 0
    CONF_CHANGE = 1
    EMPTY = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log. The core never looks into `data`."""

    index: int
    term: int
    kind: EntryKind
    data: bytes


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be on disk before anything is said that depends on it (Raft thesis, section 3.8).

    `commit` is a lower bound. It comes along with entries, never for its own sake, and must be saved with
    them: the safety of membership changes rests on it.
    """

    term: int = 0
    vote: int = NO_MEMBER
    commit: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a copy of the state machine stands for: all entries up to `index`, and the membership at that
    point."""

    index: int
    term: int
    configuration: Configuration


# (context, index): the reads of this context may be answered once applied_index >= index (thesis, section
# 6.4).
ReadState: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Message:
    """The fields that all messages have. `term` is the sender's term, except in a PreVote (see
    VoteRequest)."""

    to: int
    sender: int
    term: int


@dataclass(frozen=True, slots=True)
class VoteRequest(Message):
    """RequestVote. With `pre_vote` it only asks whether a vote would be given, and `term` is the term that
    the sender would campaign in (thesis, section 9.6). With `transfer` the leader itself asked for the
    election, so the receivers do not wait for its silence (thesis, section 3.10)."""

    last_index: int
    last_term: int
    pre_vote: bool = False
    transfer: bool = False


@dataclass(frozen=True, slots=True)
class VoteResponse(Message):
    """A granted pre-vote carries the term asked for; every other answer the term of its sender.

    A refusal tells how far its sender knows the log to be committed, and the term of that entry (0 when it is
    not known any more): what keeps the asker from a majority may be a change that it does not know to be
    committed."""

    granted: bool
    pre_vote: bool = False
    commit: int = 0
    commit_term: int = 0


@dataclass(frozen=True, slots=True)
class AppendRequest(Message):
    """AppendEntries: the entries that follow (previous_index, previous_term), and how far the leader has
    committed."""

    previous_index: int
    previous_term: int
    entries: Sequence[Entry]
    commit: int


@dataclass(frozen=True, slots=True)
class AppendResponse(Message):
    """Accepted: the sender's log equals the leader's up to `index`, on disk.

    Rejected: it has no (index, term) as asked; (hint_index, hint_term) is its last entry that could match.
    """

    index: int
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """An empty AppendEntries of its own kind: it may pass everything that is queued. `read_round` is the
    latest round of reads that the leader wants confirmed; 0 is none."""

    commit: int
    read_round: int = 0


@dataclass(frozen=True, slots=True)
class HeartbeatResponse(Message):
    """The sender still follows this leader in this term, when it received round `read_round`."""

    read_round: int = 0


@dataclass(frozen=True, slots=True)
class InstallSnapshot(Message):
    """The receiver is so far behind that the log does not reach back to it: the state itself travels with
    this."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class TimeoutNow(Message):
    """The leader hands over: the receiver is to campaign at once (thesis, section 3.10)."""


@dataclass(frozen=True, slots=True)
class ForwardProposal(Message):
    """A proposal made at a member that is not the leader."""

    kind: EntryKind
    data: bytes


@dataclass(frozen=True, slots=True)
class ForwardRead(Message):
    """Reads asked for at a follower. `incarnation` tells its lives apart, so that no later life takes the
    answer."""

    context: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class ForwardReadResponse(Message):
    """The answer to ForwardRead: the reads may be answered once `index` is applied."""

    context: int
    incarnation: int
    index: int


@dataclass(frozen=True, slots=True)
class ForwardTransfer(Message):
    """The wish for another leader, uttered at a member that is not the leader."""

    target: int


@dataclass(frozen=True, slots=True)
class Ready:
    """What the caller has to do next. It may hold several at a time; it performs them in order of `number`.

    1. Send `messages` at once. What they say does not depend on anything in this or an earlier Ready being on
       disk: the core keeps such messages back until `advance`. An InstallSnapshot among them asks the caller
       to take a consistent copy of the state machine at `snapshot.index`, which is what it has applied when
       it gets this Ready, or at a later index, to send it along, and to say how that went by
       `report_snapshot`. Of a later copy the message says index, term and configuration as the copy has them.
    2. When `must_persist`: write `snapshot`, `hard_state` and `entries` to disk, in ONE synced step, Readys
       in
       their order, on any thread; then call `advance(number)`. The first of `entries` may lie at or below the
       last index of the log: then it and all after it replace what stood there.
    3. Apply `committed_entries` to the state machine before the next call of `ready()`. They are already on
       this member's disk. For each CONF_CHANGE among them call `apply_conf_change`, for a refused one too.
    4. Answer `read_states` whose index has been applied.

    5. Tell those who have passed on the proposals in `refused` that these were certainly not taken.

    `snapshot` replaces the whole state machine and the whole log (the log then begins after
    `snapshot.index`); it comes with no committed entries. `leader_id` (0: none known) and `term` are None
    unless one of them has changed. A Ready that is not `must_persist` needs no `advance`.
    """

    number: int
    hard_state: HardState | None = None
    entries: Sequence[Entry] = ()
    messages: Sequence[Message] = ()
    committed_entries: Sequence[Entry] = ()
    read_states: Sequence[ReadState] = ()
    leader_id: int | None = None
    term: int | None = None
    snapshot: Snapshot | None = None
    refused: Sequence[ForwardProposal] = ()

    @property
    def must_persist(self) -> bool:
        """True when something in here has to be on disk before `advance(number)`."""
        return self.hard_state is not None or bool(self.entries) or self.snapshot is not None
