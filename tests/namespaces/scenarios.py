"""Scenarios for three real members: faults, one kind each, while clients go on asking.

`main` is the program of one scenario, in a place of its own (`isolation.py`). Which member is hit, and for
how long, is drawn from the seed. Every scenario shows that its fault happened (packets dropped, processes
stopped, terms that passed), that clients got answers when they could, that the members recover by themselves,
and that the judges find nothing. What it counted is printed as its last line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.faults.test_full_disk import Junk
from tests.live import wait_until
from tests.namespaces.machines import Machine, Machines
from tests.namespaces.network import Loopback, Network
from tests.namespaces.scenario import QUICK, Scenario
from tests.namespaces.traffic import Traffic
from tests.namespaces.transfers import receiver_killed, sender_killed

NO_SPACE = "etcdserver: mvcc: database space exceeded"


# --- processes ----------------------------------------------------------------------------------------------


def killed(scenario: Scenario) -> None:
    """SIGKILL to a follower, then to the leader, then again; each is started again. Then the judges are
    tried, too."""
    scenario.judges_are_judged = True
    with scenario.running() as (cluster, _):
        kinds = ["follower", "leader", scenario.draw.choice(["follower", "leader"])]
        for kind in kinds:
            leader = cluster.head()
            victim = leader if kind == "leader" else scenario.draw.choice(cluster.others(leader))
            victim.kill()
            scenario.counts[f"{kind} killed"] += 1
            scenario.goes_on()
            if victim is leader:
                assert cluster.head(victim) is not victim
            cluster.start(victim)
            scenario.recovered()
    assert scenario.counts["terms passed"] >= scenario.counts["leader killed"]


def paused(scenario: Scenario) -> None:
    """SIGSTOP to the leader and to a follower for longer than an election takes, then SIGCONT."""
    with scenario.running() as (cluster, _):
        for kind in ("leader", "follower", "leader"):
            leader = cluster.head()
            victim = leader if kind == "leader" else scenario.draw.choice(cluster.others(leader))
            victim.pause()
            scenario.counts[f"{kind} paused"] += 1
            begun_s = time.monotonic()
            scenario.goes_on()
            # It must sleep through the election of another.
            time.sleep(max(0.0, begun_s + scenario.draw.uniform(1.5, 4.0) - time.monotonic()))
            victim.resume()
            scenario.recovered()
            if kind == "leader":
                scenario.counts["leader changed"] += cluster.head() is not leader
    assert scenario.counts["terms passed"] >= 2, scenario.counts


def all_killed(scenario: Scenario) -> None:
    """SIGKILL to all at once, twice, under load; they start again at once or one after another."""
    with scenario.running() as (cluster, _):
        for at_once in (True, False):
            for machine in cluster.machines:
                assert machine.process is not None
                machine.process.kill()
            for machine in cluster.machines:
                machine.kill()
            scenario.counts["all killed"] += 1
            order = scenario.draw.sample(cluster.machines, 3)
            if at_once:
                cluster.start(*order)
            else:
                cluster.start(*order[:2])
                scenario.goes_on()
                cluster.start(order[2])
            scenario.recovered()
            scenario.traffic.wait_for_answers(60)
    assert scenario.counts["terms passed"] >= 2, scenario.counts


# --- the network --------------------------------------------------------------------------------------------


@contextmanager
def broken(scenario: Scenario, name: str, lasts_s: float) -> Iterator[None]:
    """A fault of the network that ends after `lasts_s`; packets must have been dropped."""
    begun_s = time.monotonic()
    yield
    time.sleep(max(0.0, begun_s + lasts_s - time.monotonic()))
    dropped = scenario.network.heal()
    assert dropped > 0, f"nothing was dropped: {name}"
    scenario.counts[name] += 1
    scenario.counts["packets dropped"] += dropped
    scenario.recovered()


def others_elect(scenario: Scenario, cluster: Machines, old: Machine) -> None:
    """Both other members follow one of them."""
    new = cluster.head(old)
    assert new is not old
    scenario.counts["leader changed"] += 1


def refuses(machine: Machine, *, serializable: bool = False) -> bool:
    """It does not give a read: a linearizable one, when it cannot know whether it is up to date."""
    with machine.calls() as calls:
        try:
            calls.range(key=b"k", timeout_s=1.0, serializable=serializable)
        except grpc.RpcError:
            return True
    return False


def wait_for_refusal(machine: Machine) -> None:
    wait_until(lambda: refuses(machine), f"{machine.name} alone refuses a linearizable read")


def partitioned(scenario: Scenario) -> None:
    """Two members on one side and one on the other: a follower alone, then the leader alone."""
    network = scenario.network
    with scenario.running() as (cluster, _):
        for kind in ("follower", "leader", "leader"):
            leader = cluster.head()
            alone = leader if kind == "leader" else scenario.draw.choice(cluster.others(leader))
            before = scenario.term()
            with broken(scenario, f"{kind} in the minority", scenario.draw.uniform(2.0, 4.0)):
                network.cut([alone.number], [other.number for other in cluster.others(alone)])
                if kind == "leader":
                    others_elect(scenario, cluster, leader)
                scenario.goes_on()
                wait_for_refusal(alone)
                assert not refuses(alone, serializable=True)
            if kind == "follower":
                # PreVote: it comes back without an election.
                assert scenario.term() == before


def leader_cut_off(scenario: Scenario) -> None:
    """The leader loses everyone, members and clients; then all three lose each other. Default time-outs."""
    network = scenario.network
    with scenario.running() as (cluster, _):
        leader = cluster.head()
        with broken(scenario, "leader cut off", 4.0):
            network.unplug(leader.number)
            others_elect(scenario, cluster, leader)
            scenario.goes_on()
            assert leader.status(1.0) is None
        with broken(scenario, "everyone alone", 3.0):
            for machine in cluster.machines:
                others = [other.number for other in cluster.others(machine)]
                network.cut([machine.number], others)
            for machine in cluster.machines:
                wait_for_refusal(machine)
    assert scenario.counts["terms passed"] >= 1, scenario.counts


def one_way(scenario: Scenario) -> None:
    """Packets are lost in one direction only: what the leader sends, what it should hear, what a follower
    sends."""
    network = scenario.network
    with scenario.running() as (cluster, _):
        kinds = ["leader is not heard", "leader is deaf", "follower is not heard"]
        for kind in scenario.draw.sample(kinds, 3):
            leader = cluster.head()
            follower = scenario.draw.choice(cluster.others(leader))
            with broken(scenario, kind, scenario.draw.uniform(2.0, 4.0)):
                for other in cluster.others(leader):
                    if kind == "leader is not heard":
                        network.drop(leader.number, other.number)
                    elif kind == "leader is deaf":
                        network.drop(other.number, leader.number)
                if kind == "follower is not heard":
                    for other in cluster.others(follower):
                        network.drop(follower.number, other.number)
                else:
                    others_elect(scenario, cluster, leader)
                scenario.goes_on()
    assert scenario.counts["terms passed"] >= 2, scenario.counts


def bridged(scenario: Scenario) -> None:
    """Two members do not see each other, the third sees both: as a follower, then as the leader."""
    network = scenario.network
    with scenario.running() as (cluster, _):
        for kind in ("follower sees both", "leader sees both", "follower sees both"):
            leader = cluster.head()
            between = leader if kind == "leader sees both" else scenario.draw.choice(cluster.others(leader))
            one, other = cluster.others(between)
            with broken(scenario, kind, scenario.draw.uniform(2.0, 4.0)):
                network.cut([one.number], [other.number])
                scenario.goes_on()


# --- disks --------------------------------------------------------------------------------------------------


def full_disk(scenario: Scenario) -> None:
    """The disk of a follower is full, then the leader's: something is written all the time by somebody."""
    with scenario.running(disk_bytes=96 << 20) as (cluster, traffic):
        for kind in ("follower", "leader"):
            leader = cluster.head()
            victim = leader if kind == "leader" else scenario.draw.choice(cluster.others(leader))
            junk = Junk(victim.disk)
            junk.fill()
            assert junk.free_bytes == 0
            scenario.counts[f"disk of the {kind} full"] += 1
            if kind == "follower":
                scenario.goes_on()
            wait_for_no_space(traffic)
            refused_s = traffic.now()
            time.sleep(3.0)
            went_on = traffic.written(refused_s)
            assert went_on > 0
            scenario.counts[f"puts while the {kind}'s disk is full"] += went_on
            junk.remove()
            scenario.recovered()
            scenario.traffic.wait_for_answers(60)


def wait_for_no_space(traffic: Traffic) -> None:
    """Until one more write is refused for want of room."""
    before = traffic.counts[NO_SPACE]
    wait_until(lambda: traffic.counts[NO_SPACE] > before, "a write refused for want of room")


# --- all of it ----------------------------------------------------------------------------------------------


def storm(scenario: Scenario) -> None:
    """One fault after another, and two at a time, as drawn."""
    network, draw = scenario.network, scenario.draw
    with scenario.running() as (cluster, _):
        for _round in range(5):
            victim, other = draw.sample(cluster.machines, 2)
            kind = draw.choice(["kill", "pause"])
            if kind == "kill":
                victim.kill()
            else:
                victim.pause()
            time.sleep(draw.uniform(0.0, 1.0))
            shape = draw.choice(["cut", "drop", "unplug"])
            if shape == "cut":
                network.cut([other.number], [one.number for one in cluster.others(other)])
            elif shape == "drop":
                network.drop(other.number, draw.choice(cluster.others(other)).number)
            else:
                network.unplug(other.number)
            time.sleep(draw.uniform(0.5, 2.5))
            if kind == "kill":
                victim.launch()
            else:
                victim.resume()
            time.sleep(draw.uniform(0.0, 1.0))
            scenario.counts["packets dropped"] += network.heal()
            scenario.counts[f"{kind} and {shape}"] += 1
            scenario.recovered()
            scenario.traffic.wait_for_answers(30)
    assert scenario.counts["packets dropped"] > 0


SCENARIOS: dict[str, Callable[[Scenario], None]] = {
    function.__name__: function
    for function in (
        *(killed, paused, all_killed),
        *(partitioned, leader_cut_off, one_way, bridged),
        *(full_disk, storm, receiver_killed, sender_killed),
    )
}
AT_DEFAULTS = ("leader_cut_off", "all_killed")


def main(name: str, hosts: str, folder: str, seed: str) -> None:
    """Perform one scenario. hosts: "namespaces" or "loopback"."""
    places = Network(Path(folder), 3) if hosts == "namespaces" else Loopback()
    flags = () if name in AT_DEFAULTS else QUICK
    scenario = Scenario(Path(folder), places, int(seed), flags)
    SCENARIOS[name](scenario)
    print(scenario.report())
