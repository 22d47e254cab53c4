"""Staging, and everything that may refuse staged files: formats, plugins' vetoes, the check command.

Staged files stand in a directory of the agent's own, each under its own name; no destination is touched. A
preview and an apply go through the same code. Nothing of a sensitive resource is quoted: of what a command
printed, and of a parser's complaint, only that it failed is told.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace

from etcd_agent import commands, formats, overlay
from etcd_agent.builtin import environment
from etcd_agent.errors import CheckError, FilesError
from etcd_agent.files import FileSystem
from etcd_agent.plan import NEW_FILE_MODE, Plan
from etcd_agent.plugins import PluginSet
from etcd_agent.redact import redacted
from etcd_agent.values import Command, FileState, Resource, Snapshot, Staged, StagedFile


def stage_path(directory: str, dest: str) -> str:
    """Where a destination is staged: in a directory of its own, so that it keeps its name."""
    return f"{directory}/{hashlib.sha256(os.fsencode(dest)).hexdigest()[:16]}/{os.path.basename(dest)}"


class Checker:
    """Stages plans and asks all that may refuse them; with ``sync_only`` neither plugins nor the command."""

    def __init__(self, files: FileSystem, plugins: PluginSet, *, sync_only: bool = False) -> None:
        self._files = files
        self._plugins = plugins
        self._sync_only = sync_only

    def stage(self, directory: str, plan: Plan) -> Staged:
        """Write every file of the plan below ``directory``, which is emptied first."""
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

    def check(self, resource: Resource, staged: Staged, snapshot: Snapshot, revision: int) -> None:
        """Raises CheckError, one line, if anything refuses the staged files."""
        for file in staged.files:
            reason = formats.problem(self.content(file.path), resource.check.format)
            if reason:
                reason = f"not {resource.check.format}" if resource.sensitive else reason
                raise CheckError(f"check: {file.dest}: {reason}")
        if self._sync_only:
            return
        refusals = self._plugins.veto("agent_validate", resource=resource, staged=staged, snapshot=snapshot)
        if refusals:
            said = "; ".join(map(str, refusals))
            raise CheckError("check: " + (redacted(said, snapshot) if resource.sensitive else said))
        if resource.check.cmd is None:
            return
        if resource.check.mode == "overlay":
            self._check_overlay(resource, staged, revision)
        else:
            self._check_staged(resource, staged, revision)

    def content(self, path: str) -> bytes:
        """Raises FilesError if there is no such file."""
        state = self._files.read(path)
        if state is None:
            raise FilesError(f"{path}: is missing")
        return state.content

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
            self._run(resource, expanded, variables)

    def _check_overlay(self, resource: Resource, staged: Staged, revision: int) -> None:
        command = resource.check.cmd
        assert command is not None
        layers = f"{os.path.dirname(staged.directory)}/overlay"
        self._files.remove_directory(layers)
        self._files.make_directory(layers)
        try:
            files = {file.dest: self._wanted(file) for file in staged.files}
            prefix = overlay.build(layers, files, staged.removed)
            argv = ("/bin/sh", "-c", command) if isinstance(command, str) else command
            self._run(resource, (*prefix, *argv), environment(resource, revision))
        finally:
            self._files.remove_directory(layers)

    def _wanted(self, file: StagedFile) -> FileState:
        """The staged content with the attributes that it will have, as far as the check needs them."""
        before = self._files.read(file.dest)
        content = self.content(file.path)
        if before is None:
            return FileState(content, NEW_FILE_MODE, os.geteuid(), os.getegid())
        return replace(before, content=content)

    def _run(self, resource: Resource, command: Command, variables: Mapping[str, str]) -> None:
        self._files.step("before command", "check")
        result = commands.run(command, timeout_s=resource.check.timeout_s, env=variables)
        if not result.ok:
            shown = resource.check.cmd if resource.check.cmd is not None else command
            if resource.sensitive:
                result = replace(result, output="")  # a check may well quote the line that it dislikes
            raise CheckError(f"check: {result.reason(shown, resource.check.timeout_s)}")
