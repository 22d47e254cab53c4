"""A copy of state.db that another member can begin from: how it is made, and how it is looked at when it has
arrived.

The copy is made page by page, within one read transaction on a connection of its own, so it is the state as
of one commit, however long it takes and whatever is applied meanwhile. What it stands for (applied index and
term, membership) is read from the copy itself and travels nowhere else: what is said of a copy and what it
holds cannot differ.

Of the two ways that SQLite has, its backup was chosen and not `VACUUM INTO`: with 1,000,000 keys both take 2
to 3 s and leave the loop its pace, but a backup reads the file in its order, not in that of the keys, and it
can be given up at every step. The journal cannot begin again meanwhile; it is longer for a while.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import apsw

from etcd_server.raft.confchange import Configuration
from etcd_server.storage import database
from etcd_server.storage.errors import DiskFull, damaged, translated
from etcd_server.storage.files import PAGE_SIZE_BYTES, abandon, check_format, check_structure
from etcd_server.storage.filesystem import OPERATING_SYSTEM, FileSystem
from etcd_server.storage.schema import STATE_SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGES_PER_STEP = 1024
_BUSY_TIMEOUT_MS = 10_000
_META = "SELECT applied_index, applied_term, revision FROM meta WHERE id = 0"
_MEMBERS = "SELECT id, is_learner FROM members"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a copy stands for: all entries up to `applied_index`, which is of term `applied_term`."""

    applied_index: int
    applied_term: int
    revision: int
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class SnapshotFile:
    """A copy that lies at `path`. sha256: of the whole file, in hexadecimal."""

    path: str
    contents: Contents
    size_bytes: int
    sha256: str


def make(
    state_path: str,
    target_path: str,
    *,
    least_free_bytes: int = 0,
    is_cancelled: Callable[[], bool] = lambda: False,
    vfs: str | None = None,
    files: FileSystem = OPERATING_SYSTEM,
) -> SnapshotFile | None:
    """Copy what is committed in the state.db at `state_path` to `target_path`; None when cancelled meanwhile.

    It is not synced: it is to be sent and removed. Runs for seconds, in a thread that is not the loop's.
    least_free_bytes: room that must be left on the device.
    Raises DiskFull, DiskFailed, DamagedFile; there is no file then.
    """
    remove(target_path, files)
    try:
        with translated(state_path), _reader(state_path, vfs) as source:
            _check_room(source, target_path, least_free_bytes)
            is_whole = _copy(source, target_path, is_cancelled, vfs)
        if not is_whole:
            remove(target_path, files)
            return None
        contents = look_into(target_path, vfs=vfs)
        digest, size_bytes = hashlib.sha256(), 0
        for chunk in files.chunks(target_path):
            if is_cancelled():
                remove(target_path, files)
                return None
            digest.update(chunk)
            size_bytes += len(chunk)
    except BaseException:
        remove(target_path, files)
        raise
    return SnapshotFile(target_path, contents, size_bytes, digest.hexdigest())


def look_into(path: str, *, vfs: str | None = None) -> Contents:
    """What a copy stands for, after a quick look at its structure; reads nothing but `path` and writes
    nothing.

    Raises UnknownFormat (another version, another file), DamagedFile, DiskFailed.
    """
    uri = f"file:{quote(path)}?immutable=1"
    with translated(path):
        connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI, vfs=vfs)
        try:
            check_format(connection, path, database.APPLICATION_ID, STATE_SCHEMA_VERSION)
            check_structure(connection, path)
            row = connection.execute(_META).fetchone()
            members = connection.execute(_MEMBERS).fetchall()
        finally:
            abandon(connection)
    if row is None:
        raise damaged(path, "the row of 'meta' is missing")
    try:
        configuration = Configuration(
            tuple(int(str(member_id), 16) for member_id, is_learner in members if not is_learner),
            tuple(int(str(member_id), 16) for member_id, is_learner in members if is_learner),
        )
    except ValueError as error:
        raise damaged(path, f"its members cannot be read ({error})") from error
    return Contents(row[0], row[1], row[2], configuration)


def remove(path: str, files: FileSystem = OPERATING_SYSTEM) -> None:
    """Remove a copy that is not needed any more, or never became whole. Raises DiskFailed."""
    files.remove(path)
    files.remove(f"{path}-journal")


@contextmanager
def _reader(state_path: str, vfs: str | None) -> Iterator[apsw.Connection]:
    """A connection in a read transaction: what it sees stays the same."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX
    connection = apsw.Connection(state_path, flags=flags, vfs=vfs)
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.pragma("wal_autocheckpoint", 0)
        connection.execute("BEGIN")
        connection.execute(_META).fetchall()
        yield connection
    finally:
        abandon(connection)


def _check_room(source: apsw.Connection, target_path: str, least_free_bytes: int) -> None:
    if not least_free_bytes:
        return
    size_bytes = int(source.pragma("page_count")) * PAGE_SIZE_BYTES
    status = os.statvfs(os.path.dirname(target_path))
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < size_bytes + least_free_bytes:
        raise DiskFull(
            f"{target_path}: no room for a copy of {size_bytes} bytes for another member "
            f"({free_bytes} bytes are free, {least_free_bytes} must be left)"
        )


def _copy(
    source: apsw.Connection, target_path: str, is_cancelled: Callable[[], bool], vfs: str | None
) -> bool:
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_NOMUTEX
    target = apsw.Connection(target_path, flags=flags, vfs=vfs)
    try:
        target.pragma("page_size", PAGE_SIZE_BYTES)
        # A copy that is cut short is of no use to anybody, so nothing is done to survive that.
        target.pragma("journal_mode", "OFF")
        target.pragma("synchronous", "OFF")
        with target.backup("main", source, "main") as backup:
            while not backup.done:
                if is_cancelled():
                    return False
                backup.step(_PAGES_PER_STEP)
    finally:
        abandon(target)
    return True
