"""What need not be done at once, a bounded step a turn: compaction, freed space, the commit of the state, the
log's cut.

Invariant: the log is never cut beyond a synced checkpoint of the state, and keeps what a follower may still
need.
"""

from __future__ import annotations

from etcd_server.machine.watchers import WatchHub
from etcd_server.services.applier import Applier
from etcd_server.services.core import Core
from etcd_server.services.events import Effects
from etcd_server.services.kv import KV
from etcd_server.services.snapshots import Snapshots
from etcd_server.storage.errors import StateRolledBack

COMPACTION_STEP_ROWS = 1_000
RELEASE_STEP_PAGES = 256
# Free pages are used again by later writes; only what is more than this share of the file is given back.
FREE_SHARE = 1 / 8
COMMIT_RETRY_S = 1.0


class Upkeep:
    """The background work of one member."""

    def __init__(self, core: Core, applier: Applier, hub: WatchHub, kv: KV, snapshots: Snapshots) -> None:
        self._core = core
        self._applier = applier
        self._hub = hub
        self._kv = kv
        self._snapshots = snapshots
        self._compacting = core.machine.compaction_pending
        self._releasing = False
        self._committed_s = 0.0
        self._cut_to = 0
        self._asked_index = 0

    def restored(self) -> None:
        """The state was replaced, and the log begins behind it."""
        machine = self._core.machine
        self._cut_to = self._asked_index = machine.applied_index
        self._releasing = False
        self._compacting = machine.compaction_pending
        if not self._compacting:
            self._kv.compaction_finished()

    def step(self, effects: Effects, durable_index: int, now: float) -> None:
        """One step. `durable_index`: applied_index of a new synced checkpoint, or 0."""
        core, machine, settings = self._core, self._core.machine, self._core.settings
        if machine.compaction_pending and not self._compacting:
            self._compacting = True
            self._hub.compacted(machine.compacted_revision)
        if core.state_full:
            interval_s = COMMIT_RETRY_S
        else:
            interval_s = settings.commit_interval_s
            if self._compacting:
                self._compact(effects)
            elif self._releasing:
                self._release(effects)
        if (machine.database.in_transaction or core.state_full) and now - self._committed_s >= interval_s:
            self._committed_s = now
            effects.committed = self._applier.commit()
            if effects.committed:
                self._ask_for_checkpoint(effects)
        cut_to = min(durable_index, machine.applied_index - settings.catch_up_entries)
        if cut_to - self._cut_to >= settings.snapshot_count:
            cut_to = self._snapshots.keep_from(cut_to)
            if cut_to > self._cut_to:
                self._cut_to = effects.cut_log_to = cut_to

    def _ask_for_checkpoint(self, effects: Effects) -> None:
        """The state was committed. When the log is due to be cut but for a checkpoint, ask for that, once."""
        settings, applied_index = self._core.settings, self._core.machine.applied_index
        kept_from = max(self._cut_to + settings.catch_up_entries, self._asked_index)
        if applied_index - kept_from >= settings.snapshot_count:
            self._asked_index = applied_index
            effects.checkpoint = True

    def _compact(self, effects: Effects) -> None:
        machine = self._core.machine
        applied_index = machine.applied_index
        try:
            self._compacting = machine.compact_step(COMPACTION_STEP_ROWS)
        except StateRolledBack:
            self._applier.replay(applied_index)
            return
        if self._compacting:
            effects.more_work = True
        else:
            self._kv.compaction_finished()
            self._releasing = True

    def _release(self, effects: Effects) -> None:
        """Give what compaction has freed back to the file system."""
        machine = self._core.machine
        database, applied_index = machine.database, machine.applied_index
        size_bytes = database.size_bytes
        self._releasing = size_bytes - database.size_in_use_bytes > size_bytes * FREE_SHARE
        if not self._releasing:
            return
        try:
            self._releasing = database.release_space(RELEASE_STEP_PAGES) > 0
        except StateRolledBack:
            self._releasing = False
            machine.reload()
            self._applier.replay(applied_index)
        effects.more_work |= self._releasing
