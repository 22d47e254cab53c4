"""Tokens without a network: when one is asked for, when a call is sent again, and what is never told."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from etcd_client import Client, OutcomeUnknown, Unauthenticated, Unavailable
from etcd_client.auth import AUTHENTICATE, Credentials, Tokens
from etcd_client.transport import ConnectionLost
from tests.unit.client.fakes import A, B, FakeTransport, Stream, cancelled, created, ok, put_events, refused

EXPIRED = refused(16, "etcdserver: invalid auth token", 401)
OLD = refused(3, "etcdserver: revision of auth store is old")


def token(text: str) -> Any:
    return ok(token=text)


def client_of(transport: FakeTransport, *endpoints: str) -> Client:
    return Client(endpoints or (A,), transport=transport, random=Random(1), user="app", password="secret")


def carried(transport: FakeTransport) -> list[str]:
    return [request.headers.get("Authorization", "") for request in transport.raw]


def test_one_token_serves_many_calls() -> None:
    transport = FakeTransport(a=[token("t1"), ok(), ok()])
    client = client_of(transport)
    client.put("k", "1")
    client.put("k", "2")
    assert carried(transport) == ["", "t1", "t1"]
    assert transport.requests[0][1:] == (AUTHENTICATE, {"name": "app", "password": "secret"})


@pytest.mark.parametrize("refusal", [EXPIRED, OLD])
def test_a_write_refused_for_its_token_is_sent_once_more(refusal: Any) -> None:
    transport = FakeTransport(a=[token("t1"), refusal, token("t2"), ok(9)])
    assert client_of(transport).put("k", "1").revision == 9
    assert carried(transport) == ["", "t1", "", "t2"]


def test_it_is_not_sent_a_third_time() -> None:
    transport = FakeTransport(a=[token("t1"), EXPIRED, token("t2"), EXPIRED])
    with pytest.raises(Unauthenticated, match="invalid auth token"):
        client_of(transport).put("k", "1")


def test_a_write_that_was_lost_is_not_sent_again_with_a_new_token() -> None:
    transport = FakeTransport(a=[token("t1"), EXPIRED, token("t2"), ConnectionLost("gone")])
    with pytest.raises(OutcomeUnknown):
        client_of(transport).put("k", "1")


def test_the_next_endpoint_authenticates_where_one_cannot() -> None:
    transport = FakeTransport(a=[ConnectionLost("gone")], b=[token("t1"), ok(9)])
    assert client_of(transport, A, B).put("k", "1").revision == 9
    assert transport.asked == "abb"


def test_without_authentication_no_token_and_with_it_later_one() -> None:
    off = refused(9, "etcdserver: authentication is not enabled")
    empty = refused(3, "etcdserver: user name is empty")
    transport = FakeTransport(a=[off, ok(), ok(), empty, token("t1"), ok(9)])
    client = client_of(transport)
    client.put("k", "1")
    client.put("k", "2")
    assert client.put("k", "3").revision == 9
    assert carried(transport) == ["", "", "", "", "", "t1"]


def test_a_watch_gets_a_new_token_where_its_own_is_refused_in_whatever_words() -> None:
    for words in ("etcdserver: invalid auth token", "etcdserver: permission denied"):
        refusing = Stream(cancelled(f"rpc error: desc = {words}", with_created=True))
        serving = Stream(created(4), put_events(("k", "1", 5)), end=Stream.hold)
        transport = FakeTransport(a=[token("t1"), refusing, token("t2"), serving])
        watch = client_of(transport).watch("k")
        assert next(watch).revision == 5
        assert carried(transport) == ["", "t1", "", "t2"]
        watch.cancel()


def test_a_watch_that_is_not_permitted_says_so_after_one_new_token() -> None:
    denied = [Stream(cancelled("etcdserver: permission denied", with_created=True)) for _ in range(2)]
    transport = FakeTransport(a=[token("t1"), denied[0], token("t2"), denied[1]])
    with pytest.raises(Exception, match="permission denied"):
        next(client_of(transport).watch("k"))


def test_nobody_waits_for_ever_for_another_thread() -> None:
    tokens = Tokens(Credentials("app", "secret"))
    with tokens._lock, pytest.raises(Unavailable, match="another thread"):
        tokens.get(lambda path, body: {}, 0.01)


def test_the_password_is_in_no_text() -> None:
    transport = FakeTransport(
        a=[refused(3, "etcdserver: authentication failed, invalid user ID or password")]
    )
    with pytest.raises(Unauthenticated) as caught:
        client_of(transport).put("k", "1")
    assert "secret" not in str(caught.value) + repr(Credentials("app", "secret"))
