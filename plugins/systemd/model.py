"""Drop-ins from keys, what ``systemctl show`` says, and whether a unit is well. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etcd_agent import View

from ..reading import Reader

PLUGIN = "systemd"
SECTIONS = (
    "Automount", "Install", "Mount", "Path", "Scope", "Service", "Slice", "Socket", "Swap", "Timer", "Unit",
)  # fmt: skip
_DIRECTIVE = re.compile(r"[A-Z][A-Za-z0-9]{1,79}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
PROPERTIES = (
    "LoadState", "ActiveState", "SubState", "Result", "NRestarts", "MainPID", "NeedDaemonReload",
    "DropInPaths",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Section:
    """``directives`` as they are written, one pair a line."""

    name: str
    directives: tuple[tuple[str, str], ...]


def build(view: View, top: str = "") -> tuple[Section, ...]:
    """The sections below ``top``: ``/Service/Environment`` is ``Environment=`` in ``[Service]``."""
    reader = _Reader(view)
    top = top.rstrip("/")
    for name in view.ls(top or "/"):
        if name not in SECTIONS:
            reader.fail(f"{top}/{name}", f"expected the name of a section: {', '.join(SECTIONS)}")
    return tuple(
        section for name in SECTIONS if (section := reader.section(f"{top}/{name}", name)).directives
    )


class _Reader(Reader):
    def section(self, key: str, name: str) -> Section:
        found: list[tuple[str, str]] = []
        for directive in self.children(key):
            at = f"{key}/{directive}"
            self.leaf(at)
            if not _DIRECTIVE.fullmatch(directive):
                self.fail(at, "expected the name of a directive, such as Environment")
            for value in self.text(at, _values, [""]):
                if _CONTROL.search(value) or value != value.strip() or value.endswith("\\"):
                    self.fail(at, "expected one line without white space or a backslash at its end")
                found.append((directive, value))
        return Section(name, tuple(found))


def _values(text: str) -> list[str]:
    """A text, or a JSON list of texts, of which each is a line; an empty one resets what was set before."""
    if text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            return [text]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    return [text]


def parse(output: str) -> dict[str, str]:
    """The properties in the output of ``systemctl show``."""
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def problem(
    unit: str,
    first: Mapping[str, str],
    then: Mapping[str, str],
    drop_ins: Sequence[str],
    require_active: bool,
) -> str | None:
    """Why the unit is not well, from two looks at it with some time between; None if it is.

    ``drop_ins`` are the files that systemd must have read. A unit that does not run is well, unless
    ``require_active``.
    """
    if (state := then.get("LoadState")) != "loaded":
        return f"{unit}: {state or 'systemd says nothing of it'}"
    if then.get("NeedDaemonReload") == "yes":
        return f"{unit}: systemd has not read its files again"
    used = then.get("DropInPaths", "").split()
    for path in drop_ins:
        if path not in used:
            return f"{unit}: systemd does not use {path}"
    active = then.get("ActiveState", "")
    if active == "failed":
        return f"{unit}: failed ({then.get('Result') or 'for no given reason'})"
    if active == "inactive":
        return f"{unit}: does not run" if require_active else None
    if active != "active":
        return f"{unit}: {active}, {then.get('SubState', '')}"
    if first.get("ActiveState") == "active":
        restarts = (first.get("NRestarts", "0"), then.get("NRestarts", "0"))
        if restarts[0] != restarts[1]:
            return f"{unit}: was restarted by systemd ({restarts[1]} times so far)"
        if first.get("MainPID") != then.get("MainPID"):
            return f"{unit}: its main process is another one a moment later"
        return None
    return f"{unit}: {first.get('ActiveState')} a moment ago"
