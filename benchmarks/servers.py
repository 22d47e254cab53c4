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
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Place:
    """A member's name, and its addresses as URLs."""

    name: str
    client_url: str
    peer_url: str


def places(names: Sequence[str]) -> list[Place]:
    """Free addresses for members of these names."""
    ports = free_ports(2 * len(names))
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    return [Place(name, *urls[2 * number : 2 * number + 2]) for number, name in enumerate(names)]


class Server:
    """A running server, alone or a member of a cluster. `start_s` is the time from its start until it
    answered its first linearizable read."""

    def __init__(
        self, binary: Binary, data_dir: Path, members: Sequence[Place] = (), number: int = 0
    ) -> None:
        """The member `number` of `members`; without any, one alone that gets new addresses at each start."""
        self.binary = binary
        self.data_dir = data_dir
        self._members = members
        self._number = number
        self._log_path = data_dir.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.address = self.url = ""
        self._started_s = 0.0
        self.start_s = 0.0

    def start(self) -> None:
        """Starts it, and waits until it serves. Raises BenchError with the end of its log when it does
        not."""
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Starts it; it may have to wait for others before it serves."""
        members = self._members or places(["bench"])
        place = members[self._number]
        self.url = place.client_url
        self.address = place.client_url.removeprefix("http://")
        arguments = {
            "--name": place.name,
            "--data-dir": str(self.data_dir),
            "--listen-client-urls": place.client_url,
            "--advertise-client-urls": place.client_url,
            "--listen-peer-urls": place.peer_url,
            "--initial-advertise-peer-urls": place.peer_url,
            "--initial-cluster": ",".join(f"{one.name}={one.peer_url}" for one in members),
            "--quota-backend-bytes": str(8 << 30),
        }
        command = [str(self.binary.path), *(word for pair in arguments.items() for word in pair)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        self._started_s = time.monotonic()
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def wait(self) -> None:
        """Waits until it serves. Raises BenchError with the end of its log when it does not."""
        assert self._process is not None
        while not serves(self.url):
            if self._process.poll() is not None or time.monotonic() - self._started_s > START_LIMIT_S:
                end = self._log_path.read_text(errors="replace").strip().splitlines()[-3:]
                self.stop()
                raise BenchError(f"{self.binary.name} does not serve: {' | '.join(end)}")
            time.sleep(POLL_S)
        self.start_s = time.monotonic() - self._started_s

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)

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
        return cpu_s(self._pid, self.binary.name)

    def memory(self) -> Memory:
        """What it keeps in memory now."""
        return memory(self._pid, self.binary.name)

    def disk_bytes(self) -> int:
        """What its data directory occupies."""
        return sum(path.stat().st_blocks * 512 for path in self.data_dir.rglob("*") if path.is_file())

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid


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


def cpu_s(pid: int, program: str) -> float:
    """CPU seconds that a process has used since its start, user and system, all threads. Raises
    BenchError."""
    fields = _proc(pid, "stat", program).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, program: str) -> Memory:
    """What a process keeps in memory now. Raises BenchError."""
    status = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _proc(pid, "status", program), re.MULTILINE))
    resident, anonymous = int(status["VmRSS"]), int(status["RssAnon"])
    return Memory(resident * 1024, anonymous * 1024, (resident - anonymous) * 1024)


def _proc(pid: int, name: str, program: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError as error:
        raise BenchError(f"{program} has ended by itself") from error


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
