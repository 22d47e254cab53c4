"""What one seed is: every size, rate, setting and fault of a run, drawn before anything happens.

Swarm style: each class of faults is absent from about 30 % of the seeds, so that what one fault hides another
run shows; and how often a fault comes, and how bad it is, is drawn too (FoundationDB, TigerBeetle). Nothing
else in the simulator decides what a run is like: a plan printed is a run described.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields

OFF_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Plan:
    """A run. Intervals are the mean seconds between two faults of a class; 0: the class is off."""

    seed: int
    voters: int
    safety_s: float

    # Faults of hosts
    kill_interval_s: float
    power_cut_interval_s: float
    power_cut_all_interval_s: float
    stop_interval_s: float
    pause_interval_s: float
    longest_pause_s: float
    longest_outage_s: float

    # Faults of disks
    slow_disk_interval_s: float
    longest_write_s: float
    full_disk_interval_s: float
    failed_sync_interval_s: float

    # Faults of the network
    partition_interval_s: float
    longest_partition_s: float
    clog_interval_s: float
    loss: float
    duplication: float
    reordering: float
    delay_s: float

    # Faults of time: each host's clock runs at a rate of its own within 1 +/- drift
    clock_drift: float

    # What is asked for, not a fault of anything
    transfer_interval_s: float
    membership_interval_s: float
    compaction_interval_s: float
    checkpoint_interval_s: float

    # Settings of the members
    heartbeat_interval_s: float
    election_ticks: int
    pre_vote: bool
    max_inflight: int
    max_message_bytes: int
    max_apply_bytes: int
    recent_entries: int
    snapshot_count: int
    catch_up_entries: int
    commit_interval_s: float
    inline_writes: bool

    # Clients
    clients: int
    watchers: int
    lease_holders: int
    think_s: float
    keys: int
    value_bytes: int

    @property
    def election_timeout_s(self) -> float:
        return self.election_ticks * self.heartbeat_interval_s

    @property
    def settings(self) -> tuple[object, ...]:
        """What the members are set to."""
        return (
            self.voters,
            self.heartbeat_interval_s,
            self.election_ticks,
            self.pre_vote,
            self.max_inflight,
            self.max_message_bytes,
            self.max_apply_bytes,
            self.recent_entries,
            self.snapshot_count,
            self.catch_up_entries,
            self.commit_interval_s,
            self.inline_writes,
        )

    def describe(self) -> str:
        """One line: the plan, without what is off."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not False and value != 0:
                parts.append(
                    f"{field.name}={value:.4g}" if isinstance(value, float) else f"{field.name}={value}"
                )
        return " ".join(parts)


def draw_plan(seed: int) -> Plan:
    """The run that `seed` stands for."""
    draw = random.Random(f"plan {seed}")

    def sometimes(low: float, high: float) -> float:
        """0 in 30 % of the seeds, otherwise a number between low and high, as likely small as large."""
        value = low * (high / low) ** draw.random()
        return 0.0 if draw.random() < OFF_SHARE else value

    heartbeat_s = draw.choice([0.05, 0.1, 0.1, 0.2])
    return Plan(
        seed=seed,
        voters=draw.choice([1, 2, 3, 3, 3, 3, 4, 5]),
        safety_s=draw.uniform(40, 60),
        kill_interval_s=sometimes(12, 90),
        power_cut_interval_s=sometimes(12, 90),
        power_cut_all_interval_s=sometimes(40, 150),
        stop_interval_s=sometimes(20, 120),
        pause_interval_s=sometimes(10, 90),
        longest_pause_s=draw.choice([0.5, 3, 8]),
        longest_outage_s=draw.choice([0.5, 2, 8]),
        slow_disk_interval_s=sometimes(8, 60),
        longest_write_s=draw.choice([0.02, 0.2, 5]),
        full_disk_interval_s=sometimes(30, 120),
        failed_sync_interval_s=sometimes(30, 120),
        partition_interval_s=sometimes(8, 60),
        longest_partition_s=draw.choice([1, 4, 12]),
        clog_interval_s=sometimes(8, 60),
        loss=sometimes(0.001, 0.15),
        duplication=sometimes(0.002, 0.2),
        reordering=sometimes(0.01, 0.5),
        delay_s=draw.choice([0.0005, 0.002, 0.01, 0.04]),
        clock_drift=sometimes(0.001, 0.1),
        transfer_interval_s=sometimes(8, 60),
        membership_interval_s=sometimes(2, 30),
        compaction_interval_s=sometimes(0.5, 10),
        checkpoint_interval_s=draw.choice([0.5, 2, 10]),
        heartbeat_interval_s=heartbeat_s,
        election_ticks=draw.choice([3, 5, 10, 10]),
        pre_vote=draw.random() < 0.8,
        max_inflight=draw.choice([1, 2, 16, 512]),
        max_message_bytes=draw.choice([1, 300, 2000, 1 << 20]),
        max_apply_bytes=draw.choice([1, 1000, 1 << 20]),
        recent_entries=draw.choice([1, 10, 5000]),
        snapshot_count=draw.choice([5, 20, 50, 10_000]),
        catch_up_entries=draw.choice([2, 5, 50, 5_000]),
        commit_interval_s=draw.choice([0.0, 0.1, 0.1, 1.0]),
        inline_writes=draw.random() < 0.3,
        clients=draw.choice([3, 5, 8]),
        watchers=draw.choice([1, 3, 5]),
        lease_holders=draw.choice([0, 1, 3]),
        think_s=draw.choice([0.3, 0.5, 0.8]),
        keys=draw.choice([2, 8, 20]),
        value_bytes=draw.choice([0, 10, 10, 2000]),
    )
