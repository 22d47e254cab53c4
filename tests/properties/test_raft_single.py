"""A single voter against a model: proposals, slow disks, crashes that lose what was not persisted, cut logs.

The model is a list. What was committed stays, in order, for ever; what was proposed and lost in a crash never
appears later; a read sees all that was applied when it was asked for.
"""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from etcd_server.raft.messages import HardState, Ready
from etcd_server.raft.state import Config, Role
from tests.golden.raft.lab import Member


class SingleVoter(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        config = Config(member_id=1, voters=(1,), recent_entries=2, recent_bytes=500, max_apply_bytes=20)
        self.member = Member(config, random.Random(1))
        self.proposals = 0
        self.reads = 0
        self.asked: dict[int, int] = {}
        self.committed: list[tuple[int, int, bytes]] = []
        self.lost: set[bytes] = set()
        self.hard_state = HardState()
        self.number = 0

    def take(self) -> Ready | None:
        taken = self.member.take()
        if taken is None:
            return None
        ready = taken[0]
        assert ready.number == self.number + 1
        self.number = ready.number
        for entry in ready.committed_entries:
            record = (entry.index, entry.term, entry.data)
            if entry.index > len(self.committed):
                assert entry.index == len(self.committed) + 1
                self.committed.append(record)
            assert self.committed[entry.index - 1] == record, "a committed entry changed"
            assert entry.data not in self.lost, "a lost proposal came back"
        for context, index in ready.read_states:
            assert index >= self.asked.pop(context), "a stale read"
        return ready

    @rule()
    def tick(self) -> None:
        self.member.node.tick()

    @precondition(lambda self: self.member.leads)
    @rule(size=st.integers(0, 30))
    def propose(self, size: int) -> None:
        self.proposals += 1
        self.member.node.propose(b"%d " % self.proposals + b"x" * size)

    @precondition(lambda self: self.member.leads)
    @rule()
    def read(self) -> None:
        self.reads += 1
        self.asked[self.reads] = self.member.state.applied_index
        self.member.node.read_index(self.reads)

    @rule()
    def ready(self) -> None:
        self.take()

    @precondition(lambda self: self.member.writes)
    @rule(count=st.integers(1, 3))
    def persist(self, count: int) -> None:
        """Several writes end; the last advance speaks for all."""
        for left in range(min(count, len(self.member.writes)), 0, -1):
            self.member.persist(advance=left == 1)

    @rule()
    def checkpoint(self) -> None:
        self.member.save_checkpoint()

    @rule(keep=st.integers(0, 4))
    def cut(self, keep: int) -> None:
        log = self.member.log
        index = self.member.checkpoint.applied_index - keep
        if index > log.base_index:
            log.cut(index)

    @rule(persisted=st.integers(0, 2))
    def crash(self, persisted: int) -> None:
        """Some writes reach the disk, but nobody is told; the rest is lost."""
        for _ in range(min(persisted, len(self.member.writes))):
            self.member.persist(advance=False)
        on_disk = {entry.data for entry in self.member.log.stored}
        applied = {data for _, _, data in self.committed}
        for ready in self.member.writes:
            self.lost |= {entry.data for entry in ready.entries if entry.data} - on_disk - applied
        self.asked.clear()
        self.number = 0
        self.member.start()

    @invariant()
    def hard_state_never_goes_back(self) -> None:
        saved = self.member.log.hard_state
        assert (saved.term, saved.commit) >= (self.hard_state.term, self.hard_state.commit)
        self.hard_state = saved

    @invariant()
    def indexes_are_in_order(self) -> None:
        status = self.member.node.status
        assert status.applied_index <= min(status.commit_index, status.stable_index)
        assert max(status.commit_index, status.stable_index) <= status.last_index
        assert status.stable_index <= self.member.log.last_index()

    def teardown(self) -> None:
        """When the disk works, all that is in the log is committed: the single voter always comes through."""
        self.take()
        for _ in range(3):
            self.member.node.tick()
            while self.take() is not None or self.member.writes:
                while self.member.writes:
                    self.member.persist()
        status = self.member.node.status
        assert (status.role, status.applied_index) == (Role.LEADER, status.last_index)
        assert self.member.state.history[-len(self.committed) :] == tuple(self.committed)
        assert not self.asked, "a read was never answered"


TestSingleVoter = SingleVoter.TestCase
TestSingleVoter.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
