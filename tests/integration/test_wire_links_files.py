"""Files from wire to wire: whole and synced, or refused, or failed and removed, each with its reason."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_server.transport import _wire
from etcd_server.transport._wire import WireError
from tests.integration.wire_support import (
    WAIT_S,
    Owner,
    RawPeer,
    free_url,
    owner,
    read_head,
    read_to_end,
)

FILE = 42
TIMEOUT_S = 0.4
QUICK = {"link_ping_s": 0.05, "link_timeout_s": TIMEOUT_S}
HEADERS = [("x-etcd-member-id", "8e9e05c52164694d"), ("x-index", "12345")]


class Receiver(Owner):
    """Writes what it is sent to `file` and answers 200."""

    def __init__(self, file: Path, **settings: float) -> None:
        super().__init__(**settings)
        self.file = file
        self.rules[_wire.FILE_ASKED] = lambda event: [(_wire.FILE_ACCEPT, event[1], str(file))]
        self.rules[_wire.FILE_RECEIVED] = lambda event: [(_wire.FILE_DONE, event[1], 200, "")]


@pytest.fixture
def near() -> Iterator[Owner]:
    with owner(**QUICK) as near:
        yield near


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Receiver]:
    (tmp_path / "far").mkdir()
    far = Receiver(tmp_path / "far" / "target", **QUICK)
    try:
        yield far
    finally:
        far.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"snapshot" * 100_000)
    return path


def sent(near: Owner, count: int = 1) -> str:
    return str(near.wait_kind(_wire.FILE_SENT, FILE, count)[2])


def wait_gone(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.005)


# --- whole files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 262_143, 262_144, 262_145, 30_000_000])
def test_a_file_arrives_whole(near: Owner, far: Receiver, tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "source").write_bytes(content)
    near.wire.send_file(FILE, [far.url], str(tmp_path / "source"), HEADERS)
    assert sent(near) == ""
    _, file_id, headers, (listener, peer, _) = far.wait_kind(_wire.FILE_ASKED)
    assert headers == [("content-length", str(size)), *HEADERS]
    assert (listener, peer.split(":")[0]) == ("clients", "127.0.0.1")
    received = far.wait_kind(_wire.FILE_RECEIVED)
    sha256 = hashlib.sha256(content).hexdigest()
    assert received == (_wire.FILE_RECEIVED, file_id, str(far.file), size, sha256)
    assert far.file.read_bytes() == content
    assert far.file.stat().st_mode & 0o777 == 0o600


def test_an_older_file_is_replaced(near: Owner, far: Receiver, source: Path) -> None:
    far.file.write_bytes(bytes(5_000_000))
    near.wire.send_file(FILE, [far.url], str(source), [])
    assert sent(near) == ""
    assert far.file.read_bytes() == source.read_bytes()


def test_one_file_at_a_time_for_a_number(near: Owner, far: Receiver, source: Path) -> None:
    rule = far.rules.pop(_wire.FILE_ASKED)
    near.wire.send_file(FILE, [far.url], str(source), [])
    asked = far.wait_kind(_wire.FILE_ASKED)
    with pytest.raises(WireError, match="a file of id 42 is being sent already"):
        near.wire.send_file(FILE, [far.url], str(source), [])
    near.wire.send_file(43, [far.url], "/nowhere", [])
    near.wait_kind(_wire.FILE_SENT, 43)
    far.rules[_wire.FILE_ASKED] = rule
    far.wire.send(list(rule(asked)))
    assert sent(near) == ""
    near.wire.send_file(FILE, [far.url], str(source), [])
    assert sent(near, 2) == ""


def test_links_and_files_go_beside_each_other(near: Owner, far: Receiver, source: Path) -> None:
    near.wire.open_link(FILE, [far.url], [])
    for number in range(5):
        near.wire.send_file(number, [far.url], str(source), [])
        near.wire.send([(_wire.FRAME_OUT, FILE, bytes([number]), False)])
    near.wait_kind(_wire.FILE_SENT, count=5)
    assert far.wait_frames(5) == [bytes([number]) for number in range(5)]


def test_the_next_address_is_used_when_one_is_dead(near: Owner, far: Receiver, source: Path) -> None:
    near.wire.send_file(FILE, [free_url(), far.url], str(source), [])
    assert sent(near) == ""


def test_an_owner_may_take_its_time(near: Owner, far: Receiver, source: Path) -> None:
    """Much longer than a silent peer may: it is said meanwhile that it lives."""
    kinds = (_wire.FILE_ASKED, _wire.FILE_RECEIVED)
    rules = [far.rules.pop(kind) for kind in kinds]
    near.wire.send_file(FILE, [far.url], str(source), [])
    for kind, rule in zip(kinds, rules, strict=True):
        event = far.wait_kind(kind)
        time.sleep(3 * TIMEOUT_S)
        far.wire.send(list(rule(event)))
    assert sent(near) == ""


# --- refused, failed --------------------------------------------------------------------------------------


def test_a_refused_file_is_not_read(near: Owner, far: Receiver, source: Path) -> None:
    far.rules[_wire.FILE_ASKED] = lambda event: [(_wire.FILE_REFUSE, event[1], 409, "not wanted: é")]
    near.wire.send_file(FILE, [far.url], str(source), [])
    assert sent(near) == f"refused by {far.url} with status 409: not wanted: é"
    assert not far.file.exists()
    far.wait_statistic("connections_open", lambda value: value == 0)
    assert not [event for event in far.events if event[0] != _wire.FILE_ASKED]


def test_a_file_can_be_refused_after_it_came(near: Owner, far: Receiver, source: Path) -> None:
    far.rules[_wire.FILE_RECEIVED] = lambda event: [(_wire.FILE_DONE, event[1], 422, "wrong hash")]
    near.wire.send_file(FILE, [far.url], str(source), [])
    assert sent(near) == f"refused by {far.url} with status 422: wrong hash"


def test_a_file_can_be_refused_while_it_comes(near: Owner, far: Receiver, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as large:
        large.truncate(20_000_000_000)
    near.wire.send_file(FILE, [far.url], str(tmp_path / "large"), [])
    asked = far.wait_kind(_wire.FILE_ASKED)
    deadline = time.monotonic() + WAIT_S
    while not (far.file.exists() and far.file.stat().st_size):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    far.wire.send([(_wire.FILE_REFUSE, asked[1], 410, "no longer wanted")])
    assert sent(near) == f"refused by {far.url} with status 410: no longer wanted"
    wait_gone(far.file)
    assert not [event for event in far.events if event[0] != _wire.FILE_ASKED]


def test_what_cannot_be_read_is_named(near: Owner, far: Receiver, tmp_path: Path) -> None:
    near.wire.send_file(FILE, [far.url], str(tmp_path / "none"), [])
    assert sent(near) == f"cannot read {tmp_path}/none: No such file or directory (os error 2)"
    near.wire.send_file(FILE, [far.url], str(tmp_path), [])
    assert sent(near, 2) == f"cannot read {tmp_path}: not a regular file"


def test_what_cannot_be_written_is_named(near: Owner, far: Receiver, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "none" / "target"
    far.rules[_wire.FILE_ASKED] = lambda event: [(_wire.FILE_ACCEPT, event[1], str(path))]
    near.wire.send_file(FILE, [far.url], str(source), [])
    text = f"cannot write {path}: No such file or directory (os error 2)"
    assert sent(near) == f"refused by {far.url} with status 500: {text}"
    assert far.wait_kind(_wire.FILE_FAILED)[2] == text


def test_a_file_that_becomes_shorter_fails(near: Owner, far: Receiver, source: Path) -> None:
    rule = far.rules.pop(_wire.FILE_ASKED)
    near.wire.send_file(FILE, [far.url], str(source), [])
    asked = far.wait_kind(_wire.FILE_ASKED)
    os.truncate(source, 300_000)
    far.wire.send(list(rule(asked)))
    assert sent(near) == f"cannot read {source}: it has become shorter"
    assert far.wait_kind(_wire.FILE_FAILED)[2].startswith("the connection was closed ")
    assert not far.file.exists()


@pytest.mark.parametrize(
    ("urls", "headers", "text"),
    [([], [], "no URL"), (["https://a:1"], [], "TLS"), (["http://a:1"], [("expect", "x")], "cannot be sent")],
)
def test_wrong_arguments_are_named(
    near: Owner, urls: list[str], headers: list[tuple[str, str]], text: str
) -> None:
    with pytest.raises(WireError, match=text):
        near.wire.send_file(FILE, urls, "/etc/hostname", headers)


def test_nobody_listens(near: Owner, source: Path) -> None:
    url = free_url()
    near.wire.send_file(FILE, [free_url(), url], str(source), [])
    assert sent(near) == f"cannot connect to {url}: Connection refused (os error 111)"


# --- hostile receivers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 102 Processing\r\n\r\n"]
)
def test_a_receiver_that_falls_silent(near: Owner, tmp_path: Path, answer: bytes) -> None:
    with (tmp_path / "large").open("wb") as large:
        large.truncate(100_000_000)
    with RawPeer() as peer:
        near.wire.send_file(FILE, [peer.url], str(tmp_path / "large"), [])
        connection, head = peer.accept()
        with connection:
            assert b"\r\nexpect: 100-continue\r\n" in head
            connection.sendall(answer)
            assert sent(near) == f"{peer.url} has been silent for 400ms"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "the connection to URL was lost: closed by the peer before it answered"),
        (b"rubbish\r\n\r\n", "the connection to URL was lost: no answer of HTTP/1.1"),
        (
            b"HTTP/1.1 404 No\r\ncontent-length: 9\r\n\r\nnot\nfound",
            "refused by URL with status 404: not found",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "the connection to URL was lost: "),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 507 Full\r\ncontent-length: 4\r\n\r\nfull",
            "refused by URL with status 507: full",
        ),
    ],
)
def test_a_receiver_that_goes(near: Owner, tmp_path: Path, answer: bytes, error: str) -> None:
    with (tmp_path / "large").open("wb") as large:
        large.truncate(100_000_000)
    with RawPeer() as peer:
        near.wire.send_file(FILE, [peer.url], str(tmp_path / "large"), [])
        connection, _ = peer.accept()
        with connection:
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            assert sent(near).startswith(error.replace("URL", peer.url))


def test_a_receiver_that_resets(near: Owner, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as large:
        large.truncate(100_000_000)
    with RawPeer() as peer:
        near.wire.send_file(FILE, [peer.url], str(tmp_path / "large"), [])
        connection, _ = peer.accept()
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.recv(1000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert sent(near).startswith(f"the connection to {peer.url} was lost: ")


# --- hostile senders --------------------------------------------------------------------------------------


def begin(far: Receiver, size: int = 1_000_000) -> tuple[socket.socket, int]:
    """A raw sender whose file has been accepted, and its id."""
    client = socket.create_connection(far.address, timeout=WAIT_S)
    client.sendall(f"POST /etcd-py/snapshot/1 HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n".encode())
    asked = far.wait_kind(_wire.FILE_ASKED)
    while (head := read_head(client)).startswith(b"HTTP/1.1 102 "):
        pass
    assert head.startswith(b"HTTP/1.1 100 ")
    return client, asked[1]


@pytest.mark.parametrize("part", [0, 1, 500_000, 999_999])
@pytest.mark.parametrize("reset", [False, True])
def test_half_a_file_is_removed(far: Receiver, part: int, reset: bool) -> None:
    client, file_id = begin(far)
    client.sendall(bytes(part))
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    text = far.wait_kind(_wire.FILE_FAILED, file_id)[2]
    assert text.startswith("the connection was ")
    assert not far.file.exists()


def test_a_sender_that_falls_silent(far: Receiver) -> None:
    client, file_id = begin(far)
    with client:
        client.sendall(bytes(1000))
        text = "the sender has been silent for 400ms"
        assert far.wait_kind(_wire.FILE_FAILED, file_id)[2] == text
        assert not far.file.exists()
        assert read_to_end(client).endswith(text.encode())


def test_a_sender_that_is_slow_is_heard_out(far: Receiver) -> None:
    client, file_id = begin(far, 12)
    with client:
        for byte in b"slow and sure":
            client.sendall(bytes([byte]))
            time.sleep(TIMEOUT_S / 8)
        sha256 = hashlib.sha256(b"slow and sur").hexdigest()
        assert far.wait_kind(_wire.FILE_RECEIVED, file_id)[3:] == (12, sha256)
        assert b"HTTP/1.1 200 OK\r\n" in read_to_end(client)


def test_a_sender_that_goes_before_it_is_answered(far: Receiver) -> None:
    far.rules[_wire.FILE_ASKED] = lambda event: []
    client = socket.create_connection(far.address, timeout=WAIT_S)
    client.sendall(b"POST /etcd-py/snapshot/1 HTTP/1.1\r\ncontent-length: 5\r\n\r\n")
    asked = far.wait_kind(_wire.FILE_ASKED)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    far.wait_kind(_wire.CANCEL, asked[1])


def test_a_sender_that_goes_at_the_end_changes_nothing(far: Receiver) -> None:
    far.rules[_wire.FILE_RECEIVED] = lambda event: []
    client, file_id = begin(far, 5)
    client.sendall(b"whole")
    far.wait_kind(_wire.FILE_RECEIVED, file_id)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    far.wait_statistic("connections_open", lambda value: value == 0)
    far.wire.send([(_wire.FILE_DONE, file_id, 200, "")])
    assert far.file.read_bytes() == b"whole"


def test_an_owner_that_does_not_answer_refuses(tmp_path: Path) -> None:
    far = Receiver(tmp_path / "target", header_timeout_s=0.2)
    try:
        far.rules[_wire.FILE_ASKED] = lambda event: []
        with socket.create_connection(far.address, timeout=WAIT_S) as client:
            client.sendall(b"POST /etcd-py/snapshot/1 HTTP/1.1\r\ncontent-length: 5\r\n\r\n")
            assert read_to_end(client).endswith(b"the member has not answered in time")
        far.wait_kind(_wire.CANCEL)
    finally:
        far.close()


def test_closing_removes_half_a_file(tmp_path: Path) -> None:
    far = Receiver(tmp_path / "target")
    client, _ = begin(far)
    with client:
        client.sendall(bytes(500_000))
        begun = time.monotonic()
        far.close(grace_s=WAIT_S)
        assert time.monotonic() - begun < WAIT_S / 2
        assert b"the member is stopping" in read_to_end(client)
    assert not far.file.exists()
