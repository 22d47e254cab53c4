"""Whole clusters under faults: SIM_SEEDS (200 unless told) runs from SIM_FIRST_SEED (1) on.

A failing seed prints its last events; `make sim SEED=n` runs it alone.
"""

import os
import time
from collections import Counter

import pytest

from tests.sim.mutants import CANARY
from tests.sim.plan import draw_plan
from tests.sim.run import main, parse_seeds, run_many, run_seed, show_failure
from tests.sim.tally import ENOUGH_SEEDS, FAULTS, INTERESTING, Report, shortcomings, summary

SEEDS = int(os.environ.get("SIM_SEEDS", "200"))
FIRST_SEED = int(os.environ.get("SIM_FIRST_SEED", "1"))


@pytest.mark.timeout(SEEDS * 10 + 60)
def test_no_seed_fails() -> None:
    begun_s = time.monotonic()
    reports = []
    for report in run_many(range(FIRST_SEED, FIRST_SEED + SEEDS), os.cpu_count() or 1):
        reports.append(report)
        if report.failed:
            show_failure(report)
    print(summary(reports, time.monotonic() - begun_s))
    assert not [report.failure for report in reports if report.failed]
    assert not shortcomings(reports), "a fault or an event that never happened proves nothing"


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


def test_a_set_of_runs_that_lacks_a_fault_or_is_too_quiet_fails() -> None:
    everything = Counter([*(name for kinds in FAULTS.values() for name in kinds.values()), *INTERESTING])
    reports = [Report(seed, counts=everything) for seed in range(ENOUGH_SEEDS)]
    assert not shortcomings(reports)
    for report in reports:
        report.counts = everything - Counter(["partition deaf"])
    assert shortcomings(reports) == ["never happened: partition deaf"]
    assert not shortcomings(reports[1:]), "few runs cannot show everything"
    for report in reports:
        report.counts, report.is_void = everything, report.seed < 40
    assert shortcomings(reports) == ["too quiet: 40 of 100 runs are void"]


def test_the_last_line_names_each_kind_of_fault() -> None:
    line = summary([Report(1, virtual_s=36, counts=Counter({"write torn": 7}), failure="x")], 2.0)
    assert line.startswith("1 seeds, 0.01 virtual hours in 2 s;")
    assert "torn 7" in line
    assert all(kind in line for kinds in FAULTS.values() for kind in kinds)
    assert line.endswith("1 FAILED: 1")
