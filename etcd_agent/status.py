"""What the agent says of itself: one immutable value, as JSON in the state directory and as one ASCII line.

``etcd-py-agent status`` reads the file ``status.json``; systemd shows the line. Neither holds a value of the
store.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from etcd_agent.errors import FilesError
from etcd_agent.values import ResourceStatus, State

logger = logging.getLogger(__name__)

_LEAST_GAP_S = 0.05
_SHARE = 50  # writing takes at most two hundredths of the time


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """``store_error`` "" while the store answers; ``started`` and ``written`` in seconds since the epoch."""

    pid: int
    config: str
    started: float
    written: float
    nodes: tuple[str, ...]
    revision: int
    store_error: str
    stopping: bool
    ready: bool
    cluster_id: int
    services: Mapping[str, str]
    resources: tuple[ResourceStatus, ...]

    @property
    def degraded(self) -> bool:
        return bool(self.store_error) or any(
            each.state in (State.FAILED, State.ROLLED_BACK) or each.reload_pending for each in self.resources
        )


def summary(status: AgentStatus) -> str:
    """For systemd's STATUS=: "rev 4711, 3/3 applied, watching", or what is wrong first."""
    applied = sum(each.state is State.APPLIED for each in status.resources)
    parts = [f"rev {status.revision}", f"{applied}/{len(status.resources)} applied"]
    for state in (State.FAILED, State.ROLLED_BACK):
        names = [each.name for each in status.resources if each.state is state]
        if names:
            parts.append(f"{state.lower().replace('_', ' ')}: {', '.join(names[:5])}")
    parts.append("store away" if status.store_error else "watching")
    text = ", ".join(parts)
    return f"stopping: {text}" if status.stopping else f"degraded: {text}" if status.degraded else text


def status_path(state_dir: str) -> str:
    return f"{state_dir}/status.json"


def write_status(state_dir: str, status: AgentStatus) -> None:
    """Replace the file atomically. It is information, not state, so it is not synced."""
    path = status_path(state_dir)
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(asdict(status), file, indent=1)
        file.write("\n")
    os.replace(temporary, path)


def read_status(state_dir: str) -> AgentStatus:
    """What the agent of this state directory wrote last. Raises FilesError if there is nothing readable."""
    path = status_path(state_dir)
    try:
        with open(path, encoding="utf-8") as file:
            return _parse(json.load(file))
    except OSError as error:
        raise FilesError(f"{path}: {error.strerror}: has the agent run with this state_dir?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FilesError(f"{path}: not a status file: {error}") from error


def _parse(document: Mapping[str, Any]) -> AgentStatus:
    resources = tuple(
        ResourceStatus(**{**each, "state": State(each["state"]), "drift": tuple(each["drift"])})
        for each in document["resources"]
    )
    return AgentStatus(**{**document, "resources": resources, "nodes": tuple(document["nodes"])})


def report(status: AgentStatus, *, alive: bool, now: float) -> Iterable[str]:
    """Lines of ``etcd-py-agent status`` for a person."""
    running = f"running, pid {status.pid}" if alive else "NOT running; this is what it wrote last"
    yield f"agent      {running}, since {_time(status.started)}"
    yield f"store      {', '.join(status.nodes)}: " + (
        f"AWAY: {status.store_error}" if status.store_error else f"revision {status.revision}"
    )
    for name, state in status.services.items():
        yield f"service    {name}: {state}"
    for each in status.resources:
        pending = ", reload pending" if each.reload_pending else ""
        if each.waiting:
            left = f", {max(0.0, each.due_at - now):.1f} s left" if each.due_at else ""
            pending += f", {each.waiting}{left}"
        lasted = f"for {now - each.since:.0f} s"
        yield f"{each.name:10s} {each.state} at revision {each.revision}{pending}, {lasted}"
        for dest in each.drift:
            yield f"           changed by another hand: {dest}"
        if each.error:
            yield f"           {each.error}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


class StatusFile:
    """Writes the status when there is news, and not more often than it is worth: a thousand resources make a
    long file."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._news = True
        self._written_at = float("-inf")
        self._gap_s = 0.0

    def touch(self) -> None:
        """There is news."""
        self._news = True

    def due_in_s(self, now: float) -> float:
        """Seconds until it is to be written; infinite without news. ``now`` is monotonic."""
        return self._written_at + self._gap_s - now if self._news else float("inf")

    def write(self, status: AgentStatus, now: float) -> None:
        """A disk that refuses it costs the file and nothing else."""
        self._news = False
        started_s = time.monotonic()
        try:
            write_status(self._state_dir, status)
        except OSError as error:
            logger.warning("status.json cannot be written: %s", error.strerror)
        self._written_at = now
        self._gap_s = max(_LEAST_GAP_S, _SHARE * (time.monotonic() - started_s))
