"""A learner's clients: what etcd 3.5 refuses them over gRPC and as JSON, and what etcd-py refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from etcd_server.api.methods import METHODS
from etcd_server.api.proto import rpc_pb2
from tests.live import Calls
from tests.servers import EtcdPy, RealEtcd, Server, available_servers

LIMIT_S = 10.0
CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("KV/Range", {"key": "YQ=="}),
    ("KV/Range", {"key": "YQ==", "serializable": True}),
    ("KV/Put", {"key": "YQ=="}),
    ("KV/DeleteRange", {"key": "YQ=="}),
    ("KV/Txn", {}),
    ("KV/Compact", {"revision": 1}),
    ("Lease/LeaseGrant", {"TTL": 5}),
    ("Lease/LeaseLeases", {}),
    ("Cluster/MemberList", {}),
    ("Cluster/MemberRemove", {"ID": 77}),
    ("Maintenance/Alarm", {}),
    ("Maintenance/Status", {}),
    ("Maintenance/MoveLeader", {"targetID": 77}),
    ("Watch/Watch", {"create_request": {"key": "YQ=="}}),
)


def told(kind: str, folder: Path) -> list[str]:
    folder.mkdir()

    def make(name: str) -> Server:
        return EtcdPy(folder, name=name) if kind == "etcd-py" else RealEtcd(kind, folder, name=name)

    with make("m1") as first:
        learner = make("m2")
        learner.add_flags(
            *("--initial-cluster", f"m1={first.peer_url},m2={learner.peer_url}"),
            *("--initial-cluster-state", "existing"),
        )
        body = {"peerURLs": [learner.peer_url], "isLearner": True}
        requests.post(f"{first.url}/v3/cluster/member/add", json=body, timeout=LIMIT_S).raise_for_status()
        with learner, Calls(learner.address) as calls:
            return [line for name, fields in CALLS for line in both(learner, calls, name, fields)]


def both(server: Server, calls: Calls, name: str, fields: dict[str, Any]) -> list[str]:
    rpc = METHODS[f"/etcdserverpb.{name}"]
    answer = requests.post(f"{server.url}{rpc.gateway_paths[0]}", json=fields, timeout=LIMIT_S)
    if name == "Watch/Watch":
        return [f"{name} {fields}: {answer.json()['error']['message']}"]
    as_json = f"{name} {fields}: {answer.status_code} {answer.json().get('error')}"
    try:
        calls.call(rpc.path, rpc.request(**grpc_fields(fields)))
    except grpc.RpcError as error:
        return [as_json, f"{name}: {error.code()} {error.details()}"]
    return [as_json, f"{name}: answered"]


def grpc_fields(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: b"a" if name == "key" else value for name, value in fields.items()}


@pytest.mark.skipif("3.5" not in available_servers(), reason="etcd 3.5 is not installed here")
def test_the_same_is_refused(tmp_path: Path) -> None:
    real = told("3.5", tmp_path / "real")
    # Since etcd 3.6 it is a failed precondition.
    real = [
        line.replace(": 503 ", ": 400 ").replace("UNAVAILABLE", "FAILED_PRECONDITION")
        if "not supported for learner" in line
        else line
        for line in real
    ]
    own = told("etcd-py", tmp_path / "own")
    assert own == real
    assert sum("not supported for learner" in line for line in own) > 20


def test_a_learner_tells_its_hash(tmp_path: Path) -> None:
    """etcd refuses it: here one sees how good the copy is before it counts."""
    with EtcdPy(tmp_path, name="m1") as first:
        learner = EtcdPy(tmp_path, name="m2")
        learner.add_flags(
            *("--initial-cluster", f"m1={first.peer_url},m2={learner.peer_url}"),
            *("--initial-cluster-state", "existing"),
        )
        with Calls(first.address) as calls:
            member = rpc_pb2.MemberAddRequest(peerURLs=[learner.peer_url], isLearner=True)
            calls.call("/etcdserverpb.Cluster/MemberAdd", member)
            calls.put(b"k", b"v")
        with learner:
            told = [
                requests.post(f"{server.url}/v3/maintenance/hashkv", json={"revision": 2}, timeout=LIMIT_S)
                for server in (first, learner)
            ]
    assert told[0].json()["hash"] == told[1].json()["hash"]
