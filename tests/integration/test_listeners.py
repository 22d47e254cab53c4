"""What answers where: clients' ports have everything, those for members and metrics the pages only."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import requests

from etcd_server.api.proto import rpc_pb2
from tests.servers import EtcdPy, available_servers, free_ports

pytestmark = pytest.mark.skipif("etcd-py" not in available_servers(), reason="the server is not built")

LIMIT_S = 5.0


class Ports:
    """A member with a listener of each kind, one of them a unix socket."""

    def __init__(self, folder: Path) -> None:
        [metrics_port] = free_ports(1)
        self.metrics = f"127.0.0.1:{metrics_port}"
        self.server = EtcdPy(folder, flags=["--listen-metrics-urls", f"http://{self.metrics}"])
        self.server.start()
        self.client = self.server.address
        self.peer = self.server.peer_url.removeprefix("http://")


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    ports = Ports(tmp_path_factory.mktemp("listeners"))
    yield ports
    ports.server.stop()


def put(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/etcdserverpb.KV/Put",
            request_serializer=rpc_pb2.PutRequest.SerializeToString,
            response_deserializer=rpc_pb2.PutResponse.FromString,
        )
        return int(call(rpc_pb2.PutRequest(key=b"k", value=b"v"), timeout=LIMIT_S).header.revision)


def test_clients_have_grpc_gateway_and_pages(ports: Ports) -> None:
    assert put(ports.client) > 1
    answer = requests.post(f"http://{ports.client}/v3/kv/range", json={"key": "aw=="}, timeout=LIMIT_S)
    assert answer.json()["count"] == "1"
    assert requests.get(f"http://{ports.client}/version", timeout=LIMIT_S).json()["etcdserver"]


@pytest.mark.parametrize("kind", ["peer", "metrics"])
def test_the_other_ports_have_the_pages_only(ports: Ports, kind: str) -> None:
    address = getattr(ports, kind)
    with pytest.raises(grpc.RpcError) as refused:
        put(address)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert requests.post(f"http://{address}/v3/kv/range", json={}, timeout=LIMIT_S).status_code == 404
    assert requests.get(f"http://{address}/health", timeout=LIMIT_S).json()["health"] == "true"
    assert "etcd_server_has_leader 1.0" in requests.get(f"http://{address}/metrics", timeout=LIMIT_S).text
