"""A file that holds room on the device, to be given up when a commit of state.db would not fit.

A full disk must not cost more than the writes it refuses. Entries in the log have been answered, so their
effect has to fit; the room for it is set aside while there is plenty, given up when it is needed, and taken
again later. A server that starts on a full disk gives it up at once, because SQLite needs room even to read.
"""

from __future__ import annotations

import errno
import os

from etcd_server.storage.errors import DiskFailed

RESERVE_SIZE_BYTES = 16 << 20
# A small device gives at most this share of itself.
_LARGEST_SHARE = 32


class Reserve:
    """Room of `size_bytes` at `path`; `held` or not."""

    def __init__(self, path: str, size_bytes: int, *, held: bool) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.held = held

    @classmethod
    def open(cls, path: str) -> Reserve:
        """The room as it was left; taken now if there is plenty, given up if there is none.

        To be called before the other files of the directory are opened. Raises DiskFailed.
        """
        try:
            status = os.statvfs(os.path.dirname(path))
            size_bytes = min(RESERVE_SIZE_BYTES, status.f_blocks * status.f_frsize // _LARGEST_SHARE)
            held = os.path.exists(path) and os.path.getsize(path) > 0
        except OSError as error:
            raise _failed(path, error) from error
        reserve = cls(path, size_bytes, held=held)
        if reserve.free_size_bytes() < size_bytes:
            reserve.give_up()
        else:
            reserve.take()
        return reserve

    def free_size_bytes(self) -> int:
        """Room on the device beside what is held here. Raises DiskFailed."""
        try:
            status = os.statvfs(os.path.dirname(self.path))
        except OSError as error:
            raise _failed(self.path, error) from error
        return status.f_bavail * status.f_frsize

    def take(self) -> bool:
        """Hold the room, if twice of it is there; whether it is held now. Raises DiskFailed."""
        if self.held or self.free_size_bytes() < 2 * self.size_bytes:
            return self.held
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.size_bytes)
                self.held = True
            except OSError as error:
                # Somebody was faster; a part of the room is of no use.
                os.ftruncate(descriptor, 0)
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _failed(self.path, error) from error
        return self.held

    def give_up(self) -> None:
        """Free the room; the empty file stays, so that the full disk need not make it. Raises DiskFailed."""
        if self.held:
            try:
                os.truncate(self.path, 0)
            except OSError as error:
                raise _failed(self.path, error) from error
            self.held = False


def _failed(path: str, error: OSError) -> DiskFailed:
    return DiskFailed(f"{path}: {error.strerror}")
