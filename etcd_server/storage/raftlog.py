"""raft.db: the entries and the hard state of one member, on disk before anybody hears of them.

One `append` is one transaction and one sync (journal WAL, `synchronous=FULL`). The journal is allocated in
advance and used again and again, because syncing a file that grows costs half as much again. Every entry
carries a checksum over its index, term, kind and data, which is looked at whenever the entry is read.

Threads, each with a connection of its own:

- log thread: `append`.
- loop: `initial`, `first_index`, `last_index`, `term`, `entries`. They see an append once it has returned; an
  entry that is being overwritten must not be asked for meanwhile (raft has the new one).
- maintenance (any other thread): `cut`, `checkpoint`, `release_space`, `free_size_bytes`, one at a time. What
  keeps an append waiting lasts for a few milliseconds, and then the append is next.
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
from etcd_server.storage.errors import StorageError, SyncFailed, damaged, translate, translated
from etcd_server.storage.extent import Extent
from etcd_server.storage.files import (
    FRAME_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    abandon,
    connect,
    copy_journal,
    create_or_check,
)

APPLICATION_ID = 0x65747072  # "etpr"
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE entries (
    "index" INTEGER PRIMARY KEY,
    term INTEGER NOT NULL,
    kind INTEGER NOT NULL,      -- 0 normal, 1 change of membership, 2 empty
    "commit" INTEGER NOT NULL,  -- commit index known when it was written
    checksum INTEGER NOT NULL,  -- CRC-32 of index, term, kind, commit, data
    data BLOB NOT NULL
) STRICT;
-- One row. The log begins after (start_index, start_term): rows of entries up to there wait to be dropped.
-- vote is a member ID in hexadecimal, 0: none. A commit index that comes with entries, while term and vote
-- stay, is in the rows of the entries alone: one page less to sync for each append.
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

# The journal is this long from the beginning; a checkpoint is due when half of it is full.
JOURNAL_SIZE_BYTES = 16 << 20
# What a burst has made longer than this is given back when the journal begins again.
_JOURNAL_LIMIT_BYTES = 4 * JOURNAL_SIZE_BYTES
_CACHE_SIZE_BYTES = 1 << 20
_LARGEST_SHARE = 8  # of the room on the device, for the journal: one in eight
_ROWS_PER_CUT = 128

_INSERT = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)"
_DELETE_SUFFIX = 'DELETE FROM entries WHERE "index" >= ?'
_DELETE_PREFIX = (
    'DELETE FROM entries WHERE "index" IN (SELECT "index" FROM entries WHERE "index" <= ? LIMIT ?)'
)
_SET_HARD_STATE = 'UPDATE state SET term = ?, vote = ?, "commit" = ? WHERE id = 0'
_SET_START = "UPDATE state SET start_index = ?, start_term = ? WHERE id = 0"
_GET_STATE = 'SELECT term, vote, "commit", start_index, start_term FROM state WHERE id = 0'
_GET_LAST = 'SELECT max("index") FROM entries'
_GET_COMMIT = 'SELECT "commit" FROM entries WHERE "index" = ?'
_GET_TERM = 'SELECT term FROM entries WHERE "index" = ?'
_GET_ENTRIES = """
SELECT "index", term, kind, "commit", checksum, data FROM entries
WHERE "index" >= ? AND "index" < ? ORDER BY "index"
"""
_ENTRY_HEADER = Struct("<qqqq")


def checksum(index: int, term: int, kind: int, commit: int, data: bytes) -> int:
    """CRC-32 of an entry: index, term, kind and commit as 8 bytes little-endian each, then the data."""
    return crc32(data, crc32(_ENTRY_HEADER.pack(index, term, kind, commit)))


class RaftLog:
    """The open raft.db; `open` makes one. Its reads are the LogStorage of `raft`."""

    def __init__(
        self,
        path: str,
        connections: tuple[apsw.Connection, apsw.Connection, apsw.Connection],
        hard_state: HardState,
        extent: Extent,
    ) -> None:
        self.path = path
        self._append_connection, self._read_connection, self._maintenance_connection = connections
        self._append_cursor = self._append_connection.cursor()
        self._hard_state = hard_state
        self._extent = extent
        self._writing = _Turns()
        self._maintaining = threading.Lock()
        self._failure: SyncFailed | None = None
        self._journal_pages = 0
        self._append_connection.set_wal_hook(self._committed)
        self._maintenance_connection.set_wal_hook(self._committed)

    @classmethod
    def open(
        cls, path: str, *, journal_size_bytes: int = JOURNAL_SIZE_BYTES, vfs: str | None = None
    ) -> RaftLog:
        """Open the file, creating it where there is none.

        journal_size_bytes: allocated in advance, as far as the device has room.
        vfs: name of SQLite's VFS to use.
        Raises UnknownFormat, DamagedFile, DiskFull, DiskFailed, DirectoryInUse.
        """
        connections: list[apsw.Connection] = []
        try:
            with translated(path):
                append = connect(path, synchronous="FULL", cache_size_bytes=_CACHE_SIZE_BYTES, vfs=vfs)
                connections.append(append)
                _keep_journal(append)
                append.pragma("journal_size_limit", _JOURNAL_LIMIT_BYTES)
                create_or_check(append, path, SCHEMA, APPLICATION_ID, SCHEMA_VERSION)
                _allocate_journal(append, journal_size_bytes)
                hard_state, extent = load(append, path)
                for _ in ("read", "maintain"):
                    other = connect(path, synchronous="NORMAL", cache_size_bytes=_CACHE_SIZE_BYTES, vfs=vfs)
                    connections.append(other)
                    _keep_journal(other)
        except BaseException:
            for connection in connections:
                abandon(connection)
            raise
        append, read, maintenance = connections
        return cls(path, (append, read, maintenance), hard_state, extent)

    # The loop's

    def initial(self) -> tuple[HardState, int, int]:
        """(hard state, first index, last index) as they are on disk."""
        return self._hard_state, self.first_index(), self.last_index()

    def first_index(self) -> int:
        """Index of the first entry; last_index() + 1 when there is none."""
        return self._extent.start_index + 1

    def last_index(self) -> int:
        """Index of the last entry; first_index() - 1 when there is none."""
        return self._extent.last_index

    def term(self, index: int) -> int:
        """Term of the entry at `index`, or of the place before the first. Raises IndexError for any other."""
        extent = self._extent
        if not extent.start_index <= index <= extent.last_index:
            raise IndexError(f"index {index} is not in the log ({extent})")
        return extent.term(index)

    def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries with low <= index < high, in order: what fits into `max_bytes` of data, at least one.

        Raises IndexError when they are not all there, DamagedFile, DiskFailed.
        """
        extent = self._extent
        if not extent.start_index < low < high <= extent.last_index + 1:
            raise IndexError(f"entries {low}..{high - 1} are not all in the log ({extent})")
        found: list[Entry] = []
        with translated(self.path):
            cursor = self._read_connection.execute(_GET_ENTRIES, (low, high))
            try:
                for index, term, kind, commit, crc, data in cursor:
                    max_bytes -= len(data)
                    if max_bytes < 0 and found:
                        break
                    if index != low + len(found):
                        raise damaged(self.path, f"entry {low + len(found)} is missing")
                    if crc != checksum(index, term, kind, commit, data):
                        raise damaged(self.path, f"entry {index} does not match its checksum")
                    found.append(Entry(index, term, EntryKind(kind), data))
            finally:
                # A read left unfinished would keep the journal from beginning again.
                cursor.close(True)
        if not found:
            raise damaged(self.path, f"entry {low} is missing")
        return found

    def check_joins(self, applied_index: int) -> None:
        """Raises DamagedFile when entries are missing between the state, applied so far, and this log."""
        extent = self._extent
        if not extent.start_index <= applied_index <= extent.last_index:
            raise damaged(self.path, f"the state has applied entry {applied_index}, but it holds {extent}")

    # The log thread's

    def append(
        self, hard_state: HardState | None, entries: Sequence[Entry], snapshot: Snapshot | None = None
    ) -> None:
        """Write all of it in one synced transaction; when this returns, it is on the disk.

        entries: consecutive, or those of several Readys joined, where an index that goes back takes the place
            of what came before it. From the first of them on, whatever the log held is replaced.
        hard_state None: unchanged. snapshot: the log is emptied first, and begins after it.
        Raises DiskFull (nothing was changed, the same may be appended later), SyncFailed (now and ever after:
        the process must end), DiskFailed, DamagedFile, ValueError (entries that do not follow the log).
        """
        entries = _joined(entries)
        with self._writing:
            if self._failure is not None:
                raise self._failure
            before = self._extent
            if snapshot is not None:
                before = Extent(snapshot.index, ((snapshot.index, snapshot.term),))
            after = before.appended(entries) if entries else before
            try:
                self._append_cursor.execute("BEGIN IMMEDIATE")
                if snapshot is not None:
                    self._append_cursor.execute("DELETE FROM entries")
                    self._append_cursor.execute(_SET_START, (snapshot.index, snapshot.term))
                self._write(hard_state, entries, before)
                self._append_cursor.execute("COMMIT")
            except apsw.Error as error:
                raise self._append_failed(error) from error
            if hard_state is not None:
                self._hard_state = hard_state
            self._extent = after

    # Maintenance

    def cut(self, index: int) -> None:
        """Drop the entries up to `index`, if they are there, a few at a time, with appends in between.

        They are gone for good, so `index` must not lie beyond what a synced checkpoint of the state holds.
        Nothing is synced here. Raises DiskFull, DiskFailed, DamagedFile, ValueError (beyond the last entry).
        """
        connection = self._maintenance_connection
        with self._maintaining, translated(self.path):
            with self._writing:
                extent = self._extent
                if index > extent.last_index:
                    raise ValueError(f"cannot cut the log at {index}, beyond its end ({extent})")
                if index > extent.start_index:
                    connection.execute(_SET_START, (index, extent.term(index)))
                    self._extent = extent.cut(index)
            while True:
                with self._writing:
                    connection.execute(_DELETE_PREFIX, (self._extent.start_index, _ROWS_PER_CUT))
                    if connection.changes() < _ROWS_PER_CUT:
                        return

    @property
    def journal_size_bytes(self) -> int:
        """Bytes of the journal in use (any thread)."""
        return self._journal_pages * FRAME_SIZE_BYTES

    @property
    def checkpoint_is_due(self) -> bool:
        """Half of the journal is in use (any thread)."""
        return 2 * self.journal_size_bytes >= JOURNAL_SIZE_BYTES

    def checkpoint(self) -> bool:
        """Copy the journal into the file, synced, so that it begins again; False: a reader needs it.

        Most is copied while appends go on; only for the rest, a few pages and two syncs, they wait.
        Raises DiskFull, SyncFailed (after which `append` raises it too), DiskFailed.
        """
        connection = self._maintenance_connection
        try:
            with self._maintaining:
                copy_journal(connection)
                with self._writing:
                    in_journal, copied = copy_journal(connection)
                    if in_journal == copied:
                        self._journal_pages = 0
                    return in_journal == copied
        except apsw.Error as error:
            raise self._failed(error) from error

    def release_space(self, pages: int) -> int:
        """Give up to `pages` free pages back to the file system; how many were given. Raises StorageError."""
        connection = self._maintenance_connection
        with self._maintaining, self._writing, translated(self.path):
            before = int(connection.pragma("freelist_count"))
            if before == 0:
                return 0
            # One step of the statement frees one page, so it has to be run to its end.
            connection.execute(f"PRAGMA incremental_vacuum({int(pages)})").fetchall()
            return before - int(connection.pragma("freelist_count"))

    @property
    def free_size_bytes(self) -> int:
        """Bytes of the file that hold nothing. Raises StorageError."""
        with self._maintaining, translated(self.path):
            return int(self._maintenance_connection.pragma("freelist_count")) * PAGE_SIZE_BYTES

    def close(self) -> None:
        """Close the file, when no other thread uses it any more. Raises StorageError."""
        with translated(self.path), contextlib.ExitStack() as stack:
            # The last to close settles the journal; the one that appends would shorten it to nothing.
            for connection in (self._maintenance_connection, self._read_connection, self._append_connection):
                stack.callback(connection.close)

    def _write(self, hard_state: HardState | None, entries: Sequence[Entry], before: Extent) -> None:
        execute = self._append_cursor.execute
        if entries and entries[0].index <= before.last_index:
            execute(_DELETE_SUFFIX, (entries[0].index,))
        was = self._hard_state
        commit = was.commit if hard_state is None else hard_state.commit
        for entry in entries:
            index, term, kind, data = entry.index, entry.term, entry.kind.value, entry.data
            execute(_INSERT, (index, term, kind, commit, checksum(index, term, kind, commit, data), data))
        if hard_state is not None and not (
            entries and hard_state.term == was.term and hard_state.vote == was.vote
        ):
            execute(_SET_HARD_STATE, (hard_state.term, f"{hard_state.vote:x}", hard_state.commit))

    def _append_failed(self, error: apsw.Error) -> StorageError:
        if self._append_connection.in_transaction:
            # SQLite has mostly done so itself; should even this fail, the next append says what is wrong.
            with contextlib.suppress(apsw.Error):
                self._append_connection.execute("ROLLBACK")
        return self._failed(error)

    def _failed(self, error: apsw.Error) -> StorageError:
        meaning = translate(error, self.path)
        if isinstance(meaning, SyncFailed):
            self._failure = meaning
        return meaning

    def _committed(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._journal_pages = pages
        return apsw.SQLITE_OK


class _Turns:
    """A lock handed over in order of arrival: who lets go and asks again cannot keep a waiting one out."""

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


def load(connection: apsw.Connection, path: str) -> tuple[HardState, Extent]:
    """Hard state and extent of the log; where the term changes is found by bisection.

    Raises DamagedFile when they contradict each other or an entry is seen to be missing, apsw.Error.
    """
    row = connection.execute(_GET_STATE).fetchone()
    if row is None:
        raise damaged(path, "the hard state is missing")
    term, vote, commit, start_index, start_term = row
    last_index = max(start_index, connection.execute(_GET_LAST).get or 0)
    commit = max(commit, connection.execute(_GET_COMMIT, (last_index,)).get or 0)

    def term_at(index: int) -> int:
        found = connection.execute(_GET_TERM, (index,)).get
        if found is None:
            raise damaged(path, f"entry {index} is missing")
        return int(found)

    runs = [(start_index, start_term)]
    index = start_index + 1
    while index <= last_index:
        run_term = term_at(index)
        if run_term < runs[-1][1]:
            raise damaged(path, f"entry {index} is of term {run_term}, the one before of term {runs[-1][1]}")
        if run_term > runs[-1][1]:
            runs.append((index, run_term))
        index = bisect_right(range(last_index + 1), run_term, lo=index + 1, key=term_at)
    extent = Extent(last_index, tuple(runs))
    if last_index > start_index and term_at(last_index) != extent.last_term:
        raise damaged(path, f"entry {last_index} is of a term below {extent.last_term}")
    if commit > last_index:
        raise damaged(path, f"it says committed up to {commit}, but holds {extent}")
    if extent.last_term > term:
        raise damaged(path, f"it holds an entry of term {extent.last_term}, but has only seen term {term}")
    # What was cut had been committed, though the hard state may have been saved before that.
    return HardState(term, int(vote, 16), max(commit, start_index)), extent


def _joined(entries: Sequence[Entry]) -> Sequence[Entry]:
    if not entries or entries[-1].index == entries[0].index + len(entries) - 1:
        return entries
    joined: list[Entry] = []
    for entry in entries:
        if joined and entry.index <= joined[-1].index:
            del joined[max(0, entry.index - joined[0].index) :]
        joined.append(entry)
    return joined


def _keep_journal(connection: apsw.Connection) -> None:
    """Let the journal outlive its connections, so that it need not be allocated again at the next start."""
    keep = ctypes.c_int(1)
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(keep))


def _allocate_journal(connection: apsw.Connection, size_bytes: int) -> None:
    """Make the journal's file `size_bytes` long, by a transaction of that size which is given up.

    On a device with little room less of it: an append that needs more costs more, and nothing else.
    Raises apsw.Error.
    """
    path = connection.filename_wal
    status = os.statvfs(os.path.dirname(path))
    size_bytes = min(size_bytes, status.f_bavail * status.f_frsize // _LARGEST_SHARE)
    if size_bytes == 0 or (os.path.exists(path) and os.path.getsize(path) >= size_bytes):
        return
    cache_pages = connection.pragma("cache_size")
    connection.pragma("cache_size", 16)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_INSERT, (-1, 0, 0, 0, 0, apsw.zeroblob(size_bytes)))
    except apsw.FullError:
        # Somebody else was faster; appends find their room or do not, as they would have without this.
        return
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.pragma("cache_size", cache_pages)
