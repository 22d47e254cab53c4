"""``etcd-py-agent fleet`` and ``rollout``: all hosts at a glance, from what they report in the store.

The views are pure: keys in, lines or a JSON document out. A host is alive while the key with its lease is
there; what it last said of its resources stays readable when it is not. Colours appear on a terminal only
(and not with NO_COLOR), numbers carry their units, and an exit status says whether all is well, so that a
script needs no eyes.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote

import click

from etcd_agent import rollout_rules as rules
from etcd_agent.errors import ConfigError, StoreError
from etcd_agent.follow import connect
from etcd_agent.report import host_key, parse
from etcd_agent.rollout import halt_group, resume_group
from etcd_agent.rollout_rules import Failure, Halt, Paths, Slot
from etcd_agent.values import AgentConfig, State
from etcd_client import Client, EtcdError, Follow, KeyValue

NOT_WELL = 2
_REDRAW_S = 1.0
_COLOURS = {
    State.APPLIED: "green",
    State.FAILED: "red",
    State.ROLLED_BACK: "red",
    State.DRIFTED: "magenta",
}


@dataclass(frozen=True, slots=True)
class Host:
    """What a host says of itself. ``about`` None: it does not live (or has stopped)."""

    name: str
    about: Mapping[str, Any] | None = None
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        return self.about is not None and all(map(is_well, self.resources.values()))


def is_well(report: Mapping[str, Any]) -> bool:
    """Applied, reloaded with, and as it was left."""
    return (
        report.get("state") == State.APPLIED and not report.get("reload_pending") and not report.get("drift")
    )


def hosts_of(prefix: str, kvs: Iterable[KeyValue]) -> list[Host]:
    """The hosts that have reported under ``prefix``, by name."""
    about: dict[str, Mapping[str, Any]] = {}
    resources: dict[str, dict[str, Mapping[str, Any]]] = {}
    for kv in kvs:
        parts = kv.key.decode("utf-8", "replace").removeprefix(f"{prefix}/").split("/")
        name = unquote(parts[0])
        if len(parts) == 1:
            about[name] = parse(kv.value)
        elif len(parts) == 2:
            resources.setdefault(name, {})[unquote(parts[1])] = parse(kv.value)
    return [
        Host(name, about.get(name), dict(sorted(resources.get(name, {}).items())))
        for name in sorted({*about, *resources})
    ]


def age(seconds: float) -> str:
    """``"850 ms"``, ``"42 s"``, ``"3 min 12 s"``, ``"5 h 3 min"``, ``"12 d 4 h"``: two units at most."""
    if seconds < 0.9995:
        return f"{max(0, round(seconds * 1000))} ms"
    whole = round(seconds)
    for unit_s, unit, part_s, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            rest = whole % unit_s // part_s
            return f"{whole // unit_s} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def summary(hosts: Sequence[Host]) -> str:
    """``"50 hosts, 49 alive; 100 resources: 97 APPLIED, 2 WAITING_SLOT, 1 FAILED"``."""
    states = Counter(str(report.get("state", "?")) for host in hosts for report in host.resources.values())
    alive = sum(host.about is not None for host in hosts)
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    return f"{len(hosts)} hosts, {alive} alive; {sum(states.values())} resources: {counts or 'none'}"


def rows(hosts: Sequence[Host], now: float) -> Iterator[tuple[str, ...]]:
    """The cells of the table, one line for each resource of each host."""
    yield ("HOST", "ALIVE", "RESOURCE", "STATE", "FOR", "REVISION", "FILES", "NOTE")
    for host in hosts:
        alive = "yes" if host.about is not None else "no"
        if not host.resources:
            yield (host.name, alive, "", "", "", "", "", "has no resource")
        for name, report in host.resources.items():
            since = float(report.get("since") or 0.0)
            yield (
                host.name,
                alive,
                name,
                str(report.get("state", "?")),
                age(now - since) if since else "",
                str(report.get("revision", "?")),
                str(report.get("hash", ""))[:8],
                _note(report),
            )


def _note(report: Mapping[str, Any]) -> str:
    notes = [str(report.get("error") or "")]
    if report.get("reload_pending"):
        notes.append("reload pending")
    if report.get("drift"):
        notes.append(f"changed by another hand: {', '.join(map(str, report['drift']))}")
    return "; ".join(note for note in notes if note)


def table(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned columns; the last one runs on."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    for number, row in enumerate(cells):
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        if number == 0:
            yield click.style("  ".join([*padded, row[-1]]).rstrip(), bold=True)
        else:
            yield "  ".join([*map(_coloured, padded), row[-1]]).rstrip()


def _coloured(text: str) -> str:
    word = text.strip()
    if word == "no":
        return click.style(text, fg="red")
    if word in State.__members__:
        return click.style(text, fg=_COLOURS.get(State(word), "yellow"))
    return text


def fleet_document(hosts: Sequence[Host]) -> dict[str, Any]:
    """What ``--json`` prints; ``alive`` and ``well`` are added to what stands in the store."""
    return {
        "hosts": [
            {
                "host": host.name,
                "alive": host.about is not None,
                "well": host.well,
                **(host.about or {}),
                "resources": host.resources,
            }
            for host in hosts
        ]
    }


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group as it stands in the store; ``hosts`` are those that report to be in it."""

    group: str
    slots: Mapping[int, Slot]
    halt: Halt | None
    failures: Sequence[Failure]
    hosts: Sequence[Host]


def group_of(paths: Paths, kvs: Iterable[KeyValue], hosts: Sequence[Host]) -> GroupView:
    entries = {kv.key.decode("utf-8", "replace"): kv.value for kv in kvs}
    halt = entries.get(paths.halt)
    return GroupView(
        group=paths.group,
        slots=dict(sorted(rules.parse_slots(paths, entries).items())),
        halt=rules.parse_halt(halt) if halt is not None else None,
        failures=rules.parse_failures(paths, entries),
        hosts=[host for host in hosts if (host.about or {}).get("group") == paths.group],
    )


def group_lines(view: GroupView, now: float) -> Iterator[str]:
    """``rollout status`` for a person."""
    yield f"group    {view.group}: {summary(view.hosts)}"
    if view.halt is None:
        yield "state    " + click.style("running", fg="green")
    else:
        error = f": {view.halt.error}" if view.halt.by == rules.By.AGENT and view.halt.error else ""
        since = f", {age(now - view.halt.at)} ago" if view.halt.at else ""
        yield "state    " + click.style("HALTED", fg="red") + f": {view.halt.reason}{since}{error}"
    for index, slot in view.slots.items():
        yield (
            f"slot {index:<3} {slot.host}: {slot.resource} to revision {slot.revision}, "
            f"since {age(now - slot.since)}"
        )
    if not view.slots:
        yield "slots    none is taken"
    for failure in view.failures:
        yield (
            f"went back: {failure.host}: {failure.resource} of revision {failure.revision}, "
            f"{age(now - failure.at)} ago: {failure.error}"
        )


def group_document(view: GroupView) -> dict[str, Any]:
    return {
        "group": view.group,
        "halted": view.halt is not None,
        "halt": asdict(view.halt) if view.halt else None,
        "slots": {str(index): asdict(slot) for index, slot in view.slots.items()},
        "failures": [asdict(failure) for failure in view.failures],
        "hosts": fleet_document(view.hosts)["hosts"],
    }


# --- commands ---------------------------------------------------------------------------------------------

LoadConfig = Callable[[], AgentConfig]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
@click.option("--watch", is_flag=True, help="show every change, until interrupted")
@click.option("--forget", metavar="HOST", help="remove what a host that is gone has said")
@click.pass_obj
def fleet(load_config: LoadConfig, as_json: bool, watch: bool, forget: str | None) -> None:
    """Show all hosts that report to the store.

    Exit status 0: all live and all resources are applied; 2: something is not well; 4: no store.
    """
    config = load_config()
    with _client(config) as client:
        try:
            if forget is not None:
                _forget(client, config.report.prefix, forget)
            elif watch:
                _watch(client, config.report.prefix, as_json)
            else:
                sys.exit(_show(_hosts(client, config.report.prefix), config.report.prefix, as_json))
        except EtcdError as error:
            raise StoreError(f"store: {error}") from error


def _client(config: AgentConfig) -> Client:
    try:
        return connect(config)
    except ValueError as error:
        raise ConfigError(f"{config.source}: {error}") from error


def _hosts(client: Client, prefix: str) -> list[Host]:
    return hosts_of(prefix, client.get_prefix(f"{prefix}/").kvs)


def _show(hosts: Sequence[Host], prefix: str, as_json: bool, *, compact: bool = False) -> int:
    """Print the fleet; the exit status."""
    if as_json:
        document = fleet_document(hosts)
        _echo(json.dumps(document, separators=(",", ":")) if compact else json.dumps(document, indent=1))
    elif hosts:
        for line in (*table(list(rows(hosts, time.time()))), "", summary(hosts)):
            _echo(line)
    else:
        click.echo(f"no host has reported under {prefix}; is report.enabled set on them?", err=True)
    return 0 if hosts and all(host.well for host in hosts) else NOT_WELL


def _echo(line: str) -> None:
    click.echo(line, color=False if os.environ.get("NO_COLOR") else None)


def _watch(client: Client, prefix: str, as_json: bool) -> None:
    """Redraw after each change, on a terminal every second; until interrupted or out of permission."""
    changed, ended = threading.Event(), threading.Event()
    troubles: list[EtcdError] = []

    def follow() -> None:
        try:
            for _ in Follow(client, f"{prefix}/"):
                changed.set()
        except EtcdError as error:
            troubles.append(error)
        ended.set()
        changed.set()

    threading.Thread(target=follow, name="fleet", daemon=True).start()
    terminal = sys.stdout.isatty() and not as_json
    while True:
        changed.wait(_REDRAW_S if terminal else None)
        changed.clear()
        if ended.is_set():
            raise troubles[0] if troubles else StoreError("store: the watch has ended")
        hosts = _hosts(client, prefix)
        if terminal:
            click.clear()
        _show(hosts, prefix, as_json, compact=True)
        if not terminal and not as_json:
            click.echo()
        ended.wait(0.1)  # what comes together is shown together


def _forget(client: Client, prefix: str, host: str) -> None:
    key = host_key(prefix, host)
    if client.get(key) is not None:
        raise ConfigError(f"{host} lives and would report again; stop its agent first")
    deleted = client.delete_prefix(f"{key}/").deleted
    if not deleted:
        raise ConfigError(f"{host} has not reported under {prefix}")
    click.echo(f"{host} is forgotten, with {deleted} report{'' if deleted == 1 else 's'}")


@click.group()
def rollout() -> None:
    """See, halt and resume the changes of a group of hosts."""


_group = click.argument("group", required=False)


@rollout.command("status")
@_group
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
@click.pass_obj
def rollout_status(load_config: LoadConfig, group: str | None, as_json: bool) -> None:
    """Show who changes, who went back, and whether the group is halted.

    GROUP is this host's if it is not given. Exit status 0: running; 2: halted; 4: no store.
    """
    config = load_config()
    paths = _paths(config, group)
    with _client(config) as client:
        try:
            kvs = client.get_prefix(paths.top).kvs
            view = group_of(paths, kvs, _hosts(client, config.report.prefix))
        except EtcdError as error:
            raise StoreError(f"store: {error}") from error
    if as_json:
        _echo(json.dumps(group_document(view), indent=1))
    else:
        for line in group_lines(view, time.time()):
            _echo(line)
    sys.exit(NOT_WELL if view.halt is not None else 0)


@rollout.command("halt")
@_group
@click.option("--reason", default="", help="shown to whoever wonders why nothing changes")
@click.pass_obj
def rollout_halt(load_config: LoadConfig, group: str | None, reason: str) -> None:
    """Let no host of the group begin to change, until ``rollout resume``. What is in work is finished."""
    config = load_config()
    paths = _paths(config, group)
    by = f"{getpass.getuser()}@{socket.gethostname()}"
    with _client(config) as client:
        try:
            halt_group(client, paths, by=by, reason=reason, now=time.time())
        except EtcdError as error:
            raise StoreError(f"store: {error}") from error
    click.echo(f"group {paths.group} is halted")


@rollout.command("resume")
@_group
@click.pass_obj
def rollout_resume(load_config: LoadConfig, group: str | None) -> None:
    """Let the group go on, whoever halted it. Hosts that went back wait for a new value all the same."""
    config = load_config()
    paths = _paths(config, group)
    with _client(config) as client:
        try:
            halted = resume_group(client, paths)
        except EtcdError as error:
            raise StoreError(f"store: {error}") from error
    click.echo(f"group {paths.group} goes on" if halted else f"group {paths.group} was not halted")


def _paths(config: AgentConfig, group: str | None) -> Paths:
    name = group or config.rollout.group
    if not name:
        raise ConfigError(f"{config.source} names no rollout.group; expected GROUP")
    return Paths(config.rollout.prefix, name)
