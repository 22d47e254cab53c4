"""Every command of docs/operations.md is run as it stands there, on machines with its addresses.

What the document leaves open, ID and "...", is filled in; nothing else is changed. The tests are two stories:
a machine with the packages, and a cluster.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import markdown
from tests.packages.booted.computer import Computer, Make
from tests.packages.booted.network import Network

DOCUMENT = markdown.read("docs/operations.md")
ran: set[str] = set()


def commands(heading: str) -> list[str]:
    """The command lines of a section, in their order."""
    found: list[str] = []
    for block in markdown.blocks(markdown.section(DOCUMENT, heading) if heading else DOCUMENT):
        if block.language == "console":
            joined = block.text.replace("\\\n", " ")
            found += [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return found


def follow(computer: Computer, heading: str, **filled: str) -> list[str]:
    """Run all commands of a section; what each said."""
    return [do(computer, command, **filled) for command in commands(heading)]


def do(computer: Computer, command: str, **filled: str) -> str:
    ran.add(command)
    for name, value in filled.items():
        command = command.replace(name, value)
    return computer.shell(f"cd /srv && {command} 2>&1", timeout_s=120)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network(5)
    yield network
    network.take_down()


# --- one machine, with the packages -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaged(network: Network, make: Make) -> Computer:
    computer = make("packaged", network.hosts[4])
    computer.shell("rm /etc/yum.repos.d/etcd-py.repo && mkdir -p /srv/build/rpm")
    computer.shell("ln -s /srv/etcd-py /srv/build/rpm/repository")
    computer.write("/etc/etcd/etcd.conf", 'ETCD_LISTEN_CLIENT_URLS="http://localhost:2379"\n'
                   'ETCD_ADVERTISE_CLIENT_URLS="http://localhost:2379"\n')  # fmt: skip
    return computer


def test_installing(packaged: Computer) -> None:
    said = follow(packaged, "Installing from packages")
    assert any("active (running)" in text for text in said)
    assert "OK\n" in said


def test_ports(packaged: Computer) -> None:
    packaged.shell("systemctl start firewalld")
    packaged.wait_for("firewall-cmd --state")
    (block,) = markdown.blocks(markdown.section(DOCUMENT, "Opening the ports"))
    opened, shown, closed = follow(packaged, "Opening the ports")
    assert opened in block.text and shown in block.text
    assert closed.count("closed now and for good") == 2


def test_upgrading(packaged: Computer) -> None:
    assert "is healthy" in follow(packaged, "Upgrading")[-1]


def test_sqlite(packaged: Computer) -> None:
    assert "/greeting" in follow(packaged, "Looking into the data with sqlite3")[0]
    assert packaged.run("test", "-s", "/tmp/copy.db").returncode == 0


def test_watching(packaged: Computer) -> None:
    health, ready, metrics, status, log, _, verified, _ = follow(packaged, "Watching over a member")
    assert json.loads(health)["health"] == "true"
    assert "linearizable_read ok" in ready
    assert "etcd_server_has_leader 1" in metrics
    assert "RAFT INDEX" in status
    assert '"level":"warn"' in log
    assert "no problem was found" in verified


# --- a cluster ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computers(network: Network, make: Make) -> list[Computer]:
    def installed(number: int) -> Computer:
        computer = make(f"m{number + 1}", network.hosts[number])
        computer.shell("yum -y install etcd-py", timeout_s=120)
        return computer

    with ThreadPoolExecutor() as at_once:
        return list(at_once.map(installed, range(4)))


@pytest.fixture(scope="module")
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Of the commands that run members; each ends with its machine."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate(timeout=10)


def flags(number: int) -> str:
    """The usual flags of a member, for the "..." of the document."""
    first = commands("The first members")[0]
    own = first.partition(" --initial-cluster m1=")[0].partition(" --data-dir ")[2]
    return f"--data-dir {own}".replace("10.0.0.1:", f"10.0.0.{number}:")


def start(computer: Computer, command: str) -> subprocess.Popen[str]:
    process = computer.spawn(f"echo $$ >/srv/pid; exec {command} >/srv/log 2>&1")
    computer.wait_for("curl -fs http://127.0.0.1:2379/health", limit_s=30)
    return process


def members(computer: Computer) -> dict[str, str]:
    """{name: ID}, as etcdctl writes it."""
    listed = json.loads(computer.shell("etcdctl member list -w json"))["members"]
    return {member.get("name", ""): f"{member['ID']:x}" for member in listed}


def leader(computers: list[Computer]) -> int:
    """Which of the first three leads."""
    for number, computer in enumerate(computers[:3]):
        (said,) = json.loads(computer.shell("etcdctl endpoint status -w json"))
        if said["Status"]["leader"] == said["Status"]["header"]["member_id"]:
            return number
    raise AssertionError("no member says that it leads")


def test_first_members(computers: list[Computer], processes: list[subprocess.Popen[str]]) -> None:
    (command,) = commands("The first members")
    ran.add(command)
    own, cluster, rest = command.partition(" --initial-cluster m1=")
    each = [
        own.replace("m1", f"m{n}").replace("10.0.0.1:", f"10.0.0.{n}:") + cluster + rest for n in (1, 2, 3)
    ]
    with ThreadPoolExecutor() as at_once:
        processes += at_once.map(start, computers, each)
    assert members(computers[0]).keys() == {"m1", "m2", "m3"}
    computers[0].shell("etcdctl put /greeting hello")


def test_adding(computers: list[Computer], processes: list[subprocess.Popen[str]]) -> None:
    add, run = commands("Adding a member")
    ran.update((add, run))
    computers[0].wait_for(add, limit_s=15)  # members have to be in touch for 5 s
    without_state = flags(4).replace("--initial-cluster-state new", "")
    processes.append(start(computers[3], run.replace("...", without_state)))
    assert members(computers[0]).keys() == {"m1", "m2", "m3", "m4"}
    assert computers[3].shell("etcdctl get --print-value-only /greeting") == "hello\n"


def test_moving_the_leader(computers: list[Computer]) -> None:
    now = leader(computers)
    wanted = (now + 1) % 3
    follow(computers[now], "Moving the leader", ID=members(computers[now])[f"m{wanted + 1}"])
    assert leader(computers) == wanted


def test_comparing(computers: list[Computer]) -> None:
    (said,) = follow(computers[0], "Comparing the members")
    hashes = dict(line.split(", ") for line in said.splitlines())
    assert len(hashes) == 4 and len(set(hashes.values())) == 1


def test_removing(computers: list[Computer], processes: list[subprocess.Popen[str]]) -> None:
    """The member that was added goes; its process ends by itself."""
    gone = members(computers[0])["m4"]
    for command in sorted(commands("Removing and replacing a member"), key=lambda text: " remove " in text):
        do(computers[0], command, ID=gone)
    assert members(computers[0]).keys() == {"m1", "m2", "m3"}
    assert processes[3].wait(20) == 0


def test_the_quorum_is_lost(computers: list[Computer], processes: list[subprocess.Popen[str]]) -> None:
    for computer in computers[1:3]:
        computer.cut_power()
    computers[0].shell("kill $(cat /srv/pid)")
    processes[0].wait(20)
    (command,) = commands("When the quorum is lost for good")
    ran.add(command)
    usual = flags(1).partition(" ")[2].partition(" ")[2]
    processes.append(start(computers[0], command.replace("...", usual)))
    assert members(computers[0]).keys() == {"m1"}
    assert computers[0].shell("etcdctl get --print-value-only /greeting") == "hello\n"


def test_every_command_was_run() -> None:
    assert set(commands("")) == ran
