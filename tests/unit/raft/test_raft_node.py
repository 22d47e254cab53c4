"""The face of the core: start, refusals, costs, and the table of what each role does with a message."""

import random
from typing import Any

import pytest

from etcd_server.raft import messages
from etcd_server.raft.confchange import ChangeKind, ConfChange
from etcd_server.raft.errors import Dropped, LogGap, ProposalDropped, ReadDropped, WrongRecipient
from etcd_server.raft.messages import (
    AppendRequest,
    AppendResponse,
    Entry,
    EntryKind,
    ForwardProposal,
    ForwardRead,
    ForwardReadResponse,
    HardState,
    Heartbeat,
    HeartbeatResponse,
    Message,
    Ready,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from etcd_server.raft.node import HANDLERS, TERMLESS, Node
from etcd_server.raft.state import Config, Role
from tests.golden.raft.lab import Member, MemoryLog, encode_change


def single() -> Member:
    """A single voter that leads and has committed its first entry."""
    member = Member(Config(member_id=1, voters=(1,)), random.Random(1))
    member.node.tick()
    settle(member)
    return member


def settle(member: Member) -> list[Ready]:
    """Does all that a member wants done; its messages are lost."""
    taken = []
    while (one := member.take()) is not None or member.writes:
        if one is not None:
            taken.append(one[0])
        while member.writes:
            member.persist()
    return taken


def three(*, pre_vote: bool = True) -> Node:
    return Node(Config(member_id=1, voters=(1, 2, 3), pre_vote=pre_vote), MemoryLog(), random.Random(1))


def test_a_single_voter_leads_after_its_first_tick() -> None:
    status = single().node.status
    assert (status.role, status.leader_id, status.term, status.commit_index) == (Role.LEADER, 1, 1, 1)


def test_a_new_leader_commits_an_empty_entry() -> None:
    """Raft thesis, section 6.4: a no-op at the beginning of each term."""
    member = Member(Config(member_id=1, voters=(1,)), random.Random(1))
    member.node.tick()
    committed = [entry for ready in settle(member) for entry in ready.committed_entries]
    assert [(entry.index, entry.term, entry.kind, entry.data) for entry in committed] == [
        (1, 1, EntryKind.EMPTY, b"")
    ]


def test_an_own_vote_counts_only_when_it_is_on_disk() -> None:
    """Raft thesis, section 3.8; the disk may be slow for longer than an election time-out."""
    node = Node(Config(member_id=1, voters=(1,)), MemoryLog(), random.Random(1))
    node.tick()
    ready = node.ready()
    assert ready is not None and ready.hard_state == HardState(1, 1, 0)
    for _ in range(100):
        node.tick()
    assert (node.status.role, node.status.term, node.ready()) == (Role.CANDIDATE, 1, None)
    node.advance(ready.number)
    assert node.status.role is Role.LEADER


def test_ready_numbers_are_consecutive_and_nothing_is_handed_out_twice() -> None:
    member = single()
    seen: list[int] = []
    for turn in range(20):
        member.node.propose(b"%d" % turn)
        one = member.take()
        assert one is not None
        seen.append(one[0].number)
        if turn % 3 == 2:
            while member.writes:
                member.persist()
    while member.writes:
        member.persist()
    settle(member)
    assert seen == list(range(seen[0], seen[0] + 20))
    assert [data for _, _, data in member.state.history[1:]] == [b"%d" % turn for turn in range(20)]


def test_advance_is_idempotent_and_ignores_readys_without_writes() -> None:
    member = single()
    member.node.read_index(1)
    ready = member.node.ready()
    assert ready is not None and not ready.must_persist
    before = member.node.status
    member.node.advance(ready.number)
    member.node.advance(ready.number)
    assert member.node.status == before


@pytest.mark.parametrize("entries", [1, 10, 100])
def test_a_turn_asks_the_disk_for_nothing(entries: int) -> None:
    """The hot path reads no old entries, however long the log is."""
    member = single()

    def forbidden(*_: int) -> list[None]:
        raise AssertionError("the hot path read from disk")

    member.log.entries = forbidden  # type: ignore[method-assign,assignment]
    for _ in range(entries):
        member.node.propose(b"x")
    assert sum(len(ready.committed_entries) for ready in settle(member)) == entries


def test_a_hard_state_is_saved_for_a_commit_only_along_with_entries() -> None:
    """Raft paper, figure 2: the commit index is volatile; a sync for it alone would be wasted."""
    member = single()
    member.node.propose(b"x")
    first = member.node.ready()
    assert first is not None and first.hard_state == HardState(1, 1, 1)
    member.log.save(first)
    member.node.advance(first.number)
    second = member.node.ready()
    assert second is not None and second.committed_entries and second.hard_state is None


def test_refusals_are_typed() -> None:
    node = three()
    with pytest.raises(ProposalDropped, match="there is no leader"):
        node.propose(b"x")
    with pytest.raises(ReadDropped, match="there is no leader"):
        node.read_index(1)
    assert issubclass(ProposalDropped, Dropped) and issubclass(ReadDropped, Dropped)


def test_a_message_for_another_member_is_refused() -> None:
    """etcd issue 17814."""
    with pytest.raises(WrongRecipient, match="for member 2 arrived at member 1"):
        three().step(Heartbeat(2, 3, 1, 0))


def test_a_log_that_does_not_join_the_state_is_refused() -> None:
    with pytest.raises(LogGap):
        Node(Config(member_id=1, voters=(1,), applied_index=5), MemoryLog(), random.Random(1))


@pytest.mark.parametrize(
    "settings",
    [
        {"member_id": 0},
        {"member_id": 1, "election_ticks": 1},
        {"member_id": 1, "heartbeat_ticks": 0},
        {"member_id": 1, "max_inflight": 0},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Config(voters=(1,), **settings)


def test_time_outs_are_spread_over_one_election_time_out() -> None:
    """Raft thesis, section 3.4: randomized, so that split votes are rare."""
    seen = set()
    for seed in range(200):
        node = Node(Config(member_id=1, voters=(1, 2, 3)), MemoryLog(), random.Random(seed))
        ticks = 0
        while node.status.role is Role.FOLLOWER:
            node.tick()
            ticks += 1
        seen.add(ticks)
    assert seen == set(range(10, 20))


def test_a_vote_request_waits_for_the_disk_and_a_pre_vote_does_not() -> None:
    """A campaign that a crash forgets must not have been heard of (thesis, section 3.8)."""
    node = three(pre_vote=False)
    while node.status.role is Role.FOLLOWER:
        node.tick()
    first = node.ready()
    assert first is not None and first.hard_state == HardState(1, 1, 0) and not first.messages
    node.advance(first.number)
    second = node.ready()
    assert second is not None and all(isinstance(message, VoteRequest) for message in second.messages)

    node = three()
    while node.status.role is Role.FOLLOWER:
        node.tick()
    first = node.ready()
    assert first is not None and not first.must_persist
    assert all(isinstance(message, VoteRequest) and message.pre_vote for message in first.messages)


def test_an_answer_for_an_earlier_life_is_nobodys() -> None:
    """A read context may be used again after a restart; a late answer to its namesake would be a stale
    read."""
    node = three()
    node.step(Heartbeat(1, 2, 1, 0))
    node.read_index(7)
    ready = node.ready()
    assert ready is not None
    asked = next(message for message in ready.messages if isinstance(message, ForwardRead))
    node.step(ForwardReadResponse(1, 2, 1, 7, asked.incarnation + 1, 3))
    assert node.ready() is None
    node.step(ForwardReadResponse(1, 2, 1, 7, asked.incarnation, 3))
    ready = node.ready()
    assert ready is not None and ready.read_states == [(7, 3)]


def test_votes_of_strangers_and_late_pre_votes_do_not_count() -> None:
    node = three(pre_vote=False)
    while node.status.role is Role.FOLLOWER:
        node.tick()
    ready = node.ready()
    assert ready is not None
    node.advance(ready.number)
    node.step(VoteResponse(1, 9, 1, granted=True))
    node.step(VoteResponse(1, 2, 2, granted=True, pre_vote=True))
    assert node.status.leader_id == 0
    node.step(VoteResponse(1, 2, 1, granted=True))
    assert node.status.leader_id == 1


def test_a_learner_does_not_follow_an_order_to_campaign() -> None:
    node = Node(Config(member_id=4, voters=(1, 2, 3), learners=(4,)), MemoryLog(), random.Random(1))
    node.step(Heartbeat(4, 1, 1, 0))
    node.step(TimeoutNow(4, 1, 1))
    assert node.status.role is Role.FOLLOWER


def test_a_candidate_follows_a_leader_of_its_term() -> None:
    """Raft thesis, section 3.4."""
    node = three(pre_vote=False)
    while node.status.role is Role.FOLLOWER:
        node.tick()
    node.step(AppendRequest(1, 2, 1, 0, 0, (), 0))
    assert (node.status.role, node.status.leader_id, node.status.term) == (Role.FOLLOWER, 2, 1)


def test_every_message_has_a_handler_in_some_role() -> None:
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)}
    kinds.remove(Message)
    assert {kind for handlers in HANDLERS.values() for kind in handlers} == kinds
    assert kinds > TERMLESS


def test_a_response_for_a_member_that_was_removed_meanwhile_is_ignored() -> None:
    member = single()
    member.node.apply_conf_change(ConfChange(ChangeKind.ADD_LEARNER, 2))
    member.node.apply_conf_change(ConfChange(ChangeKind.REMOVE, 2))
    member.node.step(HeartbeatResponse(1, 2, 1))
    assert member.node.status.peers == ()


def test_a_member_may_learn_from_its_log_that_it_is_a_voter() -> None:
    """A new cluster begins with a log that says who its members are, and with nothing applied."""
    member = Member(Config(member_id=1, voters=()), random.Random(1))
    change = Entry(1, 1, EntryKind.CONF_CHANGE, encode_change(ConfChange(ChangeKind.ADD_VOTER, 1)))
    member.log.save(Ready(1, hard_state=HardState(1, 0, 1), entries=[change]))
    member.start()
    member.node.tick()
    settle(member)
    assert member.node.status.role is Role.FOLLOWER
    member.node.tick()
    settle(member)
    status = member.node.status
    assert (status.role, status.term, status.commit_index) == (Role.LEADER, 2, 2)


def test_that_a_change_of_membership_is_committed_survives_a_crash() -> None:
    """Others act on it: a member that was removed goes. Who forgot would wait for its vote for ever."""
    member = single()
    member.node.propose_conf_change(encode_change(ConfChange(ChangeKind.ADD_LEARNER, 2)))
    settle(member)
    assert member.log.hard_state.commit == member.log.last_index()


def leading() -> tuple[Node, int]:
    """A leader of three, and the index that it and member 2 have on disk and that is committed."""
    node = three(pre_vote=False)
    while node.status.role is Role.FOLLOWER:
        node.tick()
    persist(node)
    node.step(VoteResponse(1, 2, 1, granted=True))
    persist(node)
    index = node.status.last_index
    for member in (2, 3):
        node.step(AppendResponse(1, member, 1, index))
    persist(node)
    assert (node.status.role, node.status.commit_index) == (Role.LEADER, index)
    return node, index


def persist(node: Node, *, tell_commit: bool = True) -> list[Message]:
    """Has everything written at once; what the node says meanwhile."""
    said: list[Message] = []
    while (ready := node.ready(tell_commit=tell_commit)) is not None:
        said += ready.messages
        node.advance(ready.number)
    return said


def commit(node: Node, index: int) -> None:
    node.step(AppendResponse(1, 2, 1, index))


def test_news_of_a_commit_alone_can_wait_for_the_next_entries() -> None:
    node, index = leading()
    node.propose(b"first")
    assert len(persist(node, tell_commit=False)) == 2
    assert not node.owes_commit
    commit(node, index + 1)
    assert persist(node, tell_commit=False) == [] and node.owes_commit
    node.propose(b"second")
    said = persist(node, tell_commit=False)
    assert [(message.to, message.commit) for message in said] == [(2, index + 1), (3, index + 1)]  # type: ignore[attr-defined]
    assert not node.owes_commit


def test_news_of_a_commit_that_waited_long_enough_is_told() -> None:
    node, index = leading()
    node.propose(b"first")
    persist(node)
    commit(node, index + 1)
    assert persist(node, tell_commit=False) == []
    assert [(message.to, message.commit) for message in persist(node)] == [(2, index + 1), (3, index + 1)]  # type: ignore[attr-defined]
    assert not node.owes_commit


def test_who_waits_for_an_entry_hears_of_its_commit_at_once() -> None:
    """The member that passed a proposal on, or a read, has somebody who waits for it."""
    node, index = leading()
    node.step(ForwardProposal(1, 3, 1, EntryKind.NORMAL, b"first"))
    persist(node, tell_commit=False)
    commit(node, index + 1)
    said = persist(node, tell_commit=False)
    assert [(message.to, message.commit) for message in said] == [(3, index + 1)]  # type: ignore[attr-defined]
    assert node.owes_commit

    node.step(ForwardRead(1, 2, 1, 7, 5))
    round_ = next(m.read_round for m in persist(node, tell_commit=False) if isinstance(m, Heartbeat))
    node.step(HeartbeatResponse(1, 2, 1, round_))
    said = persist(node, tell_commit=False)
    assert [type(message) for message in said] == [ForwardReadResponse, AppendRequest]
    assert {message.to for message in said} == {2} and not node.owes_commit
