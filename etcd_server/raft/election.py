"""Elections: time-outs, campaigns, votes, the term rules, and handing the leadership over.

Sources: Raft paper, section 5.2 and 5.4.1; thesis, sections 3.4, 3.6.1, 3.10 (leadership transfer), 6.2
(CheckQuorum), 9.6 (PreVote) and 4.2.3 (a member that hears its leader refuses to vote).
"""

from etcd_server.raft import replication
from etcd_server.raft.messages import (
    NO_MEMBER,
    AppendRequest,
    AppendResponse,
    Heartbeat,
    InstallSnapshot,
    Message,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from etcd_server.raft.quorum import VoteResult, majority, vote_result
from etcd_server.raft.state import Raft, Role


def tick(raft: Raft) -> None:
    """One unit of time has passed."""
    raft.election_elapsed += 1
    if raft.role is Role.LEADER:
        _tick_leader(raft)
    elif raft.sole_voter:
        # Nobody else can lead and nobody has to be waited for. A campaign that is under way waits for the
        # disk only.
        if raft.role is Role.FOLLOWER:
            campaign(raft)
    elif raft.election_elapsed >= raft.election_timeout:
        # Who cannot campaign goes on counting the silence: after it, others may have its vote.
        campaign(raft)


def _tick_leader(raft: Raft) -> None:
    if raft.election_elapsed >= raft.config.election_ticks:
        raft.election_elapsed = 0
        raft.transfer_target = NO_MEMBER  # It took an election time-out: the target is not able to.
        if raft.config.check_quorum and not _hears_quorum(raft):
            raft.become_follower(raft.term, NO_MEMBER)
            return
    raft.heartbeat_elapsed += 1
    if raft.heartbeat_elapsed >= raft.config.heartbeat_ticks:
        raft.heartbeat_elapsed = 0
        replication.broadcast_heartbeat(raft)


def _hears_quorum(raft: Raft) -> bool:
    """Whether a majority has answered since the last check; begins the next period."""
    voters = raft.configuration.voters
    active = sum(1 for voter in voters if voter == raft.member_id or raft.progress[voter].recently_active)
    for progress in raft.progress.values():
        progress.recently_active = False
    return active >= majority(len(voters))


def campaign(raft: Raft, *, transfer: bool = False) -> None:
    """Tries to become the leader, first by a pre-vote unless the leader itself wanted this.

    A member that has committed but not applied entries waits: a change of membership may be among them.
    """
    if raft.role is Role.LEADER or not raft.is_voter or raft.log.applied_index < raft.log.commit_index:
        return
    if raft.config.pre_vote and not transfer and not raft.sole_voter:
        raft.become_pre_candidate()
        _request_votes(raft, raft.term + 1, pre_vote=True)
        _count(raft)
    else:
        raft.become_candidate()
        _request_votes(raft, raft.term, transfer=transfer)


def _request_votes(raft: Raft, term: int, *, pre_vote: bool = False, transfer: bool = False) -> None:
    """Asks the other voters. A real request waits for the disk: a member that forgot its campaign and part of
    its log in a crash could otherwise campaign in the same term again, and count votes that were given to a
    longer log.
    """
    log = raft.log
    send = raft.send if pre_vote else raft.promise
    for voter in raft.configuration.voters:
        if voter != raft.member_id:
            send(VoteRequest(voter, raft.member_id, term, log.last_index, log.last_term, pre_vote, transfer))


def own_vote_persisted(raft: Raft, term: int) -> None:
    """This member's vote for itself in `term` is on disk: now it counts."""
    if raft.role is Role.CANDIDATE and raft.term == term:
        raft.votes[raft.member_id] = True
        _count(raft)


def _count(raft: Raft) -> None:
    match vote_result(raft.configuration.voters, raft.votes):
        case VoteResult.WON if raft.role is Role.PRE_CANDIDATE:
            raft.become_candidate()
            _request_votes(raft, raft.term)
        case VoteResult.WON:
            raft.become_leader()
        case VoteResult.LOST:
            raft.become_follower(raft.term, NO_MEMBER)
        case VoteResult.PENDING:
            pass


def admit(raft: Raft, message: Message) -> bool:
    """The term rules for a message of another member (Raft paper, section 5.1): whether it is to be handled.

    A higher term makes this member follow, except where a vote is only talked about.
    """
    if message.term > raft.term:
        if isinstance(message, VoteRequest):
            if not message.transfer and _hears_leader(raft):
                return False
            if message.pre_vote:
                return True
        elif isinstance(message, VoteResponse) and message.pre_vote and message.granted:
            return True
        leads = isinstance(message, AppendRequest | Heartbeat | InstallSnapshot)
        raft.become_follower(message.term, message.sender if leads else NO_MEMBER)
        return True
    if message.term == raft.term:
        return True
    if isinstance(message, VoteRequest) and message.pre_vote:
        raft.send(_refusal(raft, message))
    elif isinstance(message, AppendRequest | Heartbeat) and (
        raft.config.check_quorum or raft.config.pre_vote
    ):
        # A leader of an older term: a member that came back with a higher term cannot win a pre-vote against
        # it, and
        # would not be replicated to. Telling the term lets the old leader step down (thesis, section 9.6).
        raft.promise(AppendResponse(message.sender, raft.member_id, raft.term, 0))
    return False


def _hears_leader(raft: Raft) -> bool:
    """Whether the leader was heard within the shortest election time-out (thesis, section 4.2.3)."""
    return (
        raft.config.check_quorum
        and raft.leader_id != NO_MEMBER
        and raft.election_elapsed < raft.config.election_ticks
    )


def on_vote_request(raft: Raft, message: VoteRequest) -> None:
    """Votes once a term, and only for a log at least as up-to-date as its own."""
    unbound = raft.vote == NO_MEMBER and raft.leader_id == NO_MEMBER
    may_vote = raft.vote == message.sender or unbound or (message.pre_vote and message.term > raft.term)
    granted = may_vote and raft.log.is_up_to_date(message.last_index, message.last_term)
    if not granted:
        (raft.send if message.pre_vote else raft.promise)(_refusal(raft, message))
    elif message.pre_vote:
        raft.send(VoteResponse(message.sender, raft.member_id, message.term, granted=True, pre_vote=True))
    else:
        raft.vote = message.sender
        raft.election_elapsed = 0
        raft.promise(VoteResponse(message.sender, raft.member_id, raft.term, granted=True))


def _refusal(raft: Raft, message: VoteRequest) -> VoteResponse:
    log = raft.log
    commit_term = log.term(log.commit_index) or 0
    return VoteResponse(
        message.sender, raft.member_id, raft.term, False, message.pre_vote, log.commit_index, commit_term
    )


def on_vote_response(raft: Raft, message: VoteResponse) -> None:
    """Counts a vote in the campaign that it was given for.

    A refusal may tell of entries that are committed. A leader that has removed itself cannot tell it any
    more, and the one that is left would need its vote for ever. That both hold the same entry at the same
    index says that they hold the same before it (Log Matching: Raft paper, figure 3).
    """
    log = raft.log
    if (
        log.commit_index < message.commit <= log.last_index
        and log.term(message.commit) == message.commit_term
    ):
        log.commit_to(message.commit)
    if message.pre_vote is not (raft.role is Role.PRE_CANDIDATE):
        return
    if message.pre_vote and message.granted and message.term != raft.term + 1:
        return
    raft.votes.setdefault(message.sender, message.granted)
    _count(raft)


def on_timeout_now(raft: Raft, message: TimeoutNow) -> None:
    """The leader hands over to this member."""
    campaign(raft, transfer=True)
