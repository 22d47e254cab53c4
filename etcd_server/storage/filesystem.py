"""The few things done to files that SQLite does not do: whole files, put in place and taken away.

A seam, because there are two: the operating system's (`OPERATING_SYSTEM`), and the tests' disk that loses
power. What must survive a power cut is synced by a call of its own, and nothing else is promised to.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from etcd_server.storage.errors import DiskFailed, DiskFull, SyncFailed

_CHUNK_SIZE_BYTES = 1 << 20


class FileSystem(Protocol):
    """Every method raises DiskFull, DiskFailed, and those that sync SyncFailed."""

    def exists(self, path: str) -> bool: ...

    def chunks(self, path: str) -> Iterator[bytes]:
        """The content of a file, from its beginning."""
        ...

    def write_synced(self, path: str, data: bytes) -> None:
        """Create or replace a file; its content is on the disk then, its name may not be."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Give a file another name, in place of what has it."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        ...

    def sync_directory(self, path: str) -> None:
        """Which names the directory at `path` has is on the disk then."""
        ...


class _OperatingSystem:
    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def chunks(self, path: str) -> Iterator[bytes]:
        with _translated(path), open(path, "rb") as file:
            while chunk := file.read(_CHUNK_SIZE_BYTES):
                yield chunk

    def write_synced(self, path: str, data: bytes) -> None:
        with _translated(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                _sync(path, descriptor)
            finally:
                os.close(descriptor)

    def rename(self, source: str, target: str) -> None:
        with _translated(target):
            os.replace(source, target)

    def remove(self, path: str) -> None:
        with _translated(path), suppress(FileNotFoundError):
            os.unlink(path)

    def sync_directory(self, path: str) -> None:
        with _translated(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _sync(path, descriptor)
            finally:
                os.close(descriptor)


OPERATING_SYSTEM: FileSystem = _OperatingSystem()


def _sync(path: str, descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise SyncFailed(
            f"{path}: the disk failed to sync ({error.strerror}); check it before starting again"
        ) from error


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: no space left on the device") from error
        raise DiskFailed(f"{path}: {error.strerror}; check the disk and its permissions") from error
