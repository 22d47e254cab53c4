"""Hand-written cases of the Watch service: starts, ends, options, and many watches on one stream."""

from __future__ import annotations

from etcd_server.api.proto import rpc_pb2
from tests.conformance.target import Target, delete_op, put_op, txn_op


def news(t: Target) -> None:
    with t.watch_stream() as stream:
        stream.create(b"k")
        t.put(b"k", b"1")
        stream.receive(1)
        t.put(b"other", b"1")
        t.delete(b"k")
        stream.receive(1)
        t.txn(success=[put_op(b"k", b"2"), put_op(b"other", b"2")])
        stream.receive(1)
        stream.quiet()


def history(t: Target) -> None:
    for number in range(5):
        t.put(b"k", b"%d" % number)
    t.delete(b"k")
    t.put(b"j", b"x")
    with t.watch_stream() as stream:
        stream.create(b"k", start_revision=t.rev(1), answers=2)
        stream.create(b"k", start_revision=t.rev(3), prev_kv=True, answers=2)
        stream.create(b"k", start_revision=t.rev(6), answers=2)
        stream.create(b"k", start_revision=t.rev(7))
        stream.create(b"\0", b"\0", start_revision=t.rev(1), answers=2)
        t.put(b"k", b"last")
        stream.receive(5)


def the_future(t: Target) -> None:
    with t.watch_stream() as stream:
        stream.create(b"k", start_revision=t.rev(3))
        t.put(b"k", b"1")
        t.put(b"k", b"2")
        stream.quiet()
        t.put(b"k", b"3")
        stream.receive(1)
        t.put(b"k", b"4")
        stream.receive(1)


def compacted_start(t: Target) -> None:
    for number in range(5):
        t.put(b"k", b"%d" % number)
    t.compact(t.rev(4))
    with t.watch_stream() as stream:
        stream.create(b"k", start_revision=t.rev(3), answers=2)
        stream.create(b"k", start_revision=t.rev(4), answers=2)
        stream.create(b"k", start_revision=t.rev(5), answers=2)
        stream.create(b"k", start_revision=1, answers=2)
        t.put(b"k", b"after")
        stream.receive(2)


def negative_start(t: Target) -> None:
    with t.watch_stream() as stream:
        stream.create(b"k", start_revision=-1)
        t.put(b"k", b"1")
        stream.quiet()


def ranges(t: Target) -> None:
    with t.watch_stream() as stream:
        stream.create(b"a", b"c")
        stream.create(b"b", b"\0")
        stream.create(b"\0", b"\0")
        stream.create(b"", b"")
        stream.create(b"", b"\0")
        stream.create(b"c", b"a")
        stream.create(b"a", b"a")
        t.put(b"a", b"1")
        stream.receive(3)
        t.put(b"b", b"1")
        stream.receive(4)
        t.put(b"c", b"1")
        stream.receive(3)
        t.put(b"\0", b"1")
        stream.receive(3)
        t.txn(success=[delete_op(b"a", b"d"), put_op(b"z")])
        stream.receive(4)


def filters(t: Target) -> None:
    t.put(b"k", b"0")
    t.delete(b"k")
    with t.watch_stream() as stream:
        stream.create(b"k", filters=[0])
        stream.create(b"k", filters=[1])
        stream.create(b"k", filters=[0, 1])
        stream.create(b"k", filters=[0], start_revision=t.rev(1), answers=2)
        stream.create(b"k", filters=[1], start_revision=t.rev(1), answers=2)
        stream.create(b"k", filters=[7])
        t.put(b"k", b"1")
        stream.receive(3)
        t.delete(b"k")
        stream.receive(3)
        t.txn(success=[put_op(b"k")])
        stream.receive(3)


def previous_values(t: Target) -> None:
    t.put(b"k", b"0")
    with t.watch_stream() as stream:
        stream.create(b"k", prev_kv=True)
        stream.create(b"k")
        t.put(b"k", b"1")
        stream.receive(2)
        t.delete(b"k")
        stream.receive(2)
        t.put(b"k", b"2")
        stream.receive(2)
        stream.create(b"k", prev_kv=True, start_revision=t.rev(1), answers=2)


def previous_values_that_are_compacted(t: Target) -> None:
    for value in (b"0", b"1", b"2"):
        t.put(b"k", value)
    t.compact(t.rev(2), physical=True)
    with t.watch_stream() as stream:
        stream.create(b"k", prev_kv=True, start_revision=t.rev(2), answers=2)


def deletion_at_the_compacted_revision(t: Target) -> None:
    t.put(b"k", b"0")
    t.delete(b"k")
    t.put(b"k", b"1")
    t.compact(t.rev(2), physical=True)
    with t.watch_stream() as stream:
        stream.create(b"k", start_revision=t.rev(2), answers=2)


def previous_values_in_one_transaction(t: Target) -> None:
    t.put(b"a", b"before")
    twice = txn_op(success=[delete_op(b"a"), delete_op(b"b")])
    with t.watch_stream() as stream:
        stream.create(b"a", b"z", prev_kv=True)
        t.txn(success=[txn_op(success=[put_op(b"a", b"1"), put_op(b"b", b"2")]), twice])
        stream.receive(1)


def watch_ids(t: Target) -> None:
    with t.watch_stream() as stream:
        stream.create(b"a")
        stream.create(b"b")
        stream.create(b"c", watch_id=1)
        stream.create(b"c", watch_id=7)
        stream.create(b"d", watch_id=2)
        stream.create(b"e")
        stream.create(b"f", watch_id=-5)
        stream.create(b"g", watch_id=-1)
        t.txn(success=[put_op(key) for key in (b"a", b"b", b"c", b"d", b"e", b"f")])
        stream.receive(6)
        stream.send(rpc_pb2.WatchCancelRequest(watch_id=1))
        stream.receive(1)
        stream.create(b"h")
        stream.create(b"i", watch_id=1)
        stream.create(b"j", start_revision=1, answers=2)
        stream.create(b"k")


def cancelling(t: Target) -> None:
    with t.watch_stream() as stream:
        stream.create(b"k")
        stream.create(b"k")
        stream.send(rpc_pb2.WatchCancelRequest(watch_id=0))
        stream.receive(1)
        stream.send(rpc_pb2.WatchCancelRequest(watch_id=0))
        stream.send(rpc_pb2.WatchCancelRequest(watch_id=99))
        stream.send(rpc_pb2.WatchCancelRequest(watch_id=-1))
        t.put(b"k", b"1")
        stream.receive(1)
        stream.quiet()


def empty_messages(t: Target) -> None:
    with t.watch_stream() as stream:
        stream.send(rpc_pb2.WatchRequest())
        stream.send(rpc_pb2.WatchCreateRequest())
        stream.receive(1)
        stream.create(b"k")


def progress(t: Target) -> None:
    t.put(b"k", b"1")
    with t.watch_stream() as stream:
        stream.create(b"k")
        t.put(b"other", b"1")
        stream.send(rpc_pb2.WatchProgressRequest())
        stream.receive(1)
        t.put(b"k", b"2")
        stream.receive(1)
        stream.send(rpc_pb2.WatchProgressRequest())
        stream.receive(1)


def end_of_the_stream(t: Target) -> None:
    with t.watch_stream() as stream:
        stream.create(b"k")
        t.put(b"k", b"1")
        stream.receive(1)
        stream.half_close()
    with t.watch_stream() as stream:
        stream.half_close()


def with_a_leader(t: Target) -> None:
    with t.watch_stream(metadata=(("hasleader", "true"),)) as stream:
        stream.create(b"k")
        t.put(b"k", b"1")
        stream.receive(1)


def large_events(t: Target) -> None:
    big = b"x" * 700_000
    for key in (b"a", b"b", b"c", b"d"):
        t.put(key, big)
    with t.watch_stream() as stream:
        stream.create(b"a", b"z", start_revision=t.rev(1), answers=2)
        stream.create(b"a", b"z", start_revision=t.rev(1), fragment=True, answers=3)
    t.txn(success=[delete_op(b"a", b"z")])
    with t.watch_stream() as stream:
        stream.create(b"a", b"z", start_revision=t.rev(5), fragment=True, answers=2)
        stream.create(b"a", b"z", start_revision=t.rev(5), fragment=True, prev_kv=True, answers=3)


def leases_that_are_revoked(t: Target) -> None:
    t.grant(100, 7)
    for key in (b"c", b"a", b"b"):
        t.put(key, b"v", lease=7)
    with t.watch_stream() as stream:
        stream.create(b"a", b"z", prev_kv=True)
        t.revoke(7)
        stream.receive(1)
        stream.quiet()


def many_watches(t: Target) -> None:
    with t.watch_stream() as stream:
        for number in range(30):
            stream.create(b"k%02d" % number)
        stream.create(b"k", b"l")
        t.txn(success=[put_op(b"k%02d" % number) for number in range(30)])
        stream.receive(31)
        t.delete(b"k", b"l")
        stream.receive(31)


CASES = (
    news,
    history,
    the_future,
    compacted_start,
    negative_start,
    ranges,
    filters,
    previous_values,
    previous_values_that_are_compacted,
    deletion_at_the_compacted_revision,
    previous_values_in_one_transaction,
    watch_ids,
    cancelling,
    empty_messages,
    progress,
    end_of_the_stream,
    with_a_leader,
    large_events,
    leases_that_are_revoked,
    many_watches,
)
