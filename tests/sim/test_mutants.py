"""Every planted bug is found: by a seed that is known to find it, or else within 200.

SIM_MUTANT_SEEDS=n searches n fresh seeds for each instead of the recorded ones, and tells which found it.
"""

import os
from collections.abc import Iterable

import pytest

from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.run import run_seed
from tests.sim.tally import Report

MOST_SEEDS = 200
FRESH_SEEDS = int(os.environ.get("SIM_MUTANT_SEEDS", "0"))


def find(mutant: Mutant, seeds: Iterable[int]) -> Report | None:
    """The first run that shows the bug, and that is well without it."""
    for seed in seeds:
        with mutant.plant():
            report = run_seed(seed)
        if report.failed and not run_seed(seed).failed:
            return report
    return None


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_planted_bug_is_found(mutant: Mutant) -> None:
    seeds = range(1000, 1000 + FRESH_SEEDS) if FRESH_SEEDS else (*mutant.seeds, *range(1, MOST_SEEDS + 1))
    report = find(mutant, seeds)
    assert report is not None, f"{mutant.name}: {mutant.what}: no seed has found it"
    print(f"{mutant.name}: seed {report.seed}, {report.check}")


def test_the_list_is_long_enough() -> None:
    listed = [mutant for mutant in MUTANTS if mutant.name.startswith("M")]
    assert len(listed) >= 16
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
