"""The Cluster service and MoveLeader, over several whole members in one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.members import member_id
from etcd_server.services.events import Batch
from tests.cluster import CLUSTER_ID, Cluster, ClusterMember

ADD = "/etcdserverpb.Cluster/MemberAdd"
REMOVE = "/etcdserverpb.Cluster/MemberRemove"
UPDATE = "/etcdserverpb.Cluster/MemberUpdate"
PROMOTE = "/etcdserverpb.Cluster/MemberPromote"
LIST = "/etcdserverpb.Cluster/MemberList"
MOVE = "/etcdserverpb.Maintenance/MoveLeader"
PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"

Make = Callable[..., Cluster]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Cluster] = []

    def make(size: int = 3, **settings: Any) -> Cluster:
        made.append(Cluster(tmp_path, size, **settings))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def steady(cluster: Cluster) -> None:
    """Let the members be in touch for as long as counts."""
    cluster.pass_time(6.0)


def url(name: str) -> str:
    return f"http://{name}:2380"


def add(member: ClusterMember, name: str, **fields: Any) -> Any:
    return member.call(ADD, rpc_pb2.MemberAddRequest(peerURLs=[url(name)], **fields))


def remove(member: ClusterMember, number: int) -> Any:
    return member.call(REMOVE, rpc_pb2.MemberRemoveRequest(ID=number))


def members(member: ClusterMember) -> list[rpc_pb2.Member]:
    return member.engine.machine.members.all()


def names(member: ClusterMember) -> set[str]:
    return {each.name for each in members(member)}


def test_the_id_of_an_added_member_is_made_of_its_urls_and_the_second(make: Make) -> None:
    cluster = make(1)
    response = add(cluster.leader, "b")
    expected = member_id([url("b")], "", cluster.unix_time_s)
    assert response.member == rpc_pb2.Member(ID=expected, peerURLs=[url("b")])
    assert [member.ID for member in response.members] == [1, expected]
    header = response.header
    assert (header.cluster_id, header.member_id) == (CLUSTER_ID, 1)
    assert header.raft_term
    assert not header.revision


def test_the_urls_of_a_member_are_kept_sorted_and_each_once(make: Make) -> None:
    peer_urls = [" http://y:1", "http://x:1", "http://y:1"]
    response = make(1).leader.call(ADD, rpc_pb2.MemberAddRequest(peerURLs=peer_urls))
    assert response.member.peerURLs == ["http://x:1", "http://y:1"]


@pytest.mark.parametrize("peer_urls", [[], [""], ["x"], ["http://x"], ["http://x:1/path"], ["ftp://x:1"]])
def test_urls_that_are_none(make: Make, peer_urls: list[str]) -> None:
    member = make(1).leader
    for path, request in (
        (ADD, rpc_pb2.MemberAddRequest(peerURLs=peer_urls)),
        (UPDATE, rpc_pb2.MemberUpdateRequest(ID=1, peerURLs=peer_urls)),
    ):
        with pytest.raises(errors.MemberBadURLs):
            member.call(path, request)


def test_a_member_that_is_added_starts_with_an_empty_log_and_takes_part(make: Make) -> None:
    cluster = make(1)
    first = cluster.leader
    first.call(PUT, rpc_pb2.PutRequest(key=b"k", value=b"v"))
    number = add(first, "b").member.ID
    [waiting] = first.send(PUT, rpc_pb2.PutRequest(key=b"l"))
    cluster.pass_time(0.5)
    assert waiting not in first.answers  # of two voters one is not started: no quorum
    second = cluster.join(number, "b")
    cluster.wait(lambda: waiting in first.answers and second.engine.is_ready, "the second member")
    assert first.result(PUT, waiting).header.revision == 3
    assert names(first) == names(second) == {"m1", "b"}
    for member in cluster.running:
        assert member.call(RANGE, rpc_pb2.RangeRequest(key=b"k")).kvs[0].value == b"v"
    listed = second.call(LIST, rpc_pb2.MemberListRequest(linearizable=True))
    assert list(listed.members) == members(first)


def test_a_second_member_must_be_started_before_a_third_is_added(make: Make) -> None:
    member = make(1).leader
    add(member, "b")
    with pytest.raises(errors.MemberNotEnoughStarted, match="not enough started members"):
        add(member, "c")


def test_members_in_touch_for_too_short_a_time_do_not_count(make: Make) -> None:
    cluster = make(2)
    with pytest.raises(errors.Unhealthy, match="unhealthy cluster"):
        add(cluster.leader, "c")
    steady(cluster)
    add(cluster.leader, "c")


def test_without_the_strict_check_a_member_may_be_added_that_stops_the_cluster(make: Make) -> None:
    member = make(1, strict_reconfig_check=False).leader
    add(member, "b")
    with pytest.raises(errors.OutcomeUnknown):
        add(member, "c")


def test_followers_pass_changes_on(make: Make) -> None:
    cluster = make()
    steady(cluster)
    follower = cluster.followers[0]
    response = add(follower, "d")
    assert response.header.member_id == follower.number
    assert len(response.members) == 4
    cluster.unix_time_s += 1
    with pytest.raises(errors.PeerURLExists, match="Peer URLs already exists"):
        add(follower, "d")
    with pytest.raises(errors.MemberNotFound, match="member not found"):
        remove(follower, 77)
    assert len(remove(follower, response.member.ID).members) == 3


def test_changes_that_are_asked_for_at_once_are_made_one_after_another(make: Make) -> None:
    cluster = make()
    leader, [one, other] = cluster.leader, cluster.followers
    requests = [rpc_pb2.MemberUpdateRequest(ID=n, peerURLs=[f"http://moved{n}:1"]) for n in (1, 2, 3)]
    ids = leader.send(UPDATE, *requests)
    [passed_on] = one.send(UPDATE, requests[0])
    cluster.wait(lambda: passed_on in one.answers and leader.answers.keys() >= set(ids), "the changes")
    for member, call_id in (*((leader, call_id) for call_id in ids), (one, passed_on)):
        member.result(UPDATE, call_id)
    cluster.wait(lambda: members(leader) == members(one) == members(other), "the same members everywhere")
    urls = {member.ID: list(member.peerURLs) for member in members(other)}
    assert urls == {request.ID: list(request.peerURLs) for request in requests}


def test_urls_that_another_member_has(make: Make) -> None:
    member = make(2).leader
    for number, taken, error in ((1, "m2", errors.PeerURLExists), (7, "x", errors.MemberNotFound)):
        with pytest.raises(error):
            member.call(UPDATE, rpc_pb2.MemberUpdateRequest(ID=number, peerURLs=[url(taken)]))


@pytest.mark.parametrize("is_strict", [True, False])
def test_the_last_member_cannot_be_removed(make: Make, is_strict: bool) -> None:
    member = make(1, strict_reconfig_check=is_strict).leader
    with pytest.raises(errors.MemberNotEnoughStarted):
        remove(member, 1)
    assert names(member) == {"m1"}
    member.call(PUT, rpc_pb2.PutRequest(key=b"k"))


def test_a_member_whose_loss_would_cost_the_quorum_is_kept(make: Make) -> None:
    cluster = make()
    steady(cluster)
    leader, [down, other] = cluster.leader, cluster.followers
    down.crash()
    cluster.pass_time(1.0)
    with pytest.raises(errors.Unhealthy):
        remove(leader, other.number)
    remove(leader, down.number)  # it is no part of the quorum that works
    assert len(members(leader)) == 2


def test_the_id_of_a_removed_member_never_returns(make: Make) -> None:
    cluster = make()
    steady(cluster)
    leader, gone = cluster.leader, cluster.followers[0]
    remove(leader, gone.number)
    assert leader.engine.machine.members.is_removed(gone.number)
    with pytest.raises(errors.MemberNotFound):
        remove(leader, gone.number)


def test_a_leader_may_remove_itself(make: Make) -> None:
    cluster = make()
    steady(cluster)
    old = cluster.leader
    assert len(remove(old, old.number).members) == 2
    new = cluster.wait_for_leader(old)
    new.call(PUT, rpc_pb2.PutRequest(key=b"k"))


def test_a_learner_is_promoted_when_it_is_in_sync(make: Make) -> None:
    cluster = make()
    steady(cluster)
    leader, follower = cluster.leader, cluster.followers[0]
    for _ in range(20):
        leader.call(PUT, rpc_pb2.PutRequest(key=b"k"))
    added = add(leader, "d", isLearner=True).member
    assert added.isLearner
    request = rpc_pb2.MemberPromoteRequest(ID=added.ID)
    for member in (leader, follower):
        with pytest.raises(errors.LearnerNotReady, match="in sync with leader"):
            member.call(PROMOTE, request)
    with pytest.raises(errors.TooManyLearners):
        add(leader, "e", isLearner=True)
    cluster.join(added.ID, "d")
    cluster.wait(lambda: "d" in names(leader), "the learner")
    assert not any(member.isLearner for member in follower.call(PROMOTE, request).members)
    assert leader.engine.node.status.configuration.learners == ()
    with pytest.raises(errors.MemberNotLearner, match="can only promote a learner member"):
        leader.call(PROMOTE, request)
    with pytest.raises(errors.MemberNotFound):
        leader.call(PROMOTE, rpc_pb2.MemberPromoteRequest(ID=77))


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_how_many_learners_there_may_be(make: Make, limit: int) -> None:
    cluster = make(max_learners=limit)
    steady(cluster)
    for number in range(limit):
        assert add(cluster.followers[0], f"learner{number}", isLearner=True).member.isLearner
        cluster.pass_time(1.0)
    with pytest.raises(errors.TooManyLearners):
        add(cluster.leader, "another", isLearner=True)
    cluster.settle()
    [told] = {str(members(member)) for member in cluster.running}
    assert told.count("isLearner: true") == limit


@pytest.mark.parametrize("size", [2, 3, 5])
def test_most_of_the_first_election_time_out_passes_at_once(tmp_path: Path, size: int) -> None:
    def first_election_s(ticks: int) -> float:
        folder = tmp_path / f"{ticks}"
        folder.mkdir()
        cluster = Cluster(folder, size, started=False, initial_ticks=ticks)
        for member in cluster.members.values():
            member.start()
        begun_s = cluster.now
        cluster.wait(lambda: any(member.is_leader for member in cluster.running), "a leader")
        cluster.close()
        return cluster.now - begun_s

    usual_s = first_election_s(0)
    assert usual_s >= 1.0
    # Random numbers are drawn alike, so the difference is what was passed over.
    assert usual_s - 0.81 <= first_election_s(8) <= usual_s - 0.69


def test_a_member_alone_does_not_hurry(make: Make) -> None:
    cluster = make(started=False, initial_ticks=8)
    first = cluster.members[1]
    first.start()
    cluster.pass_time(0.9)
    assert first.engine.node.term == 1
    # One other is not enough to know that there is no leader, with three members.
    cluster.members[2].start()
    cluster.pass_time(0.05)
    assert not any(member.is_leader for member in cluster.running)


def test_clients_of_a_learner_are_turned_away_also_those_that_speak_json(make: Make) -> None:
    cluster = make()
    steady(cluster)
    added = add(cluster.leader, "d", isLearner=True).member
    learner = cluster.join(added.ID, "d")
    cluster.wait(lambda: learner.engine.is_ready, "the learner")
    put = rpc_pb2.PutRequest(key=b"k")
    local = rpc_pb2.RangeRequest(key=b"k", serializable=True)
    # -1 is the member's own, -2 and -3 came as JSON.
    own = Batch(
        calls={RANGE: [(-1, rpc_pb2.RangeRequest(key=b"k")), (-2, local)], PUT: [(-3, put), (7, put)]},
        gateway_calls=[-2, -3],
    )
    learner.turn(own)
    cluster.settle()
    refused = {
        n for n, answer in learner.answers.items() if isinstance(answer, errors.NotSupportedForLearner)
    }
    assert refused == {-3, 7}
    assert {-1, -2} <= set(learner.answers)


def test_without_a_leader_changes_are_given_up_in_the_end(make: Make) -> None:
    cluster = make()
    leader, [one, other] = cluster.leader, cluster.followers
    other.crash()
    leader.crash()
    cluster.wait(lambda: not one.engine.core.leader_id, "the loss to be noticed")
    with pytest.raises(errors.NoLeader):
        remove(one, other.number)


def test_a_change_that_waits_at_a_leader_which_loses_its_place_is_passed_on(make: Make) -> None:
    """The second of two changes is not proposed before the first is applied, which this leader never sees."""
    cluster = make()
    old = cluster.leader
    cluster.cut(old.number)
    requests = [rpc_pb2.MemberUpdateRequest(ID=n, peerURLs=[f"http://moved{n}:1"]) for n in (1, 2)]
    first, second = old.send(UPDATE, *requests)
    new = cluster.wait_for_leader(old)
    cluster.wait(lambda: not old.is_leader, "the old leader to step down")
    cluster.cut()
    cluster.wait(lambda: first in old.answers and second in old.answers, "the answers")
    with pytest.raises(errors.LeaderChanged):
        old.result(UPDATE, first)
    old.result(UPDATE, second)
    assert {member.ID: list(member.peerURLs) for member in members(new)} == {
        1: [url("m1")],
        2: ["http://moved2:1"],
        3: [url("m3")],
    }


def test_the_leadership_moves(make: Make) -> None:
    cluster = make()
    leader, target = cluster.leader, cluster.followers[0]
    request = rpc_pb2.MoveLeaderRequest(targetID=target.number)
    assert leader.call(MOVE, request) == rpc_pb2.MoveLeaderResponse()
    cluster.wait(lambda: target.is_leader, "the new leader")
    with pytest.raises(errors.NotLeader, match="etcdserver: not leader"):
        leader.call(MOVE, request)
    target.call(MOVE, request)  # to itself it need not move


def test_the_leadership_does_not_move_to_learners_strangers_and_the_dead(make: Make) -> None:
    cluster = make()
    steady(cluster)
    leader, dead = cluster.leader, cluster.followers[0]
    learner = add(leader, "d", isLearner=True).member.ID
    for target in (learner, 77, 0):
        with pytest.raises(errors.BadLeaderTransferee, match="bad leader transferee"):
            leader.call(MOVE, rpc_pb2.MoveLeaderRequest(targetID=target))
    dead.crash()
    with pytest.raises(errors.TimedOutLeaderTransfer):
        leader.call(MOVE, rpc_pb2.MoveLeaderRequest(targetID=dead.number))
    assert leader.is_leader


def test_those_who_wait_when_the_member_stops_are_told(make: Make) -> None:
    cluster = make(2)
    leader = cluster.leader
    cluster.cut(leader.number)
    requests = [rpc_pb2.MemberUpdateRequest(ID=n, peerURLs=[f"http://moved{n}:1"]) for n in (1, 2)]
    ids = leader.send(UPDATE, *requests)
    moving = leader.send(MOVE, rpc_pb2.MoveLeaderRequest(targetID=cluster.followers[0].number))
    told = dict(leader.engine.stop().answers)
    assert told.keys() == {*ids, *moving}
    assert all(isinstance(answer, errors.Stopped) for answer in told.values())
