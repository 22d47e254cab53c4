"""A file that holds room on the device, to be given up when a commit of state.db would not fit.

A full disk must not cost more than the writes it refuses. Entries already in the log have been answered, so
their effect has to fit; the room for one transaction is set aside while there is plenty, given up when it is
needed, and taken again when there is plenty again.
"""

from __future__ import annotations

import os

RESERVE_SIZE_BYTES = 16 << 20
# A small device gives at most this share of itself.
_LARGEST_SHARE = 64


class Reserve:
    """The room at `path`, of `size_bytes`; a file that is not there yet is not held."""

    def __init__(self, path: str, size_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.held = False

    @classmethod
    def open(cls, path: str) -> Reserve:
        """Take the room, sized for the device; without room it is simply not held yet."""
        status = os.statvfs(os.path.dirname(path) or ".")
        size_bytes = min(RESERVE_SIZE_BYTES, status.f_blocks * status.f_frsize // _LARGEST_SHARE)
        reserve = cls(path, size_bytes)
        reserve.take()
        return reserve

    def take(self) -> bool:
        """Hold the room again if it fits twice on the device; whether it is held now."""
        if self.held:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            status = os.fstatvfs(descriptor)
            allocated_bytes = os.fstat(descriptor).st_blocks * 512
            if status.f_bavail * status.f_frsize + allocated_bytes >= 2 * self.size_bytes:
                os.posix_fallocate(descriptor, 0, self.size_bytes)
                self.held = True
        except OSError:
            # Another process was faster to take the room; what was allocated must not stay behind.
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
        return self.held

    def give_up(self) -> None:
        """Free the room. The file stays, empty, so that nothing has to be created on a full disk."""
        if self.held:
            self.held = False
            os.truncate(self.path, 0)
