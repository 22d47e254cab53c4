"""Three members in one thread: who leads, what a follower passes on, what happens when the leader goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.services.events import STREAM_REQUIRES_LEADER, Batch
from tests.cluster import Cluster

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
STATUS = "/etcdserverpb.Maintenance/Status"
MEMBER_LIST = "/etcdserverpb.Cluster/MemberList"
WATCH = "/etcdserverpb.Watch/Watch"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def put(key: bytes, value: bytes = b"v", **options: Any) -> rpc_pb2.PutRequest:
    return rpc_pb2.PutRequest(key=key, value=value, **options)


def get(key: bytes, **options: Any) -> rpc_pb2.RangeRequest:
    return rpc_pb2.RangeRequest(key=key, **options)


def watch(key: bytes) -> rpc_pb2.WatchRequest:
    return rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key))


# --- a cluster


def test_one_member_leads_and_each_has_told_its_name(cluster: Cluster) -> None:
    leader = cluster.leader
    for member in cluster.members.values():
        members = member.call(MEMBER_LIST, rpc_pb2.MemberListRequest(linearizable=True)).members
        assert [(one.ID, one.name) for one in members] == [(1, "m1"), (2, "m2"), (3, "m3")]
        assert [list(one.clientURLs) for one in members] == [[f"http://m{n}:2379"] for n in (1, 2, 3)]
        status = member.call(STATUS, rpc_pb2.StatusRequest())
        assert (status.leader, status.header.member_id) == (leader.number, member.number)
        assert not status.errors
    cluster.pass_time(1)
    assert {member.engine.machine.cluster_version for member in cluster.running} == {"3.6.0"}


def test_what_is_put_at_any_member_is_read_at_every_member(cluster: Cluster) -> None:
    for number, member in cluster.members.items():
        member.call(PUT, put(b"k%d" % number))
    for reader in cluster.members.values():
        assert reader.call(RANGE, get(b"k", range_end=b"l")).count == 3


def test_a_linearizable_read_at_a_follower_sees_what_was_answered_elsewhere(cluster: Cluster) -> None:
    reader, _ = cluster.followers
    for n in range(20):
        [call_id] = cluster.leader.send(PUT, put(b"k", b"%d" % n))
        cluster.wait(lambda asked=call_id: asked in cluster.leader.answers, "a put")  # type: ignore[misc]
        assert reader.call(RANGE, get(b"k")).kvs[0].value == b"%d" % n


def test_a_watch_at_a_follower_is_told(cluster: Cluster) -> None:
    member = cluster.followers[0]
    stream = member.open(WATCH, watch(b"k"))
    cluster.leader.call(PUT, put(b"k", b"1"))
    cluster.settle()
    cluster.pass_time(0.2)
    created, told = member.heard(stream, WATCH)
    assert (created.created, [event.kv.value for event in told.events]) == (True, [b"1"])


# --- the loss of a leader


def test_the_others_go_on_when_the_leader_crashes_and_nothing_that_was_answered_is_lost(
    cluster: Cluster,
) -> None:
    old = cluster.leader
    for n in range(10):
        old.call(PUT, put(b"k%d" % n))
    old.crash()
    new = cluster.wait_for_leader()
    new.call(PUT, put(b"after"))
    for member in cluster.running:
        assert member.call(RANGE, get(b"k", range_end=b"l")).count == 10
    old.start()
    cluster.wait(lambda: old.engine.is_ready, "the old leader")
    assert old.call(RANGE, get(b"after")).count == 1


def test_requests_of_an_election_wait_for_the_next_leader(cluster: Cluster) -> None:
    cluster.leader.crash()
    member = cluster.running[0]
    cluster.cut(member.number)
    cluster.wait(lambda: not member.engine.core.leader_id, "the loss to be noticed")
    [reading] = member.send(RANGE, get(b"k"))
    cluster.pass_time(1)
    cluster.cut()
    begun_s = cluster.now
    assert member.call(PUT, put(b"k")).header.revision == 2
    assert cluster.now - begun_s < 3
    assert member.result(RANGE, reading).count in (0, 1)


def test_a_change_that_went_to_a_leader_which_is_gone_has_no_known_outcome(cluster: Cluster) -> None:
    old, member = cluster.leader, cluster.followers[0]
    cluster.is_cut = lambda sender, to: to == old.number
    [call_id] = member.send(PUT, put(b"k"))
    cluster.cut(old.number)
    begun_s = cluster.now
    cluster.wait(lambda: call_id in member.answers, "the answer")
    with pytest.raises(errors.LeaderChanged):
        member.result(PUT, call_id)
    assert cluster.now - begun_s < 4


def test_a_read_whose_question_was_lost_is_asked_again(cluster: Cluster) -> None:
    leader, member = cluster.leader, cluster.followers[0]
    cluster.is_cut = lambda sender, to: (sender, to) == (member.number, leader.number)
    [call_id] = member.send(RANGE, get(b"k"))
    cluster.is_cut = lambda sender, to: False
    cluster.wait(lambda: call_id in member.answers, "the answer", limit_s=1.0)
    assert member.result(RANGE, call_id).count == 0


def test_a_leader_that_is_cut_off_steps_down_and_answers_nothing_that_it_cannot_know(
    cluster: Cluster,
) -> None:
    old = cluster.leader
    cluster.cut(old.number)
    [reading] = old.send(RANGE, get(b"k"))
    [writing] = old.send(PUT, put(b"lost"))
    new = cluster.wait_for_leader(old)
    new.call(PUT, put(b"k", b"new"))
    cluster.wait(lambda: not old.engine.core.is_leader, "the old leader to step down")
    assert reading not in old.answers
    assert old.call(RANGE, get(b"k", serializable=True)).count == 0
    cluster.cut()
    cluster.wait(lambda: reading in old.answers and writing in old.answers, "the answers")
    assert old.result(RANGE, reading).kvs[0].value == b"new"
    with pytest.raises(errors.LeaderChanged):
        old.result(PUT, writing)
    assert new.call(RANGE, get(b"lost")).count == 0


def test_without_a_quorum_requests_time_out(cluster: Cluster) -> None:
    member = cluster.followers[0]
    for other in cluster.running:
        if other is not member:
            other.crash()
    [reading] = member.send(RANGE, get(b"k"))
    [writing] = member.send(PUT, put(b"k"))
    cluster.pass_time(7.5)
    with pytest.raises(errors.TimedOut):
        member.result(RANGE, reading)
    with pytest.raises(errors.TimedOut):
        member.result(PUT, writing)
    assert "etcdserver: no leader" in member.call(STATUS, rpc_pb2.StatusRequest()).errors


def test_a_change_that_meets_a_leader_on_its_way_out_goes_to_the_next(cluster: Cluster) -> None:
    old, member = cluster.leader, cluster.followers[0]
    assert old.engine.hand_over()
    call_ids = member.send(PUT, put(b"a"), put(b"b"))
    cluster.settle()
    assert not old.engine.core.is_leader
    cluster.wait(lambda: call_ids[1] in member.answers, "the answer", limit_s=1.0)
    assert [member.result(PUT, call_id).header.revision for call_id in call_ids] == [2, 3]
    assert member.call(RANGE, get(b"a")).kvs[0].version == 1


def test_a_change_that_goes_to_who_does_not_lead_any_more_is_passed_on_again(cluster: Cluster) -> None:
    """The member believes in its old leader; that one follows another already."""
    old, (member, new) = cluster.leader, cluster.followers
    cluster.is_cut = lambda sender, to: new.number in (sender, to) and member.number in (sender, to)
    old.engine.node.transfer_leadership(new.number)
    old.turn()
    cluster.wait(lambda: new.engine.core.is_leader, "the hand-over")
    assert member.engine.core.leader_id in (old.number, 0)
    [call_id] = member.send(PUT, put(b"k"))
    cluster.settle()
    cluster.is_cut = lambda sender, to: False
    cluster.wait(lambda: call_id in member.answers, "the answer", limit_s=5.0)
    assert member.result(PUT, call_id).header.revision == 2


def test_a_member_that_hears_its_leader_but_does_not_reach_it_says_so(cluster: Cluster) -> None:
    leader, member = cluster.leader, cluster.followers[0]
    cluster.is_cut = lambda sender, to: (sender, to) == (member.number, leader.number)
    cluster.links_changed()
    with pytest.raises(errors.TimedOutConnectionLost):
        member.call(PUT, put(b"k"))


def test_a_stop_hands_the_leadership_over_first(cluster: Cluster) -> None:
    old = cluster.leader
    [call_id] = old.send(PUT, put(b"k"))
    assert old.engine.hand_over()
    term = old.engine.core.header.term
    [held] = old.send(PUT, put(b"l"))
    cluster.settle()
    assert not old.engine.core.is_leader
    assert cluster.leader.engine.core.header.term == term + 1
    cluster.settle()
    cluster.wait(lambda: held in old.answers, "the put of the hand-over", limit_s=1.0)
    assert old.result(PUT, call_id).header.revision == 2
    assert old.result(PUT, held).header.revision == 3
    assert not old.engine.hand_over()


# --- clients that require a leader


def test_a_stream_that_requires_a_leader_ends_after_three_elections_without_one(cluster: Cluster) -> None:
    member = cluster.followers[0]
    requiring = member.open(WATCH, watch(b"k"), kinds=[STREAM_REQUIRES_LEADER])
    patient = member.open(WATCH, watch(b"k"))
    cluster.cut(member.number)
    cluster.wait(lambda: not member.engine.core.leader_id, "the loss to be noticed")
    cluster.pass_time(2.5)
    assert not member.ended
    cluster.pass_time(1.0)
    assert isinstance(member.ended.pop(requiring), errors.NoLeader)
    late = member.open(WATCH, watch(b"k"), kinds=[STREAM_REQUIRES_LEADER])
    assert isinstance(member.ended.pop(late), errors.NoLeader)
    cluster.cut()
    cluster.wait_for_leader()
    cluster.leader.call(PUT, put(b"k"))
    cluster.pass_time(0.5)
    assert [len(response.events) for response in member.heard(patient, WATCH)] == [0, 1]
    assert not member.ended


def test_a_call_that_requires_a_leader_is_refused_without_one(cluster: Cluster) -> None:
    member = cluster.followers[0]
    cluster.cut(member.number)
    cluster.wait(lambda: not member.engine.core.leader_id, "the loss to be noticed")
    member.turn(Batch(calls={PUT: [(7, put(b"k"))], RANGE: [(8, get(b"k"))]}, requiring_leader=[7]))
    assert isinstance(member.answers.pop(7), errors.NoLeader)
    assert 8 not in member.answers


# --- versions, learners


def test_the_clusters_version_is_the_lowest_among_its_members_and_rises(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, started=False)
    cluster.members[2].version = "3.5.9"
    for member in cluster.members.values():
        member.start()
    cluster.wait(lambda: all(member.engine.is_ready for member in cluster.running), "the cluster")
    cluster.pass_time(1)
    assert {member.engine.machine.cluster_version for member in cluster.running} == {"3.5.0"}
    cluster.members[2].crash()
    cluster.members[2].version = "3.6.1"
    cluster.members[2].start()
    cluster.wait_for_leader()
    cluster.pass_time(2)
    assert {member.engine.machine.cluster_version for member in cluster.running} == {"3.6.0"}
    cluster.close()


def test_a_member_that_never_came_does_not_keep_the_version_open(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, started=False)
    for number in (1, 2):
        cluster.members[number].start()
    cluster.wait_for_leader()
    cluster.pass_time(1)
    assert {member.engine.machine.cluster_version for member in cluster.running} == {""}
    cluster.pass_time(5)
    assert {member.engine.machine.cluster_version for member in cluster.running} == {"3.0.0"}
    cluster.members[3].start()
    cluster.pass_time(3)
    assert {member.engine.machine.cluster_version for member in cluster.running} == {"3.6.0"}
    cluster.close()


def test_a_learner_serves_its_status_and_local_reads_only(cluster: Cluster) -> None:
    member = cluster.followers[0]
    member.engine.core.is_learner = True
    assert member.call(STATUS, rpc_pb2.StatusRequest()).isLearner
    assert member.call(RANGE, get(b"k", serializable=True)).count == 0
    for path, request in ((RANGE, get(b"k")), (PUT, put(b"k")), (MEMBER_LIST, rpc_pb2.MemberListRequest())):
        with pytest.raises(errors.NotSupportedForLearner):
            member.call(path, request)
    stream = member.open(WATCH, watch(b"k"))
    assert isinstance(member.ended.pop(stream), errors.NotSupportedForLearner)
    member.turn(Batch(calls={RANGE: [(-1, get(b"k"))]}))
    cluster.wait(lambda: -1 in member.answers, "the member's own read")
