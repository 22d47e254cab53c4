"""The watch hub: which stream is told of which change, in which order, by which bytes.

One revision's changes reach a watcher in one response (or its fragments), in the order of revisions, each
once, from the watcher's start on. A change is serialised once for each form of events; a response is shared
by all streams on which the watch has the same number. Where a watcher stands is kept by `watch_places`;
what it missed it gets from history, by `catch_up`.

Pure and deterministic: no I/O, no clock. Behaviour and texts: etcd server/storage/mvcc/watchable_store.go,
watcher.go and server/etcdserver/api/v3rpc/watch.go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from math import inf
from typing import TYPE_CHECKING

from etcd_server.api.encoding import bytes_field, integer_field
from etcd_server.api.errors import Compacted
from etcd_server.api.keys import interval
from etcd_server.machine.watch_events import (
    FRAGMENT,
    NO_DELETE,
    NO_PUT,
    PREV_KV,
    Change,
    Event,
    EventEncoder,
    History,
    fragments,
)
from etcd_server.machine.watch_places import (
    ENDED,
    HELD,
    LAGGING,
    SYNCED,
    Audience,
    Group,
    Places,
    Stream,
    Watcher,
)
from etcd_server.storage.schema import main_revision

if TYPE_CHECKING:
    from etcd_server.api.proto.rpc_pb2 import WatchCreateRequest

EMPTY_RANGE = "mvcc: watcher range is empty"
DUPLICATE_WATCH_ID = "mvcc: duplicate watch ID provided on the WatchStream"

NO_WATCH_ID = -1
"""The watch_id of an answer that belongs to no watcher, or to all of its stream."""

ROWS_PER_RESPONSE = 1_000
"""etcd puts at most 1,000 revisions of history into one response (watchBatchMaxRevs); here, 1,000 changes."""
BYTES_PER_RESPONSE = 1_048_576
"""No further history is put into a response that exceeds this; older clients accept 4 MiB at once."""
ROWS_PER_READ = 128
GRPC_OVERHEAD_BYTES = 512 * 1024
MINIMUM_PROGRESS_INTERVAL_S = 0.1

_CREATED = integer_field(3, 1)
_CANCELED = integer_field(4, 1)
_FORM_OF_FILTER = {0: NO_PUT, 1: NO_DELETE}
"""By WatchCreateRequest.FilterType; other numbers filter nothing, as in etcd."""


@dataclass(frozen=True, slots=True)
class WatchStatistics:
    """Counts at one moment; `events_total` only grows."""

    streams: int
    watchers: int
    slow_watchers: int
    """Those that are behind, or whose stream is paused."""
    pending_events: int
    """Events in deliveries not yet taken."""
    events_total: int
    """Events in deliveries taken since the start."""


class WatchHub:
    """All watches of one member."""

    def __init__(
        self,
        history: History,
        header: Callable[[int], bytes],
        *,
        max_request_bytes: int = 1_572_864,
        progress_interval_s: float = 600.0,
        delivery_limit_bytes: int = 67_108_864,
    ) -> None:
        """`header(revision)` gives the serialised `header` field that a response begins with.

        Responses of watches that asked for fragments are split at `max_request_bytes` + 512 KiB. When more
        than `delivery_limit_bytes` would wait to be taken, the rest is left to `catch_up`.
        """
        self._history = history
        self._header = header
        self._fragment_bytes = max_request_bytes + GRPC_OVERHEAD_BYTES
        self._progress_interval_s = max(progress_interval_s, MINIMUM_PROGRESS_INTERVAL_S)
        self._delivery_limit_bytes = delivery_limit_bytes

        self._places = Places(history.revision)
        self._streams: dict[int, Stream] = {}
        self._next_progress_s = inf

        self._deliveries: list[tuple[int, bytes]] = []
        self._pending_bytes = 0
        self._pending_events = 0
        self._events_total = 0

    # --- streams --------------------------------------------------------------------------------------

    def open_stream(self, stream_id: int) -> None:
        """A Watch call has begun."""
        self._streams[stream_id] = Stream(stream_id)

    def close_stream(self, stream_id: int) -> None:
        """A Watch call is over: forget its watches, answer nothing.

        An unknown stream is ignored, here and below: what a client sent may be read after it has left.
        """
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            for watcher in stream.watchers.values():
                self._places.end(watcher)

    def pause(self, stream_id: int) -> None:
        """The client reads too slowly: give it no events and no progress until `resume`.

        Answers to its own requests (created, canceled) are small, one for each request, and still go out.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.paused:
            return
        stream.paused = True
        for watcher in stream.watchers.values():
            if watcher.place in (SYNCED, LAGGING):
                self._places.leave(watcher)
                self._places.settle(watcher)

    def resume(self, stream_id: int) -> None:
        """The client reads again: what it missed comes from history."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.paused:
            return
        stream.paused = False
        for watcher in stream.watchers.values():
            if watcher.place == HELD:
                self._places.settle(watcher)
        self._answer_progress(stream)

    # --- what a client asks for -------------------------------------------------------------------------

    def create(self, stream_id: int, request: WatchCreateRequest, now: float) -> None:
        """Begin a watch. `now`: seconds of the clock that `tick` is called with."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        watched = interval(request.key or b"\0", request.range_end)
        if request.start_revision < 0:
            self.refuse(stream_id, Compacted.text)
        elif watched.is_empty:
            self.refuse(stream_id, EMPTY_RANGE)
        elif request.watch_id and request.watch_id in stream.watchers:
            self.refuse(stream_id, DUPLICATE_WATCH_ID)
        else:
            watch_id = request.watch_id or stream.free_watch_id()
            position = request.start_revision or self._places.revision + 1
            group = self._places.group(watched)
            watcher = stream.watchers[watch_id] = Watcher(stream, watch_id, group, _form(request), position)
            if request.progress_notify:
                self._expect_progress(watcher, now)
            self._control(watcher, _CREATED)
            if request.start_revision > self._places.revision:
                self._places.wait(watcher)
            else:
                self._places.settle(watcher)

    def refuse(self, stream_id: int, reason: str) -> None:
        """Answer a create request with `created`, `canceled` and the reason: nothing is watched."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            fields = integer_field(2, NO_WATCH_ID) + _CREATED + _CANCELED + bytes_field(6, reason.encode())
            self._send(stream, self._header(self._places.revision) + fields)

    def cancel(self, stream_id: int, watch_id: int) -> None:
        """End a watch at its client's request. An unknown one is ignored, as etcd does."""
        stream = self._streams.get(stream_id)
        watcher = stream.watchers.pop(watch_id, None) if stream is not None else None
        if watcher is not None:
            self._places.end(watcher)
            self._control(watcher, _CANCELED)
            self._answer_progress(watcher.stream)

    def progress(self, stream_id: int) -> None:
        """Answer a progress request: one response with watch_id -1, whose revision is behind all later
        events.

        Not answered when the stream watches nothing or waits for a revision that is not there yet (etcd:
        progressIfSync). While some of its watches are behind, the answer waits for them; etcd drops it then.
        """
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.progress_wanted = True
            self._answer_progress(stream)

    # --- what the store tells ---------------------------------------------------------------------------

    def notify(self, changes: Sequence[Change]) -> None:
        """Changes have been applied: in order, no revision left out since the last call.

        Raises ValueError when they do not follow on the hub's revision: events would be lost or repeated.
        """
        places = self._places
        for revision, events in changes:
            if revision != places.revision + 1:
                raise ValueError(f"changes of revision {revision} handed to a watch hub at {places.revision}")
            if revision >= places.next_future:
                places.release_future(revision)
            places.revision = revision
            if len(places.index):
                self._publish(events)

    def compacted(self, revision: int) -> None:
        """History before `revision` is gone: tell the watches that still wanted some of it.

        Those of paused streams are told after they are resumed.
        """
        for position in [position for position in self._places.lagging if position < revision]:
            self._end_compacted(position, revision)

    def restored(self) -> None:
        """The store was replaced by a newer one (another member's snapshot): every watch goes on from its
        position, in the new history.

        Raises ValueError when the new store is older: watches would go back in time.
        """
        places = self._places
        if self._history.revision < places.revision:
            raise ValueError(f"store restored at {self._history.revision}, watches are at {places.revision}")
        watchers = [watcher for stream in self._streams.values() for watcher in stream.watchers.values()]
        synced = [watcher for watcher in watchers if watcher.place == SYNCED]
        for watcher in synced:
            places.leave(watcher)
        places.revision = self._history.revision
        places.release_future(places.revision)
        for watcher in synced:
            places.settle(watcher)

    def catch_up(self, budget_rows: int) -> bool:
        """Read about `budget_rows` events of history for watches that are behind; True when some still
        are."""
        lagging = self._places.lagging
        while lagging and budget_rows > 0 and self._pending_bytes < self._delivery_limit_bytes:
            position = next(iter(lagging))
            floor = self._history.compacted_revision
            if position < floor:
                budget_rows -= len(lagging[position])
                self._end_compacted(position, floor)
            else:
                budget_rows -= self._catch_up_from(position, floor, min(budget_rows, ROWS_PER_RESPONSE))
        return bool(lagging)

    def tick(self, now: float) -> None:
        """Send the progress notices that are due: to watches that asked for them, are abreast of the store,
        and were sent no event since the last one was due."""
        if now < self._next_progress_s:
            return
        self._next_progress_s = inf
        for stream in self._streams.values():
            if stream.progress_watchers:
                if stream.progress_due_s <= now:
                    stream.progress_due_s = now + self._interval_s(stream)
                    self._notify_progress(stream)
                self._next_progress_s = min(self._next_progress_s, stream.progress_due_s)

    def cancel_all(self, reason: str) -> None:
        """End every watch and say why; the streams stay open."""
        fields = _CANCELED + bytes_field(6, reason.encode())
        for stream in self._streams.values():
            for watcher in stream.watchers.values():
                if watcher.place != ENDED:
                    self._places.end(watcher)
                    self._control(watcher, fields)
            stream.watchers.clear()
            stream.progress_wanted = False

    def take_deliveries(self) -> list[tuple[int, bytes]]:
        """(stream id, serialised WatchResponse) of everything to be sent since the last call, in order."""
        deliveries, self._deliveries = self._deliveries, []
        self._events_total += self._pending_events
        self._pending_bytes = self._pending_events = 0
        return deliveries

    def statistics(self) -> WatchStatistics:
        """Counted by looking at every watch: for a metrics page, not for each turn."""
        places = [watcher.place for stream in self._streams.values() for watcher in stream.watchers.values()]
        return WatchStatistics(
            streams=len(self._streams),
            watchers=len(places) - places.count(ENDED),
            slow_watchers=places.count(LAGGING) + places.count(HELD),
            pending_events=self._pending_events,
            events_total=self._events_total,
        )

    # --- events -------------------------------------------------------------------------------------------

    def _publish(self, events: list[Event]) -> None:
        """Give the events of the current revision to the watchers that are abreast of it."""
        matched: dict[Group, list[Event]] = {}
        for event in events:
            for group in self._places.index.match(event[1]):
                matched.setdefault(group, []).append(event)
        if not matched:
            return
        encoder = EventEncoder(self._history, previous_from=0)
        header = self._header(self._places.revision)
        for group, its_events in matched.items():
            for audience in group.audiences.values():
                fields = encoder.fields(its_events, audience.form) if audience.count else None
                if fields:
                    self._publish_to(audience, header, fields)

    def _publish_to(self, audience: Audience, header: bytes, fields: list[bytes]) -> None:
        body = b"".join(fields)
        size_bytes = (len(header) + len(body)) * audience.count
        if self._pending_bytes + size_bytes > self._delivery_limit_bytes:
            self._leave_to_history(audience)
            return
        for id_field, members in audience.members.items():
            if audience.form & FRAGMENT:
                for response in fragments(header + id_field, fields, self._fragment_bytes):
                    self._deliveries.extend(zip(members, repeat(response)))
            else:
                self._deliveries.extend(zip(members, repeat(b"".join((header, id_field, body)))))
        audience.last_event_revision = self._places.revision
        self._pending_bytes += size_bytes
        self._pending_events += len(fields) * audience.count

    def _leave_to_history(self, audience: Audience) -> None:
        """Too much waits to be sent: these watchers get the current revision, and what follows, by
        `catch_up`."""
        for watcher in [watcher for members in audience.members.values() for watcher in members.values()]:
            self._places.leave(watcher)
            watcher.position = self._places.revision
            self._places.settle(watcher)

    def _catch_up_from(self, position: int, floor: int, limit_rows: int) -> int:
        """Give one stretch of history to all watchers whose position lies in it; returns the events read.

        The header says the current revision, however far back the events are, as etcd's does.
        """
        events, read_to = self._read(position, limit_rows)
        cost = max(len(events), 1)
        waiting = {p: list(w) for p, w in self._places.lagging.items() if position <= p <= read_to}
        wanted: dict[Group, list[Event]] = {w.group: [] for watchers in waiting.values() for w in watchers}
        for event in events:
            for group in self._places.index.match(event[1]):
                if group in wanted:
                    wanted[group].append(event)

        encoder = EventEncoder(self._history, previous_from=floor)
        header = self._header(self._places.revision)
        for first, watchers in waiting.items():
            made: dict[tuple[Group, int, bytes], tuple[list[bytes], int]] = {}
            for watcher in watchers:
                if self._pending_bytes >= self._delivery_limit_bytes:
                    return cost
                name = (watcher.group, watcher.form, watcher.id_field)
                if name not in made:
                    later = [e for e in wanted[watcher.group] if main_revision(e[2]) >= first]
                    fields = encoder.fields(later, watcher.form)
                    made[name] = self._responses(header + watcher.id_field, watcher.form, fields), len(fields)
                responses, event_count = made[name]
                for response in responses:
                    self._send(watcher.stream, response)
                self._pending_events += event_count
                watcher.told = watcher.told or event_count > 0
                self._places.leave(watcher)
                watcher.position = read_to + 1
                self._places.settle(watcher)
                self._answer_progress(watcher.stream)
        return cost

    def _read(self, first: int, limit_rows: int) -> tuple[list[Event], int]:
        """Events from revision `first` on, and the revision up to which they are all there is."""
        events: list[Event] = []
        size_bytes = 0
        last = self._places.revision
        while first <= last and len(events) < limit_rows and size_bytes < BYTES_PER_RESPONSE:
            rows = self._history.events_since(first, last, min(limit_rows - len(events), ROWS_PER_READ))
            if not rows:
                return events, last
            events.extend([(row[1], row[2], row[0], row[3], row[4]) for row in rows])
            size_bytes += sum(len(row[3]) for row in rows)
            first = main_revision(rows[-1][0]) + 1
        return events, first - 1

    def _responses(self, head: bytes, form: int, fields: list[bytes]) -> list[bytes]:
        if not fields:
            return []
        if form & FRAGMENT:
            return fragments(head, fields, self._fragment_bytes)
        return [head + b"".join(fields)]

    # --- answers ------------------------------------------------------------------------------------------

    def _send(self, stream: Stream, response: bytes) -> None:
        self._deliveries.append((stream.stream_id, response))
        self._pending_bytes += len(response)

    def _control(self, watcher: Watcher, fields: bytes) -> None:
        self._send(watcher.stream, self._header(self._places.revision) + watcher.id_field + fields)

    def _end_compacted(self, position: int, floor: int) -> None:
        """Tell the watchers at `position` that their history is gone.

        As in etcd, the header's revision is 0, and the number stays taken until the client cancels it.
        """
        header = self._header(0)
        fields = _CANCELED + integer_field(5, floor)
        for watcher in list(self._places.lagging[position]):
            self._places.end(watcher)
            self._send(watcher.stream, header + watcher.id_field + fields)
            self._answer_progress(watcher.stream)

    def _answer_progress(self, stream: Stream) -> None:
        """Answer a waiting progress request, if there is one and every watch of the stream has what there
        is."""
        if not stream.progress_wanted or stream.paused or stream.lagging:
            return
        stream.progress_wanted = False
        if not stream.future and any(watcher.place == SYNCED for watcher in stream.watchers.values()):
            self._send(stream, self._header(self._places.revision) + integer_field(2, NO_WATCH_ID))

    def _expect_progress(self, watcher: Watcher, now: float) -> None:
        stream = watcher.stream
        if not stream.progress_watchers:
            stream.progress_due_s = now + self._interval_s(stream)
            self._next_progress_s = min(self._next_progress_s, stream.progress_due_s)
        stream.progress_watchers[watcher.watch_id] = watcher

    def _interval_s(self, stream: Stream) -> float:
        """The interval and up to a tenth more, so that streams opened together are not all served together.

        The share is spread evenly by the stream's number (Fibonacci hashing): etcd draws it at random.
        """
        spread = (stream.stream_id * 0x9E37_79B9_7F4A_7C15 & 0xFFFF_FFFF_FFFF_FFFF) / 2**64
        return self._progress_interval_s * (1 + spread / 10)

    def _notify_progress(self, stream: Stream) -> None:
        header = self._header(self._places.revision)
        for watcher in stream.progress_watchers.values():
            if watcher.place == SYNCED and not watcher.was_told():
                self._send(stream, header + watcher.id_field)
            watcher.told = False
            watcher.quiet_since = self._places.revision


def _form(request: WatchCreateRequest) -> int:
    form = (PREV_KV if request.prev_kv else 0) | (FRAGMENT if request.fragment else 0)
    for filter_type in request.filters:
        form |= _FORM_OF_FILTER.get(filter_type, 0)
    return form
