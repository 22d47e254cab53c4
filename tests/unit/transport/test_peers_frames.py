"""Messages between members as bytes: each kind comes back as it went, and what is wrong is refused."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest

from etcd_server.api.proto import peer_pb2
from etcd_server.raft import messages as raft
from etcd_server.raft.confchange import Configuration
from etcd_server.raft.messages import Entry, EntryKind, Message, Snapshot
from etcd_server.services.events import ForwardedAnswer, ForwardedCall, ProposalRefused
from etcd_server.transport import peer_frames
from etcd_server.transport.peer_frames import FrameError

A, B = 0x8E9E05C52164694D, 7
ENTRIES = [
    Entry(5, 2, EntryKind.NORMAL, b"x" * 300),
    Entry(6, 2, EntryKind.CONF_CHANGE, b"\x00"),
    Entry(7, 3, EntryKind.EMPTY, b""),
]
EVERY = [
    raft.VoteRequest(A, B, 9, 5, 4, pre_vote=True, transfer=False),
    raft.VoteRequest(A, B, 9, 0, 0, pre_vote=False, transfer=True),
    raft.VoteResponse(A, B, 9, granted=True, pre_vote=True),
    raft.VoteResponse(A, B, 9, granted=False, commit=7, commit_term=8),
    raft.AppendRequest(A, B, 9, 4, 2, ENTRIES, 3),
    raft.AppendRequest(A, B, 9, 0, 0, [], 0),
    raft.AppendResponse(A, B, 9, 17),
    raft.AppendResponse(A, B, 9, 17, True, 12, 3),
    raft.Heartbeat(A, B, 9, 12, 3),
    raft.HeartbeatResponse(A, B, 9, 3),
    raft.InstallSnapshot(A, B, 9, Snapshot(100, 8, Configuration((A, B), (3,)))),
    raft.TimeoutNow(A, B, 9),
    raft.ForwardProposal(A, B, 9, EntryKind.CONF_CHANGE, b"change" * 100),
    raft.ForwardProposal(A, B, 9, EntryKind.NORMAL, b""),
    raft.ForwardRead(A, B, 9, 1 << 40, 1 << 61),
    raft.ForwardReadResponse(A, B, 9, 1 << 40, 1 << 61, 77),
    raft.ForwardTransfer(A, B, 9, A),
    ForwardedCall(A, B, 1 << 33, "/etcdserverpb.Lease/LeaseKeepAlive", b"\x08\x07"),
    ForwardedAnswer(A, B, 1 << 33, 0, "", b"answer"),
    ForwardedAnswer(A, B, 1, 14, "etcdserver: not leader", b""),
    ProposalRefused(A, B, 1 << 50),
]


def sent(*messages: peer_frames.Peer) -> list[peer_frames.Peer]:
    [frame] = peer_frames.frames(messages)
    return peer_frames.read(frame)


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_went(message: Any) -> None:
    assert sent(message) == [message]


def test_no_kind_of_message_is_forgotten() -> None:
    assert {type(message) for message in EVERY if isinstance(message, Message)} == {
        kind
        for kind in vars(raft).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    }
    kinds = {field.name for field in peer_pb2.PeerMessage.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert kinds == set(peer_frames._READERS)


def test_many_messages_share_a_frame_in_their_order() -> None:
    random.Random(1).shuffle(EVERY)
    assert sent(*EVERY) == EVERY


def test_what_is_joined_by_hand_is_what_protobuf_writes() -> None:
    """Field for field and byte for byte, the data of entries included."""
    for message in EVERY:
        [frame] = peer_frames.frames([message])
        parsed = peer_pb2.PeerFrame.FromString(frame)
        parsed.DiscardUnknownFields()
        assert len(parsed.SerializeToString()) == len(frame)


def test_a_frame_ends_when_it_has_grown_large() -> None:
    large = Entry(1, 1, EntryKind.NORMAL, b"x" * (3 << 20))
    messages = [raft.AppendRequest(A, B, 1, n, 1, [large], 0) for n in range(7)]
    frames = peer_frames.frames(messages)
    assert [len(peer_frames.read(frame)) for frame in frames] == [3, 3, 1]
    assert [one for frame in frames for one in peer_frames.read(frame)] == messages


def test_a_kind_of_a_later_version_is_passed_over() -> None:
    unknown = b"\x12\x05" + b"\x18\x07" + b"\xa2\x06\x00"  # term 7, and field 100
    [frame] = peer_frames.frames([raft.TimeoutNow(A, B, 9)])
    assert peer_frames.read(frame + unknown) == [raft.TimeoutNow(A, B, 9)]


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"\xff\xff", "expected a PeerFrame"),
        (b"", "expected a frame of version 1, found version 0"),
        (b"\x08\x02", "expected a frame of version 1, found version 2"),
        (
            peer_pb2.PeerFrame(
                version=1,
                messages=[
                    peer_pb2.PeerMessage(
                        to=1,
                        forward_proposal=peer_pb2.ForwardProposal(kind=77),  # type: ignore[arg-type]
                    )
                ],
            ).SerializeToString(),
            "77 is not a valid EntryKind",
        ),
    ],
)
def test_what_is_no_frame_is_refused(frame: bytes, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        peer_frames.read(frame)


def test_random_bytes_make_no_other_error() -> None:
    draw = random.Random(7)
    [good] = peer_frames.frames(EVERY)
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(draw.randrange(1, 5)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        with contextlib.suppress(FrameError):
            peer_frames.read(bytes(damaged[: draw.randrange(len(damaged))]))
