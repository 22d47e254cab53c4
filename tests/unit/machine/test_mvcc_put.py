"""Put and delete: revisions, versions, options and their errors."""

from typing import Any

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2, kv_pb2, rpc_pb2
from etcd_server.storage.schema import pack
from tests.unit.machine.machines import Lab


def command(key: bytes, value: bytes = b"", **options: Any) -> command_pb2.Command:
    return command_pb2.Command(put=rpc_pb2.PutRequest(key=key, value=value, **options))


def test_a_new_store_is_at_revision_1(lab: Lab) -> None:
    assert lab.machine.revision == 1
    assert lab.machine.compacted_revision == -1


def test_revisions_and_version_of_a_key(lab: Lab) -> None:
    assert lab.put(b"a", b"1").header.revision == 2
    lab.put(b"b", b"1")
    lab.put(b"a", b"2")
    assert lab.get(b"a") == kv_pb2.KeyValue(
        key=b"a", value=b"2", create_revision=2, mod_revision=4, version=2
    )


def test_a_key_begins_anew_after_its_deletion(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.delete(b"a")
    lab.put(b"a", b"2")
    assert lab.get(b"a") == kv_pb2.KeyValue(
        key=b"a", value=b"2", create_revision=4, mod_revision=4, version=1
    )


def test_an_empty_value_is_a_value(lab: Lab) -> None:
    lab.put(b"a")
    assert lab.get(b"a") == kv_pb2.KeyValue(key=b"a", create_revision=2, mod_revision=2, version=1)


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def test_values_of_every_length_of_length(lab: Lab, size: int) -> None:
    lab.put(b"k" * min(size, 1000), b"v" * size)
    (kv,) = lab.range(b"\0", b"\0").kvs
    assert kv.value == b"v" * size
    (without,) = lab.range(b"\0", b"\0", keys_only=True).kvs
    kv.ClearField("value")
    assert without == kv


def test_one_run_of_puts_is_like_one_after_another(lab: Lab) -> None:
    lab.put(b"old", b"0")
    outcomes = lab.apply(
        command(b"new", b"1"), command(b"old", b"1"), command(b"new", b"2"), command(b"new", b"3")
    )
    assert outcomes == [(3, b""), (4, b""), (5, b""), (6, b"")]
    assert [kv.value for kv in lab.range(b"\0", b"\0").kvs] == [b"3", b"1"]
    new = lab.get(b"new")
    assert new is not None
    assert (new.create_revision, new.mod_revision, new.version) == (3, 6, 3)
    assert lab.get(b"new", revision=5) == kv_pb2.KeyValue(
        key=b"new", value=b"2", create_revision=3, mod_revision=5, version=2
    )
    lab.check_tables()


def test_puts_with_options_among_plain_ones_keep_their_order(lab: Lab) -> None:
    outcomes = lab.apply(command(b"a", b"1"), command(b"a", b"2", prev_kv=True), command(b"a", b"3"))
    assert [outcome[0] for outcome in outcomes] == [2, 3, 4]
    assert rpc_pb2.PutResponse.FromString(outcomes[1][1]).prev_kv.value == b"1"
    assert lab.get(b"a").value == b"3"  # type: ignore[union-attr]


def test_prev_kv_of_a_new_key_is_absent(lab: Lab) -> None:
    assert not lab.put(b"a", b"1", prev_kv=True).HasField("prev_kv")
    assert lab.put(b"a", b"2", prev_kv=True).prev_kv == kv_pb2.KeyValue(
        key=b"a", value=b"1", create_revision=2, mod_revision=2, version=1
    )


def test_ignore_value_keeps_the_value_and_changes_the_lease(lab: Lab) -> None:
    lab.grant(7)
    lab.put(b"a", b"1")
    lab.put(b"a", ignore_value=True, lease=7)
    assert lab.get(b"a") == kv_pb2.KeyValue(
        key=b"a", value=b"1", create_revision=2, mod_revision=3, version=2, lease=7
    )
    assert lab.machine.leases.keys(7) == [b"a"]


def test_ignore_lease_keeps_the_lease_and_changes_the_value(lab: Lab) -> None:
    lab.grant(7)
    lab.put(b"a", b"1", lease=7)
    lab.put(b"a", b"2", ignore_lease=True)
    assert lab.get(b"a") == kv_pb2.KeyValue(
        key=b"a", value=b"2", create_revision=2, mod_revision=3, version=2, lease=7
    )


@pytest.mark.parametrize("option", ["ignore_value", "ignore_lease"])
def test_there_is_nothing_to_keep_of_a_key_that_is_not_there(lab: Lab, option: str) -> None:
    with pytest.raises(errors.KeyNotFound):
        lab.do(put=rpc_pb2.PutRequest(key=b"a", **{option: True}))  # type: ignore[arg-type]
    assert lab.machine.revision == 1


def test_of_two_errors_a_put_tells_the_lease_first(lab: Lab) -> None:
    with pytest.raises(errors.LeaseNotFound):
        lab.put(b"a", ignore_value=True, lease=99)


def test_a_put_without_a_lease_detaches_the_key(lab: Lab) -> None:
    lab.grant(7)
    lab.put(b"a", b"1", lease=7)
    lab.put(b"a", b"2")
    assert lab.machine.leases.keys(7) == []
    assert lab.get(b"a").lease == 0  # type: ignore[union-attr]


def test_an_unknown_lease_refuses_its_put_and_no_other(lab: Lab) -> None:
    first, refused, last = lab.apply(command(b"a"), command(b"b", lease=9), command(b"c"))
    assert (first, last) == ((2, b""), (3, b""))
    assert isinstance(refused, errors.LeaseNotFound)
    assert lab.keys() == [b"a", b"c"]


def test_changes_are_told_in_order(lab: Lab) -> None:
    lab.apply(command(b"a", b"1"), command(b"a", b"2"))
    lab.delete(b"a")
    changes = lab.machine.take_changes()
    assert [(main, *event[:3], event[4]) for main, events in changes for event in events] == [
        (2, 0, b"a", pack(2), 0),
        (3, 0, b"a", pack(3), pack(2)),
        (4, 1, b"a", pack(4), pack(3)),
    ]
    kvs = [kv_pb2.KeyValue.FromString(events[0][3]) for _, events in changes]
    assert kvs == [
        kv_pb2.KeyValue(key=b"a", value=b"1", create_revision=2, mod_revision=2, version=1),
        kv_pb2.KeyValue(key=b"a", value=b"2", create_revision=2, mod_revision=3, version=2),
        kv_pb2.KeyValue(key=b"a", mod_revision=4),
    ]
    assert lab.machine.take_changes() == []


def test_delete_range_counts_and_shows_what_was_there(lab: Lab) -> None:
    for key in (b"a", b"b", b"c"):
        lab.put(key, key)
    response = lab.delete(b"a", b"c", prev_kv=True)
    assert response.deleted == 2
    assert [kv.value for kv in response.prev_kvs] == [b"a", b"b"]
    assert response.header.revision == 5
    assert lab.keys() == [b"c"]
    (change,) = lab.machine.take_changes()[3:]
    assert [event[2] for event in change[1]] == [pack(5, 0), pack(5, 1)]


def test_deleting_nothing_makes_no_revision(lab: Lab) -> None:
    lab.put(b"a")
    response = lab.delete(b"b", b"\0")
    assert (response.deleted, response.header.revision) == (0, 2)
    assert lab.delete(b"a", b"a").deleted == 0
    assert lab.machine.revision == 2


def test_a_change_too_large_for_one_revision_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etcd_server.machine.txn.MAX_CHANGES_PER_REVISION", 3)
    for key in (b"a", b"b", b"c", b"d"):
        lab.put(key)
    with pytest.raises(errors.TooManyOperations):
        lab.delete(b"\0", b"\0")
    assert len(lab.keys()) == 4
    assert lab.delete(b"b", b"\0").deleted == 3
