"""The commands around one change: ``plan`` and ``put`` before it, ``apply`` for it, ``history`` and
``rollback`` after it, ``accept-cluster`` when the store is another one.

``apply``, ``rollback`` and ``accept-cluster`` give an order to the running agent if there is one, and
otherwise do it themselves.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from etcd_agent import logs
from etcd_agent.apply import Applier, snapshot_with
from etcd_agent.audit import Audit
from etcd_agent.cli_support import CHANGES, LoadConfig, applier_of, read, selected, setting, store_of
from etcd_agent.errors import AgentError, ConfigError, GuardError, StoreError
from etcd_agent.follow import Store
from etcd_agent.keyspace import in_subtree
from etcd_agent.locks import is_locked, state_lock
from etcd_agent.pages import order
from etcd_agent.plan import diff
from etcd_agent.runtime import answer_of, pass_limit_s
from etcd_agent.values import AgentConfig, Outcome, Resource, Snapshot
from etcd_client import EtcdError, compare, ops
from etcd_client.compare import Compare
from etcd_client.types import prefix_range_end

# etcd takes 128 comparisons in a transaction.
_MOST_COMPARISONS = 120


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change would do here: ``status`` is the exit status of ``plan``; ``snapshots`` what it saw."""

    status: int
    snapshots: tuple[Snapshot, ...]


def _as_host(config: AgentConfig, host: str | None, labels: Sequence[str]) -> AgentConfig:
    """The configuration as another host would have it."""
    given = dict(label.split("=", 1) for label in labels if "=" in label)
    if len(given) != len(labels):
        raise ConfigError(f"--label: expected NAME=VALUE, not {next(x for x in labels if '=' not in x)!r}")
    return replace(config, host_id=host or config.host_id, labels={**config.labels, **given})


@click.command()
@click.argument("names", metavar="[RESOURCE]...", nargs=-1)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="as if this key had this value")
@click.option("--delete", "deleted", multiple=True, metavar="KEY", help="as if this key did not exist")
@click.option("--host", metavar="ID", help="render as this host would; compared with the files here")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="a label of that host")
@click.option(
    "--check/--no-check", default=True, help="run the checks of the changed resources too (default)"
)
@click.pass_obj
def plan(
    load_config: LoadConfig,
    names: Sequence[str],
    settings: Sequence[str],
    deleted: Sequence[str],
    host: str | None,
    labels: Sequence[str],
    check: bool,
) -> None:
    """Show as a unified diff what an apply would change on this host, and change nothing.

    KEY is absolute, as in the store. Exit status 0: no change; 2: changes; 3: they would be refused.
    """
    config = _as_host(load_config(), host, labels)
    logs.set_up("warning", "text")
    values = dict(setting(text) for text in settings)
    with store_of(config) as store:
        preview = _preview(config, store, selected(config, names), values, deleted, check=check)
    sys.exit(preview.status)


def _preview(
    config: AgentConfig,
    store: Store,
    resources: Iterable[Resource],
    values: Mapping[str, bytes],
    deleted: Sequence[str],
    *,
    check: bool,
) -> Preview:
    applier = applier_of(config)
    status = 0
    seen: list[Snapshot] = []
    for resource in resources:
        try:
            seen.append(read(config, store, resource))
            status = max(status, _show(applier, resource, snapshot_with(seen[-1], values, deleted), check))
        except AgentError as error:
            click.echo(f"{resource.name}: {error}", err=True)
            status = max(status, error.exit_status)
    return Preview(status, tuple(seen))


def _show(applier: Applier, resource: Resource, snapshot: Snapshot, check: bool) -> int:
    made = applier.plan(resource, snapshot)
    click.echo(diff(made), nl=False)
    if made.reload_pending:
        click.echo(f"# {resource.name}: a reload is pending")
    for dest in made.drift:
        click.echo(f"# {dest}: changed by another hand since it was written (drift = {resource.drift})")
    manifest = applier.manifest(resource)
    if made.actions and manifest.bad is not None and manifest.refuses(made.target):
        click.echo(f"# {resource.name}: held, because exactly this was rolled back: {manifest.bad.error}")
    if check and made.actions:
        with tempfile.TemporaryDirectory(prefix="etcd-py-agent-plan-") as directory:
            applier.check(resource, made, snapshot, f"{directory}/stage")
    return 0 if made.empty else CHANGES


@click.command()
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--delete", "deleted", multiple=True, metavar="KEY", help="delete this key")
@click.option("--plan", "planned", is_flag=True, help="show what it changes on this host, check it, then ask")
@click.option("--yes", is_flag=True, help="with --plan: do not ask")
@click.pass_obj
def put(
    load_config: LoadConfig, settings: Sequence[str], deleted: Sequence[str], planned: bool, yes: bool
) -> None:
    """Write keys, all in one transaction; with --plan only if nothing has changed since it was shown.

    Values are checked against their JSON Schemas before anything is written. Exit status 3: a check or a
    guard refused, or a key of a resource concerned was written meanwhile; then nothing was written.
    """
    config = load_config()
    logs.set_up("warning", "text")
    values = dict(setting(text) for text in settings)
    if not values and not deleted:
        raise ConfigError("nothing to write: expected KEY=VALUE or --delete KEY")
    keys = [*values, *deleted]
    with store_of(config) as store:
        concerned = [
            each
            for each in config.resources
            if any(in_subtree(key, top) for top in each.ranges for key in keys)
        ]
        unchanged: list[Compare] = []
        if planned:
            preview = _preview(config, store, concerned, values, deleted, check=True)
            if preview.status not in (0, CHANGES):
                sys.exit(preview.status)
            if not yes and not click.confirm("Write these keys?", err=True):
                sys.exit(1)
            unchanged = _unchanged(concerned, preview.snapshots, keys)
        else:
            applier = applier_of(config)
            for resource in concerned:
                applier.render(resource, snapshot_with(read(config, store, resource), values, deleted))
        click.echo(f"written at revision {_write(store, values, deleted, unchanged)}")


def _unchanged(
    resources: Sequence[Resource], snapshots: Sequence[Snapshot], keys: Sequence[str]
) -> list[Compare]:
    """That no key of the resources was put, and none of those that were there deleted, since the preview.

    Where there are more keys than a transaction can compare, deletions of the last ones are not noticed.
    """
    found: list[Compare] = []
    for resource, snapshot in zip(resources, snapshots, strict=True):
        for top in resource.ranges:
            for start, end in ((top, None), (f"{top}/", prefix_range_end(f"{top}/"))):
                found.append(compare.mod_revision(start, end) < snapshot.revision + 1)
        found += [compare.mod_revision(key) == entry.mod_revision for key, entry in snapshot.entries.items()]
    return found[:_MOST_COMPARISONS]


def _write(
    store: Store, values: Mapping[str, bytes], deleted: Sequence[str], unchanged: Sequence[Compare]
) -> int:
    writes = [*(ops.put(key, value) for key, value in values.items()), *(ops.delete(key) for key in deleted)]
    try:
        result = store.client.txn(compare=unchanged, success=writes)
    except EtcdError as error:
        raise StoreError(f"store: {error}") from error
    if not result.succeeded:
        raise GuardError("a key was written since the preview; nothing was written now")
    return result.revision


@click.command()
@click.argument("name", metavar="RESOURCE")
@click.option(
    "--force",
    is_flag=True,
    help="pass the guards, try what is held, write and reload whether anything changed or not",
)
@click.pass_obj
def apply(load_config: LoadConfig, name: str, force: bool) -> None:
    """Apply a resource now, by the running agent if there is one."""
    config = load_config()
    (resource,) = selected(config, [name])
    arguments = {"resource": name, "force": "1" if force else ""}
    if is_locked(config.state_dir):
        _end(order(config.state_dir, "/apply", arguments, _limit_s(resource)))
    logs.set_up(config.log_level, config.log_format)
    with state_lock(config.state_dir), store_of(config) as store:
        applier = applier_of(config)
        _end(answer_of(applier.run(resource, read(config, store, resource), force=force)))


@click.command()
@click.argument("name", metavar="RESOURCE")
@click.option("--to", "number", type=int, metavar="N", help="a generation of history; default: the newest")
@click.pass_obj
def rollback(load_config: LoadConfig, name: str, number: int | None) -> None:
    """Bring a saved generation of all files of a resource back, with check, reload and health.

    The keys as they are now are then held: they are applied again when one of them changes, or by
    apply --force.
    """
    config = load_config()
    (resource,) = selected(config, [name])
    if is_locked(config.state_dir):
        arguments = {"resource": name, "to": "" if number is None else str(number)}
        _end(order(config.state_dir, "/rollback", arguments, _limit_s(resource)))
    logs.set_up(config.log_level, config.log_format)
    with state_lock(config.state_dir):
        _end(answer_of(applier_of(config).roll_back(resource, number)))


@click.command("accept-cluster")
@click.pass_obj
def accept_cluster(load_config: LoadConfig) -> None:
    """Accept that another cluster answers now: apply its keys in place of the old one's."""
    config = load_config()
    if is_locked(config.state_dir):
        _end(order(config.state_dir, "/accept-cluster", {}, 30.0))
    logs.set_up(config.log_level, config.log_format)
    config = replace(config, safety=replace(config.safety, accept_cluster=True))
    status = 0
    with state_lock(config.state_dir), store_of(config) as store:
        applier = applier_of(config)
        for resource in config.resources:
            try:
                outcome: Outcome | AgentError = applier.run(resource, read(config, store, resource))
            except AgentError as error:
                outcome = error
            answer = answer_of(outcome)
            click.echo(f"{resource.name}: {answer.get('message') or answer.get('error')}")
            status = status or int(answer["exit_status"])
    sys.exit(status)


def _end(answer: Mapping[str, Any]) -> None:
    """Show the answer to an order and end with its status."""
    if "error" in answer:
        click.echo(f"etcd-py-agent: {answer['error']}", err=True)
    else:
        click.echo(answer["message"])
    sys.exit(int(answer["exit_status"]))


def _limit_s(resource: Resource) -> float:
    return pass_limit_s(resource) + 60.0


@click.command()
@click.argument("name", metavar="RESOURCE")
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
@click.pass_obj
def history(load_config: LoadConfig, name: str, as_json: bool) -> None:
    """Show what was applied to a resource, and the generations that a rollback can bring back."""
    config = load_config()
    (resource,) = selected(config, [name])
    logs.set_up("warning", "text")
    applier = applier_of(config)
    lines = Audit(f"{config.state_dir}/audit.jsonl").lines(name)
    generations = applier.history(resource)
    current = applier.manifest(resource).current
    if as_json:
        kept = [
            {
                "generation": each.number,
                "revision": each.content.revision,
                "files": sorted(each.content.files),
            }
            for each in generations
        ]
        document = {"resource": name, "revision": current.revision, "generations": kept, "applies": lines}
        click.echo(json.dumps(document, indent=1))
        return
    for line in lines:
        keys = ", ".join(line["keys"]) or "no key"
        error = f": {line['error']}" if line["error"] else ""
        revisions = " -> ".join(map(str, line["revisions"]))
        took = f"{revisions} in {line['duration_s']} s"
        click.echo(f"{_time(line['time'])} {line['result']:12s} {took}, {keys}{error}")
    click.echo(f"in force: revision {current.revision}")
    for each in generations:
        when = _time(each.applied_at) if each.applied_at else "before the first apply"
        click.echo(f"generation {each.number}: revision {each.content.revision}, {when}")


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
