"""A computer of its own: systemd as process 1, a disk, a network; booted in under a second by systemd-nspawn.

Its disk is an overlay over a root file system that all share, so that what one does, nobody else sees. It is
shut down or loses its power, and boots again with what its disk then held. Only processes that were started
here are ended, by their ids.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.packages.booted.network import Host

CGROUPS = next(p for p in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")) if p.exists())
# firewalld and IPAddressDeny= need more than nspawn gives; a container's usual limits are left as they are.
RIGHTS = ("--capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON", "--system-call-filter=bpf")
ENVIRONMENT = (
    "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LANG=C.UTF-8", "TERM=dumb",
    "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", "ETCDCTL_API=3",
)  # fmt: skip
POWER_OFF = signal.SIGRTMIN + 4
"""What systemd takes as an order to shut down."""


class Computer:
    """One of them. `host`: its place in a network; without one it has only its loopback."""

    def __init__(self, folder: Path, base: Path, name: str, host: Host | None = None) -> None:
        self.name = name
        self.host = host
        self.root = folder / name / "root"
        self._folder = folder / name
        self._base = base
        self._cgroup = CGROUPS / f"etcd-py-{os.getpid()}-{name}"
        self._process: subprocess.Popen[bytes] | None = None
        for each in ("upper", "work", "root"):
            (self._folder / each).mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir={base},upperdir={self._folder}/upper,workdir={self._folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        (self.root / "etc/hostname").write_text(f"{name}\n")

    # --- power --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot, until systemd says that it is up."""
        self._cgroup.mkdir(exist_ok=True)
        network = (
            f"--network-namespace-path=/run/netns/{self.host.namespace}" if self.host else "--private-network"
        )
        joined = f'echo $$ >{self._cgroup}/cgroup.procs && exec "$@"'
        with open(self._folder / "console", "ab") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", joined, "sh", "systemd-nspawn", "--quiet", f"--directory={self.root}",
                 f"--machine={self.name}", "--register=no", "--keep-unit", network, "--boot",
                 "--console=pipe", "--resolv-conf=off", "--timezone=off", "--link-journal=no", *RIGHTS],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                env={"PATH": os.environ["PATH"], "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )  # fmt: skip
        self.wait_for("systemctl is-system-running | grep -qE 'running|degraded'", limit_s=60)
        self.shell("ip link set lo up")

    def shut_down(self) -> None:
        """As `poweroff` does: services are stopped in order."""
        self._end(POWER_OFF, limit_s=60)

    def cut_power(self) -> None:
        """Everything on it stops at once; nobody gets to say anything."""
        if self.host:
            self.host.unplug()
        self._end(signal.SIGKILL, limit_s=20)

    def reboot(self) -> None:
        self.shut_down()
        self.start()

    def throw_away(self) -> None:
        if self._process is not None:
            self._end(signal.SIGKILL, limit_s=20)
        subprocess.run(["umount", self.root], check=True)
        shutil.rmtree(self._folder)

    def _end(self, how: signal.Signals | int, limit_s: float) -> None:
        assert self._process is not None, f"{self.name} does not run"
        leader = self._leader()
        if leader:
            os.kill(leader, how)
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            if leader:
                os.kill(leader, signal.SIGKILL)
            self._process.kill()
            self._process.wait(10)
            raise
        finally:
            self._process = None
            self._remove_cgroups()

    def _remove_cgroups(self) -> None:
        """Those that nspawn left: in ours, and where the host has them, in systemd's of the first version."""
        for top in (self._cgroup, Path("/sys/fs/cgroup/systemd") / self._cgroup.name):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # something in it has not ended yet
                    os.rmdir(folder)

    def _leader(self) -> int:
        """The id, seen from here, of its process 1; 0 while there is none."""
        assert self._process is not None, f"{self.name} does not run"
        try:
            children = (
                Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            )
            for child in children:
                status = Path(f"/proc/{child}/status").read_text()
                ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                if ids[-1] == "1" and len(ids) > 2:
                    return int(child)
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return 0

    # --- commands -----------------------------------------------------------------------------------------

    def run(self, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command there as its administrator, whatever comes of it."""
        entered = ["nsenter", "-t", str(self._leader()), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        return subprocess.run(
            [*entered, *ENVIRONMENT, *command],
            capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def shell(self, script: str, timeout_s: float = 60) -> str:
        """What a shell script writes to standard output. It has to succeed."""
        done = self.run("sh", "-c", script, timeout_s=timeout_s)
        assert done.returncode == 0, (
            f"{self.name}: {script}\nstatus {done.returncode}\n{done.stdout}{done.stderr}\n{self._journal()}"
        )
        return done.stdout

    def spawn(self, script: str) -> subprocess.Popen[str]:
        """Run a shell script there beside what the test does."""
        entered = ["nsenter", "-t", str(self._leader()), "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        return subprocess.Popen(
            [*entered, *ENVIRONMENT, "sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def refuses(self, script: str) -> str:
        """What a script says that must not succeed."""
        done = self.run("sh", "-c", script)
        assert done.returncode != 0, f"{self.name}: {script}\nsucceeded\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def wait_for(self, script: str, limit_s: float = 30) -> None:
        """Until a script succeeds."""
        until = time.monotonic() + limit_s
        while True:
            if self._leader() and self.run("sh", "-c", script).returncode == 0:
                return
            if time.monotonic() > until:
                raise AssertionError(f"{self.name}: not within {limit_s:g} s: {script}\n{self._journal()}")
            time.sleep(0.05)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def _journal(self) -> str:
        if not self._process or not self._leader():
            return (self._folder / "console").read_text(errors="replace")[-2000:]
        units = ("-u", "etcd-py", "-u", "etcd-py-agent")
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", "25", *units).stdout


Make = Callable[..., Computer]
"""make(name, host=None): one that is up, with the repository of our packages."""
