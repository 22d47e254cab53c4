"""state.db: one SQLite file, one writer, one open transaction.

Knows how the file is opened, committed and measured; knows nothing of its tables, whose statements run on
`StateDatabase.connection`. Entries are applied into an open transaction which is committed when the engine
says so, and applied_index is part of it: whatever is lost, the file holds the effect of exactly the entries
up to its applied_index, and the raft log holds the rest.

Journal WAL, `synchronous=NORMAL`: a commit writes and does not sync, so a power cut may take a suffix of the
commits but cannot tear one. Checkpoints, which sync, are made by `maintenance`, never by a commit.

Everything here is called by one thread, the loop. Other threads open connections of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import apsw

from etcd_server.storage.errors import DiskFull, StateRolledBack, translate, translated
from etcd_server.storage.files import (
    FRAME_SIZE_BYTES,
    PAGE_SIZE_BYTES,
    abandon,
    connect,
    copy_journal,
    create_or_check,
)
from etcd_server.storage.reserve import Reserve

APPLICATION_ID = 0x65747073  # "etps"
CACHE_SIZE_BYTES = 16 << 20
SPILL_SIZE_BYTES = 32 << 20
# What a burst has made of the journal beyond this is given back when the journal begins again.
JOURNAL_LIMIT_BYTES = 64 << 20
# Wanted on the device, beside what the cache holds, before a commit is tried.
COMMIT_MARGIN_BYTES = 1 << 20


class StateDatabase:
    """The open state.db.

    connection: the apsw connection on which the tables run their statements. Cheapest use, measured: one
        `connection.cursor()` kept for each hot statement, `cursor.execute(sql, bindings)` with the very same
        str object each time (found in apsw's statement cache), `executemany` for a batch of changes.
    """

    def __init__(
        self, path: str, connect_again: Callable[[], apsw.Connection], reserve: Reserve | None
    ) -> None:
        """`connect_again` opens the file; raises as `open` does."""
        self.path = path
        self._connect = connect_again
        self._reserve = reserve
        self.measure: Callable[[Callable[[], object]], object] = lambda commit: commit()
        """Runs each commit; whoever has a clock may take the time."""
        self._use(connect_again())

    def _use(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self._execute = connection.cursor().execute
        self._journal_pages = 0
        self._spills = True
        connection.set_wal_hook(self._committed)

    @classmethod
    def open(
        cls,
        path: str,
        schema: str,
        schema_version: int,
        *,
        reserve: Reserve | None = None,
        vfs: str | None = None,
    ) -> StateDatabase:
        """Open the file, creating it with `schema` (SQL text, several statements) where there is none.

        schema_version: of `schema`, positive; a file of another version is refused.
        reserve: room to be given up when a commit would not fit on the device.
        vfs: name of the SQLite VFS to use, for tests on simulated disks.
        Raises UnknownFormat, DamagedFile, DiskFull, DiskFailed, DirectoryInUse.
        """

        def connect_again() -> apsw.Connection:
            with translated(path):
                return _connect(path, schema, schema_version, vfs)

        return cls(path, connect_again, reserve)

    @property
    def in_transaction(self) -> bool:
        return self.connection.in_transaction

    def begin(self) -> None:
        """Open the write transaction, if none is open. Raises StorageError."""
        if not self.connection.in_transaction:
            with translated(self.path):
                self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Commit the open transaction, if there is one; nothing is synced.

        Raises StateRolledBack when there was no room on the device (SQLite gives the transaction up; the log
        has its entries), DiskFailed, SyncFailed, DamagedFile.
        """
        if not self.connection.in_transaction:
            return
        if self._reserve is not None and self._reserve.held:
            self._make_room(self._reserve)
        try:
            self.measure(lambda: self._execute("COMMIT"))
        except apsw.Error as error:
            raise self.failed(error) from error
        if not self._spills:
            self.connection.pragma("cache_spill", SPILL_SIZE_BYTES // PAGE_SIZE_BYTES)
            self._spills = True

    def rollback(self) -> None:
        """Give the open transaction up, if there is one."""
        if self.connection.in_transaction:
            with translated(self.path):
                self._execute("ROLLBACK")

    def failed(self, error: apsw.Error) -> Exception:
        """What an error of a statement inside the transaction means: the error to raise in its place.

        A full disk takes the whole transaction with it (what SQLite itself does at COMMIT and at most
        statements): what is left of it is rolled back here, so that there is one outcome and not several.
        """
        meaning = translate(error, self.path)
        if not isinstance(meaning, DiskFull):
            return meaning
        self.rollback()
        if self._reserve is not None:
            self._reserve.give_up()
        # Until a commit succeeds, memory holds what the device cannot: spilling would end it once more.
        self.connection.pragma("cache_spill", False)
        self._spills = False
        return StateRolledBack(
            f"{meaning} (the changes since the last commit are applied again from the log)"
        )

    @property
    def size_bytes(self) -> int:
        """Size of the data: its pages, whether they are in the file or still in the journal."""
        return int(self.connection.pragma("page_count")) * PAGE_SIZE_BYTES

    @property
    def size_in_use_bytes(self) -> int:
        """`size_bytes` without the free pages."""
        pages = int(self.connection.pragma("page_count")) - int(self.connection.pragma("freelist_count"))
        return pages * PAGE_SIZE_BYTES

    @property
    def journal_size_bytes(self) -> int:
        """Committed bytes in the journal since it was last begun again."""
        return self._journal_pages * FRAME_SIZE_BYTES

    def release_space(self, pages: int) -> int:
        """Give up to `pages` free pages back, within the open transaction; returns how many were given.

        The file becomes shorter at the next checkpoint. Raises StorageError.
        """
        try:
            before = int(self.connection.pragma("freelist_count"))
            if before == 0:
                return 0
            self.begin()
            # One step of the statement frees one page, so it has to be run to its end.
            self._execute(f"PRAGMA incremental_vacuum({int(pages)})").fetchall()
            return before - int(self.connection.pragma("freelist_count"))
        except apsw.Error as error:
            raise self.failed(error) from error

    def restart_journal(self) -> bool:
        """Copy the rest of the journal into the file, so that the next transaction begins it again.

        To be called between commit() and begin(), when maintenance has copied nearly all: it blocks for two
        syncs and the copying of the rest. False, and the journal grows on, when a reader (somebody's sqlite3
        shell) still needs it, the device has no room for the file, or maintenance is copying just now. Raises
        SyncFailed, DiskFailed, DamagedFile.
        """
        try:
            with translated(self.path):
                pages, copied = copy_journal(self.connection)
        except DiskFull:
            return False
        return pages == copied

    def replace(self, put_in_place: Callable[[], None]) -> None:
        """Close the file, without copying its journal, have `put_in_place` put another one there, and open
        that.

        Every cursor of `connection` is void then: whoever holds one takes another. What is not committed is
        given up. When this raises (StorageError, or whatever `put_in_place` raises), nothing is open.
        """
        with translated(self.path):
            self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self.connection.close()
        put_in_place()
        self._use(self._connect())

    def close(self) -> None:
        """Close the file as it was at the last commit. Raises StorageError.

        What is not committed is given up: it may be half of an entry, and the log has it.
        """
        with translated(self.path):
            self.connection.close()

    def _committed(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._journal_pages = pages
        return apsw.SQLITE_OK

    def _make_room(self, reserve: Reserve) -> None:
        cached_bytes, _ = self.connection.status(apsw.SQLITE_DBSTATUS_CACHE_USED)
        if reserve.free_size_bytes() < cached_bytes + COMMIT_MARGIN_BYTES:
            reserve.give_up()


def _connect(path: str, schema: str, schema_version: int, vfs: str | None) -> apsw.Connection:
    connection = connect(path, synchronous="NORMAL", cache_size_bytes=CACHE_SIZE_BYTES, vfs=vfs)
    try:
        connection.pragma("journal_size_limit", JOURNAL_LIMIT_BYTES)
        connection.pragma("cache_spill", SPILL_SIZE_BYTES // PAGE_SIZE_BYTES)
        create_or_check(connection, path, schema, APPLICATION_ID, schema_version)
    except BaseException:
        abandon(connection)
        raise
    return connection
