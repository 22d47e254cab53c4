"""First members that are started together do not wait for each other to find out that they are the first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from etcd_server.joining import FetchFailed, glance_at_members, is_glance
from etcd_server.services.engine import METHODS
from etcd_server.transport.wire import CLIENT, PEER, Transport
from tests.servers import free_ports

LIMIT_S = 10.0


@pytest.fixture
def beginning() -> Iterator[tuple[Transport, str, str]]:
    """A transport that listens, before there is a member; its peer and its client URL."""
    transport = Transport(METHODS, 1 << 20)
    peer, client = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    transport.listen(peer, PEER)
    transport.listen(client, CLIENT)
    yield transport, peer, client
    transport.close(0.0)


def test_a_look_is_answered_at_once_and_all_else_waits(beginning: tuple[Transport, str, str]) -> None:
    transport, peer, client = beginning

    def get(url: str) -> int:
        return requests.get(url, timeout=LIMIT_S).status_code

    with ThreadPoolExecutor(4) as pool:
        glance = pool.submit(glance_at_members, peer, LIMIT_S)
        waiting = [pool.submit(get, f"{peer}/members"), pool.submit(get, f"{client}/version")]
        while not glance.done():
            transport.attend(0.02, is_glance)
        with pytest.raises(FetchFailed, match="status 503"):
            glance.result()
        assert not any(one.done() for one in waiting)
        targets: list[str] = []
        while len(targets) < 2:
            # What has come is there, however often one looks.
            transport.attend(0.02, is_glance)
            _, _, http = transport.gather(0.02)
            for event in http:
                targets.append(event[3])
                transport.respond(event[1], 200, [], b"")
            transport.attend(0.0, is_glance)
        assert sorted(targets) == ["/members", "/version"]
        assert [one.result(LIMIT_S) for one in waiting] == [200, 200]


def test_only_the_peer_port_is_looked_at(beginning: tuple[Transport, str, str]) -> None:
    transport, _, client = beginning
    over = threading.Event()

    def look() -> None:
        with pytest.raises(FetchFailed, match="no answer in time"):
            glance_at_members(client, 0.3)
        over.set()

    thread = threading.Thread(target=look)
    thread.start()
    while not over.is_set():
        transport.attend(0.02, is_glance)
    thread.join(LIMIT_S)
