"""The log as the core sees it: a tail in memory, everything older in the caller's LogStorage.

    first_index ..... applied ..... commit ..... stable ..... handed ..... last_index
    |<----- LogStorage ----->|<---------------- entries in memory ---------------->|

Invariants: applied <= commit <= last and applied <= stable <= handed <= last. Everything that is not both on
disk (stable) and applied is in memory, so storage is asked only for entries that never change again. Beyond
that, a window of recent entries stays in memory for followers that are a little behind; it is bounded in
number and bytes.

Writes are asynchronous. `in_flight` holds one Write for each Ready that is being persisted. When a new leader
overwrites a suffix, the Writes that carried it are clipped, so a late `persisted` can never mark an entry as
stable that stands on disk in an older version only.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from etcd_server.raft.errors import LogGap
from etcd_server.raft.messages import Entry, HardState, Message, Snapshot

ENTRY_OVERHEAD_BYTES = 128


class LogStorage(Protocol):
    """What the core needs from the log on disk. It reads only indexes that it knows to be there."""

    def first_index(self) -> int:
        """The oldest entry that is kept; last_index() + 1 when there is none."""

    def last_index(self) -> int:
        """The newest entry on disk; 0 for a log that has never had one."""

    def term(self, index: int) -> int:
        """The term of an entry, for first_index() - 1 <= index <= last_index(); term(0) is 0.

        The term just before the first entry must outlive that entry: replication starts from it.
        """

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries with low <= index < high, in order: as many as fit into max_bytes of data, and at least
        one."""


class Write:
    """What one Ready puts on disk, and the messages that wait for it."""

    __slots__ = ("hard_state", "last_index", "number", "promises", "snapshot")

    def __init__(
        self, number: int, last_index: int, hard_state: HardState | None, snapshot: Snapshot | None
    ) -> None:
        self.number = number
        self.last_index = last_index
        self.hard_state = hard_state
        self.snapshot = snapshot
        self.promises: list[Message] = []


class Log:
    """See the module's docstring for the indexes and their order."""

    __slots__ = (
        "_bytes",
        "_entries",
        "_offset",
        "_recent_bytes",
        "_recent_entries",
        "_restored",
        "_storage",
        "applied_index",
        "commit_index",
        "handed_index",
        "in_flight",
        "last_index",
        "last_term",
        "stable_index",
    )

    def __init__(
        self, storage: LogStorage, *, commit: int, applied: int, recent_entries: int, recent_bytes: int
    ) -> None:
        """Starts from what is on disk. Raises LogGap when the log does not join `applied` or lacks committed
        entries."""
        first, last = storage.first_index(), storage.last_index()
        if not first - 1 <= applied <= last:
            raise LogGap(f"the log holds entries {first} to {last}, the state has applied up to {applied}")
        if commit > last:
            raise LogGap(f"the log ends at {last}, but entries up to {commit} were committed")
        self._storage = storage
        self._recent_entries = recent_entries
        self._recent_bytes = recent_bytes
        self._entries: list[Entry] = []
        self._offset = last + 1
        self._bytes = 0
        self._restored: Snapshot | None = None
        self.in_flight: deque[Write] = deque()
        self.last_index = self.stable_index = self.handed_index = last
        self.last_term = storage.term(last)
        self.applied_index = applied
        # What was applied was committed, whatever the saved lower bound says.
        self.commit_index = max(commit, applied)

    # Reading

    def first_index(self) -> int:
        """The oldest entry that can still be read."""
        return self._storage.first_index() if self._restored is None else self._restored.index + 1

    def term(self, index: int) -> int | None:
        """The term of an entry, or of the place just before the first one; None when that is not known
        here."""
        if index >= self._offset:
            return self._entries[index - self._offset].term if index <= self.last_index else None
        if index == self.last_index:
            return self.last_term
        if self._restored is not None:
            return self._restored.term if index == self._restored.index else None
        return self._storage.term(index) if index >= self._storage.first_index() - 1 else None

    def read(self, low: int, high: int, max_bytes: int) -> Sequence[Entry]:
        """Entries from `low` on, below `high`: at least one, at most max_bytes, perhaps fewer than there
        are."""
        if low < self._offset:
            return self._storage.entries(low, min(high, self._offset), max_bytes)
        found = self._entries[low - self._offset : high - self._offset]
        if len(found) > 1:
            room = max_bytes - len(found[0].data)
            for position in range(1, len(found)):
                room -= len(found[position].data)
                if room < 0:
                    return found[:position]
        return found

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether another log is at least as up-to-date as this one (Raft thesis, section 3.6.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def possible_match(self, index: int, term: int) -> tuple[int, int]:
        """The last (index, term) at or before `index` whose term is at most `term`: the last place where this
        log can agree with one that has `term` at `index`, because terms never fall along a log (thesis,
        section 3.5)."""
        lowest = self.first_index() - 1
        index = min(index, self.last_index)
        while index > lowest:
            own = self.term(index)
            assert own is not None
            if own <= term:
                return index, own
            index -= 1
        return index, self.term(index) or 0

    # Writing

    def append(self, entry: Entry) -> None:
        """Adds the next entry: the leader's side."""
        assert entry.index == self.last_index + 1 and entry.term >= self.last_term
        self._entries.append(entry)
        self._bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES
        self.last_index = entry.index
        self.last_term = entry.term

    def accept(self, previous_index: int, previous_term: int, entries: Sequence[Entry]) -> int | None:
        """Takes a leader's entries after (previous_index, previous_term): the follower's side.

        Entries that are here already stay; the first that differs replaces itself and all after it (Raft
        paper, figure 2, AppendEntries 3 and 4). Returns the last index known to equal the leader's; None when
        the log has no such previous entry.
        """
        if self.term(previous_index) != previous_term:
            return None
        for position, entry in enumerate(entries):
            if self.term(entry.index) != entry.term:
                if entry.index <= self.last_index:
                    self._truncate(entry.index)
                for new in entries[position:]:
                    self.append(new)
                break
        return previous_index + len(entries)

    def _truncate(self, index: int) -> None:
        """Forgets the entries from `index` on. Committed entries never go (Leader Completeness, thesis,
        section 3.6.3)."""
        assert index > self.commit_index, (
            f"entry {index} is committed (up to {self.commit_index}) and cannot change"
        )
        last_term = self.term(index - 1)
        assert last_term is not None
        if index < self._offset:
            self._offset = index
        for gone in self._entries[index - self._offset :]:
            self._bytes -= len(gone.data) + ENTRY_OVERHEAD_BYTES
        del self._entries[index - self._offset :]
        self.last_index, self.last_term = index - 1, last_term
        self.handed_index = min(self.handed_index, index - 1)
        self.stable_index = min(self.stable_index, index - 1)
        for write in self.in_flight:
            write.last_index = min(write.last_index, index - 1)

    def commit_to(self, index: int) -> None:
        """Moves the commit index forward, never back, never past the log."""
        if index > self.commit_index:
            assert index <= self.last_index, f"commit {index} is past the last entry {self.last_index}"
            self.commit_index = index

    def restore(self, snapshot: Snapshot) -> None:
        """Replaces the whole log by the snapshot: what comes next is entry snapshot.index + 1."""
        assert snapshot.index > self.commit_index
        for write in self.in_flight:
            write.last_index = 0
            write.snapshot = None
        self._entries.clear()
        self._bytes = 0
        self._restored = snapshot
        self._offset = snapshot.index + 1
        self.last_index, self.last_term = snapshot.index, snapshot.term
        self.handed_index = self.commit_index = self.applied_index = snapshot.index
        self.stable_index = snapshot.index

    # Handing over

    @property
    def has_nothing_new(self) -> bool:
        """Neither unsaved nor committed entries wait to be taken."""
        return self.handed_index == self.last_index and self.applied_index >= min(
            self.commit_index, self.stable_index
        )

    def take_unsaved(self) -> Sequence[Entry]:
        """The entries that no Ready has carried yet, once."""
        if self.handed_index == self.last_index:
            return ()
        unsaved = self._entries[self.handed_index + 1 - self._offset :]
        self.handed_index = self.last_index
        return unsaved

    def take_committed(self, max_bytes: int) -> Sequence[Entry]:
        """The next entries to apply, once: committed and on this member's own disk."""
        high = min(self.commit_index, self.stable_index)
        if high <= self.applied_index:
            return ()
        committed = self.read(self.applied_index + 1, high + 1, max_bytes)
        self.applied_index = committed[-1].index
        return committed

    def persisted(self, write: Write) -> None:
        """A Write is on disk, and all before it."""
        if write.last_index > self.stable_index:
            self.stable_index = write.last_index
        if write.snapshot is not None and write.snapshot is self._restored:
            self._restored = None

    def trim(self) -> None:
        """Drops the oldest entries from memory, when there are twice as many as should be: a constant cost an
        entry."""
        count = len(self._entries)
        if count <= 2 * self._recent_entries and self._bytes <= 2 * self._recent_bytes:
            return
        done = min(self.stable_index, self.applied_index)
        dropped = 0
        for entry in self._entries:
            small = count - dropped <= self._recent_entries and self._bytes <= self._recent_bytes
            if small or entry.index > done:
                break
            self._bytes -= len(entry.data) + ENTRY_OVERHEAD_BYTES
            dropped += 1
        del self._entries[:dropped]
        self._offset += dropped
