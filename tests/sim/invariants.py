"""What must hold at every event, looked at from outside of the members.

The ledger is the one history that all members share: the entry at each index, what became of it, and when
that was first seen. Whoever was first writes it; everybody else, and every later life of the same member, is
compared with it. Sources: figure 3 of the Raft paper; `docs/reliability.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from zlib import crc32

from etcd_server.api.errors import EtcdError
from etcd_server.machine.mvcc import Outcome
from etcd_server.raft.messages import (
    AppendResponse,
    Entry,
    EntryKind,
    Message,
    Ready,
    VoteRequest,
    VoteResponse,
)
from etcd_server.raft.quorum import majority
from etcd_server.raft.state import Role
from tests.sim.world import Violation, World

if TYPE_CHECKING:
    from tests.sim.node import Host
    from tests.sim.process import Process


@dataclass(slots=True)
class Record:
    """One entry of the ledger. `outcomes` and `revision` are of whoever applied it first."""

    entry: Entry
    committed_s: float
    applied_s: float = -1.0
    outcomes: Sequence[Outcome] = ()
    revision: int = 0


@dataclass(slots=True)
class Watched:
    """What was last seen of one life of a member."""

    term: int
    commit: int
    revision: int
    role: Role = Role.FOLLOWER
    checked_commit: int = 0
    turns: int = 0
    voters: tuple[int, ...] = ()
    reads: dict[int, int] = field(default_factory=dict)


class Invariants:
    """The checks of one run. Every method raises Violation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.hosts: dict[int, Host] = {}
        self.ledger: list[Record] = []
        self.written_s: dict[tuple[int, int], float] = {}
        self._logs: dict[tuple[int, int], tuple[int, int]] = {}
        self._leaders: dict[int, int] = {}
        self._watched: dict[int, Watched] = {}
        self.first_applied: Callable[[Record], None] = lambda record: None

    # --- a life begins ------------------------------------------------------------------------------------

    def started(self, host: Host, process: Process) -> None:
        """What a member finds on its disk is at least what it had promised before."""
        hard_state, _, last_index = process.log.initial()
        before, extent = host.durable
        if (hard_state.term, hard_state.commit) < (before.term, 0) or hard_state.commit < before.commit:
            raise Violation("hard state", f"{host.name} had saved {before} and finds {hard_state}")
        if hard_state.term == before.term and before.vote not in (0, hard_state.vote):
            raise Violation("hard state", f"{host.name} had voted for {before.vote}, finds {hard_state}")
        begun_anew = host.installing and process.log.first_index() - 1 >= host.installing
        if not begun_anew and (
            last_index < extent.last_index
            or (last_index == extent.last_index and process.log.term(last_index) != extent.last_term)
        ):
            raise Violation("durability", f"{host.name} had {extent} and finds entries up to {last_index}")
        machine = process.machine
        if machine.applied_index < host.synced_index:
            raise Violation(
                "checkpoint",
                f"{host.name} had synced state {host.synced_index}, finds {machine.applied_index}",
            )
        self._same_revision(host, machine.applied_index, machine.revision)
        if host.draw.random() < 0.1:
            self._world.counts["integrity check"] += 1
            for connection in (process.database.connection, process.log._read_connection):
                found = connection.execute("PRAGMA integrity_check").get
                if found != "ok":
                    raise Violation("integrity", f"{host.name}: {found}")
        self._remember(host, process)
        status = process.node.status
        self._watched[host.member_id] = Watched(status.term, status.commit_index, machine.revision)

    def _remember(self, host: Host, process: Process) -> None:
        host.durable = (process.log.initial()[0], process.log._extent)

    # --- raft ---------------------------------------------------------------------------------------------

    def taken(self, host: Host, ready: Ready) -> None:
        """State Machine Safety: one entry at each index that is applied. And no read is confirmed for less
        than what was committed when it was asked for (thesis, section 6.4)."""
        ledger = self.ledger
        for entry in ready.committed_entries:
            if entry.index == len(ledger) + 1:
                ledger.append(Record(entry, self._world.now))
                self._world.counts["entry committed"] += 1
            elif entry.index > len(ledger):
                raise Violation("ledger", f"{host.name} applies {entry.index} after {len(ledger)}")
            elif (known := ledger[entry.index - 1].entry) is not entry and known != entry:
                raise Violation(
                    "state machine safety", f"{host.name} applies {entry} where others have {known}"
                )
        if ready.read_states:
            reads = self._watched[host.member_id].reads
            for context, index in ready.read_states:
                asked = reads.pop(context, 0)
                if index < asked:
                    raise Violation("read index", f"{host.name} may read at {index}, {asked} was applied")

    def read_asked(self, host: Host, context: int) -> None:
        watched = self._watched.get(host.member_id)
        if watched is not None:
            watched.reads.setdefault(context, len(self.ledger))

    def sending(self, host: Host, process: Process, message: Message) -> None:
        """Nothing leaves that promises what is not on the sender's disk (thesis, section 3.8)."""
        log = process.log
        saved = log.initial()[0]
        if isinstance(message, AppendResponse):
            if message.rejected or saved.term > message.term:
                return
            on_disk = saved.term == message.term and log.last_index() >= message.index
        elif isinstance(message, VoteResponse):
            if message.pre_vote or not message.granted or saved.term > message.term:
                return
            on_disk = (saved.term, saved.vote) == (message.term, message.to)
        elif isinstance(message, VoteRequest):
            if message.pre_vote or saved.term > message.term:
                return
            on_disk = (saved.term, saved.vote) == (message.term, message.sender)
        else:
            return
        if not on_disk:
            raise Violation(
                "wire before disk", f"{host.name} says {message}; on disk {saved} and {log._extent}"
            )

    def written(self, host: Host, process: Process, entries: Sequence[Entry]) -> None:
        """Log Matching: one (index, term), one entry, one history before it."""
        log, known, now_s = process.log, self._logs, self._world.now
        for entry in entries:
            if entry.index > log.last_index() or log.term(entry.index) != entry.term:
                continue  # replaced within the same write
            name = (entry.index, entry.term)
            value = (crc32(entry.data), log.term(entry.index - 1))
            if known.setdefault(name, value) != value:
                raise Violation("log matching", f"{host.name} has another {name}")
            self.written_s.setdefault(name, now_s)
            if entry.kind is EntryKind.CONF_CHANGE:
                self._check_alone(host, process, entry)
        if log.last_index() < host.durable[1].last_index:
            self._world.counts["conflict overwritten"] += 1
        self._remember(host, process)

    def _check_alone(self, host: Host, process: Process, change: Entry) -> None:
        """A leader begins a change of membership when the one before is committed (thesis, section 4.1)."""
        raft, first = process.node._raft, len(self.ledger) + 1
        if raft.role is not Role.LEADER or raft.term != change.term or first >= change.index:
            return
        first = max(first, process.log.first_index())
        for entry in process.log.entries(first, change.index, 1 << 30):
            if entry.kind is EntryKind.CONF_CHANGE:
                raise Violation(
                    "one change at a time", f"{host.name} begins {change.index} before {entry.index} is done"
                )

    def before_turn(self, host: Host, process: Process) -> None:
        """Remember by which membership the turn begins to count. A turn may hold another one, when what it
        wanted written was written at once."""
        seen = self._watched[host.member_id]
        if not seen.turns:
            seen.voters = process.node._raft.configuration.voters
        seen.turns += 1

    def after_turn(self, host: Host, process: Process) -> None:
        """Term, commit and revision of a life never fall; leaders are what leaders must be."""
        raft, seen = process.node._raft, self._watched[host.member_id]
        seen.turns -= 1
        if raft.term < seen.term or raft.log.commit_index < seen.commit:
            raise Violation("monotone", f"{host.name} fell back from term {seen.term}, commit {seen.commit}")
        revision = process.machine.revision
        self._same_revision(host, process.machine.applied_index, revision)
        if revision < seen.revision:
            raise Violation("monotone", f"{host.name} fell back from revision {seen.revision} to {revision}")
        if raft.term > seen.term:
            self._world.counts["term"] += 1
        seen.term, seen.commit, seen.revision = raft.term, raft.log.commit_index, revision
        if raft.role is Role.LEADER:
            if seen.role is not Role.LEADER:
                self._became_leader(host, process)
            self._check_commit(host, process, seen)
        seen.role = raft.role

    def _became_leader(self, host: Host, process: Process) -> None:
        """Election Safety and Leader Completeness (Raft paper, figure 3)."""
        raft = process.node._raft
        self._world.counts["election won"] += 1
        self._world.trace(host.name, f"leads term {raft.term}")
        if self._leaders.setdefault(raft.term, host.member_id) != host.member_id:
            raise Violation("election safety", f"two leaders in term {raft.term}")
        if self.ledger:
            last = self.ledger[-1].entry
            if raft.log.last_index < last.index or raft.log.term(last.index) not in (last.term, None):
                raise Violation(
                    "leader completeness", f"{host.name} leads term {raft.term} without entry {last.index}"
                )

    def _check_commit(self, host: Host, process: Process, seen: Watched) -> None:
        """What a leader has committed in its term is on the disks of a majority."""
        raft = process.node._raft
        index = raft.log.commit_index
        if index <= seen.checked_commit or index < raft.term_start_index:
            return
        seen.checked_commit = index
        # A turn may apply a change of the membership: what it committed before counted by the older one.
        voters = raft.configuration.voters
        if not any(self._holds_majority(each, index, raft.term) for each in (voters, seen.voters)):
            raise Violation(
                "commit on a quorum", f"{host.name} commits {index}, not on the disks of {voters}"
            )

    def _holds_majority(self, voters: Sequence[int], index: int, term: int) -> bool:
        extents = [self.hosts[voter].durable[1] for voter in voters if voter in self.hosts]
        holders = sum(
            extent.start_index >= index or (extent.last_index >= index and extent.term(index) >= term)
            for extent in extents
        )
        return bool(voters) and holders >= majority(len(voters))

    # --- the machine --------------------------------------------------------------------------------------

    def applied(self, host: Host, index: int, outcomes: Sequence[Outcome], revision: int) -> None:
        """The same entry has the same outcome on every member and in every life."""
        if index > len(self.ledger):
            raise Violation("ledger", f"{host.name} applied {index}, which nobody has committed")
        record = self.ledger[index - 1]
        if record.applied_s < 0:
            record.applied_s = self._world.now
            record.outcomes, record.revision = outcomes, revision
            self.first_applied(record)
            return
        self._same_revision(host, index, revision)
        if len(outcomes) != len(record.outcomes) or not all(map(_same, outcomes, record.outcomes)):
            raise Violation(
                "equal outcomes", f"entry {index}: {host.name} has {outcomes}, others {record.outcomes}"
            )
        self._world.counts["entry applied again"] += 1

    def _same_revision(self, host: Host, index: int, revision: int) -> None:
        if 0 < index <= len(self.ledger):
            record = self.ledger[index - 1]
            if record.applied_s >= 0 and record.revision != revision:
                raise Violation(
                    "equal revision",
                    f"{host.name} has revision {revision} after entry {index}, others {record.revision}",
                )

    def cutting(self, host: Host, process: Process, index: int) -> None:
        """The log is never cut beyond what a synced checkpoint holds."""
        if index > host.synced_index:
            raise Violation("log cut", f"{host.name} cuts {index}, synced is {host.synced_index}")


def _same(one: Outcome, other: Outcome) -> bool:
    if isinstance(one, EtcdError) or isinstance(other, EtcdError):
        return type(one) is type(other)
    return one == other
