"""Peers that are broken, silent or malicious, on either side of a link: each has its end, with its reason."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from etcd_server.transport import _wire
from tests.integration.wire_support import (
    BYE,
    DATA,
    LINK_HEAD,
    PING,
    PONG,
    SWITCHING,
    WAIT_S,
    Owner,
    RawPeer,
    free_url,
    link_frame,
    owner,
    read_exactly,
    read_head,
    read_to_end,
)

LINK = 7
TIMEOUT_S = 0.4
STAMP = bytes(range(1, 9))


@pytest.fixture(scope="module")
def served() -> Iterator[Owner]:
    with owner(
        max_frame_bytes=100_000,
        max_header_bytes=8_192,
        link_ping_s=0.1,
        link_timeout_s=TIMEOUT_S,
        header_timeout_s=TIMEOUT_S,
    ) as served:
        yield served


@pytest.fixture(autouse=True)
def bystander(served: Owner) -> Iterator[None]:
    """A link of a good peer, which works before and after; all other connections are gone then."""
    with owner(link_ping_s=0.1) as good:
        good.wire.open_link(LINK, [served.url], [("x-good", "1")])
        good.wait_kind(_wire.LINK_UP)
        yield
        seen = len([event for event in served.events if event[0] == _wire.FRAME_IN and event[2] == b"after"])
        good.wire.send([(_wire.FRAME_OUT, LINK, b"after", False)])
        served.wait(lambda event: event[0] == _wire.FRAME_IN and event[2] == b"after", seen + 1)
        assert not [event for event in good.events if event[0] == _wire.LINK_DOWN]
    served.wait_statistic("connections_open", lambda value: value == 0)
    assert served.wire.link_statistics() == {}


def connect(served: Owner) -> socket.socket:
    return socket.create_connection(served.address, timeout=WAIT_S)


def open_link(served: Owner) -> tuple[socket.socket, int]:
    """A raw link that has been accepted, and its id."""
    client = connect(served)
    name = f"x-raw-{random.getrandbits(64):x}"
    client.sendall(LINK_HEAD.replace(b"\r\nhost", f"\r\n{name}: 1\r\nhost".encode()))
    assert read_head(client).startswith(b"HTTP/1.1 101 ")
    asked = served.wait(lambda event: event[0] == _wire.LINK_ASKED and (name, "1") in event[2])
    return client, asked[1]


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        assert len(data) >= 5 + size, "half a frame"
        found.append((data[0], data[5 : 5 + size]))
        data = data[5 + size :]
    return found


# --- a hostile side that connects -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hello", "status", "text"),
    [
        (
            b"GET /etcd-py/link/2 HTTP/1.1\r\n\r\n",
            404,
            "/etcd-py/link/2 is not spoken here: expected",
        ),
        (
            b"POST /etcd-py/snapshot/9?a HTTP/1.1\r\n\r\n",
            404,
            "/etcd-py/snapshot/9 is not spoken here",
        ),
        (b"GET /etcd-py/link/1 HTTP/1.1\r\nhost: x\r\n\r\n", 426, "a link is an upgrade to etcd-py"),
        (
            b"GET /etcd-py/link/1 HTTP/1.1\r\nupgrade: h2c\r\n\r\n",
            426,
            "a link is an upgrade to etcd-py",
        ),
        (b"POST /etcd-py/snapshot/1 HTTP/1.1\r\n\r\n", 411, "a file comes with its content-length"),
        (
            b"POST /etcd-py/snapshot/1 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
            "a file comes with its content-length",
        ),
        (
            b"POST /etcd-py/snapshot/1 HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            411,
            "a file comes with its content",
        ),
        (b"GET /etcd-py/link/\x00\x01\xff\r\n\r\n", 400, "not a request of HTTP/1.1: "),
        (b"GET /etcd-py/link/1 HTTP/1.1\r\n" + b"a: b\r\n" * 65 + b"\r\n", 400, "too many headers"),
        (b"GET /etcd-py/link/1 HTTP/1.1\r\na: " + b"a" * 9000, 431, "is longer than 8192 bytes"),
    ],
)
def test_a_wrong_hello_is_refused(served: Owner, hello: bytes, status: int, text: str) -> None:
    refused = served.wire.statistics()["requests_refused_total"]
    with connect(served) as client:
        client.sendall(hello)
        answer = read_to_end(client).decode()
        assert answer.startswith(f"HTTP/1.1 {status} ")
        assert text in answer.partition("\r\n\r\n")[2]
    assert served.wire.statistics()["requests_refused_total"] == refused + 1


@pytest.mark.parametrize("cut", [1, 4, 5, 18, 19, 30, len(LINK_HEAD) - 1])
def test_half_a_hello_and_gone(served: Owner, cut: int) -> None:
    with connect(served) as client:
        client.sendall(LINK_HEAD[:cut])
        client.shutdown(socket.SHUT_WR)
        read_to_end(client)


@pytest.mark.parametrize("cut", [5, 30])
def test_half_a_hello_and_silent(served: Owner, cut: int) -> None:
    with connect(served) as client:
        client.sendall(LINK_HEAD[:cut])
        begun = time.monotonic()
        answer = read_to_end(client)
        assert time.monotonic() - begun < 10 * TIMEOUT_S
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_a_peer_that_goes_before_it_is_answered_is_told_to_the_owner() -> None:
    with owner() as served:
        served.rules[_wire.LINK_ASKED] = lambda event: []
        with connect(served) as client:
            client.sendall(LINK_HEAD)
            asked = served.wait_kind(_wire.LINK_ASKED)
        served.wait_kind(_wire.CANCEL, asked[1])
        served.wire.send([(_wire.LINK_ACCEPT, asked[1])])
        served.wait_statistic("connections_open", lambda value: value == 0)
        assert served.wire.link_statistics() == {}


def test_an_owner_that_does_not_answer_refuses(served: Owner) -> None:
    with owner(header_timeout_s=0.2) as silent:
        silent.rules[_wire.LINK_ASKED] = lambda event: []
        with connect(silent) as client:
            client.sendall(LINK_HEAD)
            assert read_to_end(client).endswith(b"\r\n\r\nthe member has not answered in time")
        silent.wait_kind(_wire.CANCEL, silent.wait_kind(_wire.LINK_ASKED)[1])


def test_an_owner_that_answers_something_else_refuses(served: Owner) -> None:
    with owner() as wrong:
        wrong.rules[_wire.LINK_ASKED] = lambda event: [(_wire.FILE_DONE, event[1], 200, "")]
        with connect(wrong) as client:
            client.sendall(LINK_HEAD)
            assert read_to_end(client).startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("early", [b"", link_frame(DATA, b"early"), link_frame(DATA, b"e" * 60_000)])
def test_frames_before_the_answer_are_kept(early: bytes) -> None:
    with owner() as served:
        served.rules[_wire.LINK_ASKED] = lambda event: []
        with connect(served) as client:
            client.sendall(LINK_HEAD + early)
            asked = served.wait_kind(_wire.LINK_ASKED)
            served.wire.send([(_wire.LINK_ACCEPT, asked[1])])
            assert read_head(client) == SWITCHING
            client.sendall(link_frame(DATA, b"late"))
            frames = served.wait_frames(2 if early else 1, asked[1])
            assert frames == [*([early[5:]] if early else []), b"late"]


def test_pings_are_answered_with_their_stamp(served: Owner) -> None:
    client, _ = open_link(served)
    with client:
        client.sendall(link_frame(PING, STAMP) + link_frame(DATA, b"x") + link_frame(PING, bytes(8)))
        assert frames_of(read_exactly(client, 26)) == [(PONG, STAMP), (PONG, bytes(8))]


def test_a_flood_of_pings_is_answered(served: Owner) -> None:
    client, _ = open_link(served)
    pings = link_frame(PING, STAMP) * 200_000
    with client:
        sender = threading.Thread(target=client.sendall, args=(pings,), name="flood")
        begun = time.monotonic()
        sender.start()
        answers = read_exactly(client, len(pings))
        sender.join(WAIT_S)
        assert answers == link_frame(PONG, STAMP) * 200_000
        assert time.monotonic() - begun < 5 * TIMEOUT_S


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            bytes([DATA]) + (100_001).to_bytes(4, "big"),
            "a frame of kind 0 and 100001 bytes: expected 0",
        ),
        (b"\x00\xff\xff\xff\xff", "a frame of kind 0 and 4294967295 bytes: expected 0 to 100000 bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of kind 71: expected 0 to 3"),
        (link_frame(PING, b"short"), "a frame of kind 1 and 5 bytes: expected 8 to 8 bytes"),
        (link_frame(PONG, STAMP), "a frame that only the side that was connected to may send"),
        (link_frame(BYE, b"\x01\x9abye"), "a frame that only the side that was connected to may send"),
    ],
)
def test_a_wrong_frame_ends_the_link_with_its_reason(served: Owner, wrong: bytes, text: str) -> None:
    client, link_id = open_link(served)
    with client:
        client.sendall(link_frame(DATA, b"right") + wrong)
        [(kind, payload)] = frames_of(read_to_end(client))
        assert (kind, int.from_bytes(payload[:2], "big")) == (BYE, 400)
        assert payload[2:].decode().startswith(text)
    assert served.wait_frames(1, link_id) == [b"right"]
    served.wait_kind(_wire.CANCEL, link_id)


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 1000])
@pytest.mark.parametrize("reset", [False, True])
def test_half_a_frame_and_gone(served: Owner, cut: int, reset: bool) -> None:
    client, link_id = open_link(served)
    client.sendall(link_frame(DATA, b"whole") + link_frame(DATA, bytes(2000))[:cut])
    assert served.wait_frames(1, link_id) == [b"whole"]
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    served.wait_kind(_wire.CANCEL, link_id)
    assert len([event for event in served.events if event[:2] == (_wire.FRAME_IN, link_id)]) == 1


@pytest.mark.parametrize("begun", [b"", link_frame(DATA, bytes(50))[:20]])
def test_a_silent_sender_is_given_up(served: Owner, begun: bytes) -> None:
    client, link_id = open_link(served)
    with client:
        client.sendall(begun)
        since = time.monotonic()
        served.wait_kind(_wire.CANCEL, link_id)
        assert TIMEOUT_S / 2 < time.monotonic() - since < 10 * TIMEOUT_S
        assert frames_of(read_to_end(client)) == [(BYE, b"\x01\x98nothing came for 400ms")]


def test_a_slow_sender_is_heard_out(served: Owner) -> None:
    client, link_id = open_link(served)
    with client:
        for byte in link_frame(DATA, b"slow but sure"):
            client.sendall(bytes([byte]))
            time.sleep(TIMEOUT_S / 10)
        assert served.wait_frames(1, link_id) == [b"slow but sure"]


def test_a_sender_that_pings_and_does_not_read_is_given_up(served: Owner) -> None:
    client, link_id = open_link(served)
    with client:
        pings = link_frame(PING, STAMP) * 10_000
        with suppress(TimeoutError, ConnectionError):
            for _ in range(1000):
                client.sendall(pings)
        served.wait_kind(_wire.CANCEL, link_id)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_harm_nobody(served: Owner, seed: int) -> None:
    choice = random.Random(seed)
    client, link_id = open_link(served)
    with client, suppress(ConnectionError):
        for _ in range(choice.randrange(1, 30)):
            kind = choice.choice([DATA, DATA, DATA, PING, PONG, BYE, 9])
            frame = link_frame(kind, choice.randbytes(choice.choice([0, 8, 8, 8, 3000])))
            client.sendall(choice.choice([frame, frame, frame, frame[:7], choice.randbytes(20)]))
        client.shutdown(socket.SHUT_WR)
        read_to_end(client)
    served.wait_kind(_wire.CANCEL, link_id)


# --- a hostile side that is connected to ------------------------------------------------------------------


@pytest.fixture
def near() -> Iterator[Owner]:
    with owner(link_ping_s=0.1, link_timeout_s=TIMEOUT_S) as near:
        yield near


def down(near: Owner, count: int = 1) -> str:
    return str(near.wait_kind(_wire.LINK_DOWN, LINK, count)[2])


def test_a_peer_that_accepts_and_stays_silent(near: Owner) -> None:
    with RawPeer() as peer:
        near.wire.open_link(LINK, [peer.url], [])
        connection, head = peer.accept()
        with connection:
            assert head.startswith(b"GET /etcd-py/link/1 HTTP/1.1\r\nhost: 127.0.0.1:")
            assert down(near) == f"{peer.url} has not answered within 400ms"


def test_a_peer_whose_network_is_cut(near: Owner) -> None:
    with RawPeer() as peer:
        near.wire.open_link(LINK, [peer.url], [])
        connection, _ = peer.accept()
        with connection:
            connection.sendall(SWITCHING)
            near.wait_kind(_wire.LINK_UP)
            since = time.monotonic()
            assert down(near) == f"{peer.url} has been silent for 400ms"
            assert time.monotonic() - since > TIMEOUT_S / 2


def test_a_peer_that_takes_all_and_answers_no_ping(near: Owner) -> None:
    """To take what is sent shows life only where it had been waited for."""
    with RawPeer() as peer:
        near.wire.open_link(LINK, [peer.url], [])
        connection, _ = peer.accept()
        with connection:
            connection.sendall(SWITCHING)
            near.wait_kind(_wire.LINK_UP)
            while not [event for event in near.events if event[0] == _wire.LINK_DOWN]:
                near.wire.send([(_wire.FRAME_OUT, LINK, b"x", True)])
                time.sleep(0.01)
            assert down(near) == f"{peer.url} has been silent for 400ms"


def test_a_peer_that_takes_slowly_is_not_silent(near: Owner) -> None:
    with RawPeer() as peer:
        peer.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        near.wire.open_link(LINK, [peer.url], [])
        connection, _ = peer.accept()
        with connection:
            connection.sendall(SWITCHING)
            near.wait_kind(_wire.LINK_UP)
            near.wire.send([(_wire.FRAME_OUT, LINK, bytes(40_000_000), True)])
            until = time.monotonic() + 3 * TIMEOUT_S
            while time.monotonic() < until:
                assert connection.recv(100_000)
                time.sleep(0.005)
            assert not [event for event in near.events if event[0] == _wire.LINK_DOWN]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection to URL was lost: closed by the peer before it answered"),
        (
            b"SSH-2.0-OpenSSH\r\n\r\n",
            "the connection to URL was lost: no answer of HTTP/1.1: invalid",
        ),
        (b"HTTP/1.1 101 Switching", "the connection to URL was lost: closed by the peer before it answered"),
        (b"HTTP/1.1 101 X\r\nupgrade: h2c\r\n\r\n", "URL has answered with another protocol"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>\r\nhi</html>", "refused by URL with status 200: <html>  hi</html>"),
        (b"HTTP/1.1 404 No\r\ncontent-length: 3\r\n\r\nno more", "refused by URL with status 404: no "),
        (b"HTTP/1.1 403 No\r\ncontent-length: 99\r\n\r\nhalf", "refused by URL with status 403: half"),
        (
            b"HTTP/1.1 200 OK\r\nx: " + b"y" * 9000,
            "the connection to URL was lost: the head of the an",
        ),
        (SWITCHING, "the connection to URL was lost: closed by the peer"),
        (
            SWITCHING + b"\x09garbage",
            "the connection to URL was lost: the peer sent a frame of kind 9",
        ),
        (
            SWITCHING + link_frame(DATA, b"x"),
            "the connection to URL was lost: the peer sent a frame of kind 0",
        ),
        (
            SWITCHING + link_frame(PING, STAMP),
            "the connection to URL was lost: the peer sent what only we",
        ),
        (SWITCHING + link_frame(PONG, STAMP)[:7], "the connection to URL was lost: closed by the peer"),
        (SWITCHING + link_frame(BYE, b"\x01\x9agone"), "ended by URL with status 410: gone"),
    ],
)
def test_a_wrong_answer_is_the_reason(near: Owner, answer: bytes, reason: str) -> None:
    with RawPeer() as peer:
        near.wire.open_link(LINK, [peer.url], [])
        connection, _ = peer.accept()
        with connection:
            connection.sendall(answer)
            with suppress(OSError):  # it may have been given up already
                connection.shutdown(socket.SHUT_WR)
            assert down(near).startswith(reason.replace("URL", peer.url).rstrip())
        again, _ = peer.accept()
        again.close()


def test_a_peer_that_resets_the_connection(near: Owner) -> None:
    with RawPeer() as peer:
        near.wire.open_link(LINK, [peer.url], [])
        connection, _ = peer.accept()
        connection.sendall(SWITCHING)
        near.wait_kind(_wire.LINK_UP)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert down(near).startswith(f"the connection to {peer.url} was lost: ")


def test_a_pong_that_nobody_asked_for_measures_nothing(near: Owner) -> None:
    with RawPeer() as peer:
        near.wire.open_link(LINK, [peer.url], [])
        connection, _ = peer.accept()
        with connection:
            connection.sendall(SWITCHING + link_frame(PONG, b"\xff" * 8) + link_frame(PONG, bytes(8)))
            near.wait_link(LINK, lambda line: line[2] == 26)
            assert near.wire.link_statistics()[LINK][5] is None


def test_what_was_not_written_whole_is_sent_again() -> None:
    """A peer vanishes in the middle of a frame: the next connection begins with that frame."""
    frames = [bytes([number]) * 400_000 for number in range(40)]
    with owner() as near, RawPeer() as peer:
        near.wire.open_link(LINK, [peer.url], [])
        connection, _ = peer.accept()
        connection.sendall(SWITCHING)
        near.wait_kind(_wire.LINK_UP)
        near.wire.send([(_wire.FRAME_OUT, LINK, frame, False) for frame in frames])
        read_exactly(connection, 100_000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        connection, _ = peer.accept()
        with connection:
            connection.sendall(SWITCHING)
            near.wait_kind(_wire.LINK_UP, count=2)
            near.wire.close_link(LINK)
            data = read_to_end(connection)
        sent = [payload for kind, payload in frames_of(data) if kind == DATA]
        assert 5 < len(sent) <= len(frames)
        assert sent == frames[-len(sent) :]


def test_a_peer_that_hangs_does_not_hold_up_closing() -> None:
    with RawPeer() as peer:
        near = Owner()
        near.wire.open_link(LINK, [peer.url], [])
        connection, _ = peer.accept()
        with connection:
            connection.sendall(SWITCHING)
            near.wait_kind(_wire.LINK_UP)
            near.wire.send([(_wire.FRAME_OUT, LINK, bytes(60_000_000), False)])
            begun = time.monotonic()
            near.close(grace_s=0.3)
            assert 0.2 < time.monotonic() - begun < WAIT_S / 2


def test_many_links_to_nowhere_and_back_end_cleanly(served: Owner) -> None:
    with owner() as near:
        for link in range(50):
            near.wire.open_link(link, [free_url() if link % 2 else served.url], [])
        near.wait_kind(_wire.LINK_UP, count=25)
        threads = [
            threading.Thread(target=near.wire.close_link, args=(link,), name=f"closer {link}")
            for link in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert near.wire.link_statistics() == {}
