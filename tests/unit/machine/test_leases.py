"""The facts of leases: granted, attached, revoked with their keys in one revision."""

import pytest

from etcd_server.api import errors
from tests.unit.machine.machines import Lab
from tests.unit.machine.operations import put, txn


def test_grant_and_look_up(lab: Lab) -> None:
    response = lab.grant(5, 30)
    assert (response.ID, response.TTL, response.header.revision) == (5, 30, 1)
    leases = lab.machine.leases
    assert leases.exists(5)
    assert leases.ttl(5) == 30
    assert leases.keys(5) == []
    assert not leases.exists(6)
    assert leases.ttl(6) is None
    lab.grant(-9, 1)
    lab.grant(2**63 - 1, 9_000_000_000)
    assert leases.all() == [(-9, 1), (5, 30), (2**63 - 1, 9_000_000_000)]


@pytest.mark.parametrize(
    ("lease_id", "ttl_s", "error"),
    [
        (5, 10, errors.LeaseExists),
        (0, 10, errors.LeaseNotFound),
        (6, 9_000_000_001, errors.LeaseTTLTooLarge),
    ],
)
def test_refused_grants(lab: Lab, lease_id: int, ttl_s: int, error: type[errors.EtcdError]) -> None:
    lab.grant(5)
    lab.machine.take_lease_changes()
    with pytest.raises(error):
        lab.grant(lease_id, ttl_s)
    assert lab.machine.leases.all() == [(5, 60)]
    assert lab.machine.take_lease_changes() == []


def test_revoking_deletes_the_keys_in_order_at_one_revision(lab: Lab) -> None:
    lab.grant(5)
    for key in (b"c", b"a", b"b"):
        lab.put(key, lease=5)
    lab.put(b"d")
    lab.machine.take_changes()
    assert lab.revoke(5) == 6
    ((main, events),) = lab.machine.take_changes()
    assert main == 6
    assert [(event[0], event[1]) for event in events] == [(1, b"a"), (1, b"b"), (1, b"c")]
    assert lab.keys() == [b"d"]
    assert not lab.machine.leases.exists(5)
    with pytest.raises(errors.LeaseNotFound):
        lab.revoke(5)


def test_revoking_a_lease_without_keys_makes_no_revision(lab: Lab) -> None:
    lab.put(b"a")
    lab.grant(5)
    assert lab.revoke(5) == 2
    assert lab.machine.take_changes()[1:] == []


def test_a_key_belongs_to_the_lease_of_its_last_put(lab: Lab) -> None:
    lab.grant(5)
    lab.grant(6)
    lab.put(b"a", lease=5)
    lab.put(b"a", lease=6)
    lab.put(b"b", lease=5)
    lab.delete(b"b")
    assert lab.machine.leases.keys(5) == []
    assert lab.machine.leases.keys(6) == [b"a"]
    lab.revoke(5)
    assert lab.keys() == [b"a"]
    lab.revoke(6)
    assert lab.keys() == []


def test_attaching_inside_a_txn(lab: Lab) -> None:
    lab.grant(5)
    lab.txn(txn(then=[put(b"b", lease=5), put(b"a", lease=5)]))
    assert lab.machine.leases.keys(5) == [b"a", b"b"]


def test_too_many_keys_for_one_revision(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etcd_server.machine.leases.MAX_CHANGES_PER_REVISION", 1)
    lab.grant(5)
    lab.put(b"a", lease=5)
    lab.put(b"b", lease=5)
    with pytest.raises(errors.TooManyOperations):
        lab.revoke(5)
    assert lab.machine.leases.exists(5)
    lab.delete(b"a")
    lab.revoke(5)


def test_changes_for_the_clock(lab: Lab) -> None:
    lab.grant(5, 30)
    lab.grant(6, 40)
    lab.revoke(5)
    assert lab.machine.take_lease_changes() == [(5, 30), (6, 40), (5, None)]
    assert lab.machine.take_lease_changes() == []


def test_the_keys_of_a_lease_are_found_by_its_index(lab: Lab) -> None:
    plan = lab.machine.database.connection.execute(
        "EXPLAIN QUERY PLAN SELECT key FROM current WHERE lease = ? AND lease <> 0 ORDER BY key", (5,)
    ).fetchall()
    assert [row[3] for row in plan] == ["SEARCH current USING COVERING INDEX current_by_lease (lease=?)"]


def test_leases_survive_a_restart(lab: Lab) -> None:
    lab.grant(5, 30)
    lab.put(b"a", lease=5)
    lab.machine.commit()
    lab.crash()
    assert lab.machine.leases.all() == [(5, 30)]
    assert lab.machine.leases.keys(5) == [b"a"]
