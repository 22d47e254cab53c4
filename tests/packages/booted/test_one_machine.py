"""A machine that has never seen etcd-py: from the repository file to data that outlive a reboot, and back.

The tests are one story, in the order of this file.
"""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.packages.booted.computer import Computer, Make

PACKAGES = "etcd-py etcd-py-agent etcd-py-libs"


@pytest.fixture(scope="module")
def computer(make: Make) -> Computer:
    return make("one")


def files(computer: Computer) -> set[str]:
    """All that a package may leave behind, and what yum and systemd keep for themselves left out."""
    found = computer.shell(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/cache "
        "-o -path /var/log -o -path /var/lib/rpm -o -path /var/lib/dnf -o -path /srv -o -path /var/tmp \\) "
        "-prune -o -print"
    )
    return set(found.splitlines())


def journal(computer: Computer, unit: str) -> str:
    return computer.shell(f"journalctl --no-pager -o cat -u {unit}")


def test_install(computer: Computer) -> None:
    before = files(computer)
    computer.write("/srv/files-before", "\n".join(sorted(before)))
    computer.shell("yum -y install etcd-py etcd-py-agent", timeout_s=120)
    assert computer.shell(f"rpm -V {PACKAGES}") == ""
    assert "etcd-py" in computer.shell("id etcd-py")
    assert computer.refuses("systemctl is-enabled etcd-py").strip() == "disabled"
    assert computer.shell("stat -c '%a %U:%G' /etc/etcd-py/etcd-py.conf") == "640 root:etcd-py\n"
    assert computer.shell("stat -c '%a %U:%G' /var/lib/etcd-py") == "700 etcd-py:etcd-py\n"


def test_private(computer: Computer) -> None:
    """No program of the machine sees what is packaged, and ours see no package of the machine."""
    assert "No module" in computer.refuses("python3 -c 'import etcd_client'")
    computer.write("/usr/lib/python3/dist-packages/yaml/__init__.py", "raise SystemExit('seen')\n")
    computer.shell("cd /tmp && echo 'raise SystemExit(1)' >json.py && PYTHONPATH=/tmp etcd-py --version")
    computer.shell("rm -r /tmp/json.py /usr/lib/python3/dist-packages/yaml")


def test_units_are_what_systemd_understands(computer: Computer) -> None:
    units = "/usr/lib/systemd/system/etcd-py.service /usr/lib/systemd/system/etcd-py-agent.service"
    done = computer.run("sh", "-c", f"systemd-analyze verify --man=no {units}")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_completion(computer: Computer) -> None:
    words = "COMP_WORDS='etcd-pyctl wa' COMP_CWORD=1 _ETCD_PYCTL_COMPLETE=bash_complete"
    assert computer.shell(f"env {words} etcd-pyctl").strip() == "plain,watch"
    assert "--data-dir" in computer.shell(
        "bash -c '. /usr/share/bash-completion/completions/etcd-py && complete -p etcd-py'"
    )


def test_start(computer: Computer) -> None:
    computer.shell("systemctl enable --now etcd-py")
    assert "active (running)" in computer.shell("systemctl status etcd-py")
    computer.wait_for("systemctl status etcd-py | grep -E 'Status: \"leader of term [0-9]+'", limit_s=5)
    assert computer.shell("ps -o user= -p $(systemctl show -p MainPID --value etcd-py)").strip() == "etcd-py"
    assert computer.shell("etcdctl put /greeting hello").strip() == "OK"
    assert computer.shell("etcdctl get --print-value-only /greeting").strip() == "hello"
    assert computer.shell("etcd-pyctl get --print-value-only /greeting").strip() == "hello"


def test_agent_starts(computer: Computer) -> None:
    """The agent as it is installed follows the member beside it, and has nothing to do yet."""
    assert "0 resources, no error" in computer.shell("etcd-py-agent check-config")
    computer.shell("systemctl enable --now etcd-py-agent")
    assert "active (running)" in computer.shell("systemctl status etcd-py-agent")
    assert "Status:" in computer.shell("systemctl status etcd-py-agent")


def test_plugins(computer: Computer) -> None:
    """All that come with the agent load, and one that another package puts where the macros file says."""
    shown = computer.shell("etcd-py-agent plugins --json")
    assert {"nginx", "haproxy", "files"} <= {each["name"] for each in json.loads(shown)}
    assert [each for each in json.loads(shown) if each["state"] != "loaded"] == []
    site = computer.shell("rpm -E %etcd_py_agent_sitelib").strip()
    assert site == "/usr/lib/etcd-py-agent/site-packages"
    computer.write(f"{site}/another.py", '"""A plugin without hooks."""\n')
    computer.write(
        f"{site}/another-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: another\nVersion: 1.0\n"
    )
    computer.write(f"{site}/another-1.0.dist-info/entry_points.txt", "[etcd_py_agent]\nanother = another\n")
    assert "another" in computer.shell("etcd-py-agent plugins")
    computer.shell(f"rm -r {site}/another*")


def test_one_of_several_agents(computer: Computer) -> None:
    """An agent of the name web, with settings and state of its own, beside the first."""
    computer.write("/etc/etcd-py-agent/web.toml", 'nodes = ["http://127.0.0.1:2379"]\n')
    computer.shell("systemctl start etcd-py-agent@web")
    assert "Status:" in computer.shell("systemctl status etcd-py-agent@web")
    computer.shell("etcd-py-agent --instance web status")
    computer.shell("systemctl stop etcd-py-agent@web && rm -r /etc/etcd-py-agent/web.toml")
    computer.shell("systemctl is-active etcd-py-agent")


def test_reload(computer: Computer) -> None:
    for unit in ("etcd-py", "etcd-py-agent"):
        main = computer.shell(f"systemctl show -p MainPID --value {unit}")
        computer.shell(f"systemctl reload {unit}")
        computer.wait_for(f"systemctl is-active {unit}")
        assert computer.shell(f"systemctl show -p MainPID --value {unit}") == main


def test_reboot(computer: Computer) -> None:
    computer.reboot()
    for unit in ("etcd-py", "etcd-py-agent"):
        computer.wait_for(f"systemctl is-active {unit}")
    assert computer.shell("etcdctl get --print-value-only /greeting").strip() == "hello"


def test_a_frozen_server_is_replaced(computer: Computer) -> None:
    """The watchdog of the unit, set to 3 s for this test."""
    computer.write(
        "/etc/systemd/system/etcd-py.service.d/quick.conf", "[Service]\nWatchdogSec=3s\nRestartSec=1s\n"
    )
    computer.shell("systemctl daemon-reload && systemctl restart etcd-py")
    frozen = computer.shell("systemctl show -p MainPID --value etcd-py").strip()
    computer.shell(f"kill -STOP {frozen}")
    computer.wait_for(
        f"test $(systemctl show -p MainPID --value etcd-py) -gt 1 && ! kill -0 {frozen}", limit_s=20
    )
    computer.wait_for("systemctl is-active etcd-py && etcdctl get /greeting | grep hello")
    assert "Watchdog timeout" in journal(computer, "etcd-py")
    assert computer.shell("systemctl show -p NRestarts --value etcd-py").strip() == "1"


def test_a_crash_loop_is_slow(computer: Computer) -> None:
    """Settings that cannot work: a start in ten seconds, and one line each time that says why."""
    computer.shell("rm -r /etc/systemd/system/etcd-py.service.d && systemctl daemon-reload")
    computer.shell("echo ETCD_HEARTBEAT_INTERVAL=abc >>/etc/etcd-py/etcd-py.conf")
    computer.refuses("systemctl restart etcd-py")
    began = time.monotonic()
    computer.wait_for("test $(systemctl show -p NRestarts --value etcd-py) -ge 2", limit_s=40)
    assert time.monotonic() - began > 9
    said = journal(computer, "etcd-py")
    assert 'invalid value "abc" for ETCD_HEARTBEAT_INTERVAL' in said
    computer.shell("sed -i '/abc/d' /etc/etcd-py/etcd-py.conf && systemctl restart etcd-py")
    assert computer.shell("etcdctl get --print-value-only /greeting").strip() == "hello"


def test_the_journal_tells_the_story(computer: Computer) -> None:
    for unit in ("etcd-py", "etcd-py-agent"):
        said = journal(computer, unit)
        assert said
        assert "Traceback" not in said
    assert "Main process exited" in computer.shell("journalctl --no-pager -o cat -u etcd-py")


def test_the_settings_of_another_etcd(computer: Computer) -> None:
    """/etc/etcd/etcd.conf of a distribution's etcd, as it is, with a drop-in that comes with the package."""
    computer.write(
        "/etc/etcd/etcd.conf",
        '#[Member]\nETCD_DATA_DIR="/var/lib/etcd/default.etcd"\n'
        'ETCD_LISTEN_CLIENT_URLS="http://localhost:2379,http://localhost:4001"\nETCD_NAME="default"\n'
        '#[Clustering]\nETCD_ADVERTISE_CLIENT_URLS="http://localhost:2379,http://localhost:4001"\n',
    )
    computer.shell(
        "install -D -m 644 -t /etc/systemd/system/etcd-py.service.d /usr/share/etcd-py/etcd-conf.conf"
        " && systemctl daemon-reload && systemctl restart etcd-py"
    )
    assert (
        computer.shell("etcdctl --endpoints localhost:4001 get --print-value-only /greeting").strip()
        == "hello"
    )
    computer.shell("rm -r /etc/etcd /etc/systemd/system/etcd-py.service.d && systemctl daemon-reload")


def test_settings_in_a_file(computer: Computer) -> None:
    computer.shell("echo 'ETCD_CONFIG_FILE=/etc/etcd-py/etcd-py.toml' >>/etc/etcd-py/etcd-py.conf")
    computer.shell("systemctl restart etcd-py")
    assert computer.shell("etcdctl get --print-value-only /greeting").strip() == "hello"
    said = [json.loads(line) for line in journal(computer, "etcd-py").splitlines() if line.startswith("{")]
    assert any(line.get("path") == "/etc/etcd-py/etcd-py.toml" for line in said)
    computer.shell(
        "sed -i '/ETCD_CONFIG_FILE=\\/etc/d' /etc/etcd-py/etcd-py.conf && systemctl restart etcd-py"
    )


def test_remove(computer: Computer) -> None:
    assert computer.shell(f"rpm -V --nomtime {PACKAGES}") == ""
    computer.shell(f"yum -y remove {PACKAGES}", timeout_s=120)
    assert "could not be found" in computer.refuses("systemctl status etcd-py")
    assert "etcd_server" not in computer.shell("ps -eo args")
    before = set(computer.read("/srv/files-before").splitlines())
    left = {path for path in files(computer) - before if not path.startswith("/var/lib/etcd-py")}
    # The user stays, because its files do; licenses/ is a directory that EL has without us.
    users = r"/etc/(group|gshadow|passwd|shadow|subuid|subgid)-?$"
    assert {path for path in left if not re.match(users, path)} <= {"/usr/share/licenses"}
    assert "etcd-py" in computer.shell("id etcd-py")
    assert computer.shell("ls /var/lib/etcd-py").split()
    assert computer.shell("ls -d /run/etcd-py* 2>/dev/null || true") == ""
