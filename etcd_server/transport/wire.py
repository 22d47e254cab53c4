"""Between the wire and the engine: events become batches, effects become answers. The only importer of
`_wire`.

The wire knows nothing of etcd, the engine nothing of gRPC; here a path finds its message class, bytes are
parsed, calls are grouped by method, and plain HTTP is handed to `http.py`. Work is done by the batch: for a
call there is one parse, one tuple and one entry in a dict.

Ids come from the wire and are positive; calls that the member makes itself (a health page that wants a read)
have negative ids, and their answers are handed to a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from etcd_server.api.errors import Code, EtcdError, MalformedMessage
from etcd_server.api.methods import METHODS, Kind
from etcd_server.services.events import (
    STREAM_HALF_CLOSE,
    STREAM_MESSAGE,
    STREAM_OPEN,
    STREAM_PAUSED,
    STREAM_REQUIRES_LEADER,
    STREAM_RESUMED,
    Batch,
    Effects,
)
from etcd_server.transport import _wire
from etcd_server.transport._wire import Wire, WireError
from etcd_server.transport.answers import error_text
from etcd_server.transport.peers import Links
from etcd_server.transport.snapshot_files import SnapshotFiles

__all__ = ["Transport", "WireError"]

CLIENT = "client"
"""Name of the listeners that serve clients; the others have the pages only."""
PEER = "peer"
"""Name of the listeners for other members."""
REQUIRE_LEADER = "hasleader"
"""Metadata, with the value "true": a call that a member without a leader refuses (etcd: rpctypes)."""
METADATA_KEYS = ("token", "authorization", REQUIRE_LEADER, "client-api-version")
MESSAGE_OVERHEAD_BYTES = 512 * 1024
"""What a gRPC message may be larger than a request (etcd: grpcOverheadBytes in api/v3rpc/grpc.go)."""
MAX_EVENTS = 4096

# What waits until the member serves: the events of calls and streams.
_OF_CLIENTS = frozenset(
    {
        _wire.CALL,
        _wire.OPEN,
        _wire.MESSAGE,
        _wire.HALF_CLOSE,
        _wire.PAUSED,
        _wire.RESUMED,
        _wire.CANCEL,
    }
)

_OF_FILES = frozenset({_wire.FILE_SENT, _wire.FILE_ASKED, _wire.FILE_RECEIVED, _wire.FILE_FAILED})

Parse = Callable[[bytes], Message]
AnswerFunction = Callable[["bytes | EtcdError"], None]


class Sink(Protocol):
    """Where the messages of a stream go that is not gRPC's."""

    def message(self, response: bytes) -> None: ...

    def end(self, error: EtcdError | None) -> None: ...


class Transport:
    """The client and peer ports of one member."""

    def __init__(self, methods: Iterable[str], max_request_bytes: int, **limits: Any) -> None:
        """`methods`: the paths that the engine serves. `limits`: of the wire, by its names."""
        self._rpcs = {path: METHODS[path] for path in methods}
        self._server_streams = {path for path, rpc in self._rpcs.items() if rpc.kind is Kind.SERVER_STREAM}
        self._parse: dict[str, Parse] = {path: rpc.request.FromString for path, rpc in self._rpcs.items()}
        self._wire = Wire(
            {path: _wire.MANY if rpc.kind is Kind.BIDI else _wire.ONE for path, rpc in self._rpcs.items()},
            metadata_keys=METADATA_KEYS,
            max_message_bytes=max_request_bytes + MESSAGE_OVERHEAD_BYTES,
            **limits,
        )
        self._open: dict[int, str] = {}  # every call and stream that is not over: its path
        self._functions: dict[int, AnswerFunction] = {}  # the member's own calls
        self._sinks: dict[int, Sink] = {}  # streams that came as plain HTTP
        self._next_own_id = -1
        self.is_serving = False
        """Until this is set, the calls of clients wait: a member that has just started knows no leader yet
        and may be behind."""
        self.links: Links | None = None
        self.files: SnapshotFiles | None = None
        """Both set once, before the first `gather`."""
        self._held: list[tuple[Any, ...]] = []
        self._early: list[tuple[Any, ...]] = []  # what came before there was a member
        self._replies: list[tuple[Any, ...]] = []
        self.started: dict[str, int] = dict.fromkeys(self._rpcs, 0)
        self.handled: dict[tuple[str, int], int] = {(path, 0): 0 for path in self._rpcs}

    # --- the port ---------------------------------------------------------------------------------------

    def listen(self, url: str, name: str) -> str:
        """Open a listener; returns its URL with the real port. Raises WireError."""
        return self._wire.listen(url, name)

    def post(self, news: object) -> None:
        """News for the loop, from any thread; it comes back from `gather`."""
        self._wire.post(news)

    def statistics(self) -> dict[str, int]:
        return self._wire.statistics()

    # --- links and files, for `peers.py` and `snapshot_files.py` ----------------------------------------

    def open_link(self, link: int, urls: list[str], hello: list[tuple[str, str]]) -> None:
        self._wire.open_link(link, urls, hello)

    def close_link(self, link: int) -> None:
        self._wire.close_link(link)

    def accept_link(self, link_id: int) -> None:
        self._replies.append((_wire.LINK_ACCEPT, link_id))

    def refuse_link(self, link_id: int, status: int, text: str) -> None:
        self._replies.append((_wire.LINK_REFUSE, link_id, status, text))

    def send_file(self, number: int, urls: list[str], path: str, headers: list[tuple[str, str]]) -> None:
        self._wire.send_file(number, urls, path, headers)

    def accept_file(self, file_id: int, path: str) -> None:
        self._replies.append((_wire.FILE_ACCEPT, file_id, path))

    def refuse_file(self, file_id: int, status: int, text: str) -> None:
        self._replies.append((_wire.FILE_REFUSE, file_id, status, text))

    def finish_file(self, file_id: int, status: int, text: str) -> None:
        self._replies.append((_wire.FILE_DONE, file_id, status, text))

    def link_statistics(self) -> Mapping[int, tuple[bool, int, int, int, int, float | None]]:
        return self._wire.link_statistics()

    @property
    def open_calls(self) -> int:
        """Calls and streams that have not ended."""
        return len(self._open)

    def stop_accepting(self) -> None:
        self._wire.stop_accepting()

    def close(self, grace_s: float) -> None:
        self._wire.close(grace_s)

    # --- in ---------------------------------------------------------------------------------------------

    def attend(self, timeout_s: float, refuses: Callable[[Sequence[tuple[str, str]]], bool]) -> None:
        """Before there is a member: answer plain HTTP requests of the peer port with 503 if `refuses` says
        so, given their headers. All else that comes waits for `gather`."""
        for event in self._wire.poll(timeout_s, MAX_EVENTS):
            if event[0] == _wire.HTTP and event[6][0] == PEER and refuses(event[4]):
                refusal = error_text(503, "the member is starting")
                self._replies.append((_wire.RESPOND, event[1], *refusal))
            else:
                self._early.append(event)
        if self._replies:
            replies, self._replies = self._replies, []
            self._wire.send(replies)

    def gather(self, timeout_s: float) -> tuple[Batch, list[object], list[tuple[Any, ...]]]:
        """Wait for events: the engine's batch, what threads have posted, and plain HTTP requests."""
        batch = Batch()
        posted: list[object] = []
        http: list[tuple[Any, ...]] = []
        calls = batch.calls
        for event in self._arrived(timeout_s):
            kind = event[0]
            if kind == _wire.CALL:
                _, call_id, path, data, connection, metadata = event
                if connection[0] != CLIENT:
                    self._turn_away(call_id, path)
                    continue
                try:
                    request = self._parse[path](data)
                except DecodeError:
                    self._refuse(call_id, path)
                    continue
                self._open[call_id] = path
                requires_leader = metadata is not None and metadata.get(REQUIRE_LEADER) == "true"
                if path in self._server_streams:
                    self.started[path] += 1
                    batch.streams.append((STREAM_OPEN, call_id, path))
                    if requires_leader:
                        batch.streams.append((STREAM_REQUIRES_LEADER, call_id, None))
                    batch.streams.append((STREAM_MESSAGE, call_id, request))
                    batch.streams.append((STREAM_HALF_CLOSE, call_id, None))
                    continue
                if requires_leader:
                    batch.requiring_leader.append(call_id)
                if path in calls:
                    calls[path].append((call_id, request))
                else:
                    calls[path] = [(call_id, request)]
            elif kind == _wire.FRAME_IN:
                if self.links is not None:
                    self.links.frame(event[1], event[2], batch)
            elif kind == _wire.POSTED:
                posted.append(event[1])
            elif kind == _wire.HTTP:
                http.append(event)
            elif kind in (_wire.LINK_UP, _wire.LINK_DOWN, _wire.LINK_ASKED):
                self._take_link_event(kind, event, batch)
            elif kind in _OF_FILES:
                self._take_file_event(kind, event)
            else:
                self._take_stream_event(kind, event, batch)
        for path, group in calls.items():
            self.started[path] += len(group)
        if self.links is not None:
            self.links.take_news(batch)
        if self.files is not None:
            self.files.take_news(batch)
        return batch, posted, http

    def _arrived(self, timeout_s: float) -> list[tuple[Any, ...]]:
        if self._early:
            events, self._early = self._early, []
        else:
            events = self._wire.poll(timeout_s, MAX_EVENTS)
        if not self.is_serving:
            self._held += [event for event in events if event[0] in _OF_CLIENTS]
            return [event for event in events if event[0] not in _OF_CLIENTS]
        if self._held:
            held, self._held = self._held, []
            return held + events
        return events

    def _take_link_event(self, kind: int, event: tuple[Any, ...], batch: Batch) -> None:
        links = self.links
        if links is None:
            return
        if kind == _wire.LINK_UP:
            links.up(event[1], event[2])
        elif kind == _wire.LINK_DOWN:
            links.down(event[1], event[2])
        elif event[3][0] == PEER:
            links.asked(event[1], event[2], batch)
        else:
            self.refuse_link(event[1], 404, "this port is not for members")

    def _take_file_event(self, kind: int, event: tuple[Any, ...]) -> None:
        files = self.files
        if files is None:
            return
        if kind == _wire.FILE_SENT:
            files.sent(event[1], event[2])
        elif kind == _wire.FILE_RECEIVED:
            files.received(event[1], event[3], event[4])
        elif kind == _wire.FILE_FAILED:
            files.failed(event[1], event[2])
        elif event[3][0] == PEER:
            files.asked(event[1], event[2])
        else:
            self.refuse_file(event[1], 404, "this port is not for members")

    def _take_stream_event(self, kind: int, event: tuple[Any, ...], batch: Batch) -> None:
        stream_id = event[1]
        if kind == _wire.OPEN:
            path = event[2]
            if event[3][0] != CLIENT:
                self._turn_away(stream_id, path)
                return
            self._open[stream_id] = path
            self.started[path] += 1
            batch.streams.append((STREAM_OPEN, stream_id, path))
            if event[4] is not None and event[4].get(REQUIRE_LEADER) == "true":
                batch.streams.append((STREAM_REQUIRES_LEADER, stream_id, None))
            return
        opened = self._open.get(stream_id)
        if opened is None:
            # A link of another member, or an HTTP exchange that was given up: the wire drops its answer.
            if kind == _wire.CANCEL and self.links is not None:
                self.links.ended(stream_id)
            return
        if kind == _wire.MESSAGE:
            try:
                batch.streams.append((STREAM_MESSAGE, stream_id, self._parse[opened](event[2])))
            except DecodeError:
                self._refuse(stream_id, opened)
                batch.cancelled.append(stream_id)
        elif kind == _wire.HALF_CLOSE:
            batch.streams.append((STREAM_HALF_CLOSE, stream_id, None))
        elif kind == _wire.PAUSED:
            batch.streams.append((STREAM_PAUSED, stream_id, None))
        elif kind == _wire.RESUMED:
            batch.streams.append((STREAM_RESUMED, stream_id, None))
        else:
            del self._open[stream_id]
            self._sinks.pop(stream_id, None)
            self._count(opened, Code.CANCELLED)
            batch.cancelled.append(stream_id)

    def _turn_away(self, call_id: int, path: str) -> None:
        """Calls are for the clients' listeners; on those for members and for metrics are the pages only."""
        text = f"unknown service {self._rpcs[path].service}"
        self._replies.append((_wire.FAIL, call_id, int(Code.UNIMPLEMENTED), text))

    def _refuse(self, call_id: int, path: str) -> None:
        """The bytes are no message of this method (grpc-go answers INTERNAL)."""
        self._open.pop(call_id, None)
        self._count(path, Code.INTERNAL)
        self._replies.append((_wire.FAIL, call_id, int(Code.INTERNAL), MalformedMessage().text))

    def ask(self, batch: Batch, path: str, request: Message, function: AnswerFunction) -> int:
        """Add a call of the member's own to a batch; `function` is given the answer. Its id."""
        call_id = self._next_own_id
        self._next_own_id -= 1
        self._functions[call_id] = function
        batch.calls.setdefault(path, []).append((call_id, request))
        return call_id

    def open_stream(
        self,
        batch: Batch,
        exchange_id: int,
        path: str,
        requests: Iterable[Message],
        sink: Sink,
        *,
        requires_leader: bool = False,
    ) -> None:
        """Add a stream to a batch for a plain HTTP exchange; all its requests have come, its messages go to
        `sink`."""
        self._open[exchange_id] = path
        self._sinks[exchange_id] = sink
        self.started[path] += 1
        batch.streams.append((STREAM_OPEN, exchange_id, path))
        if requires_leader:
            batch.streams.append((STREAM_REQUIRES_LEADER, exchange_id, None))
        batch.streams.extend((STREAM_MESSAGE, exchange_id, request) for request in requests)
        batch.streams.append((STREAM_HALF_CLOSE, exchange_id, None))

    def end_stream(self, batch: Batch, exchange_id: int) -> None:
        """Give up a stream opened by `open_stream`."""
        if self._open.pop(exchange_id, None) is not None:
            del self._sinks[exchange_id]
            batch.cancelled.append(exchange_id)

    # --- out --------------------------------------------------------------------------------------------

    def speak(self, effects: Effects) -> None:
        """Send what the turn says to other members."""
        if self.links is not None and (effects.send or effects.forward):
            self._wire.send(
                [(_wire.FRAME_OUT, link, frame, True) for link, frame in self.links.frames(effects)]
            )

    def perform(self, effects: Effects) -> None:
        """Send the answers, messages and ends of a turn."""
        replies, opened = self._replies, self._open
        for call_id, answer in effects.answers:
            path = opened.pop(call_id, None)
            if path is None:
                # The member's own, or cancelled meanwhile.
                if call_id < 0:
                    self._functions.pop(call_id)(answer)
            elif type(answer) is bytes:
                replies.append((_wire.REPLY, call_id, answer))
                self.handled[path, 0] += 1
            else:
                assert isinstance(answer, EtcdError)
                self._count(path, answer.code)
                replies.append((_wire.FAIL, call_id, int(answer.code), answer.text))
        self._deliver(effects.deliveries)
        for stream_id, error in effects.ended:
            self._end(stream_id, error)
        if replies:
            self._replies = []
            self._wire.send(replies)

    def _deliver(self, deliveries: list[tuple[int, bytes]]) -> None:
        operation, sinks = _wire.DELIVER, self._sinks
        if not sinks:
            self._replies += [(operation, stream_id, message) for stream_id, message in deliveries]
            return
        for stream_id, message in deliveries:
            if stream_id in sinks:
                sinks[stream_id].message(message)
            else:
                self._replies.append((operation, stream_id, message))

    def _end(self, stream_id: int, error: EtcdError | None) -> None:
        path = self._open.pop(stream_id, None)
        if path is None:
            return
        code, text = (Code.OK, "") if error is None else (error.code, error.text)
        self._count(path, code)
        sink = self._sinks.pop(stream_id, None)
        if sink is not None:
            sink.end(error)
        else:
            self._replies.append((_wire.FAIL, stream_id, int(code), text))

    def respond(self, exchange_id: int, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Answer a plain HTTP exchange with the next `perform`."""
        self._replies.append((_wire.RESPOND, exchange_id, status, headers, body))

    def begin(self, exchange_id: int, status: int, headers: list[tuple[str, str]]) -> None:
        """Begin a streamed HTTP answer."""
        self._replies.append((_wire.BEGIN, exchange_id, status, headers))

    def chunk(self, exchange_id: int, body: bytes) -> None:
        self._replies.append((_wire.CHUNK, exchange_id, body))

    def finish(self, exchange_id: int) -> None:
        self._replies.append((_wire.FINISH, exchange_id))

    def _count(self, path: str, code: int) -> None:
        self.handled[path, int(code)] = self.handled.get((path, int(code)), 0) + 1
