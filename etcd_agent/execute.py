"""Brings a plan to the disk and the service, so that a kill at any point leaves wholly old or wholly new.

The order (docs/agent.md, "How a change is applied"): stage, veto hooks, format, check command; save the
present files as a generation; write the manifest (SWAPPING, reload pending); swap file by file; manifest
RELOADING; reload; health; manifest IDLE. A failed reload or health check restores the generation, checks it
again and reloads with it. ``settle`` does whatever the manifest says is still to be done, after a crash or a
failure, without asking the store.

One thread at a time works on one resource; different resources do not meet here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from etcd_agent import commands, formats, overlay
from etcd_agent.builtin import environment
from etcd_agent.errors import AgentError, CheckError, FilesError, HealthError, ReloadError
from etcd_agent.files import FileSystem, temporary_path
from etcd_agent.manifest import Bad, Content, Manifest, Phase, from_json, to_json
from etcd_agent.plan import Plan, sha256
from etcd_agent.plugins import PluginSet
from etcd_agent.values import (
    APPLIED,
    HELD,
    RESUMED,
    ROLLED_BACK,
    UNCHANGED,
    Applied,
    Command,
    FileState,
    Outcome,
    Problem,
    Resource,
    Safety,
    Snapshot,
    Staged,
    StagedFile,
)

logger = logging.getLogger(__name__)


class Executor:
    """All that changes this host for resources. ``clock`` gives seconds since the epoch, ``sleep`` waits."""

    def __init__(
        self,
        state_dir: str,
        plugins: PluginSet,
        *,
        safety: Safety = Safety(),  # noqa: B008 (frozen)
        files: FileSystem | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._state_dir = state_dir
        self._plugins = plugins
        self._safety = safety
        self._files = files or FileSystem()
        self._clock = clock
        self._sleep = sleep

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

    def check(self, resource: Resource, plan: Plan, snapshot: Snapshot, directory: str | None = None) -> None:
        """Stage the plan and let all that may refuse it do so. CheckError; touches no destination.

        ``directory`` is where to stage when the resource's own stage belongs to another process (a preview).
        """
        staged = self._stage(directory or self._path(resource, "stage"), plan)
        self._check(resource, staged, snapshot, plan.target.revision)

    def apply(self, resource: Resource, plan: Plan, snapshot: Snapshot) -> Outcome:
        """Apply a plan made from the present manifest. An AgentError means that it changed nothing."""
        manifest = self.manifest(resource)
        if not plan.actions:
            return self.settle(resource) or self._acknowledge(resource, manifest, plan)
        if manifest.refuses(plan.target):
            assert manifest.bad is not None
            return Outcome(HELD, plan.target.revision, error=manifest.bad.error)
        self.check(resource, plan, snapshot)
        manifest = self._swap(resource, plan, manifest)
        return self._bring_into_force(resource, manifest, APPLIED)

    def settle(self, resource: Resource) -> Outcome | None:
        """Do what a crash or a failure left to be done; None if there was nothing. Needs no store.

        Raises ReloadError or HealthError when the pending reload fails again (rollback disabled, or already
        back).
        """
        manifest = self.manifest(resource)
        match manifest.phase:
            case Phase.SWAPPING:
                return self._resume_swap(resource, manifest)
            case Phase.RELOADING:
                return self._bring_into_force(resource, manifest, RESUMED)
            case Phase.RESTORING:
                return self._restore(resource, manifest)
            case Phase.IDLE if manifest.reload_pending:
                return self._reload_current(resource, manifest)
        return None

    # Stage and check.

    def _stage(self, directory: str, plan: Plan) -> Staged:
        """All files of the plan below ``directory``, private. Not synced: a resume compares their hashes."""
        self._files.remove_directory(directory)
        self._files.make_directory(directory)
        changed = set(plan.changed)
        staged: list[StagedFile] = []
        for file in plan.files:
            path = stage_path(directory, file.dest)
            self._files.make_directory(os.path.dirname(path))
            self._files.write_new(path, file.content, durable=False)
            staged.append(StagedFile(file.dest, path, file.dest in changed))
        return Staged(directory, tuple(staged), plan.removed)

    def _check(self, resource: Resource, staged: Staged, snapshot: Snapshot, revision: int) -> None:
        for file in staged.files:
            reason = formats.problem(self._content(file.path), resource.check.format)
            if reason:
                raise CheckError(f"check: {file.dest}: {reason}")
        refusals = self._plugins.veto("agent_validate", resource=resource, staged=staged, snapshot=snapshot)
        if refusals:
            raise CheckError("check: " + "; ".join(map(str, refusals)))
        if resource.check.cmd is None:
            return
        if resource.check.mode == "overlay":
            self._check_overlay(resource, staged, revision)
        else:
            self._check_staged(resource, staged, revision)

    def _check_staged(self, resource: Resource, staged: Staged, revision: int) -> None:
        """confd's way: the command once for each staged file that it is given by ``{{src}}``, else once."""
        command = resource.check.cmd
        assert command is not None
        each = (
            staged.files
            if commands.uses(command, "src") or commands.uses(command, "dest")
            else staged.files[:1]
        )
        for file in each:
            expanded = commands.expand(command, {"src": file.path, "dest": file.dest})
            variables = {**environment(resource, revision, file.dest), "AGENT_SRC": file.path}
            self._run_check(resource, expanded, variables)

    def _check_overlay(self, resource: Resource, staged: Staged, revision: int) -> None:
        command = resource.check.cmd
        assert command is not None
        with tempfile.TemporaryDirectory(prefix="overlay-", dir=os.path.dirname(staged.directory)) as layers:
            files = {file.dest: self._wanted(resource, file) for file in staged.files}
            prefix = overlay.build(layers, files, staged.removed)
            argv = ("/bin/sh", "-c", command) if isinstance(command, str) else command
            self._run_check(resource, (*prefix, *argv), environment(resource, revision))

    def _wanted(self, resource: Resource, file: StagedFile) -> FileState:
        """The staged content with the attributes that it will have, as far as the check needs them."""
        before = self._files.read(file.dest)
        content = self._content(file.path)
        if before is None:
            return FileState(content, 0o644, os.geteuid(), os.getegid())
        return replace(before, content=content)

    def _run_check(self, resource: Resource, command: Command, variables: Mapping[str, str]) -> None:
        result = commands.run(command, timeout_s=resource.check.timeout_s, env=variables)
        if not result.ok:
            shown = resource.check.cmd if resource.check.cmd is not None else command
            if any(template.sensitive for template in resource.templates):
                result = replace(result, output="")  # a check may well quote the line that it dislikes
            raise CheckError(f"check: {result.reason(shown, resource.check.timeout_s)}")

    # Swap.

    def _swap(self, resource: Resource, plan: Plan, before: Manifest) -> Manifest:
        """From the old files to the new ones; all are written aside before any is renamed."""
        generation = before.generation + 1
        self._save_generation(resource, generation, {*before.owned, *plan.target.files})
        manifest = replace(
            before,
            phase=Phase.SWAPPING,
            target=plan.target,
            generation=generation,
            removed=plan.removed,
            changed=plan.changed,
            reload_pending=True,
        )
        self._save(resource, manifest)
        try:
            for action in plan.actions:
                if action.after is not None:
                    self._files.prepare(action.dest, action.after)
            for action in plan.actions:
                if action.after is not None:
                    self._files.commit(action.dest)
                else:
                    self._files.remove(action.dest)
        except FilesError:
            self._save(resource, replace(manifest, phase=Phase.RESTORING, bad=None))
            self._restore_files(manifest)
            # Nothing was reloaded with any new file, so what was pending before is what is pending now.
            self._save(resource, replace(before, generation=generation))
            raise
        manifest = replace(manifest, phase=Phase.RELOADING)
        self._save(resource, manifest)
        return manifest

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
                self._files.write(dest, state)
        for dest in manifest.removed:
            self._files.remove(dest)
        manifest = replace(manifest, phase=Phase.RELOADING)
        self._save(resource, manifest)
        return self._bring_into_force(resource, manifest, RESUMED)

    # Reload, health, rollback.

    def _bring_into_force(self, resource: Resource, manifest: Manifest, kind: str) -> Outcome:
        """From RELOADING to IDLE with the target, or back."""
        target = manifest.target
        assert target is not None
        try:
            detail = self._reload(resource, target, manifest.changed, rollback=False)
        except (ReloadError, HealthError) as error:
            if not resource.rollback.enabled:
                raise
            bad = Bad(target.data_revision, target.hash, str(error))
            return self._restore(resource, self._restoring(resource, manifest, bad))
        changed = manifest.changed
        self._finish(resource, replace(manifest, current=target, bad=None, applied_at=self._clock()))
        return Outcome(kind, target.revision, changed, detail, reloaded=True)

    def _reload(
        self, resource: Resource, content: Content, changed: tuple[str, ...], *, rollback: bool
    ) -> str:
        applied = Applied(content.revision, tuple(content.files), changed, rollback)
        try:
            detail = self._plugins.provide("agent_reload", resource=resource, applied=applied)
        except AgentError:
            raise
        except Exception as error:  # a provider's own mistake fails this step and nothing else
            raise ReloadError(f"reload: a plugin failed: {type(error).__name__}: {error}") from error
        self._await_health(resource, applied)
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

    def _restoring(self, resource: Resource, manifest: Manifest, bad: Bad | None) -> Manifest:
        """``bad`` None: the new content is innocent and will be tried again."""
        manifest = replace(manifest, phase=Phase.RESTORING, bad=bad, reload_pending=True)
        self._save(resource, manifest)
        return manifest

    def _restore(self, resource: Resource, manifest: Manifest) -> Outcome:
        """From RESTORING to IDLE with the old files. A reload that fails with them stays pending."""
        self._restore_files(manifest)
        revision = manifest.target.revision if manifest.target else manifest.current.revision
        error = manifest.bad.error if manifest.bad else "interrupted while files were swapped"
        manifest = replace(manifest, phase=Phase.IDLE, target=None, removed=(), reload_pending=True)
        self._save(resource, manifest)
        if resource.rollback.reload:
            try:
                self._reload_current(resource, manifest)
            except AgentError as again:
                logger.error("%s: the old files are back, but: %s", resource.name, again)
                error = f"{error}; with the old files: {again}"
        else:
            self._finish(resource, manifest)
        return Outcome(ROLLED_BACK, revision, manifest.changed, error=error, reloaded=True)

    def _restore_files(self, manifest: Manifest) -> None:
        for dest, state in self._read_generation(manifest.resource, manifest.generation).items():
            if state is None:
                self._files.remove(dest)
            elif self._files.read(dest) != state:
                self._files.write(dest, state)
            self._files.remove(temporary_path(os.path.realpath(dest)))

    def _reload_current(self, resource: Resource, manifest: Manifest) -> Outcome:
        """IDLE with a reload pending: the files of ``current`` stand, the service may not have read them."""
        present = tuple(
            StagedFile(dest, dest, False)
            for dest in manifest.current.files
            if self._files.read(dest) is not None
        )
        snapshot = Snapshot(manifest.current.cluster_id, manifest.current.revision, {})
        staged = Staged(self._path(resource, "stage"), present)
        self._check(resource, staged, snapshot, manifest.current.revision)
        detail = self._reload(resource, manifest.current, manifest.changed, rollback=True)
        self._finish(resource, manifest)
        return Outcome(RESUMED, manifest.current.revision, manifest.changed, detail, reloaded=True)

    def _acknowledge(self, resource: Resource, manifest: Manifest, plan: Plan) -> Outcome:
        """Disk and keys agree: remember the revision if that says more than the manifest does."""
        known = manifest.current
        if (known.cluster_id, known.data_revision, known.files) != (
            plan.target.cluster_id,
            plan.target.data_revision,
            plan.target.files,
        ) or manifest.bad is not None:
            self._save(resource, replace(manifest, current=plan.target, bad=None))
        return Outcome(UNCHANGED, plan.target.revision)

    def _finish(self, resource: Resource, manifest: Manifest) -> None:
        self._save(
            resource,
            replace(manifest, phase=Phase.IDLE, target=None, removed=(), changed=(), reload_pending=False),
        )
        self._files.remove_directory(self._path(resource, "stage"))
        for generation in self._generations(resource):
            if generation <= manifest.generation - self._safety.backups:
                self._files.remove_directory(self._path(resource, f"generations/{generation}"))

    # State on disk: manifest and generations.

    def _save(self, resource: Resource, manifest: Manifest) -> None:
        self._files.make_directory(self._path(resource, ""))
        self._files.write_private(self._manifest_path(resource), to_json(manifest))

    def _save_generation(self, resource: Resource, number: int, destinations: Iterable[str]) -> None:
        """The present files, byte for byte; complete or not there at all (made aside, then renamed)."""
        self._files.make_directory(self._path(resource, "generations"))
        final = self._path(resource, f"generations/{number}")
        partial = f"{final}.partial"
        self._files.remove_directory(partial)
        self._files.make_directory(partial)
        index: list[dict[str, object]] = []
        for at, dest in enumerate(sorted(destinations)):
            state = self._files.read(dest)
            index.append(
                {"dest": dest, "file": None}
                if state is None
                else {"dest": dest, "file": str(at), "mode": state.mode, "uid": state.uid, "gid": state.gid}
            )
            if state is not None:
                self._files.write_new(f"{partial}/{at}", state.content, durable=True)
        self._files.write_new(f"{partial}/index.json", json.dumps(index, indent=1).encode(), durable=True)
        self._files.replace_directory(partial, final)

    def _read_generation(self, name: str, number: int) -> dict[str, FileState | None]:
        directory = f"{self._state_dir}/resources/{name}/generations/{number}"
        found: dict[str, FileState | None] = {}
        try:
            for entry in json.loads(self._content(f"{directory}/index.json")):
                found[entry["dest"]] = (
                    None
                    if entry["file"] is None
                    else FileState(
                        self._content(f"{directory}/{entry['file']}"),
                        entry["mode"],
                        entry["uid"],
                        entry["gid"],
                    )
                )
        except (ValueError, KeyError, TypeError) as error:
            raise FilesError(f"{directory}: this saved generation is damaged: {error}") from error
        return found

    def _generations(self, resource: Resource) -> list[int]:
        directory = self._path(resource, "generations")
        names = os.listdir(directory) if os.path.isdir(directory) else []
        return sorted(int(name) for name in names if name.isdigit())

    def _content(self, path: str) -> bytes:
        state = self._files.read(path)
        if state is None:
            raise FilesError(f"{path}: is missing")
        return state.content

    def _manifest_path(self, resource: Resource) -> str:
        return self._path(resource, "manifest.json")

    def _path(self, resource: Resource, name: str) -> str:
        return f"{self._state_dir}/resources/{resource.name}/{name}".rstrip("/")


def stage_path(directory: str, dest: str) -> str:
    """Where a destination is staged: in a directory of its own, so that it keeps its name."""
    return f"{directory}/{hashlib.sha256(os.fsencode(dest)).hexdigest()[:16]}/{os.path.basename(dest)}"
