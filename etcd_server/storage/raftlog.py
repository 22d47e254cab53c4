"""raft.db: the entries and the hard state of one member, on disk before anything that depends on them is
said.

One `append` is one transaction and one sync (journal WAL, `synchronous=FULL`). The journal is allocated in
advance and used again and again, because a sync of a file that grows costs half as much again. Every entry
carries a checksum over its index, term, kind and data, which is looked at whenever it is read.

Threads, each with a connection of its own:

- log thread: `append`.
- loop: `initial`, `first_index`, `last_index`, `term`, `entries`. They see an append once it has returned; an
  entry
  that is being overwritten must not be asked for meanwhile (raft does not: it has the new one in memory).
- maintenance thread: `cut`, `checkpoint`, `release_space`. Whenever they keep an append waiting it is for a
  few milliseconds, and the append is next.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from struct import Struct
from types import TracebackType
from zlib import crc32

import apsw

from etcd_server.raft.messages import Entry, EntryKind, HardState, Snapshot
from etcd_server.storage.errors import DAMAGE_ADVICE, DamagedFile, StorageError, SyncFailed, translate, translated
from etcd_server.storage.files import FRAME_HEADER_SIZE_BYTES, PAGE_SIZE_BYTES, connect, create_or_check

APPLICATION_ID = 0x65747072  # "etpr"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE entries (
    "index" INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    kind INTEGER NOT NULL,      -- 0 normal, 1 change of membership, 2 empty
    checksum INTEGER NOT NULL,  -- CRC-32 of index, term, kind, data
    data BLOB NOT NULL
) STRICT;
-- One row. The log begins after (start_index, start_term); vote is a member ID in hexadecimal, 0: none.
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    term INTEGER NOT NULL,
    vote TEXT NOT NULL,
    "commit" INTEGER NOT NULL,
    start_index INTEGER NOT NULL,
    start_term INTEGER NOT NULL
) STRICT;
INSERT INTO state VALUES (0, 0, '0', 0, 0, 0);
"""

# The journal is this long from the beginning; half of it filled calls for a checkpoint.
JOURNAL_SIZE_BYTES = 16 << 20
# The newest entries stay in memory up to this size: the loop applies them, and sends them to members close
# behind.
RECENT_SIZE_BYTES = 4 << 20
_CACHE_SIZE_BYTES = 1 << 20
_ROWS_PER_CUT = 128

_INSERT = 'INSERT INTO entries ("index", term, kind, checksum, data) VALUES (?, ?, ?, ?, ?)'
_DELETE_SUFFIX = 'DELETE FROM entries WHERE "index" >= ?'
_DELETE_PREFIX = (
    'DELETE FROM entries WHERE "index" IN (SELECT "index" FROM entries WHERE "index" <= ? LIMIT ?)'
)
_SET_HARD_STATE = 'UPDATE state SET term = ?, vote = ?, "commit" = ? WHERE id = 0'
_SET_START = "UPDATE state SET start_index = ?, start_term = ? WHERE id = 0"
_GET_STATE = 'SELECT term, vote, "commit", start_index, start_term FROM state WHERE id = 0'
_GET_LAST = 'SELECT max("index") FROM entries'
_GET_TERM = 'SELECT term FROM entries WHERE "index" = ?'
_GET_ENTRIES = 'SELECT "index", term, kind, checksum, data FROM entries WHERE "index" >= ? AND "index" < ? ORDER BY "index"'
_ENTRY_HEADER = Struct("<QQB")


def checksum(index: int, term: int, kind: int, data: bytes) -> int:
    """CRC-32 of an entry: index and term as 8 bytes little-endian, kind as one, then the data."""
    return crc32(data, crc32(_ENTRY_HEADER.pack(index, term, kind)))


class _Extent:
    """Which indexes the log holds and of which terms; never changed, so that any thread may read it.

    start_index, start_term: what the log begins after. last_index: start_index when the log is empty.
    runs: (first index, term) of each run of entries of one term, ascending, beginning with (start_index,
    start_term).
    """

    __slots__ = ("last_index", "runs")

    def __init__(self, last_index: int, runs: tuple[tuple[int, int], ...]) -> None:
        self.last_index = last_index
        self.runs = runs

    @property
    def start_index(self) -> int:
        return self.runs[0][0]

    def term(self, index: int) -> int:
        return self.runs[bisect_right(self.runs, index, key=_first) - 1][1]

    def appended(self, entries: Sequence[Entry]) -> _Extent:
        """With `entries` in place of everything from the first of them on."""
        last = entries[-1]
        if entries[0].index == self.last_index + 1 and last.term == self.runs[-1][1]:
            return _Extent(last.index, self.runs)
        runs = list(self.runs[: max(1, bisect_right(self.runs, entries[0].index - 1, key=_first))])
        for entry in entries:
            if entry.term != runs[-1][1]:
                runs.append((entry.index, entry.term))
        return _Extent(last.index, tuple(runs))

    def cut(self, index: int) -> _Extent:
        """Without the entries up to `index`."""
        position = bisect_right(self.runs, index, key=_first)
        return _Extent(self.last_index, ((index, self.runs[position - 1][1]), *self.runs[position:]))


def _first(run: tuple[int, int]) -> int:
    return run[0]


class _Turns:
    """A lock that is handed over in order of arrival: who lets go and asks again cannot keep a waiting one out."""

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._room = threading.Lock()

    def __enter__(self) -> None:
        with self._door:
            self._room.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._room.release()


class RaftLog:
    """The open raft.db; `open` makes one. The LogStorage of `raft` is the four reads."""

    def __init__(
        self,
        path: str,
        connections: tuple[apsw.Connection, apsw.Connection, apsw.Connection],
        hard_state: HardState,
        extent: _Extent,
    ) -> None:
        self.path = path
        self._append_connection, self._read_connection, self._maintenance_connection = connections
        self._execute = self._append_connection.cursor()
        self._hard_state = hard_state
        self._extent = extent
        self._recent: dict[int, Entry] = {}
        self._recent_size_bytes = 0
        self._writing = _Turns()
        self._failure: SyncFailed | None = None
        self._journal_pages = 0
        self._append_connection.set_wal_hook(self._committed)
        self._maintenance_connection.set_wal_hook(self._committed)

    @classmethod
    def open(
        cls, path: str, *, journal_size_bytes: int = JOURNAL_SIZE_BYTES, vfs: str | None = None
    ) -> RaftLog:
        """Open the file, creating it where there is none.

        journal_size_bytes: allocated in advance, as far as the device has room. vfs: name of SQLite's VFS to
        use.
        Raises UnknownFormat, DamagedFile, DiskFull, DiskFailed, DirectoryInUse.
        """
        connections: list[apsw.Connection] = []
        try:
            with translated(path):
                for synchronous in ("FULL", "NORMAL", "NORMAL"):
                    connection = connect(
                        path, synchronous=synchronous, cache_size_bytes=_CACHE_SIZE_BYTES, vfs=vfs
                    )
                    connections.append(connection)
                    if synchronous == "FULL":
                        # The journal outlives the process, so that it need not be allocated again.
                        keep = ctypes.c_int(1)
                        connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(keep))
                        create_or_check(connection, path, SCHEMA, APPLICATION_ID, SCHEMA_VERSION)
                        allocate_journal(connection, journal_size_bytes)
                hard_state, extent = _load(connections[0], path)
        except BaseException:
            for connection in connections:
                connection.close()
            raise
        append, read, maintenance = connections
        return cls(path, (append, read, maintenance), hard_state, extent)

    # The loop's.

    def initial(self) -> tuple[HardState, int, int]:
        """(hard state, first index, last index) as they are on disk; an empty log ends before it begins."""
        return self._hard_state, self.first_index(), self.last_index()

    def first_index(self) -> int:
        """Index of the first entry that is there, or would be in an empty log."""
        return self._extent.start_index + 1

    def last_index(self) -> int:
        """Index of the last entry, first_index() - 1 when there is none."""
        return self._extent.last_index

    def term(self, index: int) -> int:
        """Term of the entry at `index`; also of the one just before the first. Raises IndexError outside of that."""
        extent = self._extent
        if not extent.start_index <= index <= extent.last_index:
            raise IndexError(f"index {index} is not in the log ({extent.start_index}..{extent.last_index})")
        return extent.term(index)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low, low + 1, ... up to high - 1, but no more than hold `max_bytes` of data; at least one.

        Raises IndexError when they are not all there, DamagedFile, DiskFailed.
        """
        extent = self._extent
        if not extent.start_index < low < high <= extent.last_index + 1:
            raise IndexError(
                f"entries {low}..{high - 1} are not in the log ({extent.start_index + 1}..{extent.last_index})"
            )
        found = self._read_recent(low, high, max_bytes)
        return found if found else self._read(low, high, max_bytes)

    # The log thread's.

    def append(
        self, hard_state: HardState | None, entries: Sequence[Entry], snapshot: Snapshot | None = None
    ) -> None:
        """Write all of it in one synced transaction; when this returns, it is on the disk.

        entries: consecutive; whatever the log holds from the first of them on is replaced. hard_state None:
        unchanged.
        snapshot: the log is emptied and begins after it.
        Raises DiskFull (nothing was changed; the same may be appended later), SyncFailed (now and ever after:
        the process must end), DiskFailed, DamagedFile, ValueError (entries that do not follow the log).
        """
        with self._writing:
            if self._failure is not None:
                raise self._failure
            extent = self._extent
            if snapshot is not None:
                extent = _Extent(snapshot.index, ((snapshot.index, snapshot.term),))
            _check_order(extent, entries)
            try:
                self._write(
                    hard_state, entries, snapshot, replaces=entries and entries[0].index <= extent.last_index
                )
            except apsw.Error as error:
                raise self._append_failed(error) from error
            if hard_state is not None:
                self._hard_state = hard_state
            self._remember(entries, forget_all=snapshot is not None)
            self._extent = extent.appended(entries) if entries else extent

    # The maintenance thread's.

    def cut(self, index: int) -> None:
        """Drop the entries up to `index`, a few at a time, letting appends in between. An index already cut
        is none.

        What is dropped is gone for good: `index` must not lie beyond what the state holds on disk
        (`maintenance`). Nothing is synced here. Raises DiskFull, DiskFailed, DamagedFile, ValueError (beyond
        the last entry).
        """
        with self._writing, translated(self.path):
            extent = self._extent
            if index > extent.last_index:
                raise ValueError(f"cannot cut the log at {index}, beyond its last entry {extent.last_index}")
            if index > extent.start_index:
                self._maintenance_connection.execute(_SET_START, (index, extent.term(index)))
                self._extent = extent.cut(index)
        while True:
            with self._writing, translated(self.path):
                self._maintenance_connection.execute(
                    _DELETE_PREFIX, (self._extent.start_index, _ROWS_PER_CUT)
                )
                if self._maintenance_connection.changes() < _ROWS_PER_CUT:
                    return

    @property
    def journal_size_bytes(self) -> int:
        """Bytes of the journal in use. A checkpoint is due at half of JOURNAL_SIZE_BYTES."""
        return self._journal_pages * (PAGE_SIZE_BYTES + FRAME_HEADER_SIZE_BYTES)

    @property
    def checkpoint_is_due(self) -> bool:
        return 2 * self.journal_size_bytes >= JOURNAL_SIZE_BYTES

    def checkpoint(self) -> bool:
        """Copy the journal into the file and sync that, so that the journal begins again. False: a reader
        needs it.

        Most of it while appends go on; only for the rest, a few pages and two syncs, they wait. Raises
        DiskFull, SyncFailed (as of `append`), DiskFailed.
        """
        try:
            self._maintenance_connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            with self._writing:
                in_journal, copied = self._maintenance_connection.wal_checkpoint(
                    mode=apsw.SQLITE_CHECKPOINT_PASSIVE
                )
                if in_journal == copied:
                    self._journal_pages = 0
                return in_journal == copied
        except apsw.Error as error:
            meaning = translate(error, self.path)
            if isinstance(meaning, SyncFailed):
                self._failure = meaning
            raise meaning from error

    def release_space(self, pages: int) -> int:
        """Give up to `pages` free pages back to the file system; how many were given. Raises StorageError."""
        connection = self._maintenance_connection
        with self._writing, translated(self.path):
            before = int(connection.pragma("freelist_count"))
            if before == 0:
                return 0
            # One step of the statement frees one page, so it has to be run to its end.
            connection.execute(f"PRAGMA incremental_vacuum({int(pages)})").fetchall()
            return before - int(connection.pragma("freelist_count"))

    @property
    def free_size_bytes(self) -> int:
        """Bytes of the file that hold nothing (maintenance thread)."""
        return int(self._maintenance_connection.pragma("freelist_count")) * PAGE_SIZE_BYTES

    def close(self) -> None:
        """Close the file when no other thread uses it any more."""
        for connection in (self._read_connection, self._maintenance_connection, self._append_connection):
            with translated(self.path):
                connection.close()

    def _write(
        self,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        snapshot: Snapshot | None,
        replaces: object,
    ) -> None:
        cursor = self._execute
        cursor.execute("BEGIN IMMEDIATE")
        if snapshot is not None:
            cursor.execute("DELETE FROM entries")
            cursor.execute(_SET_START, (snapshot.index, snapshot.term))
        elif replaces:
            cursor.execute(_DELETE_SUFFIX, (entries[0].index,))
        for entry in entries:
            index, term, kind, data = entry.index, entry.term, entry.kind.value, entry.data
            cursor.execute(_INSERT, (index, term, kind, checksum(index, term, kind, data), data))
        if hard_state is not None:
            cursor.execute(_SET_HARD_STATE, (hard_state.term, f"{hard_state.vote:x}", hard_state.commit))
        cursor.execute("COMMIT")

    def _append_failed(self, error: apsw.Error) -> StorageError:
        meaning = translate(error, self.path)
        if isinstance(meaning, SyncFailed):
            self._failure = meaning
        if self._append_connection.in_transaction:
            # SQLite has mostly done so itself; when even this fails, the next append says what is wrong.
            with contextlib.suppress(apsw.Error):
                self._append_connection.execute("ROLLBACK")
        return meaning

    def _committed(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._journal_pages = pages
        return apsw.SQLITE_OK

    def _remember(self, entries: Sequence[Entry], *, forget_all: bool) -> None:
        recent, size_bytes = self._recent, self._recent_size_bytes
        if forget_all or (entries and entries[0].index <= self._extent.last_index):
            # What is replaced, and what comes after it, must not be found any more. A new dict, because the
            # loop may be reading the old one.
            keep = 0 if forget_all else entries[0].index
            recent = {index: entry for index, entry in recent.items() if index < keep}
            size_bytes = sum(len(entry.data) for entry in recent.values())
        for entry in entries:
            recent[entry.index] = entry
            size_bytes += len(entry.data)
        while size_bytes > RECENT_SIZE_BYTES:
            oldest = next(iter(recent))
            size_bytes -= len(recent.pop(oldest).data)
        self._recent, self._recent_size_bytes = recent, size_bytes

    def _read_recent(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """As `entries`, from memory; nothing when the first is not there (any more)."""
        recent = self._recent
        found: list[Entry] = []
        for index in range(low, high):
            entry = recent.get(index)
            if entry is None:
                break
            max_bytes -= len(entry.data)
            if max_bytes < 0 and found:
                break
            found.append(entry)
        return found

    def _read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        found: list[Entry] = []
        with translated(self.path):
            cursor = self._read_connection.execute(_GET_ENTRIES, (low, high))
            try:
                for index, term, kind, crc, data in cursor:
                    max_bytes -= len(data)
                    if max_bytes < 0 and found:
                        break
                    if index != low + len(found):
                        raise DamagedFile(_damage(self.path, f"entry {low + len(found)} is missing"))
                    if crc != checksum(index, term, kind, data):
                        raise DamagedFile(_damage(self.path, f"entry {index} does not match its checksum"))
                    found.append(Entry(index, term, EntryKind(kind), data))
            finally:
                # A read left unfinished would keep the journal from beginning again.
                cursor.close(True)
        if not found:
            raise DamagedFile(_damage(self.path, f"entry {low} is missing"))
        return found


def allocate_journal(connection: apsw.Connection, size_bytes: int) -> None:
    """Make the journal's file `size_bytes` long, by a transaction of that size which is given up.

    As far as there is room: an append that needs more of it costs more, and nothing else. Raises apsw.Error.
    """
    path = connection.filename_wal
    if size_bytes == 0 or (os.path.exists(path) and os.path.getsize(path) >= size_bytes):
        return
    cache_pages = connection.pragma("cache_size")
    connection.pragma("cache_size", 16)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_INSERT, (-1, 0, 0, 0, apsw.zeroblob(size_bytes)))
    except apsw.FullError:
        pass
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.pragma("cache_size", cache_pages)


def _load(connection: apsw.Connection, path: str) -> tuple[HardState, _Extent]:
    """Hard state and extent of the log; finds where the term changes by bisection. Raises DamagedFile, apsw.Error."""
    row = connection.execute(_GET_STATE).fetchone()
    if row is None:
        raise DamagedFile(_damage(path, "the hard state is missing"))
    term, vote, commit, start_index, start_term = row
    last_index = max(start_index, connection.execute(_GET_LAST).get or 0)

    def term_at(index: int) -> int:
        found = connection.execute(_GET_TERM, (index,)).get
        if found is None:
            raise DamagedFile(_damage(path, f"entry {index} is missing"))
        return int(found)

    runs = [(start_index, start_term)]
    index = start_index + 1
    while index <= last_index:
        run_term = term_at(index)
        if run_term < runs[-1][1]:
            raise DamagedFile(
                _damage(path, f"entry {index} is of term {run_term}, the one before of {runs[-1][1]}")
            )
        if run_term != runs[-1][1]:
            runs.append((index, run_term))
        index = bisect_right(range(last_index + 1), run_term, lo=index + 1, key=term_at)
    if commit > last_index:
        held = f"{start_index + 1}..{last_index}"
        raise DamagedFile(_damage(path, f"it says committed up to {commit}, but holds entries {held}"))
    if runs[-1][1] > term:
        raise DamagedFile(
            _damage(path, f"an entry of term {runs[-1][1]}, but the member has only seen term {term}")
        )
    # What was cut had been committed, though the hard state may have been saved before.
    return HardState(term, int(vote, 16), max(commit, start_index)), _Extent(last_index, tuple(runs))


def _check_order(extent: _Extent, entries: Sequence[Entry]) -> None:
    if not entries:
        return
    first = entries[0].index
    if not extent.start_index < first <= extent.last_index + 1:
        raise ValueError(
            f"entry {first} does not follow the log ({extent.start_index + 1}..{extent.last_index})"
        )
    if entries[-1].index != first + len(entries) - 1:
        raise ValueError(f"entries {first}..{entries[-1].index} are not consecutive")


def _damage(path: str, what: str) -> str:
    return f"{path}: the file is damaged: {what}; {DAMAGE_ADVICE}"
