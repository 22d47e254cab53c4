"""The agent's own plugin: configured commands, systemd units, HTTP health, and the log line of each event.

It is registered like any other, so that what a resource file can say goes through the same contract that a
plugin uses. Its ``agent_reload`` comes first: what the administrator wrote in ``[reload]`` wins over a
plugin's own way.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace

import requests

from etcd_agent import commands, workers
from etcd_agent.errors import BusyError, ReloadError
from etcd_agent.hookspecs import hookimpl
from etcd_agent.values import Applied, Command, Event, Problem, Resource

logger = logging.getLogger("etcd_agent.event")

_MOST_NAMES = 500
_UNIT_VERBS = {
    "reload": "try-reload-or-restart",
    "reload-or-restart": "try-reload-or-restart",
    "restart": "try-restart",
}
_BROKEN = ("failed", "activating")

# What systemctl says when systemd's own limit of starts is reached: a matter of time, not of the files.
_TOO_OFTEN = ("attempted too often", "repeated too quickly", "start-limit-hit")


def environment(
    resource: Resource,
    revision: int,
    dest: str = "",
    changed: tuple[str, ...] = (),
    keys: tuple[str, ...] = (),
) -> dict[str, str]:
    """What every command of a resource finds in its environment. Long lists are cut to what exec can take."""
    return {
        "AGENT_RESOURCE": resource.name,
        "AGENT_REVISION": str(revision),
        "AGENT_DEST": dest,
        "AGENT_CHANGED_FILES": json.dumps(changed[:_MOST_NAMES]),
        "AGENT_CHANGED_KEYS": json.dumps(keys[:_MOST_NAMES]),
    }


class BuiltinPlugin:
    """Implements ``[reload]`` and ``[health]`` of a resource file."""

    @hookimpl(tryfirst=True)
    def agent_reload(self, resource: Resource, applied: Applied) -> str | None:
        reload = resource.reload
        action = applied.action or reload.action
        if action == "none":
            return "nothing to reload (action = none)"
        if not reload.configured:
            return None
        dest = applied.changed[0] if applied.changed else (applied.files[0] if applied.files else "")
        variables = environment(resource, applied.revision, dest, applied.changed, applied.keys)
        if reload.cmd is not None:
            wanted = [commands.expand(reload.cmd, {"dest": dest, "src": dest})]
        elif applied.rollback and _is_broken(reload.unit or "", reload.timeout_s):
            # The new files have broken it, and the usual actions leave what does not run alone.
            wanted = [("systemctl", verb, "--", reload.unit or "") for verb in ("reset-failed", "restart")]
        else:
            wanted = [unit_command(reload.unit or "", action)]
        for command in wanted:
            _run_reload(resource, command, variables)
        return f"reloaded by {commands.shown(command)}"

    @hookimpl
    def agent_health(self, resource: Resource, applied: Applied) -> Problem | None:
        health = resource.health
        if health.http is not None:
            reason = http_problem(health.http, health.expect, health.timeout_s)
            if reason:
                return Problem(reason, health.http)
        if health.cmd is not None:
            variables = environment(resource, applied.revision, changed=applied.changed, keys=applied.keys)
            result = commands.run(health.cmd, timeout_s=health.timeout_s, env=variables)
            result = replace(result, output="") if resource.sensitive else result
            if not result.ok:
                return Problem(result.reason(health.cmd, health.timeout_s))
        return None

    @hookimpl
    def agent_event(self, event: Event) -> None:
        level = logging.DEBUG if event.repeated else _EVENT_LEVELS.get(event.kind, logging.INFO)
        logger.log(
            level,
            "%s: %s at revision %d%s%s",
            event.resource,
            event.kind.replace("_", " "),
            event.revision,
            f" in {event.duration_s * 1000:.0f} ms" if event.duration_s else "",
            f": {event.detail}" if event.detail else "",
        )


_EVENT_LEVELS: Mapping[str, int] = {
    "unchanged": logging.DEBUG,
    "drifted": logging.WARNING,
    "failed": logging.ERROR,
    "rolled_back": logging.ERROR,
}


def _run_reload(resource: Resource, command: Command, variables: Mapping[str, str]) -> None:
    """Raises ReloadError; BusyError if systemd only says that it is too early."""
    limit_s = resource.reload.timeout_s
    result = commands.run(command, timeout_s=limit_s, env=variables)
    if result.ok:
        return
    too_often = resource.reload.unit is not None and any(text in result.output for text in _TOO_OFTEN)
    result = replace(result, output="") if resource.sensitive else result
    failure = BusyError if too_often else ReloadError
    raise failure(f"reload: {result.reason(command, limit_s)}")


def _is_broken(unit: str, timeout_s: float) -> bool:
    """Whether the unit has failed, or is in a loop of failing starts. Raises ReloadError."""
    command = ("systemctl", "show", "--property=ActiveState", "--", unit)
    result = commands.run(command, timeout_s=timeout_s)
    if not result.ok:
        raise ReloadError(f"reload: {result.reason(command, timeout_s)}")
    return result.output.strip().removeprefix("ActiveState=") in _BROKEN


def unit_command(unit: str, action: str) -> Command:
    """systemctl for an action; the ``try-`` verbs leave a unit alone that does not run."""
    if action.startswith("signal:"):
        return (
            "systemctl",
            "kill",
            "--kill-who=main",
            f"--signal={action.removeprefix('signal:')}",
            "--",
            unit,
        )
    return ("systemctl", _UNIT_VERBS[action], "--", unit)


def http_problem(url: str, expect: int, timeout_s: float) -> str | None:
    """Why ``url`` does not answer ``expect`` in time, or None. No proxy of the environment is used."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            with workers.idle():
                answer = session.get(url, timeout=timeout_s, allow_redirects=False)
        except requests.RequestException as error:
            return f"no answer: {type(error).__name__}"
        return None if answer.status_code == expect else f"answers {answer.status_code}, expected {expect}"
