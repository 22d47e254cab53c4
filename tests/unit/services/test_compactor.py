"""Automatic compaction (etcd: server/etcdserver/api/v3compactor/periodic_test.go, revision_test.go)."""

import itertools

import pytest

from etcd_server.services.compactor import Compactor


def run(
    compactor: Compactor, seconds: int, revision_at: dict[int, int] | None = None, step_s: int = 1
) -> list[tuple[int, int]]:
    """Compactions as (second, revision) when the revision at second s is s, unless said otherwise."""
    found = []
    for second in range(0, seconds, step_s):
        revision = (
            second
            if revision_at is None
            else max((r for s, r in revision_at.items() if s <= second), default=1)
        )
        if due := compactor.due(revision, float(second)):
            found.append((second, due))
    return found


def test_off_by_default() -> None:
    assert run(Compactor("periodic", 0.0), 100_000, step_s=60) == []
    assert run(Compactor("revision", 0.0), 100_000, step_s=60) == []


def test_periodic_keeps_what_is_younger_than_the_retention() -> None:
    compactions = run(Compactor("periodic", 600.0), 3600)
    assert compactions
    assert all(second - revision >= 600 for second, revision in compactions)
    # Ten samples an interval: what is kept is at most a tenth of it longer than asked.
    assert all(second - revision <= 600 + 60 for second, revision in compactions)


def test_periodic_compacts_once_an_interval() -> None:
    seconds = [second for second, _ in run(Compactor("periodic", 600.0), 4000)]
    assert all(later - earlier >= 600 for earlier, later in itertools.pairwise(seconds))


def test_periodic_with_a_long_retention_looks_every_hour() -> None:
    day_s = 24 * 3600.0
    seconds = [second for second, _ in run(Compactor("periodic", day_s), 3 * 24 * 3600, step_s=60)]
    assert seconds[0] >= day_s
    gaps = {later - earlier for earlier, later in itertools.pairwise(seconds)}
    assert max(gaps) <= 3600 + 360


def test_revision_keeps_the_last_n() -> None:
    compactions = run(Compactor("revision", 100.0), 1000, {0: 50, 400: 500})
    assert compactions == [(600, 400), (900, 400)]


def test_forgets_on_losing_the_lead() -> None:
    compactor = Compactor("periodic", 600.0)
    run(compactor, 590)
    compactor.reset()
    assert compactor.due(10_000, 601.0) == 0


@pytest.mark.parametrize("mode", ["periodic", "revision"])
def test_never_compacts_a_revision_that_is_not_there_yet(mode: str) -> None:
    compactor = Compactor(mode, 10.0)
    for second in range(10_000):
        assert compactor.due(second // 7, float(second)) <= second // 7
