"""Links between members: who may have one, that they follow the membership, what becomes of their news."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.confchange import Configuration
from etcd_server.raft.messages import Heartbeat, InstallSnapshot, Snapshot, TimeoutNow
from etcd_server.services.events import Batch, Effects, ForwardedCall
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from etcd_server.transport import peer_frames
from etcd_server.transport.peers import Greeting, Links, Refusal, check

CLUSTER, SELF, PEER, OTHER, STRANGER = 0xC1, 0xA, 0xB, 0xC, 0xD
OWN = Greeting(CLUSTER, SELF, SELF, "3.6.0")
KIND = command_pb2.ConfChange


class Port:
    """A wire that only writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.statistics: dict[int, tuple[bool, int, int, int, int, float | None]] = {}

    def open_link(self, link: int, urls: list[str], hello: list[tuple[str, str]]) -> None:
        self.said.append(("open", link, urls, dict(hello)["x-etcd-target-id"]))

    def close_link(self, link: int) -> None:
        self.said.append(("close", link))

    def accept_link(self, link_id: int) -> None:
        self.said.append(("accept", link_id))

    def refuse_link(self, link_id: int, status: int, text: str) -> None:
        self.said.append(("refuse", link_id, status, text))

    def link_statistics(self) -> dict[int, tuple[bool, int, int, int, int, float | None]]:
        return self.statistics

    def take(self) -> list[tuple[Any, ...]]:
        said, self.said = self.said, []
        return said


class World:
    """One member's links over a real membership."""

    def __init__(self, folder: Path, *first: int) -> None:
        self.port = Port()
        self.database = StateDatabase.open(str(folder / "state.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION)
        self.machine = Machine(self.database)
        for number in first:
            self.change(KIND.ADD_VOTER, number)
        self.links = Links(self.port, OWN, self.machine)
        self.links.follow_members()

    def change(self, kind: Any, number: int, *urls: str) -> None:
        member = rpc_pb2.Member(ID=number, peerURLs=urls or [f"http://m{number:x}:2380"])
        change = command_pb2.ConfChange(kind=kind, member=member)
        index = self.machine.applied_index + 1
        assert isinstance(self.machine.apply_conf_change(index, 1, change), tuple)

    def ask(self, link_id: int, **differs: Any) -> tuple[Any, ...]:
        """Ask for a link as PEER, but for what `differs`; what it was told."""
        said = {"cluster_id": CLUSTER, "member_id": PEER, "target_id": SELF, "version": "3.6.0"}
        greeting = Greeting(**{**said, **differs})
        self.batch = Batch()
        self.links.asked(link_id, greeting.to_headers(), self.batch)
        *_, answer = self.port.take()
        return answer

    def news(self) -> list[tuple[int, bool]]:
        batch = Batch()
        self.links.take_news(batch)
        return batch.connected


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, SELF, PEER, OTHER)
    yield world
    world.database.close()


# --- who may have one


@pytest.mark.parametrize(
    ("differs", "known", "removed", "refusal"),
    [
        ({}, True, False, None),
        ({"version": "3.7.2"}, True, False, None),
        ({"cluster_id": 0xBAD}, True, False, Refusal(412, "cluster ID mismatch")),
        ({"target_id": OTHER}, True, False, Refusal(412, "to field mismatch")),
        ({}, False, True, Refusal(410, "removed member")),
        ({}, False, False, Refusal(404, "error sender not found")),
        ({"version": "2.3.8"}, True, False, Refusal(412, "incompatible version")),
        ({"version": "new"}, True, False, Refusal(412, "incompatible version")),
        ({"lowest_version": "3.7.0"}, True, False, Refusal(412, "incompatible version")),
    ],
)
def test_who_asks_is_told(
    differs: dict[str, Any], known: bool, removed: bool, refusal: Refusal | None
) -> None:
    said = {"cluster_id": CLUSTER, "member_id": PEER, "target_id": SELF, "version": "3.6.0"}
    greeting = Greeting(**{**said, **differs})
    assert check(greeting, OWN, is_known=known, is_removed=removed) == refusal


def test_a_greeting_survives_the_headers() -> None:
    greeting = Greeting((1 << 64) - 1, 1, 0xABC, "3.6.1", "3.1.0")
    assert Greeting.from_headers(greeting.to_headers()) == greeting


@pytest.mark.parametrize("value", ["", "0", "xyz", "-1", "+1", "0x1", "1_0", "1" * 17, " 1"])
def test_a_header_that_is_no_id_is_named(value: str) -> None:
    hello = [*OWN.to_headers(), ("x-etcd-member-id", value)]
    with pytest.raises(ValueError, match="x-etcd-member-id: expected up to 16 hexadecimal digits"):
        Greeting.from_headers(hello)


def test_a_member_is_accepted_and_its_version_is_news(world: World) -> None:
    world.port.take()
    assert world.ask(70) == ("accept", 70)
    assert world.batch.versions == [(PEER, "3.6.0")]


def test_others_are_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.port.take()
    assert world.ask(70, cluster_id=1) == ("refuse", 70, 412, "cluster ID mismatch")
    assert world.ask(71, member_id=STRANGER) == ("refuse", 71, 404, "error sender not found")
    world.change(KIND.REMOVE, OTHER)
    assert world.ask(72, member_id=OTHER) == ("refuse", 72, 410, "removed member")
    assert world.ask(73, member_id=OTHER) == ("refuse", 73, 410, "removed member")
    assert world.batch.versions == []
    assert len(caplog.records) == 3
    world.links.asked(74, [("x-etcd-cluster-id", "c1")], Batch())
    [(_, _, status, text)] = world.port.take()
    assert (status, text) == (400, 'x-etcd-member-id: expected up to 16 hexadecimal digits, found ""')


# --- the membership


def test_there_is_a_link_to_each_other_member(world: World) -> None:
    assert world.port.take() == [
        ("open", 1, ["http://mb:2380"], "b"),
        ("open", 2, ["http://mc:2380"], "c"),
    ]
    world.links.follow_members()
    assert world.port.take() == []
    assert world.links.size == 2


def test_links_follow_the_membership(world: World) -> None:
    world.port.take()
    world.links.up(2, "http://mc:2380")
    assert world.ask(70, member_id=OTHER) == ("accept", 70)
    world.change(KIND.ADD_VOTER, STRANGER)
    world.change(KIND.UPDATE, PEER, "http://new:1", "http://new:2")
    world.change(KIND.REMOVE, OTHER)
    world.news()
    world.links.follow_members()
    assert sorted(world.port.take(), key=str) == [
        ("close", 2),
        ("open", 1, ["http://new:1", "http://new:2"], "b"),
        ("open", 3, ["http://md:2380"], "d"),
        ("refuse", 70, 410, "removed member"),
    ]
    assert world.news() == [(OTHER, False)]


def test_who_joins_knows_the_others_before_the_log_has_told_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    remotes = [rpc_pb2.Member(ID=number, peerURLs=["http://r:1"]) for number in (SELF, PEER)]
    world.links = Links(world.port, OWN, world.machine, remotes)
    world.links.follow_members()
    assert world.port.take() == [("open", 1, ["http://r:1"], "b")]
    assert world.ask(70) == ("accept", 70)
    assert world.ask(71, member_id=OTHER) == ("refuse", 71, 404, "error sender not found")
    for number in (OTHER, SELF):
        world.change(KIND.ADD_VOTER, number)
    world.links.follow_members()
    assert sorted(world.port.take(), key=str) == [
        ("close", 1),
        ("open", 2, ["http://mc:2380"], "c"),
        ("refuse", 70, 404, "error sender not found"),
    ]
    world.database.close()


# --- what travels


def test_all_that_a_turn_says_to_a_member_is_one_frame(world: World) -> None:
    effects = Effects(
        send=[Heartbeat(PEER, SELF, 1, 0), Heartbeat(OTHER, SELF, 1, 0), TimeoutNow(PEER, SELF, 1)],
        forward=[ForwardedCall(OTHER, SELF, 1, "/p", b"")],
    )
    frames = dict(world.links.frames(effects))
    assert {
        link: [type(one).__name__ for one in peer_frames.read(frame)] for link, frame in frames.items()
    } == {
        1: ["Heartbeat", "TimeoutNow"],
        2: ["Heartbeat", "ForwardedCall"],
    }
    assert list(world.links.frames(Effects(send=[TimeoutNow(STRANGER, SELF, 1)]))) == []


def test_what_a_member_says_reaches_the_batch(world: World) -> None:
    world.ask(70)
    batch = Batch()
    call = ForwardedCall(SELF, PEER, 1, "/p", b"")
    [frame] = peer_frames.frames([Heartbeat(SELF, PEER, 1, 0), call])
    world.links.frame(70, frame, batch)
    world.links.frame(99, frame, batch)
    assert (batch.messages, batch.forwarded) == ([Heartbeat(SELF, PEER, 1, 0)], [call])
    assert world.links.traffic().received_bytes == {("b",): len(frame)}
    assert world.links.ended(70) and not world.links.ended(70)
    world.links.frame(70, frame, batch)
    assert len(batch.messages) == 1


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff",
        peer_frames.frames([Heartbeat(SELF, OTHER, 1, 0)])[0],
        peer_frames.frames([Heartbeat(OTHER, PEER, 1, 0)])[0],
    ],
    ids=["garbage", "in another's name", "for another"],
)
def test_a_bad_frame_ends_its_link_and_nothing_of_it_counts(world: World, frame: bytes) -> None:
    world.port.take()
    world.ask(70)
    batch = Batch()
    world.links.frame(70, frame, batch)
    [(what, link_id, status, _)] = world.port.take()
    assert (what, link_id, status) == ("refuse", 70, 400)
    assert not batch.messages
    assert world.links.traffic().received_failures == {("b",): 1}


def test_a_snapshot_without_its_state_is_nothing(world: World) -> None:
    world.ask(70)
    batch = Batch()
    snapshot = InstallSnapshot(SELF, PEER, 1, Snapshot(9, 1, Configuration((SELF, PEER))))
    world.links.frame(70, peer_frames.frames([snapshot])[0], batch)
    assert batch.messages == []


# --- up and down


def test_ups_and_downs_are_news_once(world: World) -> None:
    world.links.up(1, "http://mb:2380")
    world.links.up(99, "http://nobody:1")
    assert (world.news(), world.links.reached) == ([(PEER, True)], 1)
    assert world.news() == []
    world.links.down(1, "lost")
    world.links.down(1, "no route")
    world.links.down(99, "lost")
    assert (world.news(), world.links.reached) == ([(PEER, False)], 0)


def test_a_member_that_is_told_that_it_was_removed_knows_it(world: World) -> None:
    world.links.down(1, "refused by http://mb:2380 with status 404: error sender not found")
    assert not world.links.is_removed
    world.links.down(1, "ended by http://mb:2380 with status 410: removed member")
    assert world.links.is_removed


def test_the_numbers_of_the_metrics_page(world: World) -> None:
    world.links.up(1, "http://mb:2380")
    world.links.up(2, "http://mc:2380")
    world.links.down(2, "lost")
    world.port.statistics = {1: (True, 100, 0, 2, 3, 0.0015), 2: (False, 7, 0, 0, 1, None)}
    world.links.observe()
    traffic = world.links.traffic()
    assert traffic.sent_bytes == {("b",): 100, ("c",): 7}
    assert traffic.sent_failures == {("b",): 5, ("c",): 1}
    assert traffic.active == {("a", "b"): True, ("a", "c"): False}
    assert traffic.disconnected == {("a", "b"): 0, ("a", "c"): 1}
    assert {to: histogram.value().sum for to, histogram in traffic.round_trips.items()} == {
        ("b",): 0.0015,
        ("c",): 0.0,
    }
