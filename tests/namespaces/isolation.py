"""A place for a scenario: a process with mounts, processes and a network of its own.

The kernel takes all of it down when that process ends, in whatever way: the members, their file systems, the
interfaces and the rules. Nothing has a name outside, so that scenarios may run beside each other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.live import ROOT

LIMIT_S = 110
_APART = (
    *("unshare", "--mount", "--propagation", "private", "--net"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)
_PROBE = (
    "import pathlib, tempfile; from tests.namespaces.network import Network; "
    "Network(pathlib.Path(tempfile.mkdtemp()), 1).heal()"
)


@cache
def why_not() -> str:
    """Why scenarios cannot have hosts of their own here, in one line; nothing when they can."""
    try:
        done = subprocess.run(
            [*_APART, sys.executable, "-c", _PROBE],
            capture_output=True, text=True, timeout=30, check=False, cwd=ROOT,
        )  # fmt: skip
    except FileNotFoundError:
        return "there is no unshare"
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def perform(scenario: str, folder: Path, seed: int) -> str:
    """Run `scenarios.main` for one scenario in a place of its own; what it printed. Asserts that it held."""
    apart = () if why_not() else _APART
    hosts = "loopback" if why_not() else "namespaces"
    program = "import sys; from tests.namespaces.scenarios import main; main(*sys.argv[1:])"
    process = subprocess.Popen(
        [*apart, sys.executable, "-c", program, scenario, hosts, str(folder), str(seed)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    try:
        told, errors = process.communicate(timeout=LIMIT_S)
    finally:
        # Whatever is left of it: on loopback there is no namespace that ends with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, f"seed {seed}\n{told[-6000:]}\n{errors[-8000:]}"
    return told
