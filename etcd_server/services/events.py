"""What goes into one turn of the engine and what comes out: plain data, no behaviour.

A `Batch` is everything that has arrived since the last turn, already parsed and grouped; `Effects` is
everything that the shell must now do, in this order: send, forward, persist, answer, deliver, end. The shell
(`runtime.py`) and the simulator perform the same effects, one in real time and one in virtual time.

Call and stream ids are numbers of the transport's; the engine only hands them back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from google.protobuf.message import Message as ProtoMessage

from etcd_server.api.errors import EtcdError
from etcd_server.raft.messages import Message, Ready, Snapshot

# A stream's story, in the order in which it happened: (kind, stream_id, payload).
STREAM_OPEN = 0  # payload: path of the method
STREAM_MESSAGE = 1  # payload: the parsed request
STREAM_HALF_CLOSE = 2  # payload: None
STREAM_PAUSED = 3  # payload: None; the peer reads too slowly: deliver nothing more for now
STREAM_RESUMED = 4  # payload: None
STREAM_REQUIRES_LEADER = 5  # payload: None; end it when the member is without a leader for long

StreamEvent = tuple[int, int, "ProtoMessage | str | None"]
Answer = tuple[int, "bytes | EtcdError"]


@dataclass(frozen=True, slots=True)
class ForwardedCall:
    """A call that only the leader can answer, passed on by the member to which the client has put it.

    call_id: a number of the sender's, for the answer. path: the gRPC path; request: its serialised message.
    """

    to: int
    sender: int
    call_id: int
    path: str
    request: bytes


@dataclass(frozen=True, slots=True)
class ForwardedAnswer:
    """The answer to a ForwardedCall: code 0 and the serialised response, or the code and text of an error."""

    to: int
    sender: int
    call_id: int
    code: int
    text: str
    response: bytes


@dataclass(frozen=True, slots=True)
class ProposalRefused:
    """A proposal that raft has passed on was certainly not taken by the member that got it."""

    to: int
    sender: int
    proposal_id: int


Forwarded = ForwardedCall | ForwardedAnswer | ProposalRefused


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """A copy of the state for a member that is too far behind: of applied_index `index` or a later one."""

    to: int
    term: int
    index: int


@dataclass(frozen=True, slots=True)
class ReceivedSnapshot:
    """A copy of another member's state that is here, whole and looked at.

    number: the transport's, for the answer. term: of raft, told by the sender. snapshot: what the copy says
    of itself.
    """

    number: int
    path: str
    sender: int
    term: int
    snapshot: Snapshot


@dataclass(slots=True)
class Batch:
    """One turn's input. Empty lists where nothing has come."""

    calls: dict[str, list[tuple[int, ProtoMessage]]] = field(default_factory=dict)
    """Unary calls by method path: (call id, parsed request)."""
    streams: list[StreamEvent] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    """Ids of calls and streams that are over, whatever the reason."""
    ticks: int = 0
    """Heartbeat intervals that have passed since the last turn."""
    unix_time_s: int = 0
    """Seconds since 1970, for what shows the time of day: the IDs of members that are added."""
    gateway_calls: list[int] = field(default_factory=list)
    """Those of the unary calls with negative ids that clients have put as JSON; the others with negative ids
    are the member's own."""
    requiring_leader: list[int] = field(default_factory=list)
    """Those of the unary calls that are to be refused while the member knows no leader."""
    messages: list[Message] = field(default_factory=list)
    """Raft messages from other members."""
    forwarded: list[Forwarded] = field(default_factory=list)
    """Calls that other members pass on, and answers to what this member has passed on."""
    connected: list[tuple[int, bool]] = field(default_factory=list)
    """News of the links to other members: (member id, whether it is up now). A link that went down may have
    lost what was sent."""
    versions: list[tuple[int, str]] = field(default_factory=list)
    """Versions that other members have told: (member id, "major.minor.patch")."""
    snapshots_sent: list[tuple[int, bool]] = field(default_factory=list)
    """How the snapshots that raft wanted sent have ended: (member id, whether it has taken it in)."""
    snapshots_received: list[ReceivedSnapshot] = field(default_factory=list)
    """Each becomes an `Effects.install` or one of `Effects.refused_snapshots`, now or in a later turn."""
    restored: bool = False
    """What `Effects.install` of the last turn wanted has been done."""
    persisted: int = 0
    """Every `Ready` up to this number is on disk; 0 when there is no news."""
    durable_index: int = 0
    """applied_index of the last synced checkpoint of state.db; 0 when there is no news."""
    disk_full: bool | None = None
    """True: there is little room left on the device. False: there is room again. None: no news."""
    log_full: bool | None = None
    """True: the log cannot be written for want of room. False: it can again. None: no news."""


@dataclass(slots=True)
class Effects:
    """One turn's output."""

    persist: list[Ready] = field(default_factory=list)
    """Append these to the log, synced and in order, then report the last number in `Batch.persisted`."""
    send: list[Message] = field(default_factory=list)
    """Raft messages for other members; they may leave at once."""
    forward: list[Forwarded] = field(default_factory=list)
    """Calls passed on to the leader, and answers to what other members have passed on."""
    answers: list[Answer] = field(default_factory=list)
    """Unary calls answered: serialised response or error."""
    deliveries: list[tuple[int, bytes]] = field(default_factory=list)
    """Messages on streams, in order for each stream."""
    ended: list[tuple[int, EtcdError | None]] = field(default_factory=list)
    """Streams that end, after their deliveries: None is a clean end."""
    make_snapshots: list[SnapshotRequest] = field(default_factory=list)
    """Copy what is committed in state.db now, or later, send it, and report by `Batch.snapshots_sent`."""
    install: ReceivedSnapshot | None = None
    """Put this in the place of state and log. It belongs to the one Ready in `persist` that has a `snapshot`:
    those before it are written first; then the state is replaced and the log is begun anew with the hard
    state of that Ready, so that a crash leaves both old or both new; then its entries, and the Readys behind
    it, are appended. All of it is done before the next turn, whose batch has `restored`."""
    refused_snapshots: list[ReceivedSnapshot] = field(default_factory=list)
    """Those that raft has no use for."""
    checkpoint: bool = False
    """A checkpoint of the state would let the log be cut."""
    cut_log_to: int = 0
    """Entries up to this index may be dropped from the log; 0: nothing new."""
    committed: bool = False
    """The state database was committed, and has no open transaction now."""
    members_changed: bool = False
    """The membership, or the peer URLs of a member, is another now."""
    more_work: bool = False
    """Call again without waiting: bounded work (compaction, catch-up of watchers) is left over."""
    again_within_s: float = inf
    """Call again within this time, even if nothing comes."""
