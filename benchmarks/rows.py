"""What is measured: one Row for each line of the table, and how each is run against one server.

A row fills its key space, warms up, and then measures one run of the load generator together with the
server's CPU time and memory. `startup` measures what a large key space costs instead. Targets are ratios to
the other server, except where they are absolute.
"""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import failover
from benchmarks.cluster import Trio
from benchmarks.servers import MIB, BenchError, Server

Measured = Server | Trio

LOADGEN = Path(__file__).parent / "loadgen"
VALUE_BYTES = 256


@dataclass(frozen=True)
class Scale:
    """How long a run may be. `requests` is a factor on each row's number; `keys` is the large key space."""

    requests: float
    seconds: int
    keys: int
    rounds: int


FULL = Scale(requests=1.0, seconds=30, keys=1_000_000, rounds=3)
QUICK = Scale(requests=0.2, seconds=5, keys=100_000, rounds=1)


@dataclass(frozen=True)
class Sample:
    """One run of one row against one server. Figures that a row has not are absent."""

    figures: Mapping[str, float]
    error: str = ""


@dataclass(frozen=True)
class Target:
    """What a figure has to reach: at least (or at most) `bound`, of the ratio ours/etcd or of our figure
    itself."""

    figure: str
    bound: float
    at_most: bool = False
    absolute: bool = False

    def reached(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value <= self.bound if self.at_most else value >= self.bound

    def text(self) -> str:
        """For people."""
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}{' s' if self.absolute else ' x'}"


@dataclass(frozen=True)
class Row:
    """A line of the table. `figure` is what its ratio is of. `measure` gets a running server, or three
    where `members` is 3."""

    name: str
    title: str
    measure: Callable[[Any, Scale], Sample]
    targets: tuple[Target, ...] = field(default=())
    figure: str = "rate"
    members: int = 1


def load(server: Measured, workload: str, **options: object) -> dict[str, Any]:
    """Runs the load generator once; returns its report. Raises BenchError when it fails."""
    command = [str(LOADGEN / "target/release/etcd-loadgen"), workload, "--address", server.address]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if result.returncode != 0:
        raise BenchError(f"{server.binary.name}: {result.stderr.strip() or result.returncode}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def fill(server: Measured, keys: int) -> None:
    """Puts keys in, quickly, in large transactions."""
    report = load(server, "fill", total=keys, clients=8, connections=2, value_size=VALUE_BYTES)
    if report["errors"]:
        raise BenchError(f"{server.binary.name}: fill: {report['first_error']}")


def filled(server: Measured, keys: int) -> None:
    """Puts keys in and starts the server anew, so that reads do not pay for the way in which it was filled:
    the large transactions leave buffers behind in etcd 3.4 that each later read copies."""
    fill(server, keys)
    server.stop()
    server.start()


def measured(server: Measured, workload: str, scale: Scale, total: int, **options: object) -> Sample:
    """One run of a workload: its report, and what it cost the server."""
    total = max(int(total * scale.requests), 3)
    cpu_s = server.cpu_s()
    report = load(server, workload, total=total, seconds=scale.seconds, **options)
    cpu_s = server.cpu_s() - cpu_s
    memory = server.memory()
    figures = {
        "rate": report["rate"],
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
        "cpu_s_per_10k": cpu_s / max(report["count"], 1) * 10_000,
        "rss_mib": memory.resident / MIB,
        "anonymous_mib": memory.anonymous / MIB,
        "loadgen_cpu": report["loadgen_cpu_seconds"] / report["seconds"],
    }
    return Sample(figures, report.get("first_error", ""))


MANY: Mapping[str, int] = {"clients": 1000, "connections": 100}


def put_1(server: Measured, scale: Scale) -> Sample:
    load(server, "put", total=100, prefix="w")
    return measured(server, "put", scale, 10_000)


def put_1000(server: Measured, scale: Scale) -> Sample:
    load(server, "put", total=2_000, prefix="w", **MANY)
    return measured(server, "put", scale, 200_000, **MANY)


def get(consistency: str) -> Callable[[Measured, Scale], Sample]:
    def measure(server: Measured, scale: Scale) -> Sample:
        keys = 10_000
        filled(server, keys)
        options = {"keys": keys, "order": "random", "consistency": consistency, **MANY}
        load(server, "range", total=2_000, **options)
        return measured(server, "range", scale, 200_000, **options)

    return measure


def txn(server: Server, scale: Scale) -> Sample:
    load(server, "txn", total=2_000, prefix="w", **MANY)
    return measured(server, "txn", scale, 100_000, **MANY)


def watch(server: Server, scale: Scale) -> Sample:
    return measured(server, "watch", scale, 1_000, watchers=1000, connections=100, clients=10)


def range_100k(server: Server, scale: Scale) -> Sample:
    keys = 100_000
    filled(server, keys)
    load(server, "range-all", total=1, keys=keys)
    return measured(server, "range-all", scale, 30, keys=keys)


def lease_keepalive(server: Server, scale: Scale) -> Sample:
    return measured(server, "lease-keepalive", scale, 200_000, **MANY)


def startup(server: Server, scale: Scale) -> Sample:
    """Fills, stops cleanly, starts: how long until it serves, and what it needs in memory then and before."""
    fill(server, scale.keys)
    full = server.memory()
    disk = server.disk_bytes()
    server.stop()
    server.start()
    started = server.memory()
    figures = {
        "start_s": server.start_s,
        "rss_mib": full.resident / MIB,
        "anonymous_mib": full.anonymous / MIB,
        "started_rss_mib": started.resident / MIB,
        "started_anonymous_mib": started.anonymous / MIB,
        "disk_mib": disk / MIB,
    }
    return Sample(figures)


def through_follower(measure: Callable[[Trio, Scale], Sample]) -> Callable[[Trio, Scale], Sample]:
    """The same, with all clients at a member that does not lead."""

    def elsewhere(trio: Trio, scale: Scale) -> Sample:
        trio.through_follower = True
        return measure(trio, scale)

    return elsewhere


def leader_killed(trio: Trio, scale: Scale) -> Sample:
    """The longest time without an answer that a client with three endpoints meets when the leader is
    killed."""
    pause = failover.lose_leader(trio, kill=True)
    return Sample({"pause_s": pause.longest_s})


ROWS = (
    Row("put-1", "put, 1 client", put_1, (Target("rate", 1.0),)),
    Row("put-1000", "put, 1,000 clients on 100 connections", put_1000, (Target("rate", 1.5),)),
    Row("get-linearizable", "linearizable get, 1,000 clients", get("linearizable"), (Target("rate", 2.5),)),
    Row("get-serializable", "serializable get, 1,000 clients", get("serializable")),
    Row("txn", "compare-and-put, 1,000 clients", txn),
    Row("watch", "events to 1,000 watchers of a key", watch),
    Row("range-100k", "range of 100,000 keys", range_100k),
    Row("lease-keepalive", "lease keep-alive, 1,000 streams", lease_keepalive),
    Row(
        "startup",
        "start and memory, {keys:,} keys",
        startup,
        (
            Target("start_s", 1.0, at_most=True, absolute=True),
            Target("rss_mib", 0.5, at_most=True),
            Target("started_rss_mib", 0.5, at_most=True),
        ),
        figure="rss_mib",
    ),
    Row("three-put-1", "three members: put, 1 client", put_1, (Target("rate", 1.2),), members=3),
    Row(
        "three-put-1000",
        "three members: put, 1,000 clients on 100 connections",
        put_1000,
        (Target("rate", 1.2),),
        members=3,
    ),
    Row(
        "three-get-leader",
        "three members: linearizable get at the leader, 1,000 clients",
        get("linearizable"),
        (Target("rate", 2.0),),
        members=3,
    ),
    Row(
        "three-get-follower",
        "three members: linearizable get at a follower, 1,000 clients",
        through_follower(get("linearizable")),
        (Target("rate", 2.0),),
        members=3,
    ),
    Row(
        "three-pause",
        "three members: the leader is killed",
        leader_killed,
        (Target("pause_s", 2.0, at_most=True, absolute=True),),
        figure="pause_s",
        members=3,
    ),
)
