"""What the wire promises: gRPC, HTTP/1.1 and HTTP/2 on one port, in and out as batches of tuples."""

from __future__ import annotations

import ast
import gzip
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from etcd_server.transport import _wire
from etcd_server.transport._wire import Wire, WireError
from tests.integration.wire_support import (
    CHAT,
    ECHO,
    FAIL,
    HOLD,
    LIST,
    PREFACE,
    SETTINGS,
    WAIT_S,
    Http2Client,
    Owner,
    frame,
    grpc_frame,
    grpc_headers,
    literal,
    owner,
    read_to_end,
)

MAX_MESSAGE_BYTES = 100_000


def open_channel(target: str, **options: Any) -> Any:
    """A channel whose calls take and give bytes."""
    return grpc.insecure_channel(target, **options)


@pytest.fixture(scope="module")
def served() -> Iterator[Owner]:
    with owner(max_message_bytes=MAX_MESSAGE_BYTES, metadata_keys=("token", "x-other")) as served:
        yield served


@pytest.fixture
def channel(served: Owner) -> Iterator[Any]:
    with open_channel(served.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def unary(channel: Any, path: str, message: bytes = b"", **options: Any) -> bytes:
    reply: bytes = channel.unary_unary(path)(message, timeout=WAIT_S, **options)
    return reply


def failure(
    channel: Any, path: str, message: bytes = b"", **options: Any
) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.RpcError) as raised:
        unary(channel, path, message, **options)
    return raised.value.code(), raised.value.details()


def test_module_is_what_its_interface_file_says() -> None:
    interface = ast.parse((Path(_wire.__file__).parent / "_wire.pyi").read_text())
    names = [node.target.id for node in interface.body if isinstance(node, ast.AnnAssign)]  # type: ignore[union-attr]
    assert len(names) == 32
    assert all(isinstance(getattr(_wire, name), int) for name in names)
    (wire,) = [node for node in interface.body if isinstance(node, ast.ClassDef) and node.name == "Wire"]
    for method in [node for node in wire.body if isinstance(node, ast.FunctionDef)]:
        assert hasattr(Wire, method.name)


# --- gRPC -------------------------------------------------------------------------------------------------


def test_unary_call_carries_message_connection_and_metadata(served: Owner, channel: Any) -> None:
    assert unary(channel, ECHO, b"m1", metadata=[("token", "t"), ("unknown", "u")]) == b"m1"
    kind, _, path, message, connection, metadata = served.wait(lambda event: b"m1" in event)
    assert (kind, path, message, metadata) == (_wire.CALL, ECHO, b"m1", {"token": "t"})
    listener, peer, common_name = connection
    assert (listener, peer.split(":")[0], common_name) == ("clients", "127.0.0.1", None)
    unary(channel, ECHO, b"m2")
    second = served.wait(lambda event: b"m2" in event)
    assert second[4] is connection
    assert second[5] is None


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, MAX_MESSAGE_BYTES])
def test_messages_of_any_size(channel: Any, size: int) -> None:
    message = bytes(size % 251 for size in range(size))
    assert unary(channel, ECHO, message) == message


def test_a_message_beyond_the_limit_is_refused(served: Owner, channel: Any) -> None:
    refused = served.wire.statistics()["requests_refused_total"]
    code, details = failure(channel, ECHO, bytes(MAX_MESSAGE_BYTES + 1))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == "grpc: received message larger than max (100001 vs. 100000)"
    assert served.wire.statistics()["requests_refused_total"] == refused + 1


def test_server_stream(channel: Any) -> None:
    assert list(channel.unary_stream(LIST)(b"x", timeout=WAIT_S)) == [b"x"] * 3


def test_two_way_stream_with_half_close(served: Owner, channel: Any) -> None:
    messages = [str(n).encode() for n in range(100)]
    assert list(channel.stream_stream(CHAT)(iter(messages), timeout=WAIT_S)) == messages


def test_two_way_stream_is_interactive(channel: Any) -> None:
    go_on = threading.Semaphore(0)

    def requests() -> Iterator[bytes]:
        for number in range(3):
            yield str(number).encode()
            assert go_on.acquire(timeout=WAIT_S)

    for number, reply in enumerate(channel.stream_stream(CHAT)(requests(), timeout=WAIT_S)):
        assert reply == str(number).encode()
        go_on.release()


@pytest.mark.parametrize(
    ("path", "details"),
    [
        ("/t.S/None", "unknown method None for service t.S"),
        ("/t.None/Echo", "unknown service t.None"),
        ("/none", 'malformed method name: "/none"'),
    ],
)
def test_unknown_methods_are_worded_as_grpc_go_does(channel: Any, path: str, details: str) -> None:
    assert failure(channel, path) == (grpc.StatusCode.UNIMPLEMENTED, details)


@pytest.mark.parametrize("text", ["plain", "", "100%", "é, 世 and\nnew line", "etcdserver: mvcc: x"])
def test_status_text_arrives_as_it_was(channel: Any, text: str) -> None:
    assert failure(channel, FAIL, text.encode()) == (grpc.StatusCode.FAILED_PRECONDITION, text)


def test_gzip_is_taken_and_given_back(channel: Any) -> None:
    message = b"abc" * 10_000
    assert unary(channel, ECHO, message, compression=grpc.Compression.Gzip) == message


def test_a_reply_is_compressed_only_when_the_request_was(served: Owner) -> None:
    with Http2Client(served.address) as client:
        accepts = ("grpc-accept-encoding", "identity,gzip")
        plain = client.call(ECHO, grpc_frame(b"hello"), accepts)
        assert (plain.data, plain.status) == (grpc_frame(b"hello"), (0, ""))
        request = grpc_frame(gzip.compress(b"hello"), flag=1)
        both = client.call(ECHO, request, accepts, ("grpc-encoding", "gzip"))
        assert both.headers["grpc-encoding"] == "gzip"
        assert both.data[0] == 1
        assert gzip.decompress(both.data[5:]) == b"hello"
        refuses = client.call(ECHO, request, ("grpc-encoding", "gzip"))
        assert refuses.data == grpc_frame(b"hello")


def test_compression_that_is_not_known_is_refused(served: Owner) -> None:
    with Http2Client(served.address) as client:
        answer = client.call(ECHO, grpc_frame(b"hello", flag=1), ("grpc-encoding", "snappy"))
        assert answer.status == (12, 'grpc: Decompressor is not installed for grpc-encoding "snappy"')
        assert answer.headers["grpc-accept-encoding"] == "gzip"


def test_a_gzip_bomb_is_stopped(served: Owner) -> None:
    with Http2Client(served.address) as client:
        bomb = grpc_frame(gzip.compress(bytes(50_000_000)), flag=1)
        answer = client.call(ECHO, bomb, ("grpc-encoding", "gzip"))
        assert answer.status == (8, "grpc: received message after decompression larger than max 100000")


def test_the_wire_itself_answers_when_the_deadline_passes(served: Owner) -> None:
    with Http2Client(served.address) as client:
        begun = time.monotonic()
        answer = client.call(HOLD, grpc_frame(b"late"), ("grpc-timeout", "50m"))
        assert 0.04 < time.monotonic() - begun < WAIT_S / 2
        assert answer.status == (4, "context deadline exceeded")
        call_id = served.wait(lambda event: b"late" in event)[1]
        served.wait_kind(_wire.CANCEL, call_id)
        served.wire.send([(_wire.REPLY, call_id, b"too late")])
        assert client.call(ECHO, grpc_frame(b"on")).data == grpc_frame(b"on")


def test_an_answer_in_time_ends_the_deadline(served: Owner) -> None:
    with Http2Client(served.address) as client:
        streams = [
            client.request(grpc_headers(ECHO, ("grpc-timeout", "20m")), grpc_frame(b"")) for _ in range(9)
        ]
        assert all(client.finish(stream).status == (0, "") for stream in streams)
        assert client.call(HOLD, grpc_frame(b""), ("grpc-timeout", "60m")).status[0] == 4


@pytest.mark.parametrize(
    ("path", "extra", "method", "body", "http_status", "status"),
    [
        (ECHO, [("grpc-timeout", "5x")], "POST", grpc_frame(b""), "400",
         (13, 'malformed grpc-timeout: transport: timeout unit is not recognized: "5x"')),
        (ECHO, [], "GET", b"", "405",
         (13, 'Received a HEADERS frame with :method "GET" which should be POST')),
        (ECHO, [], "POST", b"", "200",
         (13, "cardinality violation: received no request message from non-client-streaming RPC")),
        (ECHO, [], "POST", grpc_frame(b"1") * 2, "200",
         (13, "cardinality violation: received multiple request messages for non-client-streaming RPC")),
        (ECHO, [], "POST", grpc_frame(b"123")[:7], "200", (13, "unexpected EOF")),
        (ECHO, [], "POST", grpc_frame(b"1", flag=1), "200",
         (13, "grpc: compressed flag set with identity or empty encoding")),
        (CHAT, [], "POST", grpc_frame(b"1", flag=7), "200",
         (13, "grpc: received unexpected payload format 7")),
    ],
)  # fmt: skip
def test_malformed_calls_are_answered_as_grpc_go_does(
    served: Owner,
    path: str,
    extra: list[tuple[str, str]],
    method: str,
    body: bytes,
    http_status: str,
    status: tuple[int, str],
) -> None:
    with Http2Client(served.address) as client:
        answer = client.finish(client.request(grpc_headers(path, *extra, method=method), body))
        assert (answer.headers[":status"], answer.status) == (http_status, status)
        assert client.call(ECHO, grpc_frame(b"on")).data == grpc_frame(b"on")


@pytest.fixture(scope="module")
def unix_path(served: Owner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wire") / "wire.sock"
    served.wire.listen(f"unix://{path}", "local")
    return path


@pytest.mark.parametrize("unix", [False, True])
def test_a_call_may_come_byte_by_byte(served: Owner, unix_path: Path, unix: bool) -> None:
    client = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    message = bytes([unix]) * 50
    with client:
        client.settimeout(WAIT_S)
        client.connect(str(unix_path) if unix else served.address)
        if not unix:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = b"\x83\x86" + literal(b":path", ECHO.encode())
        headers += literal(b":authority", b"/run/wire.sock" if unix else b"test")
        headers += literal(b"content-type", b"application/grpc")
        for byte in PREFACE + SETTINGS + frame(1, 4, 1, headers) + frame(0, 1, 1, grpc_frame(message)):
            client.send(bytes([byte]))
        data = b""
        while grpc_frame(message) not in data:
            data += client.recv(65_536)


def test_cancelling_a_call_is_told(served: Owner, channel: Any) -> None:
    future = channel.unary_unary(HOLD).future(b"cancel me", timeout=WAIT_S)
    call_id = served.wait(lambda event: b"cancel me" in event)[1]
    future.cancel()
    served.wait_kind(_wire.CANCEL, call_id)


def test_losing_the_connection_cancels_all_that_is_open_on_it(served: Owner) -> None:
    with Http2Client(served.address) as client:
        client.request(grpc_headers(HOLD), grpc_frame(b"lost"))
        client.request(grpc_headers(CHAT), grpc_frame(b"lost too"), end=False)
        held = served.wait(lambda event: b"lost" in event)[1]
        chat = served.wait(lambda event: b"lost too" in event)[1]
    served.wait_kind(_wire.CANCEL, held)
    served.wait_kind(_wire.CANCEL, chat)


def test_what_follows_an_answer_is_dropped(served: Owner, channel: Any) -> None:
    future = channel.unary_unary(HOLD).future(b"twice", timeout=WAIT_S)
    call_id = served.wait(lambda event: b"twice" in event)[1]
    served.wire.send(
        [(_wire.REPLY, call_id, b"1"), (_wire.DELIVER, call_id, b"2"), (_wire.REPLY, call_id, b"3")]
    )
    assert future.result() == b"1"
    served.wire.send([(_wire.FAIL, 1 << 60, 0, ""), (_wire.FINISH, 7)])
    assert unary(channel, ECHO, b"on") == b"on"


def test_a_stream_that_is_not_read_is_paused_and_resumed() -> None:
    with owner(stream_buffer_bytes=100_000) as served, Http2Client(served.address, consume=False) as client:
        stream = client.request(grpc_headers(HOLD), grpc_frame(b"slow"))
        call_id = served.wait(lambda event: b"slow" in event)[1]
        served.wire.send([(_wire.DELIVER, call_id, bytes(10_000))])
        client.until(lambda: len(client.answers[stream].data) == 10_005)
        served.wire.send([(_wire.DELIVER, call_id, bytes(50_000))] * 30)
        served.wait_kind(_wire.PAUSED, call_id)
        assert not [event for event in served.events if event[0] == _wire.RESUMED]
        client.consume = True
        client.h2.increment_flow_control_window(10_000_000)
        client.h2.increment_flow_control_window(10_000_000, stream)
        client.flush()
        client.until(lambda: len(client.answers[stream].data) == 10_005 + 30 * 50_005)
        served.wait_kind(_wire.RESUMED, call_id)
        served.wire.send([(_wire.FAIL, call_id, 0, "")])
        assert client.finish(stream).status == (0, "")


def test_many_calls_at_once_are_one_batch_or_few(served: Owner, channel: Any) -> None:
    call = channel.unary_unary(ECHO)
    futures = [call.future(str(n).encode(), timeout=WAIT_S) for n in range(500)]
    assert [future.result() for future in futures] == [str(n).encode() for n in range(500)]


# --- HTTP -------------------------------------------------------------------------------------------------


def test_http1_requests_share_the_port_and_a_connection(served: Owner) -> None:
    connection = http.client.HTTPConnection(served.target, timeout=WAIT_S)
    for body in (b"", b"hello", bytes(2 * MAX_MESSAGE_BYTES)):
        connection.request("POST", "/echo?q=%20&r", body, {"X-Mixed": "Case"})
        response = connection.getresponse()
        assert (response.status, response.getheader("x-test"), response.read()) == (200, "1", body)
        kind, _, method, target, headers, received, (listener, peer, _) = served.wait(
            lambda event: event[0] == _wire.HTTP and event[5] == body  # noqa: B023
        )
        assert (kind, method, target, received) == (_wire.HTTP, "POST", "/echo?q=%20&r", body)
        assert ("x-mixed", "Case") in headers
        assert ("host", served.target) in headers
        local = connection.sock.getsockname()
        assert (listener, peer) == ("clients", f"{local[0]}:{local[1]}")
    connection.close()


def test_http1_head_has_no_body(served: Owner) -> None:
    connection = http.client.HTTPConnection(served.target, timeout=WAIT_S)
    connection.request("HEAD", "/hold/head")
    call_id = served.wait(lambda event: "/hold/head" in event)[1]
    served.wire.send([(_wire.RESPOND, call_id, 200, [], b"0123456789")])
    response = connection.getresponse()
    assert (response.getheader("content-length"), response.read()) == ("10", b"")
    connection.close()


def test_http1_streamed_response_is_chunked(served: Owner) -> None:
    connection = http.client.HTTPConnection(served.target, timeout=WAIT_S)
    for _ in range(2):
        connection.request("GET", "/stream")
        response = connection.getresponse()
        assert response.getheader("transfer-encoding") == "chunked"
        assert response.read() == b"one,two,three"
    connection.close()


def test_http1_chunks_leave_when_they_are_sent(served: Owner) -> None:
    connection = http.client.HTTPConnection(served.target, timeout=WAIT_S)
    connection.request("GET", "/hold/live")
    call_id = served.wait(lambda event: "/hold/live" in event)[1]
    served.wire.send([(_wire.BEGIN, call_id, 200, [("content-type", "application/json")])])
    response = connection.getresponse()
    for number in range(3):
        served.wire.send([(_wire.CHUNK, call_id, b"%d\n" % number)])
        assert response.readline() == b"%d\n" % number
    served.wire.send([(_wire.FINISH, call_id)])
    assert response.read() == b""
    connection.close()


@pytest.mark.parametrize("begun", [False, True])
def test_http1_client_that_goes_away_is_told(served: Owner, begun: bool) -> None:
    connection = http.client.HTTPConnection(served.target, timeout=WAIT_S)
    connection.request("GET", f"/hold/gone/{begun}")
    call_id = served.wait(lambda event: f"/hold/gone/{begun}" in event)[1]
    if begun:
        served.wire.send([(_wire.BEGIN, call_id, 200, []), (_wire.CHUNK, call_id, b"x")])
        connection.getresponse().close()
    connection.close()
    served.wait_kind(_wire.CANCEL, call_id)


def test_http1_stream_that_is_not_read_is_paused_and_resumed() -> None:
    with owner(stream_buffer_bytes=100_000) as served:
        connection = http.client.HTTPConnection(served.target, timeout=WAIT_S)
        connection.request("GET", "/hold")
        call_id = served.wait_kind(_wire.HTTP)[1]
        served.wire.send([(_wire.BEGIN, call_id, 200, [])] + [(_wire.CHUNK, call_id, bytes(100_000))] * 200)
        served.wait_kind(_wire.PAUSED, call_id)
        served.wire.send([(_wire.FINISH, call_id)])
        assert len(connection.getresponse().read()) == 20_000_000
        served.wait_kind(_wire.RESUMED, call_id)
        connection.close()


def test_http1_pipelined_requests_are_answered_in_order(served: Owner) -> None:
    with socket.create_connection(served.address, timeout=WAIT_S) as connection:
        request = b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n"
        connection.sendall(request + b"\r\na" + request + b"Connection: close\r\n\r\nb")
        data = b""
        while chunk := connection.recv(65_536):
            data += chunk
    first, second = data.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first.endswith(b"\r\n\r\na")
    assert second.endswith(b"\r\n\r\nb")


@pytest.mark.parametrize("chunked", [False, True])
def test_http1_body_beyond_the_limit_is_refused(served: Owner, chunked: bool) -> None:
    connection = http.client.HTTPConnection(served.target, timeout=WAIT_S)
    body = bytes(2 * MAX_MESSAGE_BYTES + 1)
    connection.request("POST", "/echo", iter([body]) if chunked else body, encode_chunked=chunked)
    assert connection.getresponse().status == 413
    connection.close()


def http_headers(method: str, path: str) -> list[tuple[str, str]]:
    return [(":method", method), (":scheme", "http"), (":path", path), (":authority", "test:1")]


def test_plain_http_over_http2(served: Owner) -> None:
    with Http2Client(served.address) as client:
        answer = client.finish(client.request(http_headers("POST", "/echo?two"), b"body"))
        assert (answer.headers[":status"], answer.headers["x-test"], answer.data) == ("200", "1", b"body")
        event = served.wait(lambda event: "/echo?two" in event)
        assert (event[0], event[2], event[5]) == (_wire.HTTP, "POST", b"body")
        assert ("host", "test:1") in event[4]
        streamed = client.finish(client.request(http_headers("GET", "/stream")))
        assert streamed.data == b"one,two,three"
        stream = client.request(http_headers("GET", "/hold/204"))
        call_id = served.wait(lambda event: "/hold/204" in event)[1]
        served.wire.send([(_wire.RESPOND, call_id, 204, [("Connection", "close"), ("X-Kept", "1")], b"")])
        empty = client.finish(stream).headers
        assert (empty[":status"], empty["x-kept"]) == ("204", "1")
        assert not {"connection", "content-length"} & set(empty)
        head = client.finish(client.request(http_headers("HEAD", "/echo")))
        assert (head.headers[":status"], head.data) == ("200", b"")
        gateway_like = bytes(19 * MAX_MESSAGE_BYTES // 10)
        assert client.finish(client.request(http_headers("POST", "/echo"), gateway_like)).data == gateway_like
        large = client.finish(client.request(http_headers("POST", "/echo"), bytes(2 * MAX_MESSAGE_BYTES + 1)))
        assert large.headers[":status"] == "413"
        assert client.call(ECHO, grpc_frame(b"on")).data == grpc_frame(b"on")


def test_an_answer_of_the_other_protocol_does_not_leave_the_client_waiting(served: Owner) -> None:
    with Http2Client(served.address) as client:
        stream = client.request(grpc_headers(HOLD), grpc_frame(b"wrong 1"))
        call_id = served.wait(lambda event: b"wrong 1" in event)[1]
        served.wire.send([(_wire.RESPOND, call_id, 200, [], b"")])
        assert client.finish(stream).status == (13, "the answer does not fit the call")
    connection = http.client.HTTPConnection(served.target, timeout=WAIT_S)
    connection.request("GET", "/hold/wrong")
    served.wire.send([(_wire.REPLY, served.wait(lambda event: "/hold/wrong" in event)[1], b"")])
    assert connection.getresponse().status == 500
    connection.close()


# --- listeners, batches, the end --------------------------------------------------------------------------


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "wire.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with owner() as served:
        assert served.wire.listen(f"unix://{path}", "local") == f"unix://{path}"
        with open_channel(f"unix:{path}") as channel:
            assert unary(channel, ECHO, b"unix") == b"unix"
        assert served.wait(lambda event: b"unix" in event)[4] == ("local", "", None)
        with pytest.raises(WireError, match="Address already in use"):
            served.wire.listen(f"unix://{path}", "again")
    assert not path.exists()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("127.0.0.1:1", "expected http://host:port"),
        ("https://127.0.0.1:1", "TLS"),
        ("unix:///nowhere/at/all", "No such file"),
        ("http://host.invalid:1", "cannot listen on http://host.invalid:1"),
    ],
)
def test_a_listener_that_cannot_be_opened_is_one_clear_line(served: Owner, url: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason) as raised:
        served.wire.listen(url, "x")
    assert "\n" not in str(raised.value)


def test_a_port_in_use_is_told(served: Owner) -> None:
    with pytest.raises(WireError, match=f"cannot listen on {served.url}: Address already in use"):
        served.wire.listen(served.url, "x")


@pytest.mark.parametrize(
    ("methods", "settings", "reason"),
    [
        ({"/t.S/M": 9}, {}, "expected ONE or MANY"),
        ({"t.S/M": _wire.ONE}, {}, "expected /package.Service/Method"),
        ({}, {"metadata_keys": ("no spaces",)}, "expected the name of a header"),
        ({}, {"max_message_bytes": 0}, "max_message_bytes is 0"),
        ({}, {"header_timeout_s": -1.0}, "header_timeout_s is -1"),
        ({}, {"header_timeout_s": float("nan")}, "header_timeout_s is NaN"),
    ],
)
def test_a_wrong_setting_is_named(methods: dict[str, int], settings: dict[str, object], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        Wire(methods, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "malformed",
    [
        (_wire.REPLY, 1),
        (_wire.REPLY, 1, "text"),
        (_wire.REPLY, 1, b"", b""),
        (_wire.REPLY, -1, b""),
        (_wire.FAIL, 1, "code", "text"),
        (_wire.RESPOND, 1, 99, [], b""),
        (_wire.RESPOND, 1, 200, [("a b", "c")], b""),
        (_wire.RESPOND, 1, 200, [("a", "b\n")], b""),
        (_wire.BEGIN, 1, 200, ["a"]),
        (99, 1, b""),
        (),
        [_wire.REPLY, 1, b""],
        None,
    ],
)
def test_a_malformed_answer_spoils_its_batch_and_nothing_else(
    served: Owner, channel: Any, malformed: object
) -> None:
    future = channel.unary_unary(HOLD).future(b"batch %d" % id(malformed), timeout=WAIT_S)
    call_id = served.wait(lambda event: b"batch %d" % id(malformed) in event)[1]
    with pytest.raises((TypeError, ValueError, OverflowError)):
        served.wire.send([(_wire.REPLY, call_id, b"first"), malformed])  # type: ignore[list-item]
    served.wire.send([(_wire.REPLY, call_id, b"second")])
    assert future.result() == b"second"


def test_poll_returns_empty_when_its_time_is_over_and_at_most_max() -> None:
    wire = Wire({})
    try:
        begun = time.monotonic()
        assert wire.poll(0.05, 10) == []
        assert 0.04 < time.monotonic() - begun < WAIT_S / 2
        objects = [object() for _ in range(5)]
        for item in objects:
            wire.post(item)
        assert wire.statistics()["inbox_events"] == 5
        assert [event[1] for event in wire.poll(WAIT_S, 3)] == objects[:3]
        assert [event[1] for event in wire.poll(WAIT_S, 3)] == objects[3:]
    finally:
        wire.close(0.0)


def test_a_posted_object_ends_the_wait_of_poll() -> None:
    wire = Wire({})
    try:
        poster = threading.Timer(0.05, wire.post, ("news",))
        poster.start()
        assert wire.poll(WAIT_S, 10) == [(_wire.POSTED, "news")]
        poster.join(WAIT_S)
    finally:
        wire.close(0.0)


def test_a_full_inbox_makes_clients_wait_and_loses_nothing() -> None:
    message = bytes(20_000)
    with owner(max_inbox_bytes=200_000) as served, Http2Client(served.address) as client:
        client.call(ECHO, grpc_frame(b"settled"))
        streams: list[int] = []

        def send() -> None:
            for _ in range(300):
                streams.append(client.request(grpc_headers(ECHO), grpc_frame(message)))

        served.pause()
        sender = threading.Thread(target=send)
        try:
            sender.start()
            served.wait_statistic("inbox_events", lambda value: value >= 9)
        finally:
            # More than this never waits: one turn of a connection beyond the limit.
            assert served.wire.statistics()["inbox_events"] < 10 + 16
            served.resume()
            sender.join(WAIT_S)
        assert all(client.finish(stream).data == grpc_frame(message) for stream in streams)


def test_statistics_count(served: Owner) -> None:
    before = served.wire.statistics()
    with Http2Client(served.address) as client:
        client.call(ECHO, grpc_frame(b"12345"))
        stream = client.request(grpc_headers(HOLD), grpc_frame(b"stat"))
        served.wait(lambda event: b"stat" in event)
        served.wait_statistic("streams_open", lambda value: value == before["streams_open"] + 1)
        now = served.wire.statistics()
        assert now["connections_total"] == before["connections_total"] + 1
        assert now["bytes_received_total"] - before["bytes_received_total"] == 5 + 5 + 5 + 4
        assert now["bytes_sent_total"] - before["bytes_sent_total"] == 5
        client.h2.reset_stream(stream)
        client.flush()
        served.wait_statistic("streams_open", lambda value: value == before["streams_open"])
    served.wait_statistic("connections_open", lambda value: value < now["connections_open"])


def test_stop_accepting_lets_open_calls_end() -> None:
    with owner() as served, open_channel(served.target) as channel:
        future = channel.unary_unary(HOLD).future(b"last", timeout=WAIT_S)
        call_id = served.wait(lambda event: b"last" in event)[1]
        served.wire.stop_accepting()
        assert served.wire.statistics()["connections_open"] == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(served.address, timeout=WAIT_S)
        served.wire.send([(_wire.REPLY, call_id, b"done")])
        assert future.result() == b"done"
        served.wait_statistic("connections_open", lambda value: value == 0)
        assert served.wire.statistics()["goaways_sent_total"] == 1


def test_stop_accepting_sends_goaway() -> None:
    with owner() as served, socket.create_connection(served.address, timeout=WAIT_S) as client:
        client.sendall(PREFACE + SETTINGS)
        served.wait_statistic("connections_open", lambda value: value == 1)
        served.wire.stop_accepting()
        goaway = frame(7, 0, 0, b"\x7f\xff\xff\xff" + bytes(4))
        data = b""
        while goaway not in data:
            data += client.recv(65_536)


def test_close_flushes_what_was_sent_and_is_bounded() -> None:
    with owner() as served, open_channel(served.target) as channel:
        flushed = channel.unary_unary(HOLD).future(b"flush", timeout=WAIT_S)
        stuck = channel.unary_unary(HOLD).future(b"stuck", timeout=WAIT_S)
        call_id = served.wait(lambda event: b"flush" in event)[1]
        served.wait(lambda event: b"stuck" in event)
        served.wire.send([(_wire.REPLY, call_id, bytes(1_000_000))])
        begun = time.monotonic()
        served.wire.close(0.5)
        assert 0.4 < time.monotonic() - begun < WAIT_S / 2
        assert len(flushed.result()) == 1_000_000
        assert stuck.code() is grpc.StatusCode.UNAVAILABLE
        served.wire.close(0.5)


def test_close_without_grace_still_says_goodbye() -> None:
    with owner() as served, socket.create_connection(served.address, timeout=WAIT_S) as client:
        client.sendall(PREFACE + SETTINGS)
        data = client.recv(65_536)
        begun = time.monotonic()
        served.wire.close(0.0)
        assert time.monotonic() - begun < WAIT_S / 2
        assert frame(7, 0, 0, bytes(8)) in data + read_to_end(client)


def test_close_is_quick_when_nothing_is_open() -> None:
    with owner() as served:
        idle = http.client.HTTPConnection(served.target, timeout=WAIT_S)
        idle.request("GET", "/echo")
        idle.getresponse().read()
        begun = time.monotonic()
        served.wire.close(WAIT_S)
        assert time.monotonic() - begun < WAIT_S / 2
        idle.close()


def test_a_client_may_ping_for_each_piece_of_a_large_answer(served: Owner) -> None:
    """gRPC measures the round trip by a ping again and again while data comes; grpc-go forgives each of
    them."""
    answer = b"x" * 150_000_000
    options = [("grpc.max_receive_message_length", -1)]
    for name in (b"large 1", b"large 2", b"large 3"):
        with grpc.insecure_channel(served.target, options=options) as channel:
            pending = channel.unary_unary(HOLD).future(name, timeout=3 * WAIT_S)
            call_id = served.wait(lambda event, name=name: name in event)[1]
            served.wire.send([(_wire.REPLY, call_id, answer)])
            assert len(pending.result()) == len(answer)
