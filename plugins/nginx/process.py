"""The running nginx: its master, its workers, and whether the workers that accept now are new ones.

``nginx -s reload`` exits 0 as soon as the signal is sent; whether the master took the new configuration shows
only in /proc: new workers appear and the old ones say that they are shutting down. Reads /proc and the pid
file; signals nothing.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from etcd_agent import ReloadError, idle

_POLL_S = 0.02
_PROC = "/proc"


@dataclass(frozen=True, slots=True)
class Worker:
    """``start`` is the kernel's start time in clock ticks: with the pid it names a process for good."""

    pid: int
    start: int
    leaving: bool


class HiddenError(ReloadError):
    """A process has nginx's pid, but /proc does not show it (hidepid, systemd's ProtectProc)."""


def master_pid(pid_file: str) -> int | None:
    """The pid in the file if a master of nginx runs under it, else None. Raises HiddenError."""
    try:
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read().strip() or "0")
    except (OSError, ValueError):
        return None
    if pid <= 0:
        return None
    if not os.path.exists(f"{_PROC}/{pid}") and _lives(pid):
        raise HiddenError(
            f"nginx's pid {pid} is in use, but /proc does not show it (ProtectProc?), so its workers cannot "
            "be watched; let it be seen, or give the resource a [reload] and a marker"
        )
    return pid if _title(pid).startswith("nginx: master") else None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def workers(master: int) -> tuple[Worker, ...]:
    """The master's worker processes (not its cache helpers)."""
    found = []
    for pid in _children(master):
        title = _title(pid)
        if title.startswith("nginx: worker process"):
            found.append(Worker(pid, _start(pid), "shutting down" in title))
    return tuple(found)


def await_new_workers(pid_file: str, before: tuple[Worker, ...], timeout_s: float) -> bool:
    """Wait until no worker of ``before`` accepts any more and a new one does; False if that takes too long.

    There is no event to wait for (the workers are another process's children), so /proc is polled.
    """
    old = {(worker.pid, worker.start) for worker in before}
    deadline_s = time.monotonic() + timeout_s
    while True:
        master = master_pid(pid_file)
        now = workers(master) if master is not None else ()
        accepting = {(worker.pid, worker.start) for worker in now if not worker.leaving}
        if accepting and not accepting & old:
            return True
        if time.monotonic() >= deadline_s:
            return False
        with idle():
            time.sleep(_POLL_S)


def _children(pid: int) -> list[int]:
    try:
        with open(f"{_PROC}/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or no such process
        return [int(name) for name in os.listdir(_PROC) if name.isdecimal() and _parent(int(name)) == pid]
    except OSError:
        return []


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything."""
    try:
        with open(f"{_PROC}/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else 0


def _start(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[19]) if fields else 0


def _title(pid: int) -> str:
    """What ``ps`` shows; "" for a process that has gone."""
    try:
        with open(f"{_PROC}/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""
