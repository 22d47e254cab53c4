"""The running HAProxy: its admin socket, its master, and the wait until a reload has taken.

A reload (SIGUSR2, or ``reload`` on the master's socket) says nothing of its outcome: with a configuration
that cannot be used the master keeps its old workers. What tells is who answers the admin socket now.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from etcd_agent import ReloadError, idle

from .. import pidfile
from . import runtime

_POLL_S = 0.02
_ASK_TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_FAILED = re.compile(r"\[failed: (\d+)\]")
_PID = re.compile(r"^Pid: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Process:
    """The worker that answers now. ``structure`` is what it holds under the resource's variable."""

    pid: int
    structure: str
    servers: runtime.Servers


def ask(path: str, command: str, timeout_s: float = _ASK_TIMEOUT_S) -> str:
    """One command, its answer whole. OSError when nobody answers in time."""
    deadline_s = time.monotonic() + timeout_s
    with idle(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        connection.sendall(command.encode() + b"\n")
        connection.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while part := connection.recv(65_536):
            answer += part
            if len(answer) > _MAX_ANSWER_BYTES or time.monotonic() > deadline_s:
                raise TimeoutError(f"{path}: the answer to {command.split()[0]} does not end")
    return answer.decode("utf-8", "replace")


def look(path: str, variable: str) -> Process | None:
    """Who answers the socket; None if nobody does. ReloadError when it answers something else."""
    try:
        pid = _PID.search(ask(path, "show info"))
        held = ask(path, f"show env {variable}").strip()
        servers = runtime.running(ask(path, "show servers state"))
    except OSError:
        return None
    except ValueError as error:
        raise ReloadError(f"{path}: {error}") from error
    name, _, structure = held.partition("=")
    return Process(int(pid.group(1)) if pid else 0, structure if name == variable else "", servers)


def change(path: str, commands: list[str]) -> None:
    """Change servers; one connection for each command. Whether they took is read back afterwards."""
    for command in commands:
        ask(path, command)


def master_pid(pid_file: str) -> int | None:
    """The pid in the file if a haproxy runs under it, else None."""
    return pidfile.running(pid_file, "haproxy")


def reload(master_socket: str, pid_file: str) -> None:
    """Ask the master to read its files again. ReloadError when it cannot be asked."""
    if master_socket:
        try:
            ask(master_socket, "reload")
        except OSError as error:
            raise ReloadError(f"the master cannot be asked to reload: {error}") from error
        return
    pid = master_pid(pid_file)
    if pid is None:
        raise ReloadError(f"no master of haproxy runs under the pid in {pid_file}")
    try:
        os.kill(pid, signal.SIGUSR2)
    except OSError as error:
        raise ReloadError(f"haproxy's master ({pid}) cannot be signalled: {error.strerror}") from error


def reload_failed(master_socket: str) -> bool:
    """Whether the master says that its last reload failed; False where it cannot be asked."""
    if not master_socket:
        return False
    try:
        found = _FAILED.search(ask(master_socket, "show proc"))
    except OSError:
        return False
    return found is not None and int(found.group(1)) > 0


def await_process(
    look_again: Callable[[], Process | None],
    is_it: Callable[[Process], bool],
    timeout_s: float,
    failed: Callable[[], bool],
) -> bool:
    """Wait until a process that ``is_it`` answers; False at the limit, or as soon as the reload ``failed``.

    There is no event to wait for: another process's children take over, so the socket is polled.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        process = look_again()
        if process is not None and is_it(process):
            return True
        if time.monotonic() >= deadline_s or failed():
            return False
        with idle():
            time.sleep(_POLL_S)
