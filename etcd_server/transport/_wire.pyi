"""The Rust wire: sockets, HTTP/1.1 and HTTP/2 on one port, gRPC framing, links to peers. Knows no etcd.

Events come out of :meth:`Wire.poll` as plain tuples whose first item is one of the event kinds below;
:meth:`Wire.send` takes a list of tuples whose first item is one of the reply operations. Every `id` is a
64-bit number that names one call, one stream or one HTTP exchange, and is never used twice in a process.
A reply to an `id` that is gone (cancelled, deadline passed, connection lost) is dropped without a word.

A link is a one-way stream of frames (opaque bytes) to one peer; the peer has a link of its own back. A link
begins as a request for "/etcd-py/link/1" on any listener of the peer, which the peer's owner accepts or
refuses. A frame is delivered at most once and frames stay in order; those written when a connection is lost
may be lost with it. A file is sent by a POST to "/etcd-py/snapshot/1" from disk to disk, without passing
through Python. Links and files that one's own side opens are named by numbers that the owner chooses; those
of peers by an `id`.
"""

from typing import Any, Final

# A connection is described by one tuple, made once for a connection and shared by its events:
# (listener: str, peer: str "ip:port" or "" for a unix socket,
#  common_name: str | None of the client certificate)
Connection = tuple[str, str, str | None]

# The metadata of a call: those of `metadata_keys` that it has, name to value; None when it has none of them.
Metadata = dict[str, str]

# --- kinds of events --------------------------------------------------------------------------------------
# (CALL, id, path, message, connection, metadata | None)  a whole unary or server-streaming gRPC request
CALL: Final[int]
# (OPEN, id, path, connection, metadata | None)            a client-streaming or two-way gRPC call has begun
OPEN: Final[int]
# (MESSAGE, id, message)                                   one message of such a stream
MESSAGE: Final[int]
# (HALF_CLOSE, id)                                         the client will send no more on it
HALF_CLOSE: Final[int]
# (CANCEL, id)    the call, stream or exchange is over before it was answered: reset, connection lost or
#                 deadline passed (the wire has then already answered DEADLINE_EXCEEDED "context deadline
#                 exceeded")
CANCEL: Final[int]
# (HTTP, id, method, target, headers, body, connection)    a whole plain HTTP request, over HTTP/1.1 or HTTP/2
#                 target: path with query as sent; headers: list[tuple[str, str]], names in lower case
HTTP: Final[int]
# (PAUSED, id)    more than `stream_buffer_bytes` wait unsent on this stream: send it nothing more for now
PAUSED: Final[int]
# (RESUMED, id)   less than half of that waits again
RESUMED: Final[int]
# (POSTED, object) what another thread gave to :meth:`Wire.post`
POSTED: Final[int]
# (LINK_UP, link, url)            the link is connected, to this of its URLs
LINK_UP: Final[int]
# (LINK_DOWN, link, reason)       its connection was lost (closed, failed, silent for `link_timeout_s`, ended
#                 by the peer's owner, replaced), or it could not be made. Said once for each URL and reason
#                 until the link is up again; attempts go on. Refusals: "refused by URL with status 412:
#                 TEXT"; the end that a peer's owner gave an accepted link: "ended by URL with status 410:
#                 TEXT"
LINK_DOWN: Final[int]
# (LINK_ASKED, id, hello, connection)      a peer wants a link to here; hello: list[tuple[str, str]], names in
#                 lower case. To be answered with LINK_ACCEPT or LINK_REFUSE within `header_timeout_s`. A
#                 CANCEL tells that it is over, be it accepted or not yet
LINK_ASKED: Final[int]
# (FRAME_IN, id, frame)           one frame of an accepted link
FRAME_IN: Final[int]
# (FILE_SENT, id, error)          what was begun with `send_file` has ended; error: "" when the peer's owner
#                 has said FILE_DONE with a status below 300, else one line
FILE_SENT: Final[int]
# (FILE_ASKED, id, headers, connection)    a peer wants to send a file of "content-length" bytes; headers as
#                 LINK_ASKED's hello. To be answered with FILE_ACCEPT or FILE_REFUSE within
#                 `header_timeout_s`, else CANCEL
FILE_ASKED: Final[int]
# (FILE_RECEIVED, id, path, size_bytes, sha256)   it is whole, and synced with its folder; sha256:
#                 hexadecimal. To be answered with FILE_DONE; nothing more is said of this id
FILE_RECEIVED: Final[int]
# (FILE_FAILED, id, text)         an accepted file did not come whole; what there was of it has been removed
FILE_FAILED: Final[int]

# --- operations of send -----------------------------------------------------------------------------------
# (REPLY, id, message)               one message and status OK: the whole answer of a unary call
REPLY: Final[int]
# (FAIL, id, code, text)             end of a call or stream with a gRPC status (0 = OK) and its text
FAIL: Final[int]
# (DELIVER, id, message)             one message on a stream (messages after FAIL/REPLY are dropped)
DELIVER: Final[int]
# (RESPOND, id, status, headers, body)   a whole HTTP response; headers: list[tuple[str, str]]
RESPOND: Final[int]
# (BEGIN, id, status, headers)       the head of a streamed HTTP response (chunked on HTTP/1.1)
BEGIN: Final[int]
# (CHUNK, id, body)                  a piece of it
CHUNK: Final[int]
# (FINISH, id)                       its end
FINISH: Final[int]
# (FRAME_OUT, link, frame, droppable)    queue one frame, at most `max_frame_bytes`. Of frames that wait,
#                 beyond `queue_bytes` the oldest droppable ones are dropped, beyond twice that the oldest; a
#                 link that has not been connected for `link_timeout_s` keeps no droppable frame
FRAME_OUT: Final[int]
# (LINK_ACCEPT, id)
LINK_ACCEPT: Final[int]
# (LINK_REFUSE, id, status, text)        status: 300 to 599. Ends an accepted link also; no CANCEL follows
LINK_REFUSE: Final[int]
# (FILE_ACCEPT, id, path)                write it to this path, mode 600; a file of that name is replaced
FILE_ACCEPT: Final[int]
# (FILE_REFUSE, id, status, text)        as LINK_REFUSE; of an accepted file, what there is of it is removed
FILE_REFUSE: Final[int]
# (FILE_DONE, id, status, text)          the sender's answer; status: 200 to 599
FILE_DONE: Final[int]

# --- how a gRPC method takes its request ------------------------------------------------------------------
ONE: Final[int]  # one request message: the wire gathers it and emits CALL
MANY: Final[int]  # a stream of request messages: OPEN, MESSAGE..., HALF_CLOSE

class WireError(Exception):
    """A listener or link could not be opened, or a setting is wrong; the text is one line for the user."""

class Wire:
    def __init__(
        self,
        methods: dict[str, int],
        *,
        metadata_keys: tuple[str, ...] = (),
        worker_threads: int = 1,
        max_message_bytes: int = 2_097_152,
        max_header_bytes: int = 16_384,
        max_concurrent_streams: int = 4096,
        max_inbox_bytes: int = 268_435_456,
        stream_buffer_bytes: int = 4_194_304,
        keepalive_min_time_s: float = 5.0,
        keepalive_interval_s: float = 7200.0,
        keepalive_timeout_s: float = 20.0,
        header_timeout_s: float = 10.0,
        idle_http_timeout_s: float = 300.0,
        max_frame_bytes: int = 67_108_864,
        link_ping_s: float = 1.0,
        link_timeout_s: float = 5.0,
    ) -> None:
        """`methods` maps each known gRPC path ("/package.Service/Method") to ONE or MANY. A call of another
        path is answered by the wire itself: UNIMPLEMENTED, "unknown service S" or "unknown method M for
        service S", as grpc-go words them. The body of a plain HTTP request may be twice `max_message_bytes`
        long, as JSON carries bytes as base64; a longer one is answered 413. `link_ping_s` and
        `link_timeout_s` should be the same on all members: whoever is sent nothing for the latter ends the
        link."""
    def listen(self, url: str, name: str) -> str:
        """Open a listener on "http://host:port" (port 0 chooses one) or "unix:///path" / "unix://path", label
        its connections `name`, begin accepting, and return the bound address in the same form as given.
        Raises WireError with the operating system's reason."""
    def poll(self, timeout_s: float, max: int) -> list[tuple[Any, ...]]:
        """Wait, without the interpreter lock, until something has arrived or `timeout_s` has passed; then
        return everything that has, at most `max` events, oldest first. Events of one id keep their order.
        Signals are not handled here: a POSTED object or the time-out ends the wait."""
    def send(self, replies: list[tuple[Any, ...]]) -> None:
        """Hand over a batch of answers. Never blocks. A malformed tuple raises TypeError/ValueError and
        nothing of the batch is sent."""
    def open_link(
        self, link: int, urls: list[str], hello: list[tuple[str, str]], queue_bytes: int = 67_108_864
    ) -> None:
        """Keep a connection to one of `urls` (as for `listen`), tried in turn with pauses of 50 ms doubling
        to 2 s, until `close_link`. `hello` are headers of the request. The number of an open link may be
        given again: the link then connects anew, by the new configuration, and keeps what it has queued.
        Raises WireError for a URL or header that cannot be used."""
    def close_link(self, link: int) -> None:
        """End the link once what is queued has been written, if that is done within `link_timeout_s`; at once
        when it is not connected. Nothing more is queued and nothing is said of it. An unknown number is
        ignored."""
    def link_statistics(self) -> dict[int, tuple[bool, int, int, int, int, float | None]]:
        """For each open link, and under its id for each accepted link of a peer: (is_up, sent_bytes,
        received_bytes, dropped_frames, failures, round_trip_s). Bytes are those of frames with their five
        bytes of header, since it was opened; failures are connections lost and attempts failed; the round
        trip is that of the last ping, measured every `link_ping_s`, None while not connected and for links of
        peers."""
    def send_file(self, id: int, urls: list[str], path: str, headers: list[tuple[str, str]]) -> None:
        """Send a file as it is when opened to the first of `urls` that can be connected to; FILE_SENT tells
        the end. Raises WireError when a file of this `id` is still being sent, and as `open_link`."""
    def post(self, obj: object) -> None:
        """Put a Python object into the inbox from any thread."""
    def statistics(self) -> dict[str, int]:
        """Counters since the start: connections_total, connections_open, streams_open (calls and exchanges
        not answered yet), bytes_received_total (HTTP/2 bodies), bytes_sent_total (gRPC messages),
        goaways_sent_total, requests_refused_total (answered with a failure by the wire itself),
        inbox_events."""
    def stop_accepting(self) -> None:
        """Close the listeners and send GOAWAY on each HTTP/2 connection; calls, links and files already open
        go on. A link that is asked for after that is refused with status 503."""
    def close(self, grace_s: float) -> None:
        """stop_accepting, wait up to `grace_s` (without the interpreter lock) until what was sent, frames
        too, has been flushed and open calls have ended, then close every connection and end the threads.
        Links of peers end at once, and files that are under way, of which no half remains."""
