"""etcdctl 3.4 and 3.5 as an administrator of three members uses them, through any one of the members."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import assert_no_traceback
from tests.live_cluster import LiveCluster

LIMIT_S = 20.0
_CANDIDATES = {"3.4": Path("/usr/bin/etcdctl"), "3.5": Path(sys.executable).parent / "etcdctl"}
PROGRAMS = {version: str(path) for version, path in _CANDIDATES.items() if path.exists()}

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="etcdctl is not installed here")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    with LiveCluster(tmp_path_factory.mktemp("members")) as cluster:
        cluster.start()
        yield cluster
        for member in cluster.members:
            assert_no_traceback(member.output)


def run(version: str, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAMS[version], "--endpoints", address, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=os.environ | {"ETCDCTL_API": "3"},
        check=False,
    )


def answer(version: str, address: str, *words: str) -> str:
    done = run(version, address, *words)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize("version", PROGRAMS)
def test_the_whole_cluster_through_each_member(cluster: LiveCluster, version: str) -> None:
    # etcdctl 3.4 names the members that it has learnt of by their whole URLs.
    urls = {member.url for member in cluster.members}
    for member in cluster.members:
        told = json.loads(answer(version, member.address, "endpoint", "status", "--cluster", "-w", "json"))
        assert {one["Endpoint"] for one in told} == urls
        assert len({one["Status"]["leader"] for one in told}) == 1
        assert len({one["Status"]["header"]["member_id"] for one in told}) == 3
        health = answer(version, member.address, "endpoint", "health", "--cluster").splitlines()
        healthy = {line.split()[0] for line in health if " is healthy: " in line}
        assert healthy == urls
        told = json.loads(answer(version, member.address, "endpoint", "hashkv", "--cluster", "-w", "json"))
        assert {one["Endpoint"] for one in told} == urls
        assert len({one["HashKV"]["hash"] for one in told}) == 1
