"""All hosts at a glance: tables, JSON documents and words, made from keys; no store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from etcd_agent.config import load
from etcd_agent.fleet import (
    Host,
    age,
    fleet_document,
    group_document,
    group_lines,
    group_of,
    hosts_of,
    rows,
    summary,
    table,
)
from etcd_agent.report import host_key, resource_key
from etcd_agent.rollout_rules import By, Failure, Halt, Paths, Slot, dump
from etcd_agent.values import State
from etcd_client import KeyValue
from tests import markdown

PREFIX = "/_agents/status"
NOW = 1000.0


def kv(key: str, document: Any, lease: int = 0) -> KeyValue:
    return KeyValue(key.encode(), json.dumps(document).encode(), 1, 1, 1, lease)


def report(state: str = "APPLIED", **more: Any) -> dict[str, Any]:
    return {"state": state, "revision": 7, "hash": "0123456789abcdef", "since": NOW - 75, "error": "",
            "reload_pending": False, "drift": [], **more}  # fmt: skip


def fleet() -> list[Host]:
    return hosts_of(
        PREFIX,
        [
            kv(host_key(PREFIX, "web/2"), {"group": "web"}, 5),
            kv(resource_key(PREFIX, "web/2", "nginx"), report("FAILED", error="check: exit status 1")),
            kv(host_key(PREFIX, "web1"), {"group": "web"}, 6),
            kv(resource_key(PREFIX, "web1", "nginx"), report()),
            kv(resource_key(PREFIX, "web1", "tls"), report("DRIFTED", drift=["/etc/tls"])),
            kv(resource_key(PREFIX, "gone", "nginx"), report()),
            kv(host_key(PREFIX, "idle"), {}, 7),
            kv(f"{PREFIX}/a/b/c", {}),
        ],
    )


def test_hosts() -> None:
    gone, idle, slashed, web = fleet()
    assert [host.name for host in (gone, idle, slashed, web)] == ["gone", "idle", "web/2", "web1"]
    assert [host.well for host in (gone, idle, slashed, web)] == [False, True, False, False]
    assert Host("x", {}, {"a": report()}).well
    assert not Host("x", {}, {"a": report(reload_pending=True)}).well


def test_the_table() -> None:
    lines = [click.unstyle(line) for line in table(list(rows(fleet(), NOW)))]
    assert lines == [
        "HOST   ALIVE  RESOURCE  STATE    FOR         REVISION  FILES     NOTE",
        "gone   no     nginx     APPLIED  1 min 15 s  7         01234567",
        "idle   yes                                                       has no resource",
        "web/2  yes    nginx     FAILED   1 min 15 s  7         01234567  check: exit status 1",
        "web1   yes    nginx     APPLIED  1 min 15 s  7         01234567",
        "web1   yes    tls       DRIFTED  1 min 15 s  7         01234567  changed by another hand: /etc/tls",
    ]
    assert summary(fleet()) == "4 hosts, 3 alive; 4 resources: 2 APPLIED, 1 FAILED, 1 DRIFTED"
    assert summary([]) == "0 hosts, 0 alive; 0 resources: none"


def test_colours_say_what_words_say() -> None:
    header, *lines = table(list(rows(fleet(), NOW)))
    assert header == click.style(click.unstyle(header), bold=True)
    assert click.style("FAILED ", fg="red") in lines[2]
    assert click.style("APPLIED", fg="green") in lines[3]
    assert click.style("no   ", fg="red") in lines[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"), (0.0504, "50 ms"), (0.9994, "999 ms"), (0.9996, "1 s"), (42.4, "42 s"), (59.6, "1 min"),
        (192, "3 min 12 s"), (3600, "1 h"), (18180, "5 h 3 min"), (1051200, "12 d 4 h"),
    ],
)  # fmt: skip
def test_ages_have_units(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_the_document() -> None:
    document = fleet_document(fleet())
    assert json.loads(json.dumps(document)) == document
    host = document["hosts"][3]
    assert (host["host"], host["alive"], host["well"], host["group"]) == ("web1", True, False, "web")
    assert host["resources"]["tls"]["drift"] == ["/etc/tls"]


def test_a_group() -> None:
    paths = Paths("/_agents/rollout", "web")
    running = group_of(paths, [], fleet())
    assert [host.name for host in running.hosts] == ["web/2", "web1"]
    lines = [click.unstyle(line) for line in group_lines(running, NOW)]
    assert lines == [
        "group    web: 2 hosts, 2 alive; 3 resources: 1 FAILED, 1 APPLIED, 1 DRIFTED",
        "state    running",
        "slots    none is taken",
    ]
    halt = Halt(By.AGENT, "web1", "nginx", 7, "c", ("/n",), "unhealthy: 502", NOW - 60)
    failure = Failure("web1", "nginx", 7, "c", "unhealthy: 502", NOW - 60)
    entries = {
        paths.halt: dump(halt),
        paths.slot(1): dump(Slot("web2", "nginx", 6, NOW - 5)),
        paths.failure("nginx", "web1"): dump(failure),
    }
    kvs = [KeyValue(key.encode(), value.encode(), 1, 1, 1) for key, value in entries.items()]
    halted = group_of(paths, kvs, [])
    assert [click.unstyle(line) for line in group_lines(halted, NOW)] == [
        "group    web: 0 hosts, 0 alive; 0 resources: none",
        "state    HALTED: halted: nginx of revision 7 was rolled back on web1, 1 min ago: unhealthy: 502",
        "slot 1   web2: nginx to revision 6, since 5 s",
        "went back: web1: nginx of revision 7, 1 min ago: unhealthy: 502",
    ]
    document = group_document(halted)
    slots = json.loads(json.dumps(document))["slots"]
    assert slots == {"1": {"host": "web2", "resource": "nginx", "revision": 6,
                                                              "since": NOW - 5}}  # fmt: skip
    assert document["halted"] and document["halt"]["host"] == "web1"


# --- docs/fleet.md ----------------------------------------------------------------------------------------


def test_the_settings_of_the_guide_load(tmp_path: Path) -> None:
    text = markdown.section(markdown.read("docs/fleet.md"), "A few hosts at a time")
    (example,) = (block.text for block in markdown.blocks(text) if block.language == "toml")
    (tmp_path / "agent.toml").write_text(example)
    config = load(str(tmp_path / "agent.toml"))
    assert (config.rollout.group, config.rollout.max_concurrent, config.report.enabled) == ("web", 2, True)


def test_the_table_of_the_guide() -> None:
    text = markdown.section(markdown.read("docs/fleet.md"), "What hosts report")
    (example,) = (block.text for block in markdown.blocks(text) if block.language == "text")

    def host(number: int, state: str, seconds: int, revision: int, files: str, error: str = "") -> Host:
        about: dict[str, Any] | None = None if error else {}
        told = report(state, since=NOW - seconds, revision=revision, hash=files, error=error)
        return Host(f"web-eu-{number}", about, {"nginx": told})

    hosts = [
        host(1, "APPLIED", 192, 4711, "9f3c01ab"),
        host(2, "WAITING_SLOT", 14, 4698, "02be77d1"),
        host(3, "FAILED", 2 * 86400 + 3 * 3600, 4650, "02be77d1", "check: nginx -t: exit status 1"),
    ]
    lines = [*(click.unstyle(line) for line in table(list(rows(hosts, NOW)))), "", summary(hosts)]
    assert example.splitlines() == lines


def test_every_state_is_explained() -> None:
    text = markdown.section(markdown.read("docs/fleet.md"), "What hosts report")
    assert {cells[0] for cells in markdown.rows(text)} >= set(State.__members__)
