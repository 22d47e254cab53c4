"""The same HTTP requests to the JSON gateways of etcd 3.4, etcd 3.5 and etcd-py."""

from __future__ import annotations

import pytest

from tests.conformance.cases_gateway import CASES
from tests.conformance.differences import BETWEEN_ETCDS, expected_of_ours, unexplained
from tests.conformance.differences import OURS as OUR_DIFFERENCES
from tests.conformance.gateway import Gateway
from tests.conformance.lab import ETCDS, OURS, Lab
from tests.conformance.target import Exchange


def seen(lab: Lab, kind: str, name: str) -> list[Exchange]:
    def run() -> list[Exchange]:
        gateway = Gateway(lab.server(kind).url, lab.target(kind))
        gateway.begin()
        CASES[name](gateway)
        gateway.close()
        return gateway.transcript

    return lab.seen(kind, name, run)


@pytest.mark.parametrize("name", CASES)
def test_the_two_etcds_agree(lab: Lab, name: str) -> None:
    problems = unexplained(BETWEEN_ETCDS, name, *(seen(lab, kind, name) for kind in ETCDS))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", CASES)
def test_etcd_py_answers_like_etcd(lab: Lab, name: str) -> None:
    ours = seen(lab, OURS, name)
    of_3_4, of_3_5 = (seen(lab, kind, name) for kind in ETCDS)
    problems = unexplained(OUR_DIFFERENCES, name, expected_of_ours(name, of_3_4, of_3_5), ours)
    assert not problems, "\n".join(problems)


def test_there_are_enough_requests(lab: Lab) -> None:
    assert sum(len(seen(lab, "3.5", name)) for name in CASES) >= 60
