"""etcdserverpb.KV: what a request means, and which of them may pass.

Requests that change something are checked here, so that nothing senseless enters the log, and proposed; their
answer is made from the outcome when the entry is applied. Reads are answered from the machine: at once when
`serializable`, otherwise when the member knows that it has applied all that was committed when the read came
in (`reads.py`).

The order of the checks is etcd's (server/etcdserver/api/v3rpc/key.go): a client sees the same first error.
"""

from __future__ import annotations

from collections.abc import Sequence

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.txn import check_delete_range, check_put, check_range, check_txn, contains_put
from etcd_server.services.core import Core
from etcd_server.services.proposals import COMPACTION, DELETE_RANGE, PUT, TXN, Outcome, Waiter
from etcd_server.services.reads import Reads


def is_read_only(request: rpc_pb2.TxnRequest) -> bool:
    """Only ranges at the top level: such a txn is a read and needs no entry in the log (etcd:
    isTxnReadonly)."""
    return all(op.WhichOneof("request") == "request_range" for op in (*request.success, *request.failure))


def is_serializable(request: rpc_pb2.TxnRequest) -> bool:
    """Every range of a read-only txn asks for a local read (etcd: isTxnSerializable)."""
    return all(op.request_range.serializable for op in (*request.success, *request.failure))


class KV:
    """Range, Put, DeleteRange, Txn, Compact of one member."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self._core = core
        self._reads = reads
        self._awaiting_compaction: list[tuple[int, Outcome]] = []

    def range(self, calls: Sequence[tuple[int, rpc_pb2.RangeRequest]]) -> None:
        linearizable = []
        for call_id, request in calls:
            try:
                check_range(request)
            except errors.EtcdError as error:
                self._core.answers.append((call_id, error))
                continue
            if request.serializable:
                self._answer_range(call_id, request)
            else:
                linearizable.append((self._answer_range, call_id, request))
        self._reads.add(linearizable)

    def _answer_range(self, call_id: int, request: rpc_pb2.RangeRequest) -> None:
        core = self._core
        try:
            body = core.machine.range(request)
        except errors.EtcdError as error:
            core.answers.append((call_id, error))
        else:
            core.answers.append((call_id, core.header(core.machine.revision) + body))

    def put(self, calls: Sequence[tuple[int, rpc_pb2.PutRequest]]) -> None:
        core = self._core
        add = core.proposals.add
        refused = core.refuses_growth()
        limit = core.settings.max_request_bytes
        for call_id, request in calls:
            try:
                check_put(request)
            except errors.EtcdError as error:
                core.answers.append((call_id, error))
                continue
            data = request.SerializeToString()
            if refused is not None:
                core.answers.append((call_id, refused))
            elif len(data) > limit:
                core.answers.append((call_id, errors.RequestTooLarge()))
            else:
                add(PUT, data, call_id)

    def delete_range(self, calls: Sequence[tuple[int, rpc_pb2.DeleteRangeRequest]]) -> None:
        core = self._core
        for call_id, request in calls:
            try:
                check_delete_range(request)
            except errors.EtcdError as error:
                core.answers.append((call_id, error))
            else:
                core.propose(DELETE_RANGE, request, call_id)

    def txn(self, calls: Sequence[tuple[int, rpc_pb2.TxnRequest]]) -> None:
        core = self._core
        refused = core.refuses_growth()
        linearizable = []
        for call_id, request in calls:
            try:
                check_txn(request, core.settings.max_txn_operations)
            except errors.EtcdError as error:
                core.answers.append((call_id, error))
                continue
            if is_read_only(request):
                if is_serializable(request):
                    self._answer_txn(call_id, request)
                else:
                    linearizable.append((self._answer_txn, call_id, request))
            elif refused is not None and contains_put(request):
                core.answers.append((call_id, refused))
            else:
                core.propose(TXN, request, call_id)
        self._reads.add(linearizable)

    def _answer_txn(self, call_id: int, request: rpc_pb2.TxnRequest) -> None:
        try:
            self._core.reply(call_id, self._core.machine.read_txn(request))
        except errors.EtcdError as error:
            self._core.answers.append((call_id, error))

    def compact(self, calls: Sequence[tuple[int, rpc_pb2.CompactionRequest]]) -> None:
        for call_id, request in calls:
            self._core.propose(COMPACTION, request, self._physical(call_id) if request.physical else call_id)

    def _physical(self, call_id: int) -> Waiter:
        """A waiter that answers only when the compacted rows are gone from the database."""

        def wait(outcome: Outcome) -> None:
            if isinstance(outcome, errors.EtcdError):
                self._core.answer(call_id, outcome)
            else:
                self._awaiting_compaction.append((call_id, outcome))

        return wait

    def compaction_finished(self) -> None:
        """The machine has removed all rows below the compacted revision."""
        awaiting, self._awaiting_compaction = self._awaiting_compaction, []
        for call_id, outcome in awaiting:
            self._core.answer(call_id, outcome)
