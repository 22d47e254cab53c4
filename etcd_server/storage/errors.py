"""What can go wrong with the files of a data directory, by what the caller has to do about it.

    StorageError
    ├── DiskFull           refuse writes, keep reading, try the same call again when there is room
    ├── StateRolledBack    the open transaction of state.db is gone: apply again from applied_index
    ├── DiskFailed         the disk refused something: end the process, the next start replays the log
    │   └── SyncFailed     a sync failed; what the disk holds is unknown. Never retried
    ├── DamagedFile        a file does not hold what was written to it: refuse to serve
    ├── UnknownFormat      not our directory, or of a newer version: refuse to start
    └── DirectoryInUse     another process has the directory

Every message is one line that names the file, says what was found and what to do. Errors of SQLite are
translated here and nowhere else, so that only `storage` has to know them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apsw


class StorageError(Exception):
    """Base of every error of this package; `str()` is one line for a person."""


class DiskFull(StorageError):
    """There was no room for a write. Nothing was changed; the same call may be made again later."""


class StateRolledBack(StorageError):
    """The open transaction of state.db is gone: the file holds the applied_index of its last commit."""


class DiskFailed(StorageError):
    """The disk refused a read or a write. The process should end; what was answered is in the log."""


class SyncFailed(DiskFailed):
    """A sync failed, so it is unknown what the disk holds. The process must end and must not try again."""


class DamagedFile(StorageError):
    """A file does not hold what was written to it."""


class UnknownFormat(StorageError):
    """A file or directory is not ours, or was written by a newer version."""


class DirectoryInUse(StorageError):
    """Another process has the data directory open."""


_SYNC_FAILURES = frozenset({apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC, apsw.SQLITE_IOERR_CLOSE})
# The index of the journal is a file too, PATH-shm; this is how SQLite says that it cannot grow.
_FULL = frozenset({apsw.SQLITE_IOERR_SHMSIZE})
_DAMAGE = frozenset({apsw.SQLITE_IOERR_CORRUPTFS, apsw.SQLITE_IOERR_SHORT_READ, apsw.SQLITE_IOERR_DATA})


def damaged(path: str, what: str) -> DamagedFile:
    """The error for damage found in the file at `path`."""
    return DamagedFile(
        f"{path}: the file is damaged: {what}; stop the server, run 'etcd-py verify DATA-DIR', "
        "then restore a backup or replace this member"
    )


def translate(error: apsw.Error, path: str) -> StorageError:
    """The typed error for what SQLite said about the file at `path`."""
    code: int = getattr(error, "extendedresult", apsw.SQLITE_ERROR)
    if isinstance(error, apsw.FullError) or code in _FULL:
        return DiskFull(f"{path}: no space left on the device; free some, and writing goes on by itself")
    if isinstance(error, apsw.CorruptError | apsw.NotADBError) or code in _DAMAGE:
        return damaged(path, str(error))
    if code in _SYNC_FAILURES:
        return SyncFailed(f"{path}: the disk failed to sync ({error}); check it before starting again")
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return DirectoryInUse(f"{path}: another process holds a lock on the file ({error})")
    return DiskFailed(f"{path}: {error}; check the disk and its permissions before starting again")


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Run statements about the file at `path`; whatever SQLite raises comes out as a StorageError."""
    try:
        yield
    except apsw.Error as error:
        raise translate(error, path) from error
