"""The real transport against small servers that misbehave: what was not sent, and what may have been."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from etcd_client import Client, OutcomeUnknown, Unreachable
from etcd_client.transport import (
    ConnectFailed,
    ConnectionLost,
    IdleTimeout,
    Request,
    RequestsTransport,
    TransportError,
)

LIMIT_S = 5.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def read_request(connection: socket.socket) -> bool:
    """Reads one request, whose body is always {}; False when the client has closed instead."""
    read = b""
    while not (b"\r\n\r\n" in read and read.endswith(b"{}")):
        piece = connection.recv(65536)
        if not piece:
            return False
        read += piece
    return True


@contextmanager
def served(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that reads one request from each connection and then does `answer`."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(LIMIT_S)
    ending = threading.Event()

    def serve() -> None:
        while not ending.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(LIMIT_S)
                with suppress(TimeoutError):
                    if read_request(connection):
                        answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ending.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def request(url: str, read_timeout_s: float = 0.3, body_timeout_s: float | None = None) -> Request:
    return Request(
        url, b"{}", connect_timeout_s=1, read_timeout_s=read_timeout_s, body_timeout_s=body_timeout_s
    )


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_without_a_connection_nothing_was_sent(host: str) -> None:
    with pytest.raises(ConnectFailed):
        RequestsTransport().send(request(f"http://{host}:{closed_port()}/x"))


def test_a_connection_that_ends_after_the_request_proves_nothing() -> None:
    with served(lambda connection: None) as url, pytest.raises(ConnectionLost) as caught:
        RequestsTransport().send(request(url))
    assert not isinstance(caught.value, IdleTimeout)


def test_silence_after_the_request_proves_nothing() -> None:
    with served(lambda connection: connection.recv(1)) as url, pytest.raises(IdleTimeout):
        RequestsTransport().send(request(url))


def test_half_an_answer_is_a_lost_connection() -> None:
    half = HEAD + b"Content-Length: 100\r\n\r\n{"
    with served(lambda connection: connection.sendall(half)) as url:
        response = RequestsTransport().send(request(url))
        with pytest.raises(ConnectionLost):
            response.read()
        response.close()


def test_a_stream_arrives_piece_by_piece_and_its_end_is_seen() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(CHUNKED + b"3\r\nabc\r\n")
        time.sleep(0.1)
        connection.sendall(b"2\r\nde\r\n0\r\n\r\n")

    with served(answer) as url:
        transport = RequestsTransport()
        response = transport.send(request(url))
        assert list(response.chunks()) == [b"abc", b"de"]
        response.close()
        transport.close()


def test_a_broken_stream_is_a_lost_connection() -> None:
    with served(lambda connection: connection.sendall(CHUNKED + b"3\r\nabc\r\n")) as url:
        response = RequestsTransport().send(request(url))
        chunks = response.chunks()
        assert next(chunks) == b"abc"
        with pytest.raises(ConnectionLost):
            next(chunks)
        response.close()


def test_the_body_of_a_stream_has_its_own_time_limit() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(CHUNKED + b"1\r\na\r\n")
        time.sleep(0.6)
        connection.sendall(b"1\r\nb\r\n")
        connection.recv(1)

    with served(answer) as url:
        response = RequestsTransport().send(request(url, read_timeout_s=0.3, body_timeout_s=1.0))
        chunks = response.chunks()
        assert [next(chunks), next(chunks)] == [b"a", b"b"]
        with pytest.raises(IdleTimeout):
            next(chunks)
        response.close()


def test_abort_from_another_thread_ends_a_blocked_read() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(CHUNKED + b"1\r\na\r\n")
        connection.recv(1)

    with served(answer) as url:
        response = RequestsTransport().send(request(url, read_timeout_s=LIMIT_S, body_timeout_s=60))
        chunks = response.chunks()
        assert next(chunks) == b"a"
        threading.Timer(0.1, response.abort).start()
        started_s = time.monotonic()
        with pytest.raises((TransportError, StopIteration)):
            next(chunks)
        assert time.monotonic() - started_s < 2
        response.abort()
        response.close()
        response.close()
        response.abort()


def test_the_clients_view_of_both_troubles() -> None:
    with served(lambda connection: None) as url, Client(url) as client, pytest.raises(OutcomeUnknown):
        client.put("k", "v")
    dead = f"127.0.0.1:{closed_port()}"
    with Client(dead, timeout_s=0.3) as client, pytest.raises(Unreachable, match="Connection refused"):
        client.put("k", "v")


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port()}")
    answer = HEAD + b"Content-Length: 2\r\n\r\n{}"
    with served(lambda connection: connection.sendall(answer)) as url:
        assert RequestsTransport().send(request(url)).read() == b"{}"


def test_connections_are_used_again() -> None:
    opened: list[int] = []

    def answer(connection: socket.socket) -> None:
        opened.append(connection.getpeername()[1])
        connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
        while read_request(connection):
            connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")

    with served(answer) as url:
        transport = RequestsTransport()
        for _ in range(3):
            response = transport.send(request(url, read_timeout_s=LIMIT_S))
            assert response.read() == b"{}"
            response.close()
        # urllib3 closes the connections of a pool once nothing refers to the pool.
        del response
        transport.close()
    assert len(opened) == 1
