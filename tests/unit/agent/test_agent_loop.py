"""Pacing with a clock made of numbers: settle, retry, interval, min_interval, splay; nothing is ever
dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etcd_agent.errors import CheckError
from etcd_agent.loop import NEVER, Pacer, Scheduler, backoff_s
from etcd_agent.values import (
    APPLIED,
    HELD,
    ROLLED_BACK,
    UNCHANGED,
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


def applied(each: Pacer, now: float, *, reloaded: bool = True) -> None:
    each.started()
    each.succeeded(now, reloaded=reloaded, complete=True)


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
        each.started()
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
    each.started()
    each.failed(10.0)
    assert each.due_at() == NEVER
    each.changed(20.0)
    assert each.due_at() == 22.0


def test_min_interval_delays_and_coalesces_but_never_drops() -> None:
    each = pacer(replace(RESOURCE, reload=Reload(min_interval_s=30.0)))
    applied(each, 100.0)
    for now in (105.0, 106.0, 120.0):
        each.changed(now)
    assert each.due_at() == 130.0
    each.started()
    each.changed(130.5)  # while the apply is at work
    each.succeeded(131.0, reloaded=True, complete=True)
    assert each.due_at() == 161.0, "the change that came meanwhile is due as soon as it may"


def test_splay_spreads_changes_but_not_the_first_apply() -> None:
    each = pacer(replace(RESOURCE, reload=Reload(splay_s=10.0)))
    each.changed(50.0)
    assert each.due_at() == 50.0
    applied(each, 51.0)
    each.changed(100.0)
    assert each.due_at() == 100.0 + 2.0 + 5.0


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
    assert made.due(3.0) == [changed, new]
    assert list(made.statuses) == ["web", "other", "new"]
    made.finished(RESOURCE, Outcome(APPLIED, 8), 4.0, pending=False)
    made.set_resources((new,), 5.0)
    made.finished(changed, Outcome(APPLIED, 8), 6.0, pending=False)
    assert list(made.statuses) == ["new"]
