"""What the caller asks for: proposals, reads, another leader. A leader takes it; a follower passes it on.

A request that comes through another member belongs to no term: it is only a wish, and whoever leads when it
arrives takes it from a member. Otherwise it is dropped there; of a proposal that was dropped so its sender is
to be told (`Ready.refused`), and may propose it again. Who hears nothing notices by its own time-out and must
count the outcome as unknown. A request made at a member without a leader is refused at once
(errors.Dropped).
"""

from etcd_server.raft import replication
from etcd_server.raft.errors import ProposalDropped, ReadDropped
from etcd_server.raft.messages import (
    NO_MEMBER,
    EntryKind,
    ForwardProposal,
    ForwardRead,
    ForwardReadResponse,
    ForwardTransfer,
)
from etcd_server.raft.reads import Reader
from etcd_server.raft.state import Raft, Role


def propose(raft: Raft, kind: EntryKind, data: bytes) -> None:
    """Appends to the log, or sends to the leader. Raises ProposalDropped, and then it will never happen."""
    if raft.role is Role.LEADER:
        if refusal := _refusal(raft, kind, data):
            raise ProposalDropped(refusal)
        _append(raft, kind, data)
    elif raft.leader_id == NO_MEMBER:
        raise ProposalDropped("there is no leader")
    else:
        raft.send(ForwardProposal(raft.leader_id, raft.member_id, raft.term, kind, data))


def on_forward_proposal(raft: Raft, message: ForwardProposal) -> None:
    """Another member passes a proposal on."""
    if message.sender not in raft.progress:
        return
    if _refusal(raft, message.kind, message.data):
        raft.refused.append(message)
    else:
        _append(raft, message.kind, message.data)
        raft.progress[message.sender].awaits(raft.log.last_index)


def turn_away_proposal(raft: Raft, message: ForwardProposal) -> None:
    """A proposal that was meant for the leader has come to a member that does not lead."""
    raft.refused.append(message)


def _refusal(raft: Raft, kind: EntryKind, data: bytes) -> str | None:
    """Why the leader cannot take a proposal now; None when it can."""
    if raft.transfer_target != NO_MEMBER:
        return "the leadership is being transferred"
    if kind is EntryKind.CONF_CHANGE and raft.pending_change_index > raft.log.applied_index:
        return "another change of membership is not applied yet"
    size = raft.uncommitted_bytes
    if size and size + len(data) > raft.config.max_uncommitted_bytes:
        return f"{size} bytes wait to be committed"
    return None


def _append(raft: Raft, kind: EntryKind, data: bytes) -> None:
    raft.uncommitted_bytes += len(data)
    raft.append(kind, data)
    if kind is EntryKind.CONF_CHANGE:
        raft.pending_change_index = raft.log.last_index


def read_index(raft: Raft, context: int) -> None:
    """Asks from which index on a read is linearizable. Raises ReadDropped when nobody can be asked."""
    if raft.role is Role.LEADER:
        raft.reads.waiting.append(Reader(raft.member_id, raft.incarnation, context))
    elif raft.leader_id == NO_MEMBER:
        raise ReadDropped("there is no leader")
    else:
        raft.send(ForwardRead(raft.leader_id, raft.member_id, raft.term, context, raft.incarnation))


def on_forward_read(raft: Raft, message: ForwardRead) -> None:
    """Another member passes reads on; they share the next round with this member's own."""
    if message.sender in raft.progress:
        raft.reads.waiting.append(Reader(message.sender, message.incarnation, message.context))


def on_forward_read_response(raft: Raft, message: ForwardReadResponse) -> None:
    """The leader's answer; one to an earlier life of this member is nobody's."""
    if message.incarnation == raft.incarnation:
        raft.read_states.append((message.context, message.index))


def transfer_leadership(raft: Raft, target: int) -> None:
    """Wishes for another leader. Nothing happens if the target cannot lead or does not catch up in time."""
    if raft.role is Role.LEADER:
        _begin_transfer(raft, target)
    elif raft.leader_id == NO_MEMBER:
        raise ProposalDropped("there is no leader")
    elif raft.leader_id != target:
        raft.send(ForwardTransfer(raft.leader_id, raft.member_id, raft.term, target))


def on_forward_transfer(raft: Raft, message: ForwardTransfer) -> None:
    """Another member passes the wish on."""
    if message.sender in raft.progress:
        _begin_transfer(raft, message.target)


def _begin_transfer(raft: Raft, target: int) -> None:
    """Stops taking proposals, and hands over when the target has the whole log, or gives up after an election
    time-out (thesis, section 3.10)."""
    if target not in raft.configuration.voters or target in (raft.member_id, raft.transfer_target):
        return
    raft.transfer_target = target
    raft.election_elapsed = 0
    raft.append_due = True
    replication.hand_over(raft)
