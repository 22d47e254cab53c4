"""What has to be done, as a pure function: rendered files + disk facts + manifest -> a plan. No I/O.

``once``, ``run`` and ``plan`` all go through here, so a preview cannot differ from the real thing. A plan
without actions and without a pending reload is "nothing to do". Only files that the manifest knows are
ever removed.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etcd_agent.errors import GuardError
from etcd_agent.manifest import Content, FileRecord, Manifest
from etcd_agent.values import Action, ActionKind, FileState, RenderedFile, Resource, Safety, Snapshot

NEW_FILE_MODE = 0o644
_FEW_KEYS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """``files`` is all that the resource will own, changed or not; ``target`` records it.

    ``drift`` names the files that were last written as they are wanted, and that another hand has changed
    since; their actions are left out if the resource's ``drift`` is not "repair".
    """

    resource: str
    target: Content
    files: tuple[RenderedFile, ...]
    actions: tuple[Action, ...]
    reload_pending: bool
    drift: tuple[str, ...] = ()

    @property
    def removed(self) -> tuple[str, ...]:
        return tuple(action.dest for action in self.actions if action.kind is ActionKind.REMOVE)

    @property
    def changed(self) -> tuple[str, ...]:
        return tuple(action.dest for action in self.actions)

    @property
    def empty(self) -> bool:
        """Nothing to write, nothing to remove, nothing left to reload."""
        return not self.actions and not self.reload_pending


def make_plan(
    resource: Resource,
    snapshot: Snapshot,
    files: Sequence[RenderedFile],
    disk: Mapping[str, FileState | None],
    manifest: Manifest,
    *,
    default_owner: tuple[int, int] = (0, 0),
    safety: Safety = Safety(),  # noqa: B008 (frozen)
    force: bool = False,
) -> Plan:
    """The plan that brings the disk to ``files``.

    ``disk`` must hold every destination of ``files`` and of the manifest (None: not there). Raises
    GuardError when a guard holds the change back; ``force`` passes those about content. ``default_owner`` is
    the uid and gid of new files whose template names none.
    """
    if not safety.accept_cluster:
        guard_cluster(snapshot, manifest)
        guard_revision(snapshot, manifest)
    if not force:
        guard_removed(snapshot, manifest, safety.max_removed_ratio)
    standing = (manifest.target or manifest.current).files
    actions: list[Action] = []
    records: dict[str, FileRecord] = {}
    drift: list[str] = []
    for file in files:
        before = disk[file.dest]
        after = wanted_state(file, before or _remembered(standing.get(file.dest)), default_owner)
        records[file.dest] = record_of(after, file.template)
        kind = _kind(before, after)
        if kind is None:
            continue
        if standing.get(file.dest) == records[file.dest]:
            drift.append(file.dest)
            if resource.drift != "repair" and not force:
                continue
        if kind is not ActionKind.ATTRIBUTES and safety.refuse_empty and not force:
            guard_empty(file.dest, before, after)
        actions.append(Action(kind, file.dest, before, after, file.sensitive))
    actions.extend(_removals(resource, files, disk, manifest))
    return Plan(
        resource=resource.name,
        target=Content(
            cluster_id=snapshot.cluster_id,
            revision=snapshot.revision,
            data_revision=snapshot.data_revision,
            hash=content_hash(records),
            files=records,
            keys={key: entry.mod_revision for key, entry in snapshot.entries.items()},
        ),
        files=tuple(files),
        actions=tuple(actions),
        reload_pending=manifest.reload_pending,
        drift=() if resource.drift == "ignore" else tuple(drift),
    )


def go_back(
    resource: Resource,
    content: Content,
    states: Mapping[str, FileState | None],
    disk: Mapping[str, FileState | None],
    manifest: Manifest,
) -> Plan:
    """The plan that brings back ``content``, whose files are ``states``; what it did not have goes."""
    owned = {**manifest.owned, **content.files}
    sensitive = {
        dest: record.template < len(resource.templates) and resource.templates[record.template].sensitive
        for dest, record in owned.items()
    }
    files: list[RenderedFile] = []
    actions: list[Action] = []
    for dest, after in sorted(states.items()):
        before = disk[dest]
        template = owned[dest].template if dest in owned else 0
        if after is not None:
            files.append(
                RenderedFile(
                    dest,
                    after.content,
                    after.mode,
                    after.uid,
                    after.gid,
                    sensitive.get(dest, False),
                    template,
                )
            )
        if before == after:
            continue
        kind = ActionKind.REMOVE if after is None else _kind(before, after)
        assert kind is not None
        actions.append(Action(kind, dest, before, after, sensitive.get(dest, False)))
    for dest in sorted(manifest.owned.keys() - states.keys()):
        if disk[dest] is not None:  # a newer apply has made it
            actions.append(Action(ActionKind.REMOVE, dest, disk[dest], None, sensitive.get(dest, False)))
    return Plan(resource.name, content, tuple(files), tuple(actions), manifest.reload_pending)


def guard_revision(snapshot: Snapshot, manifest: Manifest) -> None:
    """One cluster's revisions never go back: a store that lost writes must not undo files."""
    known = manifest.current
    if snapshot.cluster_id == known.cluster_id and snapshot.revision < known.revision:
        raise GuardError(
            f"the store answers at revision {snapshot.revision}, but revision {known.revision} of the same "
            f"cluster ({known.cluster_id:x}) is applied here: it has lost writes or is an old copy"
        )


def guard_cluster(snapshot: Snapshot, manifest: Manifest) -> None:
    """Another cluster under the same address is somebody's decision to accept, not the agent's."""
    known = manifest.current.cluster_id
    if known and snapshot.cluster_id != known:
        raise GuardError(
            f"another cluster answers: {snapshot.cluster_id:x}; the files here come from cluster {known:x}. "
            "If that is meant: etcd-py-agent accept-cluster"
        )


def guard_removed(snapshot: Snapshot, manifest: Manifest, max_ratio: float) -> None:
    """More than ``max_ratio`` of the keys, and more than three of them, gone at once: rather a loss of data
    than a wish.
    """
    known = manifest.current.keys
    gone = sum(key not in snapshot.entries for key in known)
    if gone > max(_FEW_KEYS, max_ratio * len(known)):
        raise GuardError(
            f"{gone} of {len(known)} keys vanished at once (safety.max_removed_ratio = {max_ratio:g}); "
            f"if that is meant: etcd-py-agent apply --force {manifest.resource}"
        )


def guard_empty(dest: str, before: FileState | None, after: FileState) -> None:
    if before is not None and before.content.strip() and not after.content.strip():
        raise GuardError(f"{dest} would become empty (safety.refuse_empty)")


def wanted_state(file: RenderedFile, before: FileState | None, default_owner: tuple[int, int]) -> FileState:
    """The file with mode and owner decided: the template's, else what the file has, else the defaults."""
    uid, gid = (before.uid, before.gid) if before else default_owner
    mode = before.mode if before else NEW_FILE_MODE
    return FileState(
        content=file.content,
        mode=mode if file.mode is None else file.mode,
        uid=uid if file.uid is None else file.uid,
        gid=gid if file.gid is None else file.gid,
    )


def _remembered(record: FileRecord | None) -> FileState | None:
    """The attributes of a file that was written here and has disappeared since."""
    return FileState(b"", record.mode, record.uid, record.gid) if record else None


def _kind(before: FileState | None, after: FileState) -> ActionKind | None:
    if before is None:
        return ActionKind.CREATE
    if before.content != after.content:
        return ActionKind.REPLACE
    return None if before == after else ActionKind.ATTRIBUTES


def _removals(
    resource: Resource,
    files: Sequence[RenderedFile],
    disk: Mapping[str, FileState | None],
    manifest: Manifest,
) -> list[Action]:
    """Files of pruning templates that no key makes any more."""
    wanted = {file.dest for file in files}
    removals: list[Action] = []
    for dest, record in sorted(manifest.owned.items()):
        template = resource.templates[record.template] if record.template < len(resource.templates) else None
        before = disk.get(dest)
        if dest not in wanted and template is not None and template.prune and before is not None:
            removals.append(Action(ActionKind.REMOVE, dest, before, None, template.sensitive))
    return removals


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def record_of(state: FileState, template: int) -> FileRecord:
    return FileRecord(sha256(state.content), state.mode, state.uid, state.gid, template)


def content_hash(records: Mapping[str, FileRecord]) -> str:
    """One hash of all files of a resource: destinations, contents, modes and owners."""
    digest = hashlib.sha256()
    for dest, record in sorted(records.items()):
        digest.update(
            f"{dest}\0{record.sha256}\0{record.mode:o}\0{record.uid}\0{record.gid}\n".encode(errors="replace")
        )
    return digest.hexdigest()


def diff(plan: Plan) -> str:
    """A unified diff of the plan for a person; "" if nothing would change.

    Sensitive files show no content.
    """
    parts: list[str] = []
    for action in plan.actions:
        if action.sensitive:
            parts.append(f"# {action.dest}: {action.kind} (sensitive, content not shown)\n")
            continue
        parts.extend(_attribute_lines(action))
        before, after = _lines(action.before), _lines(action.after)
        names = (
            action.dest if action.before else "/dev/null",
            action.dest if action.after else "/dev/null",
        )
        for line in difflib.unified_diff(before, after, *names):
            parts.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(parts)


def _attribute_lines(action: Action) -> list[str]:
    if action.after is None:
        return []
    if action.before is None:
        owner = f"{action.after.uid}:{action.after.gid}"
        return [f"# {action.dest}: new, mode {action.after.mode:04o}, owner {owner}\n"]
    before, after = action.before, action.after
    lines: list[str] = []
    if before.mode != after.mode:
        lines.append(f"# {action.dest}: mode {before.mode:04o} -> {after.mode:04o}\n")
    if (before.uid, before.gid) != (after.uid, after.gid):
        lines.append(f"# {action.dest}: owner {before.uid}:{before.gid} -> {after.uid}:{after.gid}\n")
    return lines


def _lines(state: FileState | None) -> list[str]:
    return state.content.decode("utf-8", "replace").splitlines(keepends=True) if state else []
