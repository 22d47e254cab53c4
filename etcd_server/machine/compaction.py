"""Forgetting the past, a little at a time.

`compact` records a revision below which nothing can be read any more: that is the replicated fact, made by a
command. The rows go later, in steps of bounded size (`step`), whenever the loop has a moment. How far the
steps have come is stored in the same transaction as what they removed, so that after a crash they go on where
they were.

A step walks `revisions` in order, and for each row that lies at or below the compacted revision removes the
row it superseded. No set of rows to keep has to be made, and the work is proportional to what has changed
since the last compaction, not to the number of keys. A tombstone goes when its main revision is below the
compacted one: a watch that starts exactly there must still see the deletion (etcd issues 18089, 19179).

Invariant: every key that was live at the compacted revision or later can be read there, however far the steps
are.
"""

from __future__ import annotations

from etcd_server.api import errors
from etcd_server.machine.mvcc import Store, key_of
from etcd_server.storage.schema import last_of, main_revision, pack
from etcd_server.storage.tables import FactTables, Meta


class Compaction:
    """The compaction of one store: what was asked for, and how far its rows have been removed."""

    def __init__(self, store: Store, facts: FactTables, meta: Meta) -> None:
        self._store = store
        self._facts = facts
        self._finished = meta.finished_compaction
        self._position = meta.compaction_position

    @property
    def pending(self) -> bool:
        """Rows below the compacted revision are still in the database."""
        return self._finished < self._store.compacted_revision

    def compact(self, revision: int) -> None:
        """Let nothing below `revision` be read from now on. Raises Compacted, FutureRevision."""
        store = self._store
        if revision <= store.compacted_revision:
            raise errors.Compacted
        if revision > store.revision:
            raise errors.FutureRevision
        # The tombstones at the revision compacted before were kept; they go now, even if steps have passed
        # them.
        self._position = min(self._position, pack(max(store.compacted_revision, 0)))
        store.compacted_revision = revision
        self._save()

    def step(self, limit_rows: int) -> bool:
        """Look at up to `limit_rows` rows and remove what they supersede; whether there is more to do.

        To be called while `pending`.
        """
        store, tables = self._store, self._store.tables
        compacted = store.compacted_revision
        rows = tables.superseding(self._position, last_of(compacted), limit_rows)
        revisions = []
        history = []
        for packed, previous, is_tombstone, kv in rows:
            if previous:
                assert kv is not None
                revisions.append((previous,))
                history.append((key_of(kv), previous))
            if is_tombstone and main_revision(packed) < compacted:
                revisions.append((packed,))
        tables.delete_revisions(revisions)
        tables.delete_history(history)
        if len(rows) < limit_rows:
            self._finished = compacted
            self._position = pack(compacted)
        else:
            self._position = rows[-1][0] + 1
        self._save()
        return self.pending

    def _save(self) -> None:
        self._facts.set_compaction(self._store.compacted_revision, self._finished, self._position)
