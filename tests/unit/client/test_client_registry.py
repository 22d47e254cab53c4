"""What an endpoint's key holds, and how endpoints are chosen, without a network."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from etcd_client import Client
from etcd_client.registry import Endpoint, NoEndpoint, Service, check_address, dump, find, parse
from tests.unit.client.fakes import A, FakeTransport, Stream, created, delete_event, kv, ok, put_events

PREFIX = "/services/web/"


def test_the_value_is_that_of_etcds_own_naming_package() -> None:
    assert json.loads(dump("h:1", {"weight": 3})) == {"Op": 0, "Addr": "h:1", "Metadata": {"weight": 3}}
    assert json.loads(dump("h:1", {})) == {"Op": 0, "Addr": "h:1", "Metadata": None}
    assert parse("a", dump("h:1", {"weight": 3})) == Endpoint("a", "h:1", {"weight": 3})
    assert parse("a", " 10.0.0.1:80\n") == Endpoint("a", "10.0.0.1:80")


@pytest.mark.parametrize(
    "value", ["", "x", "h:", "h:0", "h:65536", ":80", "::1:80", "{", '{"Addr": 1}', "{}", "h:\uff18"]
)
def test_what_is_no_endpoint(value: str) -> None:
    with pytest.raises(ValueError):
        parse("a", value)


def test_host_and_port() -> None:
    assert (Endpoint("a", "[::1]:80").host, Endpoint("a", "[::1]:80").port) == ("::1", 80)
    assert Endpoint("a", "web.example:443").host == "web.example"
    assert check_address("[fe80::1]:8080") == "[fe80::1]:8080"


def service_of(*frames: Any, kvs: list[Any]) -> tuple[Service, Client]:
    stream = Stream(created(5), *frames, end=Stream.hold)
    client = Client(A, transport=FakeTransport(a=[ok(kvs=kvs), stream]), random=Random(1))
    return Service(client, PREFIX), client


def test_endpoints_are_followed_and_picked_in_turn(caplog: pytest.LogCaptureFixture) -> None:
    here = [kv(f"{PREFIX}a", "h:1", 3), kv(f"{PREFIX}b", "h:2", 4), kv(f"{PREFIX}c", "nonsense", 4)]
    service, client = service_of(put_events((f"{PREFIX}d", "h:4", 6)), kvs=here)
    assert service.wait_for(lambda endpoints: len(endpoints) == 3, 5.0)
    assert [each.name for each in service.endpoints] == ["a", "b", "d"]
    picked = [service.pick().address for _ in range(6)]
    assert picked[:3] == picked[3:] and sorted(picked[:3]) == ["h:1", "h:2", "h:4"]
    assert any("c: not an endpoint" in record.getMessage() for record in caplog.records)
    client.close()
    service.close()


def test_iteration_gives_what_is_now_and_after_each_change_and_ends() -> None:
    service, client = service_of(delete_event(f"{PREFIX}a", 6), kvs=[kv(f"{PREFIX}a", "h:1", 3)])
    assert service.wait_for(lambda endpoints: not endpoints, 5.0)
    found = iter(service)
    assert next(found) == ()
    with pytest.raises(NoEndpoint, match="no endpoint under /services/web/"):
        service.pick()
    client.close()
    service.close()
    assert list(found) == []


def test_find() -> None:
    transport = FakeTransport(a=[ok(kvs=[kv(f"{PREFIX}a", dump("h:1", {"zone": "x"}), 3)])])
    with Client(A, transport=transport) as client:
        assert find(client, PREFIX) == (Endpoint("a", "h:1", {"zone": "x"}),)
