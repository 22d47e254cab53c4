"""The only public face of the core: events in, Ready out.

    step(message)   tick()   propose(data)   read_index(context) ...      something has happened
    ready()                                                               what is to be done about it
    advance(number)                                                       everything up to that Ready is on
    disk

All of it is synchronous, in one thread, without a clock: the caller decides when a tick has passed, when to
ask for the next Ready, and in which thread to write. See `Ready` for what the caller owes, DESIGN.md for the
reasons.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etcd_server.raft import election, replication, requests
from etcd_server.raft.confchange import ConfChange, Configuration, changed
from etcd_server.raft.errors import WrongRecipient
from etcd_server.raft.log import LogStorage, Write
from etcd_server.raft.messages import (
    NO_MEMBER,
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    ForwardProposal,
    ForwardRead,
    ForwardReadResponse,
    ForwardTransfer,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    Ready,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from etcd_server.raft.progress import ProgressState
from etcd_server.raft.state import Config, Raft, Random, Role

Handlers = Mapping[type[Message], Callable[[Raft, Any], None]]

_EVERYBODY: Handlers = {
    VoteRequest: election.on_vote_request,
    ForwardReadResponse: requests.on_forward_read_response,
}
_NOT_LEADING: Handlers = {ForwardProposal: requests.turn_away_proposal}
_LED: Handlers = {
    AppendRequest: replication.on_append_request,
    Heartbeat: replication.on_heartbeat,
    InstallSnapshot: replication.on_install_snapshot,
}
_CAMPAIGNING: Handlers = {**_EVERYBODY, **_LED, **_NOT_LEADING, VoteResponse: election.on_vote_response}

# What each role does with a message; what is not in the table is of no interest to it, and ignored.
HANDLERS: Mapping[Role, Handlers] = {
    Role.FOLLOWER: {**_EVERYBODY, **_LED, **_NOT_LEADING, TimeoutNow: election.on_timeout_now},
    Role.PRE_CANDIDATE: _CAMPAIGNING,
    Role.CANDIDATE: _CAMPAIGNING,
    Role.LEADER: {
        **_EVERYBODY,
        **_LED,
        AppendResponse: replication.on_append_response,
        HeartbeatResponse: replication.on_heartbeat_response,
        ForwardProposal: requests.on_forward_proposal,
        ForwardRead: requests.on_forward_read,
        ForwardTransfer: requests.on_forward_transfer,
    },
}

# Wishes, and the answer to one: they are bound to no term.
TERMLESS = frozenset({ForwardProposal, ForwardRead, ForwardReadResponse, ForwardTransfer})


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What the leader knows of another member."""

    member_id: int
    state: ProgressState
    match_index: int
    next_index: int
    recently_active: bool


@dataclass(frozen=True, slots=True)
class Status:
    """A member at one moment. `peers` is empty unless it leads; leader_id and transfer_target are 0 for
    none."""

    member_id: int
    role: Role
    term: int
    vote: int
    leader_id: int
    transfer_target: int
    commit_index: int
    applied_index: int
    stable_index: int
    last_index: int
    configuration: Configuration
    peers: tuple[PeerStatus, ...]


class Node:
    """One member of the cluster as a pure state machine."""

    __slots__ = ("_number", "_raft", "_save_commit", "_saved", "_told_leader", "_told_term")

    def __init__(self, config: Config, log_storage: LogStorage, random: Random) -> None:
        """Starts as a follower. Raises LogGap when what was on disk does not fit together."""
        self._raft = Raft(config, log_storage, random)
        self._number = 0
        self._saved = config.hard_state
        self._save_commit = False
        self._told_leader = NO_MEMBER
        self._told_term = config.hard_state.term

    # Events

    def tick(self) -> None:
        """One tick has passed."""
        election.tick(self._raft)

    def step(self, message: Message) -> None:
        """A message of another member has arrived. Raises WrongRecipient when it is not for this member."""
        raft = self._raft
        if message.to != raft.member_id:
            raise WrongRecipient(f"a message for member {message.to:x} arrived at member {raft.member_id:x}")
        kind = type(message)
        if kind in TERMLESS or election.admit(raft, message):
            handler = HANDLERS[raft.role].get(kind)
            if handler is not None:
                handler(raft, message)

    def propose(self, data: bytes) -> None:
        """Wants `data` in the log. Raises ProposalDropped when it is certain that it will not get there.

        Without an error the outcome is open until it appears in committed_entries.
        """
        requests.propose(self._raft, EntryKind.NORMAL, data)

    def propose_conf_change(self, data: bytes) -> None:
        """Wants a change of membership in the log; as propose. One at a time: the next when this one is
        applied."""
        requests.propose(self._raft, EntryKind.CONF_CHANGE, data)

    def apply_conf_change(self, change: ConfChange) -> Configuration:
        """A committed CONF_CHANGE entry has been applied; returns the membership from now on.

        For an entry that the caller refuses to perform, the change is of kind NOTHING.
        """
        raft = self._raft
        configuration = changed(raft.configuration, change)
        if configuration != raft.configuration:
            raft.set_configuration(configuration)
            self._save_commit = True
            if raft.role is Role.LEADER:
                self._lead_changed_members()
        return configuration

    def _lead_changed_members(self) -> None:
        """A leader that was removed steps down (thesis, section 4.2.2); another may be able to commit more
        now."""
        raft = self._raft
        if not raft.is_voter:
            raft.become_follower(raft.term, NO_MEMBER)
            return
        if raft.transfer_target not in raft.configuration.voters:
            raft.transfer_target = NO_MEMBER
        replication.maybe_commit(raft)
        replication.confirm_reads(raft)
        raft.append_due = True

    def read_index(self, context: int) -> None:
        """Asks for the index from which on reads are linearizable: a ReadState with this context will say so.

        `context` names a set of reads that is closed: none may join it after this call. Raises ReadDropped
        when there is no leader. The answer may never come (the leadership may change): ask again, or give up,
        after a while.
        """
        requests.read_index(self._raft, context)

    def transfer_leadership(self, target: int) -> None:
        """Asks the leader to hand over to `target`. Raises ProposalDropped when there is no leader."""
        requests.transfer_leadership(self._raft, target)

    def report_unreachable(self, member_id: int) -> None:
        """Messages to a member were lost on this side."""
        replication.report_unreachable(self._raft, member_id)

    def report_snapshot(self, member_id: int, *, succeeded: bool) -> None:
        """The snapshot for a member was taken in by it (its step has returned), or it will not be."""
        replication.report_snapshot(self._raft, member_id, succeeded=succeeded)

    # Output

    def ready(self, *, tell_commit: bool = True) -> Ready | None:
        """What is to be done next; None when there is nothing. Everything is handed out once.

        tell_commit False: followers that wait for nothing need not be told at once how far the leader has
        committed. The next entries will tell them; without any, ask again soon (`owes_commit`).
        """
        raft = self._raft
        log = raft.log
        if raft.append_due or raft.reads.waiting:
            replication.flush(raft, tell_commit=tell_commit)
        if self._has_nothing_new():
            return None
        unsaved = log.take_unsaved()
        committed: Sequence[Entry] = log.take_committed(raft.config.max_apply_bytes)
        hard_state = self._unsaved_hard_state(bool(unsaved) or self._save_commit)
        self._save_commit = False
        snapshot, raft.snapshot = raft.snapshot, None
        self._number += 1
        if unsaved or hard_state is not None or snapshot is not None:
            write = Write(self._number, log.handed_index, hard_state, snapshot)
            log.in_flight.append(write)
        if raft.promises:
            self._hold_promises()
        leader_id = raft.leader_id if raft.leader_id != self._told_leader else None
        term = raft.term if raft.term != self._told_term else None
        messages, read_states = raft.messages, raft.read_states
        refused = raft.refused
        quiet = leader_id is None and term is None and not refused
        if quiet and not (unsaved or committed or hard_state or messages or read_states or snapshot):
            self._number -= 1
            return None
        if messages:
            raft.messages = []
        if read_states:
            raft.read_states = []
        if refused:
            raft.refused = []
        if committed:
            if raft.uncommitted_bytes:
                size = sum([len(entry.data) for entry in committed])
                raft.uncommitted_bytes = max(raft.uncommitted_bytes - size, 0)
            log.trim()
        self._told_leader, self._told_term = raft.leader_id, raft.term
        return Ready(
            self._number,
            hard_state,
            unsaved,
            messages,
            committed,
            read_states,
            leader_id,
            term,
            snapshot,
            refused,
        )

    def _has_nothing_new(self) -> bool:
        """The usual answer to every second call of ready(), found without making one."""
        raft, saved = self._raft, self._saved
        return (
            raft.log.has_nothing_new
            and not self._save_commit
            and not (raft.messages or raft.promises or raft.read_states or raft.snapshot or raft.refused)
            and raft.leader_id == self._told_leader
            and raft.term == self._told_term == saved.term
            and raft.vote == saved.vote
        )

    def _unsaved_hard_state(self, with_commit: bool) -> HardState | None:
        """The hard state when it must be saved: a new term or vote always; a new commit index only along with
        entries, because it is not worth a sync of its own (Raft paper, figure 2: it is volatile).

        Along with entries it must be saved, however. A leader proposes a change of membership when it has
        applied the one before, so whoever holds the second knows that the first is committed. If a crash
        could take that knowledge, a member two changes behind might campaign, and their majorities need not
        overlap.

        And it is saved when a change of membership has been applied, because others act on it: a removed
        member goes once it hears that another knows. If a crash could take that knowledge, the other might
        wait for its vote for ever.
        """
        raft, saved = self._raft, self._saved
        commit = raft.log.commit_index
        if (
            raft.term == saved.term
            and raft.vote == saved.vote
            and not (with_commit and commit != saved.commit)
        ):
            return None
        self._saved = HardState(raft.term, raft.vote, commit)
        return self._saved

    def _hold_promises(self) -> None:
        """Promises wait for the latest write under way; when there is none, all that they promise is on
        disk."""
        raft = self._raft
        in_flight = raft.log.in_flight
        (in_flight[-1].promises if in_flight else raft.messages).extend(raft.promises)
        raft.promises = []

    def advance(self, number: int) -> None:
        """Everything up to Ready `number` is on disk: what waited for that may go on."""
        raft = self._raft
        log = raft.log
        while log.in_flight and log.in_flight[0].number <= number:
            write = log.in_flight.popleft()
            log.persisted(write)
            if write.promises:
                raft.messages.extend(write.promises)
            if write.hard_state is not None and write.hard_state.vote == raft.member_id:
                election.own_vote_persisted(raft, write.hard_state.term)
        if raft.role is Role.LEADER:
            replication.own_log_persisted(raft)

    @property
    def owes_commit(self) -> bool:
        """After `ready(tell_commit=False)` was None: there are followers still to be told."""
        return self._raft.append_due

    @property
    def term(self) -> int:
        return self._raft.term

    @property
    def leader_id(self) -> int:
        """0 when no leader is known."""
        return self._raft.leader_id

    @property
    def status(self) -> Status:
        """This member now."""
        raft, log = self._raft, self._raft.log
        peers = tuple(
            PeerStatus(
                member, progress.state, progress.match_index, progress.next_index, progress.recently_active
            )
            for member, progress in raft.progress.items()
            if member != raft.member_id
        )
        return Status(
            raft.member_id,
            raft.role,
            raft.term,
            raft.vote,
            raft.leader_id,
            raft.transfer_target,
            log.commit_index,
            log.applied_index,
            log.stable_index,
            log.last_index,
            raft.configuration,
            peers,
        )
