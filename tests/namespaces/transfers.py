"""Scenarios in which a process is killed in the middle of a snapshot's way from one member to another.

Member 1 leads and cuts its log early, member 2 was away for too long, and the link to it is slow enough for a
kill to hit while the file is half there, which the size of the file shows. Member 3 never cuts its log, so
that the judges have all of it; it does not see member 2 meanwhile, so that only member 1 can help.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from etcd_server.api.proto import rpc_pb2
from tests.live import wait_until
from tests.namespaces.machines import Machine, Machines
from tests.namespaces.scenario import Scenario
from tests.namespaces.traffic import Client, Traffic
from tests.sim.history import PUT

MOVE_LEADER = "/etcdserverpb.Maintenance/MoveLeader"
CUTS_EARLY = ("--snapshot-count", "100", "--snapshot-catchup-entries", "10")
VALUE_BYTES, VALUES = 100_000, 160
RATE_KILOBITS_PER_S = 16_000


def receiver_killed(scenario: Scenario) -> None:
    """SIGKILL to the member that receives a snapshot; started again, it receives one whole."""
    with scenario.running(own_flags={1: CUTS_EARLY, 2: CUTS_EARLY}) as (cluster, traffic):
        sender, receiver, _ = cluster.machines
        total = half_sent(scenario, cluster, traffic)
        receiver.kill()
        [left] = incoming(receiver)
        assert 0 < left.stat().st_size < total
        scenario.counts["bytes at the kill"] = left.stat().st_size
        wait_until(lambda: sender.metric("etcd_network_snapshot_send_failures"), "the sender knows")
        scenario.network.unlimited(receiver.number)
        scenario.goes_on()
        cluster.start(receiver)
        whole_at_last(scenario, receiver)


def sender_killed(scenario: Scenario) -> None:
    """SIGKILL to the leader that sends a snapshot; started again and leading, it sends one whole."""
    with scenario.running(own_flags={1: CUTS_EARLY, 2: CUTS_EARLY}) as (cluster, traffic):
        sender, receiver, _ = cluster.machines
        total = half_sent(scenario, cluster, traffic)
        [file] = incoming(receiver)
        sender.kill()
        scenario.counts["bytes at the kill"] = file.stat().st_size
        assert 0 < file.stat().st_size < total
        wait_until(lambda: "could not use a snapshot" in receiver.output, "the receiver knows")
        wait_until(lambda: not incoming(receiver), "the half is removed")
        assert receiver.metric("etcd_network_snapshot_receive_success") == 0
        scenario.network.unlimited(receiver.number)
        cluster.start(sender)
        lead(cluster, sender, receiver)
        whole_at_last(scenario, receiver)


def half_sent(scenario: Scenario, cluster: Machines, traffic: Traffic) -> int:
    """Bring it about that member 1 is about half way through sending a snapshot to member 2; its size."""
    sender, receiver, keeper = cluster.machines
    lead(cluster, sender)
    receiver.kill()
    loader = Loader(traffic)
    loader.load()
    loader.leave()
    scenario.network.cut([receiver.number], [keeper.number])
    scenario.network.slow(receiver.number, RATE_KILOBITS_PER_S)
    share = scenario.draw.uniform(0.2, 0.7)
    receiver.launch()
    total = int(wait_until(lambda: announced_bytes(receiver), "a snapshot is on its way"))
    scenario.counts["bytes of the snapshot"] = total
    assert total > VALUES * VALUE_BYTES
    wait_until(lambda: received_bytes(receiver) > share * total, "half of it", 40)
    return total


def whole_at_last(scenario: Scenario, receiver: Machine) -> None:
    """The receiver has taken a snapshot in, and then sees everybody again."""
    name = "etcd_network_snapshot_receive_success"
    wait_until(lambda: receiver.metric(name) == 1, "a snapshot was taken in")
    scenario.counts["snapshot taken in"] += 1
    scenario.counts["packets dropped"] = scenario.network.heal()
    scenario.recovered()


def announced_bytes(receiver: Machine) -> int:
    """The size of the snapshot that was announced to it last; 0: none."""
    lines = [line for line in receiver.output.splitlines() if '"receiving a snapshot"' in line]
    return int(json.loads(lines[-1])["bytes"]) if lines else 0


def received_bytes(receiver: Machine) -> int:
    """How much of a snapshot has arrived; 0 when none is on its way."""
    with contextlib.suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in incoming(receiver))
    return 0


def incoming(receiver: Machine) -> list[Path]:
    return list((receiver.data_dir / "snapshot").glob("incoming-*"))


def lead(cluster: Machines, wanted: Machine, *besides: Machine) -> None:
    """Make `wanted` the leader. besides: members that need not follow yet."""
    target = wait_until(wanted.status, "it answers").header.member_id

    def leads() -> bool:
        leader = cluster.head(*besides)
        if leader is not wanted:
            with leader.calls() as calls:
                calls.call(MOVE_LEADER, rpc_pb2.MoveLeaderRequest(targetID=target))
        return leader is wanted

    wait_until(leads, f"{wanted.name} leads")


class Loader(Client):
    """Writes large values, one after another over the last: what is superseded is kept, too."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__(traffic, "loader", 200)

    def load(self) -> None:
        """Until as many as wanted have been taken; it wanders and may ask a member that is away."""
        taken = 0
        while taken < VALUES:
            value = self.draw.randbytes(VALUE_BYTES)
            taken += self.call(PUT, rpc_pb2.PutRequest(key=b"large", value=value)).succeeded
