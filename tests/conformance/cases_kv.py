"""Hand-written cases of the KV service: every option of its requests, and every error they can lead to."""

from __future__ import annotations

from itertools import product

from etcd_server.api.proto import rpc_pb2
from tests.conformance.target import Target, compare, delete_op, put_op, range_op, txn_op

ORDERS = ("NONE", "ASCEND", "DESCEND")
SORTS = ("KEY", "VERSION", "CREATE", "MOD", "VALUE")


def _five_keys(t: Target) -> None:
    """a..e with different versions, creation orders and values."""
    for key, value in ((b"c", b"3"), (b"a", b"5"), (b"e", b"1"), (b"b", b"4"), (b"d", b"2")):
        t.put(key, value)
    t.put(b"a", b"55")
    t.put(b"e", b"11")
    t.put(b"e", b"111")


def put_options(t: Target) -> None:
    t.put(b"k", b"1", prev_kv=True)
    t.put(b"k", b"2", prev_kv=True)
    t.put(b"k")
    t.put(b"k", b"3", prev_kv=True)
    t.range(b"k")
    t.put(b"", b"v")
    t.put(b"\0", b"zero")
    t.put(b"\xff\xfe", b"\0\xff")
    t.put(b"k" * 300, b"v" * 3000)
    t.range(b"\0", b"\0")
    t.put(b"none", b"", ignore_value=True)
    t.put(b"none", b"", ignore_lease=True)
    t.put(b"k", b"x", ignore_value=True)
    t.put(b"k", b"", ignore_value=True, prev_kv=True)
    t.put(b"k", b"x", lease=7, ignore_lease=True)
    t.put(b"k", b"4", ignore_lease=True)
    t.put(b"k", b"", ignore_value=True, ignore_lease=True)
    t.put(b"k", b"x", lease=7)
    t.put(b"k", b"x", lease=-1)
    t.put(b"", b"x", ignore_value=True)
    t.range(b"k")


def put_and_leases(t: Target) -> None:
    t.grant(100, 7)
    t.grant(100, 8)
    t.put(b"k", b"1", lease=7)
    t.time_to_live(7, keys=True)
    t.put(b"k", b"2", lease=8, prev_kv=True)
    t.time_to_live(7, keys=True)
    t.time_to_live(8, keys=True)
    t.put(b"k", b"3", ignore_lease=True, prev_kv=True)
    t.put(b"k", b"", ignore_value=True, lease=7, prev_kv=True)
    t.range(b"k")
    t.put(b"k", b"4")
    t.time_to_live(7, keys=True)
    t.put(b"k", b"", ignore_value=True, lease=9)
    t.revoke(7)
    t.range(b"k")


def put_too_large(t: Target) -> None:
    t.put(b"k", b"x" * 1_500_000)
    t.range(b"k", keys_only=True)
    t.put(b"k", b"x" * 1_572_864)
    t.put(b"k", b"x" * 1_600_000)
    t.txn(success=[put_op(b"a", b"x" * 800_000), put_op(b"b", b"x" * 800_000)])
    t.call_raw("KV/Put", rpc_pb2.PutRequest(key=b"k", value=b"x" * 2_200_000).SerializeToString())
    t.range(b"a", b"z", count_only=True)


def range_of_one_key(t: Target) -> None:
    _five_keys(t)
    t.range(b"a")
    t.range(b"nothing")
    t.range(b"")
    t.range(b"", b"z")
    t.range(b"a", keys_only=True)
    t.range(b"a", count_only=True)
    t.range(b"a", keys_only=True, count_only=True)
    t.range(b"a", serializable=True)
    t.range(b"a", limit=1)
    t.range(b"nothing", count_only=True)


def range_of_many(t: Target) -> None:
    _five_keys(t)
    for key, end in (
        (b"a", b"c"),
        (b"a", b"\0"),
        (b"c", b"\0"),
        (b"\0", b"\0"),
        (b"\0", b"b"),
        (b"c", b"a"),
        (b"a", b"a"),
        (b"b", b"b\0"),
        (b"aa", b"d"),
        (b"a", b"\xff"),
        (b"\xff", b"\0"),
    ):
        t.range(key, end)
    for limit in (1, 2, 4, 5, 6, 0, -1):
        t.range(b"a", b"z", limit=limit)
    t.range(b"a", b"z", limit=2, keys_only=True)
    t.range(b"a", b"z", limit=2, count_only=True)
    t.range(b"a", b"z", count_only=True)
    t.range(b"a", b"z", keys_only=True, serializable=True)


def range_sorted(t: Target) -> None:
    _five_keys(t)
    for order, target in product(ORDERS, SORTS):
        t.range(b"a", b"z", sort_order=order, sort_target=target)
        t.range(b"a", b"z", sort_order=order, sort_target=target, limit=2)
    t.range(b"a", b"z", sort_order="DESCEND", sort_target="VALUE", keys_only=True)
    t.range(b"a", b"z", sort_order="DESCEND", sort_target="MOD", limit=2, count_only=True)
    t.range(b"nothing", b"nowhere", sort_order="DESCEND", sort_target="MOD")


def range_sorted_with_equals(t: Target) -> None:
    t.txn(success=[put_op(key, b"same") for key in (b"c", b"a", b"b")])
    for order, target in product(ORDERS, SORTS):
        if target != "KEY":
            # Which of equal keys comes first is not promised; only that all of them come.
            t.range(b"a", b"z", sort_order=order, sort_target=target, count_only=True)
        else:
            t.range(b"a", b"z", sort_order=order, sort_target=target)


def range_at_revisions(t: Target) -> None:
    _five_keys(t)
    t.delete(b"b")
    t.put(b"b", b"again")
    for offset in (1, 2, 5, 6, 8, 9, 10, 11, 100):
        t.range(b"a", b"z", revision=t.rev(offset))
    for revision in (-1, 0, t.rev(0), t.rev(-1)):
        t.range(b"b", revision=revision)
    t.range(b"b", revision=t.rev(9))
    t.range(b"b", revision=t.rev(10))
    t.range(b"a", b"z", revision=t.rev(4), limit=2, sort_order="DESCEND", sort_target="CREATE")
    t.range(b"a", b"z", revision=t.rev(4), count_only=True)
    t.range(b"a", b"z", revision=t.rev(4), serializable=True, keys_only=True)
    t.range(b"", revision=t.rev(100))


def range_filtered_by_revision(t: Target) -> None:
    _five_keys(t)
    for field in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        for offset in (1, 3, 5, 8, 50):
            t.range(b"a", b"z", **{field: t.rev(offset)})
        t.range(b"a", b"z", **{field: -1})
    t.range(b"a", b"z", min_mod_revision=t.rev(3), max_mod_revision=t.rev(6), limit=1)
    t.range(b"a", b"z", min_create_revision=t.rev(2), max_mod_revision=t.rev(5), count_only=True)
    t.range(b"a", b"z", min_mod_revision=t.rev(2), limit=2, sort_order="DESCEND", sort_target="VALUE")
    t.range(b"a", b"z", max_create_revision=t.rev(4), keys_only=True, limit=3)


def delete_options(t: Target) -> None:
    _five_keys(t)
    t.delete(b"nothing")
    t.delete(b"nothing", prev_kv=True)
    t.delete(b"a", prev_kv=True)
    t.delete(b"a", prev_kv=True)
    t.delete(b"b", b"d", prev_kv=True)
    t.delete(b"d", b"a")
    t.delete(b"")
    t.delete(b"", b"z")
    t.range(b"\0", b"\0")
    t.delete(b"\0", b"\0")
    t.range(b"\0", b"\0", revision=t.rev(8))
    t.put(b"a", b"new")
    t.range(b"a")
    t.put(b"x", b"1")
    t.delete(b"x", b"\0", prev_kv=True)
    t.events_since(t.rev(1))


def compaction(t: Target) -> None:
    _five_keys(t)
    t.delete(b"c")
    t.compact(0)
    t.compact(-1)
    t.compact(t.rev(0))
    t.compact(t.rev(100))
    t.compact(t.rev(4))
    t.compact(t.rev(4))
    t.compact(t.rev(3))
    t.range(b"a", b"z", revision=t.rev(3))
    t.range(b"a", b"z", revision=t.rev(4))
    t.range(b"a", b"z", revision=t.rev(5))
    t.compact(t.rev(9), physical=True)
    t.range(b"a", b"z", revision=t.rev(8))
    t.range(b"a", b"z", revision=t.rev(9))
    t.range(b"a", b"z", revision=t.rev(9), serializable=True)
    t.range(b"a", b"z")
    t.compact(t.rev(10))
    t.put(b"f", b"6")
    t.range(b"c", revision=t.rev(8))
    t.txn(success=[range_op(b"a", revision=t.rev(8))])
    t.txn(success=[put_op(b"g"), range_op(b"a", revision=t.rev(8))])
    t.range(b"g")
    t.compact(t.rev(10), physical=True)
    t.delete(b"\0", b"\0")


def txn_comparisons(t: Target) -> None:
    _five_keys(t)
    t.grant(100, 7)
    t.put(b"leased", b"v", lease=7)
    yes, no = [put_op(b"yes")], [put_op(b"no")]
    for result in ("EQUAL", "GREATER", "LESS", "NOT_EQUAL"):
        for key in (b"a", b"nothing"):
            for number in (0, 1, 2, 3):
                t.txn([compare("VERSION", result, key, version=number)], yes, no)
            for offset in (2, 6):
                t.txn([compare("CREATE", result, key, create_revision=t.rev(offset))], yes, no)
                t.txn([compare("MOD", result, key, mod_revision=t.rev(offset))], yes, no)
            for value in (b"", b"5", b"55", b"555"):
                t.txn([compare("VALUE", result, key, value=value)], yes, no)
        for key in (b"leased", b"a", b"nothing"):
            for lease in (0, 7, 8):
                t.txn([compare("LEASE", result, key, lease=lease)], yes, no)


def txn_comparisons_of_ranges(t: Target) -> None:
    for key in (b"p1", b"p2", b"p3"):
        t.put(key, b"same")
    t.put(b"p3", b"same")
    yes = [range_op(b"p1", keys_only=True)]
    for target, fields in (
        ("VERSION", {"version": 0}),
        ("VERSION", {"version": 1}),
        ("VERSION", {"version": 2}),
        ("CREATE", {"create_revision": 0}),
        ("CREATE", {"create_revision": t.rev(2)}),
        ("MOD", {"mod_revision": t.rev(2)}),
        ("VALUE", {"value": b"same"}),
        ("VALUE", {"value": b"other"}),
        ("LEASE", {"lease": 0}),
    ):
        for result in ("EQUAL", "GREATER", "LESS", "NOT_EQUAL"):
            for end in (b"p9", b"p3", b"\0"):
                t.txn([compare(target, result, b"p1", range_end=end, **fields)], yes)
            t.txn([compare(target, result, b"q", range_end=b"r", **fields)], yes)
    t.txn([compare("VERSION", "EQUAL", b"p9", range_end=b"p1", version=0)], yes)


def txn_comparisons_that_are_odd(t: Target) -> None:
    t.put(b"k", b"v")
    yes, no = [put_op(b"yes")], [put_op(b"no")]
    t.txn([], yes, no)
    t.txn([compare("VERSION", "EQUAL", b"", version=0)], yes, no)
    t.txn([compare("VERSION", "EQUAL", b"k")], yes, no)
    t.txn([compare("VERSION", "EQUAL", b"k", mod_revision=1)], yes, no)
    t.txn([compare("MOD", "EQUAL", b"k", version=1)], yes, no)
    t.txn([compare("VALUE", "EQUAL", b"k", version=1)], yes, no)
    t.txn([compare("VALUE", "EQUAL", b"k")], yes, no)
    t.txn([compare("VALUE", "NOT_EQUAL", b"k")], yes, no)
    t.txn([compare("LEASE", "EQUAL", b"k", value=b"v")], yes, no)
    t.txn([compare("VERSION", 9, b"k", version=5)], yes, no)  # type: ignore[arg-type]
    t.txn([compare(9, "EQUAL", b"k", version=5)], yes, no)  # type: ignore[arg-type]
    t.txn([compare("VERSION", "EQUAL", b"k", version=1)] * 2, yes, no)
    t.txn(
        [compare("VERSION", "EQUAL", b"k", version=1), compare("VALUE", "EQUAL", b"k", value=b"w")], yes, no
    )


def txn_operations(t: Target) -> None:
    t.txn()
    t.txn(success=[range_op(b"a")])
    t.txn(success=[put_op(b"a", b"1", prev_kv=True), range_op(b"a"), put_op(b"b", b"2")])
    t.txn(success=[range_op(b"a", b"z"), put_op(b"a", b"2", prev_kv=True), range_op(b"a", b"z")])
    t.txn(success=[delete_op(b"a", prev_kv=True), range_op(b"a"), put_op(b"c", b"3")])
    t.txn(success=[delete_op(b"nothing"), range_op(b"b", revision=t.rev(1))])
    t.txn(success=[put_op(b"d"), range_op(b"b", revision=t.rev(100))])
    t.txn(success=[range_op(b"b", revision=t.rev(100))])
    t.txn(success=[range_op(b"b", revision=t.rev(-1))])
    t.txn(success=[delete_op(b"b", b"d", prev_kv=True), delete_op(b"x")])
    t.txn(success=[put_op(b"k1"), put_op(b"k2"), delete_op(b"k3"), put_op(b"k4", prev_kv=True)])
    t.range(b"\0", b"\0")
    t.txn(success=[range_op(b"a", b"z", limit=1, sort_order="DESCEND", sort_target="KEY"), put_op(b"z1")])
    t.txn(success=[put_op(b"k1", lease=77)])
    t.txn(success=[put_op(b"k1", b"v", ignore_value=True)])
    t.txn(success=[put_op(b"none", ignore_value=True)])
    t.txn(success=[put_op(b"z2"), put_op(b"none", ignore_lease=True)])
    t.range(b"z2")
    t.txn(success=[put_op(b"k1", b"", ignore_value=True, prev_kv=True)])
    t.txn(success=[range_op(b"k1", serializable=True)])
    t.txn(success=[range_op(b"k1", keys_only=True), range_op(b"k1", b"z", count_only=True)])
    t.events_since(t.rev(1))


def txn_errors(t: Target) -> None:
    empty = rpc_pb2.RequestOp()
    t.put(b"k", b"v")
    t.txn(success=[empty])
    t.txn(failure=[empty])
    t.txn(success=[range_op(b"k")], failure=[empty])
    t.txn(success=[put_op(b"")])
    t.txn(success=[range_op(b"")])
    t.txn(success=[delete_op(b"")])
    t.txn(failure=[range_op(b"")])
    t.txn(success=[put_op(b"a"), put_op(b"a")])
    t.txn(success=[put_op(b"a"), delete_op(b"a")])
    t.txn(success=[delete_op(b"a"), put_op(b"a")])
    t.txn(success=[delete_op(b"a", b"c"), put_op(b"b")])
    t.txn(success=[delete_op(b"a", b"\0"), put_op(b"zzz")])
    t.txn(success=[delete_op(b"b", b"\0"), put_op(b"a")])
    t.txn(success=[delete_op(b"a", b"b"), put_op(b"b")])
    t.txn(success=[delete_op(b"c", b"a"), put_op(b"b")])
    t.txn(success=[delete_op(b"a", b"c"), delete_op(b"b", b"d")])
    t.txn(failure=[put_op(b"a"), put_op(b"a")])
    t.txn(success=[put_op(b"a")], failure=[put_op(b"a")])
    for count in (127, 128, 129):
        t.txn(success=[put_op(b"n%d" % number) for number in range(count)])
        t.txn(failure=[range_op(b"n%d" % number) for number in range(count)])
        t.txn([compare("VERSION", "GREATER", b"k", version=0)] * count)
    t.txn(success=[range_op(b"k")] * 128, failure=[range_op(b"k")] * 128)


def txn_nested(t: Target) -> None:
    t.put(b"k", b"v")
    there = compare("VERSION", "GREATER", b"k", version=0)
    gone = compare("VERSION", "EQUAL", b"k", version=0)
    t.txn([there], [txn_op([gone], [put_op(b"a")], [put_op(b"b", prev_kv=True), range_op(b"k")])])
    t.txn(success=[put_op(b"x"), txn_op([compare("VERSION", "GREATER", b"x", version=0)], [put_op(b"y")])])
    t.txn(success=[txn_op(), txn_op(success=[txn_op(success=[txn_op(success=[put_op(b"deep")])])])])
    t.txn(success=[txn_op(success=[range_op(b"k")])])
    t.txn(success=[put_op(b"a"), txn_op(success=[put_op(b"a")])])
    t.txn(success=[txn_op(success=[put_op(b"a")]), txn_op(success=[put_op(b"a")])])
    t.txn(success=[txn_op(success=[put_op(b"a")], failure=[put_op(b"a")])])
    t.txn(success=[put_op(b"a"), txn_op(success=[delete_op(b"a")])])
    t.txn(success=[delete_op(b"a", b"c"), txn_op(success=[put_op(b"b")])])
    t.txn(success=[txn_op(success=[delete_op(b"a", b"c")], failure=[put_op(b"b")])])
    t.txn(success=[txn_op(success=[delete_op(b"a", b"c"), txn_op(failure=[put_op(b"b")])])])
    t.txn(success=[txn_op(success=[rpc_pb2.RequestOp()])])
    t.txn(success=[txn_op(success=[put_op(b"")])])
    t.txn(success=[txn_op([compare("VERSION", "EQUAL", b"", version=0)], [put_op(b"a")])])
    t.txn(success=[txn_op(success=[put_op(b"o%d" % number) for number in range(127)])])
    t.txn(success=[txn_op(success=[put_op(b"o%d" % number) for number in range(128)])])
    t.txn(
        success=[
            txn_op(success=[put_op(b"o%d" % number) for number in range(64)]),
            txn_op(success=[put_op(b"q%d" % number) for number in range(64)]),
            txn_op(success=[put_op(b"r%d" % number) for number in range(64)]),
        ]
    )
    t.txn(success=[txn_op([there], [delete_op(b"o", b"p"), delete_op(b"q", b"r", prev_kv=False)])])
    t.events_since(t.rev(1))


def txn_of_one_revision(t: Target) -> None:
    t.grant(100, 7)
    t.txn(success=[put_op(b"a", lease=7), put_op(b"b", lease=7), delete_op(b"c"), put_op(b"d")])
    t.txn(success=[delete_op(b"a", b"e"), txn_op(success=[put_op(b"f")])])
    t.txn(success=[delete_op(b"nothing")])
    t.txn(success=[txn_op(), range_op(b"f")])
    t.put(b"next")
    t.time_to_live(7, keys=True)
    t.range(b"\0", b"\0", revision=t.rev(1))
    t.range(b"\0", b"\0", revision=t.rev(2))
    t.events_since(t.rev(1))


def malformed_requests(t: Target) -> None:
    t.call_raw("KV/Range", b"\xff\xff\xff\xff")
    t.call_raw("KV/Put", b"\x0a\x05ab")
    t.call_raw("KV/Range", b"\x0a\x01a\x7a\x03xyz")
    t.call_raw("KV/Range", b"")
    t.call_raw("KV/NoSuch", b"", path="/etcdserverpb.KV/NoSuch")
    t.call_raw("No/Such", b"", path="/no.such.Service/Method")


CASES = (
    put_options,
    put_and_leases,
    put_too_large,
    range_of_one_key,
    range_of_many,
    range_sorted,
    range_sorted_with_equals,
    range_at_revisions,
    range_filtered_by_revision,
    delete_options,
    compaction,
    txn_comparisons,
    txn_comparisons_of_ranges,
    txn_comparisons_that_are_odd,
    txn_operations,
    txn_errors,
    txn_nested,
    txn_of_one_revision,
    malformed_requests,
)
