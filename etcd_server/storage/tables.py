"""Every SQL statement of the state machine: keys and their revisions (`KeyTables`), and small facts
(`FactTables`).

Knows the schema and nothing of etcd: no request, no response, no rule about what may be changed. All
statements run on the one connection of state.db, inside the transaction that is open there. A statement's
text is one object for ever, so that apsw finds it prepared; what is hot has a cursor of its own.

Errors of SQLite pass through as `StatementError`; `StateDatabase.failed` says what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import apsw

from etcd_server.storage.schema import SUB_REVISION_BITS, last_of, pack

StatementError = apsw.Error

Execute = Callable[..., Any]
"""A cursor's `execute`; rows come as tuples of what the schema says, which the type checker cannot know."""

CurrentRow = tuple[int, int, int, int]
"""(packed revision, create_revision, version, lease) of a live key."""

RevisionRow = tuple[int, int, int | None, bytes]
"""(packed revision, previous packed revision, value size or None for a tombstone, serialised key-value)."""

_LARGEST_MAIN_REVISION = (1 << 39) - 2

# Statements whose cost is paid for each request.
_CURRENT = "SELECT revision, create_revision, version, lease FROM current WHERE key = ?"
_LATEST = "SELECT kv FROM revisions WHERE revision = (SELECT revision FROM current WHERE key = ?)"
_AT = "SELECT kv FROM revisions WHERE revision = ?"
_RANGE = (
    "SELECT r.kv FROM current c CROSS JOIN revisions r ON r.revision = c.revision"
    " WHERE c.key >= ? AND c.key < ? ORDER BY c.key"
)
_RANGE_OPEN = (
    "SELECT r.kv FROM current c CROSS JOIN revisions r ON r.revision = c.revision"
    " WHERE c.key >= ? ORDER BY c.key"
)
_INSERT_REVISION = "INSERT INTO revisions VALUES (?, ?, ?, ?)"
_INSERT_CURRENT = "INSERT INTO current VALUES (?, ?, ?, ?, ?)"
_UPDATE_CURRENT = "UPDATE current SET revision = ?, version = ?, lease = ? WHERE key = ?"
_DELETE_CURRENT = "DELETE FROM current WHERE key = ?"
_INSERT_HISTORY = "INSERT INTO history VALUES (?, ?, ?, ?, ?)"


class Column(Enum):
    """What keys are sorted (not by lease, which has no history) or compared by, as SQL."""

    KEY = "c.key"
    VERSION = "c.version"
    CREATE = "c.create_revision"
    LEASE = "c.lease"
    # The main revision: changes of one request tie.
    MOD = f"c.revision >> {SUB_REVISION_BITS}"
    # `substr` from behind the end gives the empty value.
    VALUE = "substr(r.kv, length(r.kv) - r.value_size + 1)"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a range are wanted, beyond the interval.

    at: main revision to read at; None reads what is current.
    min_mod, max_mod, min_create, max_create: bounds of main revisions, inclusive; 0 is no bound.
    limit: greatest number of rows; 0 is no limit.
    keys_only: leave the values out.
    order: ties are in the order of keys.
    limit_before_sort: take the first `limit` rows in the order of keys and sort those.
    """

    at: int | None = None
    min_mod: int = 0
    max_mod: int = 0
    min_create: int = 0
    max_create: int = 0
    order: Column = Column.KEY
    descending: bool = False
    limit: int = 0
    keys_only: bool = False
    limit_before_sort: bool = False


# The value is the last field: its bytes, and before them the tag and a length of one to four bytes.
_WITHOUT_VALUE = (
    "CASE WHEN r.value_size = 0 THEN r.kv ELSE substr(r.kv, 1, length(r.kv) - r.value_size - CASE"
    " WHEN r.value_size < 128 THEN 2 WHEN r.value_size < 16384 THEN 3 WHEN r.value_size < 2097152 THEN 4"
    " WHEN r.value_size < 268435456 THEN 5 ELSE 6 END) END"
)


@cache
def _select(
    open_ended: bool,
    at: bool,
    filters: tuple[str, ...],
    order: Column,
    descending: bool,
    keys_only: bool,
    limit_before_sort: bool,
) -> str:
    """The statement for a selection: rows of (sort key, key, kv), ended by LIMIT :limit.

    The halves of a read in the past are each in the order of keys, so that SQLite merges them and stops at
    the limit.
    """
    kv = _WITHOUT_VALUE if keys_only else "r.kv"

    def half(table: str, conditions: tuple[str, ...]) -> str:
        bounds = ("c.key >= :low", *(() if open_ended else ("c.key < :high",)))
        where = " AND ".join((*bounds, *conditions, *filters))
        return (
            f"SELECT {order.value} AS sort_key, c.key AS key, {kv} AS kv"
            f" FROM {table} c CROSS JOIN revisions r ON r.revision = c.revision WHERE {where}"
        )

    halves = half("current", ("c.revision <= :at",) if at else ())
    if at:
        halves += " UNION ALL " + half("history", ("c.revision <= :at", "c.superseded > :at"))
    direction = "DESC" if descending else "ASC"
    if order is Column.KEY:
        return f"{halves} ORDER BY key {direction} LIMIT :limit"
    if limit_before_sort:
        halves = f"SELECT * FROM ({halves} ORDER BY key LIMIT :limit)"
    return f"{halves} ORDER BY sort_key {direction}, key LIMIT :limit"


@cache
def _count(open_ended: bool, at: bool) -> str:
    bounds = "key >= :low" if open_ended else "key >= :low AND key < :high"
    if not at:
        return f"SELECT count(*) FROM current WHERE {bounds}"
    return (
        f"SELECT (SELECT count(*) FROM current WHERE {bounds} AND revision <= :at)"
        f" + (SELECT count(*) FROM history WHERE {bounds} AND revision <= :at AND superseded > :at)"
    )


@cache
def _compare(open_ended: bool, column: Column, sign: str) -> str:
    bounds = "c.key >= :low" if open_ended else "c.key >= :low AND c.key < :high"
    join = " CROSS JOIN revisions r ON r.revision = c.revision" if column is Column.VALUE else ""
    return (
        f"SELECT EXISTS (SELECT 1 FROM current c WHERE {bounds}),"
        f" EXISTS (SELECT 1 FROM current c{join} WHERE {bounds} AND NOT {column.value} {sign} :wanted)"
    )


_FILTERS = (
    ("min_mod", "c.revision >= :min_mod", lambda main: pack(_clamped(main))),
    ("max_mod", "c.revision <= :max_mod", lambda main: last_of(_clamped(main))),
    ("min_create", "c.create_revision >= :min_create", int),
    ("max_create", "c.create_revision <= :max_create", int),
)


def _clamped(main: int) -> int:
    """A main revision as a client may have written it, within what can be packed."""
    return max(-1, min(main, _LARGEST_MAIN_REVISION))


class KeyTables:
    """revisions, current, history."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._execute: Execute = connection.cursor().execute
        self._executemany = connection.cursor().executemany
        # Each hot statement has a cursor that nothing else uses.
        self._find_current: Execute = connection.cursor().execute
        self._find_latest: Execute = connection.cursor().execute

    # --- reading ----------------------------------------------------------------------------------

    def current(self, key: bytes) -> CurrentRow | None:
        """The live key's row."""
        row: CurrentRow | None = self._find_current(_CURRENT, (key,)).get
        return row

    def latest(self, key: bytes) -> bytes | None:
        """The live key's serialised key-value."""
        kv: bytes | None = self._find_latest(_LATEST, (key,)).get
        return kv

    def at(self, packed: int) -> bytes | None:
        """The serialised key-value of one revision; None when it never was or has been compacted."""
        kv: bytes | None = self._execute(_AT, (packed,)).get
        return kv

    def range(self, low: bytes, high: bytes | None) -> list[bytes]:
        """All live key-values of the interval in the order of keys, serialised."""
        if high is None:
            return [kv for (kv,) in self._execute(_RANGE_OPEN, (low,))]
        return [kv for (kv,) in self._execute(_RANGE, (low, high))]

    def select(self, low: bytes, high: bytes | None, selection: Selection) -> list[bytes]:
        """The key-values that a selection wants, serialised, in its order."""
        bindings: dict[str, Any] = {"low": low, "high": high, "limit": selection.limit or -1}
        if selection.at is not None:
            bindings["at"] = last_of(selection.at)
        filters = []
        for name, condition, bound in _FILTERS:
            main: int = getattr(selection, name)
            if main:
                filters.append(condition)
                bindings[name] = bound(main)
        statement = _select(
            high is None,
            selection.at is not None,
            tuple(filters),
            selection.order,
            selection.descending,
            selection.keys_only,
            selection.limit_before_sort,
        )
        return [row[2] for row in self._execute(statement, bindings)]

    def count(self, low: bytes, high: bytes | None, at: int | None = None) -> int:
        """How many keys of the interval live now, or lived at main revision `at`."""
        bindings = {"low": low, "high": high, "at": None if at is None else last_of(at)}
        number: int = self._execute(_count(high is None, at is not None), bindings).get
        return number

    def current_rows(self, low: bytes, high: bytes | None) -> list[tuple[bytes, int, int, int, int]]:
        """(key, packed revision, create_revision, version, lease) of the live keys, in their order."""
        bound = "key >= ?" if high is None else "key >= ? AND key < ?"
        rows: list[tuple[bytes, int, int, int, int]] = self._execute(
            f"SELECT key, revision, create_revision, version, lease FROM current WHERE {bound} ORDER BY key",
            (low,) if high is None else (low, high),
        ).fetchall()
        return rows

    def compare(
        self, low: bytes, high: bytes | None, column: Column, sign: str, wanted: int | bytes
    ) -> tuple[bool, bool]:
        """Whether the interval has a live key, and whether `column sign wanted` holds for all of them.

        sign: an operator of SQL. Stops at the first key that tells.
        """
        bindings = {"low": low, "high": high, "wanted": wanted}
        some, violated = self._execute(_compare(high is None, column, sign), bindings).get
        return bool(some), not violated

    def keys_of_lease(self, lease_id: int) -> list[bytes]:
        """The live keys attached to a lease, sorted; through the partial index."""
        rows = self._execute(
            "SELECT key FROM current WHERE lease = ? AND lease <> 0 ORDER BY key", (lease_id,)
        )
        return [key for (key,) in rows]

    def revisions(self, first: int, last: int, limit: int) -> list[RevisionRow]:
        """Up to `limit` rows with first <= packed revision <= last, in order."""
        rows: list[RevisionRow] = self._execute(
            "SELECT revision, previous, value_size, kv FROM revisions WHERE revision BETWEEN ? AND ?"
            " ORDER BY revision LIMIT ?",
            (first, last, limit),
        ).fetchall()
        return rows

    def some_revisions(
        self, first: int, last: int, limit_rows: int, limit_bytes: int
    ) -> list[tuple[int, bool, bytes]]:
        """(packed revision, is tombstone, serialised key-value) from `first` to `last`, in order: up to
        `limit_rows`, and none more once there are `limit_bytes`."""
        rows: list[tuple[int, bool, bytes]] = []
        size_bytes = 0
        cursor = self._connection.cursor()
        cursor.execute(
            "SELECT revision, value_size IS NULL, kv FROM revisions WHERE revision BETWEEN ? AND ?"
            " ORDER BY revision LIMIT ?",
            (first, last, limit_rows),
        )
        for packed, is_tombstone, kv in cursor:
            rows.append((packed, bool(is_tombstone), kv))
            size_bytes += len(kv)
            if size_bytes >= limit_bytes:
                break
        cursor.close()  # a statement that is not at its end would keep the journal from beginning again
        return rows

    def superseded_by(self, key: bytes, packed: int) -> int | None:
        """The packed revision that superseded the key's row of `packed`; None while that is current."""
        superseded: int | None = self._execute(
            "SELECT superseded FROM history WHERE key = ? AND revision = ?", (key, packed)
        ).get
        return superseded

    def is_any_live_at(self, main: int) -> bool:
        """Whether there is any key at this main revision, which must not be below the compacted one."""
        at = last_of(main)
        found = self._execute(
            "SELECT EXISTS (SELECT 1 FROM current WHERE revision <= ?1)"
            " OR EXISTS (SELECT 1 FROM history WHERE revision <= ?1 AND superseded > ?1)",
            (at,),
        ).get
        return bool(found)

    # --- writing ----------------------------------------------------------------------------------

    def insert_revisions(self, rows: Iterable[RevisionRow]) -> None:
        self._executemany(_INSERT_REVISION, rows)

    def insert_current(self, rows: Iterable[tuple[bytes, int, int, int, int]]) -> None:
        """New live keys: (key, packed revision, create_revision, version, lease)."""
        self._executemany(_INSERT_CURRENT, rows)

    def update_current(self, rows: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Live keys that were written again: (packed revision, version, lease, key)."""
        self._executemany(_UPDATE_CURRENT, rows)

    def put(self, row: RevisionRow, key: bytes, create_revision: int, version: int, lease: int) -> None:
        """One put: its row of `revisions`, and `current` and `history` after it."""
        execute = self._execute
        packed, previous, _, _ = row
        execute(_INSERT_REVISION, row)
        if previous:
            execute(_INSERT_HISTORY, (key, previous, packed, create_revision, version - 1))
            execute(_UPDATE_CURRENT, (packed, version, lease, key))
        else:
            execute(_INSERT_CURRENT, (key, packed, create_revision, version, lease))

    def delete_current(self, keys: Iterable[tuple[bytes]]) -> None:
        self._executemany(_DELETE_CURRENT, keys)

    def insert_history(self, rows: Iterable[tuple[bytes, int, int, int, int]]) -> None:
        """Rows that left `current`: (key, packed revision, superseded by, create_revision, version)."""
        self._executemany(_INSERT_HISTORY, rows)

    # --- compaction -------------------------------------------------------------------------------

    def superseding(self, first: int, last: int, limit: int) -> list[tuple[int, int, int, bytes | None]]:
        """Rows of the packed revisions first..last: (revision, previous, is tombstone, serialised key or
        None).

        The last is the key-value without its value, None where nothing is superseded.
        """
        rows: list[tuple[int, int, int, bytes | None]] = self._execute(
            "SELECT revision, previous, value_size IS NULL, CASE WHEN previous <> 0"
            " THEN substr(kv, 1, length(kv) - ifnull(value_size, 0)) END"
            " FROM revisions WHERE revision BETWEEN ? AND ? ORDER BY revision LIMIT ?",
            (first, last, limit),
        ).fetchall()
        return rows

    def delete_revisions(self, revisions: Iterable[tuple[int]]) -> None:
        self._executemany("DELETE FROM revisions WHERE revision = ?", revisions)

    def delete_history(self, rows: Iterable[tuple[bytes, int]]) -> None:
        self._executemany("DELETE FROM history WHERE key = ? AND revision = ?", rows)


@dataclass(slots=True)
class Meta:
    """The one row of `meta`, its columns in their order."""

    applied_index: int
    applied_term: int
    revision: int
    compacted_revision: int
    finished_compaction: int
    compaction_position: int
    cluster_version: str


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One row of `members`; member_id is unsigned."""

    member_id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool


class FactTables:
    """meta, leases, members, removed_members, alarms."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._execute: Execute = connection.cursor().execute
        self._applied = connection.cursor().execute

    def meta(self) -> Meta:
        row = self._execute(
            "SELECT applied_index, applied_term, revision, compacted_revision, finished_compaction,"
            " compaction_position, cluster_version FROM meta"
        ).get
        return Meta(*row)

    def set_applied(self, index: int, term: int, revision: int) -> None:
        """What every applied entry changes."""
        self._applied(
            "UPDATE meta SET applied_index = ?, applied_term = ?, revision = ?", (index, term, revision)
        )

    def set_compaction(self, compacted_revision: int, finished: int, position: int) -> None:
        self._execute(
            "UPDATE meta SET compacted_revision = ?, finished_compaction = ?, compaction_position = ?",
            (compacted_revision, finished, position),
        )

    def set_cluster_version(self, version: str) -> None:
        self._execute("UPDATE meta SET cluster_version = ?", (version,))

    def lease_ttl(self, lease_id: int) -> int | None:
        ttl_s: int | None = self._execute("SELECT ttl_s FROM leases WHERE id = ?", (lease_id,)).get
        return ttl_s

    def leases(self) -> list[tuple[int, int]]:
        """(id, TTL in seconds) of all leases, by id."""
        rows: list[tuple[int, int]] = self._execute("SELECT id, ttl_s FROM leases ORDER BY id").fetchall()
        return rows

    def insert_lease(self, lease_id: int, ttl_s: int) -> None:
        self._execute("INSERT INTO leases VALUES (?, ?)", (lease_id, ttl_s))

    def delete_lease(self, lease_id: int) -> None:
        self._execute("DELETE FROM leases WHERE id = ?", (lease_id,))

    def members(self) -> list[MemberRow]:
        """All members, by id."""
        rows = self._execute("SELECT id, name, peer_urls, client_urls, is_learner FROM members ORDER BY id")
        return [
            MemberRow(
                int(member_id, 16), name, tuple(json.loads(peer)), tuple(json.loads(client)), bool(learner)
            )
            for member_id, name, peer, client, learner in rows
        ]

    def set_member(self, member: MemberRow) -> None:
        self._execute(
            "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?)",
            (
                f"{member.member_id:016x}",
                member.name,
                json.dumps(member.peer_urls),
                json.dumps(member.client_urls),
                int(member.is_learner),
            ),
        )

    def remove_member(self, member_id: int) -> None:
        """Delete a member and keep its id among those that may never return."""
        self._execute("DELETE FROM members WHERE id = ?", (f"{member_id:016x}",))
        self._execute("INSERT OR IGNORE INTO removed_members VALUES (?)", (f"{member_id:016x}",))

    def removed_members(self) -> list[int]:
        return [
            int(member_id, 16) for (member_id,) in self._execute("SELECT id FROM removed_members ORDER BY id")
        ]

    def alarms(self) -> list[tuple[int, int]]:
        """(alarm type, member id) of all alarms, in that order."""
        rows = self._execute("SELECT alarm, member_id FROM alarms ORDER BY alarm, member_id")
        return [(alarm, int(member_id, 16)) for alarm, member_id in rows]

    def insert_alarm(self, alarm: int, member_id: int) -> None:
        self._execute("INSERT INTO alarms VALUES (?, ?)", (f"{member_id:016x}", alarm))

    def delete_alarm(self, alarm: int, member_id: int) -> None:
        self._execute("DELETE FROM alarms WHERE alarm = ? AND member_id = ?", (alarm, f"{member_id:016x}"))
