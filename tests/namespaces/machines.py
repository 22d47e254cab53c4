"""Three real members, each at a host of its own, and signals, disks and questions for them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import requests

from tests.live import wait_until
from tests.live_cluster import TOKEN, LiveCluster, LiveMember
from tests.namespaces.network import Loopback, run

RECOVERY_LIMIT_S = 30.0


class Machine(LiveMember):
    """The member at host `number`, 1, 2, ...; its name is "infra<number>"."""

    def __init__(self, folder: Path, number: int, hosts: Loopback, *, disk_bytes: int = 0) -> None:
        """disk_bytes: of a small file system for its data directory; 0: none, it lies in `folder`."""
        folder.mkdir()
        disk = folder / "disk"
        disk.mkdir()
        if disk_bytes:
            run("mount", "-t", "tmpfs", "-o", f"size={disk_bytes}", "tmpfs", str(disk))
        super().__init__(folder, name=f"infra{number}", data_dir=disk / "data")
        self.number = number
        self.disk = disk
        host = hosts.address(number)
        self.address = f"{host}:{self.client_port}"
        self.url = f"http://{self.address}"
        self.peer_url = f"http://{host}:{self.peer_port}"
        self._command = [*hosts.inside(number), *self._command]
        self.add_flags(
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *("--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url),
        )

    def pause(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: self._state() == "T", f"{self.name} has stopped")

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def _state(self) -> str:
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    def metric(self, name: str) -> float:
        """The sum over all labels; 0 when it does not answer."""
        try:
            text = requests.get(f"{self.url}/metrics", timeout=2).text
        except requests.RequestException:
            return 0.0
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


class Machines(LiveCluster):
    """Members 1 to 3 at `hosts`, not started; a context manager that ends them."""

    def __init__(
        self, folder: Path, hosts: Loopback, *, flags: Sequence[str] = (), disk_bytes: int = 0
    ) -> None:
        self.hosts = hosts
        self.machines = [
            Machine(folder / f"infra{number}", number, hosts, disk_bytes=disk_bytes) for number in (1, 2, 3)
        ]
        self.members = list[LiveMember](self.machines)
        self.initial_cluster = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.machines:
            member.add_flags(
                *("--initial-cluster", self.initial_cluster, "--initial-cluster-state", "new"),
                *("--initial-cluster-token", TOKEN, *flags),
            )

    def __exit__(self, *_: object) -> None:
        for member in self.machines:
            if member.process is not None and member.process.poll() is None:
                member.resume()
        super().__exit__()

    def head(self, *besides: Machine) -> Machine:
        """The leader."""
        found = self.leader(*besides)
        assert isinstance(found, Machine)
        return found

    def others(self, *machines: Machine) -> list[Machine]:
        return [machine for machine in self.machines if machine not in machines]

    def recover(self) -> float:
        """Wait until all follow one leader and answer a linearizable read; how many seconds that took."""
        begun_s = time.monotonic()

        def is_well() -> bool:
            told = [machine.status(1.0) for machine in self.machines]
            leaders = {0 if status is None else status.leader for status in told}
            return len(leaders) == 1 and 0 not in leaders and all(map(_answers, self.machines))

        wait_until(is_well, f"all are well again\n{self.describe()}", RECOVERY_LIMIT_S)
        return time.monotonic() - begun_s

    def describe(self) -> str:
        """What each says of itself, and the end of its log, for a person who asks what went wrong."""
        return "\n".join(
            f"{machine.name}: {machine.status(1.0)}\n{machine.log_tail(12)}" for machine in self.machines
        )

    def stop_all(self) -> None:
        """SIGTERM to all at once; every one must end well."""
        for machine in self.machines:
            machine.signal(signal.SIGTERM)
        for machine in self.machines:
            assert machine.process is not None
            try:
                status = machine.process.wait(20)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"{machine.name} does not stop\n{machine.log_tail()}") from None
            machine.process = None
            assert status == 0, f"{machine.name} ended with {status}\n{machine.log_tail()}"


def _answers(machine: Machine) -> bool:
    """It gives a linearizable read, for which a quorum must know the leader, and it must be up to date."""
    with machine.calls() as calls:
        try:
            calls.range(key=b"k", timeout_s=2.0)
        except grpc.RpcError:
            return False
    return True
