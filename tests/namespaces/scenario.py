"""What every scenario of faults is made of: three members, clients, choices from a seed, and the judges.

A scenario breaks something between the two halves of `Scenario.running`. Before it, members serve and clients
get answers; after it, all must become well without help, all hold the same, stop cleanly, and have nothing
on their disks or in what clients were told that the judges object to.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from etcd_server.api.proto import rpc_pb2
from tests.live import assert_no_traceback
from tests.namespaces.judgement import check_disks, judge, judge_the_judges
from tests.namespaces.machines import Machines
from tests.namespaces.network import Loopback, Network
from tests.namespaces.traffic import Traffic

QUICK = ("--heartbeat-interval", "50", "--election-timeout", "500")
HASH_KV = "/etcdserverpb.Maintenance/HashKV"


class Scenario:
    """Three members with clients, a source of choices, and what is to be reported."""

    def __init__(self, folder: Path, hosts: Loopback, seed: int, flags: tuple[str, ...] = QUICK) -> None:
        self.folder = folder
        self.hosts = hosts
        self.seed = seed
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.flags = flags
        self.begun_s = time.monotonic()
        self.recoveries_s: list[float] = []
        self.judges_are_judged = False

    @property
    def network(self) -> Network:
        assert isinstance(self.hosts, Network)
        return self.hosts

    @contextmanager
    def running(
        self, disk_bytes: int = 0, own_flags: Mapping[int, Sequence[str]] | None = None
    ) -> Iterator[tuple[Machines, Traffic]]:
        """Members that serve, and traffic that flows. At the end all of it is judged.

        own_flags: of the members with these numbers, besides those of all.
        """
        cluster = self.cluster = Machines(self.folder, self.hosts, flags=self.flags, disk_bytes=disk_bytes)
        for number, flags in (own_flags or {}).items():
            cluster.machines[number - 1].add_flags(*flags)
        with cluster:
            cluster.start()
            first_term = self.term()
            traffic = Traffic({machine.number: machine.address for machine in cluster.machines}, self.seed)
            self.traffic = traffic
            try:
                traffic.begin()
                traffic.wait_for_answers(100)
                yield cluster, traffic
                self.recovered()
                traffic.wait_for_answers(100)
                self.counts["terms passed"] = self.term() - first_term
                traffic.end()
            except BaseException:
                print(f"seed {self.seed}", self.counts, traffic.counts, cluster.describe(), sep="\n")
                raise
            finally:
                traffic.abandon()
            self.conclude()

    def conclude(self) -> None:
        """Compare the members, stop them, and let everything be judged."""
        cluster, traffic = self.cluster, self.traffic
        ended_s = traffic.now()
        same_hashes(cluster)
        cluster.stop_all()
        for machine in cluster.machines:
            assert_no_traceback(machine.output)
        check_disks(cluster.machines)
        self.counts += traffic.counts
        evidence = (cluster.machines, traffic.history, ended_s)
        self.counts += judge(self.folder / "judged", *evidence)
        if self.judges_are_judged:
            judge_the_judges(self.folder, *evidence)
        assert self.counts["operation judged"] >= 200, self.counts

    def recovered(self) -> None:
        """All are well again, without help."""
        self.recoveries_s.append(self.cluster.recover())

    def term(self) -> int:
        return max(status.raftTerm for machine in self.cluster.machines if (status := machine.status()))

    def goes_on(self, count: int = 60) -> None:
        """Clients get answers while the fault lasts."""
        self.traffic.wait_for_answers(count)
        self.counts["answers within a fault"] += count

    def report(self) -> str:
        recoveries = ", ".join(f"{recovery_s:.1f}" for recovery_s in self.recoveries_s)
        counts = json.dumps(dict(sorted(self.counts.items())))
        return f"{time.monotonic() - self.begun_s:.0f} s; well again after {recoveries} s; {counts}"


def same_hashes(cluster: Machines) -> None:
    """HashKV and every key-value, at one revision, are the same at all members."""
    with cluster.machines[0].calls() as calls:
        revision = calls.everything().header.revision
    told = []
    for machine in cluster.machines:
        with machine.calls() as calls:
            calls.everything()  # linearizable: the member has applied what there is
            held = calls.everything(revision=revision, serializable=True)
            hashed = calls.call(HASH_KV, rpc_pb2.HashKVRequest(revision=revision))
            told.append((hashed.hash, held.kvs))
    assert all(one == told[0] for one in told), f"members differ at revision {revision}: {told}"
