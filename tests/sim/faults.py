"""What goes wrong, and when: one row for each class of faults that comes at moments.

Loss, doubling, delay and overtaking of messages, clocks and settings are drawn once for a run and are always
on (`plan.py`); the classes here strike at random moments, each at its own mean interval.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from etcd_server.raft.errors import Dropped
from tests.sim.network import SHAPES, Network
from tests.sim.node import Host
from tests.sim.plan import Plan
from tests.sim.world import World


class Scene(NamedTuple):
    """What a fault can reach."""

    world: World
    network: Network
    hosts: list[Host]
    draw: random.Random

    @property
    def plan(self) -> Plan:
        return self.world.plan

    def up(self) -> list[Host]:
        return [host for host in self.hosts if host.process is not None]

    def leaders(self) -> list[Host]:
        """Those that think that they lead."""
        return [host for host in self.hosts if host.process and host.process.engine.core.is_leader]

    def some_host(self) -> Host | None:
        up = self.up()
        return self.draw.choice(up) if up else None


def kill(scene: Scene) -> bool:
    host = scene.some_host()
    if host is not None:
        host.kill(scene.draw.uniform(0.05, scene.plan.longest_outage_s))
    return host is not None


def power_cut(scene: Scene) -> bool:
    """Half of the cuts come in the middle of what the disk does next."""
    host = scene.some_host()
    if host is not None and scene.draw.random() < 0.5:
        host.disk.cut_power_within(60)
    elif host is not None:
        host.lose_power(scene.draw.uniform(0.05, scene.plan.longest_outage_s))
    return host is not None


def power_cut_all(scene: Scene) -> bool:
    for host in list(scene.hosts):
        if host.has_power:
            host.lose_power(scene.draw.uniform(0.05, scene.plan.longest_outage_s))
    return True


def stop(scene: Scene) -> bool:
    host = scene.some_host()
    if host is not None and host.process is not None and not host.process.is_paused:
        host.stop(scene.draw.uniform(0.05, scene.plan.longest_outage_s))
        return True
    return False


def pause(scene: Scene) -> bool:
    """Half of the time it is the leader: an old leader that wakes up is the dangerous one."""
    up, leaders = scene.up(), scene.leaders()
    if not up:
        return False
    host = scene.draw.choice(leaders if leaders and scene.draw.random() < 0.5 else up)
    assert host.process is not None
    host.process.pause(scene.draw.uniform(0.1, scene.plan.longest_pause_s))
    return True


def partition(scene: Scene) -> bool:
    members = [host.member_id for host in scene.hosts]
    if len(members) < 2:
        return False
    shape = scene.draw.choice(list(SHAPES))
    leaders = scene.leaders()
    about = leaders if leaders and scene.draw.random() < 0.5 else scene.hosts
    paths = SHAPES[shape](scene.draw, members, scene.draw.choice(about).member_id)
    if not paths:
        return False
    duration_s = scene.draw.uniform(0.2, scene.plan.longest_partition_s)
    scene.world.trace("network", f"partition {shape} for {duration_s:.2f} s", sorted(paths))
    scene.world.counts[f"partition {shape}"] += 1
    scene.network.cut(paths, duration_s)
    if scene.draw.random() < 0.2:
        # It flaps: there and gone and there again.
        for n in range(1, 4):
            scene.world.after(duration_s * 2 * n, scene.network.cut, paths, duration_s)
    return True


def clog(scene: Scene) -> bool:
    """Paths are held up, all at once or one after another, and let go in any order."""
    members = [host.member_id for host in scene.hosts]
    if len(members) < 2:
        return False
    for _ in range(scene.draw.randrange(1, 4)):
        a, b = scene.draw.sample(members, 2)
        scene.world.after(scene.draw.uniform(0, 1), scene.network.clog, (a, b), scene.draw.uniform(0.05, 5))
    return True


def slow_disk(scene: Scene) -> bool:
    host = scene.draw.choice(scene.hosts)
    host.slow_until_s = scene.world.now + scene.draw.uniform(0.5, 8)
    scene.world.trace(host.name, "has a slow disk")
    return True


def full_disk(scene: Scene) -> bool:
    host = scene.some_host()
    if host is None or host.disk.capacity_bytes is not None:
        return False
    used_bytes = sum(len(content) for content in host.disk.contents().values())
    host.disk.capacity_bytes = used_bytes + scene.draw.choice([0, 20_000, 200_000])
    scene.world.trace(host.name, "has a full disk")
    scene.world.after(scene.draw.uniform(0.5, 6), free_disk, host)
    return True


def free_disk(host: Host) -> None:
    host.disk.capacity_bytes = None


def failed_sync(scene: Scene) -> bool:
    host = scene.some_host()
    if host is not None and host.disk.sync_fails_at is None:
        host.disk.sync_fails_at = host.disk.syncs + scene.draw.randrange(1, 6)
        scene.world.trace(host.name, "will fail to sync")
        return True
    return False


def transfer(scene: Scene) -> bool:
    """Somebody wishes for another leader. Often it is a leader that hears nothing from then on: not that
    another one leads either."""
    leaders = scene.leaders()
    is_deaf = bool(leaders) and scene.draw.random() < 0.4
    host = scene.draw.choice(leaders) if is_deaf else scene.some_host()
    if host is None or host.process is None or host.process.is_paused or len(scene.hosts) < 2:
        return False
    try:
        host.process.node.transfer_leadership(scene.draw.choice(scene.hosts).member_id)
    except Dropped:
        return False
    host.process.wake()
    if is_deaf:
        members = [other.member_id for other in scene.hosts]
        duration_s = scene.plan.election_timeout_s * scene.draw.uniform(0.3, 2)
        scene.world.trace("network", f"{host.name} is deaf for {duration_s:.2f} s")
        scene.world.counts["partition deaf"] += 1
        scene.network.cut(SHAPES["deaf"](scene.draw, members, host.member_id), duration_s)
    return True


class FaultClass(NamedTuple):
    """A class of faults: how often it comes, by the plan, and what it does (False: it found no place)."""

    name: str
    interval_s: Callable[[Plan], float]
    strike: Callable[[Scene], bool]


CLASSES = (
    FaultClass("kill", lambda plan: plan.kill_interval_s, kill),
    FaultClass("power cut", lambda plan: plan.power_cut_interval_s, power_cut),
    FaultClass("power cut of all", lambda plan: plan.power_cut_all_interval_s, power_cut_all),
    FaultClass("orderly stop", lambda plan: plan.stop_interval_s, stop),
    FaultClass("pause", lambda plan: plan.pause_interval_s, pause),
    FaultClass("partition", lambda plan: plan.partition_interval_s, partition),
    FaultClass("clog", lambda plan: plan.clog_interval_s, clog),
    FaultClass("slow disk", lambda plan: plan.slow_disk_interval_s, slow_disk),
    FaultClass("full disk", lambda plan: plan.full_disk_interval_s, full_disk),
    FaultClass("failed sync", lambda plan: plan.failed_sync_interval_s, failed_sync),
    FaultClass("leader transfer", lambda plan: plan.transfer_interval_s, transfer),
)


class Faults:
    """Has every class strike until `stop` is called."""

    def __init__(self, world: World, network: Network, hosts: list[Host]) -> None:
        self.world = world
        self.is_over = False
        for fault in CLASSES:
            interval_s = fault.interval_s(world.plan)
            if interval_s:
                scene = Scene(world, network, hosts, world.source(f"fault {fault.name}"))
                world.after(scene.draw.expovariate(1 / interval_s), self._strike, fault, scene, interval_s)

    def _strike(self, fault: FaultClass, scene: Scene, interval_s: float) -> None:
        if self.is_over:
            return
        if fault.strike(scene):
            self.world.counts[f"fault: {fault.name}"] += 1
        self.world.after(scene.draw.expovariate(1 / interval_s), self._strike, fault, scene, interval_s)
