"""Booted machines for tests: only with TEST_PACKAGES=1 in the environment, as `make test-packages` sets it.

They need root, systemd-nspawn, and packages that `make rpm` has built. ETCD_PY_REPOSITORY names the
repository if it is elsewhere, ETCD_PY_MACHINES where the machines' disks are to be.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages.booted.computer import Computer, Make
from tests.packages.booted.network import Host

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
LIMIT_S = 900

if os.environ.get("TEST_PACKAGES") != "1":
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of all waits for the root file system, one for the newer packages."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def disks() -> Path:
    return Path(os.environ.get("ETCD_PY_MACHINES", "/var/tmp/etcd-py-machines"))


@pytest.fixture(scope="session")
def base(disks: Path) -> Path:
    """The root file system that all machines start from."""
    for tool in ("systemd-nspawn", "mmdebstrap", "rpmbuild", "nsenter"):
        assert shutil.which(tool), f"{tool} is missing; scripts/setup.sh names its package"
    subprocess.run([HERE / "make_base.sh", disks / "base"], check=True, timeout=600)
    return disks / "base"


@pytest.fixture(scope="session")
def repository() -> Path:
    found = Path(os.environ.get("ETCD_PY_REPOSITORY", ROOT / "build/rpm/repository"))
    assert (found / "repodata").exists(), f"{found}: no repository; `make rpm` makes one"
    return found


@pytest.fixture(scope="session")
def offered(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that tells rpm what Debian's packages of the machine provide."""
    folder = tmp_path_factory.mktemp("offered")
    subprocess.run([HERE / "make_offered.sh", base, folder], check=True, timeout=60)
    return folder / "offered.rpm"


@pytest.fixture(scope="module")
def make(disks: Path, base: Path, repository: Path, offered: Path) -> Iterator[Make]:
    """Boots machines that have the repository at /srv/etcd-py, its .repo file, and nothing else of ours."""
    made: list[Computer] = []

    def make(name: str, host: Host | None = None) -> Computer:
        computer = Computer(disks / f"run-{os.getpid()}", base, name, host)
        made.append(computer)
        shutil.copytree(repository, computer.root / "srv/etcd-py")
        shutil.copy(offered, computer.root / "srv/offered.rpm")
        # Its address there; both lines of the file name it.
        text = re.sub(
            r"file://[^\n]*?(?=/RPM-GPG|\n)", "file:///srv/etcd-py", (repository / "etcd-py.repo").read_text()
        )
        computer.write("/srv/etcd-py/etcd-py.repo", f"{text}metadata_expire=0\n")
        computer.write("/etc/yum.repos.d/etcd-py.repo", f"{text}metadata_expire=0\n")
        computer.start()
        computer.shell("rpm -i /srv/offered.rpm")
        return computer

    yield make
    for computer in made:
        computer.throw_away()
    if made:
        (disks / f"run-{os.getpid()}").rmdir()
