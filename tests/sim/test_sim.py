"""Whole clusters under faults: SIM_SEEDS (40 unless told) runs from SIM_FIRST_SEED (1) on.

A failing seed prints its last events; `make sim SEED=n` runs it alone.
"""

import os

import pytest

from tests.sim.mutants import CANARY
from tests.sim.plan import draw_plan
from tests.sim.run import main, never_happened, parse_seeds, run_many, run_seed, show_failure, summary

SEEDS = int(os.environ.get("SIM_SEEDS", "40"))
FIRST_SEED = int(os.environ.get("SIM_FIRST_SEED", "1"))
ENOUGH_SEEDS = 100
LARGEST_VOID_SHARE = 0.25


@pytest.mark.timeout(SEEDS * 10 + 60)
def test_no_seed_fails() -> None:
    reports = []
    for report in run_many(range(FIRST_SEED, FIRST_SEED + SEEDS), os.cpu_count() or 1):
        reports.append(report)
        if report.failed:
            show_failure(report)
    print(summary(reports, 0.0))
    assert not [report.failure for report in reports if report.failed]
    assert sum(report.is_void for report in reports) <= max(2, LARGEST_VOID_SHARE * SEEDS)
    if SEEDS >= ENOUGH_SEEDS:
        assert not never_happened(reports), "a fault or an event that never happened proves nothing"


@pytest.mark.timeout(120)
def test_a_seed_is_one_run() -> None:
    """Whatever it depends on beside the seed would show in the trace."""
    first, second = run_seed(FIRST_SEED), run_seed(FIRST_SEED)
    assert (first.trace_hash, first.events, first.counts) == (second.trace_hash, second.events, second.counts)
    assert run_seed(FIRST_SEED + 1).trace_hash != first.trace_hash


@pytest.mark.timeout(60)
def test_the_canary_fails_and_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    with CANARY.plant():
        assert main(["1"]) == 1
    output = capsys.readouterr().out
    assert "# seed 1 failed: reads" in output
    assert "make sim SEED=1" in output
    assert output.count("  turn") > 50, "the last events are a script"
    assert output.splitlines()[-1].endswith("1 FAILED: 1")


def test_each_class_of_faults_is_off_in_a_part_of_the_seeds() -> None:
    plans = [draw_plan(seed) for seed in range(300)]
    for name in ("kill_interval_s", "partition_interval_s", "loss", "duplication", "clock_drift"):
        off = sum(getattr(plan, name) == 0 for plan in plans)
        assert 60 <= off <= 120, name


def test_seeds_are_read_as_make_gives_them() -> None:
    assert list(parse_seeds("7")) == [7]
    assert list(parse_seeds("3..5")) == [3, 4, 5]
