"""A follower to which the log does not reach back gets a copy of the state, and goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from etcd_server.api.proto import rpc_pb2
from etcd_server.raft.messages import AppendResponse, InstallSnapshot, Snapshot
from etcd_server.raft.progress import ProgressState
from etcd_server.services.events import Batch
from etcd_server.services.snapshots import RETRY_S
from etcd_server.storage import snapshot
from etcd_server.storage.verify import verify_files
from tests.cluster import Cluster, ClusterMember

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
WATCH = "/etcdserverpb.Watch/Watch"
COMPACT = "/etcdserverpb.KV/Compact"
GRANT = "/etcdserverpb.Lease/LeaseGrant"
SNAPSHOT_COUNT, CATCH_UP_ENTRIES = 10, 5
TABLES = ("revisions", "current", "history", "leases", "members", "removed_members", "alarms")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, snapshot_count=SNAPSHOT_COUNT, catch_up_entries=CATCH_UP_ENTRIES)
    yield cluster
    cluster.close()


def put(cluster: Cluster, count: int, prefix: str = "key") -> None:
    """Puts, an entry each, through the leader of those that can talk to each other."""
    leader = cluster.leader
    for number in range(count):
        leader.call(PUT, rpc_pb2.PutRequest(key=f"{prefix} {number % 7}".encode(), value=b"%d" % number))


def leave_behind(cluster: Cluster) -> ClusterMember:
    """Cut a follower off for so long that the leader's log does not reach back to it any more."""
    behind = cluster.followers[0]
    leader = cluster.leader
    last_index = behind.log.last_index()
    cluster.cut(behind.number)
    while leader.log.first_index() <= last_index + 1:
        put(cluster, 5)
        cluster.pass_time(0.2)
    return behind


def heal_and_wait(cluster: Cluster, *members: ClusterMember) -> None:
    cluster.cut()
    leader = cluster.leader

    def is_equal() -> bool:
        applied = {member.engine.machine.applied_index for member in (*members, leader)}
        return len(applied) == 1

    cluster.wait(is_equal, "all have applied the same")


def rows(member: ClusterMember) -> dict[str, list[Any]]:
    """Everything that is replicated, as it is on the disk."""
    member.engine.machine.commit()
    connection = apsw.Connection(member.database.path, flags=apsw.SQLITE_OPEN_READONLY)
    found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}
    found["meta"] = connection.execute(
        "SELECT applied_index, applied_term, revision, compacted_revision, cluster_version FROM meta"
    ).fetchall()
    connection.close()
    return found


def check_equal(cluster: Cluster, one: ClusterMember, other: ClusterMember) -> None:
    assert rows(one) == rows(other)
    for member in (one, other):
        report = verify_files(member.log.path, member.database.path)
        assert report.is_sound, report.lines()


def test_a_follower_far_behind_is_sent_a_snapshot(cluster: Cluster) -> None:
    leader = cluster.leader
    leader.call(GRANT, rpc_pb2.LeaseGrantRequest(ID=77, TTL=600))
    leader.call(PUT, rpc_pb2.PutRequest(key=b"leased", lease=77))
    behind = leave_behind(cluster)
    revision = behind.engine.machine.revision
    heal_and_wait(cluster, behind)
    assert len(behind.installed) == 1
    assert behind.engine.machine.revision > revision
    assert behind.engine.machine.leases.ttl(77) == 600
    check_equal(cluster, behind, leader)
    put(cluster, 3, "later")
    heal_and_wait(cluster, behind)
    assert len(behind.installed) == 1, "what follows comes as entries"
    check_equal(cluster, behind, leader)
    response = behind.call(RANGE, rpc_pb2.RangeRequest(key=b"later 2"))
    assert response.kvs[0].value == b"2"


def test_one_not_so_far_behind_gets_entries(cluster: Cluster) -> None:
    behind = cluster.followers[0]
    cluster.cut(behind.number)
    put(cluster, CATCH_UP_ENTRIES)
    heal_and_wait(cluster, behind)
    assert behind.installed == []


def test_it_survives_its_crash_and_leads(cluster: Cluster) -> None:
    behind = leave_behind(cluster)
    others = [member for member in cluster.members.values() if member is not behind]
    heal_and_wait(cluster, behind)
    index = behind.engine.machine.applied_index
    behind.crash()
    behind.start()
    assert behind.log.first_index() <= index + 1
    heal_and_wait(cluster, behind)
    check_equal(cluster, behind, cluster.leader)
    survivor = cluster.leader
    [other] = [member for member in others if member is not survivor]
    other.crash()
    survivor.engine.node.transfer_leadership(behind.number)
    cluster.wait(lambda: behind.is_leader, "the restored member leads")
    put(cluster, 3)
    heal_and_wait(cluster, survivor)


def test_watches_go_on_without_going_back(cluster: Cluster) -> None:
    """etcd issue 15271: each event once, in order, across the install."""
    watched = cluster.followers[0]
    old = watched.open(WATCH, watch_request(b"key ", start_revision=1))
    future_revision = watched.engine.machine.revision + 20
    future = watched.open(WATCH, watch_request(b"key ", start_revision=future_revision))
    put(cluster, 3)
    assert leave_behind(cluster) is watched
    heal_and_wait(cluster, watched)
    put(cluster, 4)
    cluster.pass_time(1)
    assert len(watched.installed) == 1
    last = watched.engine.machine.revision
    wanted = [kv.mod_revision for kv in history(cluster.leader)]
    assert events(watched, old) == wanted
    assert events(watched, future) == [revision for revision in wanted if revision >= future_revision]
    assert wanted[-1] == last


def test_a_watch_whose_history_was_compacted_is_told(cluster: Cluster) -> None:
    watched = cluster.followers[0]
    stream = watched.open(WATCH, watch_request(b"key ", start_revision=1))
    put(cluster, 2)
    assert leave_behind(cluster) is watched
    leader = cluster.leader
    compacted = leader.engine.machine.revision
    leader.call(COMPACT, rpc_pb2.CompactionRequest(revision=compacted, physical=True))
    cluster.pass_time(0.5)
    heal_and_wait(cluster, watched)
    cluster.pass_time(0.5)
    assert watched.engine.machine.compacted_revision == compacted
    assert watched.heard(stream, WATCH)[-1].compact_revision == compacted
    check_equal(cluster, watched, leader)


def watch_request(prefix: bytes, *, start_revision: int) -> rpc_pb2.WatchRequest:
    end = prefix[:-1] + bytes([prefix[-1] + 1])
    create = rpc_pb2.WatchCreateRequest(key=prefix, range_end=end, start_revision=start_revision)
    return rpc_pb2.WatchRequest(create_request=create)


def events(member: ClusterMember, stream: int) -> list[int]:
    return [event.kv.mod_revision for response in member.heard(stream, WATCH) for event in response.events]


def history(member: ClusterMember) -> list[Any]:
    """All that ever happened, from a watch at the leader."""
    stream = member.open(WATCH, watch_request(b"key ", start_revision=1))
    member.cluster.pass_time(0.5)
    return [event.kv for response in member.heard(stream, WATCH) for event in response.events]


def test_a_snapshot_cut_off_on_its_way_is_sent_again(cluster: Cluster) -> None:
    behind = leave_behind(cluster)
    leader = cluster.leader
    cluster.cut()
    cluster.wait(lambda: bool(cluster.copies), "a copy")
    cluster.cut(behind.number)
    cluster.pass_time(0.3)
    assert behind.installed == []
    assert state_of(leader, behind) is ProgressState.SNAPSHOT, "not at once"
    cluster.pass_time(RETRY_S)
    heal_and_wait(cluster, behind)
    assert len(behind.installed) == 1
    check_equal(cluster, behind, leader)


def state_of(leader: ClusterMember, member: ClusterMember) -> ProgressState:
    [peer] = [peer for peer in leader.engine.node.status.peers if peer.member_id == member.number]
    return peer.state


def test_the_log_keeps_what_follows_a_snapshot_on_its_way(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader goes on, far beyond where it would cut its log; one snapshot is enough all the same."""
    behind = leave_behind(cluster)
    leader = cluster.leader
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "carry_copies", lambda: None)
        cluster.cut()
        cluster.wait(lambda: bool(cluster.copies), "a copy")
        [(_, request, _)] = cluster.copies
        for _ in range(10):
            put(cluster, SNAPSHOT_COUNT)
            cluster.pass_time(0.3)
        assert leader.engine.machine.applied_index > request.index + 5 * SNAPSHOT_COUNT
        assert leader.log.first_index() <= request.index + 1
    heal_and_wait(cluster, behind)
    assert len(behind.installed) == 1
    put(cluster, 3 * SNAPSHOT_COUNT)
    cluster.pass_time(1)
    assert leader.log.first_index() > request.index + 1, "and then it is cut again"
    check_equal(cluster, behind, leader)


def test_a_copy_may_be_newer_than_what_was_asked_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = leave_behind(cluster)
    leader = cluster.leader
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "carry_copies", lambda: None)
        cluster.cut()
        cluster.wait(lambda: bool(cluster.copies), "a copy")
        put(cluster, SNAPSHOT_COUNT)
        cluster.pass_time(0.5)
        [(sender, request, old)] = cluster.copies
        assert old is not None and old.contents.applied_index == request.index
        newer = snapshot.make(leader.database.path, old.path)
        assert newer is not None and newer.contents.applied_index > request.index
        cluster.copies[:] = [(sender, request, newer)]
    heal_and_wait(cluster, behind)
    assert behind.installed == [newer.contents.applied_index]
    check_equal(cluster, behind, leader)


def test_two_snapshots_close_together(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """etcd issue 18055: the second waits until the first is in place; then raft decides."""
    behind = leave_behind(cluster)
    leader = cluster.leader
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "carry_copies", lambda: None)
        cluster.cut()
        cluster.wait(lambda: bool(cluster.copies), "a copy")
        put(cluster, SNAPSHOT_COUNT)
        cluster.pass_time(0.5)
        [(sender, request, first)] = cluster.copies
        second = snapshot.make(leader.database.path, str(leader.folder / "second"))
        assert first is not None and second is not None
        cluster.copies += [(sender, request, second), (sender, request, first)]
    cluster.carry_copies()
    assert len(behind.snapshots_received) == 3
    effects = behind.turn()
    assert effects.install is not None and effects.more_work
    heal_and_wait(cluster, behind)
    assert behind.installed == [first.contents.applied_index, second.contents.applied_index]
    assert list(behind.folder.glob("received-*")) == [], "the third was of no use"
    check_equal(cluster, behind, leader)


def test_a_snapshot_that_nobody_needs_is_refused(cluster: Cluster) -> None:
    behind = leave_behind(cluster)
    cluster.cut()
    cluster.wait(lambda: bool(cluster.copies), "a copy")
    copies = list(cluster.copies)
    heal_and_wait(cluster, behind)
    cluster.copies += copies
    put(cluster, 1)
    cluster.pass_time(0.5)
    assert len(behind.installed) == 1
    assert list(behind.folder.glob("received-*")) == []
    heal_and_wait(cluster, behind)
    snapshots = behind.engine.snapshots
    term, applied_index = behind.engine.node.term, behind.engine.machine.applied_index
    leader = cluster.leader.number
    assert snapshots.refusal(leader, term, applied_index + 1) is None
    assert "has applied" in str(snapshots.refusal(leader, term, applied_index))
    assert "the member is in term" in str(snapshots.refusal(leader, term - 1, applied_index + 1))


def test_who_refuses_a_snapshot_that_it_has_says_how_far_it_is(cluster: Cluster) -> None:
    """The answer to the snapshot that it took may have been lost: the leader, which knows of nothing that the
    member has, would send it the same one for ever."""
    behind, leader = cluster.followers[0], cluster.leader
    put(cluster, 3)
    cluster.pass_time(1.0)
    index = behind.engine.machine.applied_index
    assert behind.engine.snapshots.refusal(leader.number, leader.engine.node.term, index) is not None
    [answer] = behind.turn().send
    assert isinstance(answer, AppendResponse)
    assert (answer.to, answer.index, answer.rejected) == (leader.number, index, False)


def test_a_message_without_its_file_is_nothing(cluster: Cluster) -> None:
    behind = leave_behind(cluster)
    leader = cluster.leader
    cluster.cut()
    cluster.wait(lambda: bool(cluster.copies), "a copy")
    [(_, request, copy)] = cluster.copies
    assert copy is not None
    contents = copy.contents
    stands_for = Snapshot(contents.applied_index, contents.applied_term, contents.configuration)
    message = InstallSnapshot(behind.number, leader.number, request.term, stands_for)
    effects = behind.turn(Batch(messages=[message]))
    assert effects.install is None and not effects.refused_snapshots


def test_a_leader_without_room_to_commit_tries_again_later(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = leave_behind(cluster)
    leader = cluster.leader
    leader.engine.core.state_full = True
    cluster.cut()
    cluster.wait(lambda: state_of(leader, behind) is ProgressState.SNAPSHOT, "a snapshot is due")
    assert cluster.copies == []
    leader.engine.core.state_full = False
    heal_and_wait(cluster, behind)
    assert len(behind.installed) == 1


def test_a_member_that_joins_late(cluster: Cluster) -> None:
    """An empty log is as far behind as can be: the membership comes with the state."""
    leave_behind(cluster)
    cluster.cut()
    cluster.pass_time(6)
    leader = cluster.leader
    request = rpc_pb2.MemberAddRequest(peerURLs=["http://late:2380"], isLearner=True)
    added = leader.call("/etcdserverpb.Cluster/MemberAdd", request).member
    late = cluster.join(added.ID, "late")
    heal_and_wait(cluster, late)
    assert len(late.installed) == 1
    assert late.engine.core.is_learner
    assert late.engine.node.status.configuration == leader.engine.node.status.configuration
    cluster.wait(lambda: late.engine.is_ready, "the new member is ready")
    heal_and_wait(cluster, late)
    check_equal(cluster, late, leader)
