"""hosts: names and addresses from keys, as a hosts file or for dnsmasq, and the proof that they are answered.

Attach it with a table ``[plugins.hosts]``; README.md is the manual. The plugin keeps no state.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etcd_agent import (
    Applied,
    Problem,
    ReloadError,
    Resource,
    Staged,
    Table,
    commands,
    hookimpl,
    tables,
)

from .. import pidfile
from ..reading import listen
from . import model, query

AGENT_API = ">=1,<2"
NAME = model.PLUGIN
_CONF = f"{NAME}:dnsmasq.conf.j2"
_HOSTS = f"{NAME}:hosts.j2"


@dataclass(frozen=True, slots=True)
class Settings:
    """``[plugins.hosts]``: whether localhost is written, and which dnsmasq reads the files, if any."""

    localhost: bool
    dnsmasq: str
    pid: str
    restart: tuple[str, ...] | str | None
    server: str


def settings_of(resource: Resource) -> Settings | None:
    """The settings for a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    restart: tuple[str, ...] | str | None = table.take("restart", tables.command, None)
    settings = Settings(
        localhost=table.take("localhost", tables.boolean, True),
        dnsmasq=table.take("dnsmasq", tables.absolute_path, "/usr/sbin/dnsmasq"),
        pid=table.take("pid", tables.optional(tables.absolute_path), ""),
        restart=restart,
        server=table.take("server", tables.optional(_server), ""),
    )
    table.finish()
    return settings


def _server(value: Any) -> str:
    address = listen(tables.string(value))
    if ":" not in address or address.startswith(("unix:", "*")):
        raise ValueError(f'expected an address with a port, such as "127.0.0.1:53", not {value!r}')
    return address


@hookimpl
def agent_register_templates(register: Callable[[str, str], None]) -> None:
    register(NAME, os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates"))


@hookimpl
def agent_register_functions(register: Callable[[str, Callable[..., Any]], None], resource: Resource) -> None:
    settings = settings_of(resource)
    if settings is not None:
        register("zone", model.build)
        register("hosts_with_localhost", lambda view: settings.localhost)


@hookimpl
def agent_check_settings(resource: Resource) -> Problem | None:
    settings = settings_of(resource)
    if settings is None:
        return None
    sources = {template.src for template in resource.templates}
    if _CONF in sources and settings.pid and settings.restart is None and not resource.reload.configured:
        return Problem("dnsmasq reads its configuration only at its start: set plugins.hosts.restart", _CONF)
    return None


@hookimpl
def agent_validate(resource: Resource, staged: Staged) -> Problem | None:
    """``dnsmasq --test`` for what it reads as configuration; hosts files are right by their model."""
    settings = settings_of(resource)
    if settings is None:
        return None
    conf = {template.dest for template in resource.templates if template.src == _CONF}
    for file in staged.files:
        if file.dest not in conf:
            continue
        command = (settings.dnsmasq, "--test", "-C", file.path)
        result = commands.run(command, timeout_s=resource.check.timeout_s)
        if not result.ok:
            reason = result.reason(command, resource.check.timeout_s).replace(file.path, file.dest)
            return Problem(f"dnsmasq --test: {reason}")
    return None


@hookimpl
def agent_reload(resource: Resource, applied: Applied) -> str | None:
    """SIGHUP makes dnsmasq read its hosts files again; its configuration needs a restart."""
    settings = settings_of(resource)
    if settings is None or resource.reload.configured or not settings.pid:
        return None
    conf = {template.dest for template in resource.templates if template.src == _CONF}
    if settings.restart is not None and conf & set(applied.changed):
        result = commands.run(settings.restart, timeout_s=resource.reload.timeout_s)
        if not result.ok:
            raise ReloadError(f"dnsmasq: {result.reason(settings.restart, resource.reload.timeout_s)}")
        return "dnsmasq restarted"
    pid = _pid(settings.pid)
    if pid is None:
        return "dnsmasq does not run; it reads its files when it starts"
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise ReloadError(f"dnsmasq ({pid}) cannot be signalled: {error.strerror}") from error
    return "dnsmasq reads its hosts files again"


def _pid(path: str) -> int | None:
    return pidfile.running(path, "dnsmasq")


@hookimpl
def agent_health(resource: Resource, applied: Applied) -> Problem | None:
    """The server answers every name with the addresses in the files."""
    settings = settings_of(resource)
    if settings is None or not settings.server:
        return None
    if settings.pid and _pid(settings.pid) is None:
        return None
    sources = {template.dest for template in resource.templates if template.src == _HOSTS}
    for path in applied.files:
        if path not in sources:
            continue
        try:
            with open(path, encoding="utf-8") as file:
                wanted = model.hosts_in(file.read())
        except FileNotFoundError:
            continue
        if reason := query.problem(settings.server, wanted, resource.health.timeout_s):
            return Problem(reason, settings.server)
    return None
