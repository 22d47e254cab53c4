"""Links between two wires: frames in order, connections made again, refusals passed on, queues bounded."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_server.transport import _wire
from etcd_server.transport._wire import Wire, WireError
from tests.integration.wire_support import WAIT_S, Event, Owner, free_url, owner

LINK = 0xFFFF_FFFF_FFFF_FFF7
HELLO = [("x-etcd-cluster-id", "cdf818194e3a8c32"), ("x-etcd-member-id", "8e9e05c52164694d"), ("x-name", "é")]
QUICK = {"link_ping_s": 0.05, "link_timeout_s": 0.8}


@pytest.fixture
def near() -> Iterator[Owner]:
    with owner(**QUICK) as near:
        yield near


@pytest.fixture
def far() -> Iterator[Owner]:
    with owner(**QUICK) as far:
        yield far


@pytest.fixture
def link_id(near: Owner, far: Owner) -> int:
    """An open link from near to far: its id there."""
    near.wire.open_link(LINK, [far.url], HELLO)
    near.wait_kind(_wire.LINK_UP)
    return int(far.wait_kind(_wire.LINK_ASKED)[1])


def out(*frames: bytes, droppable: bool = False, link: int = LINK) -> list[Event]:
    return [(_wire.FRAME_OUT, link, frame, droppable) for frame in frames]


def numbers(count: int, start: int = 0) -> list[bytes]:
    return [str(number).encode() for number in range(start, start + count)]


def listen_again(url: str, **settings: Any) -> Owner:
    """An owner on an address that was in use before."""
    again = Owner(**settings)
    again.wire.listen(url, "peers")
    return again


# --- frames -----------------------------------------------------------------------------------------------


def test_the_peer_sees_the_hello_and_accepts(near: Owner, far: Owner, link_id: int) -> None:
    assert near.wait_kind(_wire.LINK_UP) == (_wire.LINK_UP, LINK, far.url)
    _, _, hello, (listener, peer, common_name) = far.wait_kind(_wire.LINK_ASKED)
    assert (hello, listener, common_name) == (HELLO, "clients", None)
    assert peer.startswith("127.0.0.1:")


def test_frames_of_all_sizes_arrive_in_order(near: Owner, far: Owner, link_id: int) -> None:
    sizes = [0, 1, 100, 8191, 8192, 8193, 0, 70_000, 262_144, 5, 3_000_001, 7]
    frames = [bytes([number]) * size for number, size in enumerate(sizes)]
    near.wire.send(out(*frames[:4]))
    near.wire.send(out(*frames[4:]))
    assert far.wait_frames(len(frames), link_id) == frames


def test_many_frames_arrive_in_order(near: Owner, far: Owner, link_id: int) -> None:
    frames = numbers(50_000)
    for start in range(0, len(frames), 1000):
        near.wire.send(out(*frames[start : start + 1000]))
    assert far.wait_frames(len(frames)) == frames


def test_frames_written_until_the_connection_is_full_arrive_whole(near: Owner) -> None:
    """One at a time, so that the owner writes them itself; where the connection takes half of one, the rest
    follows, and no ping comes between."""
    with owner(max_inbox_bytes=65_536, **QUICK) as far:
        near.wire.open_link(LINK, [far.url], HELLO)
        near.wait_kind(_wire.LINK_UP)
        link_id = int(far.wait_kind(_wire.LINK_ASKED)[1])
        far.pause()
        frames = [number.to_bytes(4, "big") * (1 + number * 37 % 2500) for number in range(6000)]
        for number, frame in enumerate(frames):
            near.wire.send(out(frame))
            if number % 500 == 499:
                time.sleep(QUICK["link_ping_s"])  # pings fall due while half a frame may be written
        far.resume()
        assert far.wait_frames(len(frames), link_id) == frames


def test_links_go_both_ways_beside_each_other(near: Owner, far: Owner, link_id: int) -> None:
    far.wire.open_link(1, [near.url], [])
    far.wire.open_link(2, [near.url], [])
    near.wait_kind(_wire.LINK_ASKED, count=2)
    far.wire.send(out(b"a", b"b", link=1) + out(b"c", link=2) + out(b"d", link=1) + out(b"e", link=3))
    near.wire.send(out(b"f"))
    assert sorted(near.wait_frames(4)) == [b"a", b"b", b"c", b"d"]
    assert far.wait_frames(1) == [b"f"]


def test_a_link_over_a_unix_socket(near: Owner, far: Owner, tmp_path: Path) -> None:
    url = far.wire.listen(f"unix://{tmp_path}/s", "peers")
    near.wire.open_link(LINK, [url], HELLO)
    near.wire.send(out(b"frame"))
    assert far.wait_frames(1) == [b"frame"]
    assert far.wait_kind(_wire.LINK_ASKED)[3] == ("peers", "", None)


def test_the_largest_frame_is_the_largest(far: Owner) -> None:
    with owner(max_frame_bytes=1000) as near:
        near.wire.open_link(LINK, [far.url], [])
        near.wire.send(out(bytes(1000)))
        with pytest.raises(ValueError, match="a frame of 1001 bytes: expected at most 1000"):
            near.wire.send([*out(b"never sent"), *out(bytes(1001))])
        assert far.wait_frames(1) == [bytes(1000)]


def test_a_frame_that_is_too_large_for_the_peer_ends_the_link(near: Owner) -> None:
    with owner(max_frame_bytes=1000) as far:
        near.wire.open_link(LINK, [far.url], [])
        near.wire.send(out(b"before", bytes(1001)))
        assert far.wait_frames(1) == [b"before"]
        text = "a frame of kind 0 and 1001 bytes: expected 0 to 1000 bytes"
        reason = near.wait_kind(_wire.LINK_DOWN)[2]
        assert reason == f"ended by {far.url} with status 400: {text}"
        far.wait_kind(_wire.CANCEL, far.wait_kind(_wire.LINK_ASKED)[1])


@pytest.mark.parametrize(
    "wrong",
    [
        (_wire.FRAME_OUT, LINK, b"x"),
        (_wire.FRAME_OUT, LINK, "x", True),
        (_wire.FRAME_OUT, -1, b"x", True),
        (_wire.LINK_ACCEPT, 1, 2),
        (_wire.LINK_REFUSE, 1, 200, "not a refusal"),
        (_wire.LINK_REFUSE, 1, 403),
        (_wire.FILE_ACCEPT, 1, 7),
        (_wire.FILE_DONE, 1, 600, ""),
    ],
)
def test_wrong_tuples_send_nothing(near: Owner, far: Owner, link_id: int, wrong: Event) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        near.wire.send([*out(b"not sent"), wrong])
    near.wire.send(out(b"sent"))
    assert far.wait_frames(1) == [b"sent"]


# --- opening, closing, statistics -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("urls", "hello", "text"),
    [
        ([], [], "no URL to connect to"),
        (["ftp://a:1"], [], "expected http://host:port"),
        (["https://a:1"], [], "TLS"),
        (["http://a:1"], [("x a", "b")], 'header "x a": "b" cannot be sent'),
        (["http://a:1"], [("x", "a\r\nb: c")], "cannot be sent"),
        (["http://a:1"], [("Host", "a")], "cannot be sent"),
        (["http://a:1"], [("x", "a" * 9000)], "expected at most 58 of 8192 bytes"),
    ],
)
def test_what_cannot_be_opened_is_named(
    near: Owner, urls: list[str], hello: list[tuple[str, str]], text: str
) -> None:
    with pytest.raises(WireError, match=text):
        near.wire.open_link(LINK, urls, hello)
    assert near.wire.link_statistics() == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"link_ping_s": 0.0},
        {"link_ping_s": 5.0},
        {"link_timeout_s": 0.5},
        {"max_frame_bytes": 0},
        {"max_frame_bytes": 1 << 32},
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(WireError, match=next(iter(settings))):
        Wire({}, **settings)


def test_statistics_of_both_sides(near: Owner, far: Owner, link_id: int) -> None:
    near.wire.send(out(bytes(1000)))
    far.wait_frames(1)
    line = near.wait_link(LINK, lambda line: line[1] >= 1005 and line[2] >= 13 and line[5] is not None)
    is_up, _, _, dropped, failures, round_trip_s = line
    assert (is_up, dropped, failures) == (True, 0, 0)
    assert 0 < round_trip_s < 1
    line = far.wait_link(link_id, lambda line: line[1] >= 13 and line[2] >= 1005)
    assert (line[0], *line[3:]) == (True, 0, 0, None)
    near.wire.close_link(LINK)
    far.wait_kind(_wire.CANCEL, link_id)
    assert near.wire.link_statistics() == far.wire.link_statistics() == {}


def test_a_closed_link_sends_what_is_queued_and_says_no_more(near: Owner, far: Owner, link_id: int) -> None:
    frames = [bytes([number]) * 500_000 for number in range(20)]
    near.wire.send(out(*frames))
    near.wire.close_link(LINK)
    near.wire.close_link(LINK)
    near.wire.send(out(b"too late"))
    far.wait_kind(_wire.CANCEL, link_id)
    assert far.wait_frames(len(frames)) == frames
    near.wire.open_link(LINK, [far.url], HELLO)
    near.wait_kind(_wire.LINK_UP, count=2)
    assert not [event for event in near.events if event[0] == _wire.LINK_DOWN]


def test_a_wire_that_closes_sends_what_is_queued(far: Owner) -> None:
    frames = [bytes([number]) * 500_000 for number in range(20)]
    near = Owner()
    near.wire.open_link(LINK, [far.url], [])
    near.wait_kind(_wire.LINK_UP)
    near.wire.send(out(*frames))
    begun = time.monotonic()
    near.close(grace_s=WAIT_S)
    assert time.monotonic() - begun < WAIT_S / 2
    assert far.wait_frames(len(frames)) == frames
    far.wait_kind(_wire.CANCEL)
    with pytest.raises(WireError, match="the wire has been closed"):
        near.wire.open_link(LINK, [far.url], [])


def test_a_wire_closes_at_once_though_nobody_is_connected() -> None:
    near = Owner()
    near.wire.open_link(LINK, [free_url()], [])
    near.wire.send(out(b"lost"))
    begun = time.monotonic()
    near.close(grace_s=WAIT_S)
    assert time.monotonic() - begun < WAIT_S / 2


def test_a_peer_that_closes_ends_the_link(near: Owner) -> None:
    far = Owner()
    near.wire.open_link(LINK, [far.url], [])
    near.wait_kind(_wire.LINK_UP)
    begun = time.monotonic()
    far.close(grace_s=WAIT_S)
    assert time.monotonic() - begun < WAIT_S / 2
    reason = near.wait_kind(_wire.LINK_DOWN)[2]
    assert reason == f"ended by {far.url} with status 503: the member has stopped"


def test_links_go_on_when_no_more_are_accepted(near: Owner, far: Owner, link_id: int) -> None:
    far.wire.stop_accepting()
    near.wire.send(out(b"still"))
    assert far.wait_frames(1, link_id) == [b"still"]
    near.wire.open_link(2, [far.url], [])
    assert "cannot connect" in near.wait_kind(_wire.LINK_DOWN, 2)[2]


def test_a_link_not_accepted_yet_is_refused_when_no_more_are(near: Owner, far: Owner) -> None:
    far.rules[_wire.LINK_ASKED] = lambda event: []
    near.wire.open_link(LINK, [far.url], [])
    asked = far.wait_kind(_wire.LINK_ASKED)
    far.wire.stop_accepting()
    reason = near.wait_kind(_wire.LINK_DOWN)[2]
    assert reason == f"refused by {far.url} with status 503: the member is stopping"
    far.wait_kind(_wire.CANCEL, asked[1])


# --- refused, lost, made again ----------------------------------------------------------------------------


def test_a_refusal_is_passed_on_once_and_tried_again(near: Owner, far: Owner) -> None:
    refusal = "cluster ID mismatch: local=1 remote=é"
    far.rules[_wire.LINK_ASKED] = lambda event: [(_wire.LINK_REFUSE, event[1], 412, refusal)]
    near.wire.open_link(LINK, [far.url], HELLO)
    down = near.wait_kind(_wire.LINK_DOWN)
    assert down == (_wire.LINK_DOWN, LINK, f"refused by {far.url} with status 412: {refusal}")
    near.wait_link(LINK, lambda line: line[4] >= 3)
    assert not near.wire.link_statistics()[LINK][0]
    del far.rules[_wire.LINK_ASKED]
    far.rules[_wire.LINK_ASKED] = lambda event: [(_wire.LINK_ACCEPT, event[1])]
    near.wait_kind(_wire.LINK_UP)
    assert [event for event in near.events if event[0] == _wire.LINK_DOWN] == [down]
    assert not [event for event in far.events if event[0] == _wire.CANCEL]


def test_an_accepted_link_can_be_ended_with_a_reason(near: Owner, far: Owner, link_id: int) -> None:
    far.rules[_wire.LINK_ASKED] = lambda event: [(_wire.LINK_REFUSE, event[1], 410, "still removed")]
    far.wire.send([(_wire.LINK_REFUSE, link_id, 410, "the member has been removed")])
    ended = near.wait_kind(_wire.LINK_DOWN)[2]
    assert ended == f"ended by {far.url} with status 410: the member has been removed"
    refused = near.wait_kind(_wire.LINK_DOWN, count=2)[2]
    assert refused == f"refused by {far.url} with status 410: still removed"
    assert not [event for event in far.events if event[0] == _wire.CANCEL]


def test_an_address_where_nobody_listens_is_tried_until_somebody_does(near: Owner) -> None:
    url = free_url()
    near.wire.open_link(LINK, [url], [])
    near.wire.send(out(b"kept"))
    reason = near.wait_kind(_wire.LINK_DOWN)[2]
    assert reason == f"cannot connect to {url}: Connection refused (os error 111)"
    near.wait_link(LINK, lambda line: line[4] >= 3)
    far = listen_again(url)
    try:
        assert near.wait_kind(_wire.LINK_UP)[2] == url
        assert far.wait_frames(1) == [b"kept"]
    finally:
        far.close()
    assert "was lost" in near.wait_kind(_wire.LINK_DOWN, count=2)[2] or "ended by" in near.events[-1][2]


def test_the_addresses_are_tried_in_turn(near: Owner, far: Owner) -> None:
    dead = [free_url(), "http://127.0.0.1:1"]
    near.wire.open_link(LINK, [*dead, far.url], [])
    assert near.wait_kind(_wire.LINK_UP)[2] == far.url
    downs = [event[2] for event in near.events if event[0] == _wire.LINK_DOWN]
    assert [reason.split(": ")[0] for reason in downs] == [f"cannot connect to {url}" for url in dead]


def test_a_host_name_that_does_not_exist_is_a_reason(near: Owner) -> None:
    near.wire.open_link(LINK, ["http://nobody.invalid:1"], [])
    reason = near.wait_kind(_wire.LINK_DOWN)[2]
    assert "http://nobody.invalid:1" in reason


def test_a_lost_connection_is_made_again_and_keeps_the_order(near: Owner) -> None:
    url = free_url()
    seen: list[bytes] = []
    near.wire.open_link(LINK, [url], [], queue_bytes=1 << 30)
    for life in range(3):
        far = listen_again(url)
        try:
            frames = numbers(1000, start=1000 * life)
            near.wire.send(out(*frames))
            assert near.wait_kind(_wire.LINK_UP, count=life + 1)
            seen += far.wait_frames(1000)
        finally:
            far.close()
        near.wait_link(LINK, lambda line: not line[0])
    assert seen == numbers(3000)


def test_another_configuration_connects_anew_and_keeps_the_queue(near: Owner, far: Owner) -> None:
    near.wire.open_link(LINK, [free_url()], [("x-a", "1")])
    near.wait_kind(_wire.LINK_DOWN)
    near.wire.send(out(b"kept"))
    near.wire.open_link(LINK, [far.url], [("x-a", "2")])
    assert far.wait_frames(1) == [b"kept"]
    first = far.wait_kind(_wire.LINK_ASKED)
    near.wait_kind(_wire.LINK_UP)
    near.wire.open_link(LINK, [far.url], [("x-a", "3")])
    near.wait_kind(_wire.LINK_UP, count=2)
    assert near.wait_kind(_wire.LINK_DOWN, count=2)[2] == f"the link to {far.url} was replaced"
    assert far.wait_kind(_wire.LINK_ASKED, count=2)[2] == [("x-a", "3")]
    far.wait_kind(_wire.CANCEL, first[1])


# --- bounds -----------------------------------------------------------------------------------------------


def test_a_full_queue_drops_the_oldest_droppable_frames(near: Owner) -> None:
    url = free_url()
    with owner() as patient:
        patient.wire.open_link(LINK, [url], [], queue_bytes=100_000)
        kept = [b"first", b"second"]
        patient.wire.send([*out(kept[0]), *out(*numbers(10)), *out(kept[1])])
        patient.wire.send(out(*([bytes(1000)] * 200), droppable=True))
        dropped = patient.wire.link_statistics()[LINK][3]
        assert 200 - 100 <= dropped <= 200 - 90
        far = listen_again(url)
        try:
            frames = far.wait_frames(212 - dropped)
            assert frames == [kept[0], *numbers(10), kept[1], *([bytes(1000)] * (200 - dropped))]
        finally:
            far.close()


def test_a_queue_of_frames_that_must_not_be_dropped_is_bounded_too(near: Owner) -> None:
    near.wire.open_link(LINK, [free_url()], [], queue_bytes=10_000)
    near.wire.send(out(*([bytes(1000)] * 100)))
    dropped = near.wire.link_statistics()[LINK][3]
    assert 80 <= dropped <= 85


def test_droppable_frames_grow_stale_while_nobody_is_connected(near: Owner) -> None:
    url = free_url()
    near.wire.open_link(LINK, [url], [])
    near.wire.send([*out(b"old", droppable=True), *out(b"kept")])
    time.sleep(QUICK["link_timeout_s"])
    near.wire.send(out(b"late", droppable=True))
    assert near.wire.link_statistics()[LINK][3] == 2
    far = listen_again(url)
    try:
        near.wait_kind(_wire.LINK_UP)
        near.wire.send(out(b"new", droppable=True))
        assert far.wait_frames(2) == [b"kept", b"new"]
    finally:
        far.close()


def test_a_peer_whose_inbox_is_full_is_not_silent(near: Owner) -> None:
    with owner(max_inbox_bytes=1_000_000, **QUICK) as far:
        near.wire.open_link(LINK, [far.url], [])
        near.wait_kind(_wire.LINK_UP)
        far.wait_kind(_wire.LINK_ASKED)
        far.pause()
        frames = [number.to_bytes(4, "big") * 25_000 for number in range(400)]
        near.wire.send(out(*frames))
        time.sleep(3 * QUICK["link_timeout_s"])
        assert near.wire.link_statistics()[LINK][0]
        assert near.wire.link_statistics()[LINK][1] < 35_000_000
        far.resume()
        assert far.wait_frames(len(frames)) == frames
        assert not [event for event in near.events if event[0] == _wire.LINK_DOWN]


def test_an_owner_that_does_not_poll_does_not_lose_its_links(near: Owner, far: Owner, link_id: int) -> None:
    far.pause()
    time.sleep(3 * QUICK["link_timeout_s"])
    near.wire.send(out(b"still there"))
    far.resume()
    assert far.wait_frames(1) == [b"still there"]
    assert not [event for event in near.events if event[0] == _wire.LINK_DOWN]


# --- speed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count", "batch", "frames_per_s"), [(100_000, 4_000, 8, 2_000), (100, 200_000, 100, 200_000)]
)
def test_throughput_over_loopback(size: int, count: int, batch: int, frames_per_s: int) -> None:
    """200 MB/s of large frames, 200,000 small ones a second: a tenth of what an idle machine does."""
    near, far = Wire({}), Wire({})
    url = far.listen("http://127.0.0.1:0", "peers")
    near.open_link(LINK, [url], [])
    [asked] = far.poll(WAIT_S, 1)
    far.send([(_wire.LINK_ACCEPT, asked[1])])
    arrived = 0

    def take() -> None:
        nonlocal arrived
        while arrived < count and (events := far.poll(WAIT_S, 10_000)):
            arrived += len(events)

    taker = threading.Thread(target=take)
    begun = time.monotonic()
    taker.start()
    frames = out(*[bytes(size)] * batch)
    for sent in range(0, count, batch):
        near.send(frames)
        while (sent - arrived) * size > 20_000_000:
            time.sleep(0.0001)
    taker.join(WAIT_S)
    elapsed_s = time.monotonic() - begun
    near.close(0)
    far.close(0)
    assert arrived == count
    assert count / elapsed_s > frames_per_s
