"""Saved generations: what a resource's destinations held before an apply, byte for byte.

A generation is a directory ``generations/N`` of the resource's state: one file for each destination that
existed (0600 in a 0700 directory, whatever the destination's mode), and ``index.json``. It is made aside and
renamed, so it is complete or not there at all. It remembers the ``Content`` that it is, so that a person can
go back to it by number.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from etcd_agent.errors import FilesError
from etcd_agent.files import FileSystem
from etcd_agent.manifest import Content, content_from
from etcd_agent.values import FileState


@dataclass(frozen=True, slots=True)
class Generation:
    """``states`` holds every destination that the resource then owned or was about to own; None: no file."""

    number: int
    content: Content
    applied_at: float
    states: Mapping[str, FileState | None]


class Generations:
    """Those of one resource, below ``directory``."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self._files = files
        self._directory = directory

    def numbers(self) -> list[int]:
        return sorted(int(name) for name in self._files.names(self._directory) if name.isdigit())

    def save(self, generation: Generation) -> None:
        """Write it durably. Raises FilesError; then there is none of it."""
        self._files.make_directory(self._directory)
        final = f"{self._directory}/{generation.number}"
        partial = f"{final}.partial"
        self._files.remove_directory(partial)
        self._files.make_directory(partial)
        index: list[dict[str, object]] = []
        for at, (dest, state) in enumerate(sorted(generation.states.items())):
            if state is None:
                index.append({"dest": dest, "file": None})
                continue
            self._files.write_new(f"{partial}/{at}", state.content, durable=True)
            attributes = {name: base64.b64encode(value).decode() for name, value in state.attributes}
            about = {"mode": state.mode, "uid": state.uid, "gid": state.gid, "attributes": attributes}
            index.append({"dest": dest, "file": str(at), **about})
        document = {
            "content": asdict(generation.content),
            "applied_at": generation.applied_at,
            "files": index,
        }
        text = json.dumps(document, indent=1).encode()
        self._files.write_new(f"{partial}/index.json", text, durable=True)
        self._files.replace_directory(partial, final)

    def read(self, number: int) -> Generation:
        """Raises FilesError: it is not there, or damaged."""
        directory = f"{self._directory}/{number}"
        try:
            document = json.loads(self._content(f"{directory}/index.json"))
            states = {entry["dest"]: self._state(directory, entry) for entry in document["files"]}
            return Generation(number, content_from(document["content"]), document["applied_at"], states)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FilesError(f"{directory}: this saved generation is damaged: {error}") from error

    def remove(self, number: int) -> None:
        self._files.remove_directory(f"{self._directory}/{number}")

    def keep(self, count: int) -> None:
        """Remove all but the newest ``count``, and what a kill has left half made."""
        names = self._files.names(self._directory)
        numbers = sorted(int(name) for name in names if name.isdigit())
        newest = {str(number) for number in numbers[-count:]} if count else set()
        for name in names:
            if name not in newest:
                self._files.remove_directory(f"{self._directory}/{name}")

    def _state(self, directory: str, entry: Mapping[str, Any]) -> FileState | None:
        if entry["file"] is None:
            return None
        attributes = {name: base64.b64decode(value) for name, value in entry.get("attributes", {}).items()}
        content = self._content(f"{directory}/{entry['file']}")
        return FileState(content, entry["mode"], entry["uid"], entry["gid"], tuple(attributes.items()))

    def _content(self, path: str) -> bytes:
        state = self._files.read(path)
        if state is None:
            raise FilesError(f"{path}: is missing")
        return state.content
