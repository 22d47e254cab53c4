"""Clusters in a hostile world: random schedules from a seed, and the invariants of Raft after each step.

Faults: messages lost, duplicated, reordered, members cut off in one direction or both, slow disks, crashes
that lose what was not persisted and what the state machine applied since its checkpoint, logs cut so that
snapshots are needed, membership changes. Then everything heals, and the cluster must come to rest: one
leader, equal states, everything answered. RAFT_SEEDS seeds are run, 1,000 unless told.
"""

import os
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from etcd_server.raft.confchange import ChangeKind, ConfChange
from etcd_server.raft.errors import Dropped
from etcd_server.raft.messages import AppendResponse, InstallSnapshot, Ready, VoteResponse
from etcd_server.raft.quorum import majority
from etcd_server.raft.state import Config, Role
from tests.golden.raft.lab import Envelope, Member, encode_change

SEEDS = int(os.environ.get("RAFT_SEEDS", "1000"))
SEEDS_PER_TEST = 50
STEPS = 6000


@dataclass
class World:
    """One run. `ledger`: what was applied at each index, by whoever was first."""

    seed: int
    members: dict[int, Member] = field(default_factory=dict)
    network: list[Envelope] = field(default_factory=list)
    cut_off: set[tuple[int, int]] = field(default_factory=set)
    ledger: list[tuple[int, int, bytes]] = field(default_factory=list)
    leaders: dict[int, int] = field(default_factory=dict)
    checked_commit: dict[int, int] = field(default_factory=dict)
    asked: dict[tuple[int, int], int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    sequence: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        draw = self.random
        self.lossy = draw.choice([0.0, 0.02, 0.2])
        self.duplicating = draw.choice([0.0, 0.1])
        self.crashing = draw.choice([0.0, 0.004, 0.02])
        self.cutting = draw.choice([0.0, 0.01])
        self.slow_disk = draw.choice([0.2, 0.6, 1.0])
        self.compacting = draw.choice([0.0, 0.02])
        self.changing = draw.choice([0.0, 0.01])
        self.settings = {
            "pre_vote": draw.random() < 0.7,
            "check_quorum": draw.random() < 0.7,
            "election_ticks": draw.choice([3, 10]),
            "max_inflight": draw.choice([1, 2, 100]),
            "max_message_bytes": draw.choice([1, 30, 1000]),
            "max_apply_bytes": draw.choice([10, 1000]),
            "recent_entries": draw.choice([1, 5, 100]),
        }
        voters = tuple(range(1, draw.choice([1, 2, 3, 3, 5]) + 1))
        for member in voters:
            self.add(member, voters)

    def add(self, member: int, voters: tuple[int, ...]) -> None:
        config = Config(member_id=member, voters=voters, **self.settings)  # type: ignore[arg-type]
        self.members[member] = Member(config, random.Random(self.seed * 100 + member))

    # What may happen

    def step(self) -> None:
        draw = self.random
        member = draw.choice(list(self.members.values()))
        if not member.alive:
            if draw.random() < 0.05:
                member.start()
            return
        if draw.random() < self.crashing:
            self.crash(member)
            return
        if draw.random() < self.cutting:
            self.partition()
        action = draw.random()
        if action < 0.08:
            member.node.tick()
        elif action < 0.14:
            self.request(member)
        elif action < 0.4:
            self.take(member)
        elif action < 0.6 and member.writes and draw.random() < self.slow_disk:
            member.persist(advance=draw.random() < 0.8 or len(member.writes) == 1)
            self.check_leader(member)
        elif self.network:
            self.carry(self.network.pop(draw.randrange(min(len(self.network), 8))))
        if draw.random() < 0.05:
            member.save_checkpoint()
        if draw.random() < self.compacting:
            index = member.checkpoint.applied_index - draw.randrange(4)
            if index > member.log.base_index:
                member.log.cut(index)

    def partition(self) -> None:
        """From now on some members hear none of the others, or are heard by none, or both."""
        draw, everybody = self.random, sorted(self.members)
        alone = draw.sample(everybody, draw.randrange(len(everybody)))
        deaf, mute = draw.choice([(True, True), (True, True), (True, False), (False, True)])
        self.cut_off = {
            (sender, to)
            for sender in everybody
            for to in everybody
            if (deaf and to in alone) or (mute and sender in alone)
        }
        self.counts["one way" if self.cut_off and deaf is not mute else "partition"] += 1

    def crash(self, member: Member) -> None:
        self.counts["crash"] += 1
        for _ in range(self.random.randrange(len(member.writes) + 1)):
            member.persist(advance=False)
        member.alive = False
        self.asked = {key: index for key, index in self.asked.items() if key[0] != member.member_id}

    def request(self, member: Member) -> None:
        draw, node = self.random, member.node
        self.sequence += 1
        kind = draw.random()
        try:
            if kind < 0.5:
                node.propose(b"%d" % self.sequence)
            elif kind < 0.9:
                node.read_index(self.sequence)
                self.asked[member.member_id, self.sequence] = len(self.ledger)
            elif kind < 0.93:
                node.transfer_leadership(draw.choice(list(self.members)))
            elif kind < 0.96:
                node.report_unreachable(draw.choice(list(self.members)))
            elif draw.random() < self.changing * 50:
                self.change(member)
        except Dropped:
            self.counts["refused"] += 1

    def change(self, member: Member) -> None:
        target = self.random.randrange(1, 7)
        if target not in self.members:
            self.add(target, self.members[1].config.voters)
        kind = self.random.choice([ChangeKind.ADD_VOTER, ChangeKind.ADD_LEARNER, ChangeKind.REMOVE])
        if kind is not ChangeKind.REMOVE or len(member.state.configuration.voters) > 2:
            member.node.propose_conf_change(encode_change(ConfChange(kind, target)))

    def carry(self, envelope: Envelope) -> None:
        """A message arrives, is lost, or arrives and will again."""
        message = envelope.message
        receiver = self.members[message.to]
        lost = not receiver.alive or (message.sender, message.to) in self.cut_off
        lost = lost or self.random.random() < self.lossy
        if not lost:
            if self.random.random() < self.duplicating:
                self.network.append(envelope)
            receiver.step(envelope)
            self.check_leader(receiver)
        self.counts["lost" if lost else type(message).__name__] += 1
        if isinstance(message, InstallSnapshot):
            sender = self.members[message.sender]
            if sender.alive:
                sender.node.report_snapshot(message.to, succeeded=not lost)

    def take(self, member: Member) -> None:
        before = member.state.applied_index
        taken = member.take()
        if taken is None:
            return
        ready, envelopes = taken
        self.check_applied(member, before)
        self.check_reads(member, ready)
        self.check_promises(member, envelopes)
        self.network += envelopes

    # What must always hold

    def check_applied(self, member: Member, before: int) -> None:
        """State Machine Safety, and with it Leader Completeness (Raft paper, figure 3)."""
        history = member.state.history
        assert len(history) == member.state.applied_index
        self.check_leader(member)
        for record in history[before:]:
            if record[0] > len(self.ledger):
                self.ledger.append(record)
                self.counts["committed"] += 1
            assert self.ledger[record[0] - 1] == record, f"two entries at index {record[0]}"

    def check_reads(self, member: Member, ready: Ready) -> None:
        """A read sees everything that anybody had applied when it was asked for (thesis, section 6.4)."""
        for context, index in ready.read_states:
            asked = self.asked.pop((member.member_id, context), None)
            if asked is not None:
                self.counts["read"] += 1
                assert index >= asked, f"a stale read: {index} < {asked}"

    def check_promises(self, member: Member, envelopes: list[Envelope]) -> None:
        """No vote and no acknowledgement leaves before its state is on the sender's disk (thesis, section
        3.8)."""
        log = member.log
        for envelope in envelopes:
            message = envelope.message
            if isinstance(message, VoteResponse) and message.granted and not message.pre_vote:
                saved = log.hard_state
                assert saved.term > message.term or (saved.term, saved.vote) == (message.term, message.to)
            elif isinstance(message, AppendResponse) and not message.rejected:
                assert log.last_index() >= message.index or log.hard_state.term > message.term

    def check_leader(self, member: Member) -> None:
        """Election Safety: one leader a term (Raft paper, figure 3). And what a leader of this term has
        committed is on the disks of a majority, by the configuration that it has applied."""
        status = member.node.status
        if status.role is not Role.LEADER:
            return
        assert self.leaders.setdefault(status.term, member.member_id) == member.member_id
        index = status.commit_index
        if index <= self.checked_commit.get(status.term, 0):
            return
        self.checked_commit[status.term] = index
        if index >= member.node._raft.term_start_index:
            holders = [
                voter
                for voter in status.configuration.voters
                if voter in self.members and self.holds(self.members[voter], index, status.term)
            ]
            voters = status.configuration.voters
            assert len(holders) >= majority(len(voters)), f"{index} is only on {holders} of {voters}"

    def holds(self, member: Member, index: int, term: int) -> bool:
        """Whether an entry, or a snapshot in its place, is on a member's disk."""
        log = member.log
        return log.base_index >= index or (log.last_index() >= index and log.term(index) >= term)

    def check_logs(self) -> None:
        """Log Matching: one (index, term), one history (Raft paper, figure 3)."""
        seen: dict[tuple[int, int], tuple[bytes, int]] = {}
        for member in self.members.values():
            for entry in member.log.stored:
                value = (entry.data, member.log.term(entry.index - 1))
                assert seen.setdefault((entry.index, entry.term), value) == value

    # Afterwards everything works again

    def heal(self) -> None:
        self.lossy = self.duplicating = 0.0
        self.cut_off.clear()
        for member in self.members.values():
            if not member.alive:
                member.start()
        for _ in range(400):
            for member in self.members.values():
                if self.random.random() < 0.7:
                    member.node.tick()
            self.settle()
            if self.at_rest():
                return
        raise AssertionError("no rest after healing")

    def settle(self) -> None:
        for _ in range(30):
            for member in self.members.values():
                while member.writes:
                    member.persist()
                    self.check_leader(member)
                self.take(member)
            arriving, self.network = self.network, []
            for envelope in arriving:
                self.carry(envelope)

    def at_rest(self) -> bool:
        leaders = [member for member in self.members.values() if member.leads]
        if not leaders:
            return False
        leader = max(leaders, key=lambda member: member.node.status.term)
        inside = leader.state.configuration.members
        status = leader.node.status
        return status.applied_index == status.last_index and all(
            self.members[member].state.history == leader.state.history for member in inside
        )


def run(seed: int) -> World:
    world = World(seed)
    for step in range(STEPS):
        world.step()
        if step % 100 == 0:
            world.check_logs()
    world.heal()
    world.check_logs()
    return world


@pytest.mark.parametrize("first_seed", range(0, SEEDS, SEEDS_PER_TEST))
def test_invariants_hold_and_the_cluster_recovers(first_seed: int) -> None:
    for seed in range(first_seed, min(first_seed + SEEDS_PER_TEST, SEEDS)):
        try:
            world = run(seed)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        assert world.counts["committed"] > 0, f"seed {seed}"


def test_the_same_seed_gives_the_same_run() -> None:
    assert run(7).ledger == run(7).ledger


def test_the_schedules_reach_what_they_are_to_test() -> None:
    """A fault that never happened, or a message that was never sent, proves nothing."""
    total: Counter[str] = Counter()
    for seed in range(1000, 1030):
        total += run(seed).counts
    for event in (
        "crash",
        "partition",
        "one way",
        "lost",
        "refused",
        "committed",
        "read",
        "VoteRequest",
        "AppendRequest",
        "InstallSnapshot",
        "TimeoutNow",
        "ForwardProposal",
        "ForwardReadResponse",
        "ForwardTransfer",
    ):
        assert total[event] > 0, f"{event} never happened: {total}"
