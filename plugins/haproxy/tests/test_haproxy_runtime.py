"""What the file wants, what the process has, and the commands in between; then against a real HAProxy."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_agent import CheckError, Staged, StagedFile
from tests.plugin_support import ended, installed_plugins, plugin_module, wait_for
from tests.servers import free_ports

HAPROXY = "/usr/sbin/haproxy"
HEAD = "    setenv ETCD_PY_AGENT_WEB 0123456789abcdef\n"


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


@pytest.fixture
def runtime() -> Any:
    return plugin_module("haproxy.runtime")


def test_a_file_is_read_back(runtime: Any) -> None:
    text = (
        f"global\n{HEAD}\nbackend app\n    server a 10.0.0.1:80 weight 1 check\n"
        "    server b [0::1]:81 weight 0 disabled check\nbackend other\n    server a name:80 weight 3\n"
    )
    want = runtime.wanted(text)
    assert (want.variable, want.structure) == ("ETCD_PY_AGENT_WEB", "0123456789abcdef")
    state = runtime.ServerState
    assert want.servers == {
        ("app", "a"): state(("10.0.0.1", 80), 1, False),
        ("app", "b"): state(("::1", 81), 0, True),
        ("other", "a"): state(None, 3, False),
    }
    assert runtime.wanted("backend app\n    server a 10.0.0.1:80 weight 1\n") is None


def test_commands_take_out_first_and_bring_back_last(runtime: Any) -> None:
    state = runtime.ServerState
    have = {("b", "x"): state(("10.0.0.1", 80), 1, True), ("b", "y"): state(("10.0.0.2", 80), 1, False)}
    want = {("b", "x"): state(("10.0.0.3", 81), 2, False), ("b", "y"): state(("10.0.0.2", 80), 1, True)}
    assert runtime.commands(want, have) == [
        "set server b/y state maint",
        "set server b/x addr 10.0.0.3 port 81",
        "set server b/x weight 2",
        "set server b/x state ready",
    ]
    assert runtime.commands(want, want) == [] and runtime.differences(want, want) == []
    assert runtime.differences(want, {}) == [
        "b/x: not there, expected 10.0.0.3:81 weight 2",
        "b/y: not there, expected 10.0.0.2:80 weight 1 maint",
    ]
    with pytest.raises(ValueError, match="without a table"):
        runtime.running("Permission denied\n")
    with pytest.raises(ValueError, match="no column srv_addr"):
        runtime.running("1\n# be_id be_name srv_name\n")


@pytest.mark.skipif(not Path(HAPROXY).exists(), reason="haproxy is not installed")
def test_every_transition_takes_in_a_real_haproxy(tmp_path: Path, runtime: Any) -> None:
    """Each of 12 states of a server to each other, through the socket alone."""
    control = plugin_module("haproxy.control")
    socket, conf = str(tmp_path / "s"), tmp_path / "ha.cfg"
    conf.write_text(
        f"global\n    stats socket {socket} level admin\n{HEAD}\ndefaults\n    timeout connect 1s\n"
        "    timeout client 1s\n    timeout server 1s\nbackend app\n    server a 127.0.0.1:80 weight 1\n"
        f"frontend f\n    bind 127.0.0.1:{free_ports(1)[0]}\n    default_backend app\n"
    )
    process = subprocess.Popen([HAPROXY, "-db", "-f", conf], stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: control.look(socket, "ETCD_PY_AGENT_WEB"), "haproxy answers")
        states = [
            runtime.ServerState(address, weight, maintenance)
            for address in (("127.0.0.1", 80), ("::1", 81))
            for weight in (0, 1, 256)
            for maintenance in (False, True)
        ]
        for before, after in itertools.permutations(states, 2):
            for state in (before, after):
                now = control.look(socket, "ETCD_PY_AGENT_WEB")
                control.change(socket, runtime.commands({("app", "a"): state}, now.servers))
                now = control.look(socket, "ETCD_PY_AGENT_WEB")
                assert runtime.differences({("app", "a"): state}, now.servers) == []
        assert now.pid == process.pid and now.structure == "0123456789abcdef"
        assert control.look(socket, "OTHER").structure == ""
    finally:
        ended([process])
    assert control.look(socket, "ETCD_PY_AGENT_WEB") is None


def test_the_files_that_haproxy_would_read(tmp_path: Path) -> None:
    check = plugin_module("haproxy.check")
    folder = tmp_path / "conf.d"
    folder.mkdir()
    main, old, gone, other = tmp_path / "main.cfg", folder / "b.cfg", folder / "c.cfg", folder / "x.txt"
    for path in (main, old, gone, other):
        path.write_text("")
    new = folder / "a.cfg"
    staged = Staged(
        "/stage",
        (StagedFile(str(old), "/stage/b", True), StagedFile(str(new), "/stage/a", True)),
        (str(gone),),
    )
    found = check.files([str(main), str(folder)], staged)
    assert list(found.items()) == [(str(main), str(main)), (str(new), "/stage/a"), (str(old), "/stage/b")]
    with pytest.raises(CheckError, match=f"would not read {old}"):
        check.files([str(main)], staged)
