"""The store's members by DNS SRV records, as a real name server on loopback answers for them."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dns.message
import dns.query
import dns.resolver
import pytest

from etcd_agent import discovery, runtime
from etcd_agent.errors import ConfigError, StoreError
from etcd_agent.follow import Store, connect
from etcd_agent.values import AgentConfig, Credentials, State
from etcd_client import Unreachable
from tests.servers import free_ports
from tests.unit.agent.live import LiveAgent, MemoryStore, wait_for
from tests.unit.agent.support import configure

DNSMASQ = shutil.which("dnsmasq") or "/usr/sbin/dnsmasq"
DOMAIN = "test.example"
PLAIN, TLS = f"_etcd-client._tcp.{DOMAIN}", f"_etcd-client-ssl._tcp.{DOMAIN}"
pytestmark = pytest.mark.skipif(not Path(DNSMASQ).exists(), reason="dnsmasq is not installed")


class NameServer:
    """dnsmasq with a few SRV records; started again it may have others."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    def serve(self, *records: str) -> None:
        """Records as ``NAME,TARGET,PORT,PRIORITY``; names of the domain without one do not exist."""
        self.stop()
        command = [DNSMASQ, "-k", "-R", "-h", "--conf-file=/dev/null", "--pid-file=", "--user=root"]
        command += ["--listen-address=127.0.0.1", "--bind-interfaces", f"--port={self.port}"]
        command += [f"--local=/{DOMAIN}/", *(f"--srv-host={record}" for record in records)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._answers, "dnsmasq answers")

    def _answers(self) -> bool:
        question = dns.message.make_query(f"{DOMAIN}.", "A")
        try:
            dns.query.tcp(question, "127.0.0.1", port=self.port, timeout=0.5)
        except (OSError, dns.exception.DNSException):
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def resolver(self) -> dns.resolver.Resolver:
        made = dns.resolver.Resolver(configure=False)
        made.nameservers, made.port = ["127.0.0.1"], self.port
        return made


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    made = NameServer()
    monkeypatch.setattr(discovery, "resolver", made.resolver)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return configure(
        tmp_path,
        head=f'srv_domain = "{DOMAIN}"\n[backend]\ndial_timeout = "500ms"\nrequest_timeout = "500ms"\n',
    )


def test_the_members_of_a_domain(server: NameServer, config: AgentConfig) -> None:
    server.serve(f"{PLAIN},b.{DOMAIN},2379,20", f"{PLAIN},a.{DOMAIN},2479,10", f"{TLS},c.{DOMAIN},2379,30")
    secure, first, second = (
        f"https://c.{DOMAIN}:2379",
        f"http://a.{DOMAIN}:2479",
        f"http://b.{DOMAIN}:2379",
    )
    assert config.nodes == ()
    assert discovery.members(config) == (secure, first, second), "TLS first, then by priority"
    assert Store(config).nodes == (secure, first, second)
    trusting = replace(config, credentials=Credentials(client_cakeys="/ca.pem"))
    assert discovery.members(trusting) == (secure,), "nothing without TLS is taken for a member"


def test_one_record_in_full(server: NameServer, tmp_path: Path) -> None:
    server.serve(f"_store._tcp.{DOMAIN},a.{DOMAIN},2379,1", f"{TLS},b.{DOMAIN},1,1")
    config = configure(tmp_path, head=f'srv_record = "_store._tcp.{DOMAIN}."\n')
    assert discovery.members(config) == (f"http://a.{DOMAIN}:2379",)
    trusting = replace(config, credentials=Credentials(client_cakeys="/ca.pem"))
    assert discovery.members(trusting) == (f"https://a.{DOMAIN}:2379",)
    config = configure(tmp_path, head=f'srv_record = "{TLS}"\n')
    assert discovery.members(config) == (f"https://b.{DOMAIN}:1",)
    assert config.srv is not None and config.srv.domain == DOMAIN


def test_what_is_wrong_is_said_in_one_line(server: NameServer, config: AgentConfig) -> None:
    server.serve(f"{PLAIN}-other,a.{DOMAIN},1,1")
    none = f"^store: there is no SRV record {TLS}; there is no SRV record {PLAIN}$"
    with pytest.raises(StoreError, match=none):
        discovery.members(config)
    with pytest.raises(StoreError, match=none):
        connect(config)
    store = Store(config)
    assert store.nodes == ()
    with pytest.raises(StoreError, match=none):
        store.read(["/app"])
    with pytest.raises(Unreachable, match=f"there is no SRV record {TLS}"):
        store.client.get("/app", serializable=True)
    store.close()
    server.serve(f"{PLAIN},,1,1")
    with pytest.raises(StoreError, match=f"{PLAIN}: names no member"):
        discovery.members(config)
    server.stop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", server.port))
        with pytest.raises(StoreError, match=f"SRV {PLAIN}: no answer in 0.5 s"):
            discovery.members(config)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            f'srv_domain = "{DOMAIN}"\nnodes = ["http://a:1"]',
            "the members are either listed or asked for",
        ),
        (
            f'srv_domain = "{DOMAIN}"\nsrv_record = "{PLAIN}"',
            "srv_domain and srv_record say the same: expected one of them",
        ),
        ('srv_domain = "http://a:1"', "srv_domain: expected a domain such as"),
        (f'srv_record = "{DOMAIN}"', "srv_record: expected a record such as"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, lines: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        configure(tmp_path, head=lines)


class Member(MemoryStore):
    """A store for who knows one of the addresses ``alive``. ``nodes``: as the real one found them."""

    def __init__(self, config: AgentConfig, alive: set[str]) -> None:
        super().__init__()
        real = Store(config)
        real.close()
        self.nodes = real.nodes
        self.put({"/app/value": f"from {', '.join(self.nodes)}"})
        self.is_away = not alive.intersection(self.nodes)

    def die(self) -> None:
        self.is_away = True
        for watch in self.watches.values():
            watch.items.put(Unreachable("gone"))


def test_dns_is_asked_again_while_no_known_member_answers(
    server: NameServer, config: AgentConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From a name that is not there, over one member, to another one in its place."""
    first, second = f"http://a.{DOMAIN}:1", f"http://b.{DOMAIN}:2"
    alive = {first, second}
    stores: list[Member] = []

    def store_of(config: AgentConfig) -> Member:
        stores.append(Member(config, alive))
        return stores[-1]

    monkeypatch.setattr(runtime, "_MEMBERS_EVERY_S", 0.1)
    monkeypatch.setattr(runtime, "Store", store_of)
    file = tmp_path / "a.conf"
    server.serve()
    live = LiveAgent(config, lambda: config)
    try:
        assert live.agent.status().nodes == ()
        server.serve(f"{PLAIN},a.{DOMAIN},1,1")
        live.wait(state=State.APPLIED)
        assert file.read_text() == f"from {first}\n" and live.agent.status().nodes == (first,)
        live.agent.reload()
        wait_for(lambda: "READY=1" in "".join(live.sent[-1:]), "loaded again")
        assert len(stores) == 2, "a reload with the same settings asks no DNS"
        alive.remove(first)
        server.serve(f"{PLAIN},b.{DOMAIN},2,1")
        assert live.agent.status().nodes == (first,), "DNS is asked only when it must be"
        stores[-1].die()
        wait_for(lambda: file.read_text() == f"from {second}\n", "the other member is found")
        assert live.agent.status().nodes == (second,) and len(stores) == 3
        wait_for(lambda: not live.agent.status().store_error)
    finally:
        live.stop()
