"""The watch hub against a ledger of all changes: etcd's nine properties of a watch.

Filter, ordered, unique, atomic, reliable and resumable are one statement here: what a watch has received is
at every moment the list of all changes since its start that it asked for, cut behind a whole revision.
Bookmarkable, is-create and prev-kv are checked on each response (etcd: tests/robustness/validate/watch.go).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_server.api.keys import interval
from etcd_server.api.proto import kv_pb2, rpc_pb2
from etcd_server.machine.watch_events import Change
from etcd_server.machine.watchers import GRPC_OVERHEAD_BYTES
from tests.unit.machine.watchers_world import PUT, World

KEYS = [b"a", b"a\0", b"ab", b"abc", b"a\xff", b"b", b"\xff"]
RANGES = [(key, b"") for key in KEYS] + [
    (b"", b""),
    (b"a", b"b"),
    (b"ab", b"ac"),
    (b"a\xff", b"b"),
    (b"a", b"a\0"),
    (b"ab", b"b\0"),
    (b"a", b"\0"),
    (b"", b"\0"),
    (b"\xff", b"\0"),
    (b"b", b"a"),
]
STREAMS = [1, 2, 3]
NOPUT = rpc_pb2.WatchCreateRequest.NOPUT
NODELETE = rpc_pb2.WatchCreateRequest.NODELETE


@dataclass
class Event:
    """One line of the ledger."""

    revision: int
    kind: int
    key: bytes
    kv: kv_pb2.KeyValue
    before: kv_pb2.KeyValue | None


@dataclass
class Watch:
    """What one watch asked for and what it has received."""

    request: rpc_pb2.WatchCreateRequest
    start: int
    received: list[kv_pb2.Event] = field(default_factory=list)
    open_fragment: bool = False
    compact_revision: int = 0

    def wants(self, event: Event) -> bool:
        watched = interval(self.request.key or b"\0", self.request.range_end)
        filtered = (NODELETE if event.kind else NOPUT) in self.request.filters
        return event.revision >= self.start and watched.contains(event.key) and not filtered


requests = st.builds(
    lambda watched, **fields: rpc_pb2.WatchCreateRequest(key=watched[0], range_end=watched[1], **fields),
    st.sampled_from(RANGES),
    progress_notify=st.booleans(),
    prev_kv=st.booleans(),
    fragment=st.booleans(),
    filters=st.lists(st.sampled_from([0, 1]), max_size=1),
    watch_id=st.sampled_from([0, 0, 0, 1, 5]),
)
transactions = st.dictionaries(
    st.sampled_from(KEYS), st.one_of(st.none(), st.binary(max_size=40)), min_size=1, max_size=4
)


class Model:
    """A hub, its streams' clients, and the ledger that they are held against."""

    def __init__(self, limit: int, fragment_bytes: int) -> None:
        self.world = World(
            delivery_limit_bytes=limit,
            max_request_bytes=fragment_bytes - GRPC_OVERHEAD_BYTES,
            progress_interval_s=10.0,
        )
        self.fragment_bytes = fragment_bytes
        self.ledger: list[Event] = []
        self.watches: dict[tuple[int, int], Watch] = {}
        self.paused: set[int] = set()
        self.untold: list[Change] = []
        self.now = 0.0
        for stream_id in STREAMS:
            self.world.hub.open_stream(stream_id)

    # --- what happens -------------------------------------------------------------------------------

    def apply(self, transaction: dict[bytes, bytes | None]) -> None:
        history = self.world.history
        before = {key: kv for key, (_, kv) in history.live.items()}
        operations = [
            (key, value) for key, value in transaction.items() if value is not None or key in before
        ]
        if operations:
            change = history.apply(*operations)
            self.untold.append(change)
            for kind, key, _, kv, _ in change[1]:
                message = kv_pb2.KeyValue.FromString(kv)
                self.ledger.append(Event(change[0], kind, key, message, before.get(key)))

    def tell(self) -> None:
        self.world.hub.notify(self.untold)
        self.untold = []

    def write(self, batch: list[dict[bytes, bytes | None]]) -> None:
        for transaction in batch:
            self.apply(transaction)
        self.tell()

    def install_snapshot(self, batch: list[dict[bytes, bytes | None]], compact: bool) -> None:
        for transaction in batch:
            self.apply(transaction)
        self.untold = []
        history = self.world.history
        if compact:
            history.compact(max(history.compacted_revision, history.revision - 1))
        self.world.hub.restored()

    def create(self, stream_id: int, request: rpc_pb2.WatchCreateRequest, offset: int, now: bool) -> None:
        revision = self.world.history.revision
        request.start_revision = 0 if now else max(revision + offset, 1)
        self.world.hub.create(stream_id, request, self.now)
        self.receive()
        answers = [(stream, response) for stream, response in self.answers if response.created]
        ((answered, answer),) = answers
        assert (answered, answer.header.revision) == (stream_id, revision)
        if interval(request.key or b"\0", request.range_end).is_empty:
            assert answer.canceled and answer.watch_id == -1
        elif request.watch_id and (stream_id, request.watch_id) in self.watches:
            assert answer.canceled and "duplicate" in answer.cancel_reason
        else:
            assert not answer.canceled and (stream_id, answer.watch_id) not in self.watches
            start = request.start_revision or revision + 1
            self.watches[stream_id, answer.watch_id] = Watch(request, start)

    def resume_watch(self, stream_id: int, choice: int) -> None:
        """As a client does that was cut off: the same watch again, behind the last event that it has."""
        if not self.watches:
            return
        watch = list(self.watches.values())[choice % len(self.watches)]
        request = rpc_pb2.WatchCreateRequest()
        request.CopyFrom(watch.request)
        request.watch_id = 0
        last = watch.received[-1].kv.mod_revision if watch.received else watch.start - 1
        self.create(stream_id, request, last + 1 - self.world.history.revision, now=False)

    def cancel(self, stream_id: int, watch_id: int) -> None:
        self.receive()
        self.world.hub.cancel(stream_id, watch_id)
        self.receive()
        cancelled = [r.watch_id for s, r in self.answers if s == stream_id and r.canceled]
        assert cancelled == ([watch_id] if (stream_id, watch_id) in self.watches else [])
        self.watches.pop((stream_id, watch_id), None)

    def reconnect(self, stream_id: int) -> None:
        self.receive()
        self.world.hub.close_stream(stream_id)
        self.world.hub.open_stream(stream_id)
        self.paused.discard(stream_id)
        self.watches = {name: watch for name, watch in self.watches.items() if name[0] != stream_id}

    def pause(self, stream_id: int) -> None:
        self.receive()
        self.world.hub.pause(stream_id)
        self.paused.add(stream_id)

    def resume(self, stream_id: int) -> None:
        self.paused.discard(stream_id)
        self.world.hub.resume(stream_id)

    def ask_for_progress(self, stream_id: int) -> None:
        self.world.hub.progress(stream_id)

    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.world.hub.tick(self.now)

    def compact(self, back: int, tell: bool) -> None:
        history = self.world.history
        revision = history.revision - back
        if revision > max(history.compacted_revision, 0):
            history.compact(revision)
            if tell:
                self.world.hub.compacted(revision)

    def catch_up(self, budget_rows: int) -> None:
        self.world.hub.catch_up(budget_rows)

    def receive(self) -> None:
        """Read what was sent, and check each response as it comes."""
        self.answers = []
        for stream_id, data in self.world.hub.take_deliveries():
            response = rpc_pb2.WatchResponse.FromString(data)
            self.answers.append((stream_id, response))
            if not response.created:
                assert stream_id not in self.paused or (response.canceled and not response.compact_revision)
            if response.events:
                self.receive_events(self.watches[stream_id, response.watch_id], response)
            elif response.compact_revision:
                self.watches[stream_id, response.watch_id].compact_revision = response.compact_revision
            elif not response.created and not response.canceled:
                self.receive_progress(stream_id, response)

    def receive_events(self, watch: Watch, response: rpc_pb2.WatchResponse) -> None:
        assert not watch.compact_revision
        watch.received += response.events
        watch.open_fragment = response.fragment
        if watch.request.fragment:
            assert len(response.events) == 1 or response.ByteSize() < self.fragment_bytes
        else:
            assert not response.fragment
        assert response.header.revision >= response.events[-1].kv.mod_revision
        for event in response.events:
            line = next(
                e for e in self.ledger if (e.revision, e.key) == (event.kv.mod_revision, event.kv.key)
            )
            assert event.kv == line.kv
            assert (event.type == PUT and event.kv.create_revision == event.kv.mod_revision) == (
                event.type == PUT and line.before is None
            )
            if event.HasField("prev_kv"):
                assert watch.request.prev_kv and event.prev_kv == line.before
            elif watch.request.prev_kv:
                assert line.before is None or self.world.history.compacted_revision >= line.revision

    def receive_progress(self, stream_id: int, response: rpc_pb2.WatchResponse) -> None:
        for (stream, watch_id), watch in self.watches.items():
            if stream == stream_id and response.watch_id in (-1, watch_id) and not watch.compact_revision:
                assert response.header.revision >= (watch.request.start_revision or watch.start - 1)
                assert [event.kv.mod_revision for event in watch.received] == [
                    line.revision
                    for line in self.ledger
                    if watch.wants(line) and line.revision <= response.header.revision
                ]

    # --- what always holds ----------------------------------------------------------------------------

    def check(self) -> None:
        for watch in self.watches.values():
            expected = [line for line in self.ledger if watch.wants(line)]
            got = [(event.kv.mod_revision, event.kv.key) for event in watch.received]
            assert got == [(line.revision, line.key) for line in expected[: len(got)]]
            if got and len(expected) > len(got) and not watch.open_fragment:
                assert expected[len(got)].revision > got[-1][0]

    def finish(self) -> None:
        """Everyone reads again: nothing may be left over."""
        for stream_id in STREAMS:
            self.resume(stream_id)
        for _ in range(10_000):
            more = self.world.hub.catch_up(7)
            self.receive()
            if not more:
                break
        self.check()
        for watch in self.watches.values():
            missing = [line.revision for line in self.ledger if watch.wants(line)][len(watch.received) :]
            if watch.compact_revision:
                next_wanted = watch.received[-1].kv.mod_revision + 1 if watch.received else watch.start
                assert next_wanted < watch.compact_revision
            else:
                assert not missing and not watch.open_fragment
        statistics = self.world.hub.statistics()
        assert statistics.slow_watchers == statistics.pending_events == 0


streams = st.sampled_from(STREAMS)
batches = st.lists(transactions, min_size=1, max_size=4)

# How often, and with what arguments, each thing happens.
STEPS: dict[str, tuple[int, dict[str, st.SearchStrategy[object]]]] = {
    "write": (12, {"batch": batches}),
    "create": (
        6,
        {"stream_id": streams, "request": requests, "offset": st.integers(-15, 4), "now": st.booleans()},
    ),
    "resume_watch": (2, {"stream_id": streams, "choice": st.integers(0, 20)}),
    "cancel": (1, {"stream_id": streams, "watch_id": st.integers(0, 6)}),
    "reconnect": (1, {"stream_id": streams}),
    "pause": (2, {"stream_id": streams}),
    "resume": (4, {"stream_id": streams}),
    "ask_for_progress": (4, {"stream_id": streams}),
    "time_passes": (3, {"seconds": st.floats(0.0, 20.0)}),
    "compact": (2, {"back": st.integers(0, 15), "tell": st.booleans()}),
    "install_snapshot": (1, {"batch": batches, "compact": st.booleans()}),
    "catch_up": (6, {"budget_rows": st.integers(1, 20)}),
    "receive": (6, {}),
}
KINDS = [kind for kind, (weight, _) in STEPS.items() for _ in range(weight)]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.data_too_large, HealthCheck.too_slow]
)
@given(
    st.data(),
    st.sampled_from([80, 400, 1_000_000]),
    st.sampled_from([60, 150, 10_000]),
    st.integers(20, 120),
)
def test_every_watch_receives_exactly_what_it_asked_for(
    data: st.DataObject, limit: int, fragment_bytes: int, steps: int
) -> None:
    model = Model(limit, fragment_bytes)
    for _ in range(steps):
        kind = data.draw(st.sampled_from(KINDS))
        arguments = {name: data.draw(strategy) for name, strategy in STEPS[kind][1].items()}
        getattr(model, kind)(**arguments)
        model.check()
    model.finish()
