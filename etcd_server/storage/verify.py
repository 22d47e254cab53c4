"""The offline check behind `etcd-py verify DATA-DIR`: reads everything, changes nothing, says what is wrong.

Checks the structure of both files (SQLite's own integrity_check), every entry of the log against its checksum
and its neighbours, the hard state, that the log joins the state, and each table of the state against the
others: every key and every old revision has its row, the stored KeyValues agree with the columns beside them,
what was superseded leads to what superseded it, attached leases exist, and nothing is newer than the state.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import apsw
from google.protobuf.message import DecodeError

from etcd_server.api.proto import kv_pb2
from etcd_server.raft.messages import EntryKind
from etcd_server.storage import database, raftlog
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.errors import StorageError, translated
from etcd_server.storage.extent import Extent
from etcd_server.storage.files import abandon, check_format
from etcd_server.storage.install import pending_plan
from etcd_server.storage.schema import STATE_SCHEMA_VERSION, last_of, main_revision

Found = TypeVar("Found")

_MOST_OF_A_KIND = 10
_ENTRIES = (
    'SELECT "index", term, kind, "commit", checksum, data FROM entries WHERE "index" > ? ORDER BY "index"'
)
_META = "SELECT applied_index, applied_term, revision, compacted_revision, finished_compaction FROM meta"
_REVISIONS = "SELECT revision, previous, value_size, kv FROM revisions ORDER BY revision"
_CURRENT = """
SELECT c.key, c.revision, c.create_revision, c.version, c.lease, r.value_size, r.kv
FROM current c LEFT JOIN revisions r ON r.revision = c.revision
"""
_HISTORY = """
SELECT h.key, h.revision, h.create_revision, h.version, r.value_size, r.kv, h.superseded, s.previous FROM
history h LEFT JOIN revisions r ON r.revision = h.revision LEFT JOIN revisions s ON s.revision = h.superseded
"""
_LOST_PREVIOUS = """
SELECT r.revision, r.previous FROM revisions r LEFT JOIN revisions p ON p.revision = r.previous
WHERE r.previous <> 0 AND r.revision > ? AND p.revision IS NULL
"""
_LOST_LEASES = """
SELECT c.lease, count(*) FROM current c LEFT JOIN leases l ON l.id = c.lease
WHERE c.lease <> 0 AND l.id IS NULL GROUP BY c.lease
"""
_COUNTS = """
SELECT (SELECT count(*) FROM current), (SELECT count(*) FROM history), (SELECT count(*) FROM leases),
       (SELECT count(*) FROM revisions WHERE value_size IS NOT NULL)
"""


@dataclass(slots=True)
class Report:
    """facts: what was found, one line a file. problems: what is wrong, one line each; empty: nothing is."""

    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        """The whole report for a person, with what to do at its end."""
        if self.is_sound:
            return [*self.facts, "no problem was found"]
        return [
            *self.facts,
            *(f"problem: {problem}" for problem in self.problems),
            "what to do: keep a copy of the directory as it is, and do not start a server on it. Where other "
            "members are healthy, remove this one from the cluster, add it again and let it start with an "
            "empty directory. A single member is restored from its latest backup.",
        ]


def verify(data_dir: str | os.PathLike[str]) -> Report:
    """Check a data directory that no server uses.

    Raises DirectoryInUse, UnknownFormat, DiskFailed, StorageError (a snapshot is half in place).
    """
    directory = DataDirectory.open_offline(data_dir)
    try:
        if (pending := pending_plan(directory)) is not None:
            raise pending
        return verify_files(directory.raft_log_path, directory.state_path)
    finally:
        directory.close()


def verify_files(raft_log_path: str, state_path: str, *, vfs: str | None = None) -> Report:
    """Check the two files of a member; `vfs`: name of SQLite's VFS to use."""
    report = Report()
    extent = _read(report, raft_log_path, vfs, lambda log: _check_log(report, log, raft_log_path))
    _read(report, state_path, vfs, lambda state: _check_state(report, state, state_path, extent))
    return report


def _read(
    report: Report, path: str, vfs: str | None, check: Callable[[apsw.Connection | None], Found]
) -> Found | None:
    """`check` with a read-only connection, or None for a file that holds nothing; an error becomes a problem.

    A file may hold nothing, or not be there, when its creation was cut short: the next start makes it.
    """
    connection = None
    try:
        with translated(path):
            # A rollback journal is there only until a new file has become a WAL file.
            if os.path.exists(path) and not os.path.exists(f"{path}-journal"):
                connection = _connect(path, vfs)
                if _holds_anything(connection):
                    return check(connection)
            report.facts.append(f"{os.path.basename(path)}: holds nothing")
            return check(None)
    except StorageError as error:
        report.problems.append(str(error))
        return None
    finally:
        if connection is not None:
            abandon(connection)


def _connect(path: str, vfs: str | None) -> apsw.Connection:
    """A connection that only reads. Without a journal the file is all there is, and no index of a journal,
    a file too, need be made: a full or read-only disk can be looked at."""
    flags = apsw.SQLITE_OPEN_READONLY
    if os.path.exists(f"{path}-wal"):
        return apsw.Connection(path, flags=flags, vfs=vfs)
    uri = f"file:{quote(os.path.abspath(path))}?immutable=1"
    return apsw.Connection(uri, flags=flags | apsw.SQLITE_OPEN_URI, vfs=vfs)


def _holds_anything(connection: apsw.Connection) -> bool:
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
    return bool(tables or connection.pragma("application_id"))


def _check_integrity(report: Report, connection: apsw.Connection, path: str) -> bool:
    found = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(20)").fetchall()]
    if found == ["ok"]:
        return True
    name = os.path.basename(path)
    report.problems.extend(f"{name}: {line}" for text in found for line in text.splitlines())
    return False


def _check_log(report: Report, connection: apsw.Connection | None, path: str) -> Extent | None:
    """What the log holds; None when that cannot be said."""
    if connection is None:
        return Extent(0, ((0, 0),))
    check_format(connection, path, raftlog.APPLICATION_ID, raftlog.SCHEMA_VERSION)
    if not _check_integrity(report, connection, path):
        return None
    hard_state, extent = raftlog.load(connection, path)
    name = os.path.basename(path)
    complain = _Complaints(report, name)
    expected, term_before = extent.start_index + 1, extent.term(extent.start_index)
    for index, term, kind, commit, crc, data in connection.execute(_ENTRIES, (extent.start_index,)):
        if index != expected:
            complain("gap", f"entries {expected}..{index - 1} are missing")
        if crc != raftlog.checksum(index, term, kind, commit, data):
            complain("checksum", f"entry {index} does not match its checksum")
        elif kind not in (member.value for member in EntryKind):
            complain("kind", f"entry {index} is of the unknown kind {kind}")
        if not term_before <= term <= hard_state.term:
            complain("term", f"entry {index} is of term {term}, outside of {term_before}..{hard_state.term}")
        expected, term_before = index + 1, max(term, term_before)
    complain.close()
    report.facts.append(
        f"{name}: {extent.last_index - extent.start_index} {extent}, term {hard_state.term}, "
        f"committed {hard_state.commit}"
    )
    return extent


def _check_state(
    report: Report, connection: apsw.Connection | None, path: str, extent: Extent | None
) -> None:
    """`extent`: what the log holds, None when that is not known."""
    name = os.path.basename(path)
    if connection is not None:
        check_format(connection, path, database.APPLICATION_ID, STATE_SCHEMA_VERSION)
        if _check_integrity(report, connection, path):
            _State(report, connection, name).check(extent)
    elif extent is not None and extent.start_index > 0:
        report.problems.append(f"{name}: holds nothing, and the log ({extent}) does not begin at 1")


class _Complaints:
    """Writes problems of one file into a report, but only some of each kind, and how many more there are."""

    def __init__(self, report: Report, name: str) -> None:
        self._report = report
        self._name = name
        self._counts: dict[str, int] = {}

    def __call__(self, kind: str, what: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= _MOST_OF_A_KIND:
            self._report.problems.append(f"{self._name}: {what}")

    def close(self) -> None:
        for kind, count in self._counts.items():
            if count > _MOST_OF_A_KIND:
                self._report.problems.append(
                    f"{self._name}: {count - _MOST_OF_A_KIND} more of the kind '{kind}'"
                )


class _State:
    """The tables of state.db against each other and against the log."""

    def __init__(self, report: Report, connection: apsw.Connection, name: str) -> None:
        self._report = report
        self._execute: Callable[..., apsw.Cursor] = connection.execute
        self._name = name
        self._complain = _Complaints(report, name)

    def check(self, extent: Extent | None) -> None:
        row = self._execute(_META).fetchone()
        if row is None:
            self._complain("meta", "the row of 'meta' is missing")
            return
        applied_index, applied_term, revision, compacted, finished = row
        if not -1 <= finished <= compacted <= revision:
            self._complain("meta", f"compacted at {compacted} (done: {finished}), beyond revision {revision}")
        if extent is not None:
            self._check_joined(extent, applied_index, applied_term)
        self._check_revisions(revision, compacted)
        self._check_current()
        self._check_history()
        for lease, keys in self._execute(_LOST_LEASES):
            self._complain("lease", f"{keys} keys are attached to lease {lease:016x}, which does not exist")
        current, history, leases, values = self._execute(_COUNTS).get
        if current + history != values:
            self._complain(
                "count",
                f"{values} revisions hold a value, but {current} + {history} are in current and history",
            )
        self._complain.close()
        self._report.facts.append(
            f"{self._name}: applied {applied_index}, revision {revision}, compacted {max(compacted, 0)}, "
            f"{current} keys, {history} old values, {leases} leases"
        )

    def _check_joined(self, extent: Extent, applied_index: int, applied_term: int) -> None:
        if not extent.start_index <= applied_index <= extent.last_index:
            self._complain("joined", f"applied up to {applied_index}, which the log ({extent}) does not join")
        elif extent.term(applied_index) != applied_term:
            self._complain(
                "joined",
                f"entry {applied_index} was applied as one of term {applied_term}, "
                f"but in the log it is of term {extent.term(applied_index)}",
            )

    def _check_revisions(self, last_revision: int, compacted: int) -> None:
        for packed, previous, value_size, kv in self._execute(_REVISIONS):
            where = f"revision {_shown(packed)}"
            if main_revision(packed) > last_revision:
                self._complain("newer", f"{where} is newer than the state, which is at {last_revision}")
            if previous >= packed:
                self._complain("previous", f"{where} supersedes {_shown(previous)}, which is not older")
            found = _parsed(kv)
            if found is None:
                self._complain("unreadable", f"{where} cannot be read")
            elif found.mod_revision != main_revision(packed):
                self._complain("mod", f"{where} holds the KeyValue of revision {found.mod_revision}")
            elif value_size is None:
                if found.value or found.version or found.create_revision:
                    self._complain("tombstone", f"{where} is a deletion, but holds a value")
            elif len(found.value) != value_size or not kv.endswith(found.value):
                self._complain(
                    "size", f"{where}: its value of {value_size} bytes is not at the end of its KeyValue"
                )
        for packed, previous in self._execute(_LOST_PREVIOUS, (last_of(max(compacted, 0)),)):
            self._complain(
                "lost", f"{_shown(previous)}, which revision {_shown(packed)} supersedes, is missing"
            )

    def _check_current(self) -> None:
        for key, packed, create, version, lease, value_size, kv in self._execute(_CURRENT):
            self._check_row(f"key {_readable(key)}", (key, packed, create, version, lease), value_size, kv)

    def _check_history(self) -> None:
        for key, packed, create, version, value_size, kv, superseded, back in self._execute(_HISTORY):
            where = f"key {_readable(key)} at revision {_shown(packed)}"
            self._check_row(where, (key, packed, create, version, None), value_size, kv)
            if back != packed:
                self._complain("link", f"{where}: revision {_shown(superseded)} should have superseded it")

    def _check_row(
        self,
        where: str,
        columns: tuple[bytes, int, int, int, int | None],
        value_size: int | None,
        kv: bytes | None,
    ) -> None:
        """A row of `current` or `history` (lease None: not known there) against its row of `revisions`."""
        key, packed, create, version, lease = columns
        if kv is None or value_size is None:
            self._complain("row", f"{where}: its revision {_shown(packed)} is missing, or a deletion")
            return
        found = _parsed(kv)
        if found is None:
            return  # Said of the revision already.
        stored = (found.key, found.create_revision, found.version)
        if stored != (key, create, version) or (lease is not None and found.lease != lease):
            self._complain("columns", f"{where} does not agree with its KeyValue, revision {_shown(packed)}")


def _parsed(kv: bytes) -> kv_pb2.KeyValue | None:
    try:
        return kv_pb2.KeyValue.FromString(kv)
    except DecodeError:
        return None


def _shown(packed: int) -> str:
    """A packed revision as main.sub."""
    return f"{main_revision(packed)}.{packed - (packed >> 24 << 24)}"


def _readable(key: bytes) -> str:
    return repr(key)[1:] if len(key) <= 80 else f"{key[:80]!r}..."[1:]
