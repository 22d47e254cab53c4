"""The agent, a real HAProxy and a real store: traffic moves without a failed request, bad changes go back."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_client import Client
from tests.plugin_load import NGINX, Backends, HttpLoad, ask
from tests.plugin_support import AgentProcess, ended, installed_plugins, plugin_module, wait_for
from tests.servers import Server, available_servers, free_ports, start_server

HAPROXY = "/usr/sbin/haproxy"
REQUESTS = 10_000
STORES = [kind for kind in available_servers() if kind in ("3.4", "etcd-py")]

pytestmark = [
    pytest.mark.skipif(not os.path.exists(HAPROXY), reason="haproxy is not installed"),
    pytest.mark.skipif(not os.path.exists(NGINX), reason="nginx is not installed"),
    pytest.mark.skipif(not STORES, reason="no store to run against"),
]


class World:
    """A store, two backends, HAProxy in master-worker mode, and the agent's configuration for it."""

    def __init__(self, folder: Path, store: Server, packages: Path) -> None:
        self.folder = folder
        self.store = store
        self.client = Client(store.url)
        self.backends = Backends(folder / "backends", ("one", "two"))
        (self.port,) = free_ports(1)
        self.output = folder / "conf.d/etcd.cfg"
        self.output.parent.mkdir()
        self.log_path = folder / "haproxy.log"
        self.haproxy: subprocess.Popen[bytes] | None = None
        self.main = folder / "haproxy.cfg"
        self.main.write_text(
            f"global\n    stats socket {folder}/admin.sock mode 600 level admin expose-fd listeners\n"
        )
        self.agent = AgentProcess(folder, packages)
        self.write()

    def write(self, more: str = "", master_socket: str | None = None) -> None:
        master = f"{self.folder}/master.sock" if master_socket is None else master_socket
        self.agent.write(
            self.store.url,
            {
                "haproxy": f"""
[resource]
prefix = "/haproxy"
keys = ["/backends", "/frontends"]
[[template]]
src = "haproxy:haproxy.cfg.j2"
dest = "{self.output}"
[plugins.haproxy]
conf = ["{self.main}", "{self.output.parent}"]
socket = "{self.folder}/admin.sock"
master_socket = "{master}"
pid = "{self.folder}/haproxy.pid"
[health]
retries = 2
interval = "100ms"
{more}
"""
            },
        )

    def put(self, key: str, value: str) -> None:
        self.client.put(f"/demo/haproxy{key}", value)

    def serve(self, name: str, **fields: object) -> None:
        self.put("/backends/app/servers/a", json.dumps({"address": self.backends.address(name), **fields}))

    def start(self) -> None:
        """The first files by ``once``, then HAProxy, then the agent."""
        self.serve("one")
        self.put("/frontends/web/bind", f"127.0.0.1:{self.port}")
        self.put("/frontends/web/backend", "app")
        first = self.agent.run("once")
        assert first.returncode == 0, first.stderr
        command = [HAPROXY, "-W", "-S", f"{self.folder}/master.sock", "-p", f"{self.folder}/haproxy.pid"]
        with self.log_path.open("wb") as log:
            self.haproxy = subprocess.Popen(
                [*command, "-f", str(self.main), "-f", str(self.output.parent)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.wait_answer("one")
        self.agent.start()
        self.agent.wait_status("haproxy", state="APPLIED")

    def answer(self) -> str:
        try:
            return ask(self.port, timeout_s=2)
        except (OSError, ValueError) as error:
            return str(error)

    def wait_answer(self, wanted: str) -> None:
        wait_for(
            lambda: self.answer() == wanted, lambda: f"{wanted} answers; agent's log:\n{self.agent.tail()}"
        )

    def worker(self) -> int:
        """The pid of the worker that answers now."""
        shown = plugin_module("haproxy.control").ask(f"{self.folder}/admin.sock", "show info")
        found = re.search(r"^Pid: (\d+)$", shown, re.MULTILINE)
        assert found is not None
        return int(found.group(1))

    def close(self) -> None:
        self.agent.close()
        if self.haproxy is not None:
            ended([self.haproxy])
        self.client.close()
        self.backends.close()


@pytest.fixture(params=STORES)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with installed_plugins(tmp_path / "packages") as packages:
        store = start_server(request.param, tmp_path)
        made = World(tmp_path, store, packages)
        try:
            yield made
        finally:
            made.close()
            store.stop()


def test_no_request_of_ten_thousand_fails_while_traffic_moves(world: World) -> None:
    """Through the socket and by reloads, in turn, as long as it takes."""
    world.start()
    by_socket = reloads = 0
    with HttpLoad(world.port) as load:
        while load.total < REQUESTS or by_socket < 6 or reloads < 3:
            name = "two" if world.answer() == "one" else "one"
            worker = world.worker()
            if by_socket > 2 * reloads:  # maxconn is part of the structure: a reload
                reloads += 1
                world.serve(name, maxconn=100 + reloads)
                world.wait_answer(name)
                assert world.worker() != worker, "a reload was needed"
            else:  # address and weight: the socket
                by_socket += 1
                limit = {"maxconn": 100 + reloads} if reloads else {}
                world.serve(name, weight=by_socket % 7 + 1, **limit)
                world.wait_answer(name)
                assert world.worker() == worker, "no reload was needed"
    assert load.errors == []
    assert set(load.answers) == {"one", "two"}
    print(f"{load.total} requests, {by_socket} changes by socket, {reloads} reloads: {dict(load.answers)}")


def test_a_bad_value_changes_nothing(world: World) -> None:
    world.start()
    good, worker = world.output.read_text(), world.worker()
    world.put("/backends/app/servers/a", "127.0.0.1:80 disabled\n    server evil 127.0.0.1:1")
    error = world.agent.wait_status("haproxy", state="FAILED")["error"]
    assert "/demo/haproxy/backends/app/servers/a: address: expected" in error

    # What only HAProxy itself can see: an http frontend in front of a tcp backend.
    world.serve("one")
    world.put("/backends/app/mode", "tcp")
    world.agent.wait_status("haproxy", state="FAILED")
    wait_for(lambda: "haproxy -c: " in world.agent.status("haproxy")["error"], "haproxy -c refuses")
    assert (world.output.read_text(), world.worker(), world.answer()) == (good, worker, "one")

    world.client.delete("/demo/haproxy/backends/app/mode")
    world.serve("two")
    world.wait_answer("two")
    assert "Traceback" not in world.agent.log


@pytest.mark.parametrize("master", [True, False])
def test_a_reload_that_does_not_take_is_rolled_back(world: World, master: bool) -> None:
    """The master cannot bind a port that another process holds: its signal and its socket report success."""
    world.write('[reload]\ntimeout = "3s"\n', None if master else "")
    world.start()
    good = world.output.read_text()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        world.put("/frontends/web/bind", json.dumps([f"127.0.0.1:{world.port}", taken]))
        error = world.agent.wait_status("haproxy", state="ROLLED_BACK", reload_pending=False)["error"]
        assert "has not read the new files" in error
    assert world.output.read_text() == good and world.answer() == "one"
    world.put("/frontends/web/bind", f"127.0.0.1:{world.port}")
    world.serve("two")
    world.wait_answer("two")


def test_a_reload_command_without_effect_is_caught_by_the_health_check(world: World) -> None:
    world.write('[reload]\ncmd = "true"\n')
    world.start()
    good = world.output.read_text()
    world.serve("two")
    error = world.agent.wait_status("haproxy", state="ROLLED_BACK")["error"]
    assert "a server is not as the file says: app/a" in error
    world.serve("one", maxconn=5)
    wait_for(
        lambda: "another configuration than the one on disk" in world.agent.status("haproxy")["error"],
        "the structure differs",
    )
    assert world.output.read_text() == good and world.answer() == "one"


def test_a_restart_of_haproxy_keeps_what_the_socket_changed(world: World) -> None:
    world.start()
    worker = world.worker()
    world.serve("two", weight=9)
    world.wait_answer("two")
    world.agent.wait_status("haproxy", state="APPLIED")
    assert world.worker() == worker
    plugin_module("haproxy.control").reload(f"{world.folder}/master.sock", "")
    wait_for(lambda: world.worker() != worker, "HAProxy reloads")
    world.wait_answer("two")
