"""The agent's own values: frozen, comparable, free of I/O.

Configuration becomes an ``AgentConfig`` and one ``Resource`` for each unit of apply, check, reload,
health and rollback. Keys become a ``Snapshot`` (one revision, never a mixture). Rendering makes
``RenderedFile``s, planning makes ``Action``s, and what happened is an ``Event``. Times are seconds in
fields that end in ``_s``; file modes are integers; a command is a list (executed as it is) or a string
(given to ``/bin/sh -c``), as in confd.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from etcd_agent.errors import AgentError

Command = tuple[str, ...] | str


class State(enum.StrEnum):
    """The state of a resource on this host, in the words of OpAMP's remote configuration status."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    WAITING_SLOT = "WAITING_SLOT"
    APPLYING = "APPLYING"
    APPLIED = "APPLIED"
    FAILED = "FAILED"
    ROLLED_BACK = "ROLLED_BACK"
    DRIFTED = "DRIFTED"


@dataclass(frozen=True, slots=True)
class Wait:
    """Quiescence: apply ``min_s`` after the last change, but no later than ``max_s`` after the first."""

    min_s: float = 0.0
    max_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Backoff of a failing resource or store: doubled from ``backoff_s`` to ``max_backoff_s``.

    ``attempts = 0`` means for ever; otherwise a resource is held after that many failures until a key
    changes.
    """

    attempts: int = 0
    backoff_s: float = 0.25
    max_backoff_s: float = 60.0
    jitter: bool = True


@dataclass(frozen=True, slots=True)
class Template:
    """One ``[[template]]``: a source rendered to one file, or with ``for_each`` to one file for each
    child key.

    ``in_place``: a destination that cannot be renamed over (a bind-mounted file) is overwritten.
    ``action``: what a change of this file needs instead of the resource's ``reload.action``. ``contents``:
    the template's text itself; ``src`` then only names it in messages. ``delimiters``: what stands for
    ``{{`` and ``}}``, and if there are four, for ``{%`` and ``%}``.
    """

    src: str
    dest: str
    owner: str | int | None = None
    group: str | int | None = None
    mode: int | None = None
    for_each: str | None = None
    prune: bool = False
    sensitive: bool = False
    in_place: bool = False
    action: str | None = None
    contents: str | None = None
    make_directories: bool = False
    delimiters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """What must accept the staged files before any of them is swapped in."""

    cmd: Command | None = None
    mode: str = "staged"
    format: str = "none"
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Reload:
    """How the service learns of new files: a command, or an action on a systemd unit, or a plugin."""

    cmd: Command | None = None
    unit: str | None = None
    action: str = "reload"
    splay_s: float = 0.0
    min_interval_s: float = 0.0
    timeout_s: float = 60.0

    @property
    def configured(self) -> bool:
        """True if the resource file itself says how to reload; a plugin then keeps its own way back."""
        return self.cmd is not None or self.unit is not None or self.action == "none"


@dataclass(frozen=True, slots=True)
class Health:
    """What must hold after the reload; otherwise the resource is rolled back."""

    http: str | None = None
    expect: int = 200
    cmd: Command | None = None
    retries: int = 5
    interval_s: float = 1.0
    timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Rollback:
    """Whether a failed reload or health check restores the previous files, and reloads with them."""

    enabled: bool = True
    reload: bool = True


@dataclass(frozen=True, slots=True)
class Rollout:
    """``[rollout]``: how many hosts of ``group`` may change at once. ``group`` "" means no coordination.

    ``canary`` are host ids that go first; ``bake_s`` is how long health must hold before the slot is given
    back; after more than ``max_failures`` rollbacks the group is halted; ``lease_ttl_s`` frees the slot of a
    dead host. A resource may override each but ``canary``.
    """

    group: str = ""
    max_concurrent: int = 1
    canary: tuple[str, ...] = ()
    bake_s: float = 0.0
    max_failures: int = 1
    lease_ttl_s: float = 120.0
    prefix: str = "/_agents/rollout"


@dataclass(frozen=True, slots=True)
class Resource:
    """One unit of apply: N templates, one check, one reload, one health check, one rollback.

    ``prefix`` is the agent's prefix and the resource's own, joined; ``keys`` are relative to it and each
    means the key itself and everything below it. ``plugins`` maps the name of an attached plugin to its
    settings.
    """

    name: str
    source: str
    prefix: str
    keys: tuple[str, ...]
    templates: tuple[Template, ...]
    wait: Wait = Wait()
    requires: tuple[str, ...] = ()
    drift: str = "repair"
    check: Check = Check()
    reload: Reload = Reload()
    health: Health = Health()
    rollback: Rollback = Rollback()
    rollout: Rollout = Rollout()
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def sensitive(self) -> bool:
        """Whether any file is: then no output of a command and no value may reach a message."""
        return any(template.sensitive for template in self.templates)

    def settings(self, plugin: str) -> Mapping[str, Any] | None:
        """The settings of ``plugin`` for this resource, or None when it is not attached."""
        return self.plugins.get(plugin)

    def covers(self, key: str) -> bool:
        """Whether the key (relative to the prefix) is one that this resource watches."""
        return any(key == known or key.startswith(known.rstrip("/") + "/") for known in self.keys)

    @property
    def ranges(self) -> tuple[str, ...]:
        """The absolute keys whose subtrees are read, without those that another one covers."""
        return minimal_ranges(self.prefix + key.rstrip("/") for key in self.keys)


def minimal_ranges(keys: Iterable[str]) -> tuple[str, ...]:
    """Drop every key that lies in the subtree of another: ``/a, /a/b, /ab`` -> ``/a, /ab``."""
    kept: list[str] = []
    for key in sorted(set(keys), key=lambda key: (key.count("/"), key)):
        if not any(key == top or key.startswith(top + "/") for top in kept):
            kept.append(key)
    return tuple(sorted(kept))


@dataclass(frozen=True, slots=True)
class Backend:
    """How the store is reached."""

    dial_timeout_s: float = 5.0
    request_timeout_s: float = 10.0
    serializable: bool = False
    watch_idle_s: float = 60.0
    retry: Retry = Retry()


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files (PEM) and the name with which the store is spoken to. The password is read from its file each
    time.
    """

    client_cert: str | None = None
    client_key: str | None = None
    client_cakeys: str | None = None
    username: str | None = None
    password_file: str | None = None


@dataclass(frozen=True, slots=True)
class Srv:
    """Where DNS names the store's members: the usual records of ``domain``, or one ``record`` in full."""

    domain: str
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Safety:
    """Guards between a rendered file and the disk."""

    error_on_missing_key: bool = True
    refuse_empty: bool = True
    max_removed_ratio: float = 0.5
    backups: int = 5
    sensitive_backups: bool = True
    accept_cluster: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """``[report]``: whether and where each host keeps its status in the store, with a lease of ``ttl_s``."""

    enabled: bool = False
    prefix: str = "/_agents/status"
    ttl_s: float = 90.0


@dataclass(frozen=True, slots=True)
class PluginsConfig:
    """Where plugins come from and which of them are refused."""

    dir: str
    disable: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ServiceCheck:
    """What shows that a service is well. Without any of the three it is, as long as the agent lives.

    ``rise`` successes in a row put it into the store, ``fall`` failures take it away.
    """

    tcp: str | None = None
    http: str | None = None
    expect: int = 200
    cmd: Command | None = None
    interval_s: float = 5.0
    timeout_s: float = 2.0
    rise: int = 2
    fall: int = 3

    @property
    def configured(self) -> bool:
        return self.tcp is not None or self.http is not None or self.cmd is not None


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """One ``[service]`` of this host: where it is (``address``), and under which key the store says so."""

    name: str
    source: str
    address: str
    key: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    ttl_s: int = 15
    check: ServiceCheck = ServiceCheck()


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """agent.toml and all resource files, checked.

    ``nodes`` is empty with ``srv`` until DNS has been asked. ``listen`` is "" (no pages), HOST:PORT of a
    loopback address, or unix:PATH; ``schema_prefix`` "" means no schemas; ``runtime_dir`` holds what the
    agents of one host share. ``sync_only``: files are written, but neither commands nor plugins
    check or reload; ``keep_stage_file``: what was staged last stays to be looked at.
    """

    source: str
    confdir: str
    state_dir: str
    nodes: tuple[str, ...]
    prefix: str
    watch: bool
    interval_s: float
    start_grace_s: float
    noop: bool
    log_level: str
    log_format: str
    host_id: str
    labels: Mapping[str, str]
    backend: Backend
    on_error: str
    safety: Safety
    plugins: PluginsConfig
    resources: tuple[Resource, ...]
    rollout: Rollout = Rollout()
    report: Report = Report()
    services: tuple[ServiceConfig, ...] = ()
    credentials: Credentials = Credentials()
    listen: str = ""
    schema_prefix: str = ""
    runtime_dir: str = "/run/etcd-py-agent"
    srv: Srv | None = None
    sync_only: bool = False
    keep_stage_file: bool = False

    @property
    def template_dir(self) -> str:
        return f"{self.confdir}/templates"


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the store as the agent sees it."""

    value: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Keys (absolute) of some ranges, all at ``revision`` of the cluster ``cluster_id``.

    ``schemas`` are the JSON Schemas in force, by the prefix whose values they describe; their revision may
    be another.
    """

    cluster_id: int
    revision: int
    entries: Mapping[str, Entry]
    schemas: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def data_revision(self) -> int:
        """The newest change among these keys: moves only when one of them does, unlike ``revision``."""
        return max((entry.mod_revision for entry in self.entries.values()), default=0)


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """A file as it should be.

    None for mode, uid or gid: keep what the file has (0644 and the agent's if new).
    """

    dest: str
    content: bytes
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    sensitive: bool = False
    template: int = 0


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it is on disk.

    ``attributes`` are extended ones to be set with it (none: those of the file that it replaces are kept);
    they make no difference between two states.
    """

    content: bytes
    mode: int
    uid: int
    gid: int
    attributes: tuple[tuple[str, bytes], ...] = field(default=(), compare=False)


class ActionKind(enum.StrEnum):
    CREATE = "create"
    REPLACE = "replace"
    ATTRIBUTES = "attributes"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Action:
    """One change of one file.

    ``content``, ``mode``, ``uid``, ``gid`` are the file afterwards (None: removed).
    """

    kind: ActionKind
    dest: str
    before: FileState | None
    after: FileState | None
    sensitive: bool = False


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file that waits for its check: ``path`` holds what will stand at ``dest``."""

    dest: str
    path: str
    changed: bool


@dataclass(frozen=True, slots=True)
class Staged:
    """What a check sees: all files of the resource as staged, and the destinations that would be removed."""

    directory: str
    files: tuple[StagedFile, ...]
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What stands on disk for a resource when it is reloaded and its health is checked.

    ``action`` is what the changed templates ask for, None if they leave it to ``[reload]``. ``keys`` are the
    (absolute) keys that differ from what was applied before.
    """

    revision: int
    files: tuple[str, ...]
    changed: tuple[str, ...]
    rollback: bool = False
    action: str | None = None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """A plugin's refusal: one line for a person, and the key or file it is about."""

    message: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a resource: ``kind`` is planned, written (the reload is yet to come), applied,
    unchanged, waiting, drifted, failed, rolled_back or resumed.

    ``repeated`` counts how often exactly this has been said before, in a row.
    """

    kind: str
    resource: str
    revision: int
    changed: tuple[str, ...] = ()
    detail: str = ""
    duration_s: float = 0.0
    repeated: int = 0


APPLIED, UNCHANGED, RESUMED, ROLLED_BACK, HELD = "applied", "unchanged", "resumed", "rolled_back", "held"
WAITING, WRITTEN, DRIFTED = "waiting", "written", "drifted"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a pass ended without an exception. ``error`` is why it was rolled back or is held.

    ``hash`` is that of the files that stand now, ``drift`` names those that another hand has changed.
    """

    kind: str
    revision: int
    changed: tuple[str, ...] = ()
    detail: str = ""
    error: str = ""
    reloaded: bool = False
    hash: str = ""
    drift: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """What is known of a resource: ``revision`` is the last one applied, ``hash`` that of its files.

    ``since`` is when it came into ``state``, in seconds since the epoch. ``waiting`` says in a word or two
    what the next pass waits for ("settling", "slot: 2 of 2 taken"; "" for nothing) and ``due_at`` until when
    (seconds since the epoch, 0 if that is not a matter of time). ``drift`` names files that were changed by
    another hand.
    """

    name: str
    state: State = State.UNKNOWN
    revision: int = 0
    since: float = 0.0
    error: str = ""
    reload_pending: bool = False
    passes: int = 0
    changes: int = 0
    hash: str = ""
    waiting: str = ""
    due_at: float = 0.0
    drift: tuple[str, ...] = ()


class Gate(Protocol):
    """Permission of the fleet to change this host: asked between check and swap, given back after health.

    Both methods are called from the thread of the resource's pass and must not wait for other hosts: a pass
    that is not let in ends as WAITING_SLOT, and starts anew, with the newest keys, when the gate says so
    through the ``wake(name)`` that it was made with (from any thread).
    """

    def acquire(self, resource: Resource, revision: int) -> str | None:
        """None: go on, the slot is this host's until ``release``. A line: why not yet.

        Called again after ``wake``; a slot that is held already is granted at once. ``revision`` is the one
        that would be applied. Raises StoreError if the store cannot be asked; the pass is then repeated with
        backoff, and the old files stay.
        """

    def release(self, resource: Resource, outcome: Outcome | AgentError) -> None:
        """The pass is over: reloaded and healthy for the bake time, rolled back, failed, or superfluous.

        Called at the end of every pass that did not end WAITING, whether it held a slot or not. Never raises.
        """

    def close(self) -> None:
        """The agent stops; slots of passes in work are left to their lease."""


class Reporter(Protocol):
    """Told of every change of a resource's status, in order, from the main loop; must not wait."""

    def changed(self, status: ResourceStatus) -> None: ...

    def close(self) -> None:
        """The agent stops."""
