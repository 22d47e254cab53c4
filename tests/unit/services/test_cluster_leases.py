"""Leases in a cluster: what only the leader's clock knows is asked of the leader, and survives its loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.services.events import STREAM_HALF_CLOSE, STREAM_MESSAGE, STREAM_OPEN, Batch
from tests.cluster import Cluster, ClusterMember

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
GRANT = "/etcdserverpb.Lease/LeaseGrant"
TIME_TO_LIVE = "/etcdserverpb.Lease/LeaseTimeToLive"
LEASES = "/etcdserverpb.Lease/LeaseLeases"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def grant(member: ClusterMember, ttl_s: int, lease_id: int = 0) -> int:
    """The id of a lease with one key, "leased/<id>"."""
    lease = member.call(GRANT, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s))
    member.call(PUT, rpc_pb2.PutRequest(key=b"leased/%d" % lease.ID, lease=lease.ID))
    return int(lease.ID)


def is_there(member: ClusterMember, lease_id: int) -> bool:
    return bool(member.call(RANGE, rpc_pb2.RangeRequest(key=b"leased/%d" % lease_id)).count)


def ttl_s(member: ClusterMember, lease_id: int) -> int:
    return int(member.call(TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id)).TTL)


def keep_alive(member: ClusterMember, stream: int, lease_id: int) -> int:
    """Renew on a stream; the TTL that it is told."""
    member.say(stream, rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
    member.cluster.wait(lambda: stream in member.delivered or stream in member.ended, "a keepalive")
    [answer] = member.heard(stream, KEEP_ALIVE)
    assert (answer.ID, answer.header.member_id) == (lease_id, member.number)
    return int(answer.TTL)


def test_a_lease_is_kept_alive_through_a_follower(cluster: Cluster) -> None:
    member = cluster.followers[0]
    lease_id = grant(member, 3)
    stream = member.open(KEEP_ALIVE)
    for _ in range(5):
        cluster.pass_time(2)
        assert keep_alive(member, stream, lease_id) == 3
    cluster.pass_time(4)
    assert not is_there(member, lease_id)
    assert keep_alive(member, stream, lease_id) == 0


def test_a_follower_says_how_long_a_lease_still_runs(cluster: Cluster) -> None:
    member = cluster.followers[0]
    lease_id = grant(member, 10)
    cluster.pass_time(4)
    answer = member.call(TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=lease_id, keys=True))
    assert (answer.header.member_id, answer.header.cluster_id) == (member.number, 0xC1)
    assert (answer.ID, answer.grantedTTL, list(answer.keys)) == (lease_id, 10, [b"leased/%d" % lease_id])
    assert 4 <= answer.TTL <= 6
    assert ttl_s(member, 99) == -1


def test_a_follower_lists_leases_in_the_leaders_order(cluster: Cluster) -> None:
    for lease_id, ttl in ((1, 30), (2, 10), (3, 20)):
        grant(cluster.leader, ttl, lease_id)
    listed = cluster.followers[0].call(LEASES, rpc_pb2.LeaseLeasesRequest()).leases
    assert [lease.ID for lease in listed] == [2, 3, 1]


def test_a_new_leader_gives_each_lease_its_full_time_again(cluster: Cluster) -> None:
    lease_id = grant(cluster.leader, 5)
    cluster.pass_time(4)
    cluster.leader.crash()
    new = cluster.wait_for_leader()
    assert ttl_s(cluster.followers[0], lease_id) >= 4
    cluster.pass_time(3)
    assert is_there(new, lease_id)
    cluster.pass_time(4)
    assert not is_there(new, lease_id)


def test_a_keepalive_goes_on_when_the_leader_is_lost(cluster: Cluster) -> None:
    member = cluster.followers[0]
    lease_id = grant(member, 5)
    stream = member.open(KEEP_ALIVE)
    cluster.leader.crash()
    assert keep_alive(member, stream, lease_id) == 5
    assert not member.ended


def test_a_keepalive_that_finds_no_leader_in_time_ends_its_stream(cluster: Cluster) -> None:
    member = cluster.followers[0]
    lease_id = grant(member, 60)
    stream = member.open(KEEP_ALIVE)
    cluster.cut(member.number)
    cluster.wait(lambda: not member.engine.core.leader_id, "the loss to be noticed")
    member.say(stream, rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
    cluster.wait(lambda: stream in member.ended, "the end of the stream")
    assert isinstance(member.ended[stream], errors.NoLeader)


def test_the_last_keepalive_of_a_stream_is_answered_before_it_ends(cluster: Cluster) -> None:
    member = cluster.followers[0]
    lease_id = grant(member, 5)
    request = rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)
    member.turn(
        Batch(
            streams=[
                (STREAM_OPEN, 7, KEEP_ALIVE),
                (STREAM_MESSAGE, 7, request),
                (STREAM_HALF_CLOSE, 7, None),
            ]
        )
    )
    assert 7 not in member.ended
    cluster.settle()
    assert [answer.TTL for answer in member.heard(7, KEEP_ALIVE)] == [5]
    assert member.ended == {7: None}


def test_a_leader_that_was_cut_off_revokes_nothing(cluster: Cluster) -> None:
    """What it believes to have run out, the new leader has given more time."""
    old = cluster.leader
    lease_id = grant(old, 3)
    member = cluster.followers[0]
    stream = member.open(KEEP_ALIVE)
    cluster.cut(old.number)
    new = cluster.wait_for_leader(old)
    for _ in range(5):
        assert keep_alive(member, stream, lease_id) == 3
        cluster.pass_time(1)
    cluster.cut()
    cluster.pass_time(1)
    assert keep_alive(member, stream, lease_id) == 3
    assert is_there(new, lease_id) and is_there(old, lease_id)


def test_a_cut_off_leader_answers_no_keepalive(cluster: Cluster) -> None:
    old = cluster.leader
    lease_id = grant(old, 60)
    stream = old.open(KEEP_ALIVE)
    cluster.cut(old.number)
    old.say(stream, rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))
    cluster.pass_time(3)
    assert stream not in old.delivered
    cluster.cut()
    cluster.wait(lambda: stream in old.delivered, "the answer of the new leader")


@pytest.mark.parametrize("path", [TIME_TO_LIVE, LEASES])
def test_without_a_leader_the_questions_time_out(cluster: Cluster, path: str) -> None:
    member = cluster.followers[0]
    cluster.cut(member.number)
    cluster.wait(lambda: not member.engine.core.leader_id, "the loss to be noticed")
    request = rpc_pb2.LeaseTimeToLiveRequest(ID=1) if path == TIME_TO_LIVE else rpc_pb2.LeaseLeasesRequest()
    with pytest.raises(errors.NoLeader):
        member.call(path, request)
