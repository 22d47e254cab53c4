"""A laboratory for the raft core: members with a disk and a state machine in memory, and a network between
them.

Nothing happens by itself: a test decides which member is ticked, which Ready is taken, which write reaches
the disk, which message arrives, who crashes. What a crash may lose is lost: Readys that were taken but not
persisted, and what the state machine applied since its last checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from etcd_server.raft.confchange import ChangeKind, ConfChange, Configuration
from etcd_server.raft.messages import (
    Entry,
    EntryKind,
    HardState,
    InstallSnapshot,
    Message,
    Ready,
    Snapshot,
    VoteResponse,
)
from etcd_server.raft.node import Node
from etcd_server.raft.state import Config, Random, Role


class MemoryLog:
    """A LogStorage in memory, strict about what it is asked for."""

    def __init__(self) -> None:
        self.base_index = 0
        self.base_term = 0
        self.stored: list[Entry] = []
        self.hard_state = HardState()

    def first_index(self) -> int:
        return self.base_index + 1

    def last_index(self) -> int:
        return self.base_index + len(self.stored)

    def term(self, index: int) -> int:
        assert self.base_index <= index <= self.last_index(), f"term({index}) is outside of the log"
        return self.base_term if index == self.base_index else self.stored[index - self.base_index - 1].term

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        assert self.first_index() <= low < high <= self.last_index() + 1, f"entries({low}, {high})"
        found: list[Entry] = []
        for entry in self.stored[low - self.base_index - 1 : high - self.base_index - 1]:
            max_bytes -= len(entry.data)
            if found and max_bytes < 0:
                break
            found.append(entry)
        return found

    def save(self, ready: Ready) -> None:
        """One synced step: snapshot, hard state, entries."""
        if ready.snapshot is not None:
            self.base_index, self.base_term = ready.snapshot.index, ready.snapshot.term
            self.stored = []
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.entries:
            first = ready.entries[0].index
            assert first <= self.last_index() + 1, "a gap in the log"
            del self.stored[first - self.base_index - 1 :]
            self.stored += ready.entries

    def cut(self, index: int) -> None:
        """Drops the entries up to index."""
        term = self.term(index)
        del self.stored[: index - self.base_index]
        self.base_index, self.base_term = index, term


@dataclass(frozen=True)
class State:
    """A state machine that remembers all that it was given."""

    applied_index: int
    configuration: Configuration
    history: tuple[tuple[int, int, bytes], ...] = ()


@dataclass(slots=True)
class Envelope:
    """A message on its way, with the state that travels beside a snapshot."""

    message: Message
    state: State | None = None


@dataclass
class Member:
    """One member: what is in its memory, and what is on its disk (`log`, `checkpoint`)."""

    config: Config
    random: Random
    log: MemoryLog = field(default_factory=MemoryLog)
    writes: list[Ready] = field(default_factory=list)
    incoming: dict[int, State] = field(default_factory=dict)
    reads: list[tuple[int, int]] = field(default_factory=list)
    alive: bool = True

    def __post_init__(self) -> None:
        self.checkpoint = State(0, Configuration(self.config.voters, self.config.learners))
        self.start()

    @property
    def member_id(self) -> int:
        return self.config.member_id

    def start(self) -> None:
        """Starts, or comes back after a crash with what is on disk."""
        self.writes.clear()
        self.incoming.clear()
        self.reads.clear()
        self.alive = True
        self.state = self.checkpoint
        configuration = self.state.configuration
        config = replace(
            self.config,
            voters=configuration.voters,
            learners=configuration.learners,
            applied_index=self.state.applied_index,
            hard_state=self.log.hard_state,
        )
        self.node = Node(config, self.log, self.random)

    def take(self) -> tuple[Ready, list[Envelope]] | None:
        """Takes the next Ready and does all of it but the write, which waits for `persist`."""
        ready = self.node.ready()
        if ready is None:
            return None
        envelopes = [Envelope(message) for message in ready.messages]
        for envelope in envelopes:
            if isinstance(envelope.message, InstallSnapshot):
                assert envelope.message.snapshot.index == self.state.applied_index
                envelope.state = self.state
        if ready.must_persist:
            self.writes.append(ready)
        if ready.snapshot is not None:
            assert not ready.committed_entries
            self.state = self.incoming[ready.snapshot.index]
        for entry in ready.committed_entries:
            self._apply(entry)
        self.reads += ready.read_states
        return ready, envelopes

    def _apply(self, entry: Entry) -> None:
        assert entry.index == self.state.applied_index + 1, "applied out of order"
        assert self.log.term(entry.index) == entry.term, "applied before it was on disk"
        configuration = self.state.configuration
        if entry.kind is EntryKind.CONF_CHANGE:
            configuration = self.node.apply_conf_change(decode_change(entry.data))
        record = (entry.index, entry.term, entry.data)
        self.state = State(entry.index, configuration, (*self.state.history, record))

    def persist(self, *, advance: bool = True) -> Ready:
        """The oldest write reaches the disk."""
        ready = self.writes.pop(0)
        self.log.save(ready)
        if ready.snapshot is not None:
            self.checkpoint = self.incoming[ready.snapshot.index]
        if advance:
            self.node.advance(ready.number)
        return ready

    def save_checkpoint(self) -> None:
        """The state machine reaches the disk, unless a snapshot that it stems from is not there yet."""
        if all(ready.snapshot is None for ready in self.writes):
            self.checkpoint = self.state

    def step(self, envelope: Envelope) -> None:
        """A message arrives."""
        if envelope.state is not None:
            self.incoming[envelope.state.applied_index] = envelope.state
        self.node.step(envelope.message)

    @property
    def leads(self) -> bool:
        return self.alive and self.node.status.role is Role.LEADER


def encode_change(change: ConfChange) -> bytes:
    """A membership change as the data of an entry."""
    return f"{change.kind.name.lower().replace('_', '-')} {change.member_id}".encode()


def decode_change(data: bytes) -> ConfChange:
    """The inverse of encode_change."""
    kind, _, member = data.decode().partition(" ")
    return ConfChange(ChangeKind[kind.upper().replace("-", "_")], int(member))


# Text for people


def describe_entry(entry: Entry) -> str:
    """`index/term KIND data`."""
    kind = "" if entry.kind is EntryKind.NORMAL else f" {entry.kind.name}"
    return f"{entry.index}/{entry.term}{kind}" + (f" {entry.data.decode()}" if entry.data else "")


def describe_snapshot(snapshot: Snapshot) -> str:
    """`index/term members`."""
    return f"{snapshot.index}/{snapshot.term} {describe_configuration(snapshot.configuration)}"


def describe_configuration(configuration: Configuration) -> str:
    """`voters(...) learners(...)`."""
    text = f"voters({','.join(map(str, configuration.voters))})"
    return text + (
        f" learners({','.join(map(str, configuration.learners))})" if configuration.learners else ""
    )


def describe_message(message: Message) -> str:
    """`sender->to Kind term=... field=...`, without what is false or zero."""
    text = f"{message.sender}->{message.to} {type(message).__name__} term={message.term}"
    for name in type(message).__dataclass_fields__:
        value: Any = getattr(message, name)
        if name in ("to", "sender", "term", "incarnation"):
            continue
        is_telling = name == "granted" or (name == "commit" and not isinstance(message, VoteResponse))
        if value in (0, False, ()) and not is_telling:
            continue
        text += f" {name}={_FORMATS.get(name, str)(value)}"
    return text


_FORMATS: dict[str, Callable[[Any], str]] = {
    "entries": lambda entries: "[" + ", ".join(map(describe_entry, entries)) + "]",
    "snapshot": describe_snapshot,
    "data": lambda data: data.decode(),
    "kind": lambda kind: kind.name,
    "granted": lambda granted: "yes" if granted else "no",
    "rejected": lambda _: "yes",
    "pre_vote": lambda _: "yes",
    "transfer": lambda _: "yes",
}


def describe_ready(ready: Ready) -> list[str]:
    """A line for each thing that is to be done."""
    lines = []
    if ready.leader_id is not None or ready.term is not None:
        parts = [f"term {ready.term}"] if ready.term is not None else []
        parts += [f"leader {ready.leader_id or 'unknown'}"] if ready.leader_id is not None else []
        lines.append("now " + ", ".join(parts))
    if ready.snapshot is not None:
        lines.append(f"install {describe_snapshot(ready.snapshot)}")
    if ready.hard_state is not None:
        state = ready.hard_state
        lines.append(f"save term={state.term} vote={state.vote} commit={state.commit}")
    lines += [f"save {describe_entry(entry)}" for entry in ready.entries]
    lines += [f"send {describe_message(message)}" for message in ready.messages]
    lines += [f"apply {describe_entry(entry)}" for entry in ready.committed_entries]
    lines += [f"read {context} at {index}" for context, index in ready.read_states]
    return lines
