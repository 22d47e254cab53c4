"""One pass over one resource: settle what is owed, check values, render, plan, apply. What ``run``, ``once``,
``plan`` and ``apply`` share."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from etcd_agent import schema
from etcd_agent.audit import Audit, changes
from etcd_agent.errors import AgentError, CheckError, ConfigError, HealthError, ReloadError
from etcd_agent.execute import Executor
from etcd_agent.generations import Generation
from etcd_agent.manifest import Content, Manifest, Phase
from etcd_agent.plan import Plan, go_back, make_plan, record_of
from etcd_agent.plugins import PluginSet
from etcd_agent.redact import redacted
from etcd_agent.render import Renderer
from etcd_agent.values import (
    DRIFTED,
    HELD,
    ROLLED_BACK,
    UNCHANGED,
    WAITING,
    WRITTEN,
    AgentConfig,
    Entry,
    Event,
    Gate,
    Outcome,
    RenderedFile,
    Resource,
    Snapshot,
)


class Applier:
    """The passes of one configuration. Safe for different resources at once, not for one resource twice."""

    def __init__(
        self,
        config: AgentConfig,
        plugins: PluginSet,
        executor: Executor,
        *,
        gate: Gate | None = None,
        audit: Audit | None = None,
    ) -> None:
        """Raises ConfigError for a resource whose plugin settings are refused."""
        self._config = config
        self._plugins = plugins
        self._executor = executor
        self._gate = gate
        self._audit = audit
        self._accepted: dict[str, int] = {}
        self._lock = threading.Lock()
        self._said: dict[str, tuple[str, int]] = {}
        self._renderer = Renderer(
            config.template_dir,
            plugin_templates=plugins.templates(),
            host_id=config.host_id,
            labels=config.labels,
            error_on_missing_key=config.safety.error_on_missing_key,
        )
        for resource in config.resources:
            plugins.check_settings(resource)

    def accept(self, cluster_id: int) -> None:
        """This cluster, at whatever revision, may once take the place of what each resource was made from."""
        self._accepted = {resource.name: cluster_id for resource in self._config.resources}

    def check_templates(self, resource: Resource) -> None:
        """RenderError for a template that is missing or cannot be parsed."""
        self._renderer.check(resource)

    def render(self, resource: Resource, snapshot: Snapshot) -> tuple[RenderedFile, ...]:
        """The files as the keys make them. SchemaError or RenderError, one line."""
        schema.check(snapshot)
        return self._renderer.render(resource, snapshot, self._plugins.functions(resource))

    def plan(self, resource: Resource, snapshot: Snapshot, *, force: bool = False) -> Plan:
        """What an apply of this snapshot would do now.

        Raises SchemaError, RenderError, GuardError, FilesError; with a sensitive resource none of them
        quotes a value.
        """
        try:
            files = self.render(resource, snapshot)
        except AgentError as error:
            if not resource.sensitive:
                raise
            raise type(error)(redacted(str(error), snapshot)) from None
        manifest = self._executor.manifest(resource)
        disk = self._executor.disk({*manifest.owned, *(file.dest for file in files)})
        safety = self._config.safety
        if snapshot.cluster_id == self._accepted.get(resource.name):
            safety = replace(safety, accept_cluster=True)
        return make_plan(
            resource,
            snapshot,
            files,
            disk,
            manifest,
            default_owner=(os.geteuid(), os.getegid()),
            safety=safety,
            force=force,
        )

    def check(self, resource: Resource, plan: Plan, snapshot: Snapshot, directory: str) -> None:
        """The checks of an apply, for a preview; stages in ``directory``. Raises CheckError."""
        self._executor.check(resource, plan, snapshot, directory)

    def run(
        self,
        resource: Resource,
        snapshot: Snapshot | None,
        *,
        noop: bool = False,
        defer: bool = False,
        force: bool = False,
    ) -> Outcome:
        """One pass. Without a snapshot (the store is away) only what is owed is done.

        ``defer``: it is too early for a reload. ``force``: pass the guards about content, try what is held,
        and reload whether a file changed or not. Raises an AgentError when the resource is FAILED; says what
        happened through ``agent_event`` either way.
        """
        started_s = time.monotonic()
        defer = defer and not self._config.sync_only
        revision = snapshot.revision if snapshot else 0
        before = self._executor.manifest(resource).current
        result: Outcome | AgentError
        try:
            result = self._pass(resource, snapshot, noop=noop, defer=defer, force=force)
            if snapshot is not None:
                self._accepted.pop(resource.name, None)
        except AgentError as error:
            result = error
        if self._gate is not None and not (isinstance(result, Outcome) and result.kind == WAITING):
            self._gate.release(resource, result)
        self._tell(resource, result, revision, before, snapshot, time.monotonic() - started_s)
        if isinstance(result, AgentError):
            raise result
        return result

    def intact(self, resource: Resource) -> bool:
        """Whether every file stands as the last successful apply left it."""
        manifest = self._executor.manifest(resource)
        return bool(manifest.current.hash) and not self._drifted(manifest)

    def manifest(self, resource: Resource) -> Manifest:
        return self._executor.manifest(resource)

    def history(self, resource: Resource) -> list[Generation]:
        """The saved generations, oldest first: what a rollback can go back to."""
        generations = self._executor.generations(resource)
        return [generations.read(number) for number in generations.numbers()]

    def roll_back(self, resource: Resource, number: int | None) -> Outcome:
        """Bring back generation ``number`` (None: the one before), with check, reload and health.

        The keys as they are now are held until one of them changes. Raises ConfigError for a number that is
        not kept, and what an apply raises.
        """
        started_s = time.monotonic()
        self._executor.settle(resource)
        generations = self._executor.generations(resource)
        numbers = generations.numbers()
        if not numbers or (number is not None and number not in numbers):
            known = ", ".join(map(str, numbers)) or "none"
            raise ConfigError(f"{resource.name}: there is no generation {number or ''}; kept: {known}")
        generation = generations.read(numbers[-1] if number is None else number)
        before = self._executor.manifest(resource)
        disk = self._executor.disk({*before.owned, *generation.states})
        plan = go_back(resource, generation.content, generation.states, disk, before)
        outcome = self._executor.roll_back(resource, generation.number, plan)
        self._tell(resource, outcome, outcome.revision, before.current, None, time.monotonic() - started_s)
        return outcome

    def _pass(
        self, resource: Resource, snapshot: Snapshot | None, *, noop: bool, defer: bool, force: bool
    ) -> Outcome:
        if snapshot is None:
            settled = None if noop else self._executor.settle(resource, defer=defer)
            current = self._executor.manifest(resource).current
            return settled or Outcome(UNCHANGED, current.revision, hash=current.hash)
        if noop:
            plan = self.plan(resource, snapshot)
            detail = f"{len(plan.actions)} changes, not applied"
            return Outcome("planned", plan.target.revision, plan.changed, detail, drift=plan.drift)
        if self._executor.manifest(resource).phase is Phase.WRITTEN:
            return self._pass_written(resource, snapshot, defer=defer, force=force)
        owed: AgentError | None = None
        settled = None
        try:
            settled = self._executor.settle(resource)
        except (ReloadError, HealthError, CheckError) as error:
            owed = error  # newer keys may mend it, so go on to them
        if settled is not None and settled.kind == WAITING:
            return settled
        plan = self.plan(resource, snapshot, force=force)
        if not plan.actions and owed is not None:
            raise owed
        outcome = self._executor.apply(resource, plan, snapshot, defer=defer, force=force)
        if settled is not None and outcome.kind in (UNCHANGED, HELD):
            return settled
        return _reported(resource, outcome)

    def _pass_written(self, resource: Resource, snapshot: Snapshot, *, defer: bool, force: bool) -> Outcome:
        """Files wait for their reload: newer ones come first, but never instead of it."""
        try:
            plan = self.plan(resource, snapshot, force=force)
            outcome = self._executor.apply(resource, plan, snapshot, defer=defer, force=force)
            if outcome.kind != HELD:
                return outcome
            settled = self._executor.settle(resource, defer=defer)
            return settled or replace(outcome, kind=WRITTEN, error="", detail=outcome.error)
        except AgentError:
            if not defer and self._executor.manifest(resource).phase is Phase.WRITTEN:
                self._executor.settle(resource)
            raise

    def _drifted(self, manifest: Manifest) -> bool:
        for dest, record in manifest.current.files.items():
            state = self._executor.disk([dest])[dest]
            if state is None or record_of(state, record.template) != record:
                return True
        return False

    # What is said of a pass.

    def _tell(
        self,
        resource: Resource,
        result: Outcome | AgentError,
        revision: int,
        before: Content,
        snapshot: Snapshot | None,
        took_s: float,
    ) -> None:
        if isinstance(result, AgentError):
            event = Event("failed", resource.name, revision, detail=str(result), duration_s=took_s)
        elif result.kind == HELD:
            return
        else:
            detail = result.error or result.detail
            event = Event(result.kind, resource.name, result.revision, result.changed, detail, took_s)
        event = replace(event, repeated=self._repeated(event))
        self._plugins.notify("agent_event", event=event)
        if (
            self._audit is not None
            and not event.repeated
            and event.kind not in (UNCHANGED, WAITING, "planned")
        ):
            after = self._executor.manifest(resource)
            tried = after.target or after.current
            if event.kind == "failed" and snapshot is not None:
                keys = {key: entry.mod_revision for key, entry in snapshot.entries.items()}
                tried = replace(before, revision=snapshot.revision, keys=keys)
            self._audit.write(
                {
                    "time": round(time.time(), 3),
                    "host": self._config.host_id,
                    "resource": resource.name,
                    "result": event.kind,
                    **changes(resource, before, tried),
                    "changed": list(event.changed),
                    "error": event.detail if event.kind in ("failed", ROLLED_BACK) else "",
                    "duration_s": round(took_s, 3),
                }
            )

    def _repeated(self, event: Event) -> int:
        """How often exactly this has been said in a row: a failure is news once."""
        text = f"{event.kind}: {event.changed}: {event.detail}"
        with self._lock:
            last, count = self._said.get(event.resource, ("", -1))
            same = text == last and event.kind in ("failed", WAITING, DRIFTED, ROLLED_BACK)
            count = count + 1 if same else 0
            self._said[event.resource] = (text, count)
        return count


def _reported(resource: Resource, outcome: Outcome) -> Outcome:
    """Files that another hand has changed are an outcome of their own where they are only reported."""
    if outcome.kind == UNCHANGED and outcome.drift and resource.drift == "report":
        return replace(
            outcome,
            kind=DRIFTED,
            changed=outcome.drift,
            detail=f"changed by another hand: {', '.join(outcome.drift)}",
        )
    return outcome


def snapshot_with(snapshot: Snapshot, values: Mapping[str, bytes], removed: Iterable[str] = ()) -> Snapshot:
    """The snapshot as it would be with other values: what ``plan --set`` renders."""
    entries = {key: entry for key, entry in snapshot.entries.items() if key not in set(removed)}
    entries.update({key: Entry(value, snapshot.revision + 1) for key, value in values.items()})
    return replace(snapshot, entries=entries)


def exit_status(outcome: Outcome) -> int:
    """What ``once`` ends with for an outcome: 0, or 5 when the old files had to come back."""
    return 5 if outcome.kind in (ROLLED_BACK, HELD) else 0
