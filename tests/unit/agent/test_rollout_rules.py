"""Who may change now, decided from what stands in the store: no store, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_agent.rollout_rules import (
    By,
    Canary,
    Failure,
    Halt,
    Obstacle,
    Paths,
    Situation,
    Slot,
    Take,
    Wait,
    applied_revision,
    change_id,
    decide,
    dump,
    failures_of,
    limits,
    parse_failure,
    parse_failures,
    parse_halt,
    parse_slot,
    parse_slots,
)
from etcd_agent.values import Rollout

PATHS = Paths("/_agents/rollout", "web/eu")
HALT = Halt(By.AGENT, "web1", "nginx", 7, "abc", ("/nginx",), "unhealthy", 5.0)


def slots(*indexes: int) -> dict[int, Slot]:
    return {index: Slot(f"host{index}") for index in indexes}


def test_a_free_slot_is_taken_beginning_at_ones_own() -> None:
    assert decide(Situation(), max_concurrent=2) == Take((0, 1))
    assert decide(Situation(), max_concurrent=3, first=2) == Take((2, 0, 1))
    assert decide(Situation(slots(2)), max_concurrent=3, first=2) == Take((0, 1))
    assert decide(Situation(), max_concurrent=10**6, first=5) == Take((5, 6, 7))


def test_no_more_than_max_concurrent() -> None:
    assert decide(Situation(slots(0, 1)), max_concurrent=2) == Wait(Obstacle.SLOT, "slot: 2 of 2 taken")
    # Slots from a time when more were allowed count, too.
    assert isinstance(decide(Situation(slots(7, 8)), max_concurrent=2), Wait)


def test_a_host_that_has_a_slot_needs_no_other() -> None:
    assert decide(Situation(slots(0)), max_concurrent=1, has_slot=True) == Take(())


@pytest.mark.parametrize("has_slot", [False, True])
def test_a_halt_stops_everybody(has_slot: bool) -> None:
    wait = decide(Situation(halt=HALT), max_concurrent=1, has_slot=has_slot)
    assert wait == Wait(Obstacle.HALT, "halted: nginx of revision 7 was rolled back on web1")
    by_hand = decide(Situation(halt=Halt(host="ann", error="maintenance")), max_concurrent=1)
    assert by_hand == Wait(Obstacle.HALT, "halted by ann: maintenance")


@pytest.mark.parametrize("has_slot", [False, True])
def test_a_change_from_which_too_many_went_back_is_not_tried(has_slot: bool) -> None:
    """Also when the halt is over because there is a newer change: a host may be behind."""
    failures = [Failure("web1", "nginx", 7, "abc", "unhealthy", 5.0)]
    wait = decide(Situation(failures=failures), max_concurrent=1, max_failures=0, has_slot=has_slot)
    assert wait == Wait(Obstacle.HALT, "halted: nginx of revision 7 was rolled back on web1")
    assert isinstance(decide(Situation(failures=failures), max_concurrent=1, max_failures=1), Take)


@pytest.mark.parametrize("has_slot", [False, True])
def test_all_canaries_go_first(has_slot: bool) -> None:
    canaries = [Canary("c1", "APPLIED", True), Canary("c2", "APPLYING", False), Canary("c3", "", False)]
    wait = decide(Situation(canaries=canaries), max_concurrent=5, has_slot=has_slot)
    assert wait == Wait(Obstacle.CANARY, "canary: c2 APPLYING, c3 has not reported")
    assert isinstance(decide(Situation(canaries=canaries[:1]), max_concurrent=5), Take)


def test_a_canary_waits_for_no_canary() -> None:
    rollout = Rollout("web", canary=("c1", "c2"))
    assert limits(rollout, "c1") == ()
    assert limits(rollout, "web1") == ("c1", "c2")


def test_only_applied_counts() -> None:
    assert applied_revision({"state": "APPLIED", "revision": 9}) == 9
    assert applied_revision({"state": "APPLIED", "revision": 9, "reload_pending": True}) is None
    for state in ("PENDING", "APPLYING", "ROLLED_BACK", "FAILED", "DRIFTED", None):
        assert applied_revision({"state": state, "revision": 9}) is None
    assert applied_revision({}) is None
    assert applied_revision({"state": "APPLIED", "revision": "x"}) is None
    assert applied_revision({"state": "APPLIED", "revision": 0}) is None, "nothing was ever applied"


def test_a_group_halts_after_more_rollbacks_of_the_same_change() -> None:
    failures = [Failure(f"h{n}", "nginx", n, change, "", 0.0) for n, change in enumerate("aab")]
    assert [each.host for each in failures_of(failures, "a")] == ["h0", "h1"]
    assert failures_of(failures, "c") == []


def test_a_change_is_named_by_keys_and_revisions() -> None:
    keys = [(b"/a", 3), (b"/b", 5)]
    assert change_id(keys) == change_id(reversed(keys))
    assert len({change_id(each) for each in ([], keys, keys[:1], [(b"/a", 4), (b"/b", 5)])}) == 4
    assert change_id([(b"a 1", 2)]) != change_id([(b"a", 1), (b"1", 2)])


def test_documents_survive_the_store() -> None:
    slot = Slot("web1", "nginx", 7, 5.0)
    failure = Failure("web1", "nginx", 7, "abc", "unhealthy", 5.0)
    assert parse_slot(dump(slot).encode()) == slot
    assert parse_halt(dump(HALT).encode()) == HALT
    assert parse_failure(dump(failure).encode()) == failure
    assert PATHS.top == "/_agents/rollout/web%2Feu/"
    entries = {PATHS.slot(3): dump(slot).encode(), PATHS.slots + "x": b"{}", PATHS.halt: b"{}",
               PATHS.failure("nginx", "web1"): dump(failure).encode()}  # fmt: skip
    assert parse_slots(PATHS, entries) == {3: slot}
    assert parse_failures(PATHS, entries) == [failure]


@given(st.one_of(st.binary(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(
        ["by", "host", "resource", "revision", "change", "ranges", "error", "at", "since"]), inner),
).map(lambda value: __import__("json").dumps(value).encode())))  # fmt: skip
def test_whatever_stands_there_is_read(value: bytes) -> None:
    assert isinstance(parse_slot(value).since, float)
    assert isinstance(parse_failure(value).revision, int)
    halt = parse_halt(value)
    assert halt.reason and "\n" not in halt.by


def test_what_cannot_be_read_stops_like_a_person() -> None:
    halt = parse_halt(b"stop!")
    assert (halt.by, halt.reason) == (By.OPERATOR, "halted by an operator: the halt key holds no document")
