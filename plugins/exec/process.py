"""One run of the program: a request on its standard input, an answer from its standard output, a time limit.

Each run has a session of its own; at the limit all of it is killed. Input and outputs are files, so neither a
program that does not read nor a child that keeps an output open can block the agent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from etcd_agent import idle

MAX_ANSWER_BYTES = 64 * 1024 * 1024
_KEPT_ERRORS_BYTES = 16 * 1024
_KILL_GRACE_S = 2.0
_NOT_INHERITED = (
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: the answer, or why there is none ("" if there is one)."""

    output: bytes
    reason: str = ""


def run(command: Sequence[str], request: bytes, timeout_s: float) -> Ended:
    """Run the program once. Never raises."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    with (
        tempfile.TemporaryFile(prefix="etcd-py-agent-") as given,
        tempfile.TemporaryFile(prefix="etcd-py-agent-") as output,
        tempfile.TemporaryFile(prefix="etcd-py-agent-") as errors,
    ):
        given.write(request)
        given.seek(0)
        try:
            process = subprocess.Popen(
                command, stdin=given, stdout=output, stderr=errors, cwd="/", env=environment,
                start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            return Ended(b"", f"cannot be started: {error}")
        try:
            with idle():
                status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            return Ended(b"", f"ran longer than {timeout_s:g} s and was killed")
        if status != 0:
            size = os.fstat(errors.fileno()).st_size
            errors.seek(max(0, size - _KEPT_ERRORS_BYTES))
            said = [
                line.strip() for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()
            ]
            return Ended(b"", f"exit status {status}" + (f": {said[-1]}" if said else ""))
        if os.fstat(output.fileno()).st_size > MAX_ANSWER_BYTES:
            return Ended(b"", f"its answer is longer than {MAX_ANSWER_BYTES} bytes")
        output.seek(0)
        return Ended(output.read())


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_GRACE_S)
