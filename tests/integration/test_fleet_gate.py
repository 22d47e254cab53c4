"""The fleet's gate against real stores: ours and etcd 3.4. Hosts are gates in one process."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from etcd_agent.errors import AgentError, HealthError, StoreError
from etcd_agent.report import StoreReporter, host_key, parse, resource_key
from etcd_agent.rollout import FleetGate
from etcd_agent.rollout_rules import Paths
from etcd_agent.values import (
    APPLIED,
    ROLLED_BACK,
    UNCHANGED,
    AgentConfig,
    Backend,
    Outcome,
    PluginsConfig,
    Report,
    Resource,
    ResourceStatus,
    Rollout,
    Safety,
    State,
    Template,
)
from etcd_client import Client
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


class Fleet:
    """Hosts of one group, and the keys of their resource."""

    def __init__(self, url: str, **rollout: object) -> None:
        self.number = next(_numbers)
        self.client = Client(url, timeout_s=2.0)
        settings = {"lease_ttl_s": 2.0, **rollout}
        self.rollout = Rollout(f"g{self.number}", **settings)  # type: ignore[arg-type]
        self.paths = Paths(self.rollout.prefix, self.rollout.group)
        self.hosts: dict[str, Host] = {}

    def resource(self, name: str = "web") -> Resource:
        return Resource(
            name=name,
            source=f"{name}.toml",
            prefix=f"/keys{self.number}",
            keys=(f"/{name}",),
            templates=(Template("a", f"/tmp/{name}"),),
            rollout=self.rollout,
        )

    def change(self, name: str = "web", key: str = "a", value: str = "v") -> int:
        """A key of the resource changes; the revision."""
        return self.client.put(f"/keys{self.number}/{name}/{key}", value).revision

    def host(self, name: str) -> Host:
        return self.hosts.setdefault(name, Host(self, name))

    def slots(self) -> dict[str, str]:
        found = self.client.get_prefix(self.paths.slots).kvs
        return {kv.key.decode().rpartition("/")[2]: json.loads(kv.value)["host"] for kv in found}

    def halt(self) -> dict[str, object] | None:
        found = self.client.get(self.paths.halt)
        return json.loads(found.value) if found else None

    def close(self) -> None:
        for host in self.hosts.values():
            host.close()
        self.client.close()


class Host:
    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet = fleet
        self.name = name
        self.client = Client(fleet.client.endpoints, timeout_s=2.0)
        self.woken: list[str] = []
        self._woke = threading.Condition()
        self.config = AgentConfig(
            source="agent.toml", confdir="/", state_dir="/", nodes=fleet.client.endpoints, prefix="",
            watch=True, interval_s=600, start_grace_s=0, noop=False, log_level="info", log_format="text",
            host_id=name, labels={"role": "web"}, backend=Backend(), on_error="retry", safety=Safety(),
            plugins=PluginsConfig("/"), resources=(fleet.resource(), fleet.resource("db")),
            rollout=fleet.rollout, report=Report(enabled=True, prefix=f"/status{fleet.number}", ttl_s=2.0),
        )  # fmt: skip
        self.gate = FleetGate(self.config, self.client, self._wake, spread_s=0.02)

    def _wake(self, name: str) -> None:
        with self._woke:
            self.woken.append(name)
            self._woke.notify_all()

    def wait_for_wake(self, number: int = 1) -> None:
        with self._woke:
            assert self._woke.wait_for(lambda: len(self.woken) >= number, LIMIT_S), self.name

    def ask(self, revision: int, name: str = "web") -> str | None:
        return self.gate.acquire(self.fleet.resource(name), revision)

    def done(self, kind: str = APPLIED, name: str = "web", error: str = "") -> None:
        self.gate.release(self.fleet.resource(name), Outcome(kind, 1, error=error))

    def failed(self, error: AgentError) -> None:
        self.gate.release(self.fleet.resource(), error)

    def report(self, state: State, revision: int, name: str = "web") -> None:
        """As this host's reporter would write it."""
        document = {"state": state, "revision": revision, "reload_pending": False}
        key = resource_key(self.config.report.prefix, self.name, name)
        self.client.put(key, json.dumps(document))

    def close(self) -> None:
        self.gate.close()
        self.client.close()


@pytest.fixture
def make(server: Server) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def one(**rollout: object) -> Fleet:
        made.append(Fleet(server.url, **rollout))
        return made[-1]

    yield one
    for fleet in made:
        fleet.close()


Make = Callable[..., Fleet]


def test_so_many_at_a_time_and_the_next_is_woken_with_its_slot(make: Make) -> None:
    fleet = make(max_concurrent=2)
    revision = fleet.change()
    a, b, c, d = (fleet.host(name) for name in "abcd")
    assert (a.ask(revision), b.ask(revision)) == (None, None)
    assert (c.ask(revision), d.ask(revision)) == ("slot: 2 of 2 taken",) * 2
    assert sorted(fleet.slots().values()) == ["a", "b"]
    a.done()
    wait_until(lambda: c.woken or d.woken, "one of them is woken")
    assert len(fleet.slots()) == 2
    first, second = (c, d) if c.woken else (d, c)
    assert first.ask(revision) is None
    assert not second.woken
    first.done()
    second.wait_for_wake()
    assert second.ask(revision) is None
    second.done()
    b.done()
    assert fleet.slots() == {}


def test_resources_of_one_host_share_its_slot(make: Make) -> None:
    fleet = make()
    revision = fleet.change()
    a, b = fleet.host("a"), fleet.host("b")
    assert (a.ask(revision), a.ask(revision, "db")) == (None, None)
    assert b.ask(revision) is not None
    a.done()
    time.sleep(0.3)
    assert fleet.slots() == {"0": "a"} and not b.woken
    a.done(name="db")
    b.wait_for_wake()


def test_a_pass_that_ends_without_a_change_gives_up_its_place(make: Make) -> None:
    fleet = make()
    revision = fleet.change()
    a, b, c = (fleet.host(name) for name in "abc")
    assert a.ask(revision) is None
    assert b.ask(revision) is not None and c.ask(revision) is not None
    b.done(UNCHANGED)  # the key went back to what it was
    a.done()
    c.wait_for_wake()
    assert not b.woken and list(fleet.slots().values()) == ["c"]


def test_a_slot_that_nobody_claims_runs_out(make: Make) -> None:
    fleet = make()
    revision = fleet.change()
    a, b, c = (fleet.host(name) for name in "abc")
    assert a.ask(revision) is None
    assert b.ask(revision) is not None
    a.done()
    b.wait_for_wake()
    assert c.ask(revision) is not None
    c.wait_for_wake()
    assert b.ask(revision) == "slot: 1 of 1 taken"


def test_a_slot_that_was_not_claimed_is_given_back_when_the_agent_stops(make: Make) -> None:
    fleet = make(lease_ttl_s=60.0)
    revision = fleet.change()
    a, b = fleet.host("a"), fleet.host("b")
    assert a.ask(revision) is None
    assert b.ask(revision) is not None
    a.done()
    b.wait_for_wake()
    b.gate.close()
    assert fleet.slots() == {}
    assert a.ask(revision) is None
    a.gate.close()
    assert list(fleet.slots().values()) == ["a"], "one that is in use is left to its lease"


def test_a_dead_hosts_slot_frees_itself(make: Make) -> None:
    fleet = make()
    revision = fleet.change()
    a, b = fleet.host("a"), fleet.host("b")
    assert a.ask(revision) is None
    assert b.ask(revision) is not None
    time.sleep(3)
    assert not b.woken, "the slot of a host that is at work is kept alive beyond its lease's TTL"
    started_s = time.monotonic()
    a.client.close()  # as if it were gone: nothing renews its lease
    b.wait_for_wake()
    assert time.monotonic() - started_s < 10
    assert b.ask(revision) is None


def test_a_lost_lease_is_noticed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    fleet = make()
    revision = fleet.change()
    a, b = fleet.host("a"), fleet.host("b")
    assert a.ask(revision) is None
    (kv,) = fleet.client.get_prefix(fleet.paths.slots).kvs
    fleet.client.existing_lease(kv.lease).revoke()
    assert b.ask(revision) is None
    wait_until(lambda: a.gate._holds[0].lost, "the keep-alive notices")
    with caplog.at_level(logging.ERROR):
        assert a.ask(revision) == "slot: 1 of 1 taken", "what is lost is not held"
        a.done()
    assert any("was lost while this host changed" in record.getMessage() for record in caplog.records)
    assert list(fleet.slots().values()) == ["b"], "and nobody else's slot is taken away"


def test_canaries_go_first(make: Make) -> None:
    fleet = make(max_concurrent=5, canary=("c1", "c2"))
    c1, c2, web = fleet.host("c1"), fleet.host("c2"), fleet.host("web")
    before = fleet.change()
    c1.report(State.APPLIED, before)
    c2.report(State.APPLIED, before)
    revision = fleet.change()
    assert web.ask(revision) == "canary: c1 APPLIED, c2 APPLIED"
    assert (c1.ask(revision), c2.ask(revision)) == (None, None)
    c1.report(State.APPLYING, before)
    c1.report(State.APPLIED, revision)
    c1.done()
    assert web.ask(revision) == "canary: c2 APPLIED"
    c2.report(State.FAILED, before)
    time.sleep(0.2)
    assert not web.woken
    c2.report(State.APPLIED, fleet.client.put("/elsewhere", "x").revision)
    web.wait_for_wake()
    assert web.ask(revision) is None


def test_a_revision_that_moves_without_a_change_needs_no_canary_again(make: Make) -> None:
    """The store's revision moves with every write, the canary's report does not."""
    fleet = make(canary=("c1",))
    revision = fleet.change()
    fleet.host("c1").report(State.APPLIED, revision)
    later = fleet.client.put("/elsewhere", "x").revision
    assert fleet.host("web").ask(later) is None


def test_a_deletion_is_a_change_that_the_canary_tries_first(make: Make) -> None:
    fleet = make(canary=("c1",))
    fleet.change()
    revision = fleet.change(key="b")
    c1, web = fleet.host("c1"), fleet.host("web")
    c1.report(State.APPLIED, revision)
    later = fleet.client.delete(f"/keys{fleet.number}/web/a").revision
    assert web.ask(later) == "canary: c1 APPLIED"
    c1.report(State.APPLIED, later)
    web.wait_for_wake()


def test_canaries_after_a_compaction(make: Make) -> None:
    fleet = make(canary=("c1",))
    revision = fleet.change()
    c1, web = fleet.host("c1"), fleet.host("web")
    c1.report(State.APPLIED, revision)
    later = fleet.client.put("/elsewhere", "x").revision
    fleet.client.compact(later)
    assert web.ask(later) is None
    web.done()
    newer = fleet.change()
    assert web.ask(newer) == "canary: c1 APPLIED"


def test_a_bad_revision_stops_at_the_canary_and_halts(make: Make) -> None:
    fleet = make(max_concurrent=5, canary=("c1",), max_failures=0)
    c1, web = fleet.host("c1"), fleet.host("web")
    revision = fleet.change(value="bad")
    assert web.ask(revision) is not None
    assert c1.ask(revision) is None
    c1.done(ROLLED_BACK, error="unhealthy: 502\nsecond line")
    halt = fleet.halt()
    assert halt is not None
    assert (halt["host"], halt["resource"], halt["revision"]) == ("c1", "web", revision)
    assert halt["error"] == "unhealthy: 502 second line"
    web.wait_for_wake()  # to say why it waits
    expected = f"halted: web of revision {revision} was rolled back on c1"
    assert web.ask(revision) == expected
    assert web.ask(revision, "db") == expected, "it is the group that is halted"
    assert fleet.slots() == {}
    mended = fleet.change(value="good")
    assert c1.ask(mended) is None, "a newer revision clears it"
    assert fleet.halt() is None
    c1.report(State.APPLIED, mended)
    c1.done()
    wait_until(lambda: web.ask(mended) is None, "the others follow")


def test_a_host_that_is_behind_does_not_try_what_failed(make: Make) -> None:
    """The mended value ends the halt, and a host that has not heard of it yet still has the bad one."""
    fleet = make(max_concurrent=5, max_failures=0)
    a, b, c = (fleet.host(name) for name in "abc")
    bad = fleet.change(value="bad")
    assert a.ask(bad) is None
    a.done(ROLLED_BACK, error="sick")
    mended = fleet.change(value="good")
    assert b.ask(mended) is None
    assert fleet.halt() is None
    assert c.ask(bad) == f"halted: web of revision {bad} was rolled back on a"
    assert c.ask(mended) is None


def test_a_host_that_is_behind_the_canary_waits_for_newer_keys(make: Make) -> None:
    fleet = make(max_concurrent=5, canary=("c1",))
    c1, web = fleet.host("c1"), fleet.host("web")
    bad = fleet.change(value="bad")
    assert c1.ask(bad) is None
    c1.done(ROLLED_BACK, error="sick")
    assert fleet.halt() is None, "one is not more than one"
    mended = fleet.change(value="good")
    c1.report(State.APPLIED, mended)
    assert web.ask(bad) == "canary: c1 APPLIED"
    assert web.ask(mended) is None


def test_it_takes_more_than_max_failures(make: Make) -> None:
    fleet = make(max_concurrent=5, max_failures=1)
    revision = fleet.change()
    a, b, c = (fleet.host(name) for name in "abc")
    for host in (a, a, b):
        assert fleet.halt() is None
        assert host.ask(revision) is None
        host.failed(HealthError("unhealthy")) if host is b else host.done(ROLLED_BACK)
    assert fleet.halt() is not None, "two hosts have gone back; one host counts once"
    assert c.ask(revision) is not None
    fleet.change()
    assert len(fleet.client.get_prefix(fleet.paths.failures).kvs) == 2
    newer = fleet.change()
    assert c.ask(newer) is None
    c.done(ROLLED_BACK)
    assert fleet.halt() is None, "those of an older change do not count"
    assert len(fleet.client.get_prefix(fleet.paths.failures).kvs) == 1


def test_a_person_halts_until_a_person_resumes(make: Make) -> None:
    fleet = make()
    a = fleet.host("a")
    fleet.client.put(fleet.paths.halt, json.dumps({"by": "operator", "host": "ann", "error": "freeze"}))
    for _ in range(2):
        assert a.ask(fleet.change()) == "halted by ann: freeze"
    fleet.client.delete(fleet.paths.halt)
    a.wait_for_wake()
    assert list(fleet.slots().values()) == ["a"]
    fleet.client.put(fleet.paths.halt, "{}")
    assert a.ask(fleet.change()) is not None, "read again when the slot is claimed"
    wait_until(lambda: fleet.slots() == {}, "and the slot is given back")


def test_a_rollback_is_written_down_before_the_slot_is_free(make: Make, server: Server) -> None:
    """Also when the store is away at that moment."""
    fleet = make(max_failures=0)
    revision = fleet.change()
    a, b = fleet.host("a"), fleet.host("b")
    assert a.ask(revision) is None
    server.stop()
    try:
        with pytest.raises(StoreError, match="rollout: "):
            b.ask(revision)
        a.done(ROLLED_BACK, error="sick")
    finally:
        server.start()
    wait_until(lambda: fleet.halt(), "the halt is written once the store is back")
    assert b.ask(revision) is not None
    wait_until(lambda: fleet.slots() == {}, "then the slot is free")


def test_reports(make: Make) -> None:
    """On change only, together, gone with the host where that is to say that it lives."""
    fleet = make()
    host = fleet.host("web1")
    prefix = host.config.report.prefix
    fleet.client.put(resource_key(prefix, "web1", "removed"), "{}")
    fleet.client.put(resource_key(prefix, "web10", "other"), "{}")
    reporter = StoreReporter(host.config, host.client, settle_s=0.3)
    web = ResourceStatus("web", State.APPLYING, 5, 10.0, hash="h")
    reporter.changed(web)
    alive = wait_until(lambda: fleet.client.get(host_key(prefix, "web1")), "the host's key")
    assert alive.lease and parse(alive.value)["labels"] == {"role": "web"}
    key = resource_key(prefix, "web1", "web")
    first = wait_until(lambda: fleet.client.get(key), "the first report")
    assert first.lease == 0
    assert parse(first.value) == {
        "state": "APPLYING", "revision": 5, "hash": "h", "since": 10.0, "error": "", "reload_pending": False,
        "drift": [],
    }  # fmt: skip
    assert fleet.client.get(resource_key(prefix, "web1", "removed")) is None
    assert fleet.client.get(resource_key(prefix, "web10", "other")) is not None
    for state in (State.PENDING, State.WAITING_SLOT, State.APPLYING):
        reporter.changed(ResourceStatus("web", state, 6, 11.0, hash="h"))
    reporter.changed(ResourceStatus("web", State.APPLYING, 6, 12.0, passes=9, hash="h"))
    reporter.changed(ResourceStatus("db", State.FAILED, 6, error="a\nb"))
    wait_until(lambda: fleet.client.get(resource_key(prefix, "web1", "db")), "the other's report")
    again = fleet.client.get(key)
    assert again is not None and again.version == 1, "back to where it was is no news"
    fleet.client.existing_lease(alive.lease).revoke()
    wait_until(lambda: fleet.client.get(host_key(prefix, "web1")), "a lost lease is replaced")
    reporter.changed(ResourceStatus("web", State.APPLIED, 7, 13.0))
    reporter.close()
    last = fleet.client.get(key)
    assert last is not None and parse(last.value)["state"] == "APPLIED", "the last word is written"
    assert fleet.client.get(host_key(prefix, "web1")) is None


def test_a_bug_ends_neither_waiting_nor_reporting(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = make()
    a, b = fleet.host("a"), fleet.host("b")
    revision = fleet.change()
    assert a.ask(revision) is None
    assert b.ask(revision) is not None
    bugs = iter([True, True])
    turn = b.gate._turn

    def broken(follower: object) -> object:
        if next(bugs, False):
            raise RuntimeError("a bug")
        return turn(follower)  # type: ignore[arg-type]

    monkeypatch.setattr(b.gate, "_turn", broken)
    a.done()
    b.wait_for_wake()
    reporter = StoreReporter(b.config, b.client, settle_s=0.02)
    write, failing = reporter._write, iter([True])
    monkeypatch.setattr(reporter, "_write", lambda: (next(failing, False) and 1 / 0) or write())
    reporter.changed(ResourceStatus("web", State.APPLIED, 5))
    wait_until(lambda: fleet.client.get(resource_key(b.config.report.prefix, "b", "web")), "the report")
    reporter.close()
    assert {"rollout: unexpected", "report: unexpected"} <= {each.getMessage() for each in caplog.records}


def test_reports_after_the_store_was_away(make: Make, server: Server) -> None:
    fleet = make()
    host = fleet.host("web1")
    reporter = StoreReporter(host.config, host.client, settle_s=0.02)
    key = resource_key(host.config.report.prefix, "web1", "web")
    reporter.changed(ResourceStatus("web", State.APPLIED, 5))
    wait_until(lambda: fleet.client.get(key), "a report")
    server.stop()
    try:
        for state in (State.APPLYING, State.FAILED):
            reporter.changed(ResourceStatus("web", state, 6))
            time.sleep(0.2)
    finally:
        server.start()
    wait_until(lambda: b"FAILED" in fleet.client.get(key).value, "the newest is written")  # type: ignore[union-attr]
    reporter.close()


def test_a_group_on_a_store_that_forgets_everything(tmp_path: Path) -> None:
    """A member started anew with an empty folder: slots, reports and leases are made again."""
    with start_server(STORES[-1], tmp_path) as server:
        fleet = Fleet(server.url)
        host = fleet.host("a")
        reporter = StoreReporter(host.config, host.client, settle_s=0.02)
        reporter.changed(ResourceStatus("web", State.APPLIED, 5))
        assert host.ask(fleet.change()) is None
        key = resource_key(host.config.report.prefix, "a", "web")
        wait_until(lambda: fleet.client.get(key), "a report")
        server.stop()
        server.data_dir.rename(tmp_path / "old")
        server.start()
        wait_until(lambda: fleet.client.get(key), "the report is made again")
        wait_until(lambda: host.gate._holds[0].lost, "the slot is lost")
        revision = fleet.change()
        assert host.ask(revision) is None
        assert list(fleet.slots().values()) == ["a"]
        reporter.close()
        fleet.close()
