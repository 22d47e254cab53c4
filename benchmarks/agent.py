"""Measures the agent: `make bench-agent`, or `python -m benchmarks.agent --help`.

An agent follows a server of this machine, both new and on the same disk. Rows:

    latency-1, latency-1000  from the return of a put until the file of its resource holds the value, and
                             until its reload has run, with one resource and with a thousand, `wait` 0
    coalesced                reloads of a resource with `wait` 100 ms to 1 s after 100 puts within a second
    idle                     the agent's CPU with a thousand resources and nothing to do
    watchers                 what a thousand agents cost a server: connections with a watch each, and events

Times are taken by looking at the files every half millisecond, which is part of what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rows import load
from benchmarks.servers import MIB, BenchError, Binary, Server, cpu_s, memory, running
from etcd_client import Client

MANY = 1000
LOOK_S = 0.0005
LIMIT_S = 120.0
WORST_LATENCY_S = 0.1
MOST_IDLE_SHARE = 0.01
BURST = 100
SETTLE_S = (0.1, 1.0)

_AGENT = """\
nodes = ["{url}"]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
"""
_RESOURCE = """\
[resource]
prefix = "/bench/{name}"
keys = ["/value"]
wait = {{ min = "{least_s}s", max = "{most_s}s" }}
[[template]]
src = "value.j2"
dest = "{folder}/out/{name}"
[reload]
cmd = "echo $AGENT_REVISION >> {folder}/reloads/{name}"
"""


@dataclass(frozen=True)
class Line:
    """One line of the table. `reached` is None where nothing was to be reached."""

    row: str
    figure: str
    value: str
    wanted: str = ""
    reached: bool | None = None


class Agent:
    """An agent of its own folder, with `count` resources that are applied when this is entered."""

    def __init__(
        self, program: Path, folder: Path, server: Server, count: int, settle_s: tuple[float, float]
    ) -> None:
        self._program = program
        self.folder = folder
        self.names = [f"r{number:04}" for number in range(count)]
        self.client = Client(server.url)
        for part in ("conf.d", "templates", "out", "reloads"):
            (folder / part).mkdir(parents=True)
        (folder / "agent.toml").write_text(_AGENT.format(url=server.url, folder=folder))
        (folder / "templates" / "value.j2").write_text('{{ getv("/value") }}\n')
        least_s, most_s = settle_s
        for name in self.names:
            text = _RESOURCE.format(name=name, folder=folder, least_s=least_s, most_s=most_s)
            (folder / "conf.d" / f"{name}.toml").write_text(text)
            self.client.put(f"/bench/{name}/value", "first")

    def __enter__(self) -> Agent:
        command = [str(self._program), "--config", str(self.folder / "agent.toml"), "run"]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for name in self.names:
                self.wait(lambda name=name: self.reloads(name) > 0, f"{name} is not applied")  # type: ignore[misc]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self, is_so: Callable[[], bool], otherwise: str) -> None:
        """Looks until it is so. Raises BenchError."""
        deadline_s = time.monotonic() + LIMIT_S
        while not is_so():
            if time.monotonic() > deadline_s or self._process.poll() is not None:
                last = (self.folder / "log").read_text(errors="replace").strip().splitlines()[-1:]
                raise BenchError(f"{otherwise}; the agent's last line: {' '.join(last)}")
            time.sleep(LOOK_S)

    def content(self, name: str) -> str:
        return (self.folder / "out" / name).read_text().strip()

    def reloads(self, name: str) -> int:
        """How often the resource has been reloaded."""
        path = self.folder / "reloads" / name
        return path.read_text().count("\n") if path.exists() else 0

    @property
    def pid(self) -> int:
        return self._process.pid


def latency(agent: Agent, puts: int) -> Iterator[Line]:
    """One put after the other, each to a resource of its own choice."""
    choice = random.Random(1)
    to_file: list[float] = []
    to_reload: list[float] = []
    for number in range(puts):
        name = choice.choice(agent.names)
        value, before = f"value {number}", agent.reloads(name)
        agent.client.put(f"/bench/{name}/value", value)
        begun_s = time.monotonic()
        agent.wait(lambda name=name, value=value: agent.content(name) == value, f"{name} is not written")  # type: ignore[misc]
        to_file.append(time.monotonic() - begun_s)
        agent.wait(lambda name=name, before=before: agent.reloads(name) > before, f"{name} is not reloaded")  # type: ignore[misc]
        to_reload.append(time.monotonic() - begun_s)
    row = f"latency-{len(agent.names)}"
    worst_s = _percentile(to_file, 99)
    yield Line(row, "file, p50", _ms(statistics.median(to_file)))
    yield Line(
        row, "file, p99", _ms(worst_s), f"≤ {WORST_LATENCY_S * 1000:.0f} ms", worst_s <= WORST_LATENCY_S
    )
    yield Line(row, "reload, p50", _ms(statistics.median(to_reload)))
    yield Line(row, "reload, p99", _ms(_percentile(to_reload, 99)))


def coalesced(agent: Agent) -> Iterator[Line]:
    """A burst of puts to one resource; how many reloads come of it, the last with the last value."""
    name = agent.names[0]
    before = agent.reloads(name)
    begun_s = time.monotonic()
    for number in range(BURST):
        agent.client.put(f"/bench/{name}/value", f"burst {number}")
        time.sleep(max(0.0, begun_s + (number + 1) / BURST - time.monotonic()))
    took_s = time.monotonic() - begun_s
    agent.wait(lambda: agent.content(name) == f"burst {BURST - 1}", f"{name} is not written")
    agent.wait(lambda: agent.reloads(name) > before, f"{name} is not reloaded")
    time.sleep(2 * SETTLE_S[0])
    reloads = agent.reloads(name) - before
    # One each time that changes have come for as long as they may, and one after the last of them.
    most = int(took_s / SETTLE_S[1]) + 1
    figure = f"reloads after {BURST} puts in {took_s:.1f} s"
    yield Line("coalesced", figure, str(reloads), f"≤ {most}", reloads <= most)


def idle(agent: Agent, seconds: float) -> Iterator[Line]:
    """Nothing happens."""
    time.sleep(1.0)
    before_s, begun_s = cpu_s(agent.pid, "etcd-py-agent"), time.monotonic()
    time.sleep(seconds)
    share = (cpu_s(agent.pid, "etcd-py-agent") - before_s) / (time.monotonic() - begun_s)
    figure = f"CPU of {len(agent.names)} resources"
    yield Line("idle", figure, f"{share:.2%}", f"< {MOST_IDLE_SHARE:.0%}", share < MOST_IDLE_SHARE)
    yield Line("idle", "memory", f"{memory(agent.pid, 'etcd-py-agent').resident / MIB:.0f} MiB")


def watchers(server: Server) -> Iterator[Line]:
    """A thousand connections with a watch each, as that many agents have; each event goes to all of them."""
    before = server.memory()
    before_s = server.cpu_s()
    report = load(server, "watch", total=100, watchers=MANY, connections=MANY, clients=1)
    used_s = server.cpu_s() - before_s
    after = server.memory()
    name = server.binary.name
    yield Line("watchers", f"{name}: CPU of an event to {MANY}", f"{used_s / 100 * 1000:.1f} ms")
    yield Line("watchers", f"{name}: events", f"{report['rate']:,.0f}/s")
    yield Line("watchers", f"{name}: memory", f"+{(after.resident - before.resident) / MIB:.0f} MiB")


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


@contextlib.contextmanager
def _agent(
    program: Path, server: Server, count: int, settle_s: tuple[float, float] = (0.0, 0.0)
) -> Iterator[Agent]:
    with (
        tempfile.TemporaryDirectory(dir=server.data_dir.parent) as folder,
        Agent(program, Path(folder).resolve(), server, count, settle_s) as agent,
    ):
        yield agent


def _rows(options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    program = Path(options.agent)
    binaries = [Binary.of(one) for one in options.server]
    with running(binaries[0], folder) as server:
        with _agent(program, server, 1) as agent:
            yield from latency(agent, options.puts)
        with _agent(program, server, 1, SETTLE_S) as agent:
            yield from coalesced(agent)
        with _agent(program, server, MANY) as agent:
            yield from idle(agent, options.idle_s)
            yield from latency(agent, options.puts)
    for binary in binaries:
        with running(binary, folder) as server:
            yield from watchers(server)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all rows; returns the exit status."""
    parser = argparse.ArgumentParser(prog="bench-agent", description="Measures etcd-py-agent.")
    programs = Path(sys.executable).parent
    servers = [str(programs / "etcd-py"), "/usr/bin/etcd"]
    parser.add_argument("--agent", default=str(programs / "etcd-py-agent"), metavar="PROGRAM")
    parser.add_argument(
        "--server", nargs="+", default=servers, metavar="PROGRAM", help="the first is what the agent follows"
    )
    parser.add_argument("--puts", type=int, default=300, metavar="N", help="of each latency row")
    parser.add_argument("--idle-s", type=float, default=20.0, metavar="S", help="how long to look on")
    parser.add_argument("--directory", default="build", metavar="DIR", help="where all data go")
    parser.add_argument("--json", metavar="FILE", help="writes the lines there")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a target is not reached")
    options = parser.parse_args(arguments)
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix="bench-agent-") as folder:
            for line in _rows(options, Path(folder)):
                reached = {None: "", True: "yes", False: "no"}[line.reached]
                text = f"{line.row:<14} {line.figure:<44} {line.value:>12}  {line.wanted:>9}  {reached}"
                print(text.rstrip(), flush=True)
                lines.append(line)
    except BenchError as error:
        print(f"bench-agent: {error}", file=sys.stderr)
        return 1
    if options.json:
        Path(options.json).write_text(json.dumps([vars(line) for line in lines], indent=1) + "\n")
    return 1 if options.check and any(line.reached is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
