"""The values that the library takes and gives back: frozen, bytes for keys and values, ints for revisions.

Knows the shapes of the JSON gateway's answers (etcd's rpc.proto in proto3 JSON: int64 as strings, bytes
in base64, zero values left out) and nothing of how they travel.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]
BytesLike: TypeAlias = bytes | str
"""A key or value: bytes, or str, which is encoded as UTF-8 (with surrogateescape)."""


def to_bytes(value: BytesLike) -> bytes:
    """`value` as bytes; str is encoded as UTF-8. TypeError for anything else."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"expected bytes or str, got {type(value).__name__}")


def base64_text(value: BytesLike) -> str:
    """A key or value as the gateway wants it."""
    return b64encode(to_bytes(value)).decode("ascii")


def prefix_range_end(prefix: BytesLike) -> bytes:
    """The first key after all keys that begin with `prefix`; b"\\0" (no end) when there is none.

    The range [prefix, prefix_range_end(prefix)) is what etcd calls a prefix (clientv3 GetPrefixRangeEnd).
    """
    head = to_bytes(prefix).rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b"\0"


def _bytes(text: str) -> bytes:
    return b64decode(text, validate=True)


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key at one revision (mvccpb.KeyValue). `version` counts puts since creation; `lease` 0 = none."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> KeyValue:
        return cls(
            key=_bytes(document.get("key", "")),
            value=_bytes(document.get("value", "")),
            create_revision=int(document.get("create_revision", 0)),
            mod_revision=int(document.get("mod_revision", 0)),
            version=int(document.get("version", 0)),
            lease=int(document.get("lease", 0)),
        )


@dataclass(frozen=True, slots=True)
class Header:
    """Who answered and at which store revision (etcdserverpb.ResponseHeader)."""

    cluster_id: int
    member_id: int
    revision: int
    raft_term: int

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Header:
        header = document.get("header", {})
        return cls(
            cluster_id=int(header.get("cluster_id", 0)),
            member_id=int(header.get("member_id", 0)),
            revision=int(header.get("revision", 0)),
            raft_term=int(header.get("raft_term", 0)),
        )


@dataclass(frozen=True, slots=True)
class RangeResult:
    """The keys of a range.

    `revision` is the store's current revision when the read was served (not the one that was asked for).
    `count` is the number of keys in the range regardless of `limit`; `more` says that `limit` cut the list.
    """

    revision: int
    kvs: tuple[KeyValue, ...]
    more: bool
    count: int
    cluster_id: int

    @classmethod
    def from_json(cls, document: Json) -> RangeResult:
        header = Header.from_json(document)
        return cls(
            revision=header.revision,
            kvs=tuple(KeyValue.from_json(kv) for kv in document.get("kvs", ())),
            more=bool(document.get("more", False)),
            count=int(document.get("count", 0)),
            cluster_id=header.cluster_id,
        )


@dataclass(frozen=True, slots=True)
class PutResult:
    """`revision` of the write; `prev_kv` when it was asked for and the key existed."""

    revision: int
    prev_kv: KeyValue | None

    @classmethod
    def from_json(cls, document: Json) -> PutResult:
        previous = document.get("prev_kv")
        return cls(Header.from_json(document).revision, KeyValue.from_json(previous) if previous else None)


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """`deleted` keys; `revision` moves only when there was one; `prev_kvs` when they were asked for."""

    revision: int
    deleted: int
    prev_kvs: tuple[KeyValue, ...]

    @classmethod
    def from_json(cls, document: Json) -> DeleteResult:
        return cls(
            revision=Header.from_json(document).revision,
            deleted=int(document.get("deleted", 0)),
            prev_kvs=tuple(KeyValue.from_json(kv) for kv in document.get("prev_kvs", ())),
        )


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Which branch ran (`succeeded`) and the result of each of its operations, in order.

    Inside a txn the `revision` of an operation's result is the one at which that operation saw the store.
    """

    revision: int
    succeeded: bool
    responses: tuple[OperationResult, ...]

    @classmethod
    def from_json(cls, document: Json) -> TxnResult:
        return cls(
            revision=Header.from_json(document).revision,
            succeeded=bool(document.get("succeeded", False)),
            responses=tuple(_operation_result(response) for response in document.get("responses", ())),
        )


OperationResult: TypeAlias = RangeResult | PutResult | DeleteResult | TxnResult


def _operation_result(response: Json) -> OperationResult:
    if "response_range" in response:
        return RangeResult.from_json(response["response_range"])
    if "response_put" in response:
        return PutResult.from_json(response["response_put"])
    if "response_delete_range" in response:
        return DeleteResult.from_json(response["response_delete_range"])
    return TxnResult.from_json(response["response_txn"])


class EventKind(Enum):
    """What happened to a key."""

    PUT = "PUT"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class Event:
    """One change. For DELETE, `kv` holds only `key` and `mod_revision`. `prev_kv` when it was asked for."""

    kind: EventKind
    kv: KeyValue
    prev_kv: KeyValue | None = None

    @property
    def is_create(self) -> bool:
        """True when the key did not exist before this put."""
        return self.kind is EventKind.PUT and self.kv.create_revision == self.kv.mod_revision

    @classmethod
    def from_json(cls, document: Json) -> Event:
        previous = document.get("prev_kv")
        return cls(
            kind=EventKind(document.get("type", "PUT")),
            kv=KeyValue.from_json(document.get("kv", {})),
            prev_kv=KeyValue.from_json(previous) if previous else None,
        )


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """The events of one or several whole revisions, in order.

    When a batch has been received, every change of the watched range up to and including `revision` has
    been. `events` is empty for a progress notification.
    """

    revision: int
    events: tuple[Event, ...]
    cluster_id: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the cluster, as the cluster knows it."""

    member_id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    is_learner: bool

    @classmethod
    def from_json(cls, document: Json) -> Member:
        return cls(
            member_id=int(document.get("ID", 0)),
            name=document.get("name", ""),
            peer_urls=tuple(document.get("peerURLs", ())),
            client_urls=tuple(document.get("clientURLs", ())),
            is_learner=bool(document.get("isLearner", False)),
        )


@dataclass(frozen=True, slots=True)
class Status:
    """What one member says of itself (Maintenance.Status). `leader` 0 = it knows none."""

    endpoint: str
    member_id: int
    cluster_id: int
    version: str
    db_size_bytes: int
    db_size_in_use_bytes: int
    leader: int
    is_learner: bool
    raft_term: int
    raft_index: int
    raft_applied_index: int
    revision: int
    errors: tuple[str, ...]

    @property
    def is_leader(self) -> bool:
        return self.leader != 0 and self.leader == self.member_id

    @classmethod
    def from_json(cls, endpoint: str, document: Json) -> Status:
        header = Header.from_json(document)
        return cls(
            endpoint=endpoint,
            member_id=header.member_id,
            cluster_id=header.cluster_id,
            version=document.get("version", ""),
            db_size_bytes=int(document.get("dbSize", 0)),
            db_size_in_use_bytes=int(document.get("dbSizeInUse", 0)),
            leader=int(document.get("leader", 0)),
            is_learner=bool(document.get("isLearner", False)),
            raft_term=int(document.get("raftTerm", 0)),
            raft_index=int(document.get("raftIndex", 0)),
            raft_applied_index=int(document.get("raftAppliedIndex", 0)),
            revision=header.revision,
            errors=tuple(document.get("errors", ())),
        )


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """`ttl_s` left (-1: no such lease, or run out), `granted_ttl_s`, and the attached `keys` if asked."""

    lease_id: int
    ttl_s: int
    granted_ttl_s: int
    keys: tuple[bytes, ...]

    @classmethod
    def from_json(cls, document: Json) -> LeaseInfo:
        return cls(
            lease_id=int(document.get("ID", 0)),
            ttl_s=int(document.get("TTL", 0)),
            granted_ttl_s=int(document.get("grantedTTL", 0)),
            keys=tuple(_bytes(key) for key in document.get("keys", ())),
        )
