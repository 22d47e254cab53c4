"""Whether the program that a pid file names runs, for plugins that signal it."""

from __future__ import annotations

import os


def running(path: str, program: str) -> int | None:
    """The pid in the file if a ``program`` runs under it (or if /proc does not tell), else None."""
    try:
        with open(path, encoding="ascii") as file:
            pid = int(file.read().split()[0])
        os.kill(pid, 0)
    except PermissionError:
        return pid
    except (OSError, ValueError, IndexError, OverflowError):
        return None
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return pid if file.read().startswith(program) else None
    except OSError:  # hidden by hidepid or ProtectProc: the file's word is all there is
        return pid
