"""The JSON gateway: etcd's RPCs as POST of JSON, decided and translated without any I/O.

`decode` turns a request into a `Call` (an RPC and its request messages) or into the answer that refuses it;
`answer`, `frame` and their like turn what the engine says into bytes. Which path is which RPC is in
`api/methods.py`, what JSON looks like in `protojson.py`. The shapes are those of etcd 3.5.1 (grpc-gateway
v1), with what etcd >= 3.6 names otherwise added, so that clients of both find what they look for:

    unary        {...}, or {"error": text, "code": number, "message": text} with the status of the error
    streaming    {"result": {...}} in a line each; an error is a line too:
                 {"error": {"grpc_code", "http_code", "message", "http_status", "code"}}

A streaming RPC takes its request messages from the body, one JSON value after another. What follows the
first value of a unary call is ignored, and so is the rest of a streaming body from the first value on that
is wrong, unless that is the very first: etcd does both. Not offered: WebSocket, which etcd's proxy accepts
on the same paths.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from urllib.parse import unquote

from google.protobuf.message import Message

from etcd_server.api.errors import EtcdError, InvalidRequest, MessageTooLarge
from etcd_server.api.methods import GATEWAY_PATHS, Kind, Rpc
from etcd_server.transport.answers import Headers, HttpAnswer, error_text
from etcd_server.transport.protojson import WrongJson, dump, parse, to_object, values

_PREFIX = "/v3/"
_OLD_PREFIX = "/v3beta/"
_METADATA_PREFIX = "grpc-metadata-"
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_JSON = ("Content-Type", "application/json")
_FROM_GRPC = ("Grpc-Metadata-Content-Type", "application/grpc")


@dataclass(frozen=True, slots=True)
class Call:
    """An RPC that came as JSON. `requests` is one message unless the RPC takes a stream, then any number of
    them. `metadata` is what gRPC would have carried: "authorization", "hasleader", ... `timeout_s` is None
    without limit."""

    rpc: Rpc
    requests: tuple[Message, ...]
    metadata: Mapping[str, str]
    timeout_s: float | None


def serves(target: str) -> bool:
    """Whether a request for `target` is the gateway's to answer."""
    return target.startswith((_PREFIX, _OLD_PREFIX))


def decode(
    method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, max_message_bytes: int
) -> Call | HttpAnswer:
    """The call that a request asks for, or the answer that refuses it.

    `target` is the path with its query, as sent; names of `headers` are in lower case; `max_message_bytes`
    limits each message as gRPC would have carried it.
    """
    rpc = _rpc(target)
    if rpc is None:
        return error_text(404, "Not Found")
    if method != "POST":
        return error_text(405, "Method Not Allowed")
    try:
        timeout_s = _timeout_s(headers)
        requests = _requests(rpc, body)
        for request in requests:
            if request.ByteSize() > max_message_bytes:
                sizes = f"{request.ByteSize()} vs. {max_message_bytes}"
                raise MessageTooLarge(f"{MessageTooLarge.text} ({sizes})")
    except EtcdError as error:
        return failure(error)
    return Call(rpc, requests, _metadata(headers), timeout_s)


def answer(rpc: Rpc, response: bytes) -> HttpAnswer:
    """The answer to a unary call; `response` is the serialised response message."""
    return HttpAnswer(200, [_JSON, _FROM_GRPC], dump(to_object(rpc.response.FromString(response))))


def failure(error: EtcdError) -> HttpAnswer:
    """The answer to a call that failed."""
    told = {"error": error.text, "code": int(error.code), "message": error.text}
    return HttpAnswer(error.http_status, [_JSON], dump(told))


STREAM_STATUS = 200
STREAM_HEADERS: Headers = [_JSON, _FROM_GRPC]
"""Head of a streamed answer; etcd sends it with the first message, not before."""


def frame(rpc: Rpc, response: bytes) -> bytes:
    """One message of a stream, as a line."""
    return dump({"result": to_object(rpc.response.FromString(response))}) + b"\n"


def error_frame(error: EtcdError) -> bytes:
    """The error that ends a stream, as its last line."""
    told = {
        "grpc_code": int(error.code),
        "http_code": error.http_status,
        "message": error.text,
        "http_status": _phrase(error.http_status),
        "code": int(error.code),
    }
    return dump({"error": told}) + b"\n"


def stream_failure(error: EtcdError) -> HttpAnswer:
    """The answer to a streaming call that failed before its first message."""
    return HttpAnswer(error.http_status, [_JSON], error_frame(error))


def empty_stream() -> HttpAnswer:
    """The answer to a streaming call that ended well without a message."""
    return HttpAnswer(200, [_JSON], b"")


def _rpc(target: str) -> Rpc | None:
    path = unquote(target.partition("?")[0])
    if path.startswith(_OLD_PREFIX):
        path = _PREFIX + path.removeprefix(_OLD_PREFIX)
    return GATEWAY_PATHS.get(path)


def _requests(rpc: Rpc, body: bytes) -> tuple[Message, ...]:
    """Raises InvalidRequest, or for the first message of a stream, as etcd does, EtcdError of code
    UNKNOWN."""
    if rpc.kind is not Kind.BIDI:
        try:
            return (parse(rpc.request, next(values(body), None)),)
        except WrongJson as wrong:
            raise InvalidRequest(f"request body: {wrong}") from None
    requests: list[Message] = []
    try:
        for value in values(body):
            requests.append(parse(rpc.request, value))  # one by one: what came before an error is kept
    except WrongJson as wrong:
        if not requests:
            raise EtcdError(f"request body: {wrong}") from None
    return tuple(requests)


def _timeout_s(headers: Sequence[tuple[str, str]]) -> float | None:
    for name, value in headers:
        if name == "grpc-timeout" and value:
            match = _TIMEOUT.fullmatch(value)
            if match is None:
                raise InvalidRequest(f"invalid grpc-timeout: {value}")
            return int(match[1]) * _UNIT_S[match[2]]
    return None


def _metadata(headers: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    metadata: dict[str, str] = {}
    for name, value in headers:
        if name == "authorization":
            metadata.setdefault(name, value)
        elif name.startswith(_METADATA_PREFIX):
            metadata.setdefault(name.removeprefix(_METADATA_PREFIX), value)
    return MappingProxyType(metadata)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 499 is nobody's standard
        return "Client Closed Request"
