"""Hash and HashKV over several whole members in one thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.services import hashes
from etcd_server.services.events import Batch
from tests.cluster import Cluster, ClusterMember

HASH_KV, HASH = "/etcdserverpb.Maintenance/HashKV", "/etcdserverpb.Maintenance/Hash"
PUT, DELETE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/DeleteRange"
COMPACT, ADD = "/etcdserverpb.KV/Compact", "/etcdserverpb.Cluster/MemberAdd"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, snapshot_count=20, catch_up_entries=2)
    yield cluster
    cluster.close()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "STEP_ROWS", 3)


def put(member: ClusterMember, count: int) -> None:
    for number in range(count):
        member.call(PUT, rpc_pb2.PutRequest(key=b"k%d" % (number % 7), value=b"v%d" % number))


def compact(member: ClusterMember, revision: int) -> None:
    member.call(COMPACT, rpc_pb2.CompactionRequest(revision=revision, physical=True))


def numbers(member: ClusterMember, revision: int = 0) -> tuple[int, int, int]:
    answer = member.call(HASH_KV, rpc_pb2.HashKVRequest(revision=revision))
    return answer.hash, answer.compact_revision, answer.hash_revision


def everywhere(cluster: Cluster, revision: int = 0) -> Any:
    """What all members tell, who must tell the same."""
    cluster.pass_time(0.5)
    [told] = {numbers(member, revision) for member in cluster.running}
    [_] = {member.call(HASH, rpc_pb2.HashRequest()).hash for member in cluster.running}
    return told


def test_members_agree_whatever_became_of_them(cluster: Cluster, small_steps: None) -> None:
    leader = cluster.leader
    put(leader, 20)
    before = everywhere(cluster)
    assert before[1:] == (-1, 21)
    # One misses changes and a compaction, and has a crash and a snapshot behind it when it is asked again.
    late = cluster.followers[0]
    late.crash()
    put(leader, 40)
    compact(leader, 50)
    put(leader, 40)
    late.start()
    cluster.wait(lambda: late.engine.machine.revision == leader.engine.machine.revision, "caught up")
    assert everywhere(cluster)[1:] == (50, 101)
    assert everywhere(cluster, 60)[1:] == (50, 60)
    for member in cluster.running:
        with pytest.raises(errors.Compacted):
            numbers(member, 49)
        with pytest.raises(errors.FutureRevision):
            numbers(member, 102)


def test_a_step_a_turn_and_changes_meanwhile(cluster: Cluster, small_steps: None) -> None:
    member = cluster.leader
    put(member, 30)
    expected = numbers(member)
    first, second = member.send(HASH_KV, rpc_pb2.HashKVRequest(), rpc_pb2.HashKVRequest(revision=31))
    assert first not in member.answers
    put(member, 1)
    [other] = member.send(HASH_KV, rpc_pb2.HashKVRequest(revision=20))
    turns = 0
    while other not in member.answers:
        assert member.turn().more_work == (other not in member.answers)
        turns += 1
    assert turns > 10
    for call_id in (first, second):
        answer = member.result(HASH_KV, call_id)
        assert (answer.hash, answer.compact_revision, answer.hash_revision) == expected
        assert answer.header.revision == 32


def test_a_compaction_meanwhile_makes_it_begin_anew(cluster: Cluster, small_steps: None) -> None:
    member = cluster.leader
    put(member, 30)
    [kept] = member.send(HASH_KV, rpc_pb2.HashKVRequest(revision=25))
    [lost] = member.send(HASH_KV, rpc_pb2.HashKVRequest(revision=8))
    for _ in range(3):
        member.turn()
    assert kept not in member.answers
    compact(member, 22)
    while member.turn().more_work:
        pass
    answer = member.result(HASH_KV, kept)
    assert (answer.hash, answer.compact_revision, answer.hash_revision) == numbers(member, 25)
    assert answer.compact_revision == 22
    with pytest.raises(errors.Compacted):
        member.result(HASH_KV, lost)


def test_who_goes_is_forgotten_and_who_waits_at_the_end_is_told(cluster: Cluster, small_steps: None) -> None:
    member = cluster.leader
    put(member, 30)
    gone, waiting = member.send(HASH_KV, rpc_pb2.HashKVRequest(), rpc_pb2.HashKVRequest(revision=9))
    member.turn(Batch(cancelled=[gone]))
    effects = member.engine.stop()
    assert [(call_id, type(error)) for call_id, error in effects.answers] == [(waiting, errors.Stopped)]


def test_a_learner_is_asked_how_good_its_copy_is(cluster: Cluster) -> None:
    cluster.pass_time(6.0)
    put(cluster.leader, 10)
    added = cluster.leader.call(ADD, rpc_pb2.MemberAddRequest(peerURLs=["http://m4:2380"], isLearner=True))
    cluster.join(added.member.ID, "m4")
    cluster.wait(lambda: all(member.engine.is_ready for member in cluster.running), "the learner")
    assert len(cluster.running) == 4
    everywhere(cluster)
