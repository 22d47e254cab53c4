"""The leader's clock of leases (etcd: server/lease/lessor_test.go)."""

from etcd_server.services.lease import REVOKE_RETRY_S, Lessor


def test_a_lease_runs_out_after_its_ttl() -> None:
    lessor = Lessor()
    lessor.renew(1, 10, now=0.0)
    assert lessor.take_expired(9.9, 100) == []
    assert lessor.take_expired(10.0, 100) == [1]


def test_a_keepalive_starts_the_time_anew() -> None:
    lessor = Lessor()
    lessor.renew(1, 10, now=0.0)
    lessor.renew(1, 10, now=8.0)
    assert lessor.take_expired(17.9, 100) == []
    assert lessor.remaining_s(1, 17.0) == 1.0
    assert lessor.take_expired(18.0, 100) == [1]


def test_an_expired_lease_comes_again_until_it_is_revoked() -> None:
    lessor = Lessor()
    lessor.renew(1, 1, now=0.0)
    assert lessor.take_expired(1.0, 100) == [1]
    assert lessor.take_expired(1.5, 100) == []
    assert lessor.take_expired(1.0 + REVOKE_RETRY_S, 100) == [1]
    lessor.forget(1)
    assert lessor.take_expired(1000.0, 100) == []


def test_a_new_leader_extends_every_lease() -> None:
    """Issues 15247, 16822 of etcd: an old leader's view of time must not revoke what a new one keeps
    alive."""
    lessor = Lessor()
    lessor.renew(1, 10, now=0.0)
    lessor.demote()
    assert len(lessor) == 0
    lessor.promote([(1, 10), (2, 20)], now=9.0, extension_s=1.0)
    assert lessor.take_expired(19.9, 100) == []
    assert lessor.take_expired(20.0, 100) == [1]
    assert lessor.take_expired(30.0, 100) == [1, 2]


def test_no_more_than_the_limit_at_once() -> None:
    lessor = Lessor()
    for lease_id in range(1, 11):
        lessor.renew(lease_id, 1, now=0.0)
    first = lessor.take_expired(1.0, 4)
    rest = lessor.take_expired(1.0, 100)
    assert len(first) == 4
    assert sorted(first + rest) == list(range(1, 11))


def test_the_queue_does_not_grow_with_keepalives_or_with_grants_of_one_id() -> None:
    lessor = Lessor()
    for second in range(1000):
        lessor.renew(7, 5, now=float(second))
        lessor.take_expired(float(second), 10)
    for second in range(1000, 2000):
        lessor.forget(7)
        lessor.renew(7, 5, now=float(second))
        lessor.take_expired(float(second), 10)
    assert len(lessor._queue) < 10


def test_unknown_lease() -> None:
    assert Lessor().remaining_s(99, 0.0) is None
