"""Pacing with a clock made of numbers: settle, retry, interval, min_interval, splay, requires; nothing is
ever dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etcd_agent.errors import CheckError
from etcd_agent.loop import NEVER, Pacer, Scheduler, backoff_s
from etcd_agent.values import (
    APPLIED,
    HELD,
    RESUMED,
    ROLLED_BACK,
    UNCHANGED,
    WAITING,
    WRITTEN,
    Outcome,
    Reload,
    Resource,
    Retry,
    State,
    Wait,
)

RESOURCE = Resource("web", "web.toml", "", ("/web",), (), wait=Wait(2.0, 10.0))
RETRY = Retry(backoff_s=1.0, max_backoff_s=8.0, jitter=False)


def pacer(resource: Resource = RESOURCE, on_error: str = "retry", retry: Retry = RETRY) -> Pacer:
    return Pacer(resource, retry, 600.0, on_error, lambda: 0.5)


def applied(each: Pacer, now: float) -> None:
    each.started(now)
    each.succeeded(now, Outcome(APPLIED, 7, reloaded=True), complete=True)


def test_the_first_apply_does_not_settle() -> None:
    each = pacer()
    assert each.due_at() == NEVER
    each.changed(100.0)
    assert each.due_at() == 100.0


def test_wait_min_after_the_last_and_max_after_the_first_change() -> None:
    each = pacer()
    applied(each, 100.0)
    each.changed(200.0)
    assert each.due_at() == 202.0
    each.changed(201.5)
    assert each.due_at() == 203.5
    for tenth in range(100):
        each.changed(201.5 + tenth / 10)
    assert each.due_at() == 210.0, "max counts from the first change"


def test_backoff_doubles_to_its_limit_and_a_success_ends_it() -> None:
    each = pacer()
    applied(each, 0.0)
    waits = []
    now = 100.0
    for _ in range(6):
        each.started(now)
        each.failed(now)
        waits.append(each.due_at() - now)
        now = each.due_at()
    assert waits == [1, 2, 4, 8, 8, 8]
    applied(each, now)
    assert each.due_at() == now + 600.0


def test_backoff_jitter_stays_in_the_upper_half() -> None:
    retry = replace(RETRY, jitter=True)
    assert backoff_s(retry, 3, lambda: 0.0) == 2.0
    assert backoff_s(retry, 3, lambda: 1.0) == 4.0
    assert backoff_s(retry, 10_000, lambda: 1.0) == 8.0


@pytest.mark.parametrize(
    ("on_error", "retry"), [("hold", RETRY), ("exit", RETRY), ("retry", replace(RETRY, attempts=1))]
)
def test_held_until_a_change(on_error: str, retry: Retry) -> None:
    each = pacer(on_error=on_error, retry=retry)
    applied(each, 0.0)
    each.started(9.0)
    each.failed(10.0)
    assert each.due_at() == NEVER
    each.changed(20.0)
    assert each.due_at() == 22.0


def test_min_interval_delays_the_reload_alone_and_drops_none() -> None:
    each = pacer(replace(RESOURCE, reload=Reload(min_interval_s=30.0)))
    applied(each, 100.0)
    for now in (105.0, 111.0):
        each.changed(now)
        assert each.due_at() == now + 2.0, "the files are written as soon as the change has settled"
        assert each.started(now + 2.0), "but it is too early for a reload"
        each.succeeded(now + 2.1, Outcome(WRITTEN, 8), complete=True)
        assert each.due_at() == 130.0
    assert not each.started(130.0)
    each.changed(130.5)  # while the reload is at work
    each.succeeded(131.0, Outcome(APPLIED, 8, reloaded=True), complete=True)
    assert each.due_at() == 132.5
    assert each.started(132.5)
    each.succeeded(132.6, Outcome(WRITTEN, 9), complete=True)
    assert each.due_at() == 161.0, "the change that came meanwhile is reloaded with as soon as it may"


def test_splay_spreads_reloads_but_not_the_first_one() -> None:
    each = pacer(replace(RESOURCE, reload=Reload(splay_s=10.0)))
    each.changed(50.0)
    assert not each.started(50.0)
    each.succeeded(51.0, Outcome(APPLIED, 7, reloaded=True), complete=True)
    each.changed(100.0)
    assert each.due_at() == 102.0
    assert each.started(102.0)
    each.succeeded(102.1, Outcome(WRITTEN, 8), complete=True)
    assert each.due_at() == 107.0
    each.changed(103.0)
    assert each.started(105.0), "another change does not push it away"
    each.succeeded(105.1, Outcome(WRITTEN, 9), complete=True)
    assert each.due_at() == 107.0 and not each.started(107.0)


def test_a_reload_that_waits_is_due_although_newer_keys_fail() -> None:
    each = pacer(replace(RESOURCE, reload=Reload(min_interval_s=30.0)), on_error="hold")
    applied(each, 100.0)
    each.changed(101.0)
    each.started(103.0)
    each.succeeded(103.0, Outcome(WRITTEN, 8), complete=True)
    each.changed(104.0)
    each.started(106.0)
    each.failed(106.0, pending=True)
    assert each.due_at() == 130.0
    assert not each.started(130.0)
    each.failed(130.0, pending=False)
    assert each.due_at() == NEVER


def test_reconciliation_every_interval() -> None:
    each = pacer()
    applied(each, 100.0)
    assert each.due_at() == 700.0


def scheduler(*resources: Resource) -> Scheduler:
    made = Scheduler(RETRY, 600.0, "retry", random=lambda: 0.5, clock=lambda: 5.0)
    made.set_resources(resources or (RESOURCE,), 0.0)
    return made


def test_a_resource_in_work_is_not_started_twice_and_its_change_is_not_lost() -> None:
    made = scheduler()
    assert made.due(0.0) == [RESOURCE]
    made.started(RESOURCE, 0.0)
    assert made.due(0.0) == [] and made.next_at() == NEVER
    made.changed(RESOURCE, 1.0)
    assert made.due(50.0) == []
    made.finished(RESOURCE, Outcome(APPLIED, 7, reloaded=True), 60.0, pending=False)
    assert made.due(60.0) == [RESOURCE]


def test_one_failing_resource_leaves_the_other_alone() -> None:
    other = replace(RESOURCE, name="other")
    made = scheduler(RESOURCE, other)
    for resource, result in ((RESOURCE, CheckError("no")), (other, Outcome(APPLIED, 7, reloaded=True))):
        made.started(resource, 0.0)
        made.finished(resource, result, 1.0, pending=False)
    assert [(each.state, each.error) for each in made.statuses.values()] == [
        (State.FAILED, "no"),
        (State.APPLIED, ""),
    ]
    assert made.due(2.0) == [RESOURCE]
    assert made.passed()


def test_states() -> None:
    made = scheduler()

    def run(result: Outcome) -> State:
        made.started(RESOURCE, 0.0)
        made.finished(RESOURCE, result, 1.0, pending=False)
        return made.statuses["web"].state

    def state() -> State:
        return made.statuses["web"].state

    assert state() is State.UNKNOWN and not made.passed()
    made.started(RESOURCE, 0.0)
    assert state() is State.APPLYING
    made.finished(RESOURCE, Outcome(APPLIED, 7), 1.0, pending=False, complete=False)
    assert not made.passed(), "a pass without the store is not complete"
    assert run(Outcome(ROLLED_BACK, 8, error="why")) is State.ROLLED_BACK
    assert run(Outcome(HELD, 8, error="why")) is State.ROLLED_BACK
    assert made.statuses["web"].error == "why" and made.statuses["web"].revision == 7
    assert run(Outcome(UNCHANGED, 9)) is State.APPLIED
    made.changed(RESOURCE, 3.0)
    assert made.statuses["web"].state is State.PENDING


def test_a_pending_reload_is_retried() -> None:
    made = scheduler()
    made.started(RESOURCE, 0.0)
    made.finished(RESOURCE, Outcome(ROLLED_BACK, 8, error="why"), 1.0, pending=True)
    assert made.statuses["web"].reload_pending
    assert made.due(2.0) == [RESOURCE]


def test_what_is_waited_for_is_in_the_status() -> None:
    """ "Settling, 3 s left": times of the status are on the wall clock, which stands at 5 here."""
    seen: list[tuple[str, float]] = []
    made = Scheduler(
        RETRY,
        600.0,
        "retry",
        random=lambda: 0.5,
        clock=lambda: 5.0,
        on_status=lambda status: seen.append((status.waiting, status.due_at)),
    )
    made.set_resources((RESOURCE,), 0.0)
    made.due(0.0)
    made.started(RESOURCE, 0.0)
    made.finished(RESOURCE, Outcome(APPLIED, 7, reloaded=True), 1.0, pending=False)
    made.changed(RESOURCE, 10.0)
    assert seen[-1] == ("settling", 7.0)
    assert made.due(12.0) == [RESOURCE]
    made.started(RESOURCE, 12.0)
    assert seen[-1] == ("", 0.0)
    made.finished(RESOURCE, CheckError("no"), 13.0, pending=False)
    assert seen[-1] == ("next attempt", 6.0)
    made.started(RESOURCE, 14.0)
    made.finished(RESOURCE, Outcome(WAITING, 8, detail="slot: 1 of 1 taken"), 15.0, pending=False)
    assert seen[-1] == ("slot: 1 of 1 taken", 0.0)
    assert made.statuses["web"].state is State.WAITING_SLOT
    assert made.due(100.0) == [], "until the gate says so"
    made.wake("web")
    assert made.due(100.0) == [RESOURCE]


def test_a_dependant_waits_until_what_it_requires_is_applied() -> None:
    base = replace(RESOURCE, name="base", wait=Wait(1.0, 1.0))
    top = replace(RESOURCE, name="top", requires=("base",), wait=Wait())
    made = scheduler(top, base)

    def run(resource: Resource, result: Outcome | CheckError, now: float) -> None:
        made.started(resource, now)
        made.finished(resource, result, now, pending=False)

    assert made.due(0.0) == [base, top]
    assert made.settling == {"top"}, "a reload that is owed waits for nobody"
    made.started(top, 0.0)
    made.finished(top, Outcome(UNCHANGED, 0), 0.0, pending=False, complete=False)
    assert made.due(0.0) == []
    assert made.statuses["top"].waiting == "requires base"
    run(base, CheckError("no"), 0.0)
    assert made.due(0.5) == [], "not while it fails"
    assert made.statuses["top"].state is State.UNKNOWN
    assert made.passed(), "and it is nothing to wait for at a start"
    assert made.due(1.0) == [base]
    run(base, Outcome(APPLIED, 7, reloaded=True), 1.0)
    assert made.due(1.0) == [top]
    run(top, Outcome(APPLIED, 7, reloaded=True), 1.0)
    for each in (top, base):
        made.changed(each, 10.0)
    assert made.due(10.0) == [], "one change of both: the base settles first"
    assert made.due(11.0) == [base]
    made.started(base, 11.0)
    assert made.due(11.5) == []
    made.finished(base, Outcome(ROLLED_BACK, 8, error="why"), 12.0, pending=False)
    assert made.due(12.0) == [], "and not with a base that is not what the keys say"
    made.changed(base, 20.0)
    made.due(21.0)
    run(base, Outcome(APPLIED, 9, reloaded=True), 21.0)
    assert made.due(21.0) == [top]


def test_reload_of_the_configuration_touches_only_what_changed() -> None:
    other = replace(RESOURCE, name="other")
    made = scheduler(RESOURCE, other)
    for resource in (RESOURCE, other):
        made.started(resource, 0.0)
        made.finished(resource, Outcome(APPLIED, 7), 1.0, pending=False)
    changed = replace(other, wait=Wait(1.0, 1.0))
    new = replace(RESOURCE, name="new")
    made.started(RESOURCE, 2.0)
    made.set_resources((RESOURCE, changed, new), 3.0)
    assert sorted(each.name for each in made.due(3.0)) == ["new", "other"]
    assert list(made.statuses) == ["web", "other", "new"]
    made.finished(RESOURCE, Outcome(APPLIED, 8), 4.0, pending=False)
    made.set_resources((new,), 5.0)
    made.finished(changed, Outcome(APPLIED, 8), 6.0, pending=False)
    assert list(made.statuses) == ["new"]


def test_a_dependant_reloads_what_is_owed_with_backoff_while_it_waits() -> None:
    base = replace(RESOURCE, name="base")
    top = replace(RESOURCE, name="top", requires=("base",), wait=Wait())
    made = scheduler(top, base)
    assert made.due(0.0) == [base, top]
    made.started(base, 0.0)
    made.started(top, 0.0)
    made.finished(top, CheckError("no"), 0.0, pending=True, complete=False)
    assert made.due(0.5) == [], "with backoff, although its keys have changed"
    assert made.due(1.0) == [top] and made.settling == {"top"}
    made.started(top, 1.0)
    made.finished(top, Outcome(RESUMED, 5, reloaded=True), 1.5, pending=False, complete=False)
    assert made.due(5.0) == []
    made.finished(base, Outcome(APPLIED, 7, reloaded=True), 6.0, pending=False)
    assert made.due(6.0) == [top] and not made.settling, "and now with its keys"
