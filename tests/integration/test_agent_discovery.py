"""The agent's store, found by DNS: a real name server on loopback, a real member."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_agent import discovery
from etcd_agent.follow import Store
from etcd_client import Client
from tests.servers import available_servers, start_server
from tests.unit.agent.support import configure
from tests.unit.agent.test_discovery import DNSMASQ, PLAIN, NameServer

STORES = [kind for kind in available_servers() if kind in ("3.4", "etcd-py")]
pytestmark = pytest.mark.skipif(
    not STORES or not Path(DNSMASQ).exists(), reason="no store to run against, or no dnsmasq"
)


@pytest.mark.parametrize("kind", STORES)
def test_keys_are_read_from_the_member_that_dns_names(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = NameServer()
    monkeypatch.setattr(discovery, "resolver", names.resolver)
    config = configure(tmp_path, head='srv_domain = "test.example"\n')
    with start_server(kind, tmp_path) as member:
        try:
            names.serve(f"{PLAIN},localhost,{member.client_port},1")
            with Client(member.url) as client:
                client.put("/app/value", "one")
            store = Store(config)
            assert store.nodes == (f"http://localhost:{member.client_port}",)
            assert store.read(["/app"]).entries["/app/value"].value == b"one"
            store.close()
        finally:
            names.stop()
