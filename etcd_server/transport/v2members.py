"""etcd's v2 API of the members, and the list of members that members ask each other for. Pure: no I/O, no
state.

    client ports   GET /v2/members, GET /v2/members/leader, POST /v2/members, PUT and DELETE /v2/members/ID,
                   GET /v2/machines
    peer ports     GET /members

A change is a call of `etcdserverpb.Cluster`, so there are two steps as in `operations.py`: `ask` gives the
answer to a request, or the call that it stands for; `answer` makes the answer out of that call's outcome.
Statuses, headers, bodies and texts are etcd's (server/etcdserver/api/v2http/client.go, v3.5, and
api/etcdhttp/peer.go); where etcd says only "Internal Server Error" the reason is told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from etcd_server.api import errors, urls
from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import rpc_pb2
from etcd_server.transport.answers import HttpAnswer, error_text

MEMBERS = "/v2/members"
MACHINES = "/v2/machines"
PEER_MEMBERS = "/members"
CLUSTER_ID_HEADER = "X-Etcd-Cluster-Id"

ADD = "/etcdserverpb.Cluster/MemberAdd"
REMOVE = "/etcdserverpb.Cluster/MemberRemove"
UPDATE = "/etcdserverpb.Cluster/MemberUpdate"

_LARGEST_ID = 2**64 - 1
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_JSON = ("Content-Type", "application/json")
_TEXT = ("Content-Type", "text/plain; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Membership:
    """What a member knows of its cluster. `leader_id`: 0 when there is none. `removed`: of the IDs asked
    about, those that were members once."""

    cluster_id: int
    leader_id: int
    members: Sequence[rpc_pb2.Member]
    removed: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Call:
    """The RPC that a request stands for; `member_id` is the member it is about, 0 for a new one."""

    path: str
    request: rpc_pb2.MemberAddRequest | rpc_pb2.MemberRemoveRequest | rpc_pb2.MemberUpdateRequest
    member_id: int = 0


def serves(target: str, *, is_peer: bool) -> bool:
    """Whether a request for `target` on a port for clients, or for members, is answered here."""
    path = _path(target)
    if is_peer:
        return path == PEER_MEMBERS
    return path in (MEMBERS, MACHINES) or path.startswith(MEMBERS + "/")


def ask(
    method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, membership: Membership
) -> HttpAnswer | Call:
    """The answer to a request that `serves` says yes to, or the call to make first. Names of `headers` are in
    lower case."""
    path = _path(target)
    if path == PEER_MEMBERS:
        return _allowed(method, "GET") or _peer_members(membership)
    if path == MACHINES:
        return _allowed(method, "GET", "HEAD") or _machines(membership)
    refusal = _allowed(method, "GET", "POST", "DELETE", "PUT")
    if refusal is not None:
        return refusal
    name = path.removeprefix(MEMBERS).removeprefix("/")
    try:
        match method:
            case "GET":
                return _shown(name, membership)
            case "POST":
                return Call(ADD, rpc_pb2.MemberAddRequest(peerURLs=_peer_urls(headers, body)))
            case "DELETE":
                number = _member_id(name)
                return Call(REMOVE, rpc_pb2.MemberRemoveRequest(ID=number), number)
            case _:
                number = _member_id(name)
                peer_urls = _peer_urls(headers, body)
                return Call(UPDATE, rpc_pb2.MemberUpdateRequest(ID=number, peerURLs=peer_urls), number)
    except _Refused as refused:
        return refused.answer(membership)


def answer(call: Call, outcome: bytes | EtcdError, membership: Membership) -> HttpAnswer:
    """The answer to a request whose call has been answered; `membership` as it is now."""
    if isinstance(outcome, EtcdError):
        return _failed(call, outcome, membership).answer(membership)
    if call.path == ADD:
        added = rpc_pb2.MemberAddResponse.FromString(outcome).member
        return HttpAnswer(201, [_JSON, _cluster(membership)], _line(_told(added)))
    return HttpAnswer(204, [_cluster(membership)], b"")


# --- what is shown ------------------------------------------------------------------------------------------


def _shown(name: str, membership: Membership) -> HttpAnswer:
    if not name:
        shown: object = {"members": [_told(member) for member in membership.members]}
    elif name == "leader":
        leader = next((each for each in membership.members if membership.leader_id == each.ID), None)
        if leader is None:
            raise _Refused(503, "During election")
        shown = _told(leader)
    else:
        raise _Refused(404, "Not found")
    return HttpAnswer(200, [_JSON, _cluster(membership)], _line(shown))


def _told(member: rpc_pb2.Member) -> dict[str, object]:
    return {
        "id": f"{member.ID:x}",
        "name": member.name,
        "peerURLs": list(member.peerURLs),
        "clientURLs": list(member.clientURLs),
    }


def _peer_members(membership: Membership) -> HttpAnswer:
    """The members as members tell them each other: IDs as numbers, empty fields left out."""
    told = []
    for member in membership.members:
        one: dict[str, object] = {"id": member.ID, "peerURLs": list(member.peerURLs)}
        if member.isLearner:
            one["isLearner"] = True
        if member.name:
            one["name"] = member.name
        if member.clientURLs:
            one["clientURLs"] = list(member.clientURLs)
        told.append(one)
    return HttpAnswer(200, [_JSON, _cluster(membership)], _line(told))


def _machines(membership: Membership) -> HttpAnswer:
    found = sorted(url for member in membership.members for url in member.clientURLs)
    return HttpAnswer(200, [_TEXT], ", ".join(found).encode())


# --- what is asked ------------------------------------------------------------------------------------------


def _path(target: str) -> str:
    return unquote(target.partition("?")[0])


def _allowed(method: str, *methods: str) -> HttpAnswer | None:
    if method in methods:
        return None
    return error_text(405, "Method Not Allowed", ("Allow", ",".join(methods)))


def _member_id(name: str) -> int:
    if not name:
        raise _Refused(405, "")
    number = int(name, 16) if set(name) <= _HEXADECIMAL else _LARGEST_ID + 1
    if number > _LARGEST_ID:
        raise _Refused(404, f"No such member: {name}")
    return number


def _peer_urls(headers: Sequence[tuple[str, str]], body: bytes) -> tuple[str, ...]:
    given = next((value for name, value in headers if name == "content-type"), "")
    kind = given.partition(";")[0].strip().lower() if ";" in given else given
    if kind != "application/json":
        raise _Refused(415, f"Bad Content-Type {kind}, accept application/json")
    try:
        return urls.of_member(_texts(_document(body)))
    except ValueError as error:
        raise _Refused(400, str(error)) from None


def _document(body: bytes) -> Any:
    """Raises ValueError."""
    try:
        return json.loads(body)
    except UnicodeDecodeError:
        raise ValueError("the body is not UTF-8") from None
    except RecursionError:
        raise ValueError("exceeded max depth") from None
    except json.JSONDecodeError as error:
        if error.pos >= len(body.decode().rstrip()):
            raise ValueError("unexpected end of JSON input") from None
        raise ValueError(f"invalid JSON: {error}") from None


def _texts(document: Any) -> list[str]:
    """The peer URLs of {"peerURLs": [...]}; names as Go reads them, in any case. Raises ValueError."""
    if document is None:
        return []
    if not isinstance(document, dict):
        raise ValueError(f"json: expected an object, got {_kind(document)}")
    found: Any = None
    for name, value in document.items():
        if name.lower() == "peerurls":
            found = value
    if found is None:
        return []
    if not isinstance(found, list):
        raise ValueError(f"json: peerURLs: expected an array of strings, got {_kind(found)}")
    for text in found:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"json: peerURLs: expected strings, got {_kind(text)}")
    return [text or "" for text in found]


_KINDS = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")


# --- what is refused ----------------------------------------------------------------------------------------


class _Refused(Exception):
    """A request that is not fulfilled; no text means etcd's plain answer to a method."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self._status = status
        self._text = text

    def answer(self, membership: Membership) -> HttpAnswer:
        cluster = _cluster(membership)
        if not self._text:
            return error_text(self._status, "Method Not Allowed", cluster)
        return HttpAnswer(self._status, [_JSON, cluster], _json({"message": self._text}))


def _failed(call: Call, error: EtcdError, membership: Membership) -> _Refused:
    name = f"{call.member_id:x}"
    match error:
        case errors.PeerURLExists():
            return _Refused(409, "membership: peerURL exists")
        case errors.MemberExists():
            return _Refused(409, "membership: ID exists")
        case errors.MemberNotFound() if call.member_id in membership.removed:
            return _Refused(410, f"Member permanently removed: {name}")
        case errors.MemberNotFound():
            return _Refused(404, f"No such member: {name}")
        case _:
            return _Refused(500, error.text)


def _cluster(membership: Membership) -> tuple[str, str]:
    return (CLUSTER_ID_HEADER, f"{membership.cluster_id:x}")


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _line(document: object) -> bytes:
    return _json(document) + b"\n"
