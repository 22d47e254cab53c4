"""What keeps the files small and the log short: the maintenance thread, on its own connections.

Who may do what:

    thread        state.db                                              raft.db
    loop          all statements, restart_journal, release_space        the reads
    log thread                                                          append
    maintenance   StateMaintenance.checkpoint                           checkpoint, cut, release_space

state.db has one writer, whose transaction is nearly always open. So this thread only copies what has been
committed from the journal into the file, and syncs it. For the journal to begin again takes a moment without
a transaction, and the loop makes one by `StateDatabase.restart_journal` once little is left to copy.

The invariant: an entry is cut from the log only when a synced checkpoint of the state holds its effect. The
index that `checkpoint` returns is the only one that `cut_log` may be given.
"""

from __future__ import annotations

from typing import NamedTuple

import apsw

from etcd_server.storage.errors import translated
from etcd_server.storage.files import FRAME_SIZE_BYTES, connect, copy_journal
from etcd_server.storage.raftlog import RaftLog

_CACHE_SIZE_BYTES = 256 << 10
_MOST_ROUNDS = 3
_FEW_PAGES = 256
_GET_APPLIED = "SELECT applied_index FROM meta WHERE id = 0"


class Checkpoint(NamedTuple):
    """applied_index: what is on the disk for certain, whatever happens.

    left_size_bytes: about what `restart_journal` has to copy if it is called at the next commit. When all
    could be copied, that is what the last round of copying found to do.
    """

    applied_index: int
    left_size_bytes: int


class StateMaintenance:
    """The maintenance thread's connection to state.db, which a StateDatabase has open."""

    def __init__(self, path: str, connection: apsw.Connection) -> None:
        self.path = path
        self._connection = connection
        self._durable_index = 0
        self._copied_pages = 0

    @classmethod
    def open(cls, path: str, *, vfs: str | None = None) -> StateMaintenance:
        """Raises DiskFailed, DirectoryInUse."""
        with translated(path):
            connection = connect(path, synchronous="NORMAL", cache_size_bytes=_CACHE_SIZE_BYTES, vfs=vfs)
        return cls(path, connection)

    def checkpoint(self) -> Checkpoint:
        """Sync the journal, copy what has been committed into the file and sync that, while the loop goes on.

        When a reader (a sqlite3 shell in the middle of something) keeps a part from being copied,
        applied_index is that of the checkpoint before. Raises DiskFull (nothing is lost, call again later),
        SyncFailed, DiskFailed, DamagedFile.
        """
        with translated(self.path):
            # Each round copies what was committed during the one before it, which is less and less.
            for _ in range(_MOST_ROUNDS):
                # The order matters: what this index stands for has been committed before the copying begins.
                committed_index = int(self._connection.execute(_GET_APPLIED).get)
                copied_before = self._copied_pages
                pages, copied = copy_journal(self._connection)
                self._copied_pages = copied
                if copied < pages:
                    return Checkpoint(self._durable_index, (pages - copied) * FRAME_SIZE_BYTES)
                self._durable_index = committed_index
                # Fewer pages than before: the journal has begun again, all of them are new.
                found = pages - copied_before if pages >= copied_before else pages
                if found <= _FEW_PAGES:
                    break
        return Checkpoint(self._durable_index, found * FRAME_SIZE_BYTES)

    def close(self) -> None:
        with translated(self.path):
            self._connection.close()


def cut_log(log: RaftLog, durable_index: int, keep_entries: int) -> None:
    """Cut the log so that `keep_entries` stay for members that are behind, and never beyond `durable_index`.

    durable_index: applied_index of a Checkpoint. Raises StorageError.
    """
    index = min(durable_index, log.last_index() - keep_entries)
    if index >= log.first_index():
        log.cut(index)
