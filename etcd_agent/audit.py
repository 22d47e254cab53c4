"""Who changed what on this host: one JSON line for each apply, in ``audit.jsonl`` of the state directory.

A line names the keys with their old and new mod_revision, the files with their old and new hash, the result
and how long it took; the store's audit tells who wrote those revisions. It never holds a value, and no hash
of a sensitive file. The file is private (0600) and is renamed to ``audit.jsonl.1`` when it has grown long.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

from etcd_agent.manifest import Content, changed_keys
from etcd_agent.values import Resource

logger = logging.getLogger("etcd_agent.audit")

MAX_BYTES = 8 * 1024 * 1024


def changes(resource: Resource, before: Content, after: Content) -> dict[str, Any]:
    """The part of a line that says what was different: keys and files."""
    keys = changed_keys(before, after)
    files = {}
    for dest in sorted({*before.files, *after.files}):
        old, new = before.files.get(dest), after.files.get(dest)
        if old != new and not resource.sensitive:
            files[dest] = [old.sha256 if old else None, new.sha256 if new else None]
        elif old != new:
            files[dest] = ["sensitive" if old else None, "sensitive" if new else None]
    return {
        "keys": {key: [before.keys.get(key, 0), after.keys.get(key, 0)] for key in keys},
        "files": files,
        "revisions": [before.revision, after.revision],
    }


class Audit:
    """The file, and the same line in the log of ``etcd_agent.audit`` at debug. Safe from any thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. A disk that is full costs the line, which is logged instead, and nothing else."""
        text = json.dumps(line, sort_keys=False)
        try:
            with self._lock:
                self._append(text.encode() + b"\n")
            logger.debug("%s", text)
        except OSError as error:
            logger.error("%s: cannot be written: %s; the line is: %s", self._path, error.strerror, text)

    def _append(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size > MAX_BYTES:
            os.replace(self._path, f"{self._path}.1")

    def lines(self, resource: str) -> list[dict[str, Any]]:
        """What is remembered of a resource, oldest first. A torn last line is left out."""
        found: list[dict[str, Any]] = []
        for path in (f"{self._path}.1", self._path):
            if not os.path.exists(path):
                continue
            with open(path, "rb") as file:
                for line in file:
                    try:
                        document = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(document, dict) and document.get("resource") == resource:
                        found.append(document)
        return found
