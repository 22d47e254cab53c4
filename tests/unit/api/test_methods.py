"""The table of RPCs agrees with the descriptors and with the paths of etcd's JSON gateway."""

from etcd_server.api.methods import _GATEWAY, GATEWAY_PATHS, METHODS, Kind
from etcd_server.api.proto import health_pb2, rpc_pb2


def test_an_entry() -> None:
    revoke = METHODS["/etcdserverpb.Lease/LeaseRevoke"]
    assert (revoke.service, revoke.method) == ("etcdserverpb.Lease", "LeaseRevoke")
    assert revoke.request is rpc_pb2.LeaseRevokeRequest
    assert revoke.response is rpc_pb2.LeaseRevokeResponse
    assert revoke.gateway_paths == ("/v3/lease/revoke", "/v3/kv/lease/revoke")


def test_what_streams() -> None:
    streams = {path: rpc.kind for path, rpc in METHODS.items() if rpc.kind is not Kind.UNARY}
    assert streams == {
        "/etcdserverpb.KV/RangeStream": Kind.SERVER_STREAM,
        "/etcdserverpb.Watch/Watch": Kind.BIDI,
        "/etcdserverpb.Lease/LeaseKeepAlive": Kind.BIDI,
        "/etcdserverpb.Maintenance/Snapshot": Kind.SERVER_STREAM,
        "/v3electionpb.Election/Observe": Kind.SERVER_STREAM,
        "/grpc.health.v1.Health/Watch": Kind.SERVER_STREAM,
    }


def test_every_name_in_the_gateway_table_is_an_rpc() -> None:
    named = {f"/{service}/{method}" for service, (_, ends) in _GATEWAY.items() for method in ends}
    assert named <= set(METHODS)


def test_only_three_kinds_of_rpc_have_no_gateway_path() -> None:
    without = {path for path, rpc in METHODS.items() if not rpc.gateway_paths}
    health = {f"/{health_pb2.DESCRIPTOR.package}.Health/{name}" for name in ("Check", "List", "Watch")}
    assert without == {"/etcdserverpb.KV/RangeStream", *health}


def test_no_gateway_path_names_two_rpcs() -> None:
    assert len(GATEWAY_PATHS) == sum(len(rpc.gateway_paths) for rpc in METHODS.values())


def test_the_twins_below_kv() -> None:
    twins = {path for path in GATEWAY_PATHS if path.startswith("/v3/kv/lease/")}
    assert twins == {"/v3/kv/lease/revoke", "/v3/kv/lease/timetolive", "/v3/kv/lease/leases"}
