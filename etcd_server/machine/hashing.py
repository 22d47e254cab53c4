"""A hash of the key space at a revision, made a little at a time, and the same number that etcd computes.

It is the CRC-32C of what etcd's database would hold: the name of its bucket, then for each row, in order,
the revision (8 bytes, '_', 8 bytes, 't' for a tombstone) and the mvccpb.KeyValue with its fields in the order
of their numbers; of a tombstone's only the key is there. Rows here are kept in another form and are written
anew.

Which rows count follows from the revision and from the compacted revision alone, never from how far the rows
of a compaction have been removed: all that are newer than the compacted revision, tombstones too; of the
older ones those that are live at the revision or, when nothing at all is, those that are live at the
compacted revision. So members that agree on the two numbers and on the history have the same hash, whatever
has become of them meanwhile: replays, snapshots, restarts.

Source: etcd server/storage/mvcc/hash.go (kvHasher), kvstore.go (hashByRev), key_index.go (keep).
"""

from __future__ import annotations

from struct import Struct

from google_crc32c import extend

from etcd_server.api import errors
from etcd_server.api.proto import kv_pb2, rpc_pb2
from etcd_server.machine.alarms import Alarms
from etcd_server.machine.leases import Leases
from etcd_server.machine.members import Members
from etcd_server.machine.mvcc import Store, key_of
from etcd_server.storage.schema import MAX_CHANGES_PER_REVISION, last_of, main_revision

_BUCKET = b"key"
_REVISION = Struct(">QcQ")
_SUB_REVISION = MAX_CHANGES_PER_REVISION - 1


class KeySpaceHash:
    """The hash of `store` at `revision` (0: as it is now), begun; `step` goes on with it.

    seed: the hash of what is to come before the key space.
    """

    def __init__(self, store: Store, revision: int, seed: int = 0) -> None:
        """Raises Compacted, FutureRevision."""
        self.compacted_revision = store.compacted_revision
        if 0 < revision < self.compacted_revision:
            raise errors.Compacted
        if revision > store.revision:
            raise errors.FutureRevision
        self.revision = revision or store.revision
        self.value: int = extend(seed, _BUCKET)
        self._position = 0
        self._end = last_of(max(self.revision, -1))
        self._compacted_end = last_of(self.compacted_revision)
        any_live = store.tables.is_any_live_at(max(self.revision, -1))
        self._live_at = self._end if any_live else self._compacted_end

    def step(self, store: Store, limit_rows: int, limit_bytes: int) -> bool:
        """Take up to so many rows in, or some more than so many bytes; whether there are more.

        The store must not have been compacted since the beginning.
        """
        assert store.compacted_revision == self.compacted_revision
        tables = store.tables
        rows = tables.some_revisions(self._position, self._end, limit_rows, limit_bytes)
        parts: list[bytes] = []
        for packed, is_tombstone, kv in rows:
            if packed <= self._compacted_end:
                if is_tombstone:
                    continue
                superseded = tables.superseded_by(key_of(kv), packed)
                if superseded is not None and superseded <= self._live_at:
                    continue
            parts.append(_REVISION.pack(main_revision(packed), b"_", packed & _SUB_REVISION))
            if is_tombstone:
                parts.append(b"t")
                parts.append(kv_pb2.KeyValue(key=key_of(kv)).SerializeToString())
            else:
                parts.append(kv_pb2.KeyValue.FromString(kv).SerializeToString(deterministic=True))
        self.value = extend(self.value, b"".join(parts))
        if rows:
            self._position = rows[-1][0] + 1
        return bool(rows)


def facts_hash(leases: Leases, alarms: Alarms, members: Members) -> int:
    """The CRC-32C of what is replicated besides the key space, in the order of the identifiers."""
    granted = (rpc_pb2.LeaseGrantRequest(ID=number, TTL=ttl_s) for number, ttl_s in leases.all())
    parts = [b"lease", *(lease.SerializeToString(deterministic=True) for lease in granted)]
    parts += [b"alarm", *(alarm.SerializeToString(deterministic=True) for alarm in alarms.all())]
    listed = sorted(members.all(), key=lambda member: member.ID)
    parts += [b"members", *(member.SerializeToString(deterministic=True) for member in listed)]
    return int(extend(0, b"".join(parts)))
