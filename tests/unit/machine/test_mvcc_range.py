"""Range: intervals, revisions, limits, order, filters and counts."""

from typing import Any

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import kv_pb2, rpc_pb2
from etcd_server.storage.schema import pack
from tests.unit.machine.machines import ALL, Lab
from tests.unit.machine.operations import put, txn

R = rpc_pb2.RangeRequest


@pytest.fixture
def three(lab: Lab) -> Lab:
    """a (mod 7, version 3), b (mod 5, version 2), c (mod 4, version 1), created at 2, 3, 4."""
    lab.put(b"a", b"0")
    lab.put(b"b", b"0")
    lab.put(b"c", b"x")
    lab.put(b"b", b"y")
    lab.put(b"a", b"z")
    lab.put(b"a", b"z")
    return lab


def test_one_key(three: Lab) -> None:
    response = three.range(b"b")
    assert response.kvs[0] == kv_pb2.KeyValue(
        key=b"b", value=b"y", create_revision=3, mod_revision=5, version=2
    )
    assert (response.count, response.more) == (1, False)


def test_a_key_that_is_not_there(three: Lab) -> None:
    assert three.range(b"bb") == rpc_pb2.RangeResponse()


@pytest.mark.parametrize(
    ("key", "range_end", "keys"),
    [
        (b"\0", b"\0", [b"a", b"b", b"c"]),
        (b"b", b"\0", [b"b", b"c"]),
        (b"a", b"c", [b"a", b"b"]),
        (b"a\0", b"c\0", [b"b", b"c"]),
        (b"b", b"b", []),
        (b"c", b"a", []),
        (b"d", b"\0", []),
    ],
)
def test_ranges(three: Lab, key: bytes, range_end: bytes, keys: list[bytes]) -> None:
    response = three.range(key, range_end)
    assert [kv.key for kv in response.kvs] == keys
    assert response.count == len(keys)
    assert three.range(key, range_end, count_only=True) == rpc_pb2.RangeResponse(count=len(keys))


@pytest.mark.parametrize(("limit", "more"), [(1, True), (2, True), (3, False), (4, False), (-1, False)])
def test_limit_shortens_the_answer_but_not_the_count(three: Lab, limit: int, more: bool) -> None:
    response = three.range(**ALL, limit=limit)
    assert len(response.kvs) == (limit if 0 < limit < 3 else 3)
    assert (response.more, response.count) == (more, 3)


def test_the_greatest_limit(three: Lab) -> None:
    assert len(three.range(**ALL, limit=2**63 - 1).kvs) == 3


def test_limit_means_nothing_for_one_key(three: Lab) -> None:
    assert three.range(b"a", limit=1) == three.range(b"a")


@pytest.mark.parametrize(
    ("target", "ascending"),
    [
        (R.KEY, [b"a", b"b", b"c"]),
        (R.VERSION, [b"c", b"b", b"a"]),
        (R.CREATE, [b"a", b"b", b"c"]),
        (R.MOD, [b"c", b"b", b"a"]),
        (R.VALUE, [b"c", b"b", b"a"]),
    ],
)
@pytest.mark.parametrize("revision", [0, 7])
def test_sorting(three: Lab, target: R.SortTarget.ValueType, ascending: list[bytes], revision: int) -> None:
    three.put(b"later")
    three.delete(b"later")
    options = {"sort_target": target, "revision": revision}
    assert three.keys(sort_order=R.ASCEND, **options) == ascending
    assert three.keys(sort_order=R.DESCEND, **options) == ascending[::-1]
    assert three.keys(sort_order=R.NONE, **options) == ascending
    assert three.keys(sort_order=R.DESCEND, keys_only=True, **options) == ascending[::-1]


def test_sorting_comes_before_the_limit(three: Lab) -> None:
    response = three.range(**ALL, sort_order=R.DESCEND, limit=1)
    assert ([kv.key for kv in response.kvs], response.more, response.count) == ([b"c"], True, 3)
    assert three.keys(sort_order=R.ASCEND, sort_target=R.MOD, limit=2) == [b"c", b"b"]


def test_without_an_order_the_limit_comes_before_the_sorting(three: Lab) -> None:
    # etcd reads limit + 1 keys when no order is given, sorts those by the target, and drops the last.
    response = three.range(**ALL, sort_target=R.MOD, limit=1)
    assert ([kv.key for kv in response.kvs], response.more, response.count) == ([b"b"], True, 3)
    assert three.keys(sort_target=R.MOD, limit=1, revision=6) == [b"b"]


def test_without_an_order_filters_come_before_the_limit(three: Lab) -> None:
    assert three.keys(sort_target=R.MOD, limit=1, min_mod_revision=1) == [b"c"]


def test_ties_are_in_the_order_of_keys(lab: Lab) -> None:
    for key in (b"c", b"a", b"b"):
        lab.put(key, b"same")
    assert lab.keys(sort_target=R.VALUE, sort_order=R.ASCEND) == [b"a", b"b", b"c"]
    assert lab.keys(sort_target=R.VALUE, sort_order=R.DESCEND) == [b"a", b"b", b"c"]
    assert lab.keys(sort_target=R.VERSION, sort_order=R.DESCEND) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("target", [R.MOD, R.CREATE])
def test_changes_of_one_txn_tie(lab: Lab, target: R.SortTarget.ValueType) -> None:
    lab.txn(txn(then=[put(b"b"), put(b"a"), put(b"c")]))
    assert lab.keys(sort_target=target, sort_order=R.ASCEND) == [b"a", b"b", b"c"]
    assert lab.keys(sort_target=target, sort_order=R.DESCEND) == [b"a", b"b", b"c"]


def test_empty_values_sort_first(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.put(b"b", b"")
    assert lab.keys(sort_target=R.VALUE, sort_order=R.ASCEND) == [b"b", b"a"]


@pytest.mark.parametrize(
    ("filters", "keys"),
    [
        ({"min_mod_revision": 6}, [b"a"]),
        ({"max_mod_revision": 6}, [b"b", b"c"]),
        ({"min_mod_revision": 5, "max_mod_revision": 5}, [b"b"]),
        ({"min_create_revision": 3}, [b"b", b"c"]),
        ({"max_create_revision": 3}, [b"a", b"b"]),
        ({"min_create_revision": 3, "max_mod_revision": 4}, [b"c"]),
        ({"max_mod_revision": -1}, []),
        ({"min_mod_revision": -1}, [b"a", b"b", b"c"]),
        ({"min_mod_revision": 2**63 - 1}, []),
        ({"max_mod_revision": 2**63 - 1}, [b"a", b"b", b"c"]),
        ({"max_mod_revision": -(2**63)}, []),
        ({"max_create_revision": 2**63 - 1, "min_create_revision": -(2**63)}, [b"a", b"b", b"c"]),
    ],
)
@pytest.mark.parametrize("at_revision", [False, True])
def test_filters_do_not_change_the_count(
    three: Lab, filters: dict[str, Any], keys: list[bytes], at_revision: bool
) -> None:
    # mod revisions 7, 5, 4 of a, b, c; read through history when the revision is given.
    revision = 7 if at_revision else 0
    three.put(b"later")
    three.delete(b"later")
    response = three.range(**ALL, **filters, revision=revision)
    assert [kv.key for kv in response.kvs] == keys
    assert (response.count, response.more) == (3, False)


def test_filters_come_before_the_limit(three: Lab) -> None:
    response = three.range(**ALL, min_create_revision=3, limit=1)
    assert ([kv.key for kv in response.kvs], response.more, response.count) == ([b"b"], True, 3)


def test_a_filter_on_one_key(three: Lab) -> None:
    assert three.range(b"a", max_mod_revision=2) == rpc_pb2.RangeResponse(count=1)


def test_keys_only_keeps_all_but_the_value(three: Lab) -> None:
    three.grant(5)
    three.put(b"d", b"value", lease=5)
    expected = three.get(b"d")
    assert expected is not None
    expected.ClearField("value")
    assert list(three.range(b"d", keys_only=True).kvs) == [expected]
    assert list(three.range(b"d", b"\0", keys_only=True).kvs) == [expected]


def test_count_only_takes_no_notice_of_limit_and_filters(three: Lab) -> None:
    response = three.range(**ALL, count_only=True, limit=1, min_mod_revision=100)
    assert response == rpc_pb2.RangeResponse(count=3)


def test_reading_in_the_past(three: Lab) -> None:
    three.delete(b"b")
    assert [three.keys(revision=at) for at in range(1, 9)] == [
        [],
        [b"a"],
        [b"a", b"b"],
        [b"a", b"b", b"c"],
        [b"a", b"b", b"c"],
        [b"a", b"b", b"c"],
        [b"a", b"b", b"c"],
        [b"a", b"c"],
    ]
    assert three.get(b"a", revision=5) == kv_pb2.KeyValue(
        key=b"a", value=b"0", create_revision=2, mod_revision=2, version=1
    )
    assert three.range(**ALL, revision=7, count_only=True).count == 3
    assert three.range(**ALL, revision=2, count_only=True).count == 1


def test_a_page_in_the_past(three: Lab) -> None:
    three.delete(**ALL)
    page = three.range(**ALL, revision=7, limit=2)
    assert ([kv.key for kv in page.kvs], page.more, page.count) == ([b"a", b"b"], True, 3)
    rest = three.range(b"b\0", b"\0", revision=7, limit=2)
    assert ([kv.key for kv in rest.kvs], rest.more, rest.count) == ([b"c"], False, 1)


def test_a_revision_that_is_not_positive_is_now(three: Lab) -> None:
    assert three.keys(revision=-5) == three.keys()


@pytest.mark.parametrize("options", [{}, {"count_only": True}, {"limit": 1}])
def test_the_future_cannot_be_read(three: Lab, options: dict[str, Any]) -> None:
    assert three.machine.revision == 7
    with pytest.raises(errors.FutureRevision):
        three.range(**ALL, revision=8, **options)


def test_what_is_compacted_cannot_be_read(three: Lab) -> None:
    three.compact(5)
    with pytest.raises(errors.Compacted):
        three.range(b"a", revision=4)
    assert three.get(b"a", revision=5).value == b"0"  # type: ignore[union-attr]


def test_events_since_gives_whole_revisions(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.put(b"b", b"1")
    lab.delete(b"\0", b"\0")
    lab.put(b"a", b"2")
    read = lab.machine.events_since
    rows = read(2, 5, 100)
    assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
        (pack(2), False, b"a", 0),
        (pack(3), False, b"b", 0),
        (pack(4, 0), True, b"a", pack(2)),
        (pack(4, 1), True, b"b", pack(3)),
        (pack(5), False, b"a", 0),
    ]
    assert read(2, 5, 3) == rows[:2]
    assert read(2, 5, 4) == rows[:4]
    assert read(4, 5, 1) == rows[2:4]
    assert read(3, 4, 100) == rows[1:4]
    assert read(6, 9, 100) == []
    assert [row[3] for row in rows] == [events[0][3] for events in _events(lab)]


def _events(lab: Lab) -> list[list[tuple[int, bytes, int, bytes, int]]]:
    return [[event] for _, events in lab.machine.take_changes() for event in events]


def test_kv_at(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.put(b"a", b"2")
    kv = lab.machine.kv_at(pack(2))
    assert kv is not None
    assert kv_pb2.KeyValue.FromString(kv).value == b"1"
    assert lab.machine.kv_at(0) is None
    assert lab.machine.kv_at(pack(2, 1)) is None
