"""systemd: drop-ins from keys, verified; reload or restart of a unit, and whether it runs well afterwards.

Attach it with a table ``[plugins.systemd]``; README.md is the manual. It can be attached for the unit's
health alone, beside another plugin or a ``[reload]``. The plugin keeps no state.
"""

from __future__ import annotations

import os
import re
import time
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
    idle,
    tables,
)

from . import check, model

AGENT_API = ">=1,<2"
NAME = model.PLUGIN
_UNIT = re.compile(
    r"[A-Za-z0-9:_.\\@-]+\.(?:service|socket|timer|path|mount|automount|swap|slice|scope|target|device)"
)
_BROKEN = ("failed", "activating")
_VERBS = {"reload": "try-reload-or-restart", "restart": "try-restart"}


@dataclass(frozen=True, slots=True)
class Settings:
    """``[plugins.systemd]``: the unit, what is done to it, and how long it is watched."""

    unit: str
    action: str
    top: str
    verify: bool
    settle_s: float
    require_active: bool
    systemctl: str
    analyze: str


def settings_of(resource: Resource) -> Settings | None:
    """The settings for a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    settings = Settings(
        unit=table.require("unit", _unit),
        action=table.take("action", tables.choice("reload", "restart", "none"), "reload"),
        top=table.take("top", tables.key_path, ""),
        verify=table.take("verify", tables.boolean, True),
        settle_s=table.take("settle", tables.duration, 1.0),
        require_active=table.take("require_active", tables.boolean, False),
        systemctl=table.take("systemctl", tables.string, "systemctl"),
        analyze=table.take("analyze", tables.string, "systemd-analyze"),
    )
    table.finish()
    return settings


def _unit(value: Any) -> str:
    if not isinstance(value, str) or not _UNIT.fullmatch(value) or value.startswith("-"):
        raise ValueError(f'expected a unit such as "app.service", not {tables.describe(value)}')
    return value


@hookimpl
def agent_register_templates(register: Callable[[str, str], None]) -> None:
    register(NAME, os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates"))


@hookimpl
def agent_register_functions(register: Callable[[str, Callable[..., Any]], None], resource: Resource) -> None:
    settings = settings_of(resource)
    if settings is not None:
        register("drop_in", lambda view, top=None: model.build(view, settings.top if top is None else top))


@hookimpl
def agent_check_settings(resource: Resource) -> Problem | None:
    """The settings, and that a drop-in stands where systemd looks for it."""
    settings = settings_of(resource)
    if settings is None:
        return None
    for template in resource.templates:
        if template.src == f"{NAME}:drop-in.conf.j2" and not check.is_drop_in(template.dest, settings.unit):
            return Problem(f"a drop-in of {settings.unit} is a file {settings.unit}.d/*.conf", template.dest)
    return None


@hookimpl
def agent_validate(resource: Resource, staged: Staged) -> Problem | None:
    settings = settings_of(resource)
    if settings is None or not settings.verify:
        return None
    try:
        return check.verify(settings.analyze, settings.unit, staged, resource.check.timeout_s)
    except OSError as error:
        return Problem(f"the drop-ins cannot be laid out for systemd-analyze: {error}")


@hookimpl
def agent_reload(resource: Resource, applied: Applied) -> str | None:
    """daemon-reload where a unit file or drop-in belongs to the resource, then the action."""
    settings = settings_of(resource)
    if settings is None or resource.reload.configured or settings.action == "none":
        return None
    if any(check.is_unit_file(path, settings.unit) for path in (*applied.files, *applied.changed)):
        _systemctl(settings, resource, "daemon-reload")
    verb = _VERBS[settings.action]
    if applied.rollback and _show(settings, resource.reload.timeout_s).get("ActiveState") in _BROKEN:
        # The new files have broken it, and the try- verbs leave what does not run alone.
        _systemctl(settings, resource, "reset-failed", "--", settings.unit)
        verb = "restart"
    _systemctl(settings, resource, verb, "--", settings.unit)
    return f"{settings.unit}: {verb}"


def _systemctl(settings: Settings, resource: Resource, *arguments: str) -> None:
    command = (settings.systemctl, "--no-ask-password", *arguments)
    result = commands.run(command, timeout_s=resource.reload.timeout_s)
    if not result.ok:
        raise ReloadError(result.reason(command, resource.reload.timeout_s))


@hookimpl
def agent_health(resource: Resource, applied: Applied) -> Problem | None:
    """Two looks at the unit, ``settle`` apart."""
    settings = settings_of(resource)
    if settings is None:
        return None
    timeout_s = resource.health.timeout_s
    first = _show(settings, timeout_s)
    if first.get("ActiveState") == "active":
        with idle():
            time.sleep(settings.settle_s)  # a crash loop looks well at each single moment
    then = _show(settings, timeout_s)
    drop_ins = [
        path for path in applied.files if check.is_drop_in(path, settings.unit) and os.path.exists(path)
    ]
    reason = model.problem(settings.unit, first, then, drop_ins, settings.require_active)
    return Problem(reason) if reason else None


def _show(settings: Settings, timeout_s: float) -> dict[str, str]:
    command = (settings.systemctl, "show", f"--property={','.join(model.PROPERTIES)}", "--", settings.unit)
    result = commands.run(command, timeout_s=timeout_s)
    if not result.ok:
        raise ReloadError(result.reason(command, timeout_s))
    return model.parse(result.output)
