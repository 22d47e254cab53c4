"""A real member that was away for so long that it needs the state itself, which comes as a file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
import requests

from etcd_server.api.proto import rpc_pb2
from tests.live import Calls, WatchStream, assert_no_traceback, wait_until, watch_request
from tests.live_cluster import LiveCluster, LiveMember

PUT = "/etcdserverpb.KV/Put"
FLAGS = ("--snapshot-count", "1000", "--snapshot-catchup-entries", "500")
PUTS = 30_000
IN_FLIGHT = 8
TABLES = ("revisions", "current", "history", "leases", "members", "removed_members", "alarms")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LiveCluster]:
    with LiveCluster(tmp_path, flags=FLAGS) as cluster:
        yield cluster
        for member in cluster.members:
            if member.log_path.exists():
                assert_no_traceback(member.output)


def put(calls: Calls, count: int, name: str = "key") -> None:
    """Puts of which some are always under way, so that there are many entries."""
    function = calls.function(PUT)
    under_way: deque[Any] = deque()
    for number in range(count):
        request = rpc_pb2.PutRequest(key=b"%s/%05d" % (name.encode(), number % 20_000), value=b"%d" % number)
        under_way.append(function.future(request, timeout=30))
        if len(under_way) >= IN_FLIGHT:
            under_way.popleft().result()
    for one in under_way:
        one.result()


def metric(member: LiveMember, name: str) -> float:
    """The sum over all labels."""
    text = requests.get(f"{member.url}/metrics", timeout=5).text
    lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def wait_for_equal(cluster: LiveCluster) -> None:
    def applied() -> set[int]:
        told = [member.status() for member in cluster.running]
        return {0 if status is None else status.raftAppliedIndex for status in told}

    wait_until(lambda: len(applied()) == 1, "all members have applied the same", 60)


def rows(member: LiveMember) -> dict[str, list[Any]]:
    connection = apsw.Connection(str(member.data_dir / "state.db"), flags=apsw.SQLITE_OPEN_READONLY)
    found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in TABLES}
    connection.close()
    return found


@pytest.mark.timeout(240)
def test_a_member_that_was_away_for_30000_puts_comes_back_equal(cluster: LiveCluster) -> None:
    cluster.start()
    leader, away = cluster.leader(), cluster.followers()[0]
    with leader.calls() as calls:
        put(calls, 100)
        away.kill()
        put(calls, PUTS)
        cluster.start(away)
        put(calls, 500, "while it catches up")
        wait_for_equal(cluster)
        assert metric(leader, "etcd_network_snapshot_send_success") == 1
        assert metric(leader, "etcd_network_snapshot_send_inflights_total") == 0
        assert metric(away, "etcd_network_snapshot_receive_success") == 1
        assert metric(away, "etcd_snap_db_save_total_duration_seconds_count") == 1
        put(calls, 100, "afterwards")
    with away.calls() as calls:
        assert calls.get(b"afterwards/00099") == b"99"
        watch = WatchStream(calls, watch_request(b"afterwards/00000", start_revision=1))
        watch.wait(lambda seen: seen.events)
        watch.close()
    wait_for_equal(cluster)
    for member in cluster.members:
        member.stop()
    first, *others = (rows(member) for member in cluster.members)
    assert len(first["revisions"]) == PUTS + 700
    assert all(other == first for other in others)
    for member in cluster.members:
        verdict = member.verify()
        assert verdict.returncode == 0, verdict.stdout
        assert not os.path.isdir(member.data_dir / "snapshot") or not os.listdir(member.data_dir / "snapshot")
