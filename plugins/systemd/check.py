"""``systemd-analyze verify`` on a unit with its staged drop-ins, without touching the real ones.

systemd takes units from a list of folders; a drop-in in an earlier one hides that of the same name in a later
one. So the staged files stand in a folder of their own before all others, and removed ones are hidden there.
"""

from __future__ import annotations

import os
import tempfile

from etcd_agent import Problem, Staged, commands


def verify(analyze: str, unit: str, staged: Staged, timeout_s: float) -> Problem | None:
    """What systemd dislikes about the staged files, or None. OSError if they cannot be laid out."""
    parent = os.path.dirname(staged.directory) or None
    with tempfile.TemporaryDirectory(prefix="systemd-check-", dir=parent) as directory:
        originals: dict[str, str] = {}
        for file in staged.files:
            if (name := _place(file.dest, unit)) is not None:
                copy = os.path.join(directory, name)
                os.makedirs(os.path.dirname(copy), exist_ok=True)
                with open(file.path, "rb") as source, open(copy, "wb") as target:
                    target.write(source.read())
                originals[copy] = file.dest
        for dest in staged.removed:
            if (name := _place(dest, unit)) is not None and name != unit:
                os.makedirs(os.path.join(directory, f"{unit}.d"), exist_ok=True)
                os.symlink("/dev/null", os.path.join(directory, name))
        if not originals:
            return None
        command = (analyze, "verify", "--man=no", "--", unit)
        result = commands.run(command, timeout_s=timeout_s, env={"SYSTEMD_UNIT_PATH": f"{directory}:"})
        for line in result.output.splitlines():
            # It ends with 0 when it ignores a directive; what it ignores is not what was meant.
            for copy, dest in originals.items():
                if copy in line:
                    return Problem(f"systemd-analyze verify: {line.strip().replace(copy, dest)}")
        return None if result.ok else Problem(result.reason(command, timeout_s))


def _place(dest: str, unit: str) -> str | None:
    """Where a file belongs in a folder of units: ``UNIT`` or ``UNIT.d/NAME.conf``; None for another file."""
    folder, name = os.path.split(dest)
    if name == unit:
        return unit
    if os.path.basename(folder) == f"{unit}.d" and name.endswith(".conf"):
        return f"{unit}.d/{name}"
    return None


def is_drop_in(dest: str, unit: str) -> bool:
    return (_place(dest, unit) or unit) != unit


def is_unit_file(dest: str, unit: str) -> bool:
    return _place(dest, unit) is not None
