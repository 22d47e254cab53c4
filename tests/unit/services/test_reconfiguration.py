"""Which changes of the membership are refused for the sake of the quorum."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from etcd_server.api.errors import EtcdError, MemberNotEnoughStarted, Unhealthy
from etcd_server.api.proto import rpc_pb2
from etcd_server.services.reconfiguration import (
    quorum,
    refusal_to_add,
    refusal_to_promote,
    refusal_to_remove,
)


def members(text: str) -> list[rpc_pb2.Member]:
    """ "S" a started voter, "n" one that was never started, "L" a started learner; IDs 1, 2, ..."""
    return [
        rpc_pb2.Member(ID=number, name="" if kind == "n" else f"m{number}", isLearner=kind == "L")
        for number, kind in enumerate(text, start=1)
    ]


def only(*numbers: int) -> Callable[[int], bool]:
    return frozenset(numbers).__contains__


def kind_of(refusal: EtcdError | None) -> type[EtcdError] | None:
    return None if refusal is None else type(refusal)


def test_majorities() -> None:
    assert [quorum(voters) for voters in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("cluster", "steady", "expected"),
    [
        ("S", (1,), None),  # the first member is given a second
        ("n", (1,), MemberNotEnoughStarted),
        ("Sn", (1, 2), MemberNotEnoughStarted),  # the second is still to be started
        ("SS", (1, 2), None),
        ("SS", (1,), Unhealthy),
        ("SSS", (1, 2, 3), None),
        ("SSS", (1, 2), Unhealthy),  # of four, three are a majority
        ("SSSS", (1, 2, 3), None),
        ("SSn", (1, 2, 3), MemberNotEnoughStarted),
        ("SSSn", (1, 2, 3), None),
        ("SL", (1,), None),  # learners do not count
        ("SSL", (1, 2), None),
    ],
)
def test_adding_a_voter(cluster: str, steady: tuple[int, ...], expected: type[EtcdError] | None) -> None:
    refusal = refusal_to_add(members(cluster), is_learner=False, is_steady=only(*steady))
    assert kind_of(refusal) is expected


def test_a_learner_may_come_while_a_voter_is_not_started() -> None:
    assert refusal_to_add(members("Sn"), is_learner=True, is_steady=only(1, 2)) is None
    assert kind_of(refusal_to_add(members("SS"), is_learner=True, is_steady=only(1))) is Unhealthy


@pytest.mark.parametrize(
    ("cluster", "removed", "connected", "expected"),
    [
        ("S", 1, (1,), MemberNotEnoughStarted),  # the last one
        ("SS", 2, (1, 2), None),
        ("SS", 2, (1,), None),
        ("Sn", 2, (1,), None),
        ("Sn", 1, (1, 2), MemberNotEnoughStarted),
        ("SSS", 3, (1, 2, 3), None),
        ("SSS", 3, (1, 2), None),  # it is down
        ("SSS", 2, (1, 2), Unhealthy),  # the third is down, the second holds up the quorum
        ("SSn", 1, (1, 2, 3), MemberNotEnoughStarted),
        ("SL", 2, (1,), None),
        ("SS", 77, (1, 2), None),  # unknown: the machine says so
    ],
)
def test_removing(
    cluster: str, removed: int, connected: tuple[int, ...], expected: type[EtcdError] | None
) -> None:
    is_connected = only(*connected)
    refusal = refusal_to_remove(members(cluster), removed, is_connected=is_connected, is_steady=is_connected)
    assert kind_of(refusal) is expected


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [("SL", None), ("SSL", None), ("SSSL", None), ("SnL", None), ("nnL", MemberNotEnoughStarted)],
)
def test_promoting(cluster: str, expected: type[EtcdError] | None) -> None:
    assert kind_of(refusal_to_promote(members(cluster))) is expected
