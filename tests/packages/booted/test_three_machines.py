"""Three machines, closed to each other by firewalld, become a cluster; one loses its power, one is replaced.

The tests are one story, in the order of this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.packages.booted.computer import Computer, Make
from tests.packages.booted.network import Network

ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
CLUSTER = ",".join(f"infra{n}=http://{address}:2380" for n, address in enumerate(ADDRESSES))
ENDPOINTS = ",".join(f"http://{address}:2379" for address in ADDRESSES)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network(len(ADDRESSES))
    yield network
    network.take_down()


@pytest.fixture(scope="module")
def computers(network: Network, make: Make) -> list[Computer]:
    with ThreadPoolExecutor() as at_once:
        return list(at_once.map(lambda n: installed(make, network, n), range(len(ADDRESSES))))


def settings(number: int, address: str, state: str = "new", cluster: str = CLUSTER) -> str:
    """The founding flags of a cluster of three, as variables."""
    return f"""
ETCD_NAME="infra{number}"
ETCD_INITIAL_ADVERTISE_PEER_URLS="http://{address}:2380"
ETCD_LISTEN_PEER_URLS="http://{address}:2380"
ETCD_LISTEN_CLIENT_URLS="http://{address}:2379,http://127.0.0.1:2379"
ETCD_ADVERTISE_CLIENT_URLS="http://{address}:2379"
ETCD_INITIAL_CLUSTER_TOKEN="etcd-cluster-1"
ETCD_INITIAL_CLUSTER="{cluster}"
ETCD_INITIAL_CLUSTER_STATE="{state}"
"""


def configure(computer: Computer, text: str) -> None:
    """As an editor would: what is set there counts, in the place of what was."""
    names = "|".join(line.partition("=")[0] for line in text.split())
    computer.shell(f"sed -i -E '/^({names})=/d' /etc/etcd-py/etcd-py.conf")
    computer.shell(f"cat >>/etc/etcd-py/etcd-py.conf <<'END'{text}END\n")


def installed(make: Make, network: Network, number: int) -> Computer:
    host = network.hosts[number]
    computer = make(f"infra{number}", host)
    computer.shell("systemctl start firewalld && yum -y install etcd-py", timeout_s=120)
    computer.wait_for("firewall-cmd --state")
    configure(computer, settings(number, host.address))
    return computer


def reached(computer: Computer, port: int) -> list[str]:
    """The other machines on which a port answers."""
    found = []
    for address in ADDRESSES:
        probe = f"import socket; socket.create_connection(('{address}', {port}), 1)"
        here = computer.host is not None and computer.host.address == address
        if not here and computer.run("python3", "-c", probe).returncode == 0:
            found.append(address)
    return found


def members(computer: Computer) -> dict[str, str]:
    """{name: ID}, by /v2/members."""
    listed = json.loads(computer.shell("curl -fs http://127.0.0.1:2379/v2/members"))
    return {member["name"]: member["id"] for member in listed["members"]}


def test_closed_and_waiting(computers: list[Computer]) -> None:
    """Members that cannot reach each other say so, and are not killed when their time to start is over."""
    for computer in computers:
        computer.write("/etc/systemd/system/etcd-py.service.d/quick.conf", "[Service]\nTimeoutStartSec=4s\n")
        computer.shell("systemctl daemon-reload && systemctl --no-block start etcd-py")
    computers[-1].shell("sleep 6")
    for computer in computers:
        computer.wait_for("systemctl status etcd-py | grep 'waiting for quorum 1/3'", limit_s=10)
        assert computer.refuses("systemctl is-active etcd-py").strip() == "activating"
        assert computer.shell("systemctl show -p NRestarts --value etcd-py").strip() == "0"
        assert reached(computer, 2380) == []
        shown = computer.shell("etcd-py-firewall status")
        assert shown.count(": closed\n") == 2


def test_open(computers: list[Computer]) -> None:
    """Clients may come from anywhere, members from the members' network; a second time nothing happens."""
    for computer in computers:
        said = computer.shell("etcd-py-firewall open --source 10.0.0.0/24")
        assert said == (
            "zone public: service etcd-client (2379/tcp): open now and for good\n"
            "zone public: service etcd-server (2380/tcp) from 10.0.0.0/24: open now and for good\n"
        )
        assert computer.shell("etcd-py-firewall open --source 10.0.0.0/24").count("open already") == 2
        shown = computer.shell("etcd-py-firewall status")
        assert "(2379/tcp): open\n" in shown and "(2380/tcp): open to 10.0.0.0/24\n" in shown
    for computer in computers:
        computer.wait_for("systemctl is-active etcd-py")
        assert len(reached(computer, 2380)) == 2
    assert members(computers[0]).keys() == {"infra0", "infra1", "infra2"}
    for computer in computers:
        computer.shell("rm -r /etc/systemd/system/etcd-py.service.d && systemctl daemon-reload")
        computer.shell("systemctl enable etcd-py firewalld")


def test_put_and_get_anywhere(computers: list[Computer]) -> None:
    computers[0].shell(f"etcdctl --endpoints {ENDPOINTS} put /greeting hello")
    for computer in computers:
        assert computer.shell("etcdctl get --print-value-only /greeting").strip() == "hello"


def test_power_cut(computers: list[Computer]) -> None:
    """One machine stops at once: the two others go on. It comes back, with all that it missed."""
    gone, *others = computers
    gone.cut_power()
    for number, computer in enumerate(others):
        computer.wait_for(f"etcdctl put /without/{number} {computer.name}", limit_s=15)
    assert gone.host is not None
    gone.host.plug_in()
    gone.start()
    gone.wait_for("systemctl is-active etcd-py")
    assert gone.shell("etcdctl get --prefix --keys-only /without/ | grep -c /").strip() == "2"
    assert "(2380/tcp): open to 10.0.0.0/24\n" in gone.shell("etcd-py-firewall status")


def test_replacement(computers: list[Computer]) -> None:
    """A member whose disk is lost goes, and one without data comes, by /v2/members."""
    lost, *others = computers
    lost.cut_power()
    here = others[0]
    here.wait_for(
        "curl -fs -X DELETE http://127.0.0.1:2379/v2/members/" + members(here)["infra0"], limit_s=15
    )
    assert members(here).keys() == {"infra1", "infra2"}
    added = here.shell(
        "curl -fs -X POST -H 'Content-Type: application/json' http://127.0.0.1:2379/v2/members"
        f""" -d '{{"peerURLs": ["http://{ADDRESSES[0]}:2380"]}}'"""
    )
    assert json.loads(added)["peerURLs"] == [f"http://{ADDRESSES[0]}:2380"]
    assert lost.host is not None
    lost.host.plug_in()
    lost.start()
    lost.shell("systemctl stop etcd-py && rm -rf /var/lib/etcd-py/*")
    cluster = CLUSTER.replace("infra0=", "infra9=")
    configure(lost, settings(9, ADDRESSES[0], "existing", cluster))
    lost.shell("systemctl start etcd-py")
    assert lost.shell("etcdctl get --print-value-only /greeting").strip() == "hello"
    assert members(here).keys() == {"infra9", "infra1", "infra2"}


def test_close(computers: list[Computer]) -> None:
    """What was opened is closed, and another port and address can be opened in another zone."""
    computer = computers[2]
    said = computer.shell("etcd-py-firewall close")
    assert said.count("closed now and for good") == 2
    assert "closed already" in said
    assert computer.shell("etcd-py-firewall status").count(": closed\n") == 2
    said = computer.shell(
        "etcd-py-firewall open --zone internal --no-client --peer-port 7001 --source fd00::1"
    )
    assert said == "zone internal: port 7001/tcp from fd00::1: open now and for good\n"
    assert computers[1].refuses(f"curl -fs --max-time 2 http://{ADDRESSES[2]}:2379/health") is not None


def test_what_cannot_be_done_is_said(computers: list[Computer]) -> None:
    computer = computers[2]
    assert "firewalld has no such zone" in computer.refuses("etcd-py-firewall status --zone nowhere")
    assert "expected root" in computer.refuses("setpriv --reuid nobody --clear-groups etcd-py-firewall open")
    computer.shell("systemctl stop firewalld")
    said = computer.refuses("etcd-py-firewall open")
    assert said == "etcd-py-firewall: firewalld is not running, so it closes no port; nothing was changed\n"
    computer.shell("mv /usr/bin/firewall-cmd /usr/bin/firewall-cmd.away")
    assert "firewalld is not installed" in computer.refuses("etcd-py-firewall open")
    assert "Traceback" not in computer.shell("journalctl --no-pager -o cat -u etcd-py")
