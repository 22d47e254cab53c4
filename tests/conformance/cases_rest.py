"""Hand-written cases of Lease, Cluster.MemberList, Maintenance.Status and Alarm, and grpc.health."""

from __future__ import annotations

import grpc

from etcd_server.api.proto import health_pb2, rpc_pb2
from tests.conformance.target import Target, delete_op, health_request, put_op, range_op, status_text

LONGEST_TTL_S = 9_000_000_000


def lease_grants(t: Target) -> None:
    t.grant(100, 7)
    t.grant(100, 7)
    t.grant(50, 8)
    t.grant(0, 9)
    t.grant(-5, 10)
    t.grant(1, 11)
    t.grant(2, 12)
    t.grant(3, 13)
    t.grant(LONGEST_TTL_S, 14)
    t.grant(LONGEST_TTL_S + 1, 15)
    t.grant(-(2**63), 16)
    t.grant(2**63 - 1, 17)
    t.grant(100, -3)
    t.grant(100)
    t.put(b"k", b"v", lease=t.last_lease)
    t.time_to_live(t.last_lease, keys=True)
    t.range(b"k")
    t.revoke(t.last_lease)
    t.range(b"k")


def lease_revocations(t: Target) -> None:
    t.revoke(7)
    t.revoke(0)
    t.grant(100, 7)
    t.revoke(7)
    t.revoke(7)
    t.grant(100, 7)
    for key in (b"b", b"a", b"c"):
        t.put(key, b"v", lease=7)
    t.put(b"d", b"v")
    t.delete(b"c")
    t.revoke(7)
    t.range(b"\0", b"\0")
    t.put(b"a", b"v", lease=7)
    t.grant(100, 7)
    t.time_to_live(7, keys=True)
    t.events_since(t.rev(1))


def lease_time_to_live(t: Target) -> None:
    t.time_to_live(7)
    t.time_to_live(0, keys=True)
    t.time_to_live(-1)
    t.grant(1000, 7)
    t.time_to_live(7)
    t.time_to_live(7, keys=True)
    for key in (b"b", b"a", b"\xff", b"c" * 300):
        t.put(key, b"v", lease=7)
    t.time_to_live(7)
    t.time_to_live(7, keys=True)
    t.delete(b"a")
    t.txn(success=[put_op(b"b"), put_op(b"new", lease=7)])
    t.time_to_live(7, keys=True)


def lease_list(t: Target) -> None:
    t.leases()
    t.grant(300, 7)
    t.grant(100, 9)
    t.grant(200, 8)
    t.leases()
    t.revoke(8)
    t.leases()


def lease_keep_alive(t: Target) -> None:
    t.grant(100, 7)
    t.grant(60, 8)
    with t.keep_alive_stream() as stream:
        for lease_id in (7, 8, 9, 0, 7):
            stream.send(rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
            stream.receive(1)
        t.revoke(7)
        stream.send(rpc_pb2.LeaseKeepAliveRequest(ID=7))
        stream.receive(1)
        stream.half_close()
    with t.keep_alive_stream() as stream:
        stream.half_close()


def lease_that_runs_out(t: Target) -> None:
    t.grant(1, 7)
    for key in (b"b", b"a"):
        t.put(key, b"v", lease=7)
    t.put(b"c", b"v")
    with t.watch_stream() as stream:
        stream.create(b"\0", b"\0", prev_kv=True)
        stream.receive(1)
    t.time_to_live(7, keys=True)
    t.range(b"\0", b"\0")
    t.leases()
    with t.keep_alive_stream() as stream:
        stream.send(rpc_pb2.LeaseKeepAliveRequest(ID=7))
        stream.receive(1)


def members_and_status(t: Target) -> None:
    t.call("Cluster/MemberList", rpc_pb2.MemberListRequest())
    t.call("Cluster/MemberList", rpc_pb2.MemberListRequest(linearizable=True))
    t.put(b"k", b"v")
    t.call("Maintenance/Status", rpc_pb2.StatusRequest())


def member_changes_that_are_refused(t: Target) -> None:
    for peer_urls in ([], ["x"], ["http://127.0.0.1"], ["http://127.0.0.1:1/path"]):
        t.call("Cluster/MemberAdd", rpc_pb2.MemberAddRequest(peerURLs=peer_urls))
    own = t.call("Cluster/MemberList", rpc_pb2.MemberListRequest()).members[0]
    for method, request in (
        ("Cluster/MemberAdd", rpc_pb2.MemberAddRequest(peerURLs=own.peerURLs)),
        ("Cluster/MemberRemove", rpc_pb2.MemberRemoveRequest(ID=77)),
        ("Cluster/MemberUpdate", rpc_pb2.MemberUpdateRequest(ID=77, peerURLs=["http://127.0.0.1:1"])),
        ("Cluster/MemberPromote", rpc_pb2.MemberPromoteRequest(ID=77)),
        ("Maintenance/MoveLeader", rpc_pb2.MoveLeaderRequest(targetID=77)),
    ):
        t.call(method, request)
        t.put(b"k", b"v")  # etcd 3.5.1 loses a change that follows another too closely (etcd issue 15528)
    t.call("Cluster/MemberUpdate", rpc_pb2.MemberUpdateRequest(ID=own.ID, peerURLs=own.peerURLs))
    t.put(b"k", b"v")


def hashes(t: Target) -> None:
    """What they are is compared by `test_hashes.py`: they depend on all that the server has been through."""
    t.put(b"k", b"v")
    t.call_raw("Maintenance/Hash", b"")
    t.call_raw("Maintenance/HashKV", b"")
    t.call("Maintenance/HashKV", rpc_pb2.HashKVRequest(revision=t.rev(2)))
    t.compact(t.rev(1))
    t.call("Maintenance/HashKV", rpc_pb2.HashKVRequest(revision=t.rev(0)))


def health(t: Target) -> None:
    t.call("grpc.health.v1.Health/Check", health_request())
    t.call("grpc.health.v1.Health/Check", health_request("no.such.service"))
    for service in ("etcdserverpb.KV", "etcdserverpb.Watch"):
        t.call("grpc.health.v1.Health/Check", health_request(service))
    watching = t.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    for service in ("", "no.such.service"):
        call = watching(health_request(service), timeout=10)
        try:
            answer = t.text(next(call))
        except grpc.RpcError as error:
            answer = status_text(error)
        t.note(f"Health/Watch {service!r}", answer)
        call.cancel()


def _alarm(t: Target, action: int, alarm: int = 0, member_id: int = 0) -> None:
    request = rpc_pb2.AlarmRequest(action=action, alarm=alarm, memberID=member_id)  # type: ignore[arg-type]
    t.call("Maintenance/Alarm", request)


def alarms(t: Target) -> None:
    get, activate, deactivate, none, no_space, corrupt = 0, 1, 2, 0, 1, 2
    _alarm(t, get)
    _alarm(t, get, no_space)
    _alarm(t, deactivate, no_space)
    _alarm(t, activate, none, member_id=77)
    _alarm(t, activate, no_space, member_id=77)
    _alarm(t, get)
    _alarm(t, get, no_space)
    _alarm(t, get, corrupt)
    _alarm(t, activate, no_space, member_id=77)
    _alarm(t, deactivate, no_space, member_id=78)
    _alarm(t, get)
    _alarm(t, deactivate, no_space, member_id=77)
    _alarm(t, get)
    _alarm(t, deactivate, none)
    _alarm(t, get)


def without_space(t: Target) -> None:
    t.grant(100, 7)
    t.put(b"k", b"v", lease=7)
    t.put(b"old", b"v")
    _alarm(t, 1, 1, 77)
    t.put(b"k", b"w")
    t.put(b"k", b"", ignore_value=True)
    t.put(b"", b"w")
    t.put(b"k", b"w", lease=99)
    t.grant(100, 8)
    t.grant(100, 7)
    t.txn(success=[put_op(b"k")])
    t.txn(success=[range_op(b"k")], failure=[put_op(b"k")])
    t.txn(success=[range_op(b"k"), delete_op(b"old")])
    t.txn(success=[range_op(b"k")])
    t.delete(b"nothing")
    t.range(b"k")
    t.time_to_live(7, keys=True)
    with t.keep_alive_stream() as stream:
        stream.send(rpc_pb2.LeaseKeepAliveRequest(ID=7))
        stream.receive(1)
    t.call("Maintenance/Status", rpc_pb2.StatusRequest())
    t.compact(t.rev(3))
    t.revoke(7)
    t.call("Maintenance/Alarm", rpc_pb2.AlarmRequest(action=2, alarm=1, memberID=77))  # type: ignore[arg-type]
    t.put(b"k", b"w")


def corrupt(t: Target) -> None:
    t.grant(100, 7)
    t.put(b"k", b"v")
    _alarm(t, 1, 2, 77)
    t.put(b"k", b"w")
    t.range(b"k")
    t.range(b"k", serializable=True)
    t.delete(b"k")
    t.txn(success=[range_op(b"k")])
    t.txn(success=[put_op(b"k")])
    t.compact(t.rev(1))
    t.grant(100, 8)
    t.revoke(7)
    t.time_to_live(7)
    t.leases()
    with t.keep_alive_stream() as stream:
        stream.send(rpc_pb2.LeaseKeepAliveRequest(ID=7))
        stream.receive(1)
    t.call("Cluster/MemberList", rpc_pb2.MemberListRequest())
    t.call("Maintenance/Status", rpc_pb2.StatusRequest())
    t.call("Maintenance/Alarm", rpc_pb2.AlarmRequest(action=2, alarm=2, memberID=77))  # type: ignore[arg-type]
    t.put(b"k", b"w")


CASES = (
    lease_grants,
    lease_revocations,
    lease_time_to_live,
    lease_list,
    lease_keep_alive,
    lease_that_runs_out,
    members_and_status,
    member_changes_that_are_refused,
    hashes,
    health,
    alarms,
    without_space,
    corrupt,
)
