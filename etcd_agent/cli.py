"""The command ``etcd-py-agent``.

Exit statuses: 0 done, or nothing to do; 1 a wrong configuration, usage or file; 2 ``plan``: there are
changes; 3 a template, guard or check refused; 4 the store cannot be reached; 5 the old files had to be rolled
back. A user never sees a traceback: every AgentError is one line on standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from etcd_agent import logs, skeleton
from etcd_agent.apply import Applier, exit_status
from etcd_agent.cli_change import accept_cluster, apply, history, plan, put, rollback
from etcd_agent.cli_support import CHANGES, LoadConfig, applier_of, in_order, read, selected, store_of
from etcd_agent.config import DEFAULT_PATH, instance_path, load
from etcd_agent.errors import AgentError, ConfigError, StoreError
from etcd_agent.files import FileSystem
from etcd_agent.fleet import fleet, rollout
from etcd_agent.follow import Store
from etcd_agent.locks import is_locked, state_lock
from etcd_agent.plugins import PluginSet
from etcd_agent.rollout import open_gate
from etcd_agent.runtime import Agent, builtin_plugins
from etcd_agent.status import read_status, report
from etcd_agent.values import WAITING, AgentConfig, Entry, Outcome, Resource, Snapshot

__all__ = ["CHANGES", "cli", "main"]
_SLOT_WAIT_S = 1.0
_SYNC_ONLY = click.option("--sync-only", is_flag=True, help="write files; check and reload nothing")


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", help=f"agent.toml  [default: {DEFAULT_PATH}]")
@click.option(
    "--instance", metavar="NAME", help="one of several agents of this host, with file and state of its own"
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="overrides log_level"
)
@click.version_option(package_name="etcd-py", prog_name="etcd-py-agent")
@click.pass_context
def cli(context: click.Context, path: str | None, instance: str | None, log_level: str | None) -> None:
    """Turns keys of an etcd-compatible store into checked, running configuration.

    Without a command: run.
    """

    def load_config() -> AgentConfig:
        config = load(path or instance_path(instance), instance)
        return replace(config, log_level=log_level) if log_level else config

    context.obj = load_config
    if context.invoked_subcommand is None:
        context.invoke(run)


@cli.command()
@click.option("--noop", is_flag=True, help="log what would be done and do nothing")
@click.option(
    "--accept-cluster", "accepted", is_flag=True, help="another cluster may have taken the known one's place"
)
@_SYNC_ONLY
@click.pass_obj
def run(load_config: LoadConfig, noop: bool = False, accepted: bool = False, sync_only: bool = False) -> None:
    """Follow the store and apply every change, until SIGTERM. SIGHUP loads the configuration again."""

    def load_again() -> AgentConfig:
        config = load_config()
        logs.set_up(config.log_level, config.log_format)
        safety = replace(config.safety, accept_cluster=accepted)
        config = replace(config, noop=config.noop or noop, safety=safety)
        return replace(config, sync_only=config.sync_only or sync_only)

    sys.exit(Agent(load_again(), load_config=load_again).run())


@cli.command()
@click.argument("names", metavar="[RESOURCE]...", nargs=-1)
@_SYNC_ONLY
@click.pass_obj
def once(load_config: LoadConfig, names: Sequence[str], sync_only: bool) -> None:
    """Apply every resource (or those named) once and end; no settling time.

    The exit status is that of the first resource that could not be applied.
    """
    config = load_config()
    config = replace(config, sync_only=config.sync_only or sync_only)
    logs.set_up(config.log_level, config.log_format)
    status = 0
    with state_lock(config.state_dir), store_of(config) as store:
        gate = open_gate(config, store.client, lambda name: None) if config.rollout.group else None
        try:
            status = _each_once(config, applier_of(config, gate), store, selected(config, names))
        finally:
            if gate is not None:
                gate.close()
    sys.exit(status)


def _each_once(config: AgentConfig, applier: Applier, store: Store, resources: Sequence[Resource]) -> int:
    """All of them, what others require first. Returns the status of the first that was not applied."""
    status = 0
    unapplied: set[str] = set()
    for resource in in_order(resources):
        reason, ended = "", 0
        missing = unapplied.intersection(resource.requires)
        if missing:
            reason, ended = f"waits for {', '.join(sorted(missing))}", 1
        else:
            try:
                ended = exit_status(_once(config, applier, store, resource))
            except AgentError as error:
                reason, ended = str(error), error.exit_status
        if reason:
            click.echo(f"{resource.name}: {reason}", err=True)
        if ended:
            unapplied.add(resource.name)
        status = status or ended
    return status


def _once(config: AgentConfig, applier: Applier, store: Store, resource: Resource) -> Outcome:
    try:
        snapshot = read(config, store, resource)
    except StoreError:
        applier.run(resource, None, noop=config.noop)  # a reload that is owed needs no store
        raise
    while True:
        outcome = applier.run(resource, snapshot, noop=config.noop)
        if outcome.kind != WAITING:
            return outcome
        time.sleep(_SLOT_WAIT_S)
        snapshot = read(config, store, resource)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
@click.pass_obj
def status(load_config: LoadConfig, as_json: bool) -> None:
    """Show what the agent of this configuration last said of itself. Exit status 1 if it does not run."""
    config = load_config()
    said = read_status(config.state_dir)
    alive = is_locked(config.state_dir)
    if as_json:
        click.echo(json.dumps({**asdict(said), "alive": alive}, indent=1))
    else:
        for line in report(said, alive=alive, now=time.time()):
            click.echo(line)
    sys.exit(0 if alive else 1)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
@click.pass_obj
def plugins(load_config: LoadConfig, as_json: bool) -> None:
    """List plugins: loaded, blocked or broken, and why."""
    config = load_config()
    logs.set_up("error", "text")
    records = PluginSet(replace(config.plugins, strict=False), builtin_plugins()).records
    if as_json:
        fields = ("name", "state", "version", "source", "hooks", "reason")
        rows = [{name: getattr(record, name) for name in fields} for record in records]
        click.echo(json.dumps(rows, indent=1))
        return
    for record in records:
        about = record.reason or ", ".join(record.hooks)
        version = f" {record.version}" if record.version else ""
        click.echo(f"{record.name:12s} {record.state:8s} {record.source}{version}: {about}")


@cli.command("check-config")
@click.pass_obj
def check_config(load_config: LoadConfig) -> None:
    """Check agent.toml, the resource files, their templates and the plugins' settings; asks no store."""
    config = load_config()
    logs.set_up("warning", "text")
    applier = applier_of(config)
    wrong = 0
    for resource in config.resources:
        try:
            applier.check_templates(resource)
        except AgentError as error:
            click.echo(f"{resource.source}: {error}", err=True)
            wrong += 1
    if wrong:
        sys.exit(1)
    click.echo(f"{config.source}: {len(config.resources)} resources, no error")


@cli.command()
@click.argument("name", metavar="RESOURCE")
@click.option(
    "--mock-data",
    metavar="FILE",
    help="a JSON object of absolute keys and values, read instead of the store",
)
@click.pass_obj
def render(load_config: LoadConfig, name: str, mock_data: str | None) -> None:
    """Print what a resource renders to; nothing is checked or written."""
    config = load_config()
    logs.set_up("warning", "text")
    applier = applier_of(config)
    (resource,) = selected(config, [name])
    if mock_data:
        snapshot = _mock(mock_data)
    else:
        with store_of(config) as store:
            snapshot = read(config, store, resource)
    for file in applier.render(resource, snapshot):
        click.echo(f"# {file.dest}")
        click.echo(file.content, nl=False)


def _mock(path: str) -> Snapshot:
    state = FileSystem().read(path)
    if state is None:
        raise ConfigError(f"{path}: there is no such file")
    try:
        data: Any = json.loads(state.content)
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise ConfigError(f"{path}: expected one JSON object whose values are strings")
    return Snapshot(0, 1, {key: Entry(value.encode(), 1) for key, value in data.items()})


@cli.group()
def plugin() -> None:
    """Tools for authors of plugins."""


@plugin.command("new")
@click.argument("name", metavar="NAME")
@click.option("--directory", metavar="DIR", help="where to write it  [default: NAME]")
def plugin_new(name: str, directory: str | None) -> None:
    """Write the skeleton of a plugin: a package with a manual, a template and a test that passes."""
    for path in skeleton.new(name, directory or name):
        click.echo(path)


for command in (plan, put, apply, rollback, history, accept_cluster, fleet, rollout):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Ends the process with the statuses above."""
    try:
        cli.main(args=arguments, prog_name="etcd-py-agent", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
    except click.exceptions.Abort:
        sys.exit(130)
    except AgentError as error:
        click.echo(f"etcd-py-agent: {error}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
