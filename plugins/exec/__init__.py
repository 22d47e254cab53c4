"""exec: a program in any language takes part in the hooks, by JSON over its standard input and output.

Attach it with a table ``[plugins.exec]``; README.md is the manual and the protocol's reference. The program
is started for each hook and keeps no state.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etcd_agent import (
    Applied,
    CheckError,
    Event,
    HealthError,
    Problem,
    ReloadError,
    RenderError,
    Resource,
    Snapshot,
    Staged,
    Table,
    View,
    hookimpl,
    tables,
)

from . import process, protocol

AGENT_API = ">=1,<2"
NAME = "exec"
logger = logging.getLogger(__name__)
# Events come with the resource's name alone, so who wants them is remembered when templates are prepared.
_listeners: dict[str, Resource] = {}


@dataclass(frozen=True, slots=True)
class Settings:
    """``[plugins.exec]``: the program, the hooks that it takes part in, and what it is given each time."""

    command: tuple[str, ...]
    hooks: tuple[str, ...]
    timeout_s: float
    settings: dict[str, Any]


def settings_of(resource: Resource) -> Settings | None:
    """The settings for a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    settings = Settings(
        command=table.require("command", _command),
        hooks=table.require("hooks", _hooks),
        timeout_s=table.take("timeout", _positive, 30.0),
        settings=dict(table.table("settings").raw),
    )
    table.finish()
    return settings


def _command(value: Any) -> tuple[str, ...]:
    words = (value,) if isinstance(value, str) else tables.strings(value)
    if not words or not words[0].startswith("/"):
        raise ValueError("expected a list that begins with the absolute path of a program")
    return words


def _hooks(value: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tables.choice(*protocol.HOOKS)(name) for name in tables.strings(value)))


def _positive(value: Any) -> float:
    seconds = tables.duration(value)
    if seconds <= 0:
        raise ValueError("expected more than 0 seconds")
    return seconds


def _ask(hook: str, resource: Resource, failure: type[Exception], **more: Any) -> dict[str, Any] | None:
    """The program's answer; None where it takes no part in the hook. ``failure`` when it gives none."""
    settings = settings_of(resource)
    if settings is None or hook not in settings.hooks:
        return None
    name = os.path.basename(settings.command[0])
    ended = process.run(
        settings.command, protocol.request(hook, resource, settings.settings, **more), settings.timeout_s
    )
    if ended.reason:
        raise failure(f"{name}: {ended.reason}")
    try:
        answer = protocol.answer(hook, ended.output)
        protocol.problem(answer)
    except protocol.ProtocolError as error:
        raise failure(f"{name}: {error}") from error
    return answer


@hookimpl
def agent_check_settings(resource: Resource) -> Problem | None:
    settings = settings_of(resource)
    _listeners.pop(resource.name, None)
    if settings is None:
        return None
    if not os.access(settings.command[0], os.X_OK):
        return Problem("there is no such program, or it cannot be executed", settings.command[0])
    if "event" in settings.hooks:
        _listeners[resource.name] = resource
    answer = _ask("check_settings", resource, CheckError)
    return None if answer is None else protocol.problem(answer)


@hookimpl
def agent_register_functions(register: Callable[[str, Callable[..., Any]], None], resource: Resource) -> None:
    settings = settings_of(resource)
    if settings is None or "function" not in settings.hooks:
        return

    def call(view: View, name: str, *arguments: Any) -> Any:
        keys = {key: view.getv(key) for key in view.keys()}  # noqa: SIM118 (View is no dict)
        asked = {"function": name, "arguments": list(arguments), "keys": keys}
        answer = _ask("function", resource, RenderError, **asked) or {}
        if answer.get("error") is not None:
            raise RenderError(f"{name}: {' '.join(answer['error'].split())}")
        if "result" not in answer:
            raise RenderError(f"{os.path.basename(settings.command[0])}: its answer has no result")
        return answer["result"]

    register("exec", call)


@hookimpl
def agent_validate(resource: Resource, staged: Staged, snapshot: Snapshot) -> Problem | None:
    more = {"staged": protocol.staged(staged), "snapshot": protocol.snapshot(snapshot)}
    answer = _ask("validate", resource, CheckError, **more)
    return None if answer is None else protocol.problem(answer)


@hookimpl
def agent_reload(resource: Resource, applied: Applied) -> str | None:
    if resource.reload.configured:
        return None
    answer = _ask("reload", resource, ReloadError, applied=protocol.applied(applied))
    if answer is None:
        return None
    if answer.get("error") is not None:
        raise ReloadError(" ".join(answer["error"].split()))
    done: str | None = answer.get("done")
    return " ".join(done.split()) if done is not None else None


@hookimpl
def agent_health(resource: Resource, applied: Applied) -> Problem | None:
    answer = _ask("health", resource, HealthError, applied=protocol.applied(applied))
    return None if answer is None else protocol.problem(answer)


@hookimpl
def agent_event(event: Event) -> None:
    resource = _listeners.get(event.resource)
    if resource is not None:
        _ask("event", resource, CheckError, event=protocol.event(event))
