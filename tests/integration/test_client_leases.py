"""Leases that cannot be renewed: noticed about when they run out, whatever a call may take otherwise."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from etcd_client import Client
from tests.servers import Server, available_servers, start_server

LIMIT_S = 20.0
TTL_S = 2


@pytest.fixture(params=[kind for kind in available_servers() if kind != "3.5"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(request.param, tmp_path_factory.mktemp("server")) as running:
        yield running


def test_a_store_that_hangs(server: Server) -> None:
    """It takes connections and answers nothing: a call may take half a minute, noticing may not."""
    told = threading.Event()
    with Client(server.url, timeout_s=30.0) as client:
        lease = client.lease(TTL_S)
        lease.keep_alive(on_lost=told.set)
        assert not lease.lost.wait(TTL_S + 1), "renewed"
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        try:
            started_s = time.monotonic()
            assert told.wait(LIMIT_S)
            assert lease.lost.is_set()
            assert time.monotonic() - started_s < TTL_S + 4
        finally:
            server.process.send_signal(signal.SIGCONT)
        lease.stop_keeping_alive()


def test_a_lease_that_is_gone(server: Server) -> None:
    told: list[str] = []
    with Client(server.url) as client:
        lease = client.lease(TTL_S)
        lease.keep_alive(on_lost=lambda: told.append("lost"))
        client.existing_lease(lease.lease_id).revoke()
        assert lease.lost.wait(LIMIT_S)
        lease.stop_keeping_alive()
        kept = client.lease(TTL_S)
        kept.keep_alive(on_lost=lambda: told.append("kept"))
        kept.revoke()
        assert kept.lost.is_set()
    assert told == ["lost"], "told once, and not of one's own revocation"
