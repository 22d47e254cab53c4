"""Commands of an administrator: run with a limit, never able to hang the agent, never given its secrets.

Each runs in a session of its own with /dev/null as input and a file as output, so that neither a question nor
a child that keeps the output open can block. At the limit the whole process group is killed. A list is
executed as it is, a string by ``/bin/sh -c``; ``{{src}}`` and ``{{dest}}`` (confd's ``{{.src}}`` too) are
replaced, quoted for the shell.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from etcd_agent import workers
from etcd_agent.values import Command

_VARIABLE = re.compile(r"\{\{\s*\.?(src|dest)\s*\}\}")
_NOT_INHERITED = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
)
_KILL_GRACE_S = 2.0
_KEPT_OUTPUT_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. ``status`` is negative for a signal; ``output`` is the end of what it printed."""

    status: int
    output: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        return self.status == 0 and not self.timed_out

    def reason(self, command: Command, timeout_s: float) -> str:
        """One line: what ended how, with the last line that it printed."""
        how = (
            f"ran longer than {timeout_s:g} s and was killed"
            if self.timed_out
            else f"exit status {self.status}"
        )
        said = [line.strip() for line in self.output.splitlines() if line.strip()]
        return f"{shown(command)}: {how}" + (f": {said[-1]}" if said else "")


def uses(command: Command, variable: str) -> bool:
    """Whether the command mentions ``{{src}}`` or ``{{dest}}``."""
    text = command if isinstance(command, str) else "\0".join(command)
    return any(match.group(1) == variable for match in _VARIABLE.finditer(text))


def expand(command: Command, variables: Mapping[str, str]) -> Command:
    """Replace the variables that are given; in a shell string each becomes one quoted word."""
    if isinstance(command, str):
        return _VARIABLE.sub(lambda match: shlex.quote(variables.get(match.group(1), "")), command)
    return tuple(
        _VARIABLE.sub(lambda match: variables.get(match.group(1), ""), argument) for argument in command
    )


def shown(command: Command) -> str:
    """The command for a message."""
    text = command if isinstance(command, str) else shlex.join(command)
    return text if len(text) <= 80 else text[:77] + "..."


def run(command: Command, *, timeout_s: float, env: Mapping[str, str] | None = None) -> Result:
    """Run to the end or to the limit. Never raises; status 127 means that it could not be started."""
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    with tempfile.TemporaryFile(prefix="etcd-py-agent-") as output:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env={**inherited, **(env or {})},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return Result(127, f"cannot be started: {error}")
        with workers.idle():
            timed_out = not _ends_within(process, timeout_s)
            status = _kill(process) if timed_out else process.wait()
        size = os.fstat(output.fileno()).st_size
        output.seek(max(0, size - _KEPT_OUTPUT_BYTES))
        return Result(status, output.read().decode("utf-8", "replace"), timed_out)


def _kill(process: subprocess.Popen[bytes]) -> int:
    """End the whole process group: asked first, then forced, children that outlive the leader included."""
    _signal_group(process, signal.SIGTERM)
    _ends_within(process, _KILL_GRACE_S)
    _signal_group(process, signal.SIGKILL)
    # One that is stuck in the kernel dies when it leaves it.
    return process.wait() if _ends_within(process, _KILL_GRACE_S) else -signal.SIGKILL


def _ends_within(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    """Wait on the process's descriptor: ``Popen.wait`` with a limit polls, and is late by up to 50 ms."""
    descriptor = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, limit_s) * 1000))
    finally:
        os.close(descriptor)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
