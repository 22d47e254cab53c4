"""Every error this library raises, in one tree, split by what the caller should do about it.

    EtcdError                      code (gRPC status number or None), text (the server's own words), endpoint
    ├── RequestError               the caller's fault: the same request will fail again
    │   ├── InvalidArgument        key not provided, too many operations in a txn, duplicate key, ...
    │   ├── NotFound               the lease or member named in the request does not exist
    │   ├── FailedPrecondition     the lease already exists, ...
    │   ├── OutOfRange             a revision or TTL outside what the server accepts
    │   │   ├── Compacted          the revision is gone; compact_revision says where history begins, if known
    │   │   └── FutureRevision     the revision has not happened yet
    │   ├── PermissionDenied
    │   ├── Unauthenticated
    │   └── Unsupported            the server does not have this call
    ├── NotNow                     nothing was done (or it was a read): the same request may succeed later
    │   ├── Unreachable            no endpoint accepted a connection
    │   ├── Unavailable            no leader, leader changed, server stopping, request timed out
    │   ├── TooManyRequests
    │   └── NoSpace                the space quota is used up; writes are refused until there is room
    ├── OutcomeUnknown             a write may or may not have been done: read before deciding; never repeated
    ├── ServerError                the server's bug or damage
    │   ├── BadAnswer              an answer that is not JSON, or lacks what it must have
    │   └── Corrupt                the server says that its data are damaged
    ├── ClusterChanged             the endpoint belongs to another cluster than before
    └── Closed                     the client was closed, or the watch was cancelled, by this program

`text` is the server's text where a server answered, else a description of what happened. `code` is the
gRPC status number of the answer, None when there was no answer. Mapping: google.rpc.Code and etcd's
api/v3rpc/rpctypes/error.go.
"""

from __future__ import annotations


class EtcdError(Exception):
    """Base of all errors of this library. One line: what happened, and at which endpoint."""

    def __init__(self, text: str, *, code: int | None = None, endpoint: str | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.endpoint = endpoint

    def __str__(self) -> str:
        return f"{self.text} ({self.endpoint})" if self.endpoint else self.text


class RequestError(EtcdError):
    """The request itself is wrong; sending it again will fail again."""


class InvalidArgument(RequestError):
    """The server refused an argument."""


class NotFound(RequestError):
    """What the request names (a lease, a member) does not exist."""


class FailedPrecondition(RequestError):
    """What the request needs is not so, for example the lease already exists."""


class OutOfRange(RequestError):
    """A revision or a TTL is outside what the server accepts."""


class Compacted(OutOfRange):
    """The revision asked for has been compacted away.

    `compact_revision` is the oldest revision still readable; 0 when the server did not say it.
    """

    def __init__(
        self, text: str, *, code: int | None = 11, endpoint: str | None = None, compact_revision: int = 0
    ) -> None:
        super().__init__(text, code=code, endpoint=endpoint)
        self.compact_revision = compact_revision


class FutureRevision(OutOfRange):
    """The revision asked for has not happened yet."""


class PermissionDenied(RequestError):
    """The user may not do this."""


class Unauthenticated(RequestError):
    """The server does not know who is asking."""


class Unsupported(RequestError):
    """The server does not have this call."""


class NotNow(EtcdError):
    """Nothing was changed; the same request may succeed later."""


class Unreachable(NotNow):
    """No endpoint accepted a connection, so the request was never sent."""


class Unavailable(NotNow):
    """The server cannot serve at present (no leader, stopping), or a read got no answer in time."""


class TooManyRequests(NotNow):
    """The server is overloaded and refused the request before doing anything."""


class NoSpace(NotNow):
    """The server's space quota is used up; it refuses writes until there is room."""


class OutcomeUnknown(EtcdError):
    """A write was sent and no answer says whether it was done. It is never sent again by this library."""


class ServerError(EtcdError):
    """The server failed in a way that is its own fault."""


class BadAnswer(ServerError):
    """The answer cannot be understood: not JSON, or without a field that it must have."""


class Corrupt(ServerError):
    """The server says that its data are damaged."""


class ClusterChanged(EtcdError):
    """An endpoint answers for another cluster than before."""


class Closed(EtcdError):
    """The client was closed, or the watch was cancelled, by this program."""


# google.rpc.Code numbers that are named in the code below.
CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = 1, 2, 4, 8
OUT_OF_RANGE, INTERNAL, UNAVAILABLE = 11, 13, 14

_BY_CODE: dict[int, type[EtcdError]] = {
    CANCELLED: Unavailable,
    UNKNOWN: ServerError,
    3: InvalidArgument,
    DEADLINE_EXCEEDED: Unavailable,
    5: NotFound,
    7: PermissionDenied,
    RESOURCE_EXHAUSTED: TooManyRequests,
    9: FailedPrecondition,
    OUT_OF_RANGE: OutOfRange,
    12: Unsupported,
    INTERNAL: ServerError,
    UNAVAILABLE: Unavailable,
    15: Corrupt,
    16: Unauthenticated,
}

# Where one code stands for several things, etcd's text decides (clientv3 maps by exact text as well).
_BY_TEXT: tuple[tuple[str, type[EtcdError]], ...] = (
    ("required revision has been compacted", Compacted),
    ("required revision is a future revision", FutureRevision),
    ("database space exceeded", NoSpace),
    # etcd gives these the code InvalidArgument; what is wrong is who asks.
    ("invalid user ID or password", Unauthenticated),
    ("user name is empty", Unauthenticated),
    ("revision of auth store is old", Unauthenticated),
)

# A write answered like this was refused before it was proposed to the cluster, so nothing was done. Every
# other Unavailable, Canceled, DeadlineExceeded, Unknown or Internal answer leaves its outcome unknown.
_REFUSED_TEXTS = ("etcdserver: no leader", "etcdserver: unhealthy cluster", "raft proposal dropped")
_UNCLEAR_CODES = frozenset({CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE})


def from_status(code: int, text: str, *, endpoint: str | None, repeatable: bool) -> EtcdError:
    """The error for a server's answer `code` (gRPC status number) with `text`.

    `repeatable` says that the request was a read (or otherwise harmless to send twice), so that there is
    no outcome which could be unknown.
    """
    for part, kind in _BY_TEXT:
        if part in text:
            return kind(text, code=code, endpoint=endpoint)
    if code in _UNCLEAR_CODES and any(part in text for part in _REFUSED_TEXTS):
        return Unavailable(text, code=code, endpoint=endpoint)
    if code in _UNCLEAR_CODES and not repeatable:
        return OutcomeUnknown(text, code=code, endpoint=endpoint)
    return _BY_CODE.get(code, ServerError)(text, code=code, endpoint=endpoint)
