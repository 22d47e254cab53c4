"""A server as the conformance cases see it: each request goes over gRPC, and is written down with its answer.

What may honestly differ between two servers that behave alike is taken out before it is written down:
cluster, member and lease IDs that the server chose, raft terms and indexes, sizes, versions, ports. Revisions
are written relative to `base`, the revision at which the case began, so that each case stands for itself.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message

from etcd_server.api.methods import METHODS, Rpc
from etcd_server.api.proto import health_pb2, rpc_pb2

ANSWER_LIMIT_S = 10.0
_REVISIONS = re.compile(r"\b((?:\w+_)?revision): (-?\d+)")
_LEASES = re.compile(r"\b(ID|lease): (-?\d+)")
_HIDDEN = re.compile(
    r"\b(cluster_id|member_id|raft_term|memberID|leader|raftIndex|raftTerm|raftAppliedIndex|dbSize|dbSizeInUse"
    r'|version): ("[^"]*"|\d+)'
)
_PORTS = re.compile(r"127\.0\.0\.1:\d+")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer, as comparable text."""

    request: str
    answer: str


class Target:
    """A running server and the transcript of the case that runs on it."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.transcript: list[Exchange] = []
        self.base = 0
        self.last_lease = 0
        self._chosen_leases: dict[int, str] = {}

    def close(self) -> None:
        self.channel.close()

    def begin(self) -> None:
        """An empty store: no keys, leases, alarms or history, and a `base` to count revisions from."""
        alarms = self._send("Maintenance/Alarm", rpc_pb2.AlarmRequest()).alarms
        for alarm in alarms:
            off = rpc_pb2.AlarmRequest(
                action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm
            )
            self._send("Maintenance/Alarm", off)
        for lease in self._send("Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest()).leases:
            self._send("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease.ID))
        self._send("KV/Put", rpc_pb2.PutRequest(key=b"begin"))
        emptied = self._send("KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        self.base = emptied.header.revision
        self._send("KV/Compact", rpc_pb2.CompactionRequest(revision=self.base))
        self.transcript = []
        self._chosen_leases = {}

    def rev(self, offset: int) -> int:
        """The revision `offset` after the beginning of the case."""
        return self.base + offset

    def call(self, method: str, request: Message, **options: Any) -> Any:
        """Sends `request` to "KV/Range" and the like, writes the exchange down; None for an error."""
        told = f"{method} {self.text(request)}"
        try:
            response = self._send(method, request, **options)
        except grpc.RpcError as error:
            self.note(told, status_text(error))
            return None
        chosen = method == "Lease/LeaseGrant" and getattr(request, "ID", 0) == 0
        if chosen:
            self.last_lease = response.ID
            self._chosen_leases[response.ID] = f"<lease {len(self._chosen_leases) + 1}>"
        self.note(told, self.text(response))
        return response

    def call_raw(self, method: str, payload: bytes, *, path: str | None = None) -> None:
        """Sends bytes that need not be a message; only the status code of the answer is written down."""
        stub = self.channel.unary_unary(
            path or f"/etcdserverpb.{method}", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            stub(payload, timeout=ANSWER_LIMIT_S)
            answer = "answered"
        except grpc.RpcError as error:
            answer = error.code().name
        self.note(f"{path or method} raw {payload[:20]!r} ({len(payload)} bytes)", answer)

    def _send(self, method: str, request: Message, **options: Any) -> Any:
        rpc = rpc_named(method)
        stub = self.channel.unary_unary(
            rpc.path,
            request_serializer=rpc.request.SerializeToString,
            response_deserializer=rpc.response.FromString,
        )
        return stub(request, timeout=ANSWER_LIMIT_S, **options)

    def note(self, request: str, answer: str) -> None:
        self.transcript.append(Exchange(request, answer))

    def text(self, message: Message) -> str:
        """`message` on one line, without what may differ."""
        if isinstance(message, rpc_pb2.StatusResponse):
            message.ClearField("storageVersion")
            message.ClearField("dbSizeQuota")
            message.ClearField("downgradeInfo")
        if isinstance(message, rpc_pb2.LeaseTimeToLiveResponse):
            # etcd gives the keys in the order of a Go map: in none. And a second may have passed since
            # the grant, on one server and not on the other.
            message.keys.sort()
            if message.TTL > 0 and message.grantedTTL - message.TTL <= 2:
                message.TTL = message.grantedTTL
        plain = text_format.MessageToString(message, as_one_line=True, print_unknown_fields=True)
        plain = _REVISIONS.sub(self._relative, plain)
        plain = _LEASES.sub(self._lease, plain)
        if not isinstance(message, rpc_pb2.AlarmRequest):
            plain = _HIDDEN.sub(_hidden, plain)
        return shortened(_PORTS.sub("127.0.0.1:*", plain))

    def _relative(self, found: re.Match[str]) -> str:
        revision = int(found[2])
        if revision <= 0:
            return found[0]
        return f"{found[1]}: base{revision - self.base:+d}"

    def _lease(self, found: re.Match[str]) -> str:
        return f"{found[1]}: {self._chosen_leases.get(int(found[2]), _member_or_number(found))}"

    # Requests that the cases send most.

    def put(self, key: bytes, value: bytes = b"", **fields: Any) -> Any:
        return self.call("KV/Put", rpc_pb2.PutRequest(key=key, value=value, **fields))

    def range(self, key: bytes, range_end: bytes = b"", **fields: Any) -> Any:
        return self.call("KV/Range", rpc_pb2.RangeRequest(key=key, range_end=range_end, **fields))

    def delete(self, key: bytes, range_end: bytes = b"", **fields: Any) -> Any:
        return self.call("KV/DeleteRange", rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, **fields))

    def txn(self, compare: Any = (), success: Any = (), failure: Any = ()) -> Any:
        return self.call("KV/Txn", txn_request(compare, success, failure))

    def compact(self, revision: int, **fields: Any) -> Any:
        return self.call("KV/Compact", rpc_pb2.CompactionRequest(revision=revision, **fields))

    def grant(self, ttl: int, lease_id: int = 0) -> Any:
        return self.call("Lease/LeaseGrant", rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=lease_id))

    def revoke(self, lease_id: int) -> Any:
        return self.call("Lease/LeaseRevoke", rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    def time_to_live(self, lease_id: int, *, keys: bool = False) -> Any:
        return self.call("Lease/LeaseTimeToLive", rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=keys))

    def leases(self) -> Any:
        return self.call("Lease/LeaseLeases", rpc_pb2.LeaseLeasesRequest())

    def watch_stream(self, metadata: Any = None) -> Stream:
        return Stream(self, "Watch/Watch", metadata)

    def keep_alive_stream(self) -> Stream:
        return Stream(self, "Lease/LeaseKeepAlive")

    def events_since(self, revision: int) -> None:
        """Writes down every event from `revision` to now, however the server packs them."""
        last = self._send("KV/Put", rpc_pb2.PutRequest(key=b"\xff\xffend")).header.revision
        with self.watch_stream() as stream:
            stream.send(
                rpc_pb2.WatchCreateRequest(key=b"\0", range_end=b"\0", start_revision=revision, prev_kv=True),
                quietly=True,
            )
            seen: list[str] = []
            while True:
                answer = stream.next_message()
                if not isinstance(answer, rpc_pb2.WatchResponse) or answer.canceled:
                    seen.append(stream.answer_text(answer))
                    break
                seen.extend(self.text(event) for event in answer.events)
                if answer.events and answer.events[-1].kv.mod_revision == last:
                    break
        self.note(f"events since base{revision - self.base:+d}", "\n    ".join(seen))


class Stream:
    """A two-way stream. What is received is written down in groups, ordered by watch within a group,
    because etcd promises no order between the watches of one stream."""

    def __init__(self, target: Target, method: str, metadata: Any = None) -> None:
        rpc = rpc_named(method)
        self._target = target
        self._method = method
        self._outgoing: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._incoming: queue.SimpleQueue[Message | grpc.RpcError | None] = queue.SimpleQueue()
        stub = target.channel.stream_stream(
            rpc.path,
            request_serializer=rpc.request.SerializeToString,
            response_deserializer=rpc.response.FromString,
        )
        self._call = stub(iter(self._outgoing.get, None), metadata=metadata)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for message in self._call:
                self._incoming.put(message)
            self._incoming.put(None)
        except grpc.RpcError as error:
            self._incoming.put(error)

    def send(self, request: Message, *, quietly: bool = False) -> None:
        """Sends a message; a WatchCreateRequest and its like are put into their WatchRequest."""
        if isinstance(request, rpc_pb2.WatchCreateRequest):
            request = rpc_pb2.WatchRequest(create_request=request)
        elif isinstance(request, rpc_pb2.WatchCancelRequest):
            request = rpc_pb2.WatchRequest(cancel_request=request)
        elif isinstance(request, rpc_pb2.WatchProgressRequest):
            request = rpc_pb2.WatchRequest(progress_request=request)
        if not quietly:
            self._target.note(f"{self._method} send {self._target.text(request)}", "sent")
        self._outgoing.put(request)

    def create(self, key: bytes, range_end: bytes = b"", *, answers: int = 1, **fields: Any) -> None:
        """Creates a watch and receives `answers` messages."""
        self.send(rpc_pb2.WatchCreateRequest(key=key, range_end=range_end, **fields))
        self.receive(answers)

    def next_message(self, limit_s: float = ANSWER_LIMIT_S) -> Message | grpc.RpcError | str | None:
        """The next message, the error or the end (None) of the stream; text when the time is over."""
        try:
            return self._incoming.get(timeout=limit_s)
        except queue.Empty:
            return "nothing came"

    def receive(self, count: int, limit_s: float = ANSWER_LIMIT_S) -> None:
        """Writes down the next `count` messages, or what came instead."""
        got: list[Message | grpc.RpcError | str | None] = []
        for _ in range(count):
            answer = self.next_message(limit_s)
            got.append(answer)
            if not isinstance(answer, Message):
                break
        got.sort(key=lambda answer: getattr(answer, "watch_id", 1 << 62))
        self._target.note(f"{self._method} receive {count}", "\n    ".join(map(self.answer_text, got)))

    def quiet(self, duration_s: float = 0.3) -> None:
        """Writes down whether nothing comes for a while."""
        self.receive(1, duration_s)

    def half_close(self, limit_s: float = 1.0) -> None:
        """Says that nothing more will be sent, and writes down what comes then, the end perhaps."""
        self._outgoing.put(None)
        seen: list[str] = []
        deadline_s = time.monotonic() + limit_s
        while True:
            answer = self.next_message(max(0.0, deadline_s - time.monotonic()))
            seen.append(self.answer_text(answer))
            if not isinstance(answer, Message):
                break
        self._target.note(f"{self._method} half-close", "\n    ".join(seen))

    def answer_text(self, answer: Message | grpc.RpcError | str | None) -> str:
        if isinstance(answer, Message):
            return self._target.text(answer)
        if isinstance(answer, grpc.RpcError):
            return status_text(answer)
        return answer or "end of stream"

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *details: object) -> None:
        self._outgoing.put(None)
        self._call.cancel()
        self._reader.join(ANSWER_LIMIT_S)


def rpc_named(method: str) -> Rpc:
    """The Rpc for "KV/Range" or "grpc.health.v1.Health/Check"."""
    return METHODS[f"/{method}" if "." in method else f"/etcdserverpb.{method}"]


def status_text(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}"


def txn_request(compare: Any = (), success: Any = (), failure: Any = ()) -> rpc_pb2.TxnRequest:
    return rpc_pb2.TxnRequest(compare=compare, success=success, failure=failure)


def put_op(key: bytes, value: bytes = b"", **fields: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value, **fields))


def range_op(key: bytes, range_end: bytes = b"", **fields: Any) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=key, range_end=range_end, **fields))


def delete_op(key: bytes, range_end: bytes = b"", **fields: Any) -> rpc_pb2.RequestOp:
    request = rpc_pb2.DeleteRangeRequest(key=key, range_end=range_end, **fields)
    return rpc_pb2.RequestOp(request_delete_range=request)


def txn_op(compare: Any = (), success: Any = (), failure: Any = ()) -> rpc_pb2.RequestOp:
    return rpc_pb2.RequestOp(request_txn=txn_request(compare, success, failure))


def compare(target: str, result: str, key: bytes, **fields: Any) -> rpc_pb2.Compare:
    return rpc_pb2.Compare(target=target, result=result, key=key, **fields)  # type: ignore[arg-type]


def health_request(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


def shortened(plain: str, longest: int = 4000) -> str:
    """`plain`, with its middle replaced by a checksum when it is long."""
    if len(plain) <= longest:
        return plain
    return f"{plain[:300]}...[{len(plain)} characters, hash {_checksum(plain):08x}]...{plain[-100:]}"


def _checksum(plain: str) -> int:
    return crc32(plain.encode())


def _hidden(found: re.Match[str]) -> str:
    # A version is hidden only where it is a string: the version of a key is a number, and matters.
    if found[1] == "version" and not found[2].startswith('"'):
        return found[0]
    return f"{found[1]}: *"


def _member_or_number(found: re.Match[str]) -> str:
    # Leases of the cases are small numbers that the cases choose; any other ID belongs to a member.
    return found[2] if abs(int(found[2])) < 10**9 or found[1] == "lease" else "*"
