"""A store in memory and a reader of responses, for the tests of the watch hub."""

from __future__ import annotations

from etcd_server.api.encoding import message_field, varint
from etcd_server.api.proto import kv_pb2, rpc_pb2
from etcd_server.machine.watch_events import Change, Event, HistoryRow
from etcd_server.machine.watchers import WatchHub

PUT = kv_pb2.Event.PUT
DELETE = kv_pb2.Event.DELETE


def header(revision: int) -> bytes:
    """A header with a revision alone."""
    return message_field(1, b"\x18" + varint(revision))


class MemoryHistory:
    """What the hub reads of a store: every change since the last compaction."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted_revision = -1
        self.rows: list[HistoryRow] = []
        self.live: dict[bytes, tuple[int, kv_pb2.KeyValue]] = {}
        self.rows_read = 0

    def apply(self, *operations: tuple[bytes, bytes | None]) -> Change:
        """One revision: each (key, value) is put, each (key, None) deleted."""
        self.revision += 1
        events: list[Event] = []
        for sub, (key, value) in enumerate(operations):
            packed = self.revision << 24 | sub
            previous, old = self.live.pop(key, (0, kv_pb2.KeyValue()))
            if value is None:
                kv = kv_pb2.KeyValue(key=key, mod_revision=self.revision)
            else:
                kv = kv_pb2.KeyValue(
                    key=key,
                    value=value,
                    mod_revision=self.revision,
                    create_revision=old.create_revision or self.revision,
                    version=old.version + 1,
                )
                self.live[key] = (packed, kv)
            event = (DELETE if value is None else PUT, key, packed, kv.SerializeToString(), previous)
            events.append(event)
            self.rows.append((packed, value is None, key, event[3], previous))
        return self.revision, events

    def compact(self, revision: int) -> None:
        """Forget what nobody can see at `revision` or later; deletions at `revision` itself stay."""
        self.compacted_revision = revision
        superseded = {row[4] for row in self.rows if row[0] >> 24 <= revision}
        self.rows = [
            row for row in self.rows if row[0] not in superseded and not (row[1] and row[0] >> 24 < revision)
        ]

    def events_since(self, first: int, up_to: int, limit_rows: int) -> list[HistoryRow]:
        found = [row for row in self.rows if first <= row[0] >> 24 <= up_to]
        if len(found) > limit_rows:
            last = found[limit_rows - 1][0] >> 24
            if found[limit_rows][0] >> 24 == last and found[0][0] >> 24 != last:
                last -= 1
            found = [row for row in found if row[0] >> 24 <= last]
        self.rows_read += len(found)
        return found

    def kv_at(self, packed_revision: int) -> bytes | None:
        return next((row[3] for row in self.rows if row[0] == packed_revision), None)


class World:
    """A store, a hub, and what its streams have been sent."""

    def __init__(self, **settings: float) -> None:
        self.history = MemoryHistory()
        self.hub = WatchHub(self.history, header, **settings)  # type: ignore[arg-type]

    def apply(self, *operations: tuple[bytes, bytes | None]) -> int:
        """One revision, told to the hub; returns it."""
        change = self.history.apply(*operations)
        self.hub.notify([change])
        return change[0]

    def put(self, key: bytes, value: bytes = b"v") -> int:
        return self.apply((key, value))

    def delete(self, key: bytes) -> int:
        return self.apply((key, None))

    def create(
        self, stream_id: int, key: bytes, range_end: bytes = b"", now: float = 0.0, **fields: object
    ) -> None:
        request = rpc_pb2.WatchCreateRequest(key=key, range_end=range_end, **fields)  # type: ignore[arg-type]
        self.hub.create(stream_id, request, now)

    def watch(
        self, stream_id: int, key: bytes, range_end: bytes = b"", now: float = 0.0, **fields: object
    ) -> None:
        """Open the stream and create one watch, without its `created` answer."""
        self.hub.open_stream(stream_id)
        self.create(stream_id, key, range_end, now, **fields)
        (created,) = self.take(stream_id)
        assert created.created and not created.canceled

    def take(self, stream_id: int | None = None) -> list[rpc_pb2.WatchResponse]:
        """The responses since the last call; given a stream, there must be none for others."""
        deliveries = self.hub.take_deliveries()
        if stream_id is not None:
            assert {stream for stream, _ in deliveries} <= {stream_id}
        return [rpc_pb2.WatchResponse.FromString(response) for _, response in deliveries]

    def catch_up(self, budget_rows: int = 1_000) -> None:
        while self.hub.catch_up(budget_rows):
            pass


def seen(responses: list[rpc_pb2.WatchResponse]) -> list[tuple[int, str]]:
    """(revision, "+key=value" or "-key") of each event."""
    return [
        (event.kv.mod_revision, f"-{event.kv.key.decode()}")
        if event.type == DELETE
        else (event.kv.mod_revision, f"+{event.kv.key.decode()}={event.kv.value.decode()}")
        for response in responses
        for event in response.events
    ]
