"""The keys and all their revisions: what a put, a delete and a range mean, now and in the past.

A worked example, with main.sub for packed revisions (storage/schema.py) and only the columns that matter.
After `put a=1`, `put a=2`, `delete a`, `put a=3`, each a request of its own, at main revisions 2 to 5:

    revisions                                     current                        history
    revision  previous  kv                        key  revision  create  ver     key  revision  superseded
    2.0       -         a create=2 mod=2 v=1 "1"  a    5.0       5       1       a    2.0       3.0
    3.0       2.0       a create=2 mod=3 v=2 "2"                                 a    3.0       4.0
    4.0       3.0       a mod=4 (tombstone)
    5.0       -         a create=5 mod=5 v=1 "3"

A read at revision 3 finds 3.0: history's row with revision <= 3 < superseded. A read at 4 finds nothing: 3.0
ended with 4.0 and 5.0 has not begun. A watch from 3 reads `revisions` from 3.0 on; `previous` leads to the
value before.

    compact 3   removes 2.0 (superseded by 3.0): nobody can read at 2 any more. 3.0 stays: it is what one sees
    at 3. compact 4   removes 3.0, superseded at 4. The tombstone 4.0 stays, because a watch from 4 must see
    the deletion. compact 5   removes the tombstone 4.0. What is current is never removed.

A txn that writes twice gives both changes one main revision: 6.0 and 6.1. Nothing is visible of it before 6.

Invariants: revisions only grow, and `revision` is stored, never derived from the rows that are left (etcd
issue 17780); a live key is in `current` exactly once and what it superseded is in `history`; `changes` has
every change in the order in which it was applied. Not here: who may write (txn.py, apply.py), removal of rows
(compaction.py).

Source of the behaviour: etcd server/storage/mvcc/{kvstore_txn,key_index}.go, server/etcdserver/txn/range.go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etcd_server.api import errors
from etcd_server.api.encoding import integer_field, read_varint, repeated_field, varint
from etcd_server.api.keys import Interval, interval
from etcd_server.api.proto import rpc_pb2
from etcd_server.storage.schema import (
    MAX_CHANGES_PER_REVISION,
    SUB_REVISION_BITS,
    last_of,
    main_revision,
    pack,
)
from etcd_server.storage.tables import Column, CurrentRow, KeyTables, RevisionRow, Selection

Outcome = tuple[int, bytes] | errors.EtcdError
"""Of one command: the revision for the answer's header and the answer's other fields, serialised; or the
error.
"""

PUT = 0
DELETE = 1

Event = tuple[int, bytes, int, bytes, int]
"""(PUT or DELETE, key, packed revision, serialised KeyValue, packed revision of what it superseded or 0)."""


Change = tuple[int, list[Event]]
"""(main revision, all its events in order)."""

HistoryRow = tuple[int, bool, bytes, bytes, int]
"""(packed revision, is a tombstone, key, serialised KeyValue, previous): an event as the database has it."""


_ORDERS = {
    rpc_pb2.RangeRequest.KEY: Column.KEY,
    rpc_pb2.RangeRequest.VERSION: Column.VERSION,
    rpc_pb2.RangeRequest.CREATE: Column.CREATE,
    rpc_pb2.RangeRequest.MOD: Column.MOD,
    rpc_pb2.RangeRequest.VALUE: Column.VALUE,
}

_MAX_LIMIT = (1 << 63) - 2
_COUNT_ONE = b"\x20\x01"  # RangeResponse.count = 1
_MORE = b"\x18\x01"  # RangeResponse.more = true


def serialize(key: bytes, create: int, mod: int, version: int, lease: int, value: bytes) -> bytes:
    """A mvccpb.KeyValue with the value as its last field, so that it can be cut off."""
    head = (
        b"\x0a"
        + varint(len(key))
        + key
        + b"\x10"
        + varint(create)
        + b"\x18"
        + varint(mod)
        + b"\x20"
        + varint(version)
    )
    if lease:
        head += b"\x30" + varint(lease)
    return head + b"\x2a" + varint(len(value)) + value if value else head


def tombstone(key: bytes, mod: int) -> bytes:
    """The mvccpb.KeyValue of a deletion."""
    return b"\x0a" + varint(len(key)) + key + b"\x18" + varint(mod)


def key_of(kv: bytes) -> bytes:
    """The key of a KeyValue that `serialize` or `tombstone` made: its first field."""
    size, start = read_varint(kv, 1)
    return kv[start : start + size]


class Operations:
    """How many of each kind were performed since the process began. People look at it; nothing follows."""

    __slots__ = ("deletes", "puts", "ranges", "txns")

    def __init__(self) -> None:
        self.puts = self.deletes = self.ranges = self.txns = 0


class Store:
    """The key space. `revision` is the main revision of the last change; a new store is at 1, as in etcd."""

    def __init__(
        self, tables: KeyTables, revision: int, compacted_revision: int, operations: Operations
    ) -> None:
        self.tables = tables
        self.operations = operations
        self.revision = revision
        self.compacted_revision = compacted_revision
        """Reads below it fail; -1 when nothing was ever compacted."""
        self.changes: list[Change] = []

    # --- puts -------------------------------------------------------------------------------------

    def put_all(
        self, puts: Sequence[rpc_pb2.PutRequest], lease_exists: Callable[[int], bool]
    ) -> list[Outcome]:
        """Apply puts without options, each at a revision of its own; each table is written by one statement.

        The hot path of the server. A key that is written twice in the run is found in `pending`, since its
        first row is not in the table yet.
        """
        tables = self.tables
        current = tables.current
        outcomes: list[Outcome] = []
        revisions: list[RevisionRow] = []
        inserted: list[tuple[bytes, int, int, int, int]] = []
        updated: list[tuple[int, int, int, bytes]] = []
        superseded: list[tuple[bytes, int, int, int, int]] = []
        pending: dict[bytes, CurrentRow] = {}
        changes = self.changes
        main = self.revision
        for put in puts:
            key, value, lease = put.key, put.value, put.lease
            if lease and not lease_exists(lease):
                outcomes.append(errors.LeaseNotFound())
                continue
            main += 1
            packed = main << SUB_REVISION_BITS
            mod = varint(main)
            row = pending.get(key) or current(key)
            if row is None:
                previous, create, version = 0, main, 1
                kv = b"\x0a" + varint(len(key)) + key + b"\x10" + mod + b"\x18" + mod + b"\x20\x01"
                inserted.append((key, packed, main, 1, lease))
            else:
                previous, create, version, _ = row
                superseded.append((key, previous, packed, create, version))
                version += 1
                kv = (
                    b"\x0a" + varint(len(key)) + key + b"\x10" + varint(create) + b"\x18" + mod
                    + b"\x20" + varint(version)
                )  # fmt: skip
                updated.append((packed, version, lease, key))
            if lease:
                kv += b"\x30" + varint(lease)
            size = len(value)
            if size:
                kv += b"\x2a" + varint(size) + value
            pending[key] = (packed, create, version, lease)
            revisions.append((packed, previous, size, kv))
            changes.append((main, [(PUT, key, packed, kv, previous)]))
            outcomes.append((main, b""))
        self.operations.puts += len(revisions)
        self.revision = main
        tables.insert_revisions(revisions)
        tables.insert_current(inserted)
        if updated:
            tables.update_current(updated)
            tables.insert_history(superseded)
        return outcomes

    def write(self) -> Write:
        """Begin the changes of one main revision."""
        return Write(self)

    # --- reading ----------------------------------------------------------------------------------

    def range(self, request: rpc_pb2.RangeRequest, revision: int | None = None) -> bytes:
        """The answer to a range, serialised, without its header.

        revision: what is current, when it is not `self.revision`: inside a txn that has written already.
        Raises FutureRevision, Compacted. The sort options must have been checked.
        """
        self.operations.ranges += 1
        key = request.key
        if not (
            request.range_end
            or request.revision
            or request.keys_only
            or request.count_only
            or _has_filters(request)
        ):
            # One key, as it is now: the hot path of a get. Limit and order mean nothing for it.
            kv = self.tables.latest(key)
            if kv is None:
                return b""
            return b"\x12" + varint(len(kv)) + kv + _COUNT_ONE
        current = self.revision if revision is None else revision
        wanted = request.revision
        if wanted > current:
            raise errors.FutureRevision
        if wanted <= 0:
            wanted = current
        if wanted < self.compacted_revision:
            raise errors.Compacted
        return self._range(interval(key, request.range_end), None if wanted == current else wanted, request)

    def _range(self, span: Interval, at: int | None, request: rpc_pb2.RangeRequest) -> bytes:
        tables, (low, high) = self.tables, span
        if request.count_only:
            return integer_field(4, tables.count(low, high, at))
        limit = request.limit if request.limit > 0 else 0
        filtered = _has_filters(request)
        order, sort_order = _ORDERS[request.sort_target], request.sort_order
        ordered = order is not Column.KEY or sort_order == rpc_pb2.RangeRequest.DESCEND
        if at is None and not (limit or filtered or ordered or request.keys_only):
            kvs = tables.range(low, high)
            return repeated_field(2, kvs) + integer_field(4, len(kvs))
        selection = Selection(
            at=at,
            min_mod=request.min_mod_revision,
            max_mod=request.max_mod_revision,
            min_create=request.min_create_revision,
            max_create=request.max_create_revision,
            order=order,
            descending=sort_order == rpc_pb2.RangeRequest.DESCEND,
            limit=min(limit, _MAX_LIMIT) + 1 if limit else 0,
            keys_only=request.keys_only,
            limit_before_sort=sort_order == rpc_pb2.RangeRequest.NONE and not filtered,
        )
        kvs = tables.select(low, high, selection)
        more = 0 < limit < len(kvs)
        count = tables.count(low, high, at) if more or filtered else len(kvs)
        if more:
            kvs.pop()
        return repeated_field(2, kvs) + (_MORE if more else b"") + integer_field(4, count)

    def check_revision(self, revision: int) -> None:
        """Whether a txn's range may read at `revision`, before anything of the txn is done.

        Stricter than a plain range below 0, as etcd is (server/etcdserver/txn checkRange).
        Raises FutureRevision, Compacted.
        """
        if revision > self.revision:
            raise errors.FutureRevision
        if revision and revision < self.compacted_revision:
            raise errors.Compacted

    # --- for watchers -----------------------------------------------------------------------------

    def take_changes(self) -> list[Change]:
        """What was changed since the last call, in order."""
        changes, self.changes = self.changes, []
        return changes

    def events_since(
        self, first_main_revision: int, up_to_main_revision: int, limit_rows: int
    ) -> list[HistoryRow]:
        """Events of these main revisions, both included, in order; whole main revisions only.

        About `limit_rows` of them: a main revision is never cut, so one with more rows than that comes alone.
        Empty when there is nothing more; otherwise go on behind the last row's main revision.
        """
        last = last_of(up_to_main_revision)
        rows = self.tables.revisions(pack(first_main_revision), last, limit_rows + 1)
        if len(rows) > limit_rows:
            cut = main_revision(rows[-1][0])
            if main_revision(rows[0][0]) == cut:
                rows = self.tables.revisions(pack(cut), last_of(cut), MAX_CHANGES_PER_REVISION)
            else:
                while main_revision(rows[-1][0]) == cut:
                    rows.pop()
        return [
            (packed, value_size is None, key_of(kv), kv, previous)
            for packed, previous, value_size, kv in rows
        ]

    def kv_at(self, packed_revision: int) -> bytes | None:
        """The serialised KeyValue of one packed revision; None for 0 and for what has been compacted."""
        return self.tables.at(packed_revision) if packed_revision else None


class Write:
    """The changes of one request, all at one main revision, visible to its own reads at once.

    `finish` must be called when no more changes come. Only one Write is open at a time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables = store.tables
        self._main = store.revision + 1
        self._events: list[Event] = []

    @property
    def revision(self) -> int:
        """The current revision as this request sees it: the next one as soon as it has changed something."""
        return self._main if self._events else self._main - 1

    def latest(self, key: bytes) -> bytes | None:
        """The serialised KeyValue that a key has now, this request's own changes included."""
        return self._tables.latest(key)

    def range(self, span: Interval) -> list[bytes]:
        """The serialised KeyValues of an interval, this request's own changes included."""
        return self._tables.range(*span)

    def put(self, key: bytes, value: bytes, lease: int) -> None:
        """Set a key. The lease, unless 0, must exist."""
        tables = self._tables
        self._store.operations.puts += 1
        packed = pack(self._main, len(self._events))
        row = tables.current(key)
        if row is None:
            previous, create, version = 0, self._main, 1
        else:
            previous, create, version = row[0], row[1], row[2] + 1
        kv = serialize(key, create, self._main, version, lease, value)
        tables.put((packed, previous, len(value), kv), key, create, version, lease)
        self._events.append((PUT, key, packed, kv, previous))

    def delete(self, span: Interval) -> int:
        """Delete the keys of an interval, in their order; how many there were."""
        rows = self._tables.current_rows(*span)
        return self._delete(rows)

    def delete_keys(self, keys: Sequence[bytes]) -> int:
        """Delete the named keys, in the order given; how many of them lived."""
        rows = []
        for key in keys:
            row = self._tables.current(key)
            if row is not None:
                rows.append((key, *row))
        return self._delete(rows)

    def _delete(self, rows: Sequence[tuple[bytes, int, int, int, int]]) -> int:
        main, tables = self._main, self._tables
        first = pack(main, len(self._events))
        assert len(self._events) + len(rows) <= MAX_CHANGES_PER_REVISION
        revisions: list[RevisionRow] = []
        superseded = []
        for packed, (key, previous, create, version, _) in enumerate(rows, first):
            kv = tombstone(key, main)
            revisions.append((packed, previous, None, kv))
            superseded.append((key, previous, packed, create, version))
            self._events.append((DELETE, key, packed, kv, previous))
        self._store.operations.deletes += len(rows)
        tables.insert_revisions(revisions)
        tables.insert_history(superseded)
        tables.delete_current([(row[0],) for row in rows])
        return len(rows)

    def finish(self) -> int:
        """Take the changes over into the store; its revision, which is unchanged when there were none."""
        if self._events:
            self._store.revision = self._main
            self._store.changes.append((self._main, self._events))
        return self._store.revision


def _has_filters(request: rpc_pb2.RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )
