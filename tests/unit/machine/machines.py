"""A machine on a database file of its own, driven by requests as a client writes them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import command_pb2, kv_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION

Response = TypeVar("Response")

ALL: dict[str, Any] = {"key": b"\0", "range_end": b"\0"}
"""As arguments of a request: every key."""

TABLES = ("revisions", "current", "history", "leases", "members", "removed_members", "alarms", "meta")


class Lab:
    """One machine. Each command is an entry of its own; an error outcome is raised."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machine = self._open()
        self.entries: list[list[command_pb2.Command]] = []

    def _open(self) -> Machine:
        database = StateDatabase.open(str(self.folder / "state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION)
        # A crash is the end of a process here, never a power cut: nothing has to be synced.
        database.connection.pragma("synchronous", "OFF")
        return Machine(database)

    def apply(self, *commands: command_pb2.Command) -> list[Any]:
        """Apply commands as the next entry; their outcomes."""
        self.entries.append(list(commands))
        return self.machine.apply(self.machine.applied_index + 1, 1, commands)

    def do(self, **command: Any) -> tuple[int, bytes]:
        """Apply one command, given by its field; raises what it was refused with."""
        (outcome,) = self.apply(command_pb2.Command(**command))
        if isinstance(outcome, EtcdError):
            raise outcome
        revision, body = outcome
        return revision, body

    def put(self, key: bytes, value: bytes = b"", **options: Any) -> rpc_pb2.PutResponse:
        revision, body = self.do(put=rpc_pb2.PutRequest(key=key, value=value, **options))
        return answered(rpc_pb2.PutResponse.FromString(body), revision)

    def delete(self, key: bytes, range_end: bytes = b"", **options: Any) -> rpc_pb2.DeleteRangeResponse:
        request = rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, **options)
        revision, body = self.do(delete_range=request)
        return answered(rpc_pb2.DeleteRangeResponse.FromString(body), revision)

    def txn(self, request: rpc_pb2.TxnRequest) -> rpc_pb2.TxnResponse:
        revision, body = self.do(txn=request)
        return answered(rpc_pb2.TxnResponse.FromString(body), revision)

    def compact(self, revision: int) -> int:
        return self.do(compaction=rpc_pb2.CompactionRequest(revision=revision))[0]

    def finish_compaction(self, rows_a_step: int = 1000) -> int:
        """Take steps until none is left; how many."""
        steps = 0
        while self.machine.compaction_pending:
            self.machine.compact_step(rows_a_step)
            steps += 1
        return steps

    def grant(self, lease_id: int, ttl_s: int = 60) -> rpc_pb2.LeaseGrantResponse:
        revision, body = self.do(lease_grant=rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))
        return answered(rpc_pb2.LeaseGrantResponse.FromString(body), revision)

    def revoke(self, lease_id: int) -> int:
        return self.do(lease_revoke=rpc_pb2.LeaseRevokeRequest(ID=lease_id))[0]

    def alarm(self, action: int, kind: int = 0, member_id: int = 0) -> rpc_pb2.AlarmResponse:
        request = rpc_pb2.AlarmRequest(action=action, alarm=kind, memberID=member_id)  # type: ignore[arg-type]
        return rpc_pb2.AlarmResponse.FromString(self.do(alarm=request)[1])

    def range(self, key: bytes, range_end: bytes = b"", **options: Any) -> rpc_pb2.RangeResponse:
        body = self.machine.range(rpc_pb2.RangeRequest(key=key, range_end=range_end, **options))
        return rpc_pb2.RangeResponse.FromString(body)

    def keys(self, **options: Any) -> list[bytes]:
        """The keys of a range over everything, in the order of the answer."""
        return [kv.key for kv in self.range(**ALL, **options).kvs]

    def get(self, key: bytes, revision: int = 0) -> kv_pb2.KeyValue | None:
        kvs = self.range(key, revision=revision).kvs
        return kvs[0] if kvs else None

    def crash(self) -> None:
        """Lose what is not committed, and open the file again."""
        self.machine.database.rollback()
        self.machine.database.close()
        self.machine = self._open()

    def replay(self) -> None:
        """Apply again every entry behind applied_index, as the raft log would."""
        for index, commands in enumerate(self.entries, 1):
            self.machine.apply(index, 1, commands)

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        return sorted(self.machine.database.connection.execute(f"SELECT * FROM {table}"))

    def content(self, tables: Sequence[str] = TABLES) -> str:
        """A hash of every row of the named tables."""
        digest = hashlib.sha256()
        for table in tables:
            for row in self.rows(table):
                digest.update(repr((table, row)).encode())
        return digest.hexdigest()

    def check_tables(self) -> None:
        """What must hold between the tables once compaction has finished."""
        run = self.machine.database.connection.execute
        for question in (
            "SELECT * FROM current c LEFT JOIN revisions r USING (revision) WHERE r.value_size IS NULL",
            "SELECT * FROM history h LEFT JOIN revisions r USING (revision) WHERE r.value_size IS NULL",
            "SELECT * FROM history h LEFT JOIN revisions r ON r.revision = h.superseded"
            " WHERE r.revision IS NULL OR r.previous <> h.revision",
            "SELECT * FROM current c JOIN history h USING (key, revision)",
            "SELECT * FROM current WHERE lease <> 0 AND lease NOT IN (SELECT id FROM leases)",
            "SELECT * FROM revisions r WHERE value_size IS NOT NULL"
            " AND revision NOT IN (SELECT revision FROM current)"
            " AND revision NOT IN (SELECT revision FROM history)",
            "SELECT * FROM revisions r, meta m WHERE value_size IS NULL"
            " AND r.revision >> 24 < m.compacted_revision",
            "SELECT * FROM history h, meta m WHERE h.superseded >> 24 <= m.compacted_revision",
        ):
            assert run(question).fetchall() == [], question


def answered(response: Response, revision: int) -> Response:
    """Set the revision that the service would write into the header."""
    response.header.revision = revision  # type: ignore[attr-defined]
    return response
