"""Servers to be measured: any binary that takes etcd's flags, started alike, watched through /proc, and
ended.

A server gets a new data directory on the disk that is to be measured, and free ports of the loopback address.
CPU time, memory and the time until it serves are read from outside, in the same way for all.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_LIMIT_S = 120
STOP_LIMIT_S = 30
POLL_S = 0.002
MIB = 1 << 20


class BenchError(Exception):
    """Something that keeps the benchmark from running; the text is one line for the user."""


@dataclass(frozen=True)
class Memory:
    """Resident memory in bytes: anonymous is the process's own, file-backed can be dropped by the kernel."""

    resident: int
    anonymous: int
    file: int


@dataclass(frozen=True)
class Binary:
    """A server program, and the name that the table gives it."""

    path: Path
    name: str

    @classmethod
    def of(cls, path: str) -> "Binary":
        """Finds a program, and asks it for its version. Raises BenchError when it cannot be run."""
        found = shutil.which(path)
        if found is None:
            raise BenchError(f"{path}: no such program")
        try:
            text = subprocess.run(
                [found, "--version"], capture_output=True, text=True, timeout=30, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise BenchError(f"{path} --version: {error}") from error
        version = re.search(r"\d+\.\d+\.\d+\S*", text)
        name = Path(found).name
        return cls(Path(found), f"{name} {version.group()}" if version else name)


class Server:
    """A running server. `start_s` is the time from its start until it answered its first linearizable
    read."""

    def __init__(self, binary: Binary, data_dir: Path) -> None:
        self.binary = binary
        self.data_dir = data_dir
        self._log_path = data_dir.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.start_s = 0.0

    def start(self) -> None:
        """Starts it, and waits until it serves. Raises BenchError with the end of its log when it does
        not."""
        client, peer = free_ports(2)
        self.address = f"127.0.0.1:{client}"
        client_url, peer_url = f"http://{self.address}", f"http://127.0.0.1:{peer}"
        arguments = {
            "--name": "bench",
            "--data-dir": str(self.data_dir),
            "--listen-client-urls": client_url,
            "--advertise-client-urls": client_url,
            "--listen-peer-urls": peer_url,
            "--initial-advertise-peer-urls": peer_url,
            "--initial-cluster": f"bench={peer_url}",
            "--quota-backend-bytes": str(8 << 30),
        }
        command = [str(self.binary.path), *(word for pair in arguments.items() for word in pair)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        started = time.monotonic()
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        while not serves(client_url):
            if self._process.poll() is not None or time.monotonic() - started > START_LIMIT_S:
                end = self._log_path.read_text(errors="replace").strip().splitlines()[-3:]
                self.stop()
                raise BenchError(f"{self.binary.name} does not serve: {' | '.join(end)}")
            time.sleep(POLL_S)
        self.start_s = time.monotonic() - started

    def stop(self) -> None:
        """Ends it: asks first, then kills."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def cpu_s(self) -> float:
        """CPU seconds that it has used since its start, user and system, all threads."""
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> Memory:
        """What it keeps in memory now."""
        status = dict(re.findall(r"^(\w+):\s+(\d+) kB$", self._proc("status"), re.MULTILINE))
        resident, anonymous = int(status["VmRSS"]), int(status["RssAnon"])
        return Memory(resident * 1024, anonymous * 1024, (resident - anonymous) * 1024)

    def disk_bytes(self) -> int:
        """What its data directory occupies."""
        return sum(path.stat().st_blocks * 512 for path in self.data_dir.rglob("*") if path.is_file())

    def _proc(self, name: str) -> str:
        assert self._process is not None
        try:
            return Path(f"/proc/{self._process.pid}/{name}").read_text()
        except OSError as error:
            raise BenchError(f"{self.binary.name} has ended by itself") from error


@contextlib.contextmanager
def running(binary: Binary, directory: Path) -> Iterator[Server]:
    """A server on an empty data directory; both are gone afterwards."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as folder:
        server = Server(binary, Path(folder) / "data")
        try:
            server.start()
            yield server
        finally:
            server.stop()


def serves(url: str) -> bool:
    """Whether /health is good: etcd answers it after a linearizable read."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return b'"true"' in response.read()
    except (urllib.error.URLError, OSError):
        return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
