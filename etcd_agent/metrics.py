"""The agent's metrics, in the text format of Prometheus. Counted by the main loop, read by the pages."""

from __future__ import annotations

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from etcd_agent.errors import AgentError
from etcd_agent.status import AgentStatus
from etcd_agent.values import APPLIED, RESUMED, ROLLED_BACK, WRITTEN, Outcome, ResourceStatus, State

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """All of them. Names of resources are labels; values of the store never are."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._passes = Counter(
            "etcd_agent_passes", "Passes over a resource, by how they ended.", ["result"], registry=registry
        )
        self._failures = Counter(
            "etcd_agent_failures", "Passes that failed.", ["resource"], registry=registry
        )
        self._reloads = Counter(
            "etcd_agent_reloads", "Reloads, those of rollbacks included.", ["resource"], registry=registry
        )
        self._rollbacks = Counter("etcd_agent_rollbacks", "Rollbacks.", ["resource"], registry=registry)
        self._duration = Histogram(
            "etcd_agent_apply_duration_seconds",
            "Passes that changed something, from their start to healthy.",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._state = Gauge("etcd_agent_resources", "Resources in each state.", ["state"], registry=registry)
        self._revision = Gauge(
            "etcd_agent_applied_revision", "Last applied.", ["resource"], registry=registry
        )
        self._pending = Gauge(
            "etcd_agent_reload_pending", "1: a reload is owed.", ["resource"], registry=registry
        )
        self._drift = Gauge(
            "etcd_agent_drifted_files", "Changed by another hand.", ["resource"], registry=registry
        )
        self._store_up = Gauge("etcd_agent_store_up", "1: the store answers.", registry=registry)
        self._store_revision = Gauge("etcd_agent_store_revision", "Newest seen.", registry=registry)
        self._ready = Gauge("etcd_agent_ready", "1: READY was said.", registry=registry)
        ProcessCollector(registry=registry)

    def passed(self, name: str, result: Outcome | AgentError, duration_s: float) -> None:
        """A pass has ended."""
        if isinstance(result, AgentError):
            self._passes.labels("failed").inc()
            self._failures.labels(name).inc()
            return
        self._passes.labels(result.kind).inc()
        if result.reloaded:
            self._reloads.labels(name).inc()
        if result.kind == ROLLED_BACK:
            self._rollbacks.labels(name).inc()
        if result.kind in (APPLIED, RESUMED, ROLLED_BACK, WRITTEN):
            self._duration.observe(duration_s)

    def changed(self, status: ResourceStatus) -> None:
        """The status of a resource is another one."""
        self._revision.labels(status.name).set(status.revision)
        self._pending.labels(status.name).set(status.reload_pending)
        self._drift.labels(status.name).set(len(status.drift))

    def forget(self, name: str) -> None:
        """The resource is not configured any more."""
        for each in (
            self._failures,
            self._reloads,
            self._rollbacks,
            self._revision,
            self._pending,
            self._drift,
        ):
            with contextlib.suppress(KeyError):
                each.remove(name)

    def page(self, status: AgentStatus | None) -> bytes:
        """The page, with the gauges that are taken from ``status``."""
        if status is not None:
            counts = dict.fromkeys(State, 0)
            for each in status.resources:
                counts[each.state] += 1
            for state, count in counts.items():
                self._state.labels(state.lower()).set(count)
            self._store_up.set(not status.store_error)
            self._store_revision.set(status.revision)
            self._ready.set(status.ready)
        return generate_latest(self._registry)
