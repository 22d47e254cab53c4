"""What members say to each other, as bytes: raft messages and forwarded calls to frames, and back.

A frame is a serialised `etcdpy.PeerFrame` (peer.proto). What carries data, the entries of an append above
all, is written by joining fields, so that the data of an entry is copied once; everything else is small and
goes through the generated classes. Reading goes through them always, which is also how the writing is tested.

Pure functions; the only error is FrameError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from etcd_server.api.encoding import bytes_field, integer_field, varint
from etcd_server.api.proto import peer_pb2
from etcd_server.raft.confchange import Configuration
from etcd_server.raft.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    ForwardProposal,
    ForwardRead,
    ForwardReadResponse,
    ForwardTransfer,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    Snapshot,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from etcd_server.services.events import Forwarded, ForwardedAnswer, ForwardedCall, ProposalRefused

FRAME_VERSION = 1
MAX_FRAME_BYTES = 8 * 1024 * 1024
"""A frame is ended when it has grown to this; one message may be larger."""

Peer = Message | Forwarded

_VERSION = b"\x08" + varint(FRAME_VERSION)
_MESSAGE_TAG = b"\x12"


class FrameError(Exception):
    """A frame that cannot be read; the text says why."""


# --- the kinds ------------------------------------------------------------------------------------------

# Messages that have the same plain fields on both sides: class, field of PeerMessage, fields in their order.
_PLAIN: Sequence[tuple[type[Any], str, type[Any], tuple[str, ...]]] = (
    (
        VoteRequest,
        "vote_request",
        peer_pb2.VoteRequest,
        ("last_index", "last_term", "pre_vote", "transfer"),
    ),
    (
        VoteResponse,
        "vote_response",
        peer_pb2.VoteResponse,
        ("granted", "pre_vote", "commit", "commit_term"),
    ),
    (
        AppendResponse,
        "append_response",
        peer_pb2.AppendResponse,
        ("index", "rejected", "hint_index", "hint_term"),
    ),
    (Heartbeat, "heartbeat", peer_pb2.Heartbeat, ("commit", "read_round")),
    (HeartbeatResponse, "heartbeat_response", peer_pb2.HeartbeatResponse, ("read_round",)),
    (TimeoutNow, "timeout_now", peer_pb2.TimeoutNow, ()),
    (ForwardRead, "forward_read", peer_pb2.ForwardRead, ("context", "incarnation")),
    (
        ForwardReadResponse,
        "forward_read_response",
        peer_pb2.ForwardReadResponse,
        ("context", "incarnation", "index"),
    ),
    (ForwardTransfer, "forward_transfer", peer_pb2.ForwardTransfer, ("target",)),
)
# Fields of PeerMessage, number << 3 | 2, of those that are written by joining.
_APPEND_REQUEST, _FORWARD_PROPOSAL = b"\x32", b"\x62"
_FORWARDED_CALL, _FORWARDED_ANSWER = b"\x82\x01", b"\x8a\x01"
_PROPOSAL_REFUSED = b"\x92\x01"


# --- writing --------------------------------------------------------------------------------------------


def frames(messages: Iterable[Peer]) -> list[bytes]:
    """Messages for one member as frames: one, unless they are large."""
    written: list[bytes] = []
    parts: list[bytes] = [_VERSION]
    size_bytes = 0
    for message in messages:
        if size_bytes >= MAX_FRAME_BYTES:
            written.append(b"".join(parts))
            parts, size_bytes = [_VERSION], 0
        writer = _WRITERS.get(type(message))
        body = _plain(message) if writer is None else writer(message)
        length = sum(map(len, body))
        parts += (_MESSAGE_TAG, varint(length), *body)
        size_bytes += length
    written.append(b"".join(parts))
    return written


def _head(to: int, sender: int, term: int) -> bytes:
    return (
        b"\x09" + to.to_bytes(8, "little") + b"\x11" + sender.to_bytes(8, "little") + integer_field(3, term)
    )


def _plain(message: Any) -> list[bytes]:
    field, body_class, names = _PLAIN_BY_CLASS[type(message)]
    body = body_class(**{name: getattr(message, name) for name in names})
    written = peer_pb2.PeerMessage(to=message.to, sender=message.sender, term=message.term, **{field: body})
    return [written.SerializeToString()]


_PLAIN_BY_CLASS: Mapping[type[Any], tuple[str, type[Any], tuple[str, ...]]] = {
    message_class: (field, body_class, names) for message_class, field, body_class, names in _PLAIN
}


def _append_request(message: AppendRequest) -> list[bytes]:
    parts = [integer_field(1, message.previous_index) + integer_field(2, message.previous_term)]
    for entry in message.entries:
        data = entry.data
        head = integer_field(1, entry.index) + integer_field(2, entry.term) + integer_field(3, entry.kind)
        if data:
            head += b"\x22" + varint(len(data))
        parts += (b"\x1a" + varint(len(head) + len(data)) + head, data)
    parts.append(integer_field(4, message.commit))
    return _joined(_head(message.to, message.sender, message.term), _APPEND_REQUEST, parts)


def _joined(head: bytes, tag: bytes, parts: list[bytes]) -> list[bytes]:
    return [head + tag + varint(sum(map(len, parts))), *parts]


def _forward_proposal(message: ForwardProposal) -> list[bytes]:
    parts = [integer_field(1, message.kind)]
    if message.data:
        parts += (b"\x12" + varint(len(message.data)), message.data)
    return _joined(_head(message.to, message.sender, message.term), _FORWARD_PROPOSAL, parts)


def _forwarded_call(call: ForwardedCall) -> list[bytes]:
    parts = [
        integer_field(1, call.call_id),
        bytes_field(2, call.path.encode()),
        bytes_field(3, call.request),
    ]
    return _joined(_head(call.to, call.sender, 0), _FORWARDED_CALL, parts)


def _forwarded_answer(answer: ForwardedAnswer) -> list[bytes]:
    parts = [
        integer_field(1, answer.call_id),
        integer_field(2, answer.code),
        bytes_field(3, answer.text.encode()),
        bytes_field(4, answer.response),
    ]
    return _joined(_head(answer.to, answer.sender, 0), _FORWARDED_ANSWER, parts)


def _proposal_refused(refused: ProposalRefused) -> list[bytes]:
    parts = [integer_field(1, refused.proposal_id)]
    return _joined(_head(refused.to, refused.sender, 0), _PROPOSAL_REFUSED, parts)


def _install_snapshot(message: InstallSnapshot) -> list[bytes]:
    snapshot = message.snapshot
    body = peer_pb2.InstallSnapshot(
        index=snapshot.index,
        term=snapshot.term,
        voters=snapshot.configuration.voters,
        learners=snapshot.configuration.learners,
    )
    written = peer_pb2.PeerMessage(
        to=message.to, sender=message.sender, term=message.term, install_snapshot=body
    )
    return [written.SerializeToString()]


_WRITERS: Mapping[type[Any], Callable[[Any], list[bytes]]] = {
    AppendRequest: _append_request,
    ForwardProposal: _forward_proposal,
    ForwardedCall: _forwarded_call,
    ForwardedAnswer: _forwarded_answer,
    ProposalRefused: _proposal_refused,
    InstallSnapshot: _install_snapshot,
}


# --- reading --------------------------------------------------------------------------------------------


def read(frame: bytes) -> list[Peer]:
    """The messages of a frame; those of kinds that this version does not know are left out. Raises
    FrameError."""
    try:
        parsed = peer_pb2.PeerFrame.FromString(frame)
    except DecodeError as error:
        raise FrameError(f"expected a PeerFrame: {error}") from error
    if parsed.version != FRAME_VERSION:
        raise FrameError(f"expected a frame of version {FRAME_VERSION}, found version {parsed.version}")
    try:
        return [
            _READERS[kind](message, getattr(message, kind))
            for message in parsed.messages
            if (kind := message.WhichOneof("kind")) is not None
        ]
    except ValueError as error:
        raise FrameError(f"a message makes no sense: {error}") from error


def _plain_reader(
    message_class: type[Any], names: tuple[str, ...]
) -> Callable[[peer_pb2.PeerMessage, Any], Any]:
    def read_plain(message: peer_pb2.PeerMessage, body: Any) -> Any:
        return message_class(
            message.to, message.sender, message.term, *[getattr(body, name) for name in names]
        )

    return read_plain


def _read_append_request(message: peer_pb2.PeerMessage, body: peer_pb2.AppendRequest) -> AppendRequest:
    entries = [Entry(one.index, one.term, EntryKind(one.kind), one.data) for one in body.entries]
    return AppendRequest(
        message.to,
        message.sender,
        message.term,
        body.previous_index,
        body.previous_term,
        entries,
        body.commit,
    )


def _read_forward_proposal(message: peer_pb2.PeerMessage, body: peer_pb2.ForwardProposal) -> ForwardProposal:
    return ForwardProposal(message.to, message.sender, message.term, EntryKind(body.kind), body.data)


def _read_install_snapshot(message: peer_pb2.PeerMessage, body: peer_pb2.InstallSnapshot) -> InstallSnapshot:
    configuration = Configuration(tuple(body.voters), tuple(body.learners))
    return InstallSnapshot(
        message.to, message.sender, message.term, Snapshot(body.index, body.term, configuration)
    )


def _read_forwarded_call(message: peer_pb2.PeerMessage, body: peer_pb2.ForwardedCall) -> ForwardedCall:
    return ForwardedCall(message.to, message.sender, body.call_id, body.path, body.request)


def _read_forwarded_answer(message: peer_pb2.PeerMessage, body: peer_pb2.ForwardedAnswer) -> ForwardedAnswer:
    return ForwardedAnswer(message.to, message.sender, body.call_id, body.code, body.text, body.response)


def _read_proposal_refused(message: peer_pb2.PeerMessage, body: peer_pb2.ProposalRefused) -> ProposalRefused:
    return ProposalRefused(message.to, message.sender, body.proposal_id)


_READERS: Mapping[str, Callable[[peer_pb2.PeerMessage, Any], Any]] = {
    **{field: _plain_reader(message_class, names) for message_class, field, _, names in _PLAIN},
    "append_request": _read_append_request,
    "forward_proposal": _read_forward_proposal,
    "install_snapshot": _read_install_snapshot,
    "forwarded_call": _read_forwarded_call,
    "forwarded_answer": _read_forwarded_answer,
    "proposal_refused": _read_proposal_refused,
}
