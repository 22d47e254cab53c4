"""Every RPC of the client API in one table, for the wire adapter, the JSON gateway, the metrics and the docs.

What an RPC is called, takes, gives and whether it streams comes from the descriptors of the .proto files.
The only fact added here is where the JSON gateway finds it (the annotations of the .proto files of etcd
v3.7): all of them POST, and none for RangeStream and the gRPC health service.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from etcd_server.api.proto import election_pb2, health_pb2, lock_pb2, rpc_pb2


class Kind(Enum):
    """Which sides of a call are streams; the value is the `grpc_type` label of the metrics."""

    UNARY = "unary"
    SERVER_STREAM = "server_stream"
    BIDI = "bidi_stream"


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC. `path` is the gRPC path, "/etcdserverpb.KV/Range"; `service` is "etcdserverpb.KV", `method` is
    "Range". `gateway_paths` are the paths under which the JSON gateway has it, the one to show first."""

    path: str
    service: str
    method: str
    request: type[Message]
    response: type[Message]
    kind: Kind
    gateway_paths: tuple[str, ...]


# Prefixes are spelt out once for each service; a service's methods follow with the rest of their paths.
_GATEWAY: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "etcdserverpb.KV": (
        ("/v3/kv/",),
        {
            "Range": "range",
            "Put": "put",
            "DeleteRange": "deleterange",
            "Txn": "txn",
            "Compact": "compaction",
        },
    ),
    "etcdserverpb.Watch": (("/v3/",), {"Watch": "watch"}),
    "etcdserverpb.Lease": (
        ("/v3/lease/", "/v3/kv/lease/"),
        {
            "LeaseGrant": "grant",
            "LeaseRevoke": "revoke",
            "LeaseKeepAlive": "keepalive",
            "LeaseTimeToLive": "timetolive",
            "LeaseLeases": "leases",
        },
    ),
    "etcdserverpb.Cluster": (
        ("/v3/cluster/member/",),
        {
            "MemberAdd": "add",
            "MemberRemove": "remove",
            "MemberUpdate": "update",
            "MemberList": "list",
            "MemberPromote": "promote",
        },
    ),
    "etcdserverpb.Maintenance": (
        ("/v3/maintenance/",),
        {
            "Alarm": "alarm",
            "Status": "status",
            "Defragment": "defragment",
            "Hash": "hash",
            "HashKV": "hashkv",
            "Snapshot": "snapshot",
            "MoveLeader": "transfer-leadership",
            "Downgrade": "downgrade",
        },
    ),
    "etcdserverpb.Auth": (
        ("/v3/auth/",),
        {
            "AuthEnable": "enable",
            "AuthDisable": "disable",
            "AuthStatus": "status",
            "Authenticate": "authenticate",
            "UserAdd": "user/add",
            "UserGet": "user/get",
            "UserList": "user/list",
            "UserDelete": "user/delete",
            "UserChangePassword": "user/changepw",
            "UserGrantRole": "user/grant",
            "UserRevokeRole": "user/revoke",
            "RoleAdd": "role/add",
            "RoleGet": "role/get",
            "RoleList": "role/list",
            "RoleDelete": "role/delete",
            "RoleGrantPermission": "role/grant",
            "RoleRevokePermission": "role/revoke",
        },
    ),
    "v3lockpb.Lock": (("/v3/lock/",), {"Lock": "lock", "Unlock": "unlock"}),
    "v3electionpb.Election": (
        ("/v3/election/",),
        {
            "Campaign": "campaign",
            "Proclaim": "proclaim",
            "Leader": "leader",
            "Observe": "observe",
            "Resign": "resign",
        },
    ),
}
# etcd gives these two no second path under /v3/kv/lease/.
_WITHOUT_TWIN = frozenset({"LeaseGrant", "LeaseKeepAlive"})


def _gateway_paths(service: str, method: str) -> tuple[str, ...]:
    prefixes, ends = _GATEWAY.get(service, ((), {}))
    if method not in ends:
        return ()
    if method in _WITHOUT_TWIN:
        prefixes = prefixes[:1]
    return tuple(prefix + ends[method] for prefix in prefixes)


def _kind(method: MethodDescriptor) -> Kind:
    if method.client_streaming:
        assert method.server_streaming, (
            f"{method.full_name}: a stream of requests with one answer has no kind"
        )
        return Kind.BIDI
    return Kind.SERVER_STREAM if method.server_streaming else Kind.UNARY


def _describe() -> Iterator[Rpc]:
    for module in (rpc_pb2, lock_pb2, election_pb2, health_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield Rpc(
                    path=f"/{service.full_name}/{method.name}",
                    service=service.full_name,
                    method=method.name,
                    request=GetMessageClass(method.input_type),
                    response=GetMessageClass(method.output_type),
                    kind=_kind(method),
                    gateway_paths=_gateway_paths(service.full_name, method.name),
                )


METHODS: Mapping[str, Rpc] = MappingProxyType({rpc.path: rpc for rpc in _describe()})
"""gRPC path -> RPC, in the order of the .proto files."""

GATEWAY_PATHS: Mapping[str, Rpc] = MappingProxyType(
    {path: rpc for rpc in METHODS.values() for path in rpc.gateway_paths}
)
"""Path of the JSON gateway ("/v3/kv/range") -> RPC."""
