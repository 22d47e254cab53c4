"""nginx: upstreams, servers and locations from keys; checked as a whole, reloaded, and proved to be served.

Attach it with a table ``[plugins.nginx]`` in a resource file and use its template ``src =
"nginx:http.conf.j2"``. README.md is the manual. The plugin keeps no state: what is needed after a crash
stands in the files and in /proc.
"""

from __future__ import annotations

import http.client
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etcd_agent import (
    Applied,
    CheckError,
    Problem,
    ReloadError,
    Resource,
    Staged,
    Table,
    commands,
    hookimpl,
    idle,
    tables,
)

from .. import reading
from . import model, process, tree

AGENT_API = ">=1,<2"
NAME = "nginx"
_MARKER = re.compile(rb"^# etcd-py-agent marker ([0-9a-f]{16})$", re.MULTILINE)
_REASON = re.compile(r"\[(?:emerg|crit|error)\] (?:\d+#\d+: )?(.*)")
MARKER_PATH = "/etcd-py-agent/marker"


@dataclass(frozen=True, slots=True)
class Settings:
    """``[plugins.nginx]``: which nginx this is. ``marker`` "" serves and checks no marker."""

    binary: str
    conf: str
    prefix: str
    pid: str
    marker: str
    check: bool
    require_running: bool


def settings_of(resource: Resource) -> Settings | None:
    """The settings for a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    settings = Settings(
        binary=table.take("binary", tables.absolute_path, "/usr/sbin/nginx"),
        conf=table.take("conf", tables.absolute_path, "/etc/nginx/nginx.conf"),
        prefix=table.take("prefix", tables.optional(tables.absolute_path), ""),
        pid=table.take("pid", tables.absolute_path, "/run/nginx.pid"),
        marker=table.take("marker", tables.optional(_marker_address), ""),
        check=table.take("check", tables.boolean, True),
        require_running=table.take("require_running", tables.boolean, False),
    )
    table.finish()
    return settings


def _marker_address(value: Any) -> str:
    address = reading.listen(tables.string(value))
    if not address.startswith("127.") or ":" not in address:
        raise ValueError(f'expected a loopback address with a port, such as "127.0.0.1:8099", not {value!r}')
    return address


@hookimpl
def agent_register_templates(register: Callable[[str, str], None]) -> None:
    register(NAME, os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates"))


@hookimpl
def agent_register_functions(register: Callable[[str, Callable[..., Any]], None], resource: Resource) -> None:
    if resource.settings(NAME) is not None:
        register("nginx", model.build)


@hookimpl
def agent_check_settings(resource: Resource) -> None:
    settings_of(resource)


@hookimpl
def agent_validate(resource: Resource, staged: Staged) -> Problem | None:
    """``nginx -t`` over a copy of the whole configuration with the staged files in it."""
    settings = settings_of(resource)
    if settings is None or not settings.check:
        return None
    parent = os.path.dirname(staged.directory)
    try:
        with tempfile.TemporaryDirectory(prefix="nginx-check-", dir=parent) as directory:
            copy = tree.copy_tree(settings.conf, staged, directory)
            command = _command(settings, copy.main, "-t", "-q")
            result = commands.run(command, timeout_s=resource.check.timeout_s)
            if result.ok:
                return None
            reason = _complaint(result, command, resource.check.timeout_s)
            return Problem(f"nginx -t: {copy.translate(reason)}")
    except CheckError as error:
        return Problem(str(error))
    except OSError as error:
        return Problem(f"the configuration cannot be copied for nginx -t: {error}")


@hookimpl
def agent_reload(resource: Resource, applied: Applied) -> str | None:
    """Reload, and wait until new workers have taken over: nginx itself does not say whether it could."""
    settings = settings_of(resource)
    if settings is None or resource.reload.configured:
        return None
    master = process.master_pid(settings.pid)
    if master is None:
        return "nginx does not run; it reads its files when it starts"
    before = process.workers(master)
    timeout_s = resource.reload.timeout_s
    command = _command(settings, settings.conf, "-q", "-s", "reload")
    result = commands.run(command, timeout_s=timeout_s)
    if not result.ok:
        raise ReloadError(f"nginx -s reload: {_complaint(result, command, timeout_s)}")
    if not process.await_new_workers(settings.pid, before, timeout_s):
        raise ReloadError(
            f"nginx was told to reload, but after {timeout_s:g} s its old workers still serve; see its log"
        )
    return f"nginx reloaded ({len(applied.changed)} files changed)"


@hookimpl
def agent_health(resource: Resource, applied: Applied) -> Problem | None:
    """Workers accept, and what they serve is what the files on disk say."""
    settings = settings_of(resource)
    if settings is None:
        return None
    try:
        master = process.master_pid(settings.pid)
    except process.HiddenError as error:
        if not settings.marker:
            return Problem(str(error))
    else:
        if master is None:
            return Problem("nginx does not run", settings.pid) if settings.require_running else None
        if all(worker.leaving for worker in process.workers(master)):
            return Problem("nginx has no worker that accepts connections")
    expected = _expected_marker(applied)
    if not settings.marker or expected is None:
        return None
    return _marker_problem(settings.marker, expected, resource.health.timeout_s)


def _command(settings: Settings, conf: str, *options: str) -> tuple[str, ...]:
    prefix = ("-p", settings.prefix) if settings.prefix else ()
    return (settings.binary, *prefix, "-c", conf, *options)


def _complaint(result: commands.Result, command: tuple[str, ...], timeout_s: float) -> str:
    """nginx's own reason, which it prints before it sums up."""
    for line in result.output.splitlines():
        if match := _REASON.search(line):
            return match.group(1).strip()
    return result.reason(command, timeout_s)


def _expected_marker(applied: Applied) -> str | None:
    for path in applied.files:
        try:
            with open(path, "rb") as file:
                match = _MARKER.search(file.read())
        except FileNotFoundError:
            continue
        if match:
            return match.group(1).decode("ascii")
    return None


def _marker_problem(address: str, expected: str, timeout_s: float) -> Problem | None:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        with idle():
            connection.request("GET", MARKER_PATH, headers={"Connection": "close"})
            answer = connection.getresponse()
            served = answer.read(64).decode("ascii", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return Problem(f"the marker is not served: {type(error).__name__}", address)
    finally:
        connection.close()
    if answer.status != 200 or served != expected:
        return Problem("nginx serves another configuration than the one on disk", address)
    return None
