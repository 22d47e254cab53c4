"""Locks between agents of one host: of a state directory (one agent), and of destinations (one writer).

Both are released by the kernel when the process ends. Destinations are bytes of one shared lock file, locked
by position, so that thousands cost one descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator

from etcd_agent.errors import LockedError


@contextlib.contextmanager
def state_lock(state_dir: str) -> Iterator[None]:
    """Hold the state directory (made if missing, 0700) for one process. Raises LockedError."""
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        descriptor = os.open(f"{state_dir}/agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LockedError(f"state_dir {state_dir}: cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise LockedError(f"state_dir {state_dir} is in use by another agent") from error
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(state_dir: str) -> bool:
    """Whether an agent works on the state directory now."""
    try:
        with open(f"{state_dir}/agent.lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class DestinationLocks:
    """The destinations that this process writes, kept until it ends. Safe from any thread."""

    def __init__(self, path: str) -> None:
        """``path``: the lock file that all agents of the host share; made at the first ``take``."""
        self._path = path
        self._lock = threading.Lock()
        self._descriptor = -1
        self._held: set[int] = set()

    def take(self, destinations: Iterable[str]) -> None:
        """Raises LockedError for a file that another agent writes."""
        with self._lock:
            file = self._file()
            for dest in destinations:
                position = _position(dest)
                if position in self._held:
                    continue
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EAGAIN):
                        raise LockedError(f"{dest} is written by another agent of this host") from error
                    raise LockedError(f"{self._path}: cannot be locked: {error.strerror}") from error
                self._held.add(position)

    def close(self) -> None:
        """Release all."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1
            self._held.clear()

    def _file(self) -> int:
        if self._descriptor < 0:
            try:
                os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise LockedError(f"{self._path}: cannot be used: {error.strerror} (runtime_dir)") from error
        return self._descriptor


def _position(dest: str) -> int:
    """A byte of the lock file for each real path: 2^62 places, so that two files do not meet in one."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(dest))).digest()
    return int.from_bytes(digest[:8], "big") >> 2
