"""The state machine: committed entries go in, outcomes and changes come out, and nothing else decides what
they are.

`Machine.apply` takes one entry of the log. All that the entry does happens inside the open transaction of
state.db together with `applied_index`, so that whatever a crash leaves behind is the effect of exactly the
entries up to that index (etcd's v3.5 corruption, issue 13766, came of writing the two apart). `commit` ends
the transaction; until then reads through the machine see what has been applied, and the log is able to replay
it.

It reads no clock and draws no random number: two machines that were given the same entries hold the same
rows. Times and identifiers are in the commands; that a lease has run out is a proposal, and revoking it is
the fact.

Invariants: an entry is applied once, in the order of the log, without gaps; an error outcome has changed
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from etcd_server.api import errors
from etcd_server.api.encoding import integer_field
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine import txn
from etcd_server.machine.alarms import Alarms
from etcd_server.machine.compaction import Compaction
from etcd_server.machine.hashing import KeySpaceHash, facts_hash
from etcd_server.machine.leases import Leases
from etcd_server.machine.members import Members
from etcd_server.machine.mvcc import Change, HistoryRow, Operations, Outcome, Store
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import StateRolledBack
from etcd_server.storage.tables import FactTables, KeyTables, StatementError

__all__ = ["Change", "HistoryRow", "Machine", "Outcome"]


class Machine:
    """The replicated state of one member, in one state.db.

    leases, alarms, members: the small facts, to be read by anyone.
    applied_index, applied_term: of the last entry applied.
    """

    def __init__(self, database: StateDatabase) -> None:
        self.database = database
        self._handlers: dict[str, Callable[[Any], Outcome]] = {
            "put": self._put,
            "delete_range": self._delete_range,
            "txn": self._txn,
            "compaction": self._compact,
            "lease_grant": self._lease_grant,
            "lease_revoke": self._lease_revoke,
            "alarm": self._alarm,
            "member_attributes": self._member_attributes,
            "cluster_version": self._set_cluster_version,
        }
        self.operations = Operations()
        self.reopen()

    def reopen(self) -> None:
        """Go on with what is in the database now: the file was replaced by a snapshot of another member.

        Changes that nobody has taken yet are dropped: watchers go on by history.
        """
        self._keys = KeyTables(self.database.connection)
        self._facts = FactTables(self.database.connection)
        self.reload()

    def reload(self) -> None:
        """Read what is held in memory from the database again.

        After the open transaction was rolled back: applied_index is then that of the last commit, and the
        entries behind it must be applied again. Changes that nobody has taken yet are dropped; they will come
        again.
        """
        meta = self._facts.meta()
        self.applied_index = meta.applied_index
        self.applied_term = meta.applied_term
        self.cluster_version = meta.cluster_version
        self._store = Store(self._keys, meta.revision, meta.compacted_revision, self.operations)
        self._compaction = Compaction(self._store, self._facts, meta)
        self.leases = Leases(self._facts, self._store)
        self.alarms = Alarms(self._facts)
        self.members = Members(self._facts)

    @property
    def revision(self) -> int:
        """Main revision of the last change; 1 before the first."""
        return self._store.revision

    @property
    def compacted_revision(self) -> int:
        """Nothing below it can be read; -1 before the first compaction."""
        return self._store.compacted_revision

    # --- the log ----------------------------------------------------------------------------------

    def apply(self, index: int, term: int, commands: Iterable[command_pb2.Command]) -> list[Outcome]:
        """Apply the commands of the entry at `index`; their outcomes in order, none if it was applied before.

        Raises Internal when entries are missing before it or a command is of a kind that this version does
        not know, and StorageError, after which the transaction may be gone (`reload`).
        """
        if not self._is_next(index):
            return []
        try:
            self.database.begin()
            outcomes = self._apply_all(commands)
            self._set_applied(index, term)
        except StatementError as error:
            raise self._failed(error) from error
        return outcomes

    def apply_conf_change(self, index: int, term: int, change: command_pb2.ConfChange) -> Outcome | None:
        """Apply a change of the membership; None if the entry was applied before. Raises as `apply` does.

        The outcome's body is empty: what the answers show is `members`.
        """
        if not self._is_next(index):
            return None
        try:
            self.database.begin()
            outcome: Outcome
            try:
                self.members.change(change)
                outcome = (self.revision, b"")
            except (errors.ClientError, errors.MemberNotEnoughStarted) as error:
                outcome = error
            self._set_applied(index, term)
        except StatementError as error:
            raise self._failed(error) from error
        return outcome

    def commit(self) -> None:
        """Commit the open transaction. Raises StorageError; after StateRolledBack, `reload` has been done."""
        try:
            self.database.commit()
        except StateRolledBack:
            self.reload()
            raise

    def _is_next(self, index: int) -> bool:
        if index <= self.applied_index:
            return False
        if index != self.applied_index + 1:
            raise errors.Internal(
                f"entry {index} cannot follow entry {self.applied_index}: entries are missing"
            )
        return True

    def _set_applied(self, index: int, term: int) -> None:
        self._facts.set_applied(index, term, self._store.revision)
        self.applied_index, self.applied_term = index, term

    def _failed(self, error: StatementError) -> Exception:
        meaning = self.database.failed(error)
        if isinstance(meaning, StateRolledBack):
            self.reload()
        return meaning

    def _apply_all(self, commands: Iterable[command_pb2.Command]) -> list[Outcome]:
        """Gather runs of plain puts, which are nearly all there is under load; everything else goes one by
        one.
        """
        outcomes: list[Outcome] = []
        run: list[rpc_pb2.PutRequest] = []
        for command in commands:
            kind = command.WhichOneof("kind")
            if kind == "put" and not self.alarms:
                put = command.put
                if not (put.prev_kv or put.ignore_value or put.ignore_lease):
                    run.append(put)
                    continue
            if run:
                outcomes += self._store.put_all(run, self.leases.exists)
                run = []
            outcomes.append(self._apply_one(kind, command))
        if run:
            outcomes += self._store.put_all(run, self.leases.exists)
        return outcomes

    def _apply_one(self, kind: str | None, command: command_pb2.Command) -> Outcome:
        handler = self._handlers.get(kind) if kind is not None else None
        if handler is None or kind is None:
            raise errors.Internal(
                "a command in the log is of an unknown kind: it was written by a newer version"
            )
        request = getattr(command, kind)
        if self.alarms and (refusal := self.alarms.refusal(kind, request)) is not None:
            return refusal
        try:
            return handler(request)
        except errors.ClientError as error:
            return error

    # --- commands, by the fields of etcdpy.Command ------------------------------------------------

    def _put(self, request: rpc_pb2.PutRequest) -> Outcome:
        return txn.apply_put(self._store, request, self.leases.exists)

    def _delete_range(self, request: rpc_pb2.DeleteRangeRequest) -> Outcome:
        return txn.apply_delete_range(self._store, request)

    def _txn(self, request: rpc_pb2.TxnRequest) -> Outcome:
        return txn.apply_txn(self._store, request, self.leases.exists)

    def _compact(self, request: rpc_pb2.CompactionRequest) -> Outcome:
        self._compaction.compact(request.revision)
        return self.revision, b""

    def _lease_grant(self, request: rpc_pb2.LeaseGrantRequest) -> Outcome:
        self.leases.grant(request.ID, request.TTL)
        return self.revision, integer_field(2, request.ID) + integer_field(3, request.TTL)

    def _lease_revoke(self, request: rpc_pb2.LeaseRevokeRequest) -> Outcome:
        self.leases.revoke(request.ID)
        return self.revision, b""

    def _alarm(self, request: rpc_pb2.AlarmRequest) -> Outcome:
        return self.revision, self.alarms.apply(request)

    def _member_attributes(self, attributes: command_pb2.MemberAttributes) -> Outcome:
        self.members.update_attributes(attributes)
        return self.revision, b""

    def _set_cluster_version(self, request: command_pb2.ClusterVersion) -> Outcome:
        self._facts.set_cluster_version(request.version)
        self.cluster_version = request.version
        return self.revision, b""

    # --- reads, of what has been applied ----------------------------------------------------------

    def range(self, request: rpc_pb2.RangeRequest) -> bytes:
        """The answer to a range, serialised, without its header. Raises FutureRevision, Compacted."""
        return self._store.range(request)

    def read_txn(self, request: rpc_pb2.TxnRequest) -> bytes:
        """The answer to a txn of ranges only, serialised, without its header. Raises FutureRevision,
        Compacted.
        """
        return txn.read_txn(self._store, request)

    # --- for watchers and the lease clock ---------------------------------------------------------

    def take_changes(self) -> list[Change]:
        """What has been changed since the last call, in order, a Change for each main revision."""
        return self._store.take_changes()

    def take_lease_changes(self) -> list[tuple[int, int | None]]:
        """(lease id, TTL in seconds or None when revoked) since the last call, in order."""
        return self.leases.take_changes()

    def events_since(
        self, first_main_revision: int, up_to_main_revision: int, limit_rows: int
    ) -> list[HistoryRow]:
        """Events of these main revisions, whole revisions only; see `Store.events_since`."""
        return self._store.events_since(first_main_revision, up_to_main_revision, limit_rows)

    def kv_at(self, packed_revision: int) -> bytes | None:
        """The serialised KeyValue of one packed revision; None for 0 and for what has been compacted."""
        return self._store.kv_at(packed_revision)

    # --- hashes -----------------------------------------------------------------------------------

    def begin_hash(self, revision: int, *, with_facts: bool = False) -> KeySpaceHash:
        """The hash of the key space at `revision` (0: the current one), to be made by `hash_step`.

        with_facts: also of the leases, alarms and members as they are now. Raises Compacted, FutureRevision.
        """
        seed = facts_hash(self.leases, self.alarms, self.members) if with_facts else 0
        return KeySpaceHash(self._store, revision, seed)

    def hash_step(self, unfinished: KeySpaceHash, limit_rows: int, limit_bytes: int) -> bool:
        """Go on with a hash; whether there is more to do. Not after a compaction: begin anew then."""
        return unfinished.step(self._store, limit_rows, limit_bytes)

    # --- compaction -------------------------------------------------------------------------------

    @property
    def compaction_pending(self) -> bool:
        """Rows below the compacted revision are still to be removed, by `compact_step`."""
        return self._compaction.pending

    def compact_step(self, limit_rows: int) -> bool:
        """Remove some compacted rows, in the open transaction, looking at up to `limit_rows`; whether more
        are left.

        Raises StorageError, after which the transaction may be gone.
        """
        if not self._compaction.pending:
            return False
        try:
            self.database.begin()
            return self._compaction.step(limit_rows)
        except StatementError as error:
            raise self._failed(error) from error
