"""Three members are upgraded one after the other while a client writes; then one goes back.

The tests are one story, in the order of this file. The newer packages are built from the same source, in
which the version, and the text of a setting that stands in the configuration file, have been changed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.packages.booted.computer import Computer, Make
from tests.packages.booted.network import Network

ROOT = Path(__file__).resolve().parents[3]
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
OLDER = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NEWER = f"{OLDER}.1"
PAUSE_S = 4.0
"""The longest that a client may wait for one write, elections included."""

WRITER = """
import json, os, sys, time
sys.path.insert(0, "/usr/lib/etcd-py/site-packages")
from etcd_client import Client, errors
written, failed, longest_s, number = [], [], 0.0, 0
with Client(sys.argv[1], timeout_s=5) as client:
    while not os.path.exists("/srv/enough"):
        number += 1
        began = time.monotonic()
        try:
            client.put(f"/load/{number}", str(number))
            written.append(number)
        except errors.EtcdError as error:
            failed.append([number, repr(error)])
        longest_s = max(longest_s, time.monotonic() - began)
        if number == 1:
            open("/srv/writing", "w").close()
        time.sleep(0.002)
json.dump({"written": written, "failed": failed, "longest_s": longest_s}, open("/srv/told", "w"))
"""


@pytest.fixture(scope="module")
def newer(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the version after this one."""
    folder = tmp_path_factory.mktemp("newer")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    edits = {
        "pyproject.toml": (f'version = "{OLDER}"', f'version = "{NEWER}"'),
        "etcd_server/version.py": (f'VERSION: Final = "{OLDER}"', f'VERSION: Final = "{NEWER}"'),
        "etcd_server/flags.py": ("Name of this member, for people", "Name of this member, as people say"),
    }
    for name, (before, after) in edits.items():
        text = (source / name).read_text()
        assert before in text, f"{name}: {before}"
        (source / name).write_text(text.replace(before, after))
    environment = {"SOURCE": source, "OUTPUT": repository.parent, "REPOSITORY": folder / "repository"}
    done = subprocess.run(
        ["env", *(f"{name}={value}" for name, value in environment.items()), ROOT / "packaging/rpm/build.sh"],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "repository"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network(len(ADDRESSES) + 1)
    yield network
    network.take_down()


@pytest.fixture(scope="module")
def members(network: Network, make: Make) -> list[Computer]:
    def member(number: int) -> Computer:
        computer = make(f"m{number}", network.hosts[number])
        computer.shell("yum -y install etcd-py etcd-py-agent", timeout_s=120)
        address = ADDRESSES[number]
        settings = {
            "NAME": f"m{number}",
            "LISTEN_CLIENT_URLS": f"http://{address}:2379,http://127.0.0.1:2379",
            "ADVERTISE_CLIENT_URLS": f"http://{address}:2379",
            "LISTEN_PEER_URLS": f"http://{address}:2380",
            "INITIAL_ADVERTISE_PEER_URLS": f"http://{address}:2380",
            "INITIAL_CLUSTER": ",".join(f"m{n}=http://{each}:2380" for n, each in enumerate(ADDRESSES)),
        }
        for name, value in settings.items():
            computer.shell(
                f"sed -i 's#^\\#*ETCD_{name}=.*#ETCD_{name}=\"{value}\"#' /etc/etcd-py/etcd-py.conf"
            )
        computer.shell("systemctl enable etcd-py && systemctl --no-block start etcd-py")
        computer.shell("systemctl enable --now etcd-py-agent", timeout_s=120)
        return computer

    with ThreadPoolExecutor() as at_once:
        made = list(at_once.map(member, range(len(ADDRESSES))))
    for computer in made:
        computer.wait_for("systemctl is-active etcd-py")
    return made


@pytest.fixture(scope="module")
def client(network: Network, make: Make) -> Computer:
    computer = make("client", network.hosts[-1])
    computer.shell("yum -y install etcd-py-libs", timeout_s=120)
    computer.write("/srv/writer.py", WRITER)
    return computer


def main_pid(computer: Computer, unit: str) -> str:
    return computer.shell(f"systemctl show -p MainPID --value {unit}").strip()


def offer(computer: Computer, repository: Path) -> None:
    """Put other packages into the repository that the machine asks."""
    shutil.rmtree(computer.root / "srv/etcd-py")
    shutil.copytree(repository, computer.root / "srv/etcd-py")


def upgrade(computer: Computer, newer: Path) -> None:
    """The packages, and then the member, which is not restarted by them."""
    offer(computer, newer)
    server, agent = main_pid(computer, "etcd-py"), main_pid(computer, "etcd-py-agent")
    computer.shell("yum -y upgrade 'etcd-py*'", timeout_s=120)
    assert main_pid(computer, "etcd-py") == server
    computer.wait_for("systemctl is-active etcd-py-agent")
    assert main_pid(computer, "etcd-py-agent") != agent
    running = json.loads(computer.shell("curl -fs http://127.0.0.1:2379/version"))
    assert running["etcdserver"]
    computer.shell("systemctl restart etcd-py", timeout_s=120)
    assert main_pid(computer, "etcd-py") != server
    assert f"etcd-py Version: {NEWER}" in computer.shell("etcd-py --version")


def test_member_by_member_under_load(members: list[Computer], client: Computer, newer: Path) -> None:
    endpoints = ",".join(f"http://{address}:2379" for address in ADDRESSES)
    writer = client.spawn(f"/usr/bin/python3.11 -I -S /srv/writer.py {endpoints}")
    client.wait_for("test -e /srv/writing")
    for computer in members:
        upgrade(computer, newer)
    client.shell("touch /srv/enough")
    said, _ = writer.communicate(timeout=30)
    assert writer.returncode == 0, said
    told = json.loads(client.read("/srv/told"))
    print(f"{len(told['written'])} writes, the longest {told['longest_s']:.2f} s")
    assert told["failed"] == []
    assert told["longest_s"] < PAUSE_S
    assert len(told["written"]) > 100
    for computer in members:
        found = computer.shell("etcdctl get --prefix --keys-only /load/ | grep . | sort -u").split()
        assert set(found) >= {f"/load/{number}" for number in told["written"]}


def test_settings_are_kept(members: list[Computer]) -> None:
    for number, computer in enumerate(members):
        assert f'ETCD_NAME="m{number}"' in computer.read("/etc/etcd-py/etcd-py.conf")
        new = computer.read("/etc/etcd-py/etcd-py.conf.rpmnew")
        assert 'ETCD_NAME="default"' in new and "as people say" in new
        # A file that nobody changed is the new one.
        assert "as people say" in computer.read("/etc/etcd-py/etcd-py.toml")
        assert computer.run("test", "-e", "/etc/etcd-py/etcd-py.toml.rpmnew").returncode == 1


def test_back(members: list[Computer], repository: Path, newer: Path) -> None:
    """The older version takes the data up again, because their format is the same."""
    computer = members[0]
    offer(computer, repository)
    computer.shell("yum -y downgrade etcd-py etcd-py-agent etcd-py-libs", timeout_s=120)
    computer.shell("systemctl restart etcd-py")
    assert f"etcd-py Version: {OLDER}" in computer.shell("etcd-py --version")
    assert computer.shell("etcdctl get --prefix --limit 1 /load/1 --print-value-only").strip() == "1"
    assert "Traceback" not in computer.shell("journalctl --no-pager -o cat -u etcd-py -u etcd-py-agent")
