"""The v2 API of the members: what etcd 3.4.23 and 3.5.1 were seen to answer."""

from __future__ import annotations

import json

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.transport.answers import HttpAnswer
from etcd_server.transport.v2members import ADD, REMOVE, UPDATE, Call, Membership, answer, ask, serves

CLUSTER = ("X-Etcd-Cluster-Id", "5845f8969db81a92")
JSON = ("Content-Type", "application/json")
TEXT = ("Content-Type", "text/plain; charset=utf-8")
NO_SNIFF = ("X-Content-Type-Options", "nosniff")
AS_JSON = [("content-type", "application/json")]
FIRST = rpc_pb2.Member(
    ID=0xD91BD12B9FA21311,
    name="m1",
    peerURLs=["http://127.0.0.1:38173"],
    clientURLs=["http://127.0.0.1:45217"],
)
ADDED = rpc_pb2.Member(ID=0x12, peerURLs=["http://127.0.0.1:8", "http://127.0.0.1:9"])
MEMBERSHIP = Membership(0x5845F8969DB81A92, FIRST.ID, [ADDED, FIRST], frozenset({0x99}))
TOLD_FIRST = (
    '{"id":"d91bd12b9fa21311","name":"m1","peerURLs":["http://127.0.0.1:38173"],'
    '"clientURLs":["http://127.0.0.1:45217"]}'
)
TOLD_ADDED = '{"id":"12","name":"","peerURLs":["http://127.0.0.1:8","http://127.0.0.1:9"],"clientURLs":[]}'


def request(
    method: str,
    target: str,
    body: bytes = b"",
    headers: list[tuple[str, str]] | None = None,
    membership: Membership = MEMBERSHIP,
) -> HttpAnswer | Call:
    return ask(method, target, AS_JSON if headers is None else headers, body, membership)


def refused(status: int, text: str) -> HttpAnswer:
    body = json.dumps({"message": text}, separators=(",", ":"), ensure_ascii=False)
    return HttpAnswer(status, [JSON, CLUSTER], body.encode())


@pytest.mark.parametrize(
    ("target", "on_client_ports", "on_peer_ports"),
    [
        ("/v2/members", True, False),
        ("/v2/members?x=1", True, False),
        ("/v2/members/", True, False),
        ("/v2/members/leader", True, False),
        ("/v2/membersx", False, False),
        ("/v2/machines", True, False),
        ("/v2/machines/", False, False),
        ("/members", False, True),
        ("/members/", False, False),
        ("/v2/keys", False, False),
    ],
)
def test_what_is_served_where(target: str, on_client_ports: bool, on_peer_ports: bool) -> None:
    assert serves(target, is_peer=False) is on_client_ports
    assert serves(target, is_peer=True) is on_peer_ports


@pytest.mark.parametrize("target", ["/v2/members", "/v2/members/", "/v2/members?x=1"])
def test_the_members(target: str) -> None:
    body = f'{{"members":[{TOLD_ADDED},{TOLD_FIRST}]}}\n'.encode()
    assert request("GET", target) == HttpAnswer(200, [JSON, CLUSTER], body)


def test_the_leader() -> None:
    assert request("GET", "/v2/members/leader") == HttpAnswer(
        200, [JSON, CLUSTER], f"{TOLD_FIRST}\n".encode()
    )
    leaderless = Membership(MEMBERSHIP.cluster_id, 0, [FIRST])
    assert request("GET", "/v2/members/leader", membership=leaderless) == refused(503, "During election")


def test_the_members_as_members_tell_them() -> None:
    learner = rpc_pb2.Member(ID=7, peerURLs=["http://a:1"], isLearner=True)
    membership = Membership(MEMBERSHIP.cluster_id, 0, [learner, FIRST])
    body = (
        b'[{"id":7,"peerURLs":["http://a:1"],"isLearner":true},'
        b'{"id":15644327715893547793,"peerURLs":["http://127.0.0.1:38173"],"name":"m1",'
        b'"clientURLs":["http://127.0.0.1:45217"]}]\n'
    )
    assert request("GET", "/members", membership=membership) == HttpAnswer(200, [JSON, CLUSTER], body)


def test_the_machines() -> None:
    other = rpc_pb2.Member(ID=1, clientURLs=["http://b:1", "http://a:1"])
    membership = Membership(1, 0, [FIRST, other])
    body = b"http://127.0.0.1:45217, http://a:1, http://b:1"
    for method in ("GET", "HEAD"):
        assert request(method, "/v2/machines", membership=membership) == HttpAnswer(200, [TEXT], body)


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("HEAD", "/v2/members", "GET,POST,DELETE,PUT"),
        ("PATCH", "/v2/members", "GET,POST,DELETE,PUT"),
        ("POST", "/v2/machines", "GET,HEAD"),
        ("HEAD", "/members", "GET"),
    ],
)
def test_methods_that_are_not_allowed(method: str, target: str, allowed: str) -> None:
    expected = HttpAnswer(405, [("Allow", allowed), TEXT, NO_SNIFF], b"Method Not Allowed\n")
    assert request(method, target) == expected


@pytest.mark.parametrize("target", ["/v2/members", "/v2/members/"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_change_of_no_member(method: str, target: str) -> None:
    expected = HttpAnswer(405, [CLUSTER, TEXT, NO_SNIFF], b"Method Not Allowed\n")
    assert request(method, target, b'{"peerURLs":["http://a:1"]}') == expected


@pytest.mark.parametrize("target", ["/v2/members/x", "/v2/members/leader/"])
def test_what_is_not_there(target: str) -> None:
    assert request("GET", target) == refused(404, "Not found")


@pytest.mark.parametrize("name", ["zz", "-1", "0x12", "1 2", "1_2", "10000000000000000", "٣"])
def test_ids_that_nobody_can_have(name: str) -> None:
    assert request("DELETE", f"/v2/members/{name}") == refused(404, f"No such member: {name}")
    assert request("PUT", f"/v2/members/{name}", b"{}", []) == refused(404, f"No such member: {name}")


@pytest.mark.parametrize(
    ("given", "told"),
    [(None, ""), ("text/plain; charset=utf-8", "text/plain"), ("application/x-www-form-urlencoded",) * 2],
)
def test_other_content_types(given: str | None, told: str) -> None:
    headers = [] if given is None else [("content-type", given)]
    for method, target in (("POST", "/v2/members"), ("PUT", "/v2/members/12")):
        found = request(method, target, b'{"peerURLs":["http://a:1"]}', headers)
        assert found == refused(415, f"Bad Content-Type {told}, accept application/json")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("null", "no valid URLs given"),
        ("{}", "no valid URLs given"),
        ('{"peerURLs":[]}', "no valid URLs given"),
        ('{"peerURLs":null}', "no valid URLs given"),
        ('{"peerURLs":["x"]}', "URL scheme must be http, https, unix, or unixs: x"),
        ('{"peerURLs":[""]}', "URL scheme must be http, https, unix, or unixs: "),
        ('{"peerURLs":["ftp://a:1"]}', "URL scheme must be http, https, unix, or unixs: ftp://a:1"),
        ('{"peerURLs":["http://a"]}', 'URL address does not have the form "host:port": http://a'),
        ('{"PEERURLS":["http://a"]}', 'URL address does not have the form "host:port": http://a'),
        ('{"peerURLs":["http://a:1/p"]}', "URL must not contain a path: http://a:1/p"),
        ('{"peerURLs":["http://a:1/"]}', "URL must not contain a path: http://a:1/"),
    ],
)
def test_bodies_that_are_refused_in_the_words_of_etcd(body: str, text: str) -> None:
    assert request("POST", "/v2/members", body.encode()) == refused(400, text)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"1",
        b"\xff",
        b"[" * 100_000,
        b'{"peerURLs":"x"}',
        b'{"peerURLs":[1]}',
        b'{"peerURLs":["http://a:1"]}x',
        b'{"peerURLs":["http://a:xx"]}',
        b'{"peerURLs":["http://a b:1"]}',
        b'{"peerURLs":["http://[::1:1"]}',
        b'{"peerURLs":["127.0.0.1:9"]}',
    ],
)
def test_other_bodies_that_are_refused(body: bytes) -> None:
    found = request("POST", "/v2/members", body)
    assert isinstance(found, HttpAnswer)
    assert found.status == 400
    [text] = json.loads(found.body).values()
    assert text
    assert "\n" not in text


def test_changes_are_calls() -> None:
    body = b'{"peerURLs":[" http://b:1","http://a:1"],"name":"x"}'
    headers = [("content-type", "Application/JSON; x")]
    peer_urls = ["http://a:1", "http://b:1"]
    assert request("POST", "/v2/members", body, headers) == Call(
        ADD, rpc_pb2.MemberAddRequest(peerURLs=peer_urls)
    )
    assert request("POST", "/v2/members/x", body) == Call(ADD, rpc_pb2.MemberAddRequest(peerURLs=peer_urls))
    update = rpc_pb2.MemberUpdateRequest(ID=0x12, peerURLs=peer_urls)
    assert request("PUT", "/v2/members/12", body) == Call(UPDATE, update, 0x12)
    remove = Call(REMOVE, rpc_pb2.MemberRemoveRequest(ID=0x12), 0x12)
    assert request("DELETE", "/v2/members/00000000000000000000000012") == remove


def test_what_became_of_a_change() -> None:
    add, remove = Call(ADD, rpc_pb2.MemberAddRequest()), Call(REMOVE, rpc_pb2.MemberRemoveRequest(), 0x12)
    added = rpc_pb2.MemberAddResponse(member=ADDED, members=[ADDED, FIRST]).SerializeToString()
    told = f"{TOLD_ADDED}\n".encode()
    assert answer(add, added, MEMBERSHIP) == HttpAnswer(201, [JSON, CLUSTER], told)
    assert answer(remove, b"", MEMBERSHIP) == HttpAnswer(204, [CLUSTER], b"")
    gone = Call(REMOVE, rpc_pb2.MemberRemoveRequest(), 0x99)
    for call, error, expected in (
        (add, errors.PeerURLExists(), refused(409, "membership: peerURL exists")),
        (add, errors.MemberExists(), refused(409, "membership: ID exists")),
        (remove, errors.MemberNotFound(), refused(404, "No such member: 12")),
        (gone, errors.MemberNotFound(), refused(410, "Member permanently removed: 99")),
        (add, errors.Unhealthy(), refused(500, "etcdserver: unhealthy cluster")),
    ):
        assert answer(call, error, MEMBERSHIP) == expected
