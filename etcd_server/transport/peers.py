"""The links to the other members: which there are, who may have one to here, and what travels on them.

A member opens a link to each other member and speaks on it; it hears the others on the links that they open.
Who asks for a link says who it is, whom it means, and in which cluster: a stranger, a removed member and one
that means another member or cluster is told so, with the texts and statuses of etcd (server/etcdserver/api/
rafthttp/http.go). Links are kept in step with the membership.

The wire moves the bytes (`wire.py` hands its events here) and raft decides what is said; here is only the
bookkeeping between the two. Invariant: a message is taken from the member only that it names as its sender.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import InstallSnapshot, Message
from etcd_server.services.events import Batch, Effects
from etcd_server.services.peers import parse_version
from etcd_server.transport import peer_frames
from etcd_server.transport.metrics import ROUND_TRIP_BUCKETS_S, Histogram

log = logging.getLogger("etcd_server")

LOWEST_PEER_VERSION = "3.0.0"
"""The lowest version of another member that this one works with."""

CLUSTER_ID, MEMBER_ID, TARGET_ID = "x-etcd-cluster-id", "x-etcd-member-id", "x-etcd-target-id"
SERVER_VERSION, LOWEST_VERSION = "x-server-version", "x-min-cluster-version"

GONE = 410
"""Status of the refusal that a removed member gets: it is to end for good."""

Hello = Sequence[tuple[str, str]]


class Refusal(NamedTuple):
    """Why a link is not taken: an HTTP status, and one line."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Greeting:
    """What the one who asks for a link says of itself. Ids are unsigned 64-bit numbers."""

    cluster_id: int
    member_id: int
    target_id: int
    version: str
    lowest_version: str = LOWEST_PEER_VERSION

    def to_headers(self) -> list[tuple[str, str]]:
        return [
            (CLUSTER_ID, f"{self.cluster_id:x}"),
            (MEMBER_ID, f"{self.member_id:x}"),
            (TARGET_ID, f"{self.target_id:x}"),
            (SERVER_VERSION, self.version),
            (LOWEST_VERSION, self.lowest_version),
        ]

    @classmethod
    def from_headers(cls, hello: Hello) -> Greeting:
        """Raises ValueError with a text that names the header."""
        headers = dict(hello)

        def number(name: str) -> int:
            text = headers.get(name, "")
            try:
                value = int(text, 16)
            except ValueError:
                value = -1
            if not 0 < value < 1 << 64 or text.strip("0123456789abcdefABCDEF"):
                raise ValueError(f'{name}: expected up to 16 hexadecimal digits, found "{text[:40]}"')
            return value

        return cls(
            number(CLUSTER_ID),
            number(MEMBER_ID),
            number(TARGET_ID),
            headers.get(SERVER_VERSION, ""),
            headers.get(LOWEST_VERSION, LOWEST_PEER_VERSION),
        )


def check(greeting: Greeting, own: Greeting, *, is_known: bool, is_removed: bool) -> Refusal | None:
    """Whether a link is taken, by who asks and who is asked (`own`, whose target_id means nothing).

    is_known, is_removed: whether the one who asks is a member, or was one.
    """
    version, lowest = parse_version(greeting.version), parse_version(greeting.lowest_version)
    own_version, own_lowest = parse_version(own.version), parse_version(own.lowest_version)
    assert own_version is not None and own_lowest is not None
    if version is None or lowest is None or version < own_lowest or own_version < lowest:
        return Refusal(412, "incompatible version")
    if greeting.cluster_id != own.cluster_id:
        return Refusal(412, "cluster ID mismatch")
    if is_removed:
        return Refusal(GONE, "removed member")
    if not is_known:
        return Refusal(404, "error sender not found")
    if greeting.target_id != own.member_id:
        return Refusal(412, "to field mismatch")
    return None


class Port(Protocol):
    """The wire, as far as links go (`wire.py`)."""

    def open_link(self, link: int, urls: list[str], hello: list[tuple[str, str]]) -> None: ...

    def close_link(self, link: int) -> None: ...

    def accept_link(self, link_id: int) -> None: ...

    def refuse_link(self, link_id: int, status: int, text: str) -> None: ...

    def link_statistics(self) -> Mapping[int, tuple[bool, int, int, int, int, float | None]]: ...


@dataclass(slots=True)
class Link:
    """This member's link to another. `number` is its name for the wire."""

    number: int
    member_id: int
    urls: tuple[str, ...]
    is_up: bool = False
    losses: int = 0
    round_trips: Histogram = field(default_factory=lambda: Histogram(ROUND_TRIP_BUCKETS_S))


class Links:
    """All links of one member, those from here and those to here."""

    def __init__(
        self, port: Port, own: Greeting, machine: Machine, remotes: Iterable[rpc_pb2.Member] = ()
    ) -> None:
        """`own`: who this member is; its target_id means nothing. `remotes`: the members of the cluster that
        this one joins, for as long as it does not know them from the log."""
        self._port = port
        self._own = own
        self._machine = machine
        self._remotes = {member.ID: member for member in remotes}
        self._next_number = 1
        self._links: dict[int, Link] = {}  # by member id
        self._by_number: dict[int, Link] = {}
        self._incoming: dict[int, int] = {}  # id of an accepted link: the member at its other end
        self._refused: dict[int, Refusal] = {}  # by who asked: each refusal is logged once
        self._connected: list[tuple[int, bool]] = []
        self.received_bytes: dict[int, int] = {}
        self.received_failures: dict[int, int] = {}
        self.is_removed = False
        """Another member has said that this one was removed."""

    # --- the membership -------------------------------------------------------------------------------------

    def follow_members(self) -> None:
        """Have a link to each other member, and to nobody else."""
        wanted = {
            member.ID: tuple(member.peerURLs)
            for member in self._members()
            if self._own.member_id != member.ID and member.peerURLs
        }
        for member_id in self._links.keys() - wanted.keys():
            self._close(self._links[member_id])
        for member_id, urls in wanted.items():
            link = self._links.get(member_id)
            if link is None:
                link = Link(self._next_number, member_id, urls)
                self._next_number += 1
                self._links[member_id] = self._by_number[link.number] = link
            elif link.urls == urls:
                continue
            link.urls = urls
            greeting = Greeting(self._own.cluster_id, self._own.member_id, member_id, self._own.version)
            self._port.open_link(link.number, list(urls), greeting.to_headers())
        for link_id, member_id in list(self._incoming.items()):
            if not self._is_known(member_id):
                del self._incoming[link_id]
                self._port.refuse_link(link_id, *self._farewell(member_id))

    def _close(self, link: Link) -> None:
        del self._links[link.member_id], self._by_number[link.number]
        self._port.close_link(link.number)
        if link.is_up:
            self._connected.append((link.member_id, False))

    def _members(self) -> list[rpc_pb2.Member]:
        members = self._machine.members
        known = {member.ID: member for member in members.all()}
        return list((known if self._own.member_id in known else {**self._remotes, **known}).values())

    def _is_known(self, member_id: int) -> bool:
        members = self._machine.members
        if members.get(member_id) is not None:
            return True
        return member_id in self._remotes and members.get(self._own.member_id) is None

    def _farewell(self, member_id: int) -> Refusal:
        if self._machine.members.is_removed(member_id):
            return Refusal(GONE, "removed member")
        return Refusal(404, "error sender not found")

    # --- links from here ------------------------------------------------------------------------------------

    def up(self, number: int, url: str) -> None:
        """A link is connected."""
        link = self._by_number.get(number)
        if link is None:
            return
        link.is_up = True
        self._connected.append((link.member_id, True))
        log.info("peer became active", extra={"peer-id": f"{link.member_id:x}", "url": url})

    def down(self, number: int, reason: str) -> None:
        """A link was lost, or could not be made; the wire goes on trying."""
        link = self._by_number.get(number)
        if link is None:
            return
        if link.is_up:
            link.is_up = False
            link.losses += 1
            self._connected.append((link.member_id, False))
        peer = {"peer-id": f"{link.member_id:x}", "error": reason}
        if f"status {GONE}:" in reason:
            self.is_removed = True
        log.warning("peer became inactive (message send to peer failed)", extra=peer)

    def frames(self, effects: Effects) -> Iterator[tuple[int, bytes]]:
        """(number of a link, frame) for all that a turn says to other members."""
        by_target: dict[int, list[peer_frames.Peer]] = {}
        for message in effects.send:
            by_target.setdefault(message.to, []).append(message)
        for call in effects.forward:
            by_target.setdefault(call.to, []).append(call)
        for target, messages in by_target.items():
            link = self._links.get(target)
            if link is not None:
                for frame in peer_frames.frames(messages):
                    yield link.number, frame

    # --- links to here --------------------------------------------------------------------------------------

    def asked(self, link_id: int, hello: Hello, batch: Batch) -> None:
        """Somebody wants a link to here: accept or refuse it."""
        try:
            greeting = Greeting.from_headers(hello)
        except ValueError as error:
            self._port.refuse_link(link_id, 400, str(error))
            return
        member_id, refusal = greeting.member_id, self.judge(greeting)
        if refusal is None:
            self._refused.pop(member_id, None)
            self._incoming[link_id] = member_id
            self._port.accept_link(link_id)
            batch.versions.append((member_id, greeting.version))
            return
        self._port.refuse_link(link_id, *refusal)
        if self._refused.get(member_id) != refusal:
            self._refused[member_id] = refusal
            log.warning(
                "refused a link of another member",
                extra={
                    "remote-peer-id": f"{member_id:x}",
                    "remote-cluster-id": f"{greeting.cluster_id:x}",
                    "local-cluster-id": f"{self._own.cluster_id:x}",
                    "error": refusal.text,
                },
            )

    def judge(self, greeting: Greeting) -> Refusal | None:
        """Whether somebody may speak with this member."""
        return check(
            greeting,
            self._own,
            is_known=self._is_known(greeting.member_id),
            is_removed=self._machine.members.is_removed(greeting.member_id),
        )

    def frame(self, link_id: int, frame: bytes, batch: Batch) -> None:
        """What another member says."""
        member_id = self._incoming.get(link_id)
        if member_id is None:
            return
        self.received_bytes[member_id] = self.received_bytes.get(member_id, 0) + len(frame)
        try:
            messages = peer_frames.read(frame)
            for message in messages:
                if message.sender != member_id or message.to != self._own.member_id:
                    raise peer_frames.FrameError(
                        f"a message from member {message.sender:x} to member {message.to:x}"
                    )
        except peer_frames.FrameError as error:
            del self._incoming[link_id]
            self.received_failures[member_id] = self.received_failures.get(member_id, 0) + 1
            self._port.refuse_link(link_id, 400, str(error))
            log.warning("bad frame", extra={"remote-peer-id": f"{member_id:x}", "error": str(error)})
            return
        for one in messages:
            if not isinstance(one, Message):
                batch.forwarded.append(one)
            elif not isinstance(one, InstallSnapshot):  # without the state that belongs to it, it is nothing
                batch.messages.append(one)

    def ended(self, link_id: int) -> bool:
        """An accepted link is over; False when the id is not that of one."""
        return self._incoming.pop(link_id, None) is not None

    # --- for the loop and for people ------------------------------------------------------------------------

    def take_news(self, batch: Batch) -> None:
        """Put into a batch what has happened to links since the last one."""
        if self._connected:
            batch.connected += self._connected
            self._connected = []

    @property
    def size(self) -> int:
        """How many other members there are."""
        return len(self._links)

    @property
    def reached(self) -> int:
        """How many other members are reached."""
        return sum(link.is_up for link in self._links.values())

    def observe(self) -> None:
        """Note the round trips; to be called about as often as links are pinged."""
        statistics = self._port.link_statistics()
        for link in self._links.values():
            round_trip_s = statistics[link.number][5] if link.number in statistics else None
            if round_trip_s is not None:
                link.round_trips.observe(round_trip_s)

    def traffic(self) -> Traffic:
        """What the metrics page shows."""
        statistics = self._port.link_statistics()
        traffic = Traffic()
        for member_id, link in self._links.items():
            _, sent, _, dropped, failures, _ = statistics.get(link.number, (False, 0, 0, 0, 0, None))
            to = (f"{member_id:x}",)
            traffic.sent_bytes[to] = sent
            traffic.sent_failures[to] = dropped + failures
            traffic.round_trips[to] = link.round_trips
            pair = (f"{self._own.member_id:x}", *to)
            traffic.active[pair] = link.is_up
            traffic.disconnected[pair] = link.losses
        for member_id in self.received_bytes:
            traffic.received_bytes[(f"{member_id:x}",)] = self.received_bytes[member_id]
            traffic.received_failures[(f"{member_id:x}",)] = self.received_failures.get(member_id, 0)
        return traffic


Labels = tuple[str, ...]


@dataclass(slots=True)
class Traffic:
    """Numbers of the links, by the labels of etcd's metrics: To, From, or (Local, Remote)."""

    sent_bytes: dict[Labels, float] = field(default_factory=dict)
    sent_failures: dict[Labels, float] = field(default_factory=dict)
    received_bytes: dict[Labels, float] = field(default_factory=dict)
    received_failures: dict[Labels, float] = field(default_factory=dict)
    round_trips: dict[Labels, Histogram] = field(default_factory=dict)
    active: dict[Labels, float] = field(default_factory=dict)
    disconnected: dict[Labels, float] = field(default_factory=dict)
