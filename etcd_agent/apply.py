"""One pass over one resource: settle what is owed, render, plan, apply. What ``run``, ``once`` and ``plan``
share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

from etcd_agent.errors import AgentError, CheckError, HealthError, ReloadError
from etcd_agent.execute import Executor
from etcd_agent.manifest import Manifest
from etcd_agent.plan import Plan, make_plan, record_of
from etcd_agent.plugins import PluginSet
from etcd_agent.render import Renderer
from etcd_agent.values import (
    HELD,
    ROLLED_BACK,
    UNCHANGED,
    AgentConfig,
    Entry,
    Event,
    Outcome,
    RenderedFile,
    Resource,
    Snapshot,
)


class Applier:
    """The passes of one configuration. Safe for different resources at once, not for one resource twice."""

    def __init__(self, config: AgentConfig, plugins: PluginSet, executor: Executor) -> None:
        """Raises ConfigError for a resource whose plugin settings are refused."""
        self._config = config
        self._plugins = plugins
        self._executor = executor
        self._renderer = Renderer(
            config.template_dir,
            plugin_templates=plugins.templates(),
            host_id=config.host_id,
            labels=config.labels,
            error_on_missing_key=config.safety.error_on_missing_key,
        )
        for resource in config.resources:
            plugins.check_settings(resource)

    def check_templates(self, resource: Resource) -> None:
        """RenderError for a template that is missing or cannot be parsed."""
        self._renderer.check(resource)

    def render(self, resource: Resource, snapshot: Snapshot) -> tuple[RenderedFile, ...]:
        return self._renderer.render(resource, snapshot, self._plugins.functions(resource))

    def plan(self, resource: Resource, snapshot: Snapshot) -> Plan:
        """What an apply of this snapshot would do now. Raises RenderError, GuardError, FilesError."""
        files = self.render(resource, snapshot)
        manifest = self._executor.manifest(resource)
        disk = self._executor.disk({*manifest.owned, *(file.dest for file in files)})
        return make_plan(
            resource,
            snapshot,
            files,
            disk,
            manifest,
            default_owner=(os.geteuid(), os.getegid()),
            safety=self._config.safety,
        )

    def check(self, resource: Resource, plan: Plan, snapshot: Snapshot, directory: str) -> None:
        """The checks of an apply, for a preview; stages in ``directory``. Raises CheckError."""
        self._executor.check(resource, plan, snapshot, directory)

    def run(self, resource: Resource, snapshot: Snapshot | None, *, noop: bool = False) -> Outcome:
        """One pass. Without a snapshot (the store is away) only what is owed is done.

        Raises an AgentError when the resource is FAILED; says what happened through ``agent_event`` either
        way.
        """
        started_s = time.monotonic()
        revision = snapshot.revision if snapshot else 0
        try:
            outcome = self._pass(resource, snapshot, noop=noop)
        except AgentError as error:
            took_s = time.monotonic() - started_s
            self._notify(Event("failed", resource.name, revision, detail=str(error), duration_s=took_s))
            raise
        if outcome.kind != HELD:
            detail = outcome.error or outcome.detail
            took_s = time.monotonic() - started_s
            event = Event(outcome.kind, resource.name, outcome.revision, outcome.changed, detail, took_s)
            self._notify(event)
        return outcome

    def intact(self, resource: Resource) -> bool:
        """Whether every file stands as the last successful apply left it."""
        manifest = self._executor.manifest(resource)
        return bool(manifest.current.hash) and not self._drifted(manifest)

    def manifest(self, resource: Resource) -> Manifest:
        return self._executor.manifest(resource)

    def _pass(self, resource: Resource, snapshot: Snapshot | None, *, noop: bool) -> Outcome:
        owed: AgentError | None = None
        settled: Outcome | None = None
        if not noop:
            try:
                settled = self._executor.settle(resource)
            except (ReloadError, HealthError, CheckError) as error:
                owed = error  # newer keys may mend it, so go on to them
        if snapshot is None:
            if owed is not None:
                raise owed
            return settled or Outcome(UNCHANGED, self._executor.manifest(resource).current.revision)
        plan = self.plan(resource, snapshot)
        if noop:
            return Outcome(
                "planned", plan.target.revision, plan.changed, f"{len(plan.actions)} changes, not applied"
            )
        if not plan.actions and owed is not None:
            raise owed
        outcome = self._executor.apply(resource, plan, snapshot)
        if settled is not None and outcome.kind in (UNCHANGED, HELD):
            return settled
        return outcome

    def _drifted(self, manifest: Manifest) -> bool:
        for dest, record in manifest.current.files.items():
            state = self._executor.disk([dest])[dest]
            if state is None or record_of(state, record.template) != record:
                return True
        return False

    def _notify(self, event: Event) -> None:
        self._plugins.notify("agent_event", event=event)


def snapshot_with(snapshot: Snapshot, values: Mapping[str, bytes], removed: Iterable[str] = ()) -> Snapshot:
    """The snapshot as it would be with other values: what ``plan --set`` renders."""
    entries = {key: entry for key, entry in snapshot.entries.items() if key not in set(removed)}
    entries.update({key: Entry(value, snapshot.revision + 1) for key, value in values.items()})
    return Snapshot(snapshot.cluster_id, snapshot.revision, entries)


def exit_status(outcome: Outcome) -> int:
    """What ``once`` ends with for an outcome: 0, or 5 when the old files had to come back."""
    return 5 if outcome.kind in (ROLLED_BACK, HELD) else 0
