"""The hosts of a cluster: machines with a disk, a clock and, most of the time, a member's process on it.

Ends of a process (`process.py`): `kill` (the operating system keeps what was written), `lose_power` (the disk
keeps, drops or tears what was not synced), `stop` (orderly), and of its own accord when a sync fails or a
disk stays full.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw

from etcd_server.api.errors import EtcdError
from etcd_server.raft.messages import HardState, Message
from etcd_server.services.events import (
    Forwarded,
)
from etcd_server.storage.errors import DiskFailed, DiskFull, StateRolledBack, StorageError
from etcd_server.storage.extent import Extent
from tests.faults.simdisk import SimulatedDisk
from tests.sim.invariants import Invariants
from tests.sim.network import Network
from tests.sim.process import Process
from tests.sim.world import World

CLUSTER_ID = 0xCDF818194E3A8C32
TURN_S = 0.0002
RETRY_FULL_DISK_S = 0.5
KEEPER_INTERVAL_S = 1.0
LOWEST_ROOM_BYTES = 64 * 1024
SHORT_REST_BYTES = 64 * 1024
MOST_TICKS_AT_ONCE = 100
FAREWELL_S = 1.0
EPOCH_S = 1_700_000_000
VERSION = "3.6.0"

Reply = Callable[["bytes | EtcdError | None"], None]
"""Told once: the serialised answer, the error, or None when the connection broke first."""


class Cluster:
    """All hosts of a run, and what they share."""

    def __init__(self, world: World, network: Network, invariants: Invariants, scratch: Path) -> None:
        self.world = world
        self.network = network
        self.invariants = invariants
        self.hosts: list[Host] = []
        self.all_hosts: dict[int, Host] = invariants.hosts
        self.first_members = list(range(1, world.plan.voters + 1))
        self._scratch = scratch

    def add_host(self, member_id: int) -> Host:
        """A machine for a member, with an empty disk. It is not started."""
        number = len(self.all_hosts) + 1
        host = Host(self, member_id, number, self._scratch / f"m{number}")
        self.hosts.append(host)
        self.all_hosts[member_id] = host
        return host

    def deliver(self, message: Message | Forwarded) -> None:
        """A message has come to its receiver, who hears no member that was removed, and tells it so."""
        host, sender = self.all_hosts.get(message.to), self.all_hosts.get(message.sender)
        if host is None or host.process is None:
            return
        if host.process.machine.members.is_removed(message.sender):
            if sender is not None and sender.process is not None:
                sender.process.leave()
            return
        host.process.deliver(message)

    def what_is_known_of(self, host: Host) -> tuple[bool, bool]:
        """What the others that can be reached tell a member of itself: whether it is one, and whether it was
        removed."""
        reached = [
            other.process.machine.members
            for other in self.hosts
            if other is not host
            and other.process is not None
            and not other.process.is_paused
            and not self.network.is_cut((host.member_id, other.member_id))
        ]
        return (
            any(members.get(host.member_id) is not None for members in reached),
            any(members.is_removed(host.member_id) for members in reached),
        )

    def link(self, host: Host, *, is_up: bool) -> None:
        """A member has begun or ended: the links between it and the others come up or go down."""
        for other in self.hosts:
            if other is not host and other.process is not None:
                self.world.after(host.draw.uniform(0.01, 0.3), self._tell, other, host, is_up)
                if is_up:
                    self.world.after(host.draw.uniform(0.01, 0.3), self._tell, host, other, is_up)

    def _tell(self, to: Host, about: Host, is_up: bool) -> None:
        if to.process is not None and (about.process is not None) == is_up:
            to.process.linked(about.member_id, is_up=is_up)


class Host:
    """One machine. `process` is None while nothing runs on it; `durable` is what its log must still hold;
    `installing` the last snapshot that its log may begin behind."""

    def __init__(self, cluster: Cluster, member_id: int, number: int, scratch: Path) -> None:
        world = cluster.world
        plan = world.plan
        self.cluster = cluster
        self.world = world
        self.network = cluster.network
        self.invariants = cluster.invariants
        self.member_id = member_id
        self.number = number
        self.name = f"member {number}"
        self.draw = world.source(self.name)
        self.disk = SimulatedDisk(plan.seed * 1000 + number, scratch)
        self.rate = 1 + self.draw.uniform(-1, 1) * plan.clock_drift
        self.clock_offset_s = self.draw.uniform(0, 1e6)
        self.process: Process | None = None
        self.durable: tuple[HardState, Extent] = (HardState(), Extent(0, ((0, 0),)))
        self.installing = 0
        self.synced_index = 0
        self.has_power = True
        self.is_retired = False
        self.slow_until_s = 0.0
        self.lives = 0

    @property
    def is_up(self) -> bool:
        return self.process is not None

    def local_time(self) -> float:
        """This host's clock, in seconds."""
        return self.clock_offset_s + self.world.now * self.rate

    def write_latency_s(self) -> float:
        """How long the next write to the log takes."""
        plan = self.world.plan
        if self.world.now < self.slow_until_s:
            self.world.counts["write slow"] += 1
            return self.draw.uniform(0, plan.longest_write_s)
        return self.draw.uniform(0.0001, 0.003)

    # --- life and death -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process, unless it runs. It tries again when the disk does not let it."""
        if self.process is not None or not self.has_power or self.is_retired:
            return
        self.lives += 1
        # A monotonic clock begins anywhere.
        self.clock_offset_s = self.draw.uniform(0, 1e6) - self.world.now * self.rate
        self.world.trace(self.name, "starts")
        self.world.counts["clock adrift"] += self.rate != 1
        process = None
        try:
            process = Process(self)
            if not self._finds_its_place(process):
                return
            self.process = process
            process.begin()
        except (StorageError, apsw.Error) as error:
            self.process = None
            if process is not None:
                process.abandon()
            self.world.counts["start refused"] += 1
            self.failed(error)

    def _finds_its_place(self, process: Process) -> bool:
        """A new member asks the others whether they know it; False: it cannot start now, or ever."""
        if process.machine.members.all() or process.log.last_index():
            return True
        knows, removed = self.cluster.what_is_known_of(self)
        if knows and not removed:
            return True
        process.abandon()
        if removed:
            self.retire()
        else:
            self.world.after(0.5, self.start)
        return False

    def kill(self, outage_s: float) -> None:
        """SIGKILL: memory is lost, the operating system keeps what was written."""
        if self.process is None:
            return
        self.world.trace(self.name, "is killed")
        self._end_process()
        self.world.after(outage_s, self.start)

    def lose_power(self, outage_s: float) -> None:
        """The power fails; what was not synced may be kept, dropped or torn."""
        self.world.trace(self.name, "loses power")
        self.has_power = False
        self._end_process()
        self.world.after(outage_s, self._get_power)

    def _get_power(self) -> None:
        if not self.has_power:
            lost, torn = self.disk.unsynced_lost, self.disk.unsynced_torn
            self.disk.restart()
            self.world.counts["write lost"] += self.disk.unsynced_lost - lost
            self.world.counts["write torn"] += self.disk.unsynced_torn - torn
            self.has_power = True
            self.start()

    def _end_process(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            self.disk.is_dead = True
            process.abandon()
            self.disk.is_dead = False
            self.cluster.link(self, is_up=False)

    def retire(self) -> None:
        """The member was removed: its machine is switched off for good."""
        self.world.trace(self.name, "has been removed and ends")
        self.world.counts["removed member ended"] += 1
        self.is_retired = True
        self._end_process()
        self.cluster.hosts.remove(self)

    def stop(self, outage_s: float) -> None:
        """An orderly stop: who waits is told, files are closed."""
        process, self.process = self.process, None
        if process is None:
            return
        self.world.trace(self.name, "is stopped")
        try:
            process.stop()
        except (StorageError, apsw.Error):
            self.disk.is_dead = True
            process.abandon()
            self.disk.is_dead = False
        self.cluster.link(self, is_up=False)
        self.world.after(outage_s, self.start)

    def failed(self, error: Exception) -> None:
        """The process has met an error of its disk. One that no fault explains is the simulator's to
        report."""
        if self.disk.is_dead:
            self.world.counts["power cut in the middle of a write"] += 1
            self.lose_power(self.draw.uniform(0.1, self.world.plan.longest_outage_s))
            return
        failed_to_sync = self.disk.sync_fails_at is not None and self.disk.syncs >= self.disk.sync_fails_at
        if failed_to_sync and isinstance(error, DiskFailed | apsw.IOError):
            # What the disk holds is unknown, and only a disk that is read anew tells: the host is restarted.
            self.disk.sync_fails_at = None
            self.world.counts["ended by a failed sync"] += 1
            self.lose_power(self.draw.uniform(0.5, 3))
        elif self.disk.capacity_bytes is not None and isinstance(
            error, DiskFull | StateRolledBack | apsw.FullError
        ):
            self.world.counts["ended by a full disk"] += 1
            self.world.trace(self.name, "ends", str(error))
            self._end_process()
            self.world.after(1.0, self.start)
        else:
            raise error

    def close(self) -> None:
        """The run is over."""
        self._end_process()
        self.disk.__exit__(None, None, None)
