"""Services in real stores, ours and etcd 3.4: registered, followed, and what becomes of them in trouble."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from etcd_agent.registration import Registrar, Watcher
from etcd_agent.values import ServiceCheck, ServiceConfig
from etcd_client import Client, NotNow
from etcd_client.registry import Endpoint, NoEndpoint, Registration, Service, find
from tests.live import wait_until
from tests.servers import Server, available_servers, start_server

LIMIT_S = 15.0
STORES = [kind for kind in available_servers() if kind != "3.5"]
_numbers = count()


@pytest.fixture(scope="module", params=STORES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(request.param, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, timeout_s=2.0) as made:
        yield made


@pytest.fixture
def prefix() -> str:
    return f"/services/s{next(_numbers)}/"


def names(service: Service) -> list[str]:
    return [endpoint.name for endpoint in service.endpoints]


def test_registered_found_followed_and_gone(client: Client, prefix: str) -> None:
    changes: list[tuple[Endpoint, ...]] = []
    with Service(client, prefix, changes.append) as service:
        with pytest.raises(NoEndpoint):
            service.pick()
        with Registration(client, f"{prefix}a", "10.0.0.1:80", {"weight": 3}, ttl_s=5) as first:
            assert first.wait(LIMIT_S) and first.registered
            assert service.wait_for(lambda found: len(found) == 1, LIMIT_S)
            assert service.pick() == Endpoint("a", "10.0.0.1:80", {"weight": 3})
            with Registration(client, f"{prefix}b", "10.0.0.2:80", ttl_s=5):
                assert service.wait_for(lambda found: len(found) == 2, LIMIT_S)
                assert {service.pick().address for _ in range(2)} == {"10.0.0.1:80", "10.0.0.2:80"}
            assert service.wait_for(lambda found: len(found) == 1, LIMIT_S)
        assert service.wait_for(lambda found: not found, LIMIT_S)
        assert [len(each) for each in changes] == [1, 2, 1, 0]
    stored = client.get_prefix(prefix)
    assert stored.kvs == ()


def test_the_key_can_be_read_by_others(client: Client, prefix: str) -> None:
    with Registration(client, f"{prefix}a", "10.0.0.1:80", {"zone": "ö"}, ttl_s=5) as registration:
        assert registration.wait(LIMIT_S)
        found = client.get(f"{prefix}a")
        assert found is not None and found.lease
        assert json.loads(found.value) == {"Op": 0, "Addr": "10.0.0.1:80", "Metadata": {"zone": "ö"}}
        assert find(client, prefix) == (Endpoint("a", "10.0.0.1:80", {"zone": "ö"}),)


def test_a_lost_lease_and_a_deleted_key_are_made_good(client: Client, prefix: str) -> None:
    with Registration(client, f"{prefix}a", "10.0.0.1:80", ttl_s=1) as registration:
        assert registration.wait(LIMIT_S)
        found = client.get(f"{prefix}a")
        assert found is not None
        client.existing_lease(found.lease).revoke()
        assert client.get(f"{prefix}a") is None
        again = wait_until(lambda: client.get(f"{prefix}a"), "the key, under a new lease")
        assert again.lease != found.lease
        client.delete(f"{prefix}a")
        wait_until(lambda: client.get(f"{prefix}a"), "the key, once it is missed")


def test_a_key_that_somebody_else_holds_is_left_to_them(
    client: Client, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Registration(client, f"{prefix}a", "10.0.0.1:80", ttl_s=1) as first:
        assert first.wait(LIMIT_S)
        with Registration(client, f"{prefix}a", "10.0.0.2:80", ttl_s=1) as second:
            assert second.wait(LIMIT_S)
            wait_until(lambda: "somebody else holds this key" in caplog.text, "it is noticed")
            assert find(client, prefix)[0].address == "10.0.0.2:80"
        wait_until(lambda: find(client, prefix), "the first takes it back")
        assert find(client, prefix)[0].address == "10.0.0.1:80"


def test_a_store_that_goes_and_comes(tmp_path: Path) -> None:
    """Stopped for longer than the lease, then started with an empty folder: followers keep what they know,
    and the registration is made again."""
    with start_server(STORES[-1], tmp_path) as server, Client(server.url, timeout_s=1.0) as client:
        registration = Registration(client, "/services/web/a", "10.0.0.1:80", ttl_s=1)
        registration.start()
        assert registration.wait(LIMIT_S)
        with Service(client, "/services/web/", idle_timeout_s=2.0) as service:
            assert service.wait_for(bool, LIMIT_S)
            server.stop()
            wait_until(lambda: not registration.registered, "the loss is noticed")
            assert names(service) == ["a"] and not service.healthy
            wait_until(lambda: isinstance(registration.last_error, NotNow), "the reason")
            server.start()
            wait_until(lambda: registration.registered, "registered again")
            server.stop()
            server.data_dir.rename(tmp_path / "old")
            server.start()
            wait_until(lambda: find(client, "/services/web/"), "registered in the new store, too")
            assert service.wait_for(bool, LIMIT_S) and names(service) == ["a"]
        registration.stop()
        assert find(client, "/services/web/") == ()


# --- the agent's side -------------------------------------------------------------------------------------


def entry(prefix: str, name: str, **check: object) -> ServiceConfig:
    return ServiceConfig(
        name, f"{name}.toml", "10.0.0.1:80", f"{prefix}{name}", {}, 5,
        ServiceCheck(**{"interval_s": 0.05, "timeout_s": 0.5, **check}),  # type: ignore[arg-type]
    )  # fmt: skip


def test_in_the_store_while_the_check_passes(client: Client, prefix: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    registrar = Registrar(client)
    registrar.set_services([entry(prefix, "web", tcp=address), entry(prefix, "always")])
    try:
        with Service(client, prefix) as service:
            assert service.wait_for(lambda found: len(found) == 2, LIMIT_S)
            wait_until(lambda: set(registrar.states().values()) == {"registered"}, "both know it")
            listener.close()
            assert service.wait_for(lambda found: len(found) == 1, LIMIT_S)
            assert registrar.states()["web"] == f"{address}: Connection refused"
            host, _, port = address.partition(":")
            listener = socket.create_server((host, int(port)))
            assert service.wait_for(lambda found: len(found) == 2, LIMIT_S)
            registrar.set_services([entry(prefix, "web", tcp=address, rise=1)])
            assert service.wait_for(lambda found: [each.name for each in found] == ["web"], LIMIT_S)
            registrar.close()
            assert service.wait_for(lambda found: not found, LIMIT_S), "taken away when the agent stops"
    finally:
        registrar.close()
        listener.close()


def test_one_bad_result_changes_nothing(client: Client, prefix: str) -> None:
    results = iter([None, None, "sick", None, "sick", "sick", None, *["sick"] * 200])
    watcher = Watcher(entry(prefix, "web", tcp="h:1"), client, run_check=lambda check: next(results))
    watcher.start()
    with Service(client, prefix) as service:
        assert service.wait_for(bool, LIMIT_S)
        assert service.wait_for(lambda found: not found, LIMIT_S)
    watcher.stop()
    watcher.join(LIMIT_S)


def test_a_check_that_breaks_takes_the_service_away(
    client: Client, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    def run(check: ServiceCheck) -> str | None:
        raise RuntimeError("a bug")

    with caplog.at_level(logging.CRITICAL):
        watcher = Watcher(entry(prefix, "web", tcp="h:1"), client, run_check=run)
        watcher.start()
        wait_until(lambda: watcher.reason == "RuntimeError: a bug", "the reason")
        watcher.stop()
        watcher.join(LIMIT_S)
    assert not watcher.registered


def test_the_lease_ends_what_a_dead_host_left(server: Server, client: Client, prefix: str) -> None:
    with Client(server.url, timeout_s=1.0) as dying:
        registration = Registration(dying, f"{prefix}a", "10.0.0.1:80", ttl_s=1)
        registration.start()
        assert registration.wait(LIMIT_S)
        started_s = time.monotonic()
    # Its client is closed: from here on nothing is renewed, as if the host were gone.
    wait_until(lambda: not find(client, prefix), "the lease runs out")
    assert time.monotonic() - started_s < 5
    registration.stop()
