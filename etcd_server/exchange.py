"""The loop's side of snapshots: what the engine wants done about them, done.

Copies are made, sent, received and looked into beside the loop (`workers.Courier`, the wire). To put one in
place is done here and now, while everybody else stands still: it takes milliseconds, since the file is
whole, checked and on the right device already, and a member without a state has nothing else to do.
"""

from __future__ import annotations

import logging

from etcd_server.services.events import Batch, Effects, ReceivedSnapshot
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.install import Installation, Plan
from etcd_server.transport.snapshot_files import Copied, LookedInto, SnapshotFiles
from etcd_server.workers import Courier, Keeper, LogWriter

log = logging.getLogger("etcd_server")

LONGEST_WRITE_S = 30.0


class Exchange:
    """Snapshots from and to one member."""

    def __init__(
        self,
        *,
        files: SnapshotFiles,
        courier: Courier,
        installation: Installation,
        database: StateDatabase,
        writer: LogWriter,
        keeper: Keeper,
    ) -> None:
        self._files = files
        self._courier = courier
        self._installation = installation
        self._database = database
        self._writer = writer
        self._keeper = keeper

    def take(self, news: Copied | LookedInto, batch: Batch) -> None:
        """What the courier has posted."""
        if isinstance(news, Copied):
            self._files.copied(news)
        else:
            self._files.looked_into(news, batch)

    def perform(self, effects: Effects) -> None:
        """Have copies made, and turn away what raft does not want."""
        for request in effects.make_snapshots:
            self._files.request(request)
        for snapshot in effects.refused_snapshots:
            self._files.refused(snapshot)

    def install(self, received: ReceivedSnapshot, effects: Effects) -> None:
        """Perform `effects.persist`, of which one Ready replaces state and log by what was received.

        `Persisted` is posted for what is written behind it. Raises StorageError; the process is to end then,
        and the next start finds the old state and log or completes the new ones.
        """
        readies, stands_for = effects.persist, received.snapshot
        at = next(position for position, ready in enumerate(readies) if ready.snapshot is not None)
        if at:
            self._writer.append(readies[:at], alone=False)
        self._writer.finish(LONGEST_WRITE_S)
        plan = Plan(received.path, stands_for.index, stands_for.term, readies[at].hard_state)
        with self._courier.away_from_state(), self._keeper.away_from_state():
            self._installation.install(plan, self._database)
        self._writer.append(readies[at:], alone=False)
        self._files.installed(received)
        log.info(
            "installed a snapshot",
            extra={"snapshot-index": stands_for.index, "from": f"{received.sender:x}"},
        )

    def close(self, timeout_s: float) -> None:
        self._courier.close(timeout_s)
