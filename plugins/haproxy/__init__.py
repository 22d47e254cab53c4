"""HAProxy: backends, servers and frontends from keys; checked as a whole, changed through the runtime socket
where that is enough, reloaded where it is not, and proved to be in force.

Attach it with a table ``[plugins.haproxy]`` in a resource file and use its template ``src =
"haproxy:haproxy.cfg.j2"``. README.md is the manual. The plugin keeps no state: the file on disk and the
running process say everything.
"""

from __future__ import annotations

import os
import re
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
    tables,
)

from . import check, control, model, runtime

AGENT_API = ">=1,<2"
NAME = model.PLUGIN
_ALERT = re.compile(r"\[ALERT\]\s+\(\d+\) : (?:config : )?(.*)")


@dataclass(frozen=True, slots=True)
class Settings:
    """``[plugins.haproxy]``: which HAProxy this is."""

    binary: str
    conf: tuple[str, ...]
    socket: str
    master_socket: str
    pid: str
    check: bool
    runtime: bool
    require_running: bool


def settings_of(resource: Resource) -> Settings | None:
    """The settings for a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    settings = Settings(
        binary=table.take("binary", tables.absolute_path, "/usr/sbin/haproxy"),
        conf=table.take("conf", _paths, ("/etc/haproxy/haproxy.cfg",)),
        socket=table.take("socket", tables.optional(tables.absolute_path), "/run/haproxy/admin.sock"),
        master_socket=table.take("master_socket", tables.optional(tables.absolute_path), ""),
        pid=table.take("pid", tables.absolute_path, "/run/haproxy.pid"),
        check=table.take("check", tables.boolean, True),
        runtime=table.take("runtime", tables.boolean, True),
        require_running=table.take("require_running", tables.boolean, False),
    )
    table.finish()
    return settings


def _paths(value: Any) -> tuple[str, ...]:
    paths = (value,) if isinstance(value, str) else tables.strings(value)
    if not paths:
        raise ValueError("expected at least one file or folder")
    return tuple(tables.absolute_path(path) for path in paths)


@hookimpl
def agent_register_templates(register: Callable[[str, str], None]) -> None:
    register(NAME, os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates"))


@hookimpl
def agent_register_functions(register: Callable[[str, Callable[..., Any]], None], resource: Resource) -> None:
    if resource.settings(NAME) is not None:
        register("haproxy", model.build)


@hookimpl
def agent_check_settings(resource: Resource) -> None:
    settings_of(resource)


@hookimpl
def agent_validate(resource: Resource, staged: Staged) -> Problem | None:
    """``haproxy -c`` over all its files, the staged ones in place of those that they replace."""
    settings = settings_of(resource)
    if settings is None or not settings.check:
        return None
    try:
        files = check.files(settings.conf, staged)
    except CheckError as error:
        return Problem(str(error))
    except OSError as error:
        return Problem(f"haproxy's files cannot be listed: {error}")
    command = (settings.binary, "-c", "-q", *(word for path in files.values() for word in ("-f", path)))
    result = commands.run(command, timeout_s=resource.check.timeout_s)
    if result.ok:
        return None
    reason = _complaint(result, command, resource.check.timeout_s)
    for real, path in files.items():
        reason = reason.replace(path, real)
    return Problem(f"haproxy -c: {reason}")


@hookimpl
def agent_reload(resource: Resource, applied: Applied) -> str | None:
    """Through the socket where only weights, states and addresses differ; else a reload, and its proof."""
    settings = settings_of(resource)
    if settings is None or not settings.socket or resource.reload.configured:
        return None
    marked = _marked(applied)
    before = control.look(settings.socket, marked[0].variable if marked else "NONE")
    if before is None:
        if control.master_pid(settings.pid) is None:
            return "haproxy does not run; it reads its files when it starts"
        raise ReloadError(f"haproxy runs, but nobody answers on {settings.socket}")
    if settings.runtime and _others_unchanged(applied) and marked:
        done = _through_socket(settings, marked)
        if done is not None:
            return done
    control.reload(settings.master_socket, settings.pid)

    def is_new(process: control.Process) -> bool:
        return process.pid != before.pid and all(not _differs(settings, want) for want in marked)

    def look() -> control.Process | None:
        return control.look(settings.socket, "NONE")

    timeout_s = resource.reload.timeout_s
    if not control.await_process(
        look, is_new, timeout_s, lambda: control.reload_failed(settings.master_socket)
    ):
        raise ReloadError(
            f"haproxy was told to reload, but after {timeout_s:g} s the process that answers on "
            f"{settings.socket} has not read the new files; see its log"
        )
    return f"haproxy reloaded ({len(applied.changed)} files changed)"


@hookimpl
def agent_health(resource: Resource, applied: Applied) -> Problem | None:
    """The process that answers has read the files on disk, and its servers are as they say."""
    settings = settings_of(resource)
    if settings is None or not settings.socket:
        return None
    for want in _marked(applied):
        if control.look(settings.socket, want.variable) is None:
            if control.master_pid(settings.pid) is not None:
                return Problem("haproxy runs, but nobody answers", settings.socket)
            return Problem("haproxy does not run", settings.pid) if settings.require_running else None
        if reason := _differs(settings, want):
            return Problem(reason, settings.socket)
    return None


def _complaint(result: commands.Result, command: tuple[str, ...], timeout_s: float) -> str:
    """HAProxy's own reason, which it prints before it sums up."""
    for line in result.output.splitlines():
        if match := _ALERT.search(line):
            return match.group(1).strip()
    return result.reason(command, timeout_s)


def _marked(applied: Applied) -> list[runtime.Wanted]:
    """What the files of the resource that this plugin has written say."""
    return [want for path in applied.files if (want := _read(path)) is not None]


def _others_unchanged(applied: Applied) -> bool:
    """Whether every changed file is one that the plugin can read back."""
    return all(_read(path) is not None for path in applied.changed)


def _read(path: str) -> runtime.Wanted | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return runtime.wanted(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReloadError(f"{path}: cannot be read: {error.strerror}") from error


def _through_socket(settings: Settings, marked: list[runtime.Wanted]) -> str | None:
    """Change the servers of the running process; None when that is not enough, or did not take."""
    changed = 0
    for want in marked:
        process = control.look(settings.socket, want.variable)
        if process is None or process.structure != want.structure:
            return None
        needed = runtime.commands(want.servers, process.servers)
        try:
            control.change(settings.socket, needed)
        except OSError:
            return None  # the reload that follows says what is wrong with the process, if it still is
        if _differs(settings, want):
            return None
        changed += len(needed)
    return f"haproxy changed through its socket, without a reload ({changed} commands)"


def _differs(settings: Settings, want: runtime.Wanted) -> str | None:
    """Why the running process is not what the file says, or None."""
    process = control.look(settings.socket, want.variable)
    if process is None:
        return "nobody answers"
    if process.structure != want.structure:
        return "haproxy serves another configuration than the one on disk"
    found = runtime.differences(want.servers, process.servers)
    return f"a server is not as the file says: {found[0]}" if found else None
