"""Three real members on loopback: they form a cluster, and it survives the loss of any one of them."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from etcd_server.api.methods import METHODS
from etcd_server.api.proto import rpc_pb2
from tests.live import (
    GRANT,
    WATCH,
    WatchStream,
    assert_no_traceback,
    systemd_socket,
    wait_until,
    watch_request,
)
from tests.live_cluster import LiveCluster, LiveMember, Writer
from tests.servers import etcdctl_path

MEMBER_LIST = "/etcdserverpb.Cluster/MemberList"
TIME_TO_LIVE = "/etcdserverpb.Lease/LeaseTimeToLive"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LiveCluster]:
    with LiveCluster(tmp_path) as cluster:
        yield cluster
        for member in cluster.members:
            if member.log_path.exists():
                assert_no_traceback(member.output)


def count(member: LiveMember, prefix: bytes) -> int:
    with member.calls() as calls:
        response = calls.range(key=prefix, range_end=prefix[:-1] + bytes([prefix[-1] + 1]), count_only=True)
    return int(response.count)


def metrics(member: LiveMember) -> str:
    return requests.get(f"{member.url}/metrics", timeout=5).text


def test_what_is_put_at_one_member_is_read_at_the_others(cluster: LiveCluster) -> None:
    cluster.start()
    for number, member in enumerate(cluster.members):
        with member.calls() as calls:
            calls.put(b"k%d" % number, b"v")
            for other in cluster.members:
                with other.calls() as others:
                    assert others.get(b"k%d" % number) == b"v"
            told = calls.call(MEMBER_LIST, rpc_pb2.MemberListRequest(linearizable=True)).members
        urls = [(one.name, list(one.peerURLs), list(one.clientURLs)) for one in told]
        assert sorted(urls) == [
            (f"infra{n}", [one.peer_url], [one.url]) for n, one in enumerate(cluster.members)
        ]
    versions = [requests.get(f"{member.url}/version", timeout=5).json() for member in cluster.members]
    assert {version["etcdcluster"] for version in versions} == {"3.6.0"}


def test_leases_and_watches_through_a_follower(cluster: LiveCluster) -> None:
    cluster.start()
    follower = cluster.followers()[0]
    with follower.calls() as calls, cluster.leader().calls() as at_leader:
        watch = WatchStream(calls, watch_request(b"leased"))
        watch.wait(lambda seen: seen.responses)
        lease = calls.call(GRANT, rpc_pb2.LeaseGrantRequest(TTL=2))
        at_leader.call("/etcdserverpb.KV/Put", rpc_pb2.PutRequest(key=b"leased", lease=lease.ID))
        question = rpc_pb2.LeaseTimeToLiveRequest(ID=lease.ID, keys=True)
        answer = calls.call(TIME_TO_LIVE, question)
        assert (answer.grantedTTL, list(answer.keys)) == (2, [b"leased"])
        for _ in range(4):
            [kept] = calls.stream(KEEP_ALIVE, iter([rpc_pb2.LeaseKeepAliveRequest(ID=lease.ID)]))
            assert (kept.ID, kept.TTL) == (lease.ID, 2)
            time.sleep(0.8)
        assert [event.type for event in watch.events] == [0]
        watch.wait(lambda seen: len(seen.events) == 2)
        assert [event.type for event in watch.events] == [0, 1]
        watch.close()


def test_etcdctl_sees_one_leader_and_two_followers(cluster: LiveCluster) -> None:
    etcdctl = etcdctl_path()
    if etcdctl is None:
        pytest.skip("etcdctl is not installed here")
    cluster.start()
    command = [etcdctl, "--endpoints", cluster.addresses, "endpoint"]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=20, env={"ETCDCTL_API": "3"}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    told = [one["Status"] for one in json.loads(run("status", "-w", "json"))]
    assert len({status["leader"] for status in told}) == 1
    assert sum(status["leader"] == status["header"]["member_id"] for status in told) == 1
    assert run("health").count("is healthy") == 3


@pytest.mark.timeout(180)
def test_a_leader_killed_under_load_is_replaced_and_nothing_that_was_answered_is_lost(
    cluster: LiveCluster,
) -> None:
    cluster.start()
    old = cluster.leader()
    others = cluster.followers()
    writers = [
        Writer("at-leader", [old, *others]),
        Writer("at-follower", [others[0]]),
        Writer("elsewhere", [others[1]]),
    ]
    threads = [threading.Thread(target=writer.run) for writer in writers]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(len(writer.answered) > 100 for writer in writers), "load")
    old.kill()
    marks = [len(writer.answered) for writer in writers]
    wait_until(
        lambda: all(len(writer.answered) > mark + 100 for writer, mark in zip(writers, marks, strict=True)),
        "load after the loss",
    )
    new = cluster.leader(old)
    cluster.start(old)
    time.sleep(1.0)
    for writer in writers:
        writer.is_over = True
    for thread in threads:
        thread.join(20)
    assert new is not old
    for member in cluster.members:
        with member.calls() as calls:
            for writer in writers:
                prefix = writer.name.encode() + b"/"
                kvs = calls.range(key=prefix, range_end=prefix[:-1] + b"0", keys_only=True).kvs
                found = {int(kv.key.removeprefix(prefix)) for kv in kvs}
                assert set(writer.answered) <= found
    assert max(writer.longest_pause_s for writer in writers) < 10.0
    # What else fails is the connection to the member that was killed.
    told = {failure for writer in writers for failure in writer.failures if "etcdserver" in failure}
    assert told <= {"etcdserver: leader changed"}


def test_a_stop_of_the_leader_hands_over_and_a_restart_of_all_finds_everything(cluster: LiveCluster) -> None:
    cluster.start()
    old = cluster.leader()
    with old.calls() as calls:
        for n in range(50):
            calls.put(b"k%d" % n, b"v")
    others = [member for member in cluster.members if member is not old]
    old.signal(signal.SIGTERM)
    begun_s = time.monotonic()
    with others[0].calls() as calls:
        calls.put(b"kept", b"v")
    assert time.monotonic() - begun_s < 1.0
    assert old.wait_for_exit() == 0
    assert "handed the leadership over" in [entry["msg"] for entry in old.log]
    for member in others:
        member.stop()
    cluster.start()
    for member in cluster.members:
        assert count(member, b"k") == 51


def test_a_member_alone_waits_for_its_quorum_and_says_so(tmp_path: Path) -> None:
    with systemd_socket(tmp_path) as (address, received):
        flags = ("--election-timeout", "500", "--heartbeat-interval", "50")
        with LiveCluster(tmp_path, flags=flags, environments={0: {"NOTIFY_SOCKET": address}}) as cluster:
            first, second, _ = cluster.members
            first.launch()

            def told() -> list[str]:
                return [line for _, message in list(received) for line in message.splitlines()]

            wait_until(lambda: "STATUS=waiting for quorum 1/3" in told(), "the status")
            wait_until(lambda: told().count("EXTEND_TIMEOUT_USEC=30000000") >= 2, "more time")
            begun_s = time.monotonic()
            health = requests.get(f"{first.url}/health", timeout=5)
            assert (health.status_code, health.json()["reason"]) == (503, "RAFT NO LEADER")
            assert requests.get(f"{first.url}/readyz", timeout=5).status_code == 503
            assert requests.get(f"{first.url}/livez", timeout=5).status_code == 200
            assert "etcd_server_has_leader 0.0" in metrics(first)
            assert time.monotonic() - begun_s < 3.0
            assert "READY=1" not in told()
            cluster.start(second)
            wait_until(lambda: "READY=1" in told(), "readiness")
            assert requests.get(f"{first.url}/readyz", timeout=5).status_code == 200


def test_who_belongs_to_another_cluster_is_refused_and_disturbs_nobody(cluster: LiveCluster) -> None:
    first, second, stranger = cluster.members
    stranger.add_flags("--initial-cluster-token", "another")
    cluster.start(first, second)
    term = first.status()
    assert term is not None
    stranger.launch()
    wait_until(lambda: "cluster ID mismatch" in stranger.output, "the refusal")
    wait_until(lambda: "cluster ID mismatch" in first.output, "the refusal in the others' log")
    with first.calls() as calls:
        calls.put(b"k", b"v")
    later = first.status()
    assert later is not None and later.raftTerm == term.raftTerm


def test_a_watch_that_requires_a_leader_ends_without_one(tmp_path: Path) -> None:
    flags = ("--election-timeout", "500", "--heartbeat-interval", "50")
    with LiveCluster(tmp_path, flags=flags) as cluster:
        cluster.start()
        follower = cluster.followers()[0]
        with follower.calls() as calls:
            make = calls.channel.stream_stream(
                WATCH, METHODS[WATCH].request.SerializeToString, METHODS[WATCH].response.FromString
            )
            over = threading.Event()

            def ask() -> Iterator[Any]:
                yield watch_request(b"k")
                over.wait(30)

            stream = make(ask(), metadata=[("hasleader", "true")], timeout=30)
            assert next(stream).created
            for member in cluster.members:
                if member is not follower:
                    member.kill()
            with pytest.raises(grpc.RpcError) as caught:
                next(stream)
            over.set()
            assert (caught.value.code(), caught.value.details()) == (
                grpc.StatusCode.UNAVAILABLE,
                "etcdserver: no leader",
            )


def test_the_metrics_of_the_links(cluster: LiveCluster) -> None:
    cluster.start()
    leader = cluster.leader()
    own, others = leader.status(), [member.status() for member in cluster.followers()]
    assert own is not None
    with leader.calls() as calls:
        for _ in range(20):
            calls.put(b"k", b"x" * 1000)

    def values(name: str) -> dict[str, float]:
        lines = [
            line.rpartition(" ") for line in metrics(leader).splitlines() if line.startswith(f"{name}{{")
        ]
        return {head[len(name) :]: float(value) for head, _, value in lines}

    wait_until(
        lambda: all(values("etcd_network_peer_round_trip_time_seconds_count").values()), "round trips", 10
    )
    for other in others:
        assert other is not None
        number = f"{other.header.member_id:x}"
        assert values("etcd_network_peer_sent_bytes_total")[f'{{To="{number}"}}'] > 20_000
        assert values("etcd_network_peer_received_bytes_total")[f'{{From="{number}"}}'] > 100
        pair = f'{{Local="{own.header.member_id:x}",Remote="{number}"}}'
        assert values("etcd_network_active_peers")[pair] == 1.0
