"""Many agents as processes, started cheaply: one process imports the agent and forks each host's.

`python -m tests.integration.fleet_support` is that process: a line "FILE LOG" on its input starts an agent
with the configuration FILE, whose process id is the answer. It ends all of them when its input ends.

`AgentFleet` is a whole fleet in a folder: hosts with one resource each, a service whose reload says in one
file when it begins and ends, and refuses a file with BAD in it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

LIMIT_S = 30.0
ROOT = Path(__file__).resolve().parents[2]

RELOAD = """#!/bin/sh
# What a service does when it is reloaded on host $1.
echo "start $1" >> EVENTS
while [ -e HOLD/$1 ]; do sleep 0.05; done
sleep 0.02
grep -q BAD HOSTS/$1/app.conf
refused=$?
echo "stop $1" >> EVENTS
[ $refused -ne 0 ]
"""

AGENT = """
state_dir = "HOST/state"
runtime_dir = "HOST/run"
nodes = [NODES]
log_level = "info"

[host]
id = "NAME"

[rollout]
group = "web"
max_concurrent = 2
canary = ["CANARY"]
max_failures = 0
lease_ttl = "8s"

[report]
enabled = true
ttl = "10s"

[backend]
request_timeout = "10s"
"""

RESOURCE = """
[resource]
name = "app"
keys = ["/app"]

[[template]]
src = "app.j2"
dest = "HOST/app.conf"

[reload]
cmd = ["RELOAD", "NAME"]

[health]
retries = 0
"""


class AgentFleet:
    """Hosts "h00", "h01", ...; the first is the canary. A context manager that ends all it has started."""

    def __init__(self, folder: Path, size: int, nodes: list[str], head: str = "") -> None:
        """`head`: further lines for each agent.toml."""
        self.folder = folder
        self.names = [f"h{number:02}" for number in range(size)]
        self.canary = self.names[0]
        self.events_path = folder / "events"
        self.events_path.touch()
        self.hold = folder / "hold"
        self.hold.mkdir()
        self.pids: dict[str, int] = {}
        reload = folder / "reload"
        text = RELOAD.replace("EVENTS", str(self.events_path)).replace("HOLD", str(self.hold))
        reload.write_text(text.replace("HOSTS", str(folder)))
        reload.chmod(0o755)
        for number, name in enumerate(self.names):
            # Each begins with another member, so that they share the work.
            turned = [nodes[(number + step) % len(nodes)] for step in range(len(nodes))]
            self._write(name, turned, reload, head)
        self._starter = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.fleet_support"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _write(self, name: str, nodes: list[str], reload: Path, head: str) -> None:
        host = self.folder / name
        for part in ("conf.d", "templates", "run"):
            (host / part).mkdir(parents=True)
        values = {
            "HOST": str(host),
            "NAME": name,
            "CANARY": self.canary,
            "NODES": ", ".join(f'"{node}"' for node in nodes),
            "RELOAD": str(reload),
        }
        (host / "agent.toml").write_text(head + _filled(AGENT, values))
        (host / "conf.d" / "app.toml").write_text(_filled(RESOURCE, values))
        (host / "templates" / "app.j2").write_text("{{ getv('/app/value') }} on {{ host }}\n")

    def start(self, *names: str) -> None:
        assert self._starter.stdin is not None and self._starter.stdout is not None
        for name in names:
            host = self.folder / name
            self._starter.stdin.write(f"{host}/agent.toml {host}/log\n")
            self._starter.stdin.flush()
            ready, _, _ = select.select([self._starter.stdout], [], [], LIMIT_S)
            assert ready, "the starter does not answer"
            self.pids[name] = int(self._starter.stdout.readline())

    def kill(self, name: str) -> None:
        os.kill(self.pids.pop(name), signal.SIGKILL)

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pids[name], number)

    def config(self, name: str) -> Path:
        return self.folder / name / "agent.toml"

    def content(self, name: str) -> str:
        path = self.folder / name / "app.conf"
        return path.read_text() if path.exists() else ""

    def log(self, name: str) -> str:
        path = self.folder / name / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def events(self) -> list[tuple[str, str]]:
        """("start" or "stop", host) of all reloads so far, in order."""
        lines = self.events_path.read_text().splitlines()
        return [(kind, name) for kind, _, name in (line.partition(" ") for line in lines)]

    def most_at_once(self) -> int:
        """How many hosts were in the reload at the same time, at most."""
        now: set[str] = set()
        most = 0
        for kind, name in self.events:
            assert (name in now) == (kind == "stop"), f"{kind} {name} out of order"
            now = now | {name} if kind == "start" else now - {name}
            most = max(most, len(now))
        return most

    def __enter__(self) -> AgentFleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._starter.stdin is not None and self._starter.stdout is not None
        for name in self.names:
            (self.hold / name).unlink(missing_ok=True)
        self._starter.stdin.close()
        try:
            self._starter.wait(LIMIT_S)
        finally:
            self._starter.kill()
            self._starter.wait(LIMIT_S)
            self._starter.stdout.close()


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _serve() -> None:
    """The process that forks: it starts no thread, so its children begin with everything whole."""
    from etcd_agent import cli

    children: set[int] = set()
    for line in sys.stdin:
        config, _, log = line.strip().partition(" ")
        pid = os.fork()
        if pid == 0:
            _become(cli.main, config, log)
        children.add(pid)
        print(pid, flush=True)
        children -= _ended()
    for pid in children - _ended():
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        _wait(pid)


def _become(main: object, config: str, log: str) -> None:
    """In the child: the agent of one host, from here to its end."""
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        assert callable(main)
        main(["--config", config, "run"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def _ended() -> set[int]:
    """Children that have ended since the last look."""
    found: set[int] = set()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.add(pid)


def _wait(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


if __name__ == "__main__":
    _serve()
