"""Which seeds find the planted bugs: `python -m tests.sim.search [--refresh] [--from SEED] [NAME...]`.

For each bug seeds are tried in their order, 200 at most, until a run shows it that is well without it. What
was found stands in a table of docs/reliability.md, which the tests try first: when a change of the code has
shifted what a seed stands for, `--refresh` searches anew and writes the table again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.markdown import ROOT, rows, section
from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.run import run_seed
from tests.sim.tally import Report

MOST_SEEDS = 200
PAGE = "docs/reliability.md"
MISFITS = ("AttributeError", "KeyError", "NameError", "TypeError")
HEADING = "Planted bugs"
HEAD = ("| bug | what it is | seen by | seed |", "| --- | --- | --- | --- |")


@dataclass(frozen=True, slots=True)
class Found:
    """A run that shows a planted bug: its seed, and the check that failed."""

    seed: int
    check: str


def find(mutant: Mutant, seeds: Iterable[int]) -> Report | None:
    """The first run that shows the bug, and that is well without it. Raises AssertionError when the plant no
    longer fits the code that it is put into."""
    for seed in seeds:
        with mutant.plant():
            report = run_seed(seed)
        assert report.check not in MISFITS, f"{mutant.name} does not fit: {report.failure}"
        if report.failed and not run_seed(seed).failed:
            return report
    return None


def recorded() -> dict[str, Found]:
    """What the table says, by the name of the bug."""
    table = rows(section((ROOT / PAGE).read_text(), HEADING))
    return {cells[0]: Found(int(cells[3]), cells[2]) for cells in table}


def search(mutants: Sequence[Mutant], first_seed: int) -> Iterator[tuple[Mutant, Found | None]]:
    """What finds each of the bugs, said aloud as well."""
    for mutant in mutants:
        begun_s = time.monotonic()
        report = find(mutant, range(first_seed, first_seed + MOST_SEEDS))
        found = Found(report.seed, report.check) if report is not None else None
        text = f"seed {found.seed}, {found.check}" if found else f"not found within {MOST_SEEDS} seeds"
        print(f"{mutant.name:4} {time.monotonic() - begun_s:6.1f} s  {text}", flush=True)
        yield mutant, found


def write(found: Mapping[str, Found]) -> None:
    """Write the table again."""
    page = ROOT / PAGE
    text = page.read_text()
    part = section(text, HEADING)
    begin = part.index(HEAD[0])
    end = begin + len(part[begin:].split("\n\n")[0].rstrip("\n"))
    lines = [
        f"| {mutant.name} | {mutant.what} | {found[mutant.name].check} | {found[mutant.name].seed} |"
        for mutant in MUTANTS
        if mutant.name in found
    ]
    page.write_text(text.replace(part, part[:begin] + "\n".join((*HEAD, *lines)) + part[end:]))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.sim.search", description="Search seeds for planted bugs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; all of them unless told")
    parser.add_argument("--refresh", action="store_true", help=f"write what is found into {PAGE}")
    parser.add_argument("--from", type=int, default=1, dest="first_seed", metavar="SEED", help="begin here")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"no planted bug {' '.join(sorted(unknown))}")
    wanted = [mutant for mutant in MUTANTS if not options.names or mutant.name in options.names]
    results = {mutant.name: found for mutant, found in search(wanted, options.first_seed)}
    if options.refresh:
        table: dict[str, Found | None] = {**recorded(), **results}
        write({name: found for name, found in table.items() if found is not None})
    print(f"{sum(found is not None for found in results.values())} of {len(wanted)} found")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
