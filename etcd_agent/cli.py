"""The command ``etcd-py-agent``.

Exit statuses: 0 done, or nothing to do; 1 a wrong configuration, usage or file; 2 ``plan``: there are
changes; 3 a template, guard or check refused; 4 the store cannot be reached; 5 the old files had to be rolled
back. A user never sees a traceback: every AgentError is one line on standard error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from etcd_agent import logs
from etcd_agent.apply import Applier, exit_status, snapshot_with
from etcd_agent.config import DEFAULT_PATH, load
from etcd_agent.errors import AgentError, ConfigError, StoreError
from etcd_agent.execute import Executor
from etcd_agent.files import FileSystem
from etcd_agent.follow import Store
from etcd_agent.locks import is_locked, state_lock
from etcd_agent.plan import diff
from etcd_agent.plugins import PluginSet
from etcd_agent.runtime import Agent, builtin_plugins
from etcd_agent.status import read_status, report
from etcd_agent.values import AgentConfig, Entry, Outcome, Resource, Snapshot

CHANGES = 2


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", default=DEFAULT_PATH, show_default=True, help="agent.toml")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="overrides log_level"
)
@click.version_option(package_name="etcd-py", prog_name="etcd-py-agent")
@click.pass_context
def cli(context: click.Context, path: str, log_level: str | None) -> None:
    """Turns keys of an etcd-compatible store into checked, running configuration.

    Without a command: run.
    """

    def load_config() -> AgentConfig:
        config = load(path)
        return replace(config, log_level=log_level) if log_level else config

    context.obj = load_config
    if context.invoked_subcommand is None:
        context.invoke(run)


@cli.command()
@click.option("--noop", is_flag=True, help="log what would be done and do nothing")
@click.pass_obj
def run(load_config: Callable[[], AgentConfig], noop: bool = False) -> None:
    """Follow the store and apply every change, until SIGTERM. SIGHUP loads the configuration again."""

    def load_again() -> AgentConfig:
        config = load_config()
        logs.set_up(config.log_level, config.log_format)
        return replace(config, noop=config.noop or noop)

    sys.exit(Agent(load_again(), load_config=load_again).run())


@cli.command()
@click.argument("names", metavar="[RESOURCE]...", nargs=-1)
@click.pass_obj
def once(load_config: Callable[[], AgentConfig], names: Sequence[str]) -> None:
    """Apply every resource (or those named) once and end; no settling time.

    The exit status is that of the first resource that could not be applied.
    """
    config = load_config()
    logs.set_up(config.log_level, config.log_format)
    status = 0
    with state_lock(config.state_dir):
        applier = _applier(config)
        store = Store(config)
        try:
            for resource in _selected(config, names):
                try:
                    status = status or exit_status(_once(applier, store, resource, config.noop))
                except AgentError as error:
                    click.echo(f"{resource.name}: {error}", err=True)
                    status = status or error.exit_status
        finally:
            store.close()
    sys.exit(status)


def _once(applier: Applier, store: Store, resource: Resource, noop: bool) -> Outcome:
    try:
        snapshot = store.read(resource.ranges)
    except StoreError:
        applier.run(resource, None, noop=noop)  # a reload that is owed needs no store
        raise
    return applier.run(resource, snapshot, noop=noop)


@cli.command()
@click.argument("names", metavar="[RESOURCE]...", nargs=-1)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="as if this key had this value")
@click.option("--delete", "deleted", multiple=True, metavar="KEY", help="as if this key did not exist")
@click.option(
    "--check/--no-check", default=True, help="run the checks of the changed resources too (default)"
)
@click.pass_obj
def plan(
    load_config: Callable[[], AgentConfig],
    names: Sequence[str],
    settings: Sequence[str],
    deleted: Sequence[str],
    check: bool,
) -> None:
    """Show as a unified diff what an apply would change on this host, and change nothing.

    KEY is absolute, as in the store. Exit status 0: no change; 2: changes; 3: they would be refused.
    """
    config = load_config()
    logs.set_up("warning", "text")
    values = dict(_setting(text) for text in settings)
    applier = _applier(config)
    store = Store(config)
    status = 0
    try:
        for resource in _selected(config, names):
            try:
                snapshot = snapshot_with(store.read(resource.ranges), values, deleted)
                status = max(status, _show_plan(applier, resource, snapshot, check))
            except AgentError as error:
                click.echo(f"{resource.name}: {error}", err=True)
                status = max(status, error.exit_status)
    finally:
        store.close()
    sys.exit(status)


def _show_plan(applier: Applier, resource: Resource, snapshot: Snapshot, check: bool) -> int:
    made = applier.plan(resource, snapshot)
    click.echo(diff(made), nl=False)
    if made.reload_pending:
        click.echo(f"# {resource.name}: a reload is pending")
    manifest = applier.manifest(resource)
    if made.actions and manifest.bad is not None and manifest.refuses(made.target):
        click.echo(f"# {resource.name}: held, because exactly this was rolled back: {manifest.bad.error}")
    if check and made.actions:
        with tempfile.TemporaryDirectory(prefix="etcd-py-agent-plan-") as directory:
            applier.check(resource, made, snapshot, f"{directory}/stage")
    return 0 if made.empty else CHANGES


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
@click.pass_obj
def status(load_config: Callable[[], AgentConfig], as_json: bool) -> None:
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
def plugins(load_config: Callable[[], AgentConfig], as_json: bool) -> None:
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
def check_config(load_config: Callable[[], AgentConfig]) -> None:
    """Check agent.toml, the resource files, their templates and the plugins' settings; asks no store."""
    config = load_config()
    logs.set_up("warning", "text")
    applier = _applier(config)
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
def render(load_config: Callable[[], AgentConfig], name: str, mock_data: str | None) -> None:
    """Print what a resource renders to; nothing is checked or written."""
    config = load_config()
    logs.set_up("warning", "text")
    applier = _applier(config)
    (resource,) = _selected(config, [name])
    for file in applier.render(resource, _mock(mock_data) if mock_data else _read(config, resource)):
        click.echo(f"# {file.dest}")
        click.echo(file.content, nl=False)


def _read(config: AgentConfig, resource: Resource) -> Snapshot:
    store = Store(config)
    try:
        return store.read(resource.ranges)
    finally:
        store.close()


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


def _applier(config: AgentConfig) -> Applier:
    loaded = PluginSet(config.plugins, builtin_plugins())
    return Applier(config, loaded, Executor(config.state_dir, loaded, safety=config.safety))


def _selected(config: AgentConfig, names: Sequence[str]) -> list[Resource]:
    known = {resource.name: resource for resource in config.resources}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no resource {name!r}; known: {', '.join(known) or 'none'}")
    return [known[name] for name in names] if names else list(config.resources)


def _setting(text: str) -> tuple[str, bytes]:
    key, equals, value = text.partition("=")
    if not equals or not key.startswith("/"):
        raise ConfigError(f"--set: expected KEY=VALUE with an absolute key, not {text!r}")
    return key, os.fsencode(value)


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
