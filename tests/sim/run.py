"""One run and many: `python -m tests.sim.run SEED` or `python -m tests.sim.run FIRST..LAST`.

A run has a safety phase, in which anything may fail and nothing may be wrong, and a liveness phase, in which
a majority is whole again and must serve: a leader within ten election time-outs, everything answered, equal
and quiet within thirty seconds. Then the evidence is judged (`verdict.py`).

A run in which clients got little done proves nothing: it is void, and counted as that (`tally.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from math import inf
from pathlib import Path

from etcd_server.raft.quorum import majority
from tests.sim.clients import Clients
from tests.sim.faults import Faults, free_disk
from tests.sim.invariants import Invariants
from tests.sim.leases import LeaseLedger
from tests.sim.network import Network
from tests.sim.node import Cluster
from tests.sim.plan import Plan, draw_plan
from tests.sim.tally import Report, shortcomings, summary, total
from tests.sim.verdict import judge
from tests.sim.world import Violation, World

LIVENESS_S = 30.0
VOID_SHARE = 0.5
TWICE_SHARE = 20  # one seed in so many is run twice


class Simulation:
    """One run: the world and all that is in it."""

    def __init__(self, plan: Plan, scratch: Path, stack: ExitStack) -> None:
        self.plan = plan
        self.world = World(plan)
        self.invariants = Invariants(self.world)
        self.network = Network(self.world, lambda message: self.cluster.deliver(message))
        self.cluster = Cluster(self.world, self.network, self.invariants, scratch)
        stack.callback(self._close)
        for member_id in self.cluster.first_members:
            self.cluster.add_host(member_id)
        self.hosts = self.cluster.hosts
        self.clients = Clients(self.world, self.cluster)
        self.invariants.first_applied = LeaseLedger(self.world, self.clients.history.leases).applied

    def _close(self) -> None:
        for host in self.cluster.all_hosts.values():
            host.close()

    def run(self) -> None:
        """Raises Violation."""
        world, plan = self.world, self.plan
        for host in self.hosts:
            world.after(host.draw.uniform(0, 0.2), host.start)
        self.clients.begin()
        faults = Faults(world, self.network, self.hosts)
        world.run_until(plan.safety_s)
        faults.is_over = True
        self._recover()
        judge(world, self.invariants, self.clients.history, self.hosts)

    # --- liveness -----------------------------------------------------------------------------------------

    def _recover(self) -> None:
        world, plan = self.world, self.plan
        world.trace("world", "everything heals")
        draw = world.source("healing")
        core = list(self.hosts)
        # While members come and go the next change may need any of them.
        if not plan.membership_interval_s and draw.random() < 0.4:
            core = sorted(
                draw.sample(self.hosts, draw.randint(majority(len(self.hosts)), len(self.hosts))),
                key=lambda host: host.member_id,
            )
        self.network.heal()
        for host in list(self.hosts):
            free_disk(host)
            host.disk.sync_fails_at = None
            host.slow_until_s = 0.0
            if host not in core:
                host.kill(1e9)
                host.has_power = False
                self.hosts.remove(host)
                continue
            host.disk._dies_at = None
            host._get_power()
            host.start()
            if host.process is not None:
                host.process.resume()
        # A member that was paused for long has to find out first, hence the constant.
        self._wait("leader", 10 * 2 * plan.election_timeout_s + 5, lambda: self._have_leader())
        self.clients.is_asking = False
        self._wait("quiet", LIVENESS_S, lambda: self._is_quiet())
        quiet_s = world.now
        world.run_until(quiet_s + 0.1)  # what has been sent arrives
        for watcher in self.clients.watchers:
            if watcher.stream_id and watcher.host in self.hosts and watcher.sessions[-1].begun_s <= quiet_s:
                watcher.sessions[-1].is_current = True
        for host in self.hosts:
            if host.process is None:
                raise Violation("liveness", f"{host.name} has ended, though nothing is wrong")
            engine = host.process.engine
            if len(engine.core.proposals) or engine.reads._asked or engine.reads._confirmed:
                raise Violation("bounds", f"{host.name} still has somebody waiting")

    def _wait(self, what: str, limit_s: float, holds: Callable[[], bool]) -> None:
        world = self.world
        end_s = world.now + limit_s
        while not holds():
            if world.now >= end_s:
                raise Violation("liveness", f"no {what} within {limit_s:.1f} s: {self._describe()}")
            self._start_strangers()
            world.run_until(world.now + 0.25)

    def _start_strangers(self) -> None:
        """Whoever added a member, and was perhaps never told that it was added, starts it: it may be the one
        that is missing for a quorum."""
        known = self.cluster.all_hosts
        states = [host.process.machine for host in self.hosts if host.process is not None]
        for member in [member for machine in states for member in machine.members.all()]:
            if member.ID not in known:
                self.cluster.add_host(member.ID).start()

    def _have_leader(self) -> bool:
        leaders = {host.process.engine.core.leader_id if host.process else 0 for host in self.hosts}
        return len(leaders) == 1 and 0 not in leaders

    def _is_quiet(self) -> bool:
        ledger = self.invariants.ledger
        for host in self.hosts:
            process = host.process
            if process is None or process.machine.applied_index != len(ledger):
                return False
            if process.engine.core.is_leader and process.log.last_index() != len(ledger):
                return False
            machine = process.machine
            if any(member.ID not in self.cluster.all_hosts for member in machine.members.all()):
                return False
            if machine.compaction_pending or machine.leases.all():
                return False
            engine = process.engine
            if len(engine.core.proposals) or engine.reads._asked or engine.reads._confirmed:
                return False
            hub = process.engine.hub
            if hub._places.lagging or any(stream.paused for stream in hub._streams.values()):
                return False
        return self._have_leader() and self.clients.are_quiet

    def _describe(self) -> str:
        parts = []
        for host in self.hosts:
            if host.process is None:
                parts.append(f"{host.name} is down")
            else:
                status, engine = host.process.node.status, host.process.engine
                parts.append(
                    f"{host.name} {status.role.value} term {status.term} leader {status.leader_id} "
                    f"last {status.last_index} commit {status.commit_index} applied {status.applied_index} "
                    f"waiting {len(engine.core.proposals)}+{len(engine.reads._asked)}"
                )
        clients = "quiet" if self.clients.are_quiet else "waiting"
        return f"{'; '.join(parts)}; ledger {len(self.invariants.ledger)}, clients {clients}"

    def is_void(self) -> bool:
        """Clients got less than half of what a whole cluster would have done for them."""
        plan = self.plan
        expected = plan.clients * plan.safety_s / (plan.think_s + 0.05)
        return self.world.counts["operation succeeded"] < VOID_SHARE * expected


def run_seed(seed: int) -> Report:
    """Run one seed to its verdict."""
    plan = draw_plan(seed)
    report = Report(seed)
    with (
        tempfile.TemporaryDirectory(prefix="etcd-py-sim-", dir=_fast_directory()) as folder,
        ExitStack() as stack,
    ):
        simulation = Simulation(plan, Path(folder), stack)
        world = simulation.world
        try:
            simulation.run()
        except Violation as violation:
            report.check, report.failure = violation.check, str(violation)
        except Exception as error:  # whatever the shipped code raises unasked is a failure of the run
            report.check = type(error).__name__
            report.failure = f"{type(error).__name__}: {error} ({_where(error)})"
        report.is_void = not report.failed and simulation.is_void()
        report.virtual_s, report.events, report.trace_hash = world.now, world.events, world.trace_hash
        report.counts = world.counts
        if report.failed:
            report.script = list(world.script())
    return report


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    places = []
    while trace is not None:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return " ".join(places[-4:])


def _fast_directory() -> str | None:
    """Only locks are files; where there is memory for them, a disk need not see them."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def run_checked(seed: int) -> Report:
    """Run a seed, and one in twenty a second time: the same seed is the same run."""
    report = run_seed(seed)
    if seed % TWICE_SHARE == 0 and not report.failed:
        again = run_seed(seed)
        report.counts["run twice"] += 1
        if again.trace_hash != report.trace_hash:
            report.check = "determinism"
            report.failure = f"seed {seed} gave traces {report.trace_hash:08x} and {again.trace_hash:08x}"
    return report


def run_many(seeds: Iterable[int], workers: int) -> Iterable[Report]:
    """The reports of many seeds, in their order."""
    if workers <= 1:
        yield from map(run_checked, seeds)
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            yield from pool.map(run_checked, seeds)
        finally:
            pool.shutdown(cancel_futures=True)


def show_failure(report: Report) -> None:
    """Seed, plan, the last events and what is wrong, for a person."""
    print(f"\n# seed {report.seed}\n# {draw_plan(report.seed).describe()}")
    for line in report.script:
        print(line)
    print(f"# seed {report.seed} failed: {report.failure}")
    print(f"# again: make sim SEED={report.seed}")


def parse_seeds(text: str) -> range:
    """`7` or `1..200`. Raises ValueError."""
    first, separator, last = text.partition("..")
    return range(int(first), int(last) + 1) if separator else range(int(first), int(first) + 1)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.sim.run", description="Simulate whole clusters from seeds.")
    parser.add_argument("seeds", type=parse_seeds, help="one seed, or FIRST..LAST")
    parser.add_argument("--workers", type=int, default=1, help="processes to share the seeds")
    parser.add_argument("--counts", action="store_true", help="print how often everything happened")
    parser.add_argument("--minutes", type=float, default=inf, help="begin no seed after so long")
    options = parser.parse_args(arguments)
    begun_s = time.monotonic()
    reports = []
    for report in run_many(options.seeds, options.workers):
        reports.append(report)
        if report.failed:
            show_failure(report)
        if time.monotonic() - begun_s >= 60 * options.minutes:
            break
    if len(reports) == 1 and not reports[0].failed:
        print(draw_plan(reports[0].seed).describe())
        print(f"trace {reports[0].trace_hash:08x}, {reports[0].events} events")
    if options.counts or len(reports) == 1:
        for name, count in sorted(total(reports).items()):
            print(f"{count:9}  {name}")
    lacking = shortcomings(reports)
    for shortcoming in lacking:
        print(shortcoming)
    print(summary(reports, time.monotonic() - begun_s), flush=True)
    return 1 if lacking or any(report.failed for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
