"""Failover, repetition and outcomes of single calls, over the scripted transport."""

from __future__ import annotations

from random import Random

import pytest

from etcd_client import errors, ops
from etcd_client.session import Backoff, parse_endpoints
from etcd_client.transport import ConnectFailed, ConnectionLost, IdleTimeout
from tests.unit.client.fakes import (
    A,
    B,
    Clock,
    FakeResponse,
    FakeTransport,
    Stream,
    error_frame,
    fake_client,
    fake_session,
    ok,
    refused,
)

NO_LEADER = refused(14, "etcdserver: no leader", 503)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("127.0.0.1:2379", ("http://127.0.0.1:2379",)),
        ("http://a:1, https://b:2/", ("http://a:1", "https://b:2")),
        (["a:1", "a:1", "b:1"], ("http://a:1", "http://b:1")),
        ("a", ("http://a:2379",)),
        ("http://[::1]:2379", ("http://[::1]:2379",)),
    ],
)
def test_endpoints_are_made_urls(given: str | list[str], expected: tuple[str, ...]) -> None:
    assert parse_endpoints(given) == expected


@pytest.mark.parametrize(
    "bad", ["", "ftp://a:1", "http://", "http://a:port", "http://u:p@a:1", "http://a:1/x", "http://a:1?q=1"]
)
def test_an_endpoint_that_cannot_be_used_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        parse_endpoints(bad)


def test_a_read_goes_to_the_next_endpoint_when_the_first_cannot_be_reached() -> None:
    transport = FakeTransport(a=[ConnectFailed("Connection refused")], b=[ok(), ok()])
    client = fake_client(transport)
    assert client.get("k") is None
    assert client.get("k") is None, "the endpoint that answered is kept"
    assert transport.asked == "abb"


def test_a_write_goes_to_the_next_endpoint_only_when_it_was_not_sent() -> None:
    transport = FakeTransport(a=[ConnectFailed("Connection refused")], b=[ok(revision=9)])
    assert fake_client(transport).put("k", "v").revision == 9
    assert transport.asked == "ab"


@pytest.mark.parametrize("trouble", [ConnectionLost("reset"), IdleTimeout("no answer")])
def test_a_write_that_may_have_been_received_is_never_repeated(trouble: Exception) -> None:
    transport = FakeTransport(a=[trouble], b=[])
    with pytest.raises(errors.OutcomeUnknown) as caught:
        fake_client(transport).put("k", "v")
    assert transport.asked == "a"
    assert caught.value.endpoint == A


@pytest.mark.parametrize(
    "answer",
    [
        refused(14, "etcdserver: request timed out", 503),
        refused(14, "etcdserver: leader changed", 503),
        refused(14, "etcdserver: server stopped", 503),
        refused(4, "context deadline exceeded", 504),
        refused(1, "etcdserver: request cancelled", 408),
        refused(2, "something broke", 500),
        FakeResponse(b"<html>bad gateway</html>", 502),
        FakeResponse(b"", 500),
    ],
)
def test_an_answer_that_does_not_say_what_became_of_a_write_is_outcome_unknown(answer: FakeResponse) -> None:
    transport = FakeTransport(a=[answer], b=[])
    with pytest.raises(errors.OutcomeUnknown):
        fake_client(transport).delete("k")
    assert transport.asked == "a"


def test_a_write_refused_for_want_of_a_leader_is_repeated() -> None:
    transport = FakeTransport(a=[NO_LEADER], b=[ok(revision=3)])
    assert fake_client(transport).put("k").revision == 3
    assert transport.asked == "ab"


@pytest.mark.parametrize(
    "trouble",
    [
        ConnectionLost("reset"),
        IdleTimeout("no answer"),
        refused(14, "etcdserver: leader changed", 503),
        refused(4, "context deadline exceeded", 504),
        FakeResponse(b"", 503),
    ],
)
def test_a_read_is_repeated_at_the_next_endpoint(trouble: object) -> None:
    transport = FakeTransport(a=[trouble], b=[ok(revision=8)])
    assert fake_client(transport).range("k").revision == 8


def test_a_txn_that_only_reads_is_repeated_and_one_that_writes_is_not() -> None:
    transport = FakeTransport(a=[ConnectionLost("reset")], b=[ok(), ConnectionLost("reset")])
    client = fake_client(transport)
    client.txn(success=[ops.get("a"), ops.txn(failure=[ops.get_prefix("b")])])
    with pytest.raises(errors.OutcomeUnknown):
        client.txn(success=[ops.get("a")], failure=[ops.txn(success=[ops.put("b")])])
    assert transport.asked == "abb"


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (3, "etcdserver: key is not provided", errors.InvalidArgument),
        (5, "etcdserver: requested lease not found", errors.NotFound),
        (7, "etcdserver: permission denied", errors.PermissionDenied),
        (8, "etcdserver: mvcc: database space exceeded", errors.NoSpace),
        (8, "etcdserver: too many requests", errors.TooManyRequests),
        (9, "etcdserver: lease already exists", errors.FailedPrecondition),
        (11, "etcdserver: mvcc: required revision has been compacted", errors.Compacted),
        (11, "etcdserver: mvcc: required revision is a future revision", errors.FutureRevision),
        (11, "etcdserver: too large lease TTL", errors.OutOfRange),
        (12, "not implemented", errors.Unsupported),
        (15, "etcdserver: corrupt cluster", errors.Corrupt),
        (16, "etcdserver: invalid auth token", errors.Unauthenticated),
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_a_refusal_is_raised_at_once_with_the_servers_text_and_code(
    code: int, text: str, kind: type[errors.EtcdError], write: bool
) -> None:
    transport = FakeTransport(a=[refused(code, text)], b=[])
    client = fake_client(transport)
    with pytest.raises(errors.EtcdError) as caught:
        client.put("k") if write else client.get("k")
    assert type(caught.value) is kind
    assert (caught.value.text, caught.value.code, caught.value.endpoint) == (text, code, A)
    assert str(caught.value) == f"{text} ({A})"


def test_an_answer_of_a_server_without_the_call_is_unsupported() -> None:
    with pytest.raises(errors.Unsupported, match="404"):
        fake_client(FakeTransport(a=[FakeResponse(b"Not Found", 404)]), A).get("k")


@pytest.mark.parametrize(
    "answer",
    [FakeResponse(b"not json"), FakeResponse([1]), ok(kvs="x"), ok(count="many"), ok(kvs=[{"key": "!"}])],
)
def test_an_answer_that_makes_no_sense_is_a_bad_answer(answer: FakeResponse) -> None:
    with pytest.raises(errors.BadAnswer):
        fake_client(FakeTransport(a=[answer]), A).range("k")


def test_calls_wait_longer_between_rounds_and_give_up_in_time() -> None:
    clock = Clock()
    transport = FakeTransport(a=[ConnectFailed("refused")] * 50, b=[ConnectFailed("refused")] * 50)
    with pytest.raises(errors.Unreachable):
        fake_session(transport, clock=clock).call("/x", {}, repeatable=False)
    assert 4.0 <= sum(clock.waits_s) <= 5.0
    assert all(0.05 * 2**n <= wait <= 0.1 * 2**n for n, wait in enumerate(clock.waits_s[:4]))
    assert transport.asked == "ab" * (len(transport.asked) // 2)


def test_a_read_leaves_time_for_the_endpoints_not_yet_asked_and_a_write_does_not() -> None:
    transport = FakeTransport(a=[IdleTimeout("")], b=[ok()])
    fake_session(transport).call("/x", {}, repeatable=True)
    assert [request.read_timeout_s for request in transport.raw] == [2.5, 5.0]
    transport = FakeTransport(a=[ok()])
    fake_session(transport).call("/x", {}, repeatable=False)
    assert transport.raw[0].read_timeout_s == 5.0
    assert transport.raw[0].connect_timeout_s == 2.0


def test_status_asks_the_endpoint_named_and_no_other() -> None:
    transport = FakeTransport(b=[ok(version="3.4.23", leader="1", dbSize="20480")])
    status = fake_client(transport).status(B)
    assert (status.endpoint, status.version, status.is_leader, status.db_size_bytes) == (
        B,
        "3.4.23",
        True,
        20480,
    )
    assert transport.asked == "b"


def test_a_closed_client_refuses_calls() -> None:
    transport = FakeTransport()
    with fake_client(transport) as client:
        pass
    with pytest.raises(errors.Closed):
        client.get("k")
    with pytest.raises(StopIteration):
        next(client.watch("k"))
    assert transport.closed


def test_lease_keep_alive_reads_the_first_message_of_the_stream() -> None:
    granted = ok(ID="77", TTL="9")
    alive = Stream()
    alive.read = lambda: b'{"result":{"ID":"77","TTL":"9"}}\n'  # type: ignore[method-assign]
    gone = Stream()
    gone.read = lambda: b'{"result":{"ID":"77"}}\n'  # type: ignore[method-assign]
    client = fake_client(FakeTransport(a=[granted, alive, gone]), A)
    lease = client.lease(9)
    assert (lease.lease_id, lease.keep_alive_once(), lease.lost.is_set()) == (77, 9, False)
    with pytest.raises(errors.NotFound):
        lease.keep_alive_once()
    assert lease.lost.is_set()


def test_an_error_frame_in_a_short_stream_is_raised() -> None:
    broken = FakeResponse(error_frame(16, "etcdserver: invalid auth token"))
    client = fake_client(FakeTransport(a=[ok(ID="77", TTL="9"), broken]), A)
    with pytest.raises(errors.Unauthenticated):
        client.lease(9).keep_alive_once()


def test_backoff_doubles_to_its_limit_and_starts_again() -> None:
    backoff = Backoff(Random(3), base_s=0.1, max_s=1.0)
    waits = [backoff.next_s() for _ in range(12)]
    ceilings = [min(1.0, 0.1 * 2**n) for n in range(12)]
    assert all(ceiling / 2 <= wait <= ceiling for wait, ceiling in zip(waits, ceilings, strict=True))
    backoff.reset()
    assert backoff.next_s() <= 0.1
