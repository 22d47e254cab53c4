"""Clients that are broken, slow or malicious: each gets a proper end, and nobody else notices."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from etcd_server.transport import _wire
from tests.integration.wire_support import (
    ECHO,
    HOLD,
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

HEADERS, RST_STREAM, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 1, 3, 6, 7, 8, 9
PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, REFUSED_STREAM, ENHANCE_YOUR_CALM = 1, 3, 6, 7, 11
END_STREAM, END_HEADERS = 1, 4
TIMEOUT_S = 0.3
TRICKLE_S = 0.02
MAX_STREAMS = 64


@pytest.fixture(scope="module")
def served() -> Iterator[Owner]:
    with owner(
        max_message_bytes=100_000,
        max_header_bytes=8_192,
        max_concurrent_streams=MAX_STREAMS,
        max_inbox_bytes=2_000_000,
        stream_buffer_bytes=50_000,
        header_timeout_s=TIMEOUT_S,
        idle_http_timeout_s=3 * TIMEOUT_S,
    ) as served:
        yield served


@pytest.fixture(autouse=True)
def bystander(served: Owner) -> Iterator[None]:
    """Another client's connection, which works before and after, and all others are gone then."""
    with Http2Client(served.address) as client:
        assert client.call(ECHO, grpc_frame(b"before")).data == grpc_frame(b"before")
        yield
        assert client.call(ECHO, grpc_frame(b"after")).data == grpc_frame(b"after")
    served.wait_statistic("connections_open", lambda value: value == 0)
    assert served.wire.statistics()["streams_open"] == 0


def connect(served: Owner) -> socket.socket:
    return socket.create_connection(served.address, timeout=WAIT_S)


def frames_of(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(kind, flags, stream, payload) of each frame."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        assert len(data) >= 9 + size, "half a frame"
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def goaway_code(data: bytes) -> int:
    ends = [payload for kind, _, _, payload in frames_of(data) if kind == GOAWAY]
    assert ends, "no GOAWAY"
    return int.from_bytes(ends[-1][4:8], "big")


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ],
)
def test_rubbish_gets_http_400(served: Owner, rubbish: bytes) -> None:
    with connect(served) as client:
        client.sendall(rubbish)
        assert read_to_end(client).startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", FRAME_SIZE_ERROR),
        (SETTINGS + frame(0, 0, 0, b"data on no stream"), PROTOCOL_ERROR),
        (SETTINGS + frame(0, 0, 99, b"data on an idle stream"), PROTOCOL_ERROR),
        (SETTINGS + frame(HEADERS, END_HEADERS, 2, b"\x82"), PROTOCOL_ERROR),
        (SETTINGS + frame(PING, 0, 0, b"short"), PROTOCOL_ERROR),
        (SETTINGS + frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL_ERROR),
        (SETTINGS + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR),
        (SETTINGS + frame(0, 0, 1, bytes(20_000)), FRAME_SIZE_ERROR),
        (SETTINGS + frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"), PROTOCOL_ERROR),
    ],
)
def test_wrong_http2_gets_goaway(served: Owner, bad: bytes, code: int) -> None:
    with connect(served) as client:
        client.sendall(PREFACE + bad)
        assert goaway_code(read_to_end(client)) == code


@pytest.mark.parametrize("cut", [1, 5, 23, 24, 27, 36, 40, 60])
def test_half_a_frame_and_gone(served: Owner, cut: int) -> None:
    with Http2Client(served.address) as whole:
        begin = PREFACE + SETTINGS + frame(HEADERS, END_HEADERS, 1, bytes(30))
        with connect(served) as client:
            client.sendall(begin[:cut])
        assert whole.call(ECHO, grpc_frame(b"on")).data == grpc_frame(b"on")


def trickle(client: socket.socket, data: bytes) -> bytes:
    """Send byte by byte, slower than is allowed for the whole; what came back once the peer has closed."""
    begun = time.monotonic()
    client.setblocking(False)
    received = b""
    for byte in data:
        with suppress(BlockingIOError, ConnectionError):
            client.send(bytes([byte]))
        try:
            chunk = client.recv(65_536)
        except BlockingIOError:
            time.sleep(TRICKLE_S)
            continue
        except ConnectionError:
            return received
        if not chunk:
            assert time.monotonic() - begun > TIMEOUT_S * 0.8
            return received
        received += chunk
    raise AssertionError("the connection is still open")


@pytest.mark.parametrize(
    "data", [PREFACE, b"GET /" + b"x" * 3000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000]
)
def test_a_slow_beginning_is_ended(served: Owner, data: bytes) -> None:
    with connect(served) as client:
        trickle(client, data)


def test_slow_headers_are_ended(served: Owner) -> None:
    with connect(served) as client:
        client.sendall(PREFACE + SETTINGS)
        received = trickle(client, frame(HEADERS, END_HEADERS, 1, b"\x00\x03abc\x03def" * 400))
        assert goaway_code(received) == ENHANCE_YOUR_CALM


def test_slow_headers_on_a_unix_socket_are_ended(served: Owner, tmp_path: Path) -> None:
    path = tmp_path / "wire.sock"
    served.wire.listen(f"unix://{path}", "local")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_S)
        client.connect(str(path))
        client.sendall(PREFACE + SETTINGS + frame(HEADERS, END_HEADERS, 1, RAW_HOLD)[:-1])
        assert goaway_code(read_to_end(client)) == ENHANCE_YOUR_CALM


def test_headers_without_end_are_ended(served: Owner) -> None:
    with connect(served) as client:
        client.sendall(PREFACE + SETTINGS + frame(HEADERS, 0, 1, b""))
        assert goaway_code(read_to_end(client)) == ENHANCE_YOUR_CALM


def test_silence_from_the_beginning_is_ended(served: Owner) -> None:
    with connect(served) as client:
        assert read_to_end(client) == b""


def test_an_idle_http1_connection_is_ended(served: Owner) -> None:
    with connect(served) as client:
        client.sendall(b"GET /echo HTTP/1.1\r\nHost: t\r\n\r\n")
        begun = time.monotonic()
        assert read_to_end(client).startswith(b"HTTP/1.1 200")
        assert 2 * TIMEOUT_S < time.monotonic() - begun < WAIT_S / 2


def test_an_http1_body_that_does_not_come_is_ended(served: Owner) -> None:
    with connect(served) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nabc")
        read_to_end(client)
    assert not [event for event in served.events if event[0] == _wire.HTTP and event[5] == b"abc"]


def test_a_slow_answer_is_not_ended(served: Owner) -> None:
    with connect(served) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        call_id = served.wait(lambda event: "/slow" in event)[1]
        time.sleep(4 * TIMEOUT_S)
        served.wire.send([(_wire.RESPOND, call_id, 200, [], b"slow")])
        assert read_to_end(client).endswith(b"slow")


def test_streams_beyond_the_limit_are_refused(served: Owner) -> None:
    with Http2Client(served.address) as client:
        client.heed_no_limit()
        first = [client.request(grpc_headers(HOLD), grpc_frame(b"many")) for _ in range(MAX_STREAMS)]
        served.wait(lambda event: b"many" in event, count=MAX_STREAMS)
        rest = [client.request(grpc_headers(HOLD), grpc_frame(b"many")) for _ in range(300)]
        assert {client.finish(stream).reset for stream in rest} == {REFUSED_STREAM}
        held = [event[1] for event in served.events if b"many" in event]
        assert len(held) == MAX_STREAMS
        served.wire.send([(_wire.REPLY, call_id, b"") for call_id in held])
        assert all(client.finish(stream).status == (0, "") for stream in first)


def test_ten_thousand_streams(served: Owner) -> None:
    with connect(served) as client:
        client.sendall(PREFACE + SETTINGS)
        with suppress(ConnectionError):
            client.sendall(b"".join(frame(HEADERS, END_HEADERS, 2 * n + 1, RAW_HOLD) for n in range(10_000)))
        received = frames_of(whole_frames(read_to_end(client)))
    codes = {int.from_bytes(payload, "big") for kind, _, _, payload in received if kind == RST_STREAM}
    assert codes <= {REFUSED_STREAM}
    assert [int.from_bytes(payload[4:8], "big") for kind, _, _, payload in received if kind == GOAWAY] == [
        ENHANCE_YOUR_CALM
    ]


RAW_HOLD = b"\x83\x86" + literal(b":path", HOLD.encode()) + literal(b"content-type", b"application/grpc")


def whole_frames(data: bytes) -> bytes:
    """Without the last frame, if it was cut off."""
    place = 0
    while place + 9 <= len(data) and place + 9 + int.from_bytes(data[place : place + 3], "big") <= len(data):
        place += 9 + int.from_bytes(data[place : place + 3], "big")
    return data[:place]


def test_rapid_reset_is_ended(served: Owner) -> None:
    goaways = served.wire.statistics()["goaways_sent_total"]
    with connect(served) as client:
        flood = b"".join(
            frame(HEADERS, END_HEADERS, 2 * n + 1, RAW_HOLD)
            + frame(RST_STREAM, 0, 2 * n + 1, bytes([0, 0, 0, 8]))
            for n in range(20_000)
        )
        client.sendall(PREFACE + SETTINGS)
        with suppress(ConnectionError):
            client.sendall(flood)
        assert goaway_code(whole_frames(read_to_end(client))) == ENHANCE_YOUR_CALM
    served.wait_statistic("goaways_sent_total", lambda value: value == goaways + 1)


def test_an_endless_header_block_is_ended(served: Owner) -> None:
    with connect(served) as client:
        client.sendall(PREFACE + SETTINGS + frame(HEADERS, 0, 1, RAW_HOLD))
        with suppress(ConnectionError):
            for _ in range(1_000):
                client.sendall(frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 100) * 20))
        assert goaway_code(whole_frames(read_to_end(client))) == ENHANCE_YOUR_CALM


def test_headers_beyond_the_limit_get_431(served: Owner) -> None:
    with Http2Client(served.address) as client:
        stream = client.request(grpc_headers(ECHO, ("large", "x" * 9_000)), grpc_frame(b""))
        assert client.finish(stream).headers[":status"] == "431"
    with connect(served) as http1:
        http1.sendall(b"GET / HTTP/1.1\r\nLarge: " + b"x" * 9_000 + b"\r\n\r\n")
        assert read_to_end(http1).startswith(b"HTTP/1.1 431 ")


def ping_flood(client: Http2Client, count: int) -> None:
    for number in range(count):
        client.raw(frame(PING, 0, 0, number.to_bytes(8, "big")))


def test_too_many_pings_without_a_stream(served: Owner) -> None:
    with Http2Client(served.address) as client:
        ping_flood(client, 4)
        client.until_closed()
        assert client.goaway == (ENHANCE_YOUR_CALM, b"too_many_pings")


def test_too_many_pings_with_a_stream(served: Owner) -> None:
    with Http2Client(served.address) as client:
        client.request(grpc_headers(HOLD), grpc_frame(b"pinged"))
        call_id = served.wait(lambda event: b"pinged" in event)[1]
        ping_flood(client, 4)
        client.until_closed()
        assert client.goaway == (ENHANCE_YOUR_CALM, b"too_many_pings")
        served.wait_kind(_wire.CANCEL, call_id)


def test_a_ping_for_each_answer_is_allowed(served: Owner) -> None:
    with Http2Client(served.address) as client:
        for _ in range(20):
            assert client.call(ECHO, grpc_frame(b"")).status == (0, "")
            ping_flood(client, 1)
        assert client.call(ECHO, grpc_frame(b"")).status == (0, "")
        assert client.goaway is None


def test_overflowing_a_stream_window_ends_that_stream(served: Owner) -> None:
    with Http2Client(served.address) as client:
        stream = client.request(grpc_headers(HOLD), grpc_frame(b"window"))
        call_id = served.wait(lambda event: b"window" in event)[1]
        client.raw(frame(WINDOW_UPDATE, 0, stream, b"\x7f\xff\xff\xff"))
        assert client.finish(stream).reset == FLOW_CONTROL_ERROR
        served.wait_kind(_wire.CANCEL, call_id)
        assert client.call(ECHO, grpc_frame(b"on")).data == grpc_frame(b"on")


def test_unfinished_requests_may_not_fill_the_memory(served: Owner) -> None:
    with Http2Client(served.address) as client:
        part = grpc_frame(bytes(90_000))[:60_000]
        streams = [client.request(grpc_headers(ECHO), part, end=False) for _ in range(20)]
        refused = "too many bytes of unfinished requests on one connection"
        client.until(lambda: any(client.answers[stream].ended for stream in streams))
        ended = [stream for stream in streams if client.answers[stream].ended]
        assert all(client.answers[stream].status == (8, refused) for stream in ended)
        assert client.call(ECHO, grpc_frame(b"on")).data == grpc_frame(b"on")


def test_a_client_that_does_not_read_is_refused_more(served: Owner) -> None:
    with Http2Client(served.address, window_bytes=0) as client:
        body = bytes(90_000)
        streams: list[int] = []

        def refused() -> bool:
            return any(client.answers[stream].reset == REFUSED_STREAM for stream in streams)

        for _ in range(30):
            streams.append(client.request(grpc_headers(ECHO), grpc_frame(body)))
            client.until(lambda: bool(client.answers[streams[-1]].headers) or refused())
            if refused():
                break
        assert refused()
        assert 5 <= len(streams) <= 20


def test_a_silent_client_is_pinged_and_ended() -> None:
    with owner(keepalive_interval_s=0.2, keepalive_timeout_s=0.2) as served, connect(served) as dead:
        dead.sendall(PREFACE + SETTINGS)
        assert PING in [kind for kind, _, _, _ in frames_of(read_to_end(dead))]


def test_a_client_that_answers_pings_stays() -> None:
    with (
        owner(keepalive_interval_s=0.2, keepalive_timeout_s=0.4) as served,
        Http2Client(served.address) as client,
    ):
        client.until(lambda: client.pings_answered >= 4)
        assert client.call(ECHO, grpc_frame(b"alive")).data == grpc_frame(b"alive")


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_harm_nobody(served: Owner, seed: int) -> None:
    choice = random.Random(seed)
    makers: list[Callable[[], bytes]] = [
        lambda: choice.randbytes(choice.randrange(1, 500)),
        lambda: frame(choice.randrange(12), choice.randrange(256), choice.randrange(8), choice.randbytes(30)),
        lambda: frame(HEADERS, choice.choice([0, 1, 4, 5]), 2 * choice.randrange(6) + 1, RAW_HOLD),
        lambda: frame(0, choice.randrange(2), 2 * choice.randrange(6) + 1, grpc_frame(choice.randbytes(9))),
    ]  # fmt: skip
    with connect(served) as client:
        with suppress(ConnectionError):
            client.sendall(choice.choice([b"", PREFACE, PREFACE + SETTINGS, PREFACE + SETTINGS]))
            for _ in range(choice.randrange(1, 30)):
                client.sendall(choice.choice(makers)())
            client.shutdown(socket.SHUT_WR)
        with suppress(OSError):
            read_to_end(client)
