"""The Rust wire: sockets, HTTP/1.1 and HTTP/2 on one port, gRPC framing. Knows nothing of etcd.

Events come out of :meth:`Wire.poll` as plain tuples whose first item is one of the event kinds below;
:meth:`Wire.send` takes a list of tuples whose first item is one of the reply operations. Every `id` is a
64-bit number that names one call, one stream or one HTTP exchange, and is never used twice in a process.
A reply to an `id` that is gone (cancelled, deadline passed, connection lost) is dropped without a word.
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

# --- how a gRPC method takes its request ------------------------------------------------------------------
ONE: Final[int]  # one request message: the wire gathers it and emits CALL
MANY: Final[int]  # a stream of request messages: OPEN, MESSAGE..., HALF_CLOSE

class WireError(Exception):
    """A listener could not be opened or a setting is wrong; the text is one line for the user."""

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
    ) -> None:
        """`methods` maps each known gRPC path ("/package.Service/Method") to ONE or MANY. A call of another
        path is answered by the wire itself: UNIMPLEMENTED, "unknown service S" or
        "unknown method M for service S", as grpc-go words them."""
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
    def post(self, obj: object) -> None:
        """Put a Python object into the inbox from any thread."""
    def statistics(self) -> dict[str, int]:
        """Counters since the start: connections_total, connections_open, streams_open (calls and exchanges
        not answered yet), bytes_received_total (HTTP/2 bodies), bytes_sent_total (gRPC messages),
        goaways_sent_total, requests_refused_total (answered with a failure by the wire itself),
        inbox_events."""
    def stop_accepting(self) -> None:
        """Close the listeners and send GOAWAY on each HTTP/2 connection; calls already open go on."""
    def close(self, grace_s: float) -> None:
        """stop_accepting, wait up to `grace_s` (without the interpreter lock) until what was sent has been
        flushed and open calls have ended, then close every connection and end the threads."""
