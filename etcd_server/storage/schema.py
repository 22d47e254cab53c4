"""The tables of state.db, and how a revision is written as one number.

A change is known by its main revision (one for each request that changed something) and its number within it.
Both are packed into one integer, which is the row's identity everywhere: `main << 24 | sub`. That leaves room
for 16,777,216 changes in one request and 549,755,813,887 requests in the life of a cluster.

revisions   one row for each change, append only; removed by compaction.
    revision    the packed revision
    previous    packed revision of the row that this one supersedes; 0 when the key did not exist
    value_size  bytes of the value; NULL: this row is a deletion (a tombstone)
    kv          the serialised mvccpb.KeyValue, value last; of a tombstone key and mod_revision only
current     the live keys; `revision` names the row of `revisions` that holds each.
history     what `current` held once: the same columns for a row that was superseded by row `superseded`.
            At main revision R a key is the row with revision <= R < superseded.
leases, members, alarms, meta   small facts; meta has one row, changed in the transaction of its effect.

The `show_*` views are for people with a sqlite3 shell: they show keys and values as text.
"""

from __future__ import annotations

from typing import Final

STATE_SCHEMA_VERSION: Final = 1

SUB_REVISION_BITS: Final = 24
MAX_CHANGES_PER_REVISION: Final = 1 << SUB_REVISION_BITS


def pack(main: int, sub: int = 0) -> int:
    """The packed revision of the `sub`-th change (from 0) of main revision `main`."""
    return main << SUB_REVISION_BITS | sub


def main_revision(packed: int) -> int:
    """The main revision within a packed one."""
    return packed >> SUB_REVISION_BITS


def last_of(main: int) -> int:
    """The greatest packed revision that `main` can have: the bound for reading at revision `main`."""
    return (main + 1 << SUB_REVISION_BITS) - 1


STATE_SCHEMA: Final = """
CREATE TABLE revisions (
    revision INTEGER PRIMARY KEY,
    previous INTEGER NOT NULL,
    value_size INTEGER,
    kv BLOB NOT NULL
) STRICT;

CREATE TABLE current (
    key BLOB NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    create_revision INTEGER NOT NULL,
    version INTEGER NOT NULL,
    lease INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX current_by_lease ON current (lease, key) WHERE lease <> 0;

CREATE TABLE history (
    key BLOB NOT NULL,
    revision INTEGER NOT NULL,
    superseded INTEGER NOT NULL,
    create_revision INTEGER NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (key, revision)
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    id INTEGER PRIMARY KEY,
    ttl_s INTEGER NOT NULL
) STRICT;

-- Identifiers of members are 64 bits without a sign, so they are kept as etcd prints them: 16 hexadecimal
-- digits.
CREATE TABLE members (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    peer_urls TEXT NOT NULL,
    client_urls TEXT NOT NULL,
    is_learner INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE removed_members (
    id TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE alarms (
    member_id TEXT NOT NULL,
    alarm INTEGER NOT NULL,
    PRIMARY KEY (alarm, member_id)
) STRICT, WITHOUT ROWID;

-- compacted_revision -1: never compacted. Rows below it are removed in steps; compaction_position is the
-- packed revision at which the next step begins, and finished_compaction the revision that has been removed
-- completely.
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    applied_index INTEGER NOT NULL,
    applied_term INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    compacted_revision INTEGER NOT NULL,
    finished_compaction INTEGER NOT NULL,
    compaction_position INTEGER NOT NULL,
    cluster_version TEXT NOT NULL
) STRICT;
INSERT INTO meta VALUES (0, 0, 0, 1, -1, -1, 0, '');

CREATE VIEW show_keys AS
    SELECT CAST(c.key AS TEXT) AS key,
           CAST(substr(r.kv, length(r.kv) - r.value_size + 1) AS TEXT) AS value,
           c.create_revision, c.revision >> 24 AS mod_revision, c.version, c.lease
    FROM current c JOIN revisions r ON r.revision = c.revision;

CREATE VIEW show_history AS
    SELECT CAST(h.key AS TEXT) AS key,
           CAST(substr(r.kv, length(r.kv) - r.value_size + 1) AS TEXT) AS value,
           h.create_revision, h.revision >> 24 AS mod_revision, h.version, h.superseded >> 24 AS superseded
    FROM history h JOIN revisions r ON r.revision = h.revision;

CREATE VIEW show_leases AS
    SELECT l.id, printf('%016x', l.id) AS hexadecimal, l.ttl_s,
           (SELECT count(*) FROM current c WHERE c.lease = l.id AND c.lease <> 0) AS keys
    FROM leases l;
"""
