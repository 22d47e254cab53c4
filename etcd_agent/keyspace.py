"""The keys of resources: a mirror of their subtrees at one revision, and the view of one that templates read.

``Mirror`` is pure: it is given lists and watch batches, and holds the keys as of one revision; it never
mixes two. It holds each subtree apart, so that a change costs no more with a thousand resources than with
one. ``View`` answers confd's questions (get, gets, ls, lsdir) about a snapshot, with keys relative
to the resource's prefix, and refuses every key outside the resource's ``keys``: such a key is not
watched, so a file that used it would go stale without anybody noticing. Keys are text here; a key that is
not UTF-8 keeps its bytes as surrogates.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from etcd_agent.errors import RenderError
from etcd_agent.values import Entry, Resource, Snapshot, minimal_ranges


def key_text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def in_subtree(key: str, top: str) -> bool:
    """Whether ``key`` is ``top`` or lies below it: ``/ab`` is not below ``/a``."""
    return key == top or key.startswith(top + "/") or not top


def watch_groups(tops: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Which subtrees one watch can follow: those below the same first part of their keys, by the nearest
    key that is above (or is) all of them. ``/p/a, /p/b, /q`` -> ``/p: (/p/a, /p/b), /q: (/q,)``.
    """
    by_first: dict[str, list[str]] = {}
    found = minimal_ranges(tops)
    for top in found:
        by_first.setdefault("/".join(top.split("/")[:2]), []).append(top)
    return {_common(group): tuple(group) for group in by_first.values()}


def _common(tops: Sequence[str]) -> str:
    parts = [top.split("/") for top in tops]
    shared = 0
    while all(len(each) > shared and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    return "/".join(parts[0][:shared])


class Mirror:
    """The keys of the subtrees ``tops`` (absolute) as of ``revision``; empty, at revision 0, until
    ``replace``.
    """

    def __init__(self, tops: Iterable[str]) -> None:
        self.cluster_id = 0
        self.revision = 0
        self._subtrees: dict[str, dict[str, Entry]] = {top: {} for top in tops}

    def replace(self, cluster_id: int, revision: int, entries: Mapping[str, Entry]) -> set[str]:
        """Start anew from a list. Returns the subtrees in which any key differs from what was held."""
        held: dict[str, dict[str, Entry]] = {top: {} for top in self._subtrees}
        for key, entry in entries.items():
            for top in self._tops_of(key):
                held[top][key] = entry
        changed = {top for top in held if held[top] != self._subtrees[top]}
        if cluster_id != self.cluster_id:
            changed = set(held)
        self.cluster_id, self.revision, self._subtrees = cluster_id, revision, held
        return changed

    def apply(self, revision: int, changes: Iterable[tuple[str, Entry | None]]) -> set[str]:
        """Apply a watch batch (None deletes) that brings the mirror to ``revision``.

        Returns the subtrees in which a key changed.
        """
        copied: set[str] = set()  # copy on write: snapshots handed out earlier stay as they were
        for key, entry in changes:
            for top in self._tops_of(key):
                if top not in copied:
                    copied.add(top)
                    self._subtrees[top] = dict(self._subtrees[top])
                if entry is None:
                    self._subtrees[top].pop(key, None)
                else:
                    self._subtrees[top][key] = entry
        self.revision = max(self.revision, revision)
        return copied

    def snapshot(self, tops: Sequence[str] | None = None) -> Snapshot:
        """The keys of ``tops`` (all if None) as they are now. Later changes do not show in it."""
        wanted = self._subtrees if tops is None else tops
        entries: Mapping[str, Entry]
        if len(wanted) == 1:
            (top,) = wanted
            entries = self._subtrees[top]
        else:
            entries = {key: entry for top in wanted for key, entry in self._subtrees[top].items()}
        return Snapshot(self.cluster_id, self.revision, entries)

    def _tops_of(self, key: str) -> Iterator[str]:
        """Those that the key lies in: the key itself, and all that is above it."""
        while True:
            if key in self._subtrees:
                yield key
            if not key:
                return
            key = key.rpartition("/")[0]


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
