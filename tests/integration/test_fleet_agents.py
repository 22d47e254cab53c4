"""Fifty agents as processes against one cluster: never more than two change at once, a bad value stops at the
canary, and a killed agent's slot frees itself. Against three members of etcd-py; fewer against etcd 3.4.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from etcd_agent.fleet import Host, hosts_of
from etcd_client import Client, Event, EventKind
from tests.integration.fleet_support import AgentFleet
from tests.live_cluster import LiveCluster
from tests.servers import available_servers, start_server

ROLLOUT_S = 90.0
STATUS, GROUP = "/_agents/status", "/_agents/rollout/web/"
STORES = [pytest.param(("etcd-py", 50), id="etcd-py"), pytest.param(("3.4", 20), id="3.4")]


@dataclass
class World:
    fleet: AgentFleet
    client: Client
    started_revision: int
    cluster: LiveCluster | None

    def put(self, value: str) -> int:
        return self.client.put("/app/value", value).revision

    def hosts(self) -> list[Host]:
        return hosts_of(STATUS, self.client.get_prefix(f"{STATUS}/").kvs)

    def states(self) -> dict[str, str]:
        return {host.name: host.resources.get("app", {}).get("state", "") for host in self.hosts()}

    def have(self, value: str, *besides: str) -> bool:
        """Every host has reported the value as applied, and its file says so."""
        states = self.states()
        return all(
            states.get(name) == "APPLIED" and self.fleet.content(name) == f"{value} on {name}\n"
            for name in self.fleet.names
            if name not in besides
        )

    def wait(self, reached: Callable[[], Any], what: str) -> Any:
        """Looks again and again, seldom: those that are waited for need the processors."""
        deadline_s = time.monotonic() + ROLLOUT_S
        while not (found := reached()):
            if time.monotonic() > deadline_s:
                logs = [self.fleet.log(name)[-600:] for name in self.fleet.names[:4]]
                raise AssertionError(f"not in {ROLLOUT_S} s: {what}\n{self.states()}\n{logs}")
            time.sleep(0.2)
        return found

    def history(self) -> list[Event]:
        """Every change of slots and reports since the agents were started, from the store's history."""
        last = self.client.put("/last", "").revision
        found: list[Event] = []
        for prefix in (f"{GROUP}slot/", f"{STATUS}/"):
            with self.client.watch(prefix=prefix, start_revision=self.started_revision) as watch:
                end = self.client.put(f"{prefix}.end", "").revision
                for batch in watch:
                    found += [each for each in batch.events if not each.kv.key.endswith(b".end")]
                    if batch.revision >= end:
                        break
            self.client.delete(f"{prefix}.end")
        return sorted((each for each in found if each.kv.mod_revision < last), key=_revision)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """etcd-py-agent on the canary's host."""
        return subprocess.run(
            [sys.executable, "-m", "etcd_agent.cli", "--config", self.fleet.config("h00"), *arguments],
            capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip


def _revision(event: Event) -> int:
    return event.kv.mod_revision


@pytest.fixture(params=STORES)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind, size = request.param
    if kind not in available_servers():
        pytest.skip(f"{kind} is not installed")
    store = tmp_path / "store"
    store.mkdir()
    if kind == "etcd-py":
        cluster = LiveCluster(store)
        with cluster:
            cluster.start()
            yield from _world(tmp_path, size, [member.url for member in cluster.members], cluster)
    else:
        with start_server(kind, store) as server:
            yield from _world(tmp_path, size, [server.url], None)


def _world(tmp_path: Path, size: int, nodes: list[str], cluster: LiveCluster | None) -> Iterator[World]:
    folder = tmp_path / "hosts"
    folder.mkdir()
    with Client(nodes, timeout_s=20.0) as client:
        started = client.put("/app/value", "first").revision
        with AgentFleet(folder, size, nodes) as fleet:
            yield World(fleet, client, started, cluster)


@pytest.mark.timeout(400)
def test_fifty_agents(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = world.fleet
    times: dict[str, float] = {}
    changes = [world.started_revision]
    for stage in (all_get_the_first_value, a_bad_value_stops_at_the_canary, a_killed_agents_slot_frees_itself,
                  the_store_loses_its_leader):  # fmt: skip
        begun_s = time.monotonic()
        changes += stage(world)
        times[stage.__name__] = round(time.monotonic() - begun_s, 1)
    assert fleet.most_at_once() <= 2
    slots, hasty = judged(world.history(), fleet.canary, changes)
    assert slots == 2, "both slots were used, never a third"
    assert not hasty, "no other host took a slot for a value before the canary had applied it"
    shown = world.run("fleet", "--json")
    assert shown.returncode == 0, shown.stderr
    assert sum(host["well"] for host in json.loads(shown.stdout)["hosts"]) == len(fleet.names)
    with capsys.disabled():
        print(f" {len(fleet.names)} agents, seconds: {times}", end=" ")


def all_get_the_first_value(world: World) -> list[int]:
    """The canary before the others."""
    world.fleet.start(*world.fleet.names)
    world.wait(lambda: world.have("first"), "all hosts have the first value")
    assert world.fleet.events[0] == ("start", world.fleet.canary)
    return []


def a_bad_value_stops_at_the_canary(world: World) -> list[int]:
    fleet, others = world.fleet, world.fleet.names[1:]
    before = len(fleet.events)
    bad = world.put("BAD")
    halt = world.wait(lambda: world.client.get(f"{GROUP}halt"), "the group is halted")
    assert json.loads(halt.value)["host"] == fleet.canary
    assert json.loads(halt.value)["revision"] >= bad
    expected = dict.fromkeys(others, "WAITING_SLOT") | {fleet.canary: "ROLLED_BACK"}
    world.wait(lambda: world.states() == expected, "the canary has gone back, the others wait")
    assert {name for _, name in fleet.events[before:]} == {fleet.canary}
    assert all(fleet.content(name) == f"first on {name}\n" for name in fleet.names), "the old files stay"
    shown = world.run("rollout", "status")
    assert shown.returncode == 2, shown.stderr
    assert f"HALTED: halted: app of revision {bad} was rolled back on h00" in shown.stdout
    shown = world.run("fleet")
    assert shown.returncode == 2, shown.stderr
    counted = f"{len(fleet.names)} hosts, {len(fleet.names)} alive; {len(fleet.names)} resources"
    assert f"{counted}: {len(others)} WAITING_SLOT, 1 ROLLED_BACK" in shown.stdout
    return [bad]


def a_killed_agents_slot_frees_itself(world: World) -> list[int]:
    """A good value goes to all the others, and to the killed one when it is started again."""
    fleet = world.fleet
    victim = fleet.names[-1]
    (fleet.hold / victim).touch()
    before = len(fleet.events)
    good = world.put("good")
    world.wait(lambda: ("start", victim) in fleet.events[before:], "the victim is in its reload")
    slots = world.client.get_prefix(f"{GROUP}slot/").kvs
    (held,) = (kv for kv in slots if json.loads(kv.value)["host"] == victim)
    fleet.kill(victim)
    (fleet.hold / victim).unlink()

    def is_free() -> bool:
        """The key is gone, or is another's by now."""
        found = world.client.get(held.key)
        return found is None or found.create_revision != held.create_revision

    world.wait(is_free, "the slot of the killed agent is free")
    world.wait(lambda: world.have("good", victim), "all the others have the good value")
    fleet.start(victim)
    world.wait(lambda: world.have("good"), "the killed one has taken up where it was")
    return [good]


def the_store_loses_its_leader(world: World) -> list[int]:
    """In the middle of a rollout, where the store has more than one member."""
    if world.cluster is None:
        return []
    before = len(world.fleet.events)
    better = world.put("better")
    world.wait(lambda: len(world.fleet.events) > before + 10, "it is under way")
    world.cluster.leader().kill()
    world.wait(lambda: world.have("better"), "all have it, whoever leads the store")
    return [better]


def judged(history: list[Event], canary: str, changes: list[int]) -> tuple[int, list[str]]:
    """From the store's history: how many slots were taken at once at most, and what other hosts took before
    the canary had applied what they were about to. `changes`: the revisions of the values.
    """
    taken: set[bytes] = set()
    hasty: list[str] = []
    most, applied = 0, 0
    for event in history:
        key = event.kv.key.decode()
        if key.startswith(f"{GROUP}slot/"):
            taken = taken | {event.kv.key} if event.kind is EventKind.PUT else taken - {event.kv.key}
            most = max(most, len(taken))
            slot = json.loads(event.kv.value or b"{}")
            needed = max(each for each in (0, *changes) if each <= slot.get("revision", 0))
            if slot.get("host", canary) != canary and applied < needed:
                hasty.append(f"{slot} at {event.kv.mod_revision}, the canary had applied {applied}")
        elif key == f"{STATUS}/{canary}/app" and event.kind is EventKind.PUT:
            report = json.loads(event.kv.value)
            applied = max(applied, report["revision"] if report["state"] == "APPLIED" else 0)
    return most, hasty
