"""The data directory: what lies where, whose it is, and that one process at a time uses it.

    DATA-DIR/
      format      which format the directory has; written first, so that half a creation is still recognised
      lock        held (flock) by the process that uses the directory
      raft.db     the raft log and hard state, synced with every append; with its raft.db-wal and raft.db-shm
      state.db    the state; may be opened read-only with the sqlite3 shell at any time; with its -wal and
      -shm
      reserve     room that is given up when the disk is full
      snapshot/   copies of state.db on their way from or to another member; while one takes the place of
      state.db, a plan of that (`install.py`)

A directory that holds anything else, above all one of etcd itself, is refused and left as it is.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from etcd_server.storage.errors import DirectoryInUse, DiskFailed, DiskFull, StorageError, UnknownFormat

FORMAT = "etcd-py data directory, format 1\n"
_FORMAT_PREFIX = "etcd-py data directory, format "
# What a file system or a packager may have left in an otherwise empty directory.
_HARMLESS = frozenset({"lost+found", ".snapshot", ".keep", "lock", "format.new"})


class DataDirectory:
    """A data directory that this process may use, until `close`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> DataDirectory:
        """Create the directory (mode 0700) where there is none, check its format and lock it.

        Raises UnknownFormat, DirectoryInUse, DiskFull, DiskFailed.
        """
        directory = Path(os.path.abspath(path))
        try:
            _create(directory)
            _refuse_foreign(directory)
            lock = _locked(directory, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
            try:
                if not (directory / "format").exists():
                    _write_synced(directory / "format", FORMAT)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise _unusable(directory, error) from error
        return cls(directory, lock)

    @classmethod
    def open_offline(cls, path: str | os.PathLike[str]) -> DataDirectory:
        """An existing directory, to be read while no server uses it; nothing is written.

        Raises UnknownFormat, DirectoryInUse, DiskFailed.
        """
        directory = Path(os.path.abspath(path))
        try:
            _refuse_foreign(directory)
            if not (directory / "format").exists():
                raise UnknownFormat(f"{directory}: not a data directory of etcd-py")
            lock = _locked(directory, os.O_RDONLY, fcntl.LOCK_SH)
        except OSError as error:
            raise _unusable(directory, error) from error
        return cls(directory, lock)

    @property
    def raft_log_path(self) -> str:
        return str(self.path / "raft.db")

    @property
    def state_path(self) -> str:
        return str(self.path / "state.db")

    @property
    def reserve_path(self) -> str:
        return str(self.path / "reserve")

    @property
    def snapshot_path(self) -> str:
        """Of a directory, which `make_snapshot_directory` makes."""
        return str(self.path / "snapshot")

    @property
    def plan_path(self) -> str:
        return str(self.path / "snapshot" / "plan")

    def make_snapshot_directory(self) -> None:
        """Make the directory `snapshot_path` where there is none. Raises DiskFull, DiskFailed."""
        try:
            _create(self.path / "snapshot")
        except OSError as error:
            raise _unusable(self.path, error) from error

    def free_size_bytes(self) -> int:
        """Room on the device for a process without privileges. Raises DiskFailed."""
        status = self._device()
        return status.f_bavail * status.f_frsize

    def device_size_bytes(self) -> int:
        """Size of the device. Raises DiskFailed."""
        status = self._device()
        return status.f_blocks * status.f_frsize

    def _device(self) -> os.statvfs_result:
        try:
            return os.statvfs(self.path)
        except OSError as error:
            raise _unusable(self.path, error) from error

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._lock)


def _create(directory: Path) -> None:
    """Make the directory and those above it, each on disk before the next is made in it."""
    missing = [directory]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        _sync(path.parent)


def _refuse_foreign(directory: Path) -> None:
    names = set(os.listdir(directory))
    if "format" in names:
        found = (directory / "format").read_text(encoding="utf-8", errors="replace")
        if found != FORMAT:
            what = "of a newer version of etcd-py" if found.startswith(_FORMAT_PREFIX) else "not of etcd-py"
            raise UnknownFormat(
                f"{directory}: {what} (its file 'format' reads {found[:60]!r}, expected {FORMAT!r})"
            )
        return
    if "member" in names or "snap" in names or "wal" in names:
        raise UnknownFormat(
            f"{directory}: the data directory of an etcd, which etcd-py does not read; choose another one "
            "and copy the keys over"
        )
    foreign = sorted(names - _HARMLESS)
    if foreign:
        raise UnknownFormat(
            f"{directory}: holds {foreign[0]!r} and is not a data directory of etcd-py; choose an empty one"
        )


def _locked(directory: Path, flags: int, how: int) -> int:
    lock = os.open(directory / "lock", flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise DirectoryInUse(f"{directory}: in use by another process; stop that one first") from error
    except BaseException:
        os.close(lock)
        raise
    return lock


def _write_synced(path: Path, text: str) -> None:
    """Write a small file so that it is either there as a whole, after a power cut too, or not at all."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(directory: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{directory}: no space left on the device")
    return DiskFailed(f"{error.filename or directory}: {error.strerror or error}")
