"""What a resource has on disk, in a file that survives: it tells a restart what is still to be done.

One JSON file for each resource, replaced atomically (temporary file, fsync, rename, fsync of the
directory). Its ``phase`` is the only truth about an apply in progress:

    IDLE ──► SWAPPING ──► RELOADING ──► IDLE            applied
               │  ▲ │          ▲ │
               │  │ └► WRITTEN ┘ │                      the reload waits for its time
               │  └─────┘        │                      and newer files may come before it
               └─────────────────┴──► RESTORING ──► IDLE   rolled back

A crash in SWAPPING is completed forward if the staged files are intact, otherwise restored; in WRITTEN and
RELOADING the reload is run (again); in RESTORING the restoring is. ``reload_pending`` is true from before
the first file is swapped until a reload has succeeded, so no reload is ever lost: at worst one is repeated.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 2
READABLE = (1, FORMAT)


class Phase(enum.StrEnum):
    IDLE = "idle"
    SWAPPING = "swapping"
    WRITTEN = "written"
    RELOADING = "reloading"
    RESTORING = "restoring"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file that this resource owns: what was written last."""

    sha256: str
    mode: int
    uid: int
    gid: int
    template: int = 0


@dataclass(frozen=True, slots=True)
class Bad:
    """Content that failed, or was rolled back by a person, for keys as of ``data_revision``: not tried until
    either changes.
    """

    data_revision: int
    hash: str
    error: str


@dataclass(frozen=True, slots=True)
class Content:
    """A complete set of a resource's files and the store revision that they were rendered from.

    ``data_revision`` is the newest change among the resource's keys; ``hash`` identifies the files; ``keys``
    maps each (absolute) key to its mod_revision.
    """

    cluster_id: int = 0
    revision: int = 0
    data_revision: int = 0
    hash: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    keys: Mapping[str, int] = field(default_factory=dict)


def changed_keys(before: Content, after: Content) -> tuple[str, ...]:
    """The keys that were put or deleted between two contents, sorted."""
    keys = before.keys.keys() | after.keys.keys()
    return tuple(sorted(key for key in keys if before.keys.get(key) != after.keys.get(key)))


@dataclass(frozen=True, slots=True)
class Manifest:
    """``current`` is the acknowledged content: it moves only when an apply has succeeded.

    ``target`` is what SWAPPING, WRITTEN and RELOADING bring in, None when idle. ``removed`` and ``changed``
    are the destinations that the apply in progress removes and touches. ``generation`` is the number of the
    newest saved generation, the one that a rollback goes back to; 0 means none. IDLE with ``reload_pending``
    means that ``current`` stands on disk but the service may not have read it.
    """

    resource: str
    current: Content = Content()
    target: Content | None = None
    phase: Phase = Phase.IDLE
    reload_pending: bool = False
    generation: int = 0
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    bad: Bad | None = None
    applied_at: float = 0.0

    @property
    def owned(self) -> Mapping[str, FileRecord]:
        """Every file that this resource has written or is writing."""
        return {**self.current.files, **(self.target.files if self.target else {})}

    def refuses(self, content: Content) -> bool:
        """Whether exactly this content, from exactly these keys, has failed before."""
        return self.bad is not None and (self.bad.data_revision, self.bad.hash) == (
            content.data_revision,
            content.hash,
        )


def to_json(manifest: Manifest) -> bytes:
    return json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1, sort_keys=True).encode() + b"\n"


def from_json(data: bytes) -> Manifest:
    """The manifest in ``data``. Raises ValueError: not JSON, another format, a field of the wrong kind."""
    document = json.loads(data)
    if not isinstance(document, dict) or document.pop("format", None) not in READABLE:
        raise ValueError(f"not a manifest of format {FORMAT}")
    try:
        bad, target = document.pop("bad"), document.pop("target")
        return Manifest(
            phase=Phase(document.pop("phase")),
            current=content_from(document.pop("current")),
            target=content_from(target) if target else None,
            removed=tuple(document.pop("removed")),
            changed=tuple(document.pop("changed")),
            bad=Bad(**bad) if bad else None,
            **document,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a manifest: {error}") from error


def content_from(document: dict[str, Any]) -> Content:
    """A Content from its JSON object. Raises KeyError, TypeError or AttributeError for another one."""
    files = {dest: FileRecord(**record) for dest, record in document.pop("files").items()}
    return Content(files=files, **document)
