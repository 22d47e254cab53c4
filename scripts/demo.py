"""`make demo`: a server, an agent and a real nginx, shown end to end in about half a minute.

Everything is private to the run: free loopback ports, one temporary folder, and every process that is started
is ended again. Each line that is shown has been checked; the first thing that is not so ends the demo with
exit status 1 and the end of the logs.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests

from etcd_client import Client, LiveConfig

BIN = Path(sys.executable).parent
LIMIT_S = 20.0
COLOURS = sys.stdout.isatty()


class NotSo(Exception):
    """Something that the demo shows did not happen."""


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if COLOURS else f"\n{text}", flush=True)


def show(text: str, value: str = "") -> None:
    mark = "\033[32mok\033[0m" if COLOURS else "ok"
    print(f"  {mark}  {text:<66} {value:>10}", flush=True)


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise NotSo(what)


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> float:
    """Seconds until the condition held."""
    begun_s = time.monotonic()
    while not condition():
        expect(time.monotonic() - begun_s < limit_s, f"{what} (waited {limit_s:.0f} s)")
        time.sleep(0.002)
    return time.monotonic() - begun_s


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Backend:
    """A web server that answers with its own name."""

    def __init__(self, name: str) -> None:
        body = name.encode()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """The demo's output is the demo's."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Stage:
    """The folder, the ports and the processes of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client_port, self.peer_port, self.http_port, self.marker_port = free_ports(4)
        self.url = f"http://127.0.0.1:{self.client_port}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ETCDCTL_API": "3"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def start_server(self) -> subprocess.Popen[bytes]:
        peer = f"http://127.0.0.1:{self.peer_port}"
        return self.start(
            "server", str(BIN / "etcd-py"), "--name", "demo", "--data-dir", str(self.folder / "data"),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"demo={peer}",
        )  # fmt: skip

    def healthy(self) -> bool:
        try:
            return bool(requests.get(f"{self.url}/health", timeout=1).json().get("health") == "true")
        except (requests.RequestException, ValueError):
            return False

    def agent(self, *arguments: str) -> list[str]:
        return [str(BIN / "etcd-py-agent"), "--config", str(self.folder / "agent.toml"), *arguments]

    def put(self, key: str, value: str) -> None:
        """With etcdctl where it is installed, as an administrator would; otherwise with our own."""
        etcdctl = shutil.which("etcdctl") or str(BIN / "etcd-pyctl")
        done = self.run(etcdctl, "--endpoints", self.url, "put", key, value)
        expect(done.returncode == 0 and "OK" in done.stdout, f"put {key}: {done.stderr or done.stdout}")

    def answer(self) -> str:
        """Who answers through nginx."""
        try:
            return requests.get(f"http://127.0.0.1:{self.http_port}/", timeout=2).text
        except requests.RequestException as error:
            return type(error).__name__

    def wait_moved(self, name: str) -> float:
        """Seconds until the backend answered first; returns when it answers always: while nginx replaces its
        workers, old ones may still take a connection."""
        took_s = wait_for(lambda: self.answer() == name, f"traffic moves to backend {name}")
        wait_for(lambda: all(self.answer() == name for _ in range(10)), f"backend {name} answers always")
        return took_s

    def status(self) -> dict[str, str]:
        shown = json.loads(self.run(*self.agent("status", "--json")).stdout)
        return dict(shown["resources"][0])

    def logs(self) -> str:
        tails = []
        for path in sorted(self.folder.glob("*.log")):
            tails.append(f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-8:]))
        return "\n".join(tails)

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def write_configuration(stage: Stage) -> Path:
    """The agent's files and a private nginx's; returns nginx's prefix."""
    prefix = stage.folder / "nginx"
    for name in ("nginx/conf.d", "nginx/logs", "nginx/temp", "conf.d", "templates"):
        (stage.folder / name).mkdir(parents=True)
    temporary = " ".join(
        f"{kind}_temp_path {prefix}/temp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (prefix / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {prefix}/nginx.pid; error_log {prefix}/logs/error.log;\n"
        f"events {{ worker_connections 64; }}\n"
        f"http {{ {temporary} access_log off; include conf.d/*.conf; }}\n"
    )
    (stage.folder / "agent.toml").write_text(
        f'confdir = "{stage.folder}"\nstate_dir = "{stage.folder}/agent"\n'
        f'nodes = ["{stage.url}"]\nprefix = "/demo"\nstart_grace = "500ms"\n'
        f'[wait]\nmin = "50ms"\nmax = "1s"\n[backend.retry]\nbackoff = "50ms"\nmax_backoff = "500ms"\n'
    )
    (stage.folder / "conf.d/nginx.toml").write_text(
        f'[resource]\nprefix = "/nginx"\nkeys = ["/upstreams", "/servers"]\n'
        f'[[template]]\nsrc = "nginx:http.conf.j2"\ndest = "{prefix}/conf.d/etcd.conf"\n'
        f'[plugins.nginx]\nconf = "{prefix}/nginx.conf"\nprefix = "{prefix}"\npid = "{prefix}/nginx.pid"\n'
        f'marker = "127.0.0.1:{stage.marker_port}"\n[health]\nretries = 20\ninterval = "50ms"\n'
    )
    return prefix


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    folder = Path(tempfile.mkdtemp(prefix="etcd-py-demo-"))
    made = Stage(folder)
    try:
        yield made
    except NotSo:
        print(made.logs(), file=sys.stderr)
        raise
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


ADDRESS = "/demo/nginx/upstreams/app/servers/a"


def demo(on: Stage, one: Backend, two: Backend) -> None:
    title("1. A server")
    server = on.start_server()
    show("etcd-py serves etcd's protocols", f"{wait_for(on.healthy, 'the server is healthy') * 1000:.0f} ms")
    version = requests.get(f"{on.url}/version", timeout=2).json()
    show(f"speaks as etcd {version['etcdserver']}; etcdctl puts, curl asks /health")

    title("2. A real nginx, configured from keys")
    prefix = write_configuration(on)
    on.put(ADDRESS, one.address)
    on.put("/demo/nginx/servers/web/listen", f"127.0.0.1:{on.http_port}")
    on.put("/demo/nginx/servers/web/locations/root", json.dumps({"path": "/", "upstream": "app"}))
    done = on.run(*on.agent("once"))
    expect(done.returncode == 0, f"etcd-py-agent once: {done.stderr or done.stdout}")
    show("etcd-py-agent once: rendered, checked with nginx -t, written")
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    on.start(
        "nginx", nginx, "-p", str(prefix), "-c", f"{prefix}/nginx.conf", "-e", f"{prefix}/logs/error.log"
    )
    on.wait_moved("one")
    show("nginx passes traffic to backend one")
    agent = on.start("agent", *on.agent("run"))
    wait_for(lambda: on.run(*on.agent("status")).returncode == 0, "the agent runs")
    show("etcd-py-agent run: follows the keys")

    title("3. A key changes, traffic moves")
    for backend, name in ((two, "two"), (one, "one"), (two, "two")):
        on.put(ADDRESS, backend.address)
        show(f"put {ADDRESS}: backend {name} answers after", f"{on.wait_moved(name) * 1000:.0f} ms")

    title("4. A bad value changes nothing")
    on.put(ADDRESS, "127.0.0.1:80; } server { listen 1;")
    wait_for(lambda: on.status()["state"] == "FAILED", "the agent refuses the value")
    show("refused before nginx saw it:")
    print(f"      {on.status()['error'][:100]}")
    expect(on.answer() == "two", "traffic stays where it was")
    show("traffic stays with backend two")
    plan = on.run(*on.agent("plan", "--set", f"{ADDRESS}={one.address}"))
    expect(plan.returncode == 2 and one.address in plan.stdout, f"plan shows the change: {plan.stderr}")
    show("plan --set shows what a change would do, and does not do it")
    on.put(ADDRESS, one.address)
    on.wait_moved("one")
    show("the next good value is applied")

    title("5. The server is killed, and comes back")
    with Client(on.url) as client, LiveConfig(client, "/demo/nginx/upstreams/") as live:
        expect(live["app/servers/a"] == one.address, "a program reads its settings from the store")
        server.send_signal(signal.SIGKILL)
        server.wait(10)
        answer = on.answer()
        expect(answer == "one", f"traffic goes on without the server (nginx answered: {answer})")
        expect(live["app/servers/a"] == one.address, "a program keeps the last values")
        show("SIGKILL: traffic goes on, programs keep their last values")
        on.start_server()
        show("started again on the same data", f"{wait_for(on.healthy, 'the server is back') * 1000:.0f} ms")
        on.put(ADDRESS, two.address)
        on.wait_moved("two")
        show("the agent follows again: backend two answers")
        wait_for(lambda: live["app/servers/a"] == two.address, "the program follows again")
        show("a program with LiveConfig follows again, without a restart")
    expect(agent.poll() is None, "the agent is the one that was started")


def main() -> int:
    if shutil.which("nginx") is None and not os.path.exists("/usr/sbin/nginx"):
        print("demo: nginx is not installed (apt-get install nginx, or dnf install nginx)", file=sys.stderr)
        return 1
    one, two = Backend("one"), Backend("two")
    begun_s = time.monotonic()
    try:
        with stage() as on:
            demo(on, one, two)
            running = [process for process in on.processes if process.poll() is None]
            on.close()
            for process in running:
                expect(process.returncode == 0, f"{process.args!r} ends cleanly ({process.returncode})")
            show("server, agent and nginx stopped cleanly")
    except NotSo as problem:
        print(f"demo: not so: {problem}", file=sys.stderr)
        return 1
    finally:
        one.close()
        two.close()
    title(f"All of it checked, in {time.monotonic() - begun_s:.0f} s; nothing is left running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
