"""When to work on which resource: settle, retry, pace, wait for others. Pure: time comes in as seconds,
randomness as a function.

A ``Pacer`` decides for one resource; the ``Scheduler`` holds all of them and what is known of each for the
status. A change is never dropped: it is settled for (``wait``, not before the first apply) and then its
files are written. Only the reload keeps its distance from the one before (``min_interval``) and from those of
other hosts (``splay``); whatever is written meanwhile is reloaded with it. A resource that ``requires``
others waits until none of them has anything left to do. With nothing to do, nothing is looked at: what is
due when stands in a heap.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from etcd_agent.errors import AgentError
from etcd_agent.values import (
    DRIFTED,
    HELD,
    ROLLED_BACK,
    UNCHANGED,
    WAITING,
    WRITTEN,
    Outcome,
    Resource,
    ResourceStatus,
    Retry,
    State,
)

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
    retry_at: float | None = None
    failures: int = 0
    reloaded_at: float = -math.inf
    reload_not_before: float = -math.inf
    reload_waits: bool = False
    woken: bool = False
    waits_for_slot: bool = False
    passed_at: float | None = None
    settled_once: bool = False

    def changed(self, now: float) -> None:
        """A key of the resource may have changed."""
        if self.first_change_at is None:
            self.first_change_at = now
        self.last_change_at = now

    def wake(self) -> None:
        """What it waited for (a slot) is there."""
        self.woken = True

    def started(self, now: float) -> bool:
        """A pass begins with the keys as they are now; what changes from here on needs another.

        Returns whether it is too early for a reload.
        """
        splay_s = self.resource.reload.splay_s
        if self.first_change_at is not None and self.applied_once and splay_s and not self.reload_waits:
            self.reload_not_before = now + splay_s * self.random()
        self.first_change_at = None
        self.retry_at = None
        self.woken = False
        return self.reload_at() > now

    def started_settling(self) -> None:
        """A pass begins that only does what is owed; what has changed is left for another."""
        self.retry_at = None
        self.woken = False

    def reload_at(self) -> float:
        """The first moment at which a reload may be."""
        return max(self.reload_not_before, self.reloaded_at + self.resource.reload.min_interval_s)

    def succeeded(self, now: float, outcome: Outcome, *, complete: bool) -> None:
        self.applied_once = self.applied_once or complete
        self.settled_once = True
        self.failures = 0
        self.passed_at = now
        self.waits_for_slot = outcome.kind == WAITING and self.reload_at() <= now
        self.reload_waits = outcome.kind == WRITTEN or (outcome.kind == WAITING and not self.waits_for_slot)
        if outcome.reloaded:
            self.reloaded_at = now

    def failed(self, now: float, *, pending: bool = False) -> None:
        """Retry with backoff; with ``hold``, or after ``attempts``, wait for a change instead.

        ``pending``: a reload is owed, and if it was too early for it, it is still due at its time.
        """
        self.failures += 1
        self.settled_once = True
        self.passed_at = now
        self.waits_for_slot = False
        self.reload_waits = self.reload_waits and pending and self.reload_at() > now
        if self.on_error == "retry" and not 0 < self.retry.attempts <= self.failures:
            self.retry_at = now + backoff_s(self.retry, self.failures, self.random)

    def due_at(self) -> float:
        """The time of the next pass, NEVER if there is nothing to wait for."""
        if self.woken:
            return -math.inf
        due = NEVER if self.first_change_at is None else self.settled_at()
        if self.retry_at is not None:
            due = min(due, self.retry_at)
        if self.reload_waits:
            due = min(due, self.reload_at())
        if self.passed_at is not None and self.failures == 0:
            due = min(due, self.passed_at + self.interval_s)
        return due

    def settled_at(self) -> float:
        assert self.first_change_at is not None
        if not self.applied_once:
            return self.first_change_at
        wait = self.resource.wait
        return min(self.last_change_at + wait.min_s, self.first_change_at + max(wait.max_s, wait.min_s))

    @property
    def idle(self) -> bool:
        """Everything known is applied and reloaded with."""
        return (
            self.applied_once
            and self.first_change_at is None
            and self.failures == 0
            and not self.reload_waits
            and not self.waits_for_slot
        )

    def waiting(self) -> tuple[str, float]:
        """What the next pass waits for, and until when (NEVER: not a matter of time); "" for nothing."""
        if self.waits_for_slot:
            return "", NEVER
        if self.first_change_at is not None and self.due_at() == self.settled_at():
            return "settling", self.settled_at()
        if self.reload_waits:
            return "reload is due later", self.reload_at()
        if self.retry_at is not None:
            return "next attempt", self.retry_at
        return ("a change", NEVER) if self.failures else ("", NEVER)


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
        on_status: Callable[[ResourceStatus], None] = lambda status: None,
    ) -> None:
        """``on_status`` is told every status that differs from the one before."""
        self._retry = retry
        self._interval_s = interval_s
        self._on_error = on_error
        self._random = random
        self._clock = clock
        self._on_status = on_status
        self._pacers: dict[str, Pacer] = {}
        self._dependants: dict[str, list[str]] = {}
        self._running: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._blocked: set[str] = set()
        self.settling: set[str] = set()
        self.statuses: dict[str, ResourceStatus] = {}

    def set_pace(self, retry: Retry, interval_s: float, on_error: str) -> None:
        """Another configuration's settings; they hold from the next ``set_resources`` on."""
        self._retry, self._interval_s, self._on_error = retry, interval_s, on_error

    def set_resources(self, resources: Sequence[Resource], now: float) -> None:
        """Take over a configuration: unchanged resources keep their state, others are due at once."""
        known, self._pacers = self._pacers, {}
        self._dependants = {}
        for resource in resources:
            pacer = known.get(resource.name)
            if pacer is None or pacer.resource != resource:
                pacer = Pacer(resource, self._retry, self._interval_s, self._on_error, self._random)
                pacer.changed(now)
            pacer.retry, pacer.interval_s, pacer.on_error = self._retry, self._interval_s, self._on_error
            self._pacers[resource.name] = pacer
            for required in resource.requires:
                self._dependants.setdefault(required, []).append(resource.name)
        self.statuses = {
            name: self.statuses.get(name, ResourceStatus(name, since=self._clock())) for name in self._pacers
        }
        self._blocked.clear()
        self._heap = []
        for name in self._pacers:
            self._push(name)

    def changed(self, resource: Resource, now: float) -> None:
        """A key of the resource may have changed."""
        pacer = self._pacers[resource.name]
        pacer.changed(now)
        self._push(resource.name)
        state = self.statuses[resource.name].state
        self._note(pacer, now, State.PENDING if state is State.APPLIED else state)

    def wake(self, name: str) -> None:
        """What the resource waited for outside is there."""
        if name in self._pacers:
            self._pacers[name].wake()
            self._push(name)

    def due(self, now: float) -> list[Resource]:
        """The resources to work on now; those in work, or waiting for others, are not among them.

        They are taken out: each must be ``started``, or given back with ``put_back``. Those named in
        ``settling`` wait for others with their keys, but not with a reload that is owed: only that is to be
        done.
        """
        found: dict[str, Resource] = {}
        while self._heap and self._heap[0][0] <= now:
            at, name = heapq.heappop(self._heap)
            pacer = self._pacers.get(name)
            if pacer is None or name in self._running or name in found or pacer.due_at() > at:
                continue  # an older entry: there is another one if it is still to be
            self.settling.discard(name)
            if self._obstacles(pacer):
                self._blocked.add(name)
                if pacer.settled_once and not self.statuses[name].reload_pending:
                    self._note(pacer, now, self.statuses[name].state)
                    continue
                if pacer.retry_at is not None and pacer.retry_at > now:
                    heapq.heappush(self._heap, (pacer.retry_at, name))
                    continue
                self.settling.add(name)
            found[name] = pacer.resource
        return list(found.values())

    def put_back(self, resource: Resource) -> None:
        """It was due but could not be started."""
        self._push(resource.name)

    def next_at(self) -> float:
        """When ``due`` may next have something, if nothing else happens."""
        return self._heap[0][0] if self._heap else NEVER

    def started(self, resource: Resource, now: float) -> bool:
        """A pass begins. Returns whether it is too early for a reload."""
        self._running[resource.name] = now
        if resource.name in self.settling:
            self._pacers[resource.name].started_settling()
            return False
        defer = self._pacers[resource.name].started(now)
        status = self.statuses[resource.name]
        state = status.state if status.state in (State.APPLIED, State.DRIFTED) else State.APPLYING
        self._put(replace(status, state=state, waiting="", due_at=0.0))
        return defer

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
        if pacer is None:
            return
        if pacer.resource != resource:
            self._push(resource.name)
            return  # the configuration has changed meanwhile
        status = self.statuses[resource.name]
        status = replace(status, passes=status.passes + complete, reload_pending=pending)
        if isinstance(result, AgentError):
            pacer.failed(now, pending=pending)
            status = replace(status, state=State.FAILED, error=str(result))
        else:
            failures = pacer.failures
            pacer.succeeded(now, result, complete=complete)
            if resource.name in self.settling and result.kind == UNCHANGED:
                pass  # nothing was owed, and its keys are yet to be looked at
            elif complete or result.revision:
                status = self._after(status, result, pacer)
            else:  # the store is away and nothing was ever applied
                status = replace(status, state=State.UNKNOWN, waiting="", due_at=0.0)
            if pending and not pacer.reload_waits and not pacer.waits_for_slot:
                pacer.failures = failures
                pacer.failed(now)
        self._put(status)
        self._push(resource.name)
        waits, _ = pacer.waiting()
        if waits:
            self._note(pacer, now, self.statuses[resource.name].state)
        if pacer.idle:
            self._unblock(resource.name)

    def _after(self, status: ResourceStatus, outcome: Outcome, pacer: Pacer) -> ResourceStatus:
        if outcome.kind in (ROLLED_BACK, HELD):
            return replace(status, state=State.ROLLED_BACK, error=outcome.error, hash=outcome.hash)
        changes = status.changes + bool(outcome.changed)
        if outcome.kind == WAITING:
            state = State.WAITING_SLOT if pacer.waits_for_slot else State.PENDING
            return replace(status, state=state, waiting=outcome.detail, due_at=0.0)
        if outcome.kind == WRITTEN:
            return replace(status, state=State.PENDING, error="", changes=changes)
        if not outcome.revision:  # a pass without keys, on a host that has never applied any
            return replace(status, state=State.PENDING, error="")
        return replace(
            status,
            state=State.DRIFTED if outcome.kind == DRIFTED else State.APPLIED,
            revision=outcome.revision,
            error="",
            changes=changes - (outcome.kind == DRIFTED and bool(outcome.changed)),
            hash=outcome.hash,
            drift=outcome.drift if outcome.kind == DRIFTED else (),
            waiting="",
            due_at=0.0,
        )

    # What waits for what.

    def _obstacles(self, pacer: Pacer) -> list[str]:
        """The required resources that have something left to do."""
        return [
            name
            for name in pacer.resource.requires
            if name in self._running or name not in self._pacers or not self._pacers[name].idle
            or self.statuses[name].state not in (State.APPLIED, State.DRIFTED)
        ]  # fmt: skip

    def _unblock(self, name: str) -> None:
        for dependant in self._dependants.get(name, ()):
            if dependant in self._blocked:
                self._blocked.discard(dependant)
                self._push(dependant)

    def _push(self, name: str) -> None:
        due = self._pacers[name].due_at()
        if due < NEVER:
            heapq.heappush(self._heap, (due, name))

    def _note(self, pacer: Pacer, now: float, state: State) -> None:
        """Say in the status what is waited for."""
        name = pacer.resource.name
        obstacles = self._obstacles(pacer) if pacer.resource.requires else []
        waits, until = (f"requires {', '.join(obstacles)}", NEVER) if obstacles else pacer.waiting()
        if pacer.waits_for_slot:
            return
        due_at = round(self._clock() + until - now, 3) if until < NEVER else 0.0
        self._put(replace(self.statuses[name], state=state, waiting=waits, due_at=due_at))

    def _put(self, status: ResourceStatus) -> None:
        before = self.statuses[status.name]
        if status.state is not before.state:
            status = replace(status, since=self._clock())
        if status != before:
            self.statuses[status.name] = status
            self._on_status(status)

    @property
    def running(self) -> dict[str, float]:
        """Resources in work and since when."""
        return dict(self._running)

    def passed(self) -> bool:
        """Whether every resource has had its first complete pass, or waits for one that has failed."""
        return all(status.passes or self._cannot(name) for name, status in self.statuses.items())

    def _cannot(self, name: str) -> bool:
        return any(
            required in self.statuses
            and (self.statuses[required].passes > 0 or self._cannot(required))
            and self.statuses[required].state not in (State.APPLIED, State.DRIFTED)
            for required in self._pacers[name].resource.requires
        )
