"""Joining a cluster that runs: what the peers may say, and what is refused in one line."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from etcd_server.api.proto import rpc_pb2
from etcd_server.bootstrap import BootstrapError, Identity
from etcd_server.config import Config, load, parse_command_line
from etcd_server.joining import (
    FetchFailed,
    Joining,
    Remote,
    fetch_members,
    join,
    refuse_second_beginning,
)
from tests.servers import free_ports

A = rpc_pb2.Member(ID=1, name="a", peerURLs=["http://a:1"], clientURLs=["http://a:2"])
B = rpc_pb2.Member(ID=2, peerURLs=["http://b:1", "http://b:2"])
NAMED = "a=http://a:1,b=http://b:2,b=http://b:1"


def config(cluster: str = NAMED, name: str = "b", state: str = "existing") -> Config:
    arguments = [
        *("--name", name, "--initial-cluster", cluster, "--initial-cluster-state", state),
        *("--data-dir", "/data", "--initial-advertise-peer-urls", "http://b:1,http://b:2"),
    ]
    return load(parse_command_line(arguments), {}).config


def peers(*members: rpc_pb2.Member, silent: frozenset[str] = frozenset()) -> object:
    def fetch(url: str, limit_s: float) -> Remote:
        if url in silent:
            raise FetchFailed("connection refused")
        return Remote(0xC, members)

    return fetch


def refusal(given: Config, fetch: object, identity: Identity | None = None) -> str:
    with pytest.raises(BootstrapError) as caught:
        join(given, identity, fetch)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_ids_come_from_the_peers() -> None:
    found = join(config(), None, peers(A, B))  # type: ignore[arg-type]
    assert found == Joining(Identity(2, 0xC), (A, B))


def test_the_first_peer_that_answers_is_believed() -> None:
    cluster = "a=http://a:1,a=http://a:9,b=http://b:1,b=http://b:2"
    two_urls = rpc_pb2.Member(ID=1, name="a", peerURLs=["http://a:1", "http://a:9"])
    fetch = peers(two_urls, B, silent=frozenset({"http://a:1"}))
    assert join(config(cluster), None, fetch).identity == Identity(2, 0xC)  # type: ignore[arg-type]


def test_nobody_answers() -> None:
    text = refusal(config(), peers(silent=frozenset({"http://a:1"})))
    assert text.startswith("cannot fetch cluster info from peer urls: could not retrieve cluster information")
    assert "(http://a:1: connection refused)" in text
    assert "names no other member" in refusal(config("b=http://b:1,b=http://b:2"), peers(A, B))


def test_another_number_of_members() -> None:
    text = refusal(config(f"{NAMED},c=http://c:1"), peers(A, B))
    assert "member count is unequal: --initial-cluster names 3, cluster c has 2" in text
    assert "a=http://a:1, unnamed=http://b:1,http://b:2" in text
    assert "member count is unequal" in refusal(config(), peers(A))


def test_other_urls() -> None:
    other = rpc_pb2.Member(ID=2, peerURLs=["http://b:1"])
    text = refusal(config(), peers(A, other))
    assert "PeerURLs: no match found for existing member (2, [http://b:1])" in text


def test_its_own_name_is_missing() -> None:
    assert 'couldn\'t find local name "c"' in refusal(config(name="c"), peers(A, B))


def test_a_member_that_lost_its_data_is_refused() -> None:
    started = rpc_pb2.Member(ID=2, name="b", peerURLs=["http://b:1", "http://b:2"])
    text = refusal(config(), peers(A, started))
    assert 'member 2 has been started before, as "b"' in text
    assert "/data" in text
    # A crash before it has heard from the leader: its data are here, such as they are.
    found = join(config(), Identity(2, 0xC), peers(A, started))  # type: ignore[arg-type]
    assert found.identity == Identity(2, 0xC)


def test_the_directory_of_another_member_or_cluster() -> None:
    assert "cluster ID mismatch" in refusal(config(), peers(A, B), Identity(2, 0xD))
    assert "member ID mismatch" in refusal(config(), peers(A, B), Identity(3, 0xC))


def test_a_first_member_that_was_there_already() -> None:
    given = config(state="new")
    started = rpc_pb2.Member(ID=2, name="b", peerURLs=["http://b:1"], clientURLs=["http://b:3"])
    with pytest.raises(BootstrapError, match="member 2 has already been bootstrapped"):
        refuse_second_beginning(given, Identity(2, 0xC), peers(A, started))  # type: ignore[arg-type]
    for members in ((A, B), (A,)):
        refuse_second_beginning(given, Identity(2, 0xC), peers(*members))  # type: ignore[arg-type]
    nobody = peers(silent=frozenset({"http://a:1"}))
    refuse_second_beginning(given, Identity(2, 0xC), nobody)  # type: ignore[arg-type]


def test_whoever_begins_attends_to_others_that_begin() -> None:
    """Two that ask each other: each is answered while it waits."""
    answered = threading.Event()

    def fetch(url: str, limit_s: float) -> Remote:
        assert answered.wait(limit_s)
        raise FetchFailed("status 503")

    times = []

    def attend(limit_s: float) -> None:
        times.append(limit_s)
        if len(times) == 3:
            answered.set()

    refuse_second_beginning(config(state="new"), Identity(2, 0xC), fetch, attend)  # type: ignore[arg-type]
    assert len(times) >= 3


@contextmanager
def page(status: int, body: bytes, cluster_id: str | None = "c") -> Iterator[str]:
    """A peer that answers so; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/members"
            self.send_response(status)
            if cluster_id is not None:
                self.send_header("X-Etcd-Cluster-ID", cluster_id)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_the_page_of_a_peer() -> None:
    body = (
        b'[{"id":15644327715893547793,"peerURLs":["http://a:1"],"name":"a","clientURLs":["http://a:2"]},'
        b'{"id":3,"peerURLs":["http://b:1"],"isLearner":true}]\n'
    )
    with page(200, body, "6fbbf54c08c27fe6") as url:
        found = fetch_members(url, 5.0)
    assert found.cluster_id == 0x6FBBF54C08C27FE6
    assert found.members == (
        rpc_pb2.Member(ID=15644327715893547793, name="a", peerURLs=["http://a:1"], clientURLs=["http://a:2"]),
        rpc_pb2.Member(ID=3, peerURLs=["http://b:1"], isLearner=True),
    )


@pytest.mark.parametrize(
    ("status", "body", "cluster_id", "reason"),
    [
        (404, b"404 page not found\n", "c", "status 404"),
        (301, b"", "c", "status 301"),
        (200, b"[]", "c", "does not know the members yet"),
        (200, b"{", "c", "not a list of members"),
        (200, b"7", "c", "not a list of members"),
        (200, b'[{"id":"x"}]', "c", "not a list of members"),
        (200, b'[{"id":-1}]', "c", "not a list of members"),
        (200, b'["x"]', "c", "not a list of members"),
        (200, b"[null]", "c", "not a list of members"),
        (200, b'[{"id":1}]', None, "not a list of members"),
        (200, b'[{"id":1}]', "xyz", "not a list of members"),
    ],
)
def test_pages_that_are_none(status: int, body: bytes, cluster_id: str | None, reason: str) -> None:
    with page(status, body, cluster_id) as url, pytest.raises(FetchFailed, match=reason):
        fetch_members(url, 5.0)


def test_a_peer_that_is_not_there() -> None:
    [port] = free_ports(1)
    with pytest.raises(FetchFailed, match="connection refused"):
        fetch_members(f"http://127.0.0.1:{port}", 5.0)
