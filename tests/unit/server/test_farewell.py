"""When a member that was removed from the cluster ends."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

from etcd_server.runtime import FAREWELL_S, LONGEST_FAREWELL_S, Loop


def loop(*, is_removed: bool, is_told: bool = False) -> Any:
    members = SimpleNamespace(is_removed=lambda member_id: is_removed)
    engine = SimpleNamespace(
        settings=SimpleNamespace(member_id=1, heartbeat_interval_s=0.1),
        machine=SimpleNamespace(members=members),
    )
    wanted: dict[str, Any] = dict.fromkeys(inspect.signature(Loop).parameters)
    return Loop(**{**wanted, "engine": engine, "links": SimpleNamespace(is_removed=is_told)})


def test_a_member_stays() -> None:
    assert not loop(is_removed=False)._is_to_leave(1e9)


def test_who_is_told_that_it_was_removed_ends_in_a_moment() -> None:
    one = loop(is_removed=False, is_told=True)
    assert not one._is_to_leave(100.0)
    assert one._is_to_leave(100.0 + FAREWELL_S)


def test_who_has_applied_its_own_removal_waits_until_another_member_knows_of_it() -> None:
    """With two members, the one that stays cannot know that the change is committed before it hears so from
    the one that goes; and without its vote it will never lead."""
    one = loop(is_removed=True)
    assert not one._is_to_leave(100.0)
    assert not one._is_to_leave(100.0 + 10 * FAREWELL_S)
    one._links.is_removed = True
    assert not one._is_to_leave(100.0 + 11 * FAREWELL_S)
    assert one._is_to_leave(100.0 + 12 * FAREWELL_S)


def test_but_not_for_ever() -> None:
    one = loop(is_removed=True)
    assert not one._is_to_leave(100.0)
    assert one._is_to_leave(100.0 + LONGEST_FAREWELL_S)
