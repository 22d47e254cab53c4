"""Snapshots on their way between members, as files: what is said about one, who may send it, what becomes of
it.

Headers say who sends, to whom, in which cluster and term, and the hash of the file; everything else is read
from the file itself. The wire streams from disk to disk, a thread makes and looks into copies (`Workshop`);
here is the bookkeeping between the wire, that thread and the engine.

    sender     request ─► copy ─► send_file ─────────────► sent ─► Batch.snapshots_sent
    receiver                      asked ─► received ─► look into it ─► Batch.snapshots_received ─► done

Invariant: a copy is removed by whoever made or received it, once it is sent, refused or in place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from etcd_server.raft.messages import Snapshot
from etcd_server.services.engine import Engine
from etcd_server.services.events import Batch, ReceivedSnapshot, SnapshotRequest
from etcd_server.storage.snapshot import Contents, SnapshotFile
from etcd_server.transport.metrics import SNAPSHOT_BUCKETS_S, Histogram, HistogramValue
from etcd_server.transport.peers import Greeting, Hello, Refusal

log = logging.getLogger("etcd_server")

TERM, INDEX, SHA256 = "x-etcd-py-term", "x-etcd-py-snapshot-index", "x-etcd-py-snapshot-sha256"
LENGTH = "content-length"
_HASH_DIGITS = 64
REFUSED, UNUSABLE, NO_ROOM = 409, 422, 507


class Port(Protocol):
    """The wire, as far as files go (`wire.py`)."""

    def send_file(self, number: int, urls: list[str], path: str, headers: list[tuple[str, str]]) -> None: ...

    def accept_file(self, file_id: int, path: str) -> None: ...

    def refuse_file(self, file_id: int, status: int, text: str) -> None: ...

    def finish_file(self, file_id: int, status: int, text: str) -> None: ...


class Workshop(Protocol):
    """The thread that handles copies (`workers.py`); it posts Copied and LookedInto."""

    def copy(self, request: SnapshotRequest) -> None: ...

    def look_into(self, file_id: int, path: str) -> None: ...

    def remove(self, path: str) -> None: ...

    def path_for(self, file_id: int, size_bytes: int) -> str | None:
        """Where a file of that size may be received; None when there is no room for it."""
        ...


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a request for a copy: the file, or one line about why there is none."""

    request: SnapshotRequest
    file: SnapshotFile | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class LookedInto:
    """What a received file stands for, or one line about what is wrong with it."""

    file_id: int
    contents: Contents | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a sender says of a file. index: what the copy stands for, to be refused early; not relied on."""

    term: int
    index: int
    sha256: str
    size_bytes: int

    def to_headers(self) -> list[tuple[str, str]]:
        """Without the size, which the wire tells."""
        return [(TERM, str(self.term)), (INDEX, str(self.index)), (SHA256, self.sha256)]

    @classmethod
    def from_headers(cls, headers: Hello) -> Offer:
        """Raises ValueError with a text that names the header."""
        found = dict(headers)

        def number(name: str) -> int:
            text = found.get(name, "")
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise ValueError(f'{name}: expected a number, found "{text[:40]}"')
            return int(text)

        sha256 = found.get(SHA256, "")
        if len(sha256) != _HASH_DIGITS or sha256.strip("0123456789abcdef"):
            raise ValueError(f'{SHA256}: expected {_HASH_DIGITS} hexadecimal digits, found "{sha256[:80]}"')
        return cls(number(TERM), number(INDEX), sha256, number(LENGTH))


@dataclass(slots=True)
class Incoming:
    """A file that a member sends to here."""

    sender: int
    offer: Offer
    path: str
    begun_s: float


@dataclass(slots=True)
class Outgoing:
    """A copy on its way to a member."""

    to: int
    path: str
    begun_s: float


@dataclass(slots=True)
class Tally:
    """Of one direction, by the other member's ID in hexadecimal digits."""

    succeeded: dict[tuple[str, ...], float] = field(default_factory=dict)
    failed: dict[tuple[str, ...], float] = field(default_factory=dict)
    under_way: dict[tuple[str, ...], float] = field(default_factory=dict)
    duration: dict[tuple[str, ...], Histogram] = field(default_factory=dict)

    def durations(self) -> dict[tuple[str, ...], HistogramValue]:
        return {label: histogram.value() for label, histogram in self.duration.items()}

    def begin(self, member_id: int) -> None:
        label = (f"{member_id:x}",)
        self.under_way[label] = self.under_way.get(label, 0) + 1

    def end(self, member_id: int, took_s: float, *, succeeded: bool) -> None:
        label = (f"{member_id:x}",)
        self.under_way[label] -= 1
        counts = self.succeeded if succeeded else self.failed
        counts[label] = counts.get(label, 0) + 1
        if succeeded:
            self.duration.setdefault(label, Histogram(SNAPSHOT_BUCKETS_S)).observe(took_s)


class SnapshotFiles:
    """All snapshots on their way from and to one member."""

    def __init__(
        self,
        port: Port,
        workshop: Workshop,
        engine: Engine,
        own: Greeting,
        judge: Callable[[Greeting], Refusal | None],
    ) -> None:
        """`judge`: whether whoever introduces himself so may speak with this member."""
        self._port = port
        self._workshop = workshop
        self._engine = engine
        self._own = own
        self._judge = judge
        self._next_number = 1
        self._outgoing: dict[int, Outgoing] = {}
        self._incoming: dict[int, Incoming] = {}
        self._ended: list[tuple[int, bool]] = []
        self.sent_tally = Tally()
        self.received_tally = Tally()
        self.save_duration = Histogram(SNAPSHOT_BUCKETS_S)

    @property
    def receiving(self) -> int:
        """How many are on their way to here, or wait to be put in place."""
        return len(self._incoming)

    # --- sending ------------------------------------------------------------------------------------------

    def request(self, request: SnapshotRequest) -> None:
        """Have a copy made and sent."""
        log.info("sending a snapshot to a member that is far behind", extra={"to": f"{request.to:x}"})
        self.sent_tally.begin(request.to)
        self._workshop.copy(request)

    def copied(self, news: Copied) -> None:
        """A copy was made, or could not be made."""
        request, file = news.request, news.file
        member = self._engine.machine.members.get(request.to)
        begun = Outgoing(request.to, "" if file is None else file.path, time.monotonic())
        if file is None or member is None or not member.peerURLs:
            self._end_sending(begun, news.error or "it is a member no more")
            return
        number = self._next_number
        self._next_number += 1
        own = self._own
        greeting = Greeting(own.cluster_id, own.member_id, request.to, own.version)
        offer = Offer(request.term, file.contents.applied_index, file.sha256, file.size_bytes)
        self._outgoing[number] = begun
        self._port.send_file(
            number, list(member.peerURLs), file.path, [*greeting.to_headers(), *offer.to_headers()]
        )

    def sent(self, number: int, error: str) -> None:
        """A file has arrived and was put in place, or not (`error`)."""
        outgoing = self._outgoing.pop(number, None)
        if outgoing is not None:
            self._end_sending(outgoing, error)

    def _end_sending(self, outgoing: Outgoing, error: str) -> None:
        took_s = time.monotonic() - outgoing.begun_s
        self.sent_tally.end(outgoing.to, took_s, succeeded=not error)
        if outgoing.path:
            self._workshop.remove(outgoing.path)
        self._ended.append((outgoing.to, not error))
        to = f"{outgoing.to:x}"
        if error:
            log.warning("could not send a snapshot", extra={"to": to, "error": error})
        else:
            log.info("sent a snapshot", extra={"to": to, "took-s": round(took_s, 3)})

    def take_news(self, batch: Batch) -> None:
        """Put into a batch what has happened since the last one."""
        if self._ended:
            batch.snapshots_sent += self._ended
            self._ended = []

    # --- receiving ----------------------------------------------------------------------------------------

    def asked(self, file_id: int, headers: Hello) -> None:
        """A member wants to send a file: accept or refuse it."""
        try:
            greeting, offer = Greeting.from_headers(headers), Offer.from_headers(headers)
        except ValueError as error:
            self._port.refuse_file(file_id, 400, str(error))
            return
        refusal = self._judge(greeting)
        if refusal is None:
            reason = self._engine.snapshots.refusal(greeting.member_id, offer.term, offer.index)
            refusal = None if reason is None else Refusal(REFUSED, reason)
        path = None if refusal is not None else self._workshop.path_for(file_id, offer.size_bytes)
        if path is None:
            refusal = refusal or Refusal(NO_ROOM, f"no room for a snapshot of {offer.size_bytes} bytes")
            self._port.refuse_file(file_id, *refusal)
            return
        log.info("receiving a snapshot", extra={"from": f"{greeting.member_id:x}", "bytes": offer.size_bytes})
        self._incoming[file_id] = Incoming(greeting.member_id, offer, path, time.monotonic())
        self.received_tally.begin(greeting.member_id)
        self._port.accept_file(file_id, path)

    def received(self, file_id: int, size_bytes: int, sha256: str) -> None:
        """An accepted file is here, whole and synced."""
        incoming = self._incoming.get(file_id)
        if incoming is None:
            return
        offer = incoming.offer
        self.save_duration.observe(time.monotonic() - incoming.begun_s)
        if (size_bytes, sha256) != (offer.size_bytes, offer.sha256):
            text = f"{size_bytes} bytes arrived with SHA-256 {sha256}, {offer.sha256} was expected"
            self._reject(file_id, UNUSABLE, text)
        else:
            self._workshop.look_into(file_id, incoming.path)

    def failed(self, file_id: int, text: str) -> None:
        """An accepted file did not come whole; the wire has removed what there was of it."""
        incoming = self._incoming.pop(file_id, None)
        if incoming is not None:
            self._end_receiving(incoming, text)

    def looked_into(self, news: LookedInto, batch: Batch) -> None:
        """The thread has looked into a received file."""
        incoming = self._incoming.get(news.file_id)
        if incoming is None:
            return
        contents = news.contents
        if contents is None:
            self._reject(news.file_id, UNUSABLE, news.error)
            return
        stands_for = Snapshot(contents.applied_index, contents.applied_term, contents.configuration)
        batch.snapshots_received.append(
            ReceivedSnapshot(news.file_id, incoming.path, incoming.sender, incoming.offer.term, stands_for)
        )

    def refused(self, snapshot: ReceivedSnapshot) -> None:
        """Raft has no use for this one."""
        self._reject(snapshot.number, REFUSED, "the member does not need this snapshot any more")

    def installed(self, snapshot: ReceivedSnapshot) -> None:
        """This one has taken the place of the state."""
        incoming = self._incoming.pop(snapshot.number)
        self._port.finish_file(snapshot.number, 200, "")
        self._end_receiving(incoming, "")

    def _reject(self, file_id: int, status: int, text: str) -> None:
        incoming = self._incoming.pop(file_id)
        self._workshop.remove(incoming.path)
        self._port.finish_file(file_id, status, text)
        self._end_receiving(incoming, text)

    def _end_receiving(self, incoming: Incoming, error: str) -> None:
        took_s = time.monotonic() - incoming.begun_s
        self.received_tally.end(incoming.sender, took_s, succeeded=not error)
        sender = f"{incoming.sender:x}"
        if error:
            log.warning("could not use a snapshot", extra={"from": sender, "error": error})
        else:
            log.info("took a snapshot in", extra={"from": sender, "took-s": round(took_s, 3)})
