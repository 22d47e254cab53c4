"""Host white list and CORS: what was recorded from etcd 3.5.1, and its rules from server/embed/serve.go."""

import pytest

from etcd_server.transport.access import AccessRules

CORS = [
    ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
    ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
]


def test_everything_is_allowed_by_default() -> None:
    rules = AccessRules()
    assert rules.answer("POST", [("host", "any:2379")], over_tls=False) is None
    assert rules.headers([]) == [*CORS, ("Access-Control-Allow-Origin", "*")]
    assert rules.headers([("origin", "http://a.b")]) == [*CORS, ("Access-Control-Allow-Origin", "*")]


def test_nothing_listed_is_everything() -> None:
    rules = AccessRules(cors=frozenset(), host_whitelist=frozenset())
    assert rules.answer("GET", [("host", "any")], over_tls=False) is None
    assert rules.headers([]) == [*CORS, ("Access-Control-Allow-Origin", "*")]


def test_options_is_answered() -> None:
    answer = AccessRules().answer("OPTIONS", [("host", "a")], over_tls=False)
    assert answer is not None
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers == [*CORS, ("Access-Control-Allow-Origin", "*")]


def test_listed_origins() -> None:
    rules = AccessRules(cors=frozenset({"http://a.b"}))
    assert rules.headers([("origin", "http://a.b")]) == [*CORS, ("Access-Control-Allow-Origin", "http://a.b")]
    assert rules.headers([("origin", "http://c.d")]) == []
    assert rules.headers([]) == []


@pytest.mark.parametrize(
    "host", ["store.example", "store.example:2379", "10.0.0.1:2379", "[::1]:2379", "[::1]"]
)
def test_listed_hosts(host: str) -> None:
    rules = AccessRules(host_whitelist=frozenset({"store.example", "10.0.0.1", "::1"}))
    assert rules.answer("GET", [("host", host)], over_tls=False) is None


@pytest.mark.parametrize("host", ["evil.example", "evil.example:2379", "store.example.evil", ""])
def test_other_hosts_are_refused_even_to_ask_for_options(host: str) -> None:
    rules = AccessRules(host_whitelist=frozenset({"store.example"}))
    for method in ("GET", "OPTIONS"):
        answer = rules.answer(method, [("host", host)], over_tls=False)
        assert answer is not None
        assert answer.status == 421
        assert repr(host.partition(":")[0]).encode() in answer.body


def test_tls_names_the_host_already() -> None:
    rules = AccessRules(host_whitelist=frozenset({"store.example"}))
    assert rules.answer("GET", [("host", "evil.example")], over_tls=True) is None
