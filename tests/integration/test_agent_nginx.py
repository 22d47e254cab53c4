"""The agent as a process, a real nginx, a real store: changed keys move traffic, bad ones never reach nginx.

Everything is private and on high loopback ports: nginx runs from a temporary prefix, two small HTTP servers
are the backends. Waits are for a condition, each with a limit.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from etcd_client import Client, Compacted
from tests.servers import Server, available_servers, free_ports, start_server
from tests.unit.agent.support import ROOT, plugin_packages, write_tree

LIMIT_S = 20.0
NGINX = "/usr/sbin/nginx"
STORES = [kind for kind in available_servers() if kind in ("3.4", "etcd-py")]

pytestmark = [
    pytest.mark.skipif(not os.path.exists(NGINX), reason="nginx is not installed"),
    pytest.mark.skipif(not STORES, reason="no store to run against"),
]


def wait_for(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


class Backend:
    """An HTTP server that answers with its own name."""

    def __init__(self, name: str) -> None:
        self.name = name

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, format: str, *arguments: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class World:
    """A store, a private nginx, two backends, and the agent's configuration for them."""

    def __init__(self, folder: Path, store: Server, packages: Path) -> None:
        self.folder = folder
        self.store = store
        self.packages = packages
        self.client = Client(store.url)
        self.one, self.two = Backend("one"), Backend("two")
        self.http_port, self.marker_port = free_ports(2)
        self.agents: list[subprocess.Popen[bytes]] = []
        self.nginx: subprocess.Popen[bytes] | None = None
        self.output = folder / "nginx/conf.d/etcd.conf"
        self.write_nginx()
        self.write_agent()

    def write_nginx(self) -> None:
        prefix = self.folder / "nginx"
        for name in ("conf.d", "logs", "temp"):
            (prefix / name).mkdir(parents=True)
        temporary = "\n".join(
            f"    {name}_temp_path {prefix}/temp;"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        write_tree(
            prefix,
            {
                "nginx.conf": f"""
daemon off;
worker_processes 2;
worker_shutdown_timeout 5s;
pid {prefix}/nginx.pid;
error_log {prefix}/logs/error.log info;
events {{ worker_connections 64; }}
http {{
{temporary}
    access_log off;
    include conf.d/*.conf;
}}
"""
            },
        )

    def write_agent(self, resource_extra: str = "", agent_extra: str = "") -> None:
        prefix = self.folder / "nginx"
        write_tree(
            self.folder / "etc",
            {
                "agent.toml": f"""
state_dir = "{self.folder}/state"
nodes = ["{self.store.url}"]
prefix = "/demo"
start_grace = "500ms"
log_level = "debug"
{agent_extra}
[backend]
dial_timeout = "1s"
request_timeout = "2s"
[backend.retry]
backoff = "50ms"
max_backoff = "500ms"
""",
                "conf.d/nginx.toml": f"""
[resource]
prefix = "/nginx"
keys = ["/upstreams", "/servers"]
[[template]]
src = "nginx:http.conf.j2"
dest = "{self.output}"
[plugins.nginx]
conf = "{prefix}/nginx.conf"
prefix = "{prefix}"
pid = "{prefix}/nginx.pid"
marker = "127.0.0.1:{self.marker_port}"
[health]
retries = 3
interval = "100ms"
{resource_extra}
""",
            },
        )

    def start_nginx(self) -> None:
        prefix = self.folder / "nginx"
        command = [
            NGINX,
            "-p",
            str(prefix),
            "-c",
            str(prefix / "nginx.conf"),
            "-e",
            str(prefix / "logs/error.log"),
        ]
        self.nginx = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_for(
            lambda: (prefix / "nginx.pid").exists() and (prefix / "nginx.pid").read_text(), "nginx's pid file"
        )

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "etcd_agent.cli",
            "--config",
            str(self.folder / "etc/agent.toml"),
            *arguments,
        ]

    def environment(self, **more: str) -> dict[str, str]:
        path = [str(self.packages), str(ROOT), *os.environ.get("PYTHONPATH", "").split(":")]
        return {**os.environ, "PYTHONPATH": ":".join(filter(None, path)), **more}

    def agent(self, *arguments: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment(), capture_output=True, text=True, timeout=limit_s
        )

    def start_agent(self, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                self.command("run"), env=self.environment(**environment), stdout=log, stderr=subprocess.STDOUT
            )
        self.agents.append(process)
        return process

    def stop_agent(self, process: subprocess.Popen[bytes]) -> int:
        process.terminate()
        return process.wait(30)

    @property
    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def put_all(self, backend: Backend) -> None:
        self.client.put("/demo/nginx/upstreams/app/servers/a", backend.address)
        self.client.put("/demo/nginx/servers/web/listen", f"127.0.0.1:{self.http_port}")
        self.client.put(
            "/demo/nginx/servers/web/locations/root", json.dumps({"path": "/", "upstream": "app"})
        )

    def answer(self) -> str:
        try:
            return requests.get(f"http://127.0.0.1:{self.http_port}/", timeout=2).text
        except requests.RequestException as error:
            return type(error).__name__

    def wait_answer(self, wanted: str) -> None:
        wait_for(lambda: self.answer() == wanted, f"traffic goes to {wanted}; agent's log:\n{self.tail()}")

    def tail(self) -> str:
        return "\n".join(self.log.splitlines()[-15:]) if (self.folder / "agent.log").exists() else ""

    def status(self) -> dict[str, object]:
        """The resource's part of ``status --json``."""
        shown = json.loads(self.agent("status", "--json").stdout)
        return {**shown["resources"][0], "store_error": shown["store_error"], "alive": shown["alive"]}

    def wait_status(self, **wanted: object) -> dict[str, object]:
        seen: dict[str, object] = {}

        def matches() -> bool:
            seen.update(self.status())
            return all(seen[name] == value for name, value in wanted.items())

        wait_for(matches, f"status {wanted}; agent's log:\n{self.tail()}")
        return seen

    def close(self) -> None:
        for process in self.agents:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        if self.nginx is not None:
            self.nginx.terminate()
            self.nginx.wait(10)
        self.client.close()
        self.one.close()
        self.two.close()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = start_server(request.param, tmp_path)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def world(tmp_path: Path, store: Server) -> Iterator[World]:
    with plugin_packages(tmp_path / "packages") as packages:
        made = World(tmp_path, store, packages)
        try:
            yield made
        finally:
            made.close()


def test_a_changed_key_moves_traffic_and_a_bad_value_never_reaches_nginx(world: World) -> None:
    world.put_all(world.one)
    world.start_nginx()
    agent = world.start_agent()
    world.wait_answer("one")

    world.client.put("/demo/nginx/upstreams/app/servers/a", world.two.address)
    world.wait_answer("two")
    good = world.output.read_text()
    assert world.wait_status(state="APPLIED")["error"] == ""

    # An injection is refused by the plugin before anything is written.
    evil = f"{world.one.address}; }} server {{ listen 1; "
    world.client.put("/demo/nginx/upstreams/app/servers/a", evil)
    error = str(world.wait_status(state="FAILED")["error"])
    assert "/demo/nginx/upstreams/app/servers/a: address: expected" in error
    assert world.output.read_text() == good and world.answer() == "two"

    # What only nginx can see is wrong is refused by nginx -t on the staged tree.
    only_backup = json.dumps({"address": world.one.address, "backup": True})
    world.client.put("/demo/nginx/upstreams/app/servers/a", only_backup)
    wait_for(lambda: "nginx -t: no servers in upstream" in str(world.status()["error"]), "nginx -t refuses")
    assert world.output.read_text() == good and world.answer() == "two"

    world.client.put("/demo/nginx/upstreams/app/servers/a", world.one.address)
    world.wait_answer("one")
    assert world.stop_agent(agent) == 0
    assert "Traceback" not in world.log


def test_no_request_fails_while_traffic_moves(world: World) -> None:
    world.put_all(world.one)
    world.start_nginx()
    world.start_agent()
    world.wait_answer("one")
    answers: list[str] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            answers.append(world.answer())

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for backend in (world.two, world.one, world.two):
            world.client.put("/demo/nginx/upstreams/app/servers/a", backend.address)
            world.wait_answer(backend.name)
    finally:
        stop.set()
        thread.join(10)
    assert set(answers) == {"one", "two"}, "no answer but those of the backends"


def test_a_reload_that_does_not_take_is_rolled_back(world: World) -> None:
    """nginx -s reload exits 0, but the master cannot take the configuration: a port that another process
    holds."""
    world.put_all(world.one)
    world.start_nginx()
    world.write_agent('[reload]\ntimeout = "3s"\n')
    world.start_agent()
    world.wait_answer("one")
    good = world.output.read_text()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        # nginx -t tolerates a port in use (it is normally its own); the running master does not.
        world.client.put(
            "/demo/nginx/servers/web/listen",
            json.dumps([f"127.0.0.1:{world.http_port}", f"127.0.0.1:{taken}"]),
        )
        error = str(world.wait_status(state="ROLLED_BACK")["error"])
        assert "old workers still serve" in error
    assert world.output.read_text() == good and world.answer() == "one"
    world.client.put("/demo/nginx/servers/web/listen", f"127.0.0.1:{world.http_port}")
    world.client.put("/demo/nginx/upstreams/app/servers/a", world.two.address)
    world.wait_answer("two")


def test_a_failing_reload_command_is_rolled_back(world: World) -> None:
    flag = world.folder / "fail"
    prefix = world.folder / "nginx"
    reload = f"test ! -e {flag} || exit 7; {NGINX} -p {prefix} -c {prefix}/nginx.conf -s reload"
    world.write_agent(f'[reload]\ncmd = "{reload}"\n')
    world.put_all(world.one)
    world.start_nginx()
    world.start_agent()
    world.wait_answer("one")
    good = world.output.read_text()
    flag.touch()
    world.client.put("/demo/nginx/upstreams/app/servers/a", world.two.address)
    status = world.wait_status(state="ROLLED_BACK", reload_pending=True)
    assert "exit status 7" in str(status["error"])
    assert world.output.read_text() == good and world.answer() == "one"
    flag.unlink()
    world.wait_status(reload_pending=False)
    world.client.put("/demo/nginx/upstreams/app/servers/a", world.two.address)
    world.wait_answer("two")


def test_the_store_goes_away_and_comes_back(world: World) -> None:
    world.put_all(world.one)
    world.start_nginx()
    agent = world.start_agent()
    world.wait_answer("one")
    good = world.output.read_text()
    world.store.kill()
    wait_for(lambda: world.status()["store_error"], "the agent notices")
    assert world.output.read_text() == good and world.answer() == "one"
    assert world.stop_agent(agent) == 0

    # A restart without a store: the last files stay, and it is ready (degraded) after start_grace.
    with notify_socket(world.folder) as (address, messages):
        world.start_agent(NOTIFY_SOCKET=address)
        wait_for(lambda: "READY=1" in messages, "READY without a store")
        assert any(
            message.startswith("STATUS=degraded: ") and "store away" in message for message in messages
        )
    assert world.output.read_text() == good and world.answer() == "one"

    world.store.start()
    world.client.put("/demo/nginx/upstreams/app/servers/a", world.two.address)
    world.wait_answer("two")
    world.wait_status(state="APPLIED", store_error="")
    # The watch was resumed: a later change comes through it, too.
    world.client.put("/demo/nginx/upstreams/app/servers/a", world.one.address)
    world.wait_answer("one")


def test_compacted_history_while_the_store_was_away(world: World) -> None:
    world.put_all(world.one)
    world.start_nginx()
    world.start_agent()
    world.wait_answer("one")
    world.store.kill()
    wait_for(lambda: world.status()["store_error"], "the agent notices")
    world.store.start()
    for _ in range(5):
        revision = world.client.put("/demo/nginx/upstreams/app/servers/a", world.two.address).revision
    with contextlib.suppress(Compacted):  # past it already is as good
        world.client.compact(revision)
    world.wait_answer("two")


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_a_killed_agent_resumes(world: World, delay_s: float) -> None:
    """SIGKILL while a change is being applied, with a slow check and a slow reload so that it hits all
    phases."""
    prefix = world.folder / "nginx"
    slow = f"sleep 0.1; {NGINX} -p {prefix} -c {prefix}/nginx.conf -s reload"
    world.write_agent(f'[check]\ncmd = "sleep 0.05"\n[reload]\ncmd = "{slow}"\n')
    world.put_all(world.one)
    world.start_nginx()
    agent = world.start_agent()
    world.wait_answer("one")
    wanted = world.one
    for round_number in range(3):
        wanted = world.two if wanted is world.one else world.one
        world.client.put("/demo/nginx/upstreams/app/servers/a", wanted.address)
        time.sleep(delay_s + 0.03 * round_number)
        agent.kill()
        agent.wait(10)
        text = world.output.read_text()
        assert (world.one.address in text) != (world.two.address in text), "wholly old or wholly new"
        agent = world.start_agent()
        world.wait_answer(wanted.name)
    world.wait_status(state="APPLIED", reload_pending=False)
    assert not list((prefix / "conf.d").glob(".*")), "no temporary file is left"


def test_a_pending_reload_is_run_at_the_next_start_without_the_store(world: World) -> None:
    """Killed between the swap and the reload: the next start reloads although the store is away."""
    prefix = world.folder / "nginx"
    gate = world.folder / "gate"
    wait = f"test ! -e {gate} || echo $$ > {gate}.pid; while [ -e {gate} ]; do sleep 0.05; done"
    reload = f"{wait}; {NGINX} -p {prefix} -c {prefix}/nginx.conf -s reload"
    world.write_agent(f'[reload]\ncmd = "{reload}"\n')
    world.put_all(world.one)
    world.start_nginx()
    agent = world.start_agent()
    world.wait_answer("one")
    gate.touch()
    world.client.put("/demo/nginx/upstreams/app/servers/a", world.two.address)
    pid_file = world.folder / "gate.pid"
    wait_for(lambda: pid_file.exists() and pid_file.read_text().strip(), "the reload waits")
    assert world.two.address in world.output.read_text()
    agent.kill()
    agent.wait(10)
    world.store.kill()
    # The orphaned reload command must not do the work that the restarted agent owes.
    os.killpg(int(pid_file.read_text()), signal.SIGKILL)
    gate.unlink()
    assert world.answer() == "one"
    world.start_agent()
    world.wait_answer("two")


def test_once_plan_render_and_exit_statuses(world: World) -> None:
    world.put_all(world.one)
    planned = world.agent("plan")
    assert planned.returncode == 2, planned.stderr
    assert f"+    server {world.one.address} " in planned.stdout
    assert not world.output.exists(), "a plan changes nothing"

    done = world.agent("once")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert world.one.address in world.output.read_text()
    assert world.agent("plan").returncode == 0
    assert world.agent("once").returncode == 0

    key = "/demo/nginx/upstreams/app/servers/a"
    changed = world.agent("plan", "--set", f"{key}={world.two.address}")
    assert changed.returncode == 2
    assert (
        f"-    server {world.one.address} " in changed.stdout
        and f"+    server {world.two.address} " in changed.stdout
    )
    refused = world.agent("plan", "--set", f"{key}=evil; }}")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.count("\n") == 1 and "address: expected host:port" in refused.stderr
    only_backup = json.dumps({"address": world.one.address, "backup": True})
    held = world.agent("plan", "--set", f"{key}={only_backup}")
    assert held.returncode == 3 and "nginx -t: no servers in upstream" in held.stderr
    assert f"{world.output}:" in held.stderr, "nginx names the real file, not the copy that was tested"
    deleted = world.agent("plan", "--delete", key)
    assert deleted.returncode == 3 and "names upstream 'app', which is not there" in deleted.stderr

    rendered = world.agent("render", "nginx")
    assert rendered.returncode == 0 and rendered.stdout.startswith(f"# {world.output}\n")
    assert world.agent("render", "nothing").returncode == 1
    assert world.agent("check-config").returncode == 0
    listed = json.loads(world.agent("plugins", "--json").stdout)
    states = {each["name"]: each["state"] for each in listed}
    assert {"builtin", "nginx"} <= states.keys() and set(states.values()) == {"loaded"}
    world.store.kill()
    away = world.agent("once")
    assert away.returncode == 4 and away.stderr.count("store: ") == 1 and "Traceback" not in away.stderr


def test_sighup_takes_a_good_configuration_and_refuses_a_wrong_one(world: World) -> None:
    world.put_all(world.one)
    world.start_nginx()
    with notify_socket(world.folder) as (address, messages):
        agent = world.start_agent(NOTIFY_SOCKET=address, WATCHDOG_USEC="400000")
        world.wait_answer("one")
        wait_for(lambda: "READY=1" in messages, "READY")
        wait_for(lambda: messages.count("WATCHDOG=1") >= 3, "watchdog pings")

        second = world.folder / "etc/conf.d/second.toml"
        second.write_text('[template]\nsrc = "x.j2"\ndest = "relative"\nkeys = ["/x"]\n')
        agent.send_signal(signal.SIGHUP)
        wait_for(lambda: "reload refused, the old configuration stays" in world.log, "the refusal")
        assert "second.toml:3:1: template.dest: expected an absolute path" in world.log

        write_tree(world.folder / "etc", {"templates/x.j2": '{{ getv("/x", "none") }}\n'})
        second.write_text(f'[template]\nsrc = "x.j2"\ndest = "{world.folder}/x.out"\nkeys = ["/x"]\n')
        agent.send_signal(signal.SIGHUP)
        wait_for(lambda: (world.folder / "x.out").exists(), "the new resource is applied")
        assert (world.folder / "x.out").read_text() == "none\n"
        world.client.put("/demo/x", "some")
        wait_for(lambda: (world.folder / "x.out").read_text() == "some\n", "it is followed")
        write_tree(world.folder / "etc", {"templates/x.j2": 'again {{ getv("/x") }}\n'})
        agent.send_signal(signal.SIGHUP)
        wait_for(
            lambda: (world.folder / "x.out").read_text() == "again some\n", "a changed template is rendered"
        )
        reloading = [message for message in messages if message.startswith("RELOADING=1\nMONOTONIC_USEC=")]
        assert len(reloading) == 3 and messages.count("READY=1") >= 4
        assert world.stop_agent(agent) == 0
        assert "STOPPING=1" in messages


def test_two_agents_do_not_share_a_state_directory(world: World) -> None:
    world.put_all(world.one)
    world.start_agent()
    wait_for(world.output.exists, "the first agent works")
    second = world.agent("once")
    assert second.returncode == 1
    assert second.stderr == f"etcd-py-agent: state_dir {world.folder}/state is in use by another agent\n"


@contextlib.contextmanager
def notify_socket(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """systemd's end of NOTIFY_SOCKET: an address and the list of datagrams received so far."""
    address = str(folder / "notify")
    messages: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(0.1)
        done = threading.Event()

        def receive() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    messages.append(receiver.recv(4096).decode("ascii"))

        thread = threading.Thread(target=receive)
        thread.start()
        try:
            yield address, messages
        finally:
            done.set()
            thread.join(5)
            os.unlink(address)
