"""The messages have etcd's names and numbers, survive a round trip, and are what the .proto files say.

FACTS was produced from the .proto files of etcd v3.7.1 by listing their descriptors as `facts` lists
ours: of a message "number [repeated] type name (oneof)", of an enum "number name", of an RPC "request ->
response".
"""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor

from etcd_server.api.proto import (
    auth_pb2,
    command_pb2,
    election_pb2,
    health_pb2,
    kv_pb2,
    lock_pb2,
    rpc_pb2,
)

ROOT = Path(__file__).resolve().parents[3]
PROTO = ROOT / "etcd_server" / "api" / "proto"

FACTS = """\
authpb.Permission.Type: 0 READ, 1 WRITE, 2 READWRITE
authpb.Permission: 1 authpb.Permission.Type permType, 2 bytes key, 3 bytes range_end
authpb.Role: 1 bytes name, 2 repeated authpb.Permission keyPermission
authpb.User: 1 bytes name, 2 bytes password, 3 repeated string roles, 4 authpb.UserAddOptions options
authpb.UserAddOptions: 1 bool no_password
etcdserverpb.AlarmMember: 1 uint64 memberID, 2 etcdserverpb.AlarmType alarm
etcdserverpb.AlarmRequest.AlarmAction: 0 GET, 1 ACTIVATE, 2 DEACTIVATE
etcdserverpb.AlarmRequest: 1 etcdserverpb.AlarmRequest.AlarmAction action, 2 uint64 memberID, 3
    etcdserverpb.AlarmType alarm
etcdserverpb.AlarmResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated etcdserverpb.AlarmMember
    alarms
etcdserverpb.AlarmType: 0 NONE, 1 NOSPACE, 2 CORRUPT
etcdserverpb.Auth/AuthDisable: etcdserverpb.AuthDisableRequest -> etcdserverpb.AuthDisableResponse
etcdserverpb.Auth/AuthEnable: etcdserverpb.AuthEnableRequest -> etcdserverpb.AuthEnableResponse
etcdserverpb.Auth/AuthStatus: etcdserverpb.AuthStatusRequest -> etcdserverpb.AuthStatusResponse
etcdserverpb.Auth/Authenticate: etcdserverpb.AuthenticateRequest -> etcdserverpb.AuthenticateResponse
etcdserverpb.Auth/RoleAdd: etcdserverpb.AuthRoleAddRequest -> etcdserverpb.AuthRoleAddResponse
etcdserverpb.Auth/RoleDelete: etcdserverpb.AuthRoleDeleteRequest -> etcdserverpb.AuthRoleDeleteResponse
etcdserverpb.Auth/RoleGet: etcdserverpb.AuthRoleGetRequest -> etcdserverpb.AuthRoleGetResponse
etcdserverpb.Auth/RoleGrantPermission: etcdserverpb.AuthRoleGrantPermissionRequest ->
    etcdserverpb.AuthRoleGrantPermissionResponse
etcdserverpb.Auth/RoleList: etcdserverpb.AuthRoleListRequest -> etcdserverpb.AuthRoleListResponse
etcdserverpb.Auth/RoleRevokePermission: etcdserverpb.AuthRoleRevokePermissionRequest ->
    etcdserverpb.AuthRoleRevokePermissionResponse
etcdserverpb.Auth/UserAdd: etcdserverpb.AuthUserAddRequest -> etcdserverpb.AuthUserAddResponse
etcdserverpb.Auth/UserChangePassword: etcdserverpb.AuthUserChangePasswordRequest ->
    etcdserverpb.AuthUserChangePasswordResponse
etcdserverpb.Auth/UserDelete: etcdserverpb.AuthUserDeleteRequest -> etcdserverpb.AuthUserDeleteResponse
etcdserverpb.Auth/UserGet: etcdserverpb.AuthUserGetRequest -> etcdserverpb.AuthUserGetResponse
etcdserverpb.Auth/UserGrantRole: etcdserverpb.AuthUserGrantRoleRequest ->
    etcdserverpb.AuthUserGrantRoleResponse
etcdserverpb.Auth/UserList: etcdserverpb.AuthUserListRequest -> etcdserverpb.AuthUserListResponse
etcdserverpb.Auth/UserRevokeRole: etcdserverpb.AuthUserRevokeRoleRequest ->
    etcdserverpb.AuthUserRevokeRoleResponse
etcdserverpb.AuthDisableRequest:
etcdserverpb.AuthDisableResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthEnableRequest:
etcdserverpb.AuthEnableResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthRoleAddRequest: 1 string name
etcdserverpb.AuthRoleAddResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthRoleDeleteRequest: 1 string role
etcdserverpb.AuthRoleDeleteResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthRoleGetRequest: 1 string role
etcdserverpb.AuthRoleGetResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated authpb.Permission
    perm
etcdserverpb.AuthRoleGrantPermissionRequest: 1 string name, 2 authpb.Permission perm
etcdserverpb.AuthRoleGrantPermissionResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthRoleListRequest:
etcdserverpb.AuthRoleListResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated string roles
etcdserverpb.AuthRoleRevokePermissionRequest: 1 string role, 2 bytes key, 3 bytes range_end
etcdserverpb.AuthRoleRevokePermissionResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthStatusRequest:
etcdserverpb.AuthStatusResponse: 1 etcdserverpb.ResponseHeader header, 2 bool enabled, 3 uint64
    authRevision
etcdserverpb.AuthUserAddRequest: 1 string name, 2 string password, 3 authpb.UserAddOptions options, 4
    string hashedPassword
etcdserverpb.AuthUserAddResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthUserChangePasswordRequest: 1 string name, 2 string password, 3 string hashedPassword
etcdserverpb.AuthUserChangePasswordResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthUserDeleteRequest: 1 string name
etcdserverpb.AuthUserDeleteResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthUserGetRequest: 1 string name
etcdserverpb.AuthUserGetResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated string roles
etcdserverpb.AuthUserGrantRoleRequest: 1 string user, 2 string role
etcdserverpb.AuthUserGrantRoleResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthUserListRequest:
etcdserverpb.AuthUserListResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated string users
etcdserverpb.AuthUserRevokeRoleRequest: 1 string name, 2 string role
etcdserverpb.AuthUserRevokeRoleResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.AuthenticateRequest: 1 string name, 2 string password
etcdserverpb.AuthenticateResponse: 1 etcdserverpb.ResponseHeader header, 2 string token
etcdserverpb.Cluster/MemberAdd: etcdserverpb.MemberAddRequest -> etcdserverpb.MemberAddResponse
etcdserverpb.Cluster/MemberList: etcdserverpb.MemberListRequest -> etcdserverpb.MemberListResponse
etcdserverpb.Cluster/MemberPromote: etcdserverpb.MemberPromoteRequest ->
    etcdserverpb.MemberPromoteResponse
etcdserverpb.Cluster/MemberRemove: etcdserverpb.MemberRemoveRequest -> etcdserverpb.MemberRemoveResponse
etcdserverpb.Cluster/MemberUpdate: etcdserverpb.MemberUpdateRequest -> etcdserverpb.MemberUpdateResponse
etcdserverpb.CompactionRequest: 1 int64 revision, 2 bool physical
etcdserverpb.CompactionResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.Compare.CompareResult: 0 EQUAL, 1 GREATER, 2 LESS, 3 NOT_EQUAL
etcdserverpb.Compare.CompareTarget: 0 VERSION, 1 CREATE, 2 MOD, 3 VALUE, 4 LEASE
etcdserverpb.Compare: 1 etcdserverpb.Compare.CompareResult result, 2 etcdserverpb.Compare.CompareTarget
    target, 3 bytes key, 4 int64 version (target_union), 5 int64 create_revision (target_union), 6 int64
    mod_revision (target_union), 7 bytes value (target_union), 8 int64 lease (target_union), 64 bytes
    range_end
etcdserverpb.DefragmentRequest:
etcdserverpb.DefragmentResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.DeleteRangeRequest: 1 bytes key, 2 bytes range_end, 3 bool prev_kv
etcdserverpb.DeleteRangeResponse: 1 etcdserverpb.ResponseHeader header, 2 int64 deleted, 3 repeated
    mvccpb.KeyValue prev_kvs
etcdserverpb.DowngradeInfo: 1 bool enabled, 2 string targetVersion
etcdserverpb.DowngradeRequest.DowngradeAction: 0 VALIDATE, 1 ENABLE, 2 CANCEL
etcdserverpb.DowngradeRequest: 1 etcdserverpb.DowngradeRequest.DowngradeAction action, 2 string version
etcdserverpb.DowngradeResponse: 1 etcdserverpb.ResponseHeader header, 2 string version
etcdserverpb.DowngradeVersionTestRequest: 1 string ver
etcdserverpb.HashKVRequest: 1 int64 revision
etcdserverpb.HashKVResponse: 1 etcdserverpb.ResponseHeader header, 2 uint32 hash, 3 int64
    compact_revision, 4 int64 hash_revision
etcdserverpb.HashRequest:
etcdserverpb.HashResponse: 1 etcdserverpb.ResponseHeader header, 2 uint32 hash
etcdserverpb.KV/Compact: etcdserverpb.CompactionRequest -> etcdserverpb.CompactionResponse
etcdserverpb.KV/DeleteRange: etcdserverpb.DeleteRangeRequest -> etcdserverpb.DeleteRangeResponse
etcdserverpb.KV/Put: etcdserverpb.PutRequest -> etcdserverpb.PutResponse
etcdserverpb.KV/Range: etcdserverpb.RangeRequest -> etcdserverpb.RangeResponse
etcdserverpb.KV/RangeStream: etcdserverpb.RangeRequest -> stream etcdserverpb.RangeStreamResponse
etcdserverpb.KV/Txn: etcdserverpb.TxnRequest -> etcdserverpb.TxnResponse
etcdserverpb.Lease/LeaseGrant: etcdserverpb.LeaseGrantRequest -> etcdserverpb.LeaseGrantResponse
etcdserverpb.Lease/LeaseKeepAlive: stream etcdserverpb.LeaseKeepAliveRequest -> stream
    etcdserverpb.LeaseKeepAliveResponse
etcdserverpb.Lease/LeaseLeases: etcdserverpb.LeaseLeasesRequest -> etcdserverpb.LeaseLeasesResponse
etcdserverpb.Lease/LeaseRevoke: etcdserverpb.LeaseRevokeRequest -> etcdserverpb.LeaseRevokeResponse
etcdserverpb.Lease/LeaseTimeToLive: etcdserverpb.LeaseTimeToLiveRequest ->
    etcdserverpb.LeaseTimeToLiveResponse
etcdserverpb.LeaseCheckpoint: 1 int64 ID, 2 int64 remaining_TTL
etcdserverpb.LeaseCheckpointRequest: 1 repeated etcdserverpb.LeaseCheckpoint checkpoints
etcdserverpb.LeaseCheckpointResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.LeaseGrantRequest: 1 int64 TTL, 2 int64 ID
etcdserverpb.LeaseGrantResponse: 1 etcdserverpb.ResponseHeader header, 2 int64 ID, 3 int64 TTL, 4 string
    error
etcdserverpb.LeaseKeepAliveRequest: 1 int64 ID
etcdserverpb.LeaseKeepAliveResponse: 1 etcdserverpb.ResponseHeader header, 2 int64 ID, 3 int64 TTL
etcdserverpb.LeaseLeasesRequest:
etcdserverpb.LeaseLeasesResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated
    etcdserverpb.LeaseStatus leases
etcdserverpb.LeaseRevokeRequest: 1 int64 ID
etcdserverpb.LeaseRevokeResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.LeaseStatus: 1 int64 ID
etcdserverpb.LeaseTimeToLiveRequest: 1 int64 ID, 2 bool keys
etcdserverpb.LeaseTimeToLiveResponse: 1 etcdserverpb.ResponseHeader header, 2 int64 ID, 3 int64 TTL, 4
    int64 grantedTTL, 5 repeated bytes keys
etcdserverpb.Maintenance/Alarm: etcdserverpb.AlarmRequest -> etcdserverpb.AlarmResponse
etcdserverpb.Maintenance/Defragment: etcdserverpb.DefragmentRequest -> etcdserverpb.DefragmentResponse
etcdserverpb.Maintenance/Downgrade: etcdserverpb.DowngradeRequest -> etcdserverpb.DowngradeResponse
etcdserverpb.Maintenance/Hash: etcdserverpb.HashRequest -> etcdserverpb.HashResponse
etcdserverpb.Maintenance/HashKV: etcdserverpb.HashKVRequest -> etcdserverpb.HashKVResponse
etcdserverpb.Maintenance/MoveLeader: etcdserverpb.MoveLeaderRequest -> etcdserverpb.MoveLeaderResponse
etcdserverpb.Maintenance/Snapshot: etcdserverpb.SnapshotRequest -> stream etcdserverpb.SnapshotResponse
etcdserverpb.Maintenance/Status: etcdserverpb.StatusRequest -> etcdserverpb.StatusResponse
etcdserverpb.Member: 1 uint64 ID, 2 string name, 3 repeated string peerURLs, 4 repeated string
    clientURLs, 5 bool isLearner
etcdserverpb.MemberAddRequest: 1 repeated string peerURLs, 2 bool isLearner
etcdserverpb.MemberAddResponse: 1 etcdserverpb.ResponseHeader header, 2 etcdserverpb.Member member, 3
    repeated etcdserverpb.Member members
etcdserverpb.MemberListRequest: 1 bool linearizable
etcdserverpb.MemberListResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated etcdserverpb.Member
    members
etcdserverpb.MemberPromoteRequest: 1 uint64 ID
etcdserverpb.MemberPromoteResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated etcdserverpb.Member
    members
etcdserverpb.MemberRemoveRequest: 1 uint64 ID
etcdserverpb.MemberRemoveResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated etcdserverpb.Member
    members
etcdserverpb.MemberUpdateRequest: 1 uint64 ID, 2 repeated string peerURLs
etcdserverpb.MemberUpdateResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated etcdserverpb.Member
    members
etcdserverpb.MoveLeaderRequest: 1 uint64 targetID
etcdserverpb.MoveLeaderResponse: 1 etcdserverpb.ResponseHeader header
etcdserverpb.PutRequest: 1 bytes key, 2 bytes value, 3 int64 lease, 4 bool prev_kv, 5 bool ignore_value,
    6 bool ignore_lease
etcdserverpb.PutResponse: 1 etcdserverpb.ResponseHeader header, 2 mvccpb.KeyValue prev_kv
etcdserverpb.RangeRequest.SortOrder: 0 NONE, 1 ASCEND, 2 DESCEND
etcdserverpb.RangeRequest.SortTarget: 0 KEY, 1 VERSION, 2 CREATE, 3 MOD, 4 VALUE
etcdserverpb.RangeRequest: 1 bytes key, 2 bytes range_end, 3 int64 limit, 4 int64 revision, 5
    etcdserverpb.RangeRequest.SortOrder sort_order, 6 etcdserverpb.RangeRequest.SortTarget sort_target,
    7 bool serializable, 8 bool keys_only, 9 bool count_only, 10 int64 min_mod_revision, 11 int64
    max_mod_revision, 12 int64 min_create_revision, 13 int64 max_create_revision
etcdserverpb.RangeResponse: 1 etcdserverpb.ResponseHeader header, 2 repeated mvccpb.KeyValue kvs, 3 bool
    more, 4 int64 count
etcdserverpb.RangeStreamResponse: 1 etcdserverpb.RangeResponse range_response
etcdserverpb.RequestOp: 1 etcdserverpb.RangeRequest request_range (request), 2 etcdserverpb.PutRequest
    request_put (request), 3 etcdserverpb.DeleteRangeRequest request_delete_range (request), 4
    etcdserverpb.TxnRequest request_txn (request)
etcdserverpb.ResponseHeader: 1 uint64 cluster_id, 2 uint64 member_id, 3 int64 revision, 4 uint64
    raft_term
etcdserverpb.ResponseOp: 1 etcdserverpb.RangeResponse response_range (response), 2
    etcdserverpb.PutResponse response_put (response), 3 etcdserverpb.DeleteRangeResponse
    response_delete_range (response), 4 etcdserverpb.TxnResponse response_txn (response)
etcdserverpb.SnapshotRequest:
etcdserverpb.SnapshotResponse: 1 etcdserverpb.ResponseHeader header, 2 uint64 remaining_bytes, 3 bytes
    blob, 4 string version
etcdserverpb.StatusRequest:
etcdserverpb.StatusResponse: 1 etcdserverpb.ResponseHeader header, 2 string version, 3 int64 dbSize, 4
    uint64 leader, 5 uint64 raftIndex, 6 uint64 raftTerm, 7 uint64 raftAppliedIndex, 8 repeated string
    errors, 9 int64 dbSizeInUse, 10 bool isLearner, 11 string storageVersion, 12 int64 dbSizeQuota, 13
    etcdserverpb.DowngradeInfo downgradeInfo
etcdserverpb.TxnRequest: 1 repeated etcdserverpb.Compare compare, 2 repeated etcdserverpb.RequestOp
    success, 3 repeated etcdserverpb.RequestOp failure
etcdserverpb.TxnResponse: 1 etcdserverpb.ResponseHeader header, 2 bool succeeded, 3 repeated
    etcdserverpb.ResponseOp responses
etcdserverpb.Watch/Watch: stream etcdserverpb.WatchRequest -> stream etcdserverpb.WatchResponse
etcdserverpb.WatchCancelRequest: 1 int64 watch_id
etcdserverpb.WatchCreateRequest.FilterType: 0 NOPUT, 1 NODELETE
etcdserverpb.WatchCreateRequest: 1 bytes key, 2 bytes range_end, 3 int64 start_revision, 4 bool
    progress_notify, 5 repeated etcdserverpb.WatchCreateRequest.FilterType filters, 6 bool prev_kv, 7
    int64 watch_id, 8 bool fragment
etcdserverpb.WatchProgressRequest:
etcdserverpb.WatchRequest: 1 etcdserverpb.WatchCreateRequest create_request (request_union), 2
    etcdserverpb.WatchCancelRequest cancel_request (request_union), 3 etcdserverpb.WatchProgressRequest
    progress_request (request_union)
etcdserverpb.WatchResponse: 1 etcdserverpb.ResponseHeader header, 2 int64 watch_id, 3 bool created, 4
    bool canceled, 5 int64 compact_revision, 6 string cancel_reason, 7 bool fragment, 11 repeated
    mvccpb.Event events
mvccpb.Event.EventType: 0 PUT, 1 DELETE
mvccpb.Event: 1 mvccpb.Event.EventType type, 2 mvccpb.KeyValue kv, 3 mvccpb.KeyValue prev_kv
mvccpb.KeyValue: 1 bytes key, 2 int64 create_revision, 3 int64 mod_revision, 4 int64 version, 5 bytes
    value, 6 int64 lease
v3electionpb.CampaignRequest: 1 bytes name, 2 int64 lease, 3 bytes value
v3electionpb.CampaignResponse: 1 etcdserverpb.ResponseHeader header, 2 v3electionpb.LeaderKey leader
v3electionpb.Election/Campaign: v3electionpb.CampaignRequest -> v3electionpb.CampaignResponse
v3electionpb.Election/Leader: v3electionpb.LeaderRequest -> v3electionpb.LeaderResponse
v3electionpb.Election/Observe: v3electionpb.LeaderRequest -> stream v3electionpb.LeaderResponse
v3electionpb.Election/Proclaim: v3electionpb.ProclaimRequest -> v3electionpb.ProclaimResponse
v3electionpb.Election/Resign: v3electionpb.ResignRequest -> v3electionpb.ResignResponse
v3electionpb.LeaderKey: 1 bytes name, 2 bytes key, 3 int64 rev, 4 int64 lease
v3electionpb.LeaderRequest: 1 bytes name
v3electionpb.LeaderResponse: 1 etcdserverpb.ResponseHeader header, 2 mvccpb.KeyValue kv
v3electionpb.ProclaimRequest: 1 v3electionpb.LeaderKey leader, 2 bytes value
v3electionpb.ProclaimResponse: 1 etcdserverpb.ResponseHeader header
v3electionpb.ResignRequest: 1 v3electionpb.LeaderKey leader
v3electionpb.ResignResponse: 1 etcdserverpb.ResponseHeader header
v3lockpb.Lock/Lock: v3lockpb.LockRequest -> v3lockpb.LockResponse
v3lockpb.Lock/Unlock: v3lockpb.UnlockRequest -> v3lockpb.UnlockResponse
v3lockpb.LockRequest: 1 bytes name, 2 int64 lease
v3lockpb.LockResponse: 1 etcdserverpb.ResponseHeader header, 2 bytes key
v3lockpb.UnlockRequest: 1 bytes key
v3lockpb.UnlockResponse: 1 etcdserverpb.ResponseHeader header
"""

TYPES = {
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
}


def described(field: FieldDescriptor) -> str:
    kind = field.message_type or field.enum_type
    words = [str(field.number), *(["repeated"] if field.is_repeated else [])]
    words += [kind.full_name if kind else TYPES[field.type], field.name]
    if field.containing_oneof:
        words.append(f"({field.containing_oneof.name})")
    return " ".join(words)


def facts(file: FileDescriptor) -> list[str]:
    lines = []

    def message(descriptor: Descriptor) -> None:
        fields = sorted(descriptor.fields, key=lambda field: field.number)
        lines.append(f"{descriptor.full_name}: {', '.join(map(described, fields))}")
        for inner in descriptor.nested_types:
            message(inner)
        for inner_enum in descriptor.enum_types:
            enum(inner_enum)

    def enum(descriptor: EnumDescriptor) -> None:
        values = ", ".join(f"{value.number} {value.name}" for value in descriptor.values)
        lines.append(f"{descriptor.full_name}: {values}")

    for top in file.message_types_by_name.values():
        message(top)
    for top_enum in file.enum_types_by_name.values():
        enum(top_enum)
    for service in file.services_by_name.values():
        for method in service.methods:
            request = ("stream " if method.client_streaming else "") + method.input_type.full_name
            response = ("stream " if method.server_streaming else "") + method.output_type.full_name
            lines.append(f"{service.full_name}/{method.name}: {request} -> {response}")
    return lines


def test_names_and_numbers_are_those_of_etcd() -> None:
    modules = (rpc_pb2, kv_pb2, auth_pb2, lock_pb2, election_pb2)
    ours = sorted(line.strip() for module in modules for line in facts(module.DESCRIPTOR))
    theirs = [line.strip() for line in FACTS.replace("\n    ", " ").splitlines()]
    assert ours == theirs


def test_the_raft_log_keeps_its_numbers() -> None:
    # Entries on disk are read by later versions: adding lines here is fine, changing one is not.
    assert facts(command_pb2.DESCRIPTOR) == [
        "etcdpy.Command: 1 etcdserverpb.PutRequest put (kind),"
        " 2 etcdserverpb.DeleteRangeRequest delete_range (kind), 3 etcdserverpb.TxnRequest txn (kind),"
        " 4 etcdserverpb.CompactionRequest compaction (kind),"
        " 5 etcdserverpb.LeaseGrantRequest lease_grant (kind),"
        " 6 etcdserverpb.LeaseRevokeRequest lease_revoke (kind), 7 etcdserverpb.AlarmRequest alarm (kind),"
        " 8 etcdpy.MemberAttributes member_attributes (kind), 9 etcdpy.ClusterVersion cluster_version (kind)",
        "etcdpy.Batch: 1 uint64 proposal_id, 2 repeated etcdpy.Command commands",
        "etcdpy.MemberAttributes: 1 uint64 member_id, 2 string name, 3 repeated string client_urls",
        "etcdpy.ClusterVersion: 1 string version",
        "etcdpy.ConfChange: 1 uint64 proposal_id, 2 etcdpy.ConfChange.Kind kind,"
        " 3 etcdserverpb.Member member, 4 uint32 max_learners (_max_learners)",
        "etcdpy.ConfChange.Kind: 0 ADD_VOTER, 1 ADD_LEARNER, 2 REMOVE, 3 UPDATE, 4 PROMOTE",
    ]


def test_a_batch_round_trips() -> None:
    put = rpc_pb2.PutRequest(key=b"a\x00", value=b"\xff", lease=-1)
    batch = command_pb2.Batch(
        proposal_id=2**64 - 1,
        commands=[command_pb2.Command(put=put), command_pb2.Command(txn=rpc_pb2.TxnRequest())],
    )
    again = command_pb2.Batch.FromString(batch.SerializeToString())
    assert again == batch
    assert [command.WhichOneof("kind") for command in again.commands] == ["put", "txn"]


def test_other_stubs_of_the_same_packages_can_be_imported_beside_ours() -> None:
    theirs = pytest.importorskip("grpc_health.v1.health_pb2")

    ours = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    assert theirs.HealthCheckResponse.FromString(ours.SerializeToString()).status == 1
    assert theirs.HealthCheckResponse.DESCRIPTOR.file.pool is not ours.DESCRIPTOR.file.pool


def test_health_is_the_protocol_of_grpc() -> None:
    theirs = pytest.importorskip("grpc_health.v1.health_pb2")

    assert sorted(facts(health_pb2.DESCRIPTOR)) == sorted(facts(theirs.DESCRIPTOR))


def test_generating_again_gives_the_committed_bytes(tmp_path: Path) -> None:
    first_line = (PROTO / "rpc_pb2.py").read_text().splitlines()[0]
    try:
        installed = f"grpcio-tools {version('grpcio-tools')} and mypy-protobuf {version('mypy-protobuf')}."
    except PackageNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed")
    if installed not in first_line:
        pytest.skip(f"installed: {installed} The committed files say: {first_line}")
    command = [sys.executable, str(ROOT / "tools" / "generate_messages.py"), "--output", str(tmp_path)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    committed = {path.name: path.read_bytes() for path in PROTO.glob("*_pb2.py*")}
    generated = {path.name: path.read_bytes() for path in tmp_path.rglob("*_pb2.py*")}
    assert generated == committed
