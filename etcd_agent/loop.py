"""When to work on which resource: settle, retry, pace. Pure: time comes in as seconds, randomness as a
function.

A ``Pacer`` decides for one resource; the ``Scheduler`` holds all of them and what is known of each for the
status. A change is never dropped: it is settled for (``wait``, not before the first apply), spread
(``splay``), and delayed to keep ``min_interval`` between two reloads, and all changes that come meanwhile are
applied with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from etcd_agent.errors import AgentError
from etcd_agent.values import HELD, ROLLED_BACK, Outcome, Resource, ResourceStatus, Retry, State

NEVER = math.inf


def backoff_s(retry: Retry, failures: int, jitter: Callable[[], float]) -> float:
    """How long to wait after so many failures in a row: doubled each time, jitter in the upper half."""
    base: float = min(retry.max_backoff_s, retry.backoff_s * 2.0 ** min(failures - 1, 30))
    return base * (0.5 + 0.5 * jitter()) if retry.jitter else base


@dataclass(slots=True)
class Pacer:
    """When a resource is next worked on. Fields that end in ``_at`` are on the caller's clock."""

    resource: Resource
    retry: Retry
    interval_s: float
    on_error: str
    random: Callable[[], float]
    applied_once: bool = False
    first_change_at: float | None = None
    last_change_at: float = 0.0
    spread_s: float = 0.0
    retry_at: float | None = None
    failures: int = 0
    reloaded_at: float | None = None
    passed_at: float | None = None

    def changed(self, now: float) -> None:
        """A key of the resource may have changed."""
        if self.first_change_at is None:
            self.first_change_at = now
            self.spread_s = self.resource.reload.splay_s * self.random() if self.applied_once else 0.0
        self.last_change_at = now

    def started(self) -> None:
        """A pass begins with the keys as they are now; what changes from here on needs another."""
        self.first_change_at = None
        self.retry_at = None

    def succeeded(self, now: float, *, reloaded: bool, complete: bool) -> None:
        self.applied_once = self.applied_once or complete
        self.failures = 0
        self.passed_at = now
        if reloaded:
            self.reloaded_at = now

    def failed(self, now: float) -> None:
        """Retry with backoff; with ``hold``, or after ``attempts``, wait for a change instead."""
        self.failures += 1
        self.passed_at = now
        if self.on_error == "retry" and not 0 < self.retry.attempts <= self.failures:
            self.retry_at = now + backoff_s(self.retry, self.failures, self.random)

    def due_at(self) -> float:
        """The time of the next pass, NEVER if there is nothing to wait for."""
        due = NEVER
        if self.first_change_at is not None:
            due = self._settled_at() + self.spread_s
        if self.retry_at is not None:
            due = min(due, self.retry_at)
        if self.passed_at is not None and self.failures == 0:
            due = min(due, self.passed_at + self.interval_s)
        if self.reloaded_at is not None and due < NEVER:
            due = max(due, self.reloaded_at + self.resource.reload.min_interval_s)
        return due

    def _settled_at(self) -> float:
        assert self.first_change_at is not None
        if not self.applied_once:
            return self.first_change_at
        wait = self.resource.wait
        return min(self.last_change_at + wait.min_s, self.first_change_at + max(wait.max_s, wait.min_s))


class Scheduler:
    """All resources of a configuration. ``clock`` is wall time, for the status alone."""

    def __init__(
        self,
        retry: Retry,
        interval_s: float,
        on_error: str,
        *,
        random: Callable[[], float],
        clock: Callable[[], float],
    ) -> None:
        self._retry = retry
        self._interval_s = interval_s
        self._on_error = on_error
        self._random = random
        self._clock = clock
        self._pacers: dict[str, Pacer] = {}
        self._running: dict[str, float] = {}
        self.statuses: dict[str, ResourceStatus] = {}

    def set_pace(self, retry: Retry, interval_s: float, on_error: str) -> None:
        """Another configuration's settings; they hold from the next ``set_resources`` on."""
        self._retry, self._interval_s, self._on_error = retry, interval_s, on_error

    def set_resources(self, resources: Sequence[Resource], now: float) -> None:
        """Take over a configuration: unchanged resources keep their state, others are due at once."""
        known = self._pacers
        self._pacers = {}
        for resource in resources:
            pacer = known.get(resource.name)
            if pacer is None or pacer.resource != resource:
                pacer = Pacer(resource, self._retry, self._interval_s, self._on_error, self._random)
                pacer.changed(now)
            pacer.retry, pacer.interval_s, pacer.on_error = self._retry, self._interval_s, self._on_error
            self._pacers[resource.name] = pacer
        self.statuses = {
            name: self.statuses.get(name, ResourceStatus(name, since=self._clock())) for name in self._pacers
        }

    def changed(self, resource: Resource, now: float) -> None:
        self._pacers[resource.name].changed(now)
        if self.statuses[resource.name].state is State.APPLIED:
            self._set(resource.name, State.PENDING)

    def due(self, now: float) -> list[Resource]:
        """The resources to work on now; those in work are not among them."""
        return [
            pacer.resource
            for name, pacer in self._pacers.items()
            if name not in self._running and pacer.due_at() <= now
        ]

    def next_at(self) -> float:
        """When ``due`` will next have something, if nothing else happens."""
        return min(
            (pacer.due_at() for name, pacer in self._pacers.items() if name not in self._running),
            default=NEVER,
        )

    def started(self, resource: Resource, now: float) -> None:
        self._running[resource.name] = now
        self._pacers[resource.name].started()
        if self.statuses[resource.name].state is not State.APPLIED:
            self._set(resource.name, State.APPLYING)

    def finished(
        self,
        resource: Resource,
        result: Outcome | AgentError,
        now: float,
        *,
        pending: bool,
        complete: bool = True,
    ) -> None:
        """A pass has ended. ``pending``: a reload is still owed; ``complete``: it had the store's keys."""
        self._running.pop(resource.name, None)
        pacer = self._pacers.get(resource.name)
        if pacer is None or pacer.resource != resource:
            return  # the configuration has changed meanwhile
        before = self.statuses[resource.name]
        status = replace(before, passes=before.passes + complete, reload_pending=pending)
        if isinstance(result, AgentError):
            pacer.failed(now)
            status = replace(status, state=State.FAILED, error=str(result))
        else:
            pacer.succeeded(now, reloaded=result.reloaded, complete=complete)
            status = self._after(status, result)
            if pending:
                pacer.failed(now)
        if status.state is not before.state:
            status = replace(status, since=self._clock())
        self.statuses[resource.name] = status

    def _after(self, status: ResourceStatus, outcome: Outcome) -> ResourceStatus:
        if outcome.kind in (ROLLED_BACK, HELD):
            return replace(status, state=State.ROLLED_BACK, error=outcome.error)
        changes = status.changes + bool(outcome.changed)
        return replace(status, state=State.APPLIED, revision=outcome.revision, error="", changes=changes)

    def _set(self, name: str, state: State) -> None:
        self.statuses[name] = replace(self.statuses[name], state=state, since=self._clock())

    @property
    def running(self) -> dict[str, float]:
        """Resources in work and since when."""
        return dict(self._running)

    def passed(self) -> bool:
        """Whether every resource has had its first complete pass."""
        return all(status.passes for status in self.statuses.values())
