"""All cases by name: the hand-written ones and the generated ones."""

from __future__ import annotations

from collections.abc import Callable

from tests.conformance import cases_kv, cases_rest, cases_watch
from tests.conformance.generated import generated_case
from tests.conformance.target import Exchange, Target

Case = Callable[[Target], None]

GENERATED = 30
PROGRAMS = 200

CASES: dict[str, Case] = {
    **{f"kv_{case.__name__}": case for case in cases_kv.CASES},
    **{f"watch_{case.__name__}": case for case in cases_watch.CASES},
    **{f"rest_{case.__name__}": case for case in cases_rest.CASES},
    **{f"generated_{number:02}": generated_case(1000 + number, 12) for number in range(GENERATED)},
}

RANDOM_PROGRAMS: dict[str, Case] = {
    f"program_{number:03}": generated_case(5000 + number, 25) for number in range(PROGRAMS)
}


def transcript(target: Target, case: Case) -> list[Exchange]:
    """What `case` saw on an emptied store."""
    target.begin()
    case(target)
    return target.transcript
