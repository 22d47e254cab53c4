"""The container's steps in a clean root: what its file copies and runs, and the server as process 1 there.

No container engine is needed: a root file system of its own, and namespaces for processes and network.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CONTAINER = ROOT / "packaging/container"
FLAGS = (
    "-name", "etcd0", "-data-dir", "/data",
    "-advertise-client-urls", "http://10.0.0.1:2379", "-listen-client-urls", "http://0.0.0.0:2379",
    "-initial-advertise-peer-urls", "http://10.0.0.1:2380", "-listen-peer-urls", "http://0.0.0.0:2380",
    "-initial-cluster-token", "etcd-cluster-1", "-initial-cluster", "etcd0=http://10.0.0.1:2380",
    "-initial-cluster-state", "new",
)  # fmt: skip
"""As in etcd's own example of a container."""


class Container:
    """A root file system in which the steps of the Containerfile are taken."""

    def __init__(self, root: Path, base: Path, layers: Path) -> None:
        self.root = root
        self.process: subprocess.Popen[bytes] | None = None
        for each in ("upper", "work"):
            (layers / each).mkdir(parents=True)
        root.mkdir(exist_ok=True)
        option = f"lowerdir={base},upperdir={layers}/upper,workdir={layers}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", option, root], check=True)

    def build(self, repository: Path, offered: Path) -> None:
        """COPY and RUN."""
        text = (CONTAINER / "Containerfile").read_text()
        target = self.root / "usr/libexec/etcd-py-container"
        target.mkdir(parents=True)
        for name in re.findall(r"source/packaging/container/(\S+)", text):
            shutil.copy(CONTAINER / name, target)
        shutil.copytree(repository, self.root / "srv/etcd-py")
        shutil.copy(offered, self.root / "srv")
        (run,) = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
        self.inside("rpm", "-i", "/srv/offered.rpm")
        self.inside(run)

    def inside(self, *command: str) -> str:
        """Run a command there, in its network if the server runs."""
        entered = ["chroot", str(self.root)]
        if self.process is not None:
            entered = ["nsenter", "-t", str(self.first()), "-n", "-p", "-m", "-r"]
        done = subprocess.run(
            [*entered, "env", "-i", "PATH=/usr/sbin:/usr/bin", "ETCDCTL_API=3", *command],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def environment(self) -> list[str]:
        text = (CONTAINER / "Containerfile").read_text()
        return re.findall(r"(ETCD_\w+=\S+)", text)

    def run(self, *arguments: str) -> None:
        """`docker run IMAGE ARGUMENTS`, until it serves."""
        text = (CONTAINER / "Containerfile").read_text()
        (entry,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', text, re.MULTILINE)
        start = 'ip link set lo up && exec env -i PATH=/usr/sbin:/usr/bin "$@"'
        with open(self.root / "log", "wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--net", "--pid", "--fork", "--mount", "--kill-child", f"--root={self.root}",
                 "--mount-proc", "sh", "-c", start, "sh", *self.environment(), entry, *arguments],
                stdout=log, stderr=log,
            )  # fmt: skip
        until = time.monotonic() + 30
        while time.monotonic() < until and self.process.poll() is None:
            if self.first():
                health = [
                    "nsenter",
                    "-t",
                    str(self.first()),
                    "-n",
                    "curl",
                    "-fs",
                    "http://127.0.0.1:2379/health",
                ]
                if subprocess.run(health, capture_output=True, timeout=10, check=False).returncode == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.root / "log").read_text())

    def first(self) -> int:
        """The id, seen from here, of process 1 there."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def stop(self) -> int:
        """`docker stop`: SIGTERM to process 1. Returns its exit status."""
        assert self.process is not None
        os.kill(self.first(), signal.SIGTERM)
        status = self.process.wait(20)
        self.process = None
        return status


@pytest.fixture(scope="module")
def container(
    base: Path, disks: Path, repository: Path, offered: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    layers = disks / f"container-{os.getpid()}"
    container = Container(tmp_path_factory.mktemp("container") / "root", base, layers)
    try:
        container.build(repository, offered)
        yield container
    finally:
        if container.process is not None:
            container.process.kill()
            container.process.wait(10)
        subprocess.run(["umount", container.root], check=True)
        shutil.rmtree(layers)


def test_flags_of_etcd(container: Container) -> None:
    """Served as process 1, ended by SIGTERM, and the data are there at the next start."""
    container.run(*FLAGS)
    assert "etcd-py" in container.inside("cat", "/proc/1/cmdline")
    container.inside("etcdctl", "put", "greeting", "hello")
    assert container.stop() == 0
    assert "shutting down" in (container.root / "log").read_text()
    container.run("/usr/local/bin/etcd", *FLAGS)
    assert container.inside("etcdctl", "get", "--print-value-only", "greeting") == "hello\n"
    assert container.stop() == 0


def test_no_flags_and_other_commands(container: Container) -> None:
    """Without flags the container serves, too, and its data are in the volume."""
    shutil.rmtree(container.root / "data")
    container.run()
    assert (container.root / "data/state.db").exists()
    assert container.stop() == 0
    entry = "/usr/libexec/etcd-py-container/entrypoint.sh"
    assert "etcd Version" in container.inside(entry, "version")
    assert "no problem was found" in container.inside(entry, "verify", "/data")
    assert "etcd-pyctl" in container.inside(entry, "etcd-pyctl", "--version")
