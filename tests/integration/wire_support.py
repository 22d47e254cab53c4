"""An owner of a wire for tests, and clients that speak HTTP/2 and HTTP/1.1 as badly as a test wants."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings

from etcd_server.transport import _wire
from etcd_server.transport._wire import Wire

Event = tuple[Any, ...]

ECHO, HOLD, LIST, CHAT, FAIL = "/t.S/Echo", "/t.S/Hold", "/t.S/List", "/t.S/Chat", "/t.S/Fail"
METHODS = {ECHO: _wire.ONE, HOLD: _wire.ONE, LIST: _wire.ONE, FAIL: _wire.ONE, CHAT: _wire.MANY}
WAIT_S = 10.0


class Owner:
    """Polls a wire in a thread, answers by the path, and keeps every event for the test to look at.

    Echo and Chat send back what they get, List sends its message three times, Fail ends with status 9 and its
    message as the text, Hold is answered by the test. HTTP: /echo, /stream (three chunks), else by the test.
    Links of peers are accepted; `rules` says otherwise for a kind of event.
    """

    def __init__(self, **settings: Any) -> None:
        self.wire = Wire(METHODS, **settings)
        self.url = self.wire.listen("http://127.0.0.1:0", "clients")
        self.target = self.url.removeprefix("http://")
        host, port = self.target.split(":")
        self.address = (host, int(port))
        self.rules: dict[int, Callable[[Event], Iterable[Event]]] = {
            _wire.LINK_ASKED: lambda event: [(_wire.LINK_ACCEPT, event[1])],
        }
        self.events: list[Event] = []
        self.paths: dict[int, str] = {}
        self._changed = threading.Condition()
        self._running = threading.Event()
        self._running.set()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="owner")
        self._thread.start()

    def pause(self) -> None:
        """Stop polling until `resume`."""
        self._running.clear()
        self.wire.post("pause")
        self.wait(lambda event: event == (_wire.POSTED, "pause"))

    def resume(self) -> None:
        self._running.set()

    def close(self, grace_s: float = 0.0) -> None:
        self._over = True
        self._running.set()
        self.wire.post("over")
        self._thread.join(WAIT_S)
        self.wire.close(grace_s)

    def wait(self, matches: Callable[[Event], bool], count: int = 1) -> Event:
        """The `count`th event that matches, once it is there."""
        found: list[Event] = []

        def enough() -> bool:
            found[:] = [event for event in self.events if matches(event)]
            return len(found) >= count

        with self._changed:
            assert self._changed.wait_for(enough, WAIT_S), f"only {found} of {count} in {self.events[-20:]}"
        return found[count - 1]

    def wait_kind(self, kind: int, call_id: int | None = None, count: int = 1) -> Event:
        return self.wait(lambda event: event[0] == kind and (call_id is None or event[1] == call_id), count)

    def wait_frames(self, count: int, link_id: int | None = None) -> list[bytes]:
        """The frames that came, of one link or of all, once there are `count`."""
        self.wait_kind(_wire.FRAME_IN, link_id, count)
        return [
            event[2]
            for event in self.events
            if event[0] == _wire.FRAME_IN and link_id in (None, event[1])
        ]  # fmt: skip

    def wait_link(self, link: int, reached: Callable[[Event], bool]) -> Event:
        """The statistics of a link, once they are as wanted."""
        deadline = time.monotonic() + WAIT_S
        while not reached(line := self.wire.link_statistics()[link]):
            assert time.monotonic() < deadline, f"link {link} is {line}"
            time.sleep(0.005)
        return line

    def wait_statistic(self, name: str, reached: Callable[[int], bool]) -> int:
        deadline = time.monotonic() + WAIT_S
        while not reached(value := self.wire.statistics()[name]):
            assert time.monotonic() < deadline, f"{name} is {value}"
            time.sleep(0.005)
        return value

    def _run(self) -> None:
        while not self._over:
            self._running.wait(WAIT_S)
            events = self.wire.poll(WAIT_S, 1000)
            self.wire.send([reply for event in events for reply in self._all_answers(event)])
            with self._changed:
                self.events += events
                self._changed.notify_all()

    def _all_answers(self, event: Event) -> Iterable[Event]:
        rule = self.rules.get(event[0])
        return self._answers(event) if rule is None else rule(event)

    def _answers(self, event: Event) -> Iterator[Event]:
        match event:
            case (_wire.CALL, call_id, path, message, _, _) if path == ECHO:
                yield (_wire.REPLY, call_id, message)
            case (_wire.CALL, call_id, path, message, _, _) if path == LIST:
                yield from [(_wire.DELIVER, call_id, message)] * 3
                yield (_wire.FAIL, call_id, 0, "")
            case (_wire.CALL, call_id, path, message, _, _) if path == FAIL:
                yield (_wire.FAIL, call_id, 9, message.decode())
            case (_wire.MESSAGE, call_id, message):
                yield (_wire.DELIVER, call_id, message)
            case (_wire.HALF_CLOSE, call_id):
                yield (_wire.FAIL, call_id, 0, "")
            case (_wire.HTTP, call_id, _, target, _, body, _) if target.startswith("/echo"):
                yield (_wire.RESPOND, call_id, 200, [("content-type", "text/plain"), ("x-test", "1")], body)
            case (_wire.HTTP, call_id, _, "/stream", _, _, _):
                yield (_wire.BEGIN, call_id, 200, [])
                yield from ((_wire.CHUNK, call_id, chunk) for chunk in (b"one,", b"two,", b"three"))
                yield (_wire.FINISH, call_id)


@contextmanager
def owner(**settings: Any) -> Iterator[Owner]:
    served = Owner(**settings)
    try:
        yield served
    finally:
        served.close()


def grpc_frame(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame, right or wrong."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK, neither indexed nor compressed."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = frame(4, 0, 0)


def grpc_headers(path: str, *extra: tuple[str, str], method: str = "POST") -> list[tuple[str, str]]:
    return [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *extra,
    ]


class Answer:
    """What has come back on one stream."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.data = b""
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> tuple[int, str]:
        return int(self.headers["grpc-status"]), self.headers.get("grpc-message", "")


class Http2Client:
    """A blocking HTTP/2 client over the `h2` package, with a back door for raw bytes."""

    def __init__(
        self, address: tuple[str, int], *, window_bytes: int = 1 << 20, consume: bool = True
    ) -> None:
        self.socket = socket.create_connection(address, timeout=WAIT_S)
        config = h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )  # fmt: skip
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window_bytes}
        )
        self.consume = consume
        self.answers: dict[int, Answer] = {}
        self.goaway: tuple[int, bytes] | None = None
        self.pings_answered = 0
        self.closed = False
        self.h2.initiate_connection()
        self.flush()
        self.until(lambda: h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS in self.h2.remote_settings)

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def heed_no_limit(self) -> None:
        """Open streams beyond what the server allows."""
        self.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 1 << 30
        self.h2.remote_settings.acknowledge()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        self.flush()
        self.socket.sendall(data)

    def request(self, headers: list[tuple[str, str]], body: bytes = b"", *, end: bool = True) -> int:
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, headers, end_stream=end and not body)
        for start in range(0, len(body), 16_384):
            last = start + 16_384 >= len(body)
            self.h2.send_data(stream, body[start : start + 16_384], end_stream=end and last)
        self.flush()
        return stream

    def call(self, path: str, body: bytes, *extra: tuple[str, str]) -> Answer:
        return self.finish(self.request(grpc_headers(path, *extra), body))

    def finish(self, stream: int) -> Answer:
        """Wait for the end of this stream."""
        answer = self.answers[stream]
        self.until(lambda: answer.ended or answer.reset is not None or self.closed)
        return answer

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.receive()

    def until_closed(self) -> None:
        self.until(lambda: self.closed)

    def receive(self) -> None:
        assert not self.closed, "the connection has been closed"
        try:
            data = self.socket.recv(65_536)
        except ConnectionResetError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            self._take(event)
        with suppress(OSError):
            self.flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = (int(event.error_code or 0), event.additional_data or b"")
            return
        self.pings_answered += isinstance(event, h2.events.PingReceived)
        stream = getattr(event, "stream_id", None)
        answer = self.answers.get(stream) if stream else None
        if answer is None or stream is None:
            return
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                answer.headers.update(dict(event.headers or []))  # type: ignore[arg-type]
            case h2.events.DataReceived():
                answer.data += event.data or b""
                if self.consume and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
            case h2.events.StreamEnded():
                answer.ended = True
            case h2.events.StreamReset():
                answer.reset = int(event.error_code)


def read_to_end(connection: socket.socket) -> bytes:
    """Everything until the peer closes; a reset counts as closing."""
    data = b""
    with suppress(ConnectionResetError):
        while chunk := connection.recv(65_536):
            data += chunk
    return data


class RawPeer:
    """A listener that takes connections of a wire and does with them what the test says."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(WAIT_S)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def accept(self) -> tuple[socket.socket, bytes]:
        """The next connection, and the head of its request."""
        connection, _ = self.listener.accept()
        connection.settimeout(WAIT_S)
        return connection, read_head(connection)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes. (With a time-out set, MSG_WAITALL does not wait for all.)"""
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        assert chunk, f"closed after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


def read_head(connection: socket.socket) -> bytes:
    """Up to and with the next empty line, byte by byte."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, f"closed after {head!r}"
        head += byte
    return head


DATA, PING, PONG, BYE = range(4)
LINK_HEAD = b"GET /etcd-py/link/1 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: etcd-py-link\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: etcd-py-link\r\n\r\n"


def link_frame(kind: int, payload: bytes = b"") -> bytes:
    """One frame of a link, right or wrong."""
    return bytes([kind]) + len(payload).to_bytes(4, "big") + payload


def free_url() -> str:
    """An address on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
