"""HashKV: the same history put to etcd 3.4, etcd 3.5 and etcd-py gives the same numbers at every revision."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from google.protobuf.message import Message

from etcd_server.api.proto import rpc_pb2
from tests.live import Calls
from tests.servers import available_servers, start_server

REAL = [kind for kind in available_servers() if kind != "etcd-py"]
KEYS = [b"a", b"a/b", b"b", b"key with spaces", b"\x00", b"\xff\xfe", b"k" * 300]
LEASES = [7, 1 << 40, (1 << 63) - 1]
HASH_KV, HASH = "/etcdserverpb.Maintenance/HashKV", "/etcdserverpb.Maintenance/Hash"
PUT, DELETE, TXN = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/DeleteRange", "/etcdserverpb.KV/Txn"
GRANT, REVOKE = "/etcdserverpb.Lease/LeaseGrant", "/etcdserverpb.Lease/LeaseRevoke"
COMPACT = "/etcdserverpb.KV/Compact"

pytestmark = pytest.mark.skipif(not REAL, reason="no etcd is installed here")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, Calls]]:
    """By kind; new ones, since revisions count from the beginning."""
    started = {}
    try:
        for kind in [*REAL, "etcd-py"]:
            folder = tmp_path / kind
            folder.mkdir()
            started[kind] = start_server(kind, folder)
        calls = {kind: Calls(server.address) for kind, server in started.items()}
        yield calls
        for one in calls.values():
            one.channel.close()
    finally:
        for server in started.values():
            server.stop()


def a_put(draw: random.Random) -> rpc_pb2.PutRequest:
    value = draw.choice(
        [b"", b"v", bytes(draw.randrange(256) for _ in range(draw.choice([3, 127, 128, 2000])))]
    )
    lease = draw.choice([0, 0, 0, *LEASES])
    return rpc_pb2.PutRequest(key=draw.choice(KEYS), value=value, lease=lease)


def a_delete(draw: random.Random) -> rpc_pb2.DeleteRangeRequest:
    end = draw.choice([b"", b"", b"", b"b", b"\0"])
    return rpc_pb2.DeleteRangeRequest(key=draw.choice(KEYS), range_end=end)


def a_txn(draw: random.Random) -> rpc_pb2.TxnRequest:
    puts = [a_put(draw) for _ in range(4)]
    distinct = {put.key: put for put in puts}.values()
    gone = draw.choice([key for key in KEYS if key not in {put.key for put in puts}])
    operations = [rpc_pb2.RequestOp(request_put=put) for put in distinct]
    operations.append(rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=gone)))
    draw.shuffle(operations)
    nested = rpc_pb2.TxnRequest(success=operations[2:])
    return rpc_pb2.TxnRequest(success=[*operations[:2], rpc_pb2.RequestOp(request_txn=nested)])


def told(calls: Calls, revision: int) -> tuple[int, int, int]:
    answer = calls.call(HASH_KV, rpc_pb2.HashKVRequest(revision=revision))
    return answer.hash, answer.compact_revision, answer.header.revision


def assert_same(servers: dict[str, Calls], revision: int) -> None:
    numbers = {kind: told(calls, revision) for kind, calls in servers.items()}
    assert len(set(numbers.values())) == 1, f"at {revision}: {numbers}"


def refusal(calls: Calls, revision: int) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as raised:
        told(calls, revision)
    return raised.value.code().name, str(raised.value.details())


@pytest.mark.parametrize("seed", range(3))
def test_the_hash_is_etcds(servers: dict[str, Calls], seed: int) -> None:
    draw = random.Random(seed)

    def everywhere(method: str, request: Message) -> Any:
        return [calls.call(method, request) for calls in servers.values()][-1]

    assert_same(servers, 0)
    for lease in LEASES:
        everywhere(GRANT, rpc_pb2.LeaseGrantRequest(ID=lease, TTL=1000))
    compacted = 1
    for _ in range(4):
        revision = compacted
        for _ in range(30):
            kind = draw.choice([PUT, PUT, PUT, DELETE, TXN])
            make = {PUT: a_put, DELETE: a_delete, TXN: a_txn}[kind]
            revision = everywhere(kind, make(draw)).header.revision
        for at in [0, *draw.sample(range(compacted + 1, revision + 1), 8)]:
            assert_same(servers, at)
        compacted = draw.randrange(compacted + 1, revision)
        everywhere(COMPACT, rpc_pb2.CompactionRequest(revision=compacted, physical=True))
        for at in [0, *range(compacted + 1, revision + 1)]:
            assert_same(servers, at)
    # Nothing is live any more: what was at the compacted revision counts.
    revision = everywhere(DELETE, rpc_pb2.DeleteRangeRequest(key=b"\0", range_end=b"\0")).header.revision
    assert_same(servers, revision)
    everywhere(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=LEASES[0]))
    assert_same(servers, 0)
    for at in (compacted - 1, revision + 1):
        assert len({refusal(calls, at) for calls in servers.values()}) == 1
    # All of it compacted, too.
    everywhere(COMPACT, rpc_pb2.CompactionRequest(revision=revision, physical=True))
    assert_same(servers, 0)


def test_the_gateway_knows_both(tmp_path: Path) -> None:
    """Under the names of etcd >= 3.5; 3.4's for HashKV is that of Hash later."""
    with start_server("etcd-py", tmp_path) as server:
        body = requests.post(f"{server.url}/v3/maintenance/hashkv", json={"revision": "1"}, timeout=5).json()
        calls = Calls(server.address)
        answer = calls.call(HASH_KV, rpc_pb2.HashKVRequest())
        whole = calls.call(HASH, rpc_pb2.HashRequest()).hash
        calls.channel.close()
        assert (body["hash"], body["hash_revision"], body["compact_revision"]) == (answer.hash, "1", "-1")
        body = requests.post(f"{server.url}/v3/maintenance/hash", json={}, timeout=5).json()
        assert body["hash"] == whole
        refused = requests.post(f"{server.url}/v3/maintenance/hashkv", json={"revision": "9"}, timeout=5)
        assert refused.status_code == 400
        assert refused.json()["error"] == "etcdserver: mvcc: required revision is a future revision"
