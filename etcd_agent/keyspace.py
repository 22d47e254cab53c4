"""The keys of a resource: a mirror of one subtree at one revision, and the view of it that templates read.

``Mirror`` is pure: it is given lists and watch batches, and holds the keys as of one revision; it never
mixes two. ``View`` answers confd's questions (get, gets, ls, lsdir) about a snapshot, with keys relative
to the resource's prefix, and refuses every key outside the resource's ``keys``: such a key is not
watched, so a file that used it would go stale without anybody noticing. Keys are text here; a key that is
not UTF-8 keeps its bytes as surrogates.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from etcd_agent.errors import RenderError
from etcd_agent.values import Entry, Resource, Snapshot


def key_text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def in_subtree(key: str, top: str) -> bool:
    """Whether ``key`` is ``top`` or lies below it: ``/ab`` is not below ``/a``."""
    return key == top or key.startswith(top + "/") or not top


class Mirror:
    """The keys below ``top`` (absolute) as of ``revision``; empty, at revision 0, until ``replace``."""

    def __init__(self, top: str) -> None:
        self.top = top
        self.cluster_id = 0
        self.revision = 0
        self._entries: dict[str, Entry] = {}

    def replace(self, cluster_id: int, revision: int, entries: Mapping[str, Entry]) -> bool:
        """Start anew from a list. Returns whether any key differs from what was held."""
        kept = {key: entry for key, entry in entries.items() if in_subtree(key, self.top)}
        changed = kept != self._entries or cluster_id != self.cluster_id
        self.cluster_id, self.revision, self._entries = cluster_id, revision, kept
        return changed

    def apply(self, revision: int, changes: Iterable[tuple[str, Entry | None]]) -> bool:
        """Apply a watch batch (None deletes) that brings the mirror to ``revision``.

        Returns whether a key changed.
        """
        entries = dict(self._entries)  # copy on write: snapshots handed out earlier stay as they were
        changed = False
        for key, entry in changes:
            if not in_subtree(key, self.top):
                continue
            changed = True
            if entry is None:
                entries.pop(key, None)
            else:
                entries[key] = entry
        if changed:
            self._entries = entries
        self.revision = max(self.revision, revision)
        return changed

    def snapshot(self) -> Snapshot:
        """All keys as they are now. Later changes of the mirror do not show in it."""
        return Snapshot(self.cluster_id, self.revision, self._entries)


def restrict(snapshot: Snapshot, tops: Sequence[str]) -> Snapshot:
    """The part of a snapshot that lies in the subtrees ``tops``."""
    entries = {
        key: entry for key, entry in snapshot.entries.items() if any(in_subtree(key, top) for top in tops)
    }
    return Snapshot(snapshot.cluster_id, snapshot.revision, entries)


class Pair(NamedTuple):
    """A key (relative to the resource's prefix) and its value; confd's field names work too."""

    key: str
    value: str

    @property
    def Key(self) -> str:
        return self.key

    @property
    def Value(self) -> str:
        return self.value


class View:
    """What one resource may read of a snapshot.

    Every method raises RenderError for a key that is not watched.
    """

    def __init__(self, resource: Resource, snapshot: Snapshot, *, error_on_missing_key: bool = True) -> None:
        self._resource = resource
        self._snapshot = snapshot
        self._error_on_missing_key = error_on_missing_key

    @property
    def resource(self) -> Resource:
        return self._resource

    @property
    def revision(self) -> int:
        return self._snapshot.revision

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        cut = len(self._resource.prefix)
        return {
            key[cut:] or "/": entry
            for key, entry in sorted(self._snapshot.entries.items())
            if in_subtree(key, self._resource.prefix) and self._resource.covers(key[cut:])
        }

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return list(self._entries)

    def exists(self, key: str) -> bool:
        return self._watched(key) in self._entries

    def get(self, key: str) -> Pair:
        """The pair of one key. RenderError if it does not exist."""
        entry = self._entries.get(self._watched(key))
        if entry is None:
            raise RenderError(f"key {self._absolute(key)} does not exist")
        return Pair(key, self._text(key, entry))

    def getv(self, key: str, *default: str) -> str:
        """The value of one key; ``default`` (or "" without ``error_on_missing_key``) if it does not exist."""
        if len(default) > 1:
            raise RenderError(f"getv takes a key and one default, not {len(default)}")
        entry = self._entries.get(self._watched(key))
        if entry is not None:
            return self._text(key, entry)
        if default:
            return default[0]
        if not self._error_on_missing_key:
            return ""
        raise RenderError(f"key {self._absolute(key)} does not exist and getv was given no default")

    def gets(self, pattern: str) -> list[Pair]:
        """The pairs whose keys match, sorted by key.

        ``*`` and ``?`` stop at a slash, as in confd. Empty is no error.
        """
        self._watched_pattern(pattern)
        return [
            Pair(key, self._text(key, entry))
            for key, entry in self._entries.items()
            if path_match(key, pattern)
        ]

    def getvs(self, pattern: str) -> list[str]:
        """The values whose keys match, sorted, as in confd."""
        return sorted(pair.value for pair in self.gets(pattern))

    def ls(self, key: str) -> list[str]:
        """The names directly below ``key``, sorted; its own name too if it has a value itself."""
        top = self._watched_above(key)
        names = set(self._children.get(top, ()))
        if top in self._entries:
            names.add(posixpath.basename(top))
        return sorted(names)

    def lsdir(self, key: str) -> list[str]:
        """The names directly below ``key`` that have keys below themselves, sorted."""
        top = self._watched_above(key)
        head = top.rstrip("/")
        return sorted(name for name in self._children.get(top, ()) if f"{head}/{name}" in self._children)

    @cached_property
    def _children(self) -> dict[str, set[str]]:
        """Every directory and the names directly in it."""
        found: dict[str, set[str]] = {}
        for key in self._entries:
            while key != "/":
                directory, _, name = key.rstrip("/").rpartition("/")
                names = found.setdefault(directory or "/", set())
                if name in names:
                    break  # and so are all above it
                names.add(name)
                key = directory or "/"
        return found

    def _text(self, key: str, entry: Entry) -> str:
        try:
            return entry.value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RenderError(
                f"the value of {self._absolute(key)} is not UTF-8 (byte {error.start})"
            ) from error

    def _absolute(self, key: str) -> str:
        return self._resource.prefix + key

    def _watched(self, key: str) -> str:
        if not isinstance(key, str) or not key.startswith("/"):
            raise RenderError(f"a key starts with '/', not {key!r}")
        plain = key.rstrip("/") or "/"
        if not self._resource.covers(plain):
            raise RenderError(
                f"key {plain!r} lies outside the resource's keys {list(self._resource.keys)}: not watched"
            )
        return plain

    def _watched_above(self, key: str) -> str:
        """As ``_watched``, but a directory above the watched keys shows its watched part."""
        plain = key.rstrip("/")
        if isinstance(key, str) and any(known.startswith(plain + "/") for known in self._resource.keys):
            return plain or "/"
        return self._watched(key)

    def _watched_pattern(self, pattern: str) -> None:
        fixed = pattern.split("*", 1)[0].split("?", 1)[0].split("[", 1)[0]
        self._watched(fixed.rsplit("/", 1)[0] or "/") if fixed != pattern else self._watched(pattern)


def path_match(key: str, pattern: str) -> bool:
    """Go's path.Match, as confd uses it: segment by segment, ``*`` never crosses a slash."""
    segments, wanted = key.split("/"), pattern.split("/")
    return len(segments) == len(wanted) and all(
        fnmatch.fnmatchcase(segment, want) for segment, want in zip(segments, wanted, strict=True)
    )
