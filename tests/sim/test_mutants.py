"""Every planted bug is found: by the seed that is recorded for it, or else within 200 seeds."""

import pytest

from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.search import MOST_SEEDS, find, recorded

RECORDED = recorded()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_planted_bug_is_found(mutant: Mutant) -> None:
    known = [RECORDED[mutant.name].seed] if mutant.name in RECORDED else []
    report = find(mutant, (*known, *range(1, MOST_SEEDS + 1)))
    assert report is not None, f"{mutant.name}: {mutant.what}: no seed has found it"
    if [report.seed] != known:
        print(f"{mutant.name} is found by seed {report.seed} now: python -m tests.sim.search --refresh")


def test_the_table_tells_of_all_of_them() -> None:
    listed = [mutant.name for mutant in MUTANTS if mutant.name.startswith("M")]
    assert len(listed) >= 16
    assert list(RECORDED) == [mutant.name for mutant in MUTANTS]
    assert all(0 < found.seed <= MOST_SEEDS for found in RECORDED.values())
