"""One whole agent as a process: its services in the store, and all it does over https and as a user."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_agent.locks import is_locked
from etcd_agent.report import parse
from etcd_client import Client
from etcd_client.registry import find
from tests.integration.fleet_support import AgentFleet
from tests.integration.secure_support import SecureEtcd, ask, protect
from tests.live import wait_until
from tests.servers import Server, available_servers, start_server
from tests.unit.client.certificates import Authority

STORES = [kind for kind in available_servers() if kind != "3.5"]
SERVICE = '[service]\naddress = "10.0.0.7:{port}"\nttl = "2s"\nmetadata = {{ zone = "a" }}\n{check}'


@pytest.fixture(scope="module", params=STORES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(request.param, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


def test_services_come_and_go_with_the_agent(server: Server, tmp_path: Path) -> None:
    with Client(server.url) as client, AgentFleet(tmp_path, 1, [server.url]) as fleet:
        client.put("/app/value", "v")
        files = tmp_path / "h00" / "services.d"
        files.mkdir()
        well = tmp_path / "well"
        check = f'[check]\ncmd = ["test", "-e", "{well}"]\ninterval = "100ms"\n'
        (files / "web.toml").write_text(SERVICE.format(port=80, check=check))
        (files / "db.toml").write_text(SERVICE.format(port=5432, check=""))

        def services() -> list[str]:
            return [each.address for each in find(client, "/services/")]

        fleet.start("h00")
        wait_until(lambda: services() == ["10.0.0.7:5432"], "what needs no check is there")
        well.touch()
        wait_until(lambda: len(services()) == 2, "the other one passes its check")
        assert find(client, "/services/web/")[0].name == "h00"
        well.unlink()
        wait_until(lambda: len(services()) == 1, "and fails it")
        (files / "db.toml").write_text(SERVICE.format(port=5433, check=""))
        (files / "cache.toml").write_text(SERVICE.format(port=6379, check=""))
        fleet.signal("h00", signal.SIGHUP)
        wait_until(lambda: services() == ["10.0.0.7:6379", "10.0.0.7:5433"], "what has changed is changed")
        kept = find_keys(client)
        settings = fleet.config("h00").read_text()
        fleet.config("h00").write_text(settings.replace("max_concurrent = 2", "max_concurrent = 3"))
        fleet.signal("h00", signal.SIGHUP)
        wait_until(lambda: fleet.log("h00").count("configuration loaded again") == 2, "loaded again")
        assert find_keys(client) == kept, "other settings do not touch the services"
        fleet.config("h00").write_text(settings.replace('request_timeout = "10s"', 'request_timeout = "9s"'))
        fleet.signal("h00", signal.SIGHUP)
        wait_until(lambda: fleet.log("h00").count("configuration loaded again") == 3, "loaded again")
        wait_until(lambda: len(services()) == 2, "with another client to the store, at once")
        fleet.signal("h00", signal.SIGTERM)
        started_s = time.monotonic()
        wait_until(lambda: not services(), "taken away when the agent stops")
        assert time.monotonic() - started_s < 2, "not by the lease"
        wait_until(lambda: not is_locked(str(tmp_path / "h00" / "state")), "its end")
        fleet.start("h00")
        wait_until(lambda: len(services()) == 2, "there again")
        fleet.kill("h00")
        assert services()
        wait_until(lambda: not services(), "taken away by the lease when it dies")


def find_keys(client: Client) -> list[tuple[bytes, int]]:
    return [(kv.key, kv.mod_revision) for kv in client.get_prefix("/services/").kvs]


@pytest.mark.skipif("3.4" not in STORES, reason="etcd is not installed")
def test_an_agent_over_https_as_a_user_whose_password_changes(tmp_path: Path) -> None:
    """Keys, slot, report and service, all with a token; a new password needs no restart.

    The agent's certificate has no common name: etcd's gateway refuses users who show one that has.
    """
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    mine, my_key = authority.issue("agent", subject=False)
    trust = ("--client-cert-auth", "--trusted-ca-file", str(authority.path))
    flags = ["--cert-file", certificate, "--key-file", key, *trust]
    password = tmp_path / "password"
    password.write_text("app's password\n")
    head = (
        f'client_cakeys = "{authority.path}"\nclient_cert = "{mine}"\nclient_key = "{my_key}"\n'
        f'username = "app"\npassword_file = "{password}"\n'
    )
    (tmp_path / "store").mkdir()
    (tmp_path / "hosts").mkdir()
    tls = {"ca_file": str(authority.path), "cert": (mine, my_key)}
    as_root = {"user": "root", "password": "root's password", **tls}
    with (
        SecureEtcd("3.4", tmp_path / "store", flags=flags, https=True) as server,
        AgentFleet(tmp_path / "hosts", 1, [server.url], head) as fleet,
    ):
        protect(server, "/app", "/_agents/", "/services/", "/_schemas/", **tls)
        (tmp_path / "hosts" / "h00" / "services.d").mkdir()
        (tmp_path / "hosts" / "h00" / "services.d" / "web.toml").write_text(SERVICE.format(port=80, check=""))
        with Client(server.url, **as_root) as client:  # type: ignore[arg-type]
            client.put("/app/value", "one")
            fleet.start("h00")
            wait_until(lambda: fleet.content("h00") == "one on h00\n", f"applied\n{fleet.log('h00')}")
            wait_until(lambda: len(find(client, "/services/web/")) == 1, "registered")
            changed: dict[str, object] = {"name": "app", "password": "another one"}
            ask(server, "/v3/auth/user/changepw", changed, **as_root)
            client.put("/app/value", "two")
            password.write_text("another one\n")
            wait_until(lambda: fleet.content("h00") == "two on h00\n", f"applied\n{fleet.log('h00')}")

            def state() -> str:
                report = client.get("/_agents/status/h00/app")
                return "" if report is None else parse(report.value)["state"]

            wait_until(lambda: state() == "APPLIED", "reported")
            assert len(find(client, "/services/web/")) == 1
    assert "password" not in fleet.log("h00").replace("password_file", "").replace("user ID or password", "")
