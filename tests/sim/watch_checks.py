"""The nine properties of watches that etcd promises, judged from what watchers were sent.

    filter        only events that the watch asked for
    ordered       revisions never go back
    unique        no event twice
    atomic        all events of a revision in one response, or in the fragments of one
    bookmarkable  nothing at or below a revision of which it was told that it has everything
    resumable     a watch from revision R begins with the first event at or after R
    is create     an event says that it made the key just when it did
    reliable      no event left out between two that came
    prev kv       the value before is shown just when it was asked for, and is the right one

Names and meaning: etcd tests/robustness/validate/watch.go and website `api_guarantees.md`. The truth is the
log, put through the plain model: every event of every revision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from etcd_server.api.proto import kv_pb2, rpc_pb2
from tests.properties.store_model import Event
from tests.sim.history import WatchSession, kv_text
from tests.sim.world import Violation


@dataclass(frozen=True, slots=True)
class Truth:
    """All events of the log, in order, and the last revision."""

    events: Sequence[Event]
    revision: int


def check_watch(sessions: Sequence[WatchSession], truth: Truth) -> None:
    """Judge one watch over all of its sessions. Raises Violation."""
    for session in sessions:
        check_session(session, truth)


def wanted(request: rpc_pb2.WatchCreateRequest, key: bytes, *, is_deletion: bool) -> bool:
    """Whether a watch asks for events of this kind on this key."""
    low, end = request.key, request.range_end
    inside = key == low if not end else key >= low and (end == b"\0" or key < end)
    return inside and (1 if is_deletion else 0) not in request.filters


def check_session(session: WatchSession, truth: Truth) -> None:
    """Judge one watch on one stream. Raises Violation."""
    request = session.request
    received: list[kv_pb2.Event] = []
    start = request.start_revision
    bookmark = compacted = 0
    fragments_of = 0
    for delivery in session.deliveries:
        response = delivery.response
        if response.created and not start:
            start = response.header.revision + 1
        if response.canceled:
            compacted = response.compact_revision
        elif not response.events and not response.created:
            bookmark = max(bookmark, response.header.revision)
        if not response.events:
            continue
        first, last = response.events[0].kv.mod_revision, response.events[-1].kv.mod_revision
        if first <= bookmark:
            raise Violation(
                "watch bookmarkable", f"told of {bookmark}, then came {kv_text(response.events[0].kv)}"
            )
        before = received[-1].kv.mod_revision if received else 0
        if first < before:
            raise Violation("watch ordered", f"revision {first} after {before}, {_where(session)}")
        if first == before and fragments_of != first:
            name = "watch unique" if response.events[0] in received else "watch atomic"
            raise Violation(name, f"revision {first} comes in two responses, {_where(session)}")
        fragments_of = last if response.fragment else 0
        received.extend(response.events)
    expected = [
        event
        for event in truth.events
        if event.revision >= start and wanted(request, event.kv.key, is_deletion=event.is_deletion)
    ]
    _compare(session, received, expected, bookmark)
    if session.is_current and not compacted and start and len(received) < len(expected):
        raise Violation(
            "watch reliable",
            f"{len(received)} of {len(expected)} events came; "
            f"next {_expected_text(expected[len(received)])}, {_where(session)}",
        )


def _compare(
    session: WatchSession, received: Sequence[kv_pb2.Event], expected: Sequence[Event], bookmark: int
) -> None:
    """What came must be the beginning of what there is, event by event."""
    request = session.request
    # A transaction may delete a key and put it again: two events of one key at one revision.
    times = Counter((event.kv.key, event.revision) for event in expected)
    came: Counter[tuple[bytes, int]] = Counter()
    for position, event in enumerate(received):
        change = (event.kv.key, event.kv.mod_revision)
        came[change] += 1
        if came[change] > max(1, times[change]):
            raise Violation("watch unique", f"{kv_text(event.kv)} came twice, {_where(session)}")
        if position and event.kv.mod_revision < received[position - 1].kv.mod_revision:
            raise Violation("watch ordered", f"{kv_text(event.kv)} came late, {_where(session)}")
        is_deletion = event.type == kv_pb2.Event.DELETE
        if position >= len(expected) or not wanted(request, event.kv.key, is_deletion=is_deletion):
            raise Violation("watch filter", f"{kv_text(event.kv)} was not asked for, {_where(session)}")
        truth = expected[position]
        if (event.kv.key, event.kv.mod_revision) != (truth.kv.key, truth.kv.mod_revision):
            if request.start_revision and event.kv.mod_revision < request.start_revision:
                name = "watch filter"
            elif position == 0:
                name = "watch resumable"
            else:
                name = "watch reliable"
            raise Violation(
                name, f"{kv_text(event.kv)} instead of {_expected_text(truth)}, {_where(session)}"
            )
        if is_deletion != truth.is_deletion or event.kv != truth.kv:
            created = event.kv.create_revision == event.kv.mod_revision
            name = "watch is create" if created != (truth.kv.version == 1) else "watch reliable"
            raise Violation(
                name, f"{kv_text(event.kv)} instead of {_expected_text(truth)}, {_where(session)}"
            )
        if event.HasField("prev_kv") and (not request.prev_kv or event.prev_kv != truth.before):
            raise Violation("watch prev kv", f"{kv_text(event.prev_kv)} before {kv_text(event.kv)}")
        if request.prev_kv and truth.before is not None and not event.HasField("prev_kv"):
            _check_missing_previous(session, event)
    missed = [event for event in expected[len(received) :] if event.revision <= bookmark]
    if missed:
        raise Violation(
            "watch bookmarkable", f"told of {bookmark} without {_expected_text(missed[0])}, {_where(session)}"
        )


def _check_missing_previous(session: WatchSession, event: kv_pb2.Event) -> None:
    """The value before may be absent only where the past is compacted: who reads at once gets it always."""
    # A watcher that catches up after a compaction gets no values from before it (as in etcd); whether there
    # was one is not known here, so only a store that was never compacted is held to it.
    if not session.may_lack_previous:
        raise Violation("watch prev kv", f"none for {kv_text(event.kv)}, {_where(session)}")


def _expected_text(event: Event) -> str:
    return f"{'deletion of ' if event.is_deletion else ''}{kv_text(event.kv)}"


def _where(session: WatchSession) -> str:
    request = session.request
    return (
        f"watch of [{request.key!r}, {request.range_end!r}) from {request.start_revision} "
        f"at member {session.member[0]}, life {session.member[1]}"
    )
