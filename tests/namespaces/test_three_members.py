"""Three real member processes, each in a network namespace of its own, under faults; needs root.

`FAULT_SEED=n` draws other members and other lengths of time. What a scenario saw is printed (`pytest -s`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.namespaces.isolation import perform, why_not

SEED = int(os.environ.get("FAULT_SEED", "1"))


def needs_namespaces() -> None:
    if reason := why_not():
        pytest.skip(f"no network namespaces here: {reason}")


def show(scenario: str, folder: Path) -> None:
    print(f"\n{scenario}, seed {SEED}: {perform(scenario, folder, SEED).splitlines()[-1]}")


def test_a_follower_and_the_leader_are_killed_and_come_back(tmp_path: Path) -> None:
    show("killed", tmp_path)


def test_a_leader_and_a_follower_that_sleep_through_an_election_harm_nobody(tmp_path: Path) -> None:
    show("paused", tmp_path)


def test_all_members_killed_at_once_lose_nothing_at_default_time_outs(tmp_path: Path) -> None:
    show("all_killed", tmp_path)


def test_a_majority_goes_on_and_a_minority_refuses_to_guess(tmp_path: Path) -> None:
    needs_namespaces()
    show("partitioned", tmp_path)


def test_a_leader_cut_off_from_everyone_is_replaced_at_default_time_outs(tmp_path: Path) -> None:
    needs_namespaces()
    show("leader_cut_off", tmp_path)


def test_packets_lost_in_one_direction_do_not_stop_the_cluster(tmp_path: Path) -> None:
    needs_namespaces()
    show("one_way", tmp_path)


def test_members_that_see_each_other_only_through_a_third_go_on(tmp_path: Path) -> None:
    needs_namespaces()
    show("bridged", tmp_path)


def test_a_full_disk_on_one_member_loses_nothing_and_is_got_over(tmp_path: Path) -> None:
    needs_namespaces()
    show("full_disk", tmp_path)


def test_a_member_killed_while_it_receives_a_snapshot_receives_another(tmp_path: Path) -> None:
    needs_namespaces()
    show("receiver_killed", tmp_path)


def test_a_leader_killed_while_it_sends_a_snapshot_sends_another(tmp_path: Path) -> None:
    needs_namespaces()
    show("sender_killed", tmp_path)


def test_a_storm_of_faults_two_at_a_time(tmp_path: Path) -> None:
    needs_namespaces()
    show("storm", tmp_path)
