"""The requests and answers that a program and the agent exchange: one JSON object each, with a version. Pure.

A request names the hook and holds what the hook is given; an answer holds what the hook returns. Members that
a program does not know it ignores; an answer's unknown members are refused: they are most likely a slip.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etcd_agent import Applied, Event, Problem, Resource, Snapshot, Staged

VERSION = 1
HOOKS = ("check_settings", "function", "validate", "reload", "health", "event")
# What each hook's answer may hold besides "version"; all of it may be left out.
_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "check_settings": ("problem",),
    "function": ("result", "error"),
    "validate": ("problem",),
    "reload": ("done", "error"),
    "health": ("problem",),
    "event": (),
}


class ProtocolError(Exception):
    """The program's answer is not one. One line."""


def request(hook: str, resource: Resource, settings: Mapping[str, Any], **more: Any) -> bytes:
    """The request for a hook: ``{"version": 1, "hook": ..., "resource": {...}, "settings": {...}, ...}``."""
    about = {
        "name": resource.name,
        "prefix": resource.prefix,
        "keys": list(resource.keys),
        "files": [template.dest for template in resource.templates],
    }
    data = {"version": VERSION, "hook": hook, "resource": about, "settings": dict(settings), **more}
    return json.dumps(data).encode() + b"\n"


def staged(value: Staged) -> dict[str, Any]:
    return {
        "files": [{"dest": file.dest, "path": file.path, "changed": file.changed} for file in value.files],
        "removed": list(value.removed),
    }


def applied(value: Applied) -> dict[str, Any]:
    return {
        "revision": value.revision,
        "files": list(value.files),
        "changed": list(value.changed),
        "rollback": value.rollback,
    }


def snapshot(value: Snapshot) -> dict[str, Any]:
    """All keys, absolute. A value that is not UTF-8 has its bytes as lone surrogates (Python's
    surrogateescape)."""
    keys = {key: entry.value.decode("utf-8", "surrogateescape") for key, entry in value.entries.items()}
    return {"revision": value.revision, "keys": keys}


def event(value: Event) -> dict[str, Any]:
    return {
        "kind": value.kind,
        "revision": value.revision,
        "changed": list(value.changed),
        "detail": value.detail,
        "duration_s": value.duration_s,
    }


def answer(hook: str, output: bytes) -> dict[str, Any]:
    """A program's answer, checked. Nothing at all is an answer: no objection, not my business."""
    if not output.strip():
        return {}
    try:
        data = json.loads(output)
    except ValueError as error:
        raise ProtocolError(f"its answer is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ProtocolError("its answer is not a JSON object")
    version = data.pop("version", VERSION)
    if version != VERSION:
        raise ProtocolError(f"it answers in version {version!r}; this agent speaks {VERSION}")
    for name in data:
        if name not in _ANSWERS[hook]:
            known = ", ".join(_ANSWERS[hook]) or "nothing"
            raise ProtocolError(f"its answer to {hook} has {name!r}; known: {known}")
    for name in ("error", "done"):
        if not isinstance(data.get(name), str | None):
            raise ProtocolError(f"{name}: expected a text")
    return data


def problem(data: Mapping[str, Any]) -> Problem | None:
    """``null``, a text, or ``{"message": ..., "where": ...}``."""
    value = data.get("problem")
    if value is None:
        return None
    if isinstance(value, str):
        value = {"message": value}
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("message"), str)
        or not isinstance(value.get("where", ""), str)
        or value.keys() - {"message", "where"}
    ):
        raise ProtocolError("problem: expected null, a text, or an object with message and where")
    return Problem(" ".join(value["message"].split()), value.get("where", ""))
