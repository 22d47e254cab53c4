"""Changes as the bytes of etcdserverpb.WatchResponse.

A protobuf message is the concatenation of its fields, so a response is made by joining pieces: header,
watch_id, flags, events. The event of a change is the same bytes for everyone who wants it in the same form,
so it is made once and only the few bytes before it differ. Pure functions of the change records and of the
history behind them.

Field numbers: etcd api/etcdserverpb/rpc.proto (WatchResponse), api/mvccpb/kv.proto (Event).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from etcd_server.api.encoding import integer_field, message_field
from etcd_server.storage.schema import main_revision

Event = tuple[int, bytes, int, bytes, int]
"""(kind, key, packed_revision, kv, previous): one change of one key. `kind` is 0 for a put and 1 for a
deletion (mvccpb.Event.EventType); `kv` is a serialised mvccpb.KeyValue (of a deletion: key and mod_revision
only); `previous` is the packed revision of the value that this superseded, 0 when the key is new."""

Change = tuple[int, list[Event]]
"""(main_revision, its events in order)."""

HistoryRow = tuple[int, bool, bytes, bytes, int]
"""(packed_revision, is_tombstone, key, kv, previous): an event as it lies in the history."""

# The form in which a watcher wants its events: any of these, added up.
PREV_KV = 1
NO_PUT = 2
NO_DELETE = 4
FRAGMENT = 8

_FRAGMENT = integer_field(7, 1)


class History(Protocol):
    """What the hub reads of the store. Revisions are main revisions unless called packed."""

    @property
    def revision(self) -> int:
        """The revision of the last change."""

    @property
    def compacted_revision(self) -> int:
        """History before this revision is gone; at it and after it, it is whole."""

    def events_since(
        self, first_main_revision: int, up_to_main_revision: int, limit_rows: int
    ) -> Sequence[HistoryRow]:
        """The changes of `first_main_revision` to `up_to_main_revision`, both included, in order.

        Whole revisions only: about `limit_rows` changes, and always at least the first revision that has any.
        """

    def kv_at(self, packed_revision: int) -> bytes | None:
        """The serialised KeyValue that was written at this packed revision; None when it is gone."""


class EventEncoder:
    """Makes the `events` fields (number 11, tag included) of events, each once for each form.

    Keep one for as long as the same events are being handed out, then drop it with what it remembers.
    """

    def __init__(self, history: History, previous_from: int) -> None:
        """`previous_from`: the oldest revision whose values may be shown as `prev_kv`.

        etcd reads a previous value at mod_revision - 1 and leaves it out when that is compacted; the same
        rule here keeps an answer from depending on how far the removal of compacted rows has come.
        """
        self._history = history
        self._previous_from = previous_from
        self._made: dict[tuple[int, int], bytes] = {}
        self._superseded: dict[int, int] = {}

    def fields(self, events: Sequence[Event], form: int) -> list[bytes]:
        """The fields of those events that `form` lets through, in order."""
        made = self._made
        with_previous = form & PREV_KV
        fields = []
        if with_previous:
            self._superseded.update([(event[2], event[4]) for event in events])
        for event in events:
            if form & (NO_DELETE if event[0] else NO_PUT):
                continue
            name = (event[2], with_previous)
            field = made.get(name)
            if field is None:
                field = made[name] = self._field(event, with_previous)
            fields.append(field)
        return fields

    def _field(self, event: Event, with_previous: int) -> bytes:
        kind, _, packed_revision, kv, previous = event
        message = integer_field(1, kind) + message_field(2, kv)
        if with_previous and previous and main_revision(packed_revision) > self._previous_from:
            # A txn may change a key twice. What was there before is the value before the txn; its revision is
            # handed out whole, so the steps back are all among the events seen.
            while main_revision(previous) == main_revision(packed_revision):
                previous = self._superseded[previous]
            previous_kv = self._history.kv_at(previous)
            if previous_kv is not None:
                message += message_field(3, previous_kv)
        return message_field(11, message)


def fragments(head: bytes, events: Sequence[bytes], size_bytes: int) -> list[bytes]:
    """One response cut into several of less than `size_bytes`, `fragment` set on all but the last.

    `head` is header and watch_id. A single event is never cut, however large (etcd: sendFragments in
    server/etcdserver/api/v3rpc/watch.go).
    """
    if len(events) < 2 or len(head) + sum(map(len, events)) < size_bytes:
        return [head + b"".join(events)]
    parts: list[list[bytes]] = [[]]
    size = len(head) + len(_FRAGMENT)
    room = size_bytes - size
    for event in events:
        if parts[-1] and len(event) >= room:
            parts.append([])
            room = size_bytes - size
        parts[-1].append(event)
        room -= len(event)
    whole = [head + _FRAGMENT + b"".join(part) for part in parts[:-1]]
    return [*whole, head + b"".join(parts[-1])]
