"""What happened in a set of runs: the line that sums it up, and what a set that proves something must hold.

A fault that never happened, and a run in which clients got little done, prove nothing. So a set of runs that
is large enough fails when a fault or an interesting event is missing from it, or when many runs are void.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.sim.faults import CLASSES
from tests.sim.network import SHAPES
from tests.sim.plan import draw_plan

ENOUGH_SEEDS = 100
LARGEST_VOID_SHARE = 0.25

# The faults by kind: what the line says, and under which name each is counted.
FAULTS: dict[str, dict[str, str]] = {
    "members": {fault.name: f"fault: {fault.name}" for fault in CLASSES},
    "partitions": {shape: f"partition {shape}" for shape in SHAPES},
    "messages": {kind: f"message {kind}" for kind in ("lost", "doubled", "overtaken", "late", "cut off")},
    "writes": {
        "lost in a power cut": "write lost",
        "torn": "write torn",
        "met by a power cut": "power cut in the middle of a write",
        "slow": "write slow",
        "on a full disk": "write met a full disk",
        "with a failed sync": "ended by a failed sync",
    },
    "clocks": {"adrift": "clock adrift"},
    "membership": {
        "added": "member added",
        "promoted": "member promoted",
        "updated": "member updated",
        "removed": "member removed",
    },
    "snapshots": {
        "installed": "snapshot installed",
        "refused": "snapshot refused",
        "completed after a crash": "installation completed after a crash",
    },
    "compactions": {"of the store": "compaction", "of the log": "log cut"},
}

# What else must have happened somewhere.
INTERESTING = (
    "election won",
    "conflict overwritten",
    "entry applied again",
    "checkpoint",
    "watch event",
    "watch progress",
    "watch resumed",
    "watch slow",
    "watch met compaction",
    "lease kept alive",
    "lease ended",
    "outcome unknown",
    "removed member ended",
    "integrity check",
    "run twice",
)


@dataclass(slots=True)
class Report:
    """What became of one seed. `failure`: the invariant that was violated, and how."""

    seed: int
    virtual_s: float = 0.0
    events: int = 0
    trace_hash: int = 0
    is_void: bool = False
    check: str = ""
    failure: str = ""
    script: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> bool:
        return bool(self.failure)


def total(reports: Sequence[Report]) -> Counter[str]:
    """How often everything happened in all the runs."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.counts)
    return counts


def summary(reports: Sequence[Report], took_s: float) -> str:
    """One line: seeds, virtual time, faults by kind, failures."""
    counts = total(reports)
    faults = "; ".join(
        f"{group}: " + ", ".join(f"{kind} {counts[name]}" for kind, name in kinds.items())
        for group, kinds in FAULTS.items()
    )
    settings = len({draw_plan(report.seed).settings for report in reports})
    failed = [report.seed for report in reports if report.failed]
    virtual_h = sum(report.virtual_s for report in reports) / 3600
    return (
        f"{len(reports)} seeds, {virtual_h:.2f} virtual hours in {took_s:.0f} s; "
        f"{counts['operation succeeded']} operations, {counts['operation judged']} judged; "
        f"{faults}; settings: {settings}; {sum(report.is_void for report in reports)} void; "
        + (f"{len(failed)} FAILED: {' '.join(map(str, failed))}" if failed else "none failed")
    )


def never_happened(reports: Sequence[Report]) -> list[str]:
    """The faults and interesting events that no run has seen."""
    counts = total(reports)
    wanted = [name for kinds in FAULTS.values() for name in kinds.values()]
    return [name for name in (*wanted, *INTERESTING) if not counts[name]]


def shortcomings(reports: Sequence[Report]) -> list[str]:
    """Why a set of runs, if it is large enough to tell, proves less than it should; a line each."""
    if len(reports) < ENOUGH_SEEDS:
        return []
    found = [f"never happened: {name}" for name in never_happened(reports)]
    void = sum(report.is_void for report in reports)
    if void > LARGEST_VOID_SHARE * len(reports):
        found.append(f"too quiet: {void} of {len(reports)} runs are void")
    return found
