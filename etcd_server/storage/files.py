"""How each SQLite file of a data directory is opened, created and recognised.

Both are WAL files whose checkpoints are made by maintenance alone, and whose free pages can be given back
(`auto_vacuum=INCREMENTAL`). A connection is used by one thread at a time and goes without SQLite's own mutex,
which is 15 % of a small statement. Memory-mapped reading stays off: an error of the disk would be a SIGBUS.
"""

from __future__ import annotations

import contextlib

import apsw

from etcd_server.storage.errors import UnknownFormat, damaged

PAGE_SIZE_BYTES = 4096
FRAME_SIZE_BYTES = 24 + PAGE_SIZE_BYTES  # one page in the journal
_BUSY_TIMEOUT_MS = 10_000
_PRIMARY_KEY = "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk"
_READ_WRITE = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX


def connect(path: str, *, synchronous: str, cache_size_bytes: int, vfs: str | None = None) -> apsw.Connection:
    """A connection that reads and writes; the file is created (empty, in WAL mode) where there is none.

    synchronous: FULL, every commit is synced; NORMAL, only checkpoints are.
    vfs: name of SQLite's VFS to use.
    Raises apsw.Error.
    """
    connection = apsw.Connection(
        path, flags=_READ_WRITE | apsw.SQLITE_OPEN_CREATE, vfs=vfs, statementcachesize=256
    )
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        if connection.pragma("page_count") == 0:
            # These are fixed with the first page; asking for them again would be a write.
            connection.pragma("page_size", PAGE_SIZE_BYTES)
            connection.pragma("auto_vacuum", "INCREMENTAL")
        if connection.pragma("journal_mode", "WAL") != "wal":
            raise apsw.CantOpenError("the file system cannot hold SQLite's write-ahead log")
        connection.pragma("wal_autocheckpoint", 0)
        connection.pragma("synchronous", synchronous)
        connection.pragma("cache_size", cache_size_bytes // PAGE_SIZE_BYTES)
        connection.pragma("temp_store", "MEMORY")
        connection.pragma("trusted_schema", False)
    except BaseException:
        abandon(connection)
        raise
    return connection


def abandon(connection: apsw.Connection) -> None:
    """Close a connection after something has failed, which is what the caller wants to hear of."""
    with contextlib.suppress(apsw.Error):
        connection.close(True)


def copy_journal(connection: apsw.Connection) -> tuple[int, int]:
    """Sync the journal, copy what no reader needs there into the file, sync that; writers go on.

    Returns (pages in the journal, how many of them are in the file); (1, 0) when another connection is at it,
    which SQLite does not wait for. Raises apsw.Error.
    """
    try:
        return connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    except apsw.BusyError:
        return 1, 0


def create_or_check(
    connection: apsw.Connection, path: str, schema: str, application_id: int, schema_version: int
) -> None:
    """Run `schema` in an empty file; of any other check owner, version and structure.

    Raises UnknownFormat, DamagedFile, apsw.Error.
    """
    empty = connection.execute("SELECT count(*) FROM sqlite_schema").get == 0
    if empty and connection.pragma("application_id") == 0 and connection.pragma("user_version") == 0:
        with connection:
            connection.execute(schema)
            connection.pragma("application_id", application_id)
            connection.pragma("user_version", schema_version)
        return
    check_format(connection, path, application_id, schema_version)
    check_structure(connection, path)


def check_format(connection: apsw.Connection, path: str, application_id: int, schema_version: int) -> None:
    """Whose file it is and of which version. Raises UnknownFormat, apsw.Error."""
    found_id = connection.pragma("application_id")
    if found_id != application_id:
        raise UnknownFormat(
            f"{path}: not this file of etcd-py (application id {found_id:#x}, expected {application_id:#x})"
        )
    found_version = connection.pragma("user_version")
    if found_version != schema_version:
        raise UnknownFormat(
            f"{path}: is of format {found_version}; this version of etcd-py knows format {schema_version}"
        )


def check_structure(connection: apsw.Connection, path: str) -> None:
    """A look at both ends of every table, in a time that does not depend on the size of the file.

    SQLite itself refuses a bad header and a file shorter than its header says. Damage elsewhere is met when
    it is read; `verify` reads everything. Raises DamagedFile, apsw.Error.
    """
    pages, free_pages = connection.pragma("page_count"), connection.pragma("freelist_count")
    if free_pages >= pages:
        raise damaged(path, f"{free_pages} of {pages} pages are said to be free")
    for name, is_without_rowid in connection.execute(
        "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table'"
    ).fetchall():
        order = ["rowid"]
        if is_without_rowid:
            order = [f'"{column}"' for (column,) in connection.execute(_PRIMARY_KEY, (name,)).fetchall()]
        for direction in ("ASC", "DESC"):
            keys = ", ".join(f"{column} {direction}" for column in order)
            connection.execute(f'SELECT * FROM "{name}" ORDER BY {keys} LIMIT 1').fetchall()
