"""Replication: the leader's side (appends, heartbeats, commitment, rounds of reads) and the follower's.

Sources: Raft paper, sections 5.3, 5.4.2 and 7; thesis, sections 3.5, 3.6.2, 6.4, 10.2.1 (the leader writes
its own disk in parallel) and 10.2.2 (batches and pipelines). Nothing is sent when it happens: events set
`append_due`, and `flush`, once a Ready, sends each member all that it may get. So whatever arrived between
two Readys shares messages.
"""

from etcd_server.raft.messages import (
    AppendRequest,
    AppendResponse,
    ForwardReadResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Snapshot,
    TimeoutNow,
)
from etcd_server.raft.progress import Progress, ProgressState
from etcd_server.raft.quorum import agreed
from etcd_server.raft.state import Raft, Role

# The leader's side


def flush(raft: Raft, *, tell_commit: bool) -> None:
    """Opens the round for the reads that wait, and sends each follower what it may get now.

    tell_commit False: a message that would say nothing but how far the leader has committed is left for a
    later flush, `append_due` stays set, and perhaps the next entries carry it; unless the follower waits for
    an entry that it has asked for.
    """
    if raft.reads.waiting and raft.log.commit_index >= raft.term_start_index:
        raft.reads.begin(raft.log.commit_index)
        raft.progress[raft.member_id].read_round = raft.reads.latest_round
        if not raft.sole_voter:
            broadcast_heartbeat(raft)
        confirm_reads(raft)
    if raft.append_due:
        raft.append_due = False
        for peer in raft.peers:
            progress = raft.progress[peer]
            while not progress.paused and _send_append(raft, peer, progress, tell_commit=tell_commit):
                pass


def _send_append(raft: Raft, peer: int, progress: Progress, *, tell_commit: bool) -> bool:
    """Sends one message, if there is something to say. Returns whether there may be more to say."""
    log = raft.log
    previous_index = progress.next_index - 1
    if not (
        progress.next_index <= log.last_index or progress.recheck or progress.state is ProgressState.PROBE
    ):
        if progress.sent_commit >= log.commit_index:
            return False
        if not (tell_commit or progress.sent_commit < progress.awaited_index <= log.commit_index):
            raft.append_due = True
            return False
    previous_term = log.term(previous_index)
    if previous_term is None or progress.next_index < log.first_index():
        return _send_snapshot(raft, peer, progress)
    entries = (
        log.read(progress.next_index, log.last_index + 1, raft.config.max_message_bytes)
        if progress.next_index <= log.last_index and not progress.full
        else ()
    )
    raft.send(
        AppendRequest(
            peer, raft.member_id, raft.term, previous_index, previous_term, entries, log.commit_index
        )
    )
    progress.sent(previous_index + len(entries), len(entries), log.commit_index)
    return bool(entries)


def _send_snapshot(raft: Raft, peer: int, progress: Progress) -> bool:
    """Asks the caller to send the state machine as it is now, to a member that can be expected to answer."""
    if not progress.recently_active:
        return False
    index = raft.log.applied_index
    term = raft.log.term(index)
    assert term is not None, f"the log was cut beyond the applied index {index}"
    progress.become_snapshot(index)
    raft.send(InstallSnapshot(peer, raft.member_id, raft.term, Snapshot(index, term, raft.configuration)))
    return False


def broadcast_heartbeat(raft: Raft) -> None:
    """Tells every follower that this member leads, and which round of reads is to be confirmed."""
    for peer in raft.peers:
        commit = min(raft.progress[peer].match_index, raft.log.commit_index)
        raft.send(Heartbeat(peer, raft.member_id, raft.term, commit, raft.reads.latest_round))


def maybe_commit(raft: Raft) -> None:
    """Commits what a majority has on disk, but only an entry of the own term (thesis, section 3.6.2, figure
    3.7)."""
    log = raft.log
    if raft.sole_voter:
        index = log.stable_index
    else:
        index = agreed(raft.progress[voter].match_index for voter in raft.configuration.voters)
    if index > log.commit_index and log.term(index) == raft.term:
        log.commit_index = index
        raft.append_due = True


def own_log_persisted(raft: Raft) -> None:
    """The leader's own disk has caught up: it is one voice of the majority, no more (thesis, section
    10.2.1)."""
    own = raft.progress[raft.member_id]
    if raft.log.stable_index > own.match_index:
        own.match_index = raft.log.stable_index
        maybe_commit(raft)


def confirm_reads(raft: Raft) -> None:
    """Lets all reads go whose round a majority has confirmed."""
    confirmed = agreed(raft.progress[voter].read_round for voter in raft.configuration.voters)
    for reader, index in raft.reads.confirmed(confirmed):
        if reader.member_id == raft.member_id:
            raft.read_states.append((reader.context, index))
        else:
            raft.send(
                ForwardReadResponse(
                    reader.member_id, raft.member_id, raft.term, reader.context, reader.incarnation, index
                )
            )
            if (progress := raft.progress.get(reader.member_id)) is not None:
                progress.awaits(index)
                raft.append_due = True


def on_append_response(raft: Raft, message: AppendResponse) -> None:
    """A member has taken, or could not take, what it was sent."""
    progress = raft.progress.get(message.sender)
    if progress is None:
        return
    progress.recently_active = True
    raft.append_due = True
    if message.rejected:
        # The follower named its last entry that could match; this log may know that it cannot (thesis,
        # section 3.5).
        hint, _ = raft.log.possible_match(message.hint_index, message.hint_term)
        progress.rejected(message.index, hint)
    elif progress.accepted(message.index, raft.log.first_index()):
        maybe_commit(raft)
    hand_over(raft)


def hand_over(raft: Raft) -> None:
    """Tells the target of a transfer to campaign, once it has the whole log (thesis, section 3.10)."""
    target = raft.progress.get(raft.transfer_target)
    if target is not None and target.match_index == raft.log.last_index:
        raft.send(TimeoutNow(raft.transfer_target, raft.member_id, raft.term))


def on_heartbeat_response(raft: Raft, message: HeartbeatResponse) -> None:
    """A member still follows. If it should have more than it has confirmed, something may have been lost."""
    progress = raft.progress.get(message.sender)
    if progress is None:
        return
    progress.recently_active = True
    progress.probe_sent = False
    if progress.match_index < raft.log.last_index or progress.state is ProgressState.PROBE:
        progress.recheck = True
        raft.append_due = True
    if message.read_round > progress.read_round:
        progress.read_round = message.read_round
        confirm_reads(raft)


def report_unreachable(raft: Raft, peer: int) -> None:
    """Messages to a member were lost: what was sent ahead has to be sent again."""
    progress = raft.progress.get(peer)
    if progress is not None and progress.state is ProgressState.REPLICATE:
        progress.become_probe()


def report_snapshot(raft: Raft, peer: int, *, succeeded: bool) -> None:
    """A snapshot has been taken in by a member, or never will be."""
    progress = raft.progress.get(peer)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    if not succeeded:
        progress.pending_snapshot = 0
    progress.become_probe()
    # Its own answer, or the next heartbeat's, opens the way again.
    progress.probe_sent = True


# The follower's side


def _follow(raft: Raft, leader_id: int) -> None:
    """A message of the leader of this term has arrived."""
    assert raft.role is not Role.LEADER, "two leaders in one term"
    if raft.role is not Role.FOLLOWER:
        raft.become_follower(raft.term, leader_id)
    raft.leader_id = leader_id
    raft.election_elapsed = 0


def on_append_request(raft: Raft, message: AppendRequest) -> None:
    """Takes the leader's entries, or says where the logs may part."""
    _follow(raft, message.sender)
    log = raft.log
    sender, own, term = message.sender, raft.member_id, raft.term
    if message.previous_index < log.commit_index:
        # An old message, overtaken by others: all that is committed equals the leader's log.
        raft.promise(AppendResponse(sender, own, term, log.commit_index))
        return
    last = log.accept(message.previous_index, message.previous_term, message.entries)
    if last is not None:
        log.commit_to(min(message.commit, last))
        raft.promise(AppendResponse(sender, own, term, last))
        return
    hint_index, hint_term = log.possible_match(message.previous_index, message.previous_term)
    raft.promise(AppendResponse(sender, own, term, message.previous_index, True, hint_index, hint_term))


def on_heartbeat(raft: Raft, message: Heartbeat) -> None:
    """The leader is alive. Its commit is never beyond what this member has confirmed."""
    _follow(raft, message.sender)
    raft.log.commit_to(message.commit)
    raft.send(HeartbeatResponse(message.sender, raft.member_id, raft.term, message.read_round))


def on_install_snapshot(raft: Raft, message: InstallSnapshot) -> None:
    """Replaces log and state, unless this member has all of it (thesis, section 5.1)."""
    _follow(raft, message.sender)
    log, snapshot = raft.log, message.snapshot
    if snapshot.index > log.commit_index:
        if log.term(snapshot.index) == snapshot.term:
            log.commit_to(snapshot.index)
        elif raft.member_id in snapshot.configuration.members:
            log.restore(snapshot)
            raft.set_configuration(snapshot.configuration)
            raft.snapshot = snapshot
    raft.promise(AppendResponse(message.sender, raft.member_id, raft.term, log.commit_index))
