"""Brings a plan to the disk and the service, so that a kill at any point leaves wholly old or wholly new.

The order (docs/agent.md, "How a change is applied"): stage, veto hooks, format, check command; the fleet's
permission; save the present files as a generation; write the manifest (SWAPPING, reload pending); swap file
by file; manifest RELOADING (or WRITTEN, if the reload is to wait); reload; health, for as long as it must
hold; manifest IDLE. A failed reload or health check restores the generation, checks it again and reloads
with it. ``settle`` does whatever the manifest says is still to be done, after a crash, a failure or a delay,
without asking the store.

One thread at a time works on one resource; different resources do not meet here.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from etcd_agent import workers
from etcd_agent.checks import Checker, stage_path
from etcd_agent.errors import AgentError, BusyError, FilesError, HealthError, ReloadError
from etcd_agent.files import FileSystem
from etcd_agent.generations import Generation, Generations
from etcd_agent.locks import DestinationLocks
from etcd_agent.manifest import Bad, Content, Manifest, Phase, changed_keys, from_json, to_json
from etcd_agent.plan import Plan, sha256
from etcd_agent.plugins import PluginSet
from etcd_agent.values import (
    APPLIED,
    HELD,
    RESUMED,
    ROLLED_BACK,
    UNCHANGED,
    WAITING,
    WRITTEN,
    Applied,
    FileState,
    Gate,
    Outcome,
    Problem,
    Resource,
    Safety,
    Snapshot,
    Staged,
    StagedFile,
    Template,
)

logger = logging.getLogger(__name__)

# What needs the most of a service comes first: one action serves all changed files.
_ACTIONS = ("restart", "reload-or-restart", "reload")


class Executor:
    """All that changes this host for resources. ``clock`` gives seconds since the epoch, ``sleep`` waits.

    ``sync_only``: files alone; nothing is checked or reloaded. A reload that was owed before stays owed, what
    is written meanwhile owes none. ``keep_stage``: what was staged last stays, unless it is sensitive.
    """

    def __init__(
        self,
        state_dir: str,
        plugins: PluginSet,
        *,
        safety: Safety = Safety(),  # noqa: B008 (frozen)
        files: FileSystem | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        gate: Gate | None = None,
        locks: DestinationLocks | None = None,
        sync_only: bool = False,
        keep_stage: bool = False,
    ) -> None:
        self._state_dir = state_dir
        self._plugins = plugins
        self._safety = safety
        self._files = files or FileSystem()
        self._checker = Checker(self._files, plugins, sync_only=sync_only)
        self._sync_only = sync_only
        self._keep_stage = keep_stage
        self._clock = clock
        self._sleep = _idly(sleep)
        self._gate = gate
        self._locks = locks

    def manifest(self, resource: Resource) -> Manifest:
        """The resource's manifest; a damaged one is kept aside and a fresh one owes a reload."""
        path = self._manifest_path(resource)
        state = self._files.read(path)
        if state is None:
            return Manifest(resource.name)
        try:
            return from_json(state.content)
        except ValueError as error:
            logger.error(
                "%s: %s is damaged (%s); starting from the files on disk", resource.name, path, error
            )
            self._files.write_private(f"{path}.damaged", state.content)
            return Manifest(resource.name, reload_pending=True)

    def disk(self, destinations: Iterable[str]) -> dict[str, FileState | None]:
        """The present files. FilesError for one that cannot be read."""
        return {dest: self._files.read(dest) for dest in destinations}

    def generations(self, resource: Resource) -> Generations:
        return Generations(self._files, self._path(resource, "generations"))

    def check(self, resource: Resource, plan: Plan, snapshot: Snapshot, directory: str | None = None) -> None:
        """Stage the plan and let all that may refuse it do so. CheckError; touches no destination.

        ``directory`` is where to stage when the resource's own stage belongs to another process (a preview).
        """
        staged = self._checker.stage(directory or self._path(resource, "stage"), plan)
        self._checker.check(resource, staged, snapshot, plan.target.revision)

    def apply(
        self, resource: Resource, plan: Plan, snapshot: Snapshot, *, defer: bool = False, force: bool = False
    ) -> Outcome:
        """Apply a plan made from the present manifest. An AgentError means that it changed nothing.

        ``defer``: the reload may not be yet; it is left to a later pass. Where the fleet must permit the
        change, that holds for the files, too. ``force``: what was held is tried, and what is as it should be
        is reloaded with.
        """
        manifest = self.manifest(resource)
        if not plan.actions and not force:
            return self.settle(resource, defer=defer) or self._acknowledge(resource, manifest, plan)
        if manifest.refuses(plan.target) and not force:
            assert manifest.bad is not None
            return Outcome(HELD, plan.target.revision, error=manifest.bad.error, hash=manifest.current.hash)
        self.check(resource, plan, snapshot)
        if self._locks is not None:
            self._locks.take(plan.changed)
        if self._gated(resource) and defer:
            return Outcome(WAITING, plan.target.revision, detail="min_interval")
        refusal = self._ask(resource, plan.target.revision)
        if refusal is not None:
            return refusal
        manifest = self._swap(resource, plan, manifest)
        if defer:
            manifest = replace(manifest, phase=Phase.WRITTEN)
            self._save(resource, manifest)
            return Outcome(WRITTEN, plan.target.revision, plan.changed, hash=plan.target.hash)
        manifest = replace(manifest, phase=Phase.RELOADING)
        self._save(resource, manifest)
        return self._bring_into_force(resource, manifest, APPLIED)

    def settle(self, resource: Resource, *, defer: bool = False) -> Outcome | None:
        """Do what a crash, a failure or a delay left to be done; None if there was nothing. Needs no store.

        Raises ReloadError or HealthError when the pending reload fails again (rollback disabled, or already
        back).
        """
        manifest = self.manifest(resource)
        match manifest.phase:
            case Phase.SWAPPING:
                return self._resume_swap(resource, manifest)
            case Phase.WRITTEN if not defer:
                return self._resume_reload(resource, manifest, APPLIED)
            case Phase.RELOADING:
                return self._resume_reload(resource, manifest, RESUMED)
            case Phase.RESTORING:
                return self._restore(resource, manifest)
            case Phase.IDLE if manifest.reload_pending and not self._sync_only:
                return self._reload_current(resource, manifest)
            case Phase.IDLE:
                self._tidy(resource)
        return None

    def roll_back(self, resource: Resource, number: int, plan: Plan) -> Outcome:
        """Bring generation ``number`` into force as ``plan`` says, and hold what is in force now.

        The keys as they are now are not tried again until one of them changes. Nothing may be unsettled.
        """
        manifest = self.manifest(resource)
        bad = manifest.bad or Bad(
            manifest.current.data_revision,
            manifest.current.hash,
            f"rolled back to generation {number} by hand",
        )
        if plan.actions:
            self.check(resource, plan, Snapshot(plan.target.cluster_id, plan.target.revision, {}))
            if self._locks is not None:
                self._locks.take(plan.changed)
        manifest = self._swap(resource, plan, replace(manifest, bad=bad))
        manifest = replace(manifest, phase=Phase.RELOADING)
        self._save(resource, manifest)
        return self._bring_into_force(resource, manifest, APPLIED)

    # The fleet's permission.

    def _gated(self, resource: Resource) -> bool:
        return self._gate is not None and bool(resource.rollout.group) and not self._sync_only

    def _ask(self, resource: Resource, revision: int) -> Outcome | None:
        """None if this host may change now, else the outcome of the pass."""
        if self._gate is None or not self._gated(resource):
            return None
        with workers.idle():
            reason = self._gate.acquire(resource, revision)
        return None if reason is None else Outcome(WAITING, revision, detail=reason)

    # Swap.

    def _swap(self, resource: Resource, plan: Plan, before: Manifest) -> Manifest:
        """From the old files to the new ones; all are written aside before any is renamed."""
        generation = self._save_generation(resource, before, plan)
        manifest = replace(
            before,
            phase=Phase.SWAPPING,
            target=plan.target,
            generation=generation,
            removed=plan.removed,
            changed=tuple(dict.fromkeys((*before.changed, *plan.changed))),
            reload_pending=before.reload_pending or not self._sync_only,
        )
        self._save(resource, manifest)
        if before.phase is Phase.WRITTEN:
            self.generations(resource).remove(before.generation)
        try:
            for action in plan.actions:
                if action.after is not None:
                    self._make_directories(resource, plan.target, action.dest)
                    self._files.prepare(action.dest, action.after)
            for action in plan.actions:
                if action.after is not None:
                    in_place = self._in_place(resource, plan.target, action.dest)
                    self._files.commit(action.dest, action.after, in_place=in_place)
                else:
                    self._files.remove(action.dest)
        except FilesError:
            self._save(resource, replace(manifest, phase=Phase.RESTORING, bad=None))
            self._restore_files(resource, manifest)
            # Nothing was reloaded with any new file, so what was pending before is what is pending now.
            idle = replace(before, phase=Phase.IDLE, target=None, removed=(), generation=generation)
            self._save(resource, idle)
            raise
        return manifest

    def _save_generation(self, resource: Resource, before: Manifest, plan: Plan) -> int:
        """The state to go back to, under a new number.

        After a delayed reload that is still what was last in force, not what stands on disk; only files that
        are new in this plan are added as they are.
        """
        number = before.generation + 1
        generations = self.generations(resource)
        known: dict[str, FileState | None] = {}
        if before.phase is Phase.WRITTEN:
            known = dict(generations.read(before.generation).states)
        for dest in sorted({*before.owned, *plan.target.files} - known.keys()):
            state = self._files.read(dest)
            if state is not None:
                state = replace(state, attributes=tuple(self._files.attributes(dest).items()))
            known[dest] = state
        generations.save(Generation(number, before.current, before.applied_at, known))
        return number

    def _resume_swap(self, resource: Resource, manifest: Manifest) -> Outcome:
        """A crash among the renames: forward if every (checked) staged file is whole, else back."""
        assert manifest.target is not None
        directory = self._path(resource, "stage")
        wanted: dict[str, FileState] = {}
        for dest, record in manifest.target.files.items():
            state = self._files.read(stage_path(directory, dest))
            if state is None or sha256(state.content) != record.sha256:
                logger.warning(
                    "%s: interrupted while files were swapped; restoring the old ones", resource.name
                )
                return self._restore(resource, self._restoring(resource, manifest, None))
            wanted[dest] = FileState(state.content, record.mode, record.uid, record.gid)
        logger.info("%s: interrupted while files were swapped; completing", resource.name)
        for dest, state in wanted.items():
            if self._files.read(dest) != state:
                in_place = self._in_place(resource, manifest.target, dest)
                self._make_directories(resource, manifest.target, dest)
                self._files.write(dest, state, in_place=in_place)
            self._files.discard(dest)
        for dest in manifest.removed:
            self._files.remove(dest)
        manifest = replace(manifest, phase=Phase.RELOADING)
        self._save(resource, manifest)
        return self._resume_reload(resource, manifest, RESUMED)

    def _make_directories(self, resource: Resource, content: Content, dest: str) -> None:
        """Those above the destination, 0755, if its template says so. They stay when the file goes."""
        template = _template(resource, content, dest)
        if template is not None and template.make_directories:
            self._files.make_directory(os.path.dirname(dest), 0o755)

    def _in_place(self, resource: Resource, content: Content, dest: str) -> bool:
        template = _template(resource, content, dest)
        return template is not None and template.in_place

    # Reload, health, rollback.

    def _resume_reload(self, resource: Resource, manifest: Manifest, kind: str) -> Outcome:
        """The files stand; the reload is owed. It needs the fleet's permission as the first try did."""
        assert manifest.target is not None
        refusal = self._ask(resource, manifest.target.revision)
        if refusal is not None:
            return refusal
        if manifest.phase is not Phase.RELOADING:
            manifest = replace(manifest, phase=Phase.RELOADING)
            self._save(resource, manifest)
        return self._bring_into_force(resource, manifest, kind)

    def _bring_into_force(self, resource: Resource, manifest: Manifest, kind: str) -> Outcome:
        """From RELOADING to IDLE with the target, or back."""
        target = manifest.target
        assert target is not None
        try:
            detail = self._reload(resource, manifest, target, rollback=False)
        except (ReloadError, HealthError) as error:
            if not resource.rollback.enabled or isinstance(error, BusyError):
                raise
            bad = Bad(target.data_revision, target.hash, str(error))
            return self._restore(resource, self._restoring(resource, manifest, bad))
        changed = manifest.changed
        # What was refused before stays refused while these are older keys (a person has gone back to them).
        bad_still = (
            manifest.bad if manifest.bad and manifest.bad.data_revision >= target.data_revision else None
        )
        if bad_still and manifest.refuses(target):
            bad_still = None
        self._finish(resource, replace(manifest, current=target, bad=bad_still, applied_at=self._clock()))
        reloaded = not self._sync_only
        return Outcome(kind, target.revision, changed, detail, reloaded=reloaded, hash=target.hash)

    def _reload(self, resource: Resource, manifest: Manifest, content: Content, *, rollback: bool) -> str:
        """Reload with the files of ``content`` and see that the service is well, for the bake time too."""
        if self._sync_only:
            return "neither checked nor reloaded (sync_only)"
        applied = Applied(
            content.revision,
            tuple(content.files),
            manifest.changed,
            rollback,
            _action(resource, manifest),
            () if rollback else changed_keys(manifest.current, content),
        )
        self._files.step("before reload", resource.name)
        try:
            detail = self._plugins.provide("agent_reload", resource=resource, applied=applied)
        except AgentError:
            raise
        except Exception as error:  # a provider's own mistake fails this step and nothing else
            raise ReloadError(f"reload: a plugin failed: {type(error).__name__}: {error}") from error
        self._files.step("after reload", resource.name)
        self._await_health(resource, applied)
        if not rollback and self._gated(resource):
            self._bake(resource, applied)
        return str(detail or "no reload configured")

    def _await_health(self, resource: Resource, applied: Applied) -> None:
        health = resource.health
        found: list[Problem] = []
        for attempt in range(1 + health.retries):
            if attempt:
                self._sleep(health.interval_s)
            found = self._plugins.veto("agent_health", resource=resource, applied=applied)
            if not found:
                return
        raise HealthError("unhealthy: " + "; ".join(map(str, found)))

    def _bake(self, resource: Resource, applied: Applied) -> None:
        """Health must hold for a while before other hosts follow."""
        rest_s = resource.rollout.bake_s
        while rest_s > 0:
            pause_s = min(rest_s, max(resource.health.interval_s, 0.05))
            self._sleep(pause_s)
            rest_s -= pause_s
            self._await_health(resource, applied)

    def _restoring(self, resource: Resource, manifest: Manifest, bad: Bad | None) -> Manifest:
        """``bad`` None: the new content is innocent and will be tried again."""
        manifest = replace(manifest, phase=Phase.RESTORING, bad=bad, reload_pending=True)
        self._save(resource, manifest)
        return manifest

    def _restore(self, resource: Resource, manifest: Manifest) -> Outcome:
        """From RESTORING to IDLE with the old files. A reload that fails with them stays pending."""
        self._restore_files(resource, manifest)
        revision = manifest.target.revision if manifest.target else manifest.current.revision
        error = manifest.bad.error if manifest.bad else "interrupted while files were swapped"
        manifest = replace(manifest, phase=Phase.IDLE, target=None, removed=(), reload_pending=True)
        self._save(resource, manifest)
        changed = manifest.changed
        if resource.rollback.reload:
            try:
                self._reload_current(resource, manifest)
            except AgentError as again:
                logger.error("%s: the old files are back, but: %s", resource.name, again)
                error = f"{error}; with the old files: {again}"
        else:
            self._finish(resource, manifest)
        return Outcome(ROLLED_BACK, revision, changed, error=error, reloaded=True, hash=manifest.current.hash)

    def _restore_files(self, resource: Resource, manifest: Manifest) -> None:
        for dest, state in self.generations(resource).read(manifest.generation).states.items():
            if state is None:
                self._files.remove(dest)
            elif self._files.read(dest) != state:
                in_place = self._in_place(resource, manifest.target or manifest.current, dest)
                self._files.write(dest, state, in_place=in_place)
            self._files.discard(dest)

    def _reload_current(self, resource: Resource, manifest: Manifest) -> Outcome:
        """IDLE with a reload pending: the files of ``current`` stand, the service may not have read them."""
        present = tuple(
            StagedFile(dest, dest, False)
            for dest in manifest.current.files
            if self._files.read(dest) is not None
        )
        snapshot = Snapshot(manifest.current.cluster_id, manifest.current.revision, {})
        staged = Staged(self._path(resource, "stage"), present)
        self._checker.check(resource, staged, snapshot, manifest.current.revision)
        detail = self._reload(resource, manifest, manifest.current, rollback=True)
        self._finish(resource, manifest)
        current = manifest.current
        return Outcome(RESUMED, current.revision, manifest.changed, detail, reloaded=True, hash=current.hash)

    def _acknowledge(self, resource: Resource, manifest: Manifest, plan: Plan) -> Outcome:
        """Disk and keys agree: remember the revision if that says more than the manifest does."""
        if manifest.phase is Phase.WRITTEN:
            assert manifest.target is not None
            if manifest.target.data_revision != plan.target.data_revision:
                self._save(resource, replace(manifest, target=plan.target))
            return Outcome(WRITTEN, plan.target.revision, hash=plan.target.hash)
        known = manifest.current
        if (known.cluster_id, known.data_revision, known.files, known.keys) != (
            plan.target.cluster_id,
            plan.target.data_revision,
            plan.target.files,
            plan.target.keys,
        ) or manifest.bad is not None:
            self._save(resource, replace(manifest, current=plan.target, bad=None))
        return Outcome(UNCHANGED, plan.target.revision, hash=plan.target.hash, drift=plan.drift)

    def _finish(self, resource: Resource, manifest: Manifest) -> None:
        idle = replace(manifest, phase=Phase.IDLE, target=None, removed=())
        if not (self._sync_only and manifest.reload_pending):
            idle = replace(idle, changed=(), reload_pending=False)
        self._save(resource, idle)
        self._tidy(resource)

    def _tidy(self, resource: Resource) -> None:
        """Remove what an idle resource has no use for, a kill's half-made things among them."""
        if resource.sensitive or not self._keep_stage:
            self._files.remove_directory(self._path(resource, "stage"))
        self._files.remove_directory(self._path(resource, "overlay"))
        self._files.discard(self._manifest_path(resource))
        kept = 0 if resource.sensitive and not self._safety.sensitive_backups else self._safety.backups
        self.generations(resource).keep(kept)

    # State on disk.

    def _save(self, resource: Resource, manifest: Manifest) -> None:
        self._files.make_directory(self._path(resource, ""))
        self._files.write_private(self._manifest_path(resource), to_json(manifest))

    def _manifest_path(self, resource: Resource) -> str:
        return self._path(resource, "manifest.json")

    def _path(self, resource: Resource, name: str) -> str:
        return f"{self._state_dir}/resources/{resource.name}/{name}".rstrip("/")


def _template(resource: Resource, content: Content, dest: str) -> Template | None:
    """The template that the file was made by, if it still is there."""
    record = content.files.get(dest)
    known = record is not None and record.template < len(resource.templates)
    return resource.templates[record.template] if record is not None and known else None


def _idly(sleep: Callable[[float], None]) -> Callable[[float], None]:
    def sleep_idly(seconds: float) -> None:
        with workers.idle():
            sleep(seconds)

    return sleep_idly


def _action(resource: Resource, manifest: Manifest) -> str | None:
    """What the changed templates ask for together; None when all leave it to the resource."""
    owned = manifest.owned
    named: list[str | None] = []
    for dest in manifest.changed:
        record = owned.get(dest)
        known = record is not None and record.template < len(resource.templates)
        named.append(resource.templates[record.template].action if record is not None and known else None)
    if not any(named):
        return None
    wanted = [each or resource.reload.action for each in named]
    return next(
        (each for each in _ACTIONS if each in wanted), next((w for w in wanted if w != "none"), "none")
    )
