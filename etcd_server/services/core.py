"""What all services of one member share: settings, the machine, and the answers of the turn.

`Headers` writes the `header` field that each etcd response begins with. Responses are made by joining
serialised protobuf fields (a message is the concatenation of its fields), so a header costs a few bytes, not
a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Protocol

from google.protobuf.message import Message

from etcd_server.api import errors
from etcd_server.api.encoding import varint
from etcd_server.api.errors import EtcdError
from etcd_server.machine.apply import Machine
from etcd_server.services.events import Answer, Effects
from etcd_server.services.peers import Peers
from etcd_server.services.proposals import Outcome, Proposals, Waiter


class Random(Protocol):
    """The randomness that services are given: `random.Random`, seeded in the simulator."""

    def getrandbits(self, k: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What an administrator sets, as far as the services need it. Times in seconds, sizes in bytes."""

    cluster_id: int
    member_id: int
    member_name: str = "default"
    client_urls: tuple[str, ...] = ()
    server_version: str = "3.6.0"
    cluster_version: str = "3.6.0"
    heartbeat_interval_s: float = 0.1
    election_timeout_s: float = 1.0
    max_txn_operations: int = 128
    max_request_bytes: int = 1_572_864
    quota_bytes: int = 2 * 1024**3
    """0 or less: no quota."""
    snapshot_count: int = 10_000
    catch_up_entries: int = 5_000
    auto_compaction_mode: str = "periodic"
    auto_compaction_retention: float = 0.0
    """Seconds in mode "periodic", revisions in mode "revision"; 0: off."""
    progress_notify_interval_s: float = 600.0
    strict_reconfig_check: bool = True
    max_learners: int = 1
    initial_ticks: int = 0
    """Of the first election time-out, how much passes at once when the other members are there."""
    commit_interval_s: float = 0.1

    @property
    def request_timeout_s(self) -> float:
        """As etcd's ReqTimeout (server/config/config.go): 5 s for a queue, plus two elections."""
        return 5.0 + 2.0 * self.election_timeout_s

    @property
    def minimum_lease_ttl_s(self) -> int:
        """ceil(3 * election ticks / 2 * heartbeat), at least a second (etcd: server/etcdserver/server.go)."""
        return max(1, -int(-1.5 * self.election_timeout_s // 1))


class Headers:
    """Serialised `header` fields of etcdserverpb responses for one member."""

    def __init__(self, cluster_id: int, member_id: int) -> None:
        self._identity = b"\x08" + varint(cluster_id) + b"\x10" + varint(member_id)
        self._term = b""
        self.term = 0

    def set_term(self, term: int) -> None:
        self.term = term
        self._term = b"\x20" + varint(term) if term else b""

    def __call__(self, revision: int) -> bytes:
        """`0x0a len ResponseHeader{cluster_id, member_id, revision, raft_term}`."""
        header = self._identity + b"\x18" + varint(revision) + self._term
        return b"\x0a" + varint(len(header)) + header


class Core:
    """The shared state of a member's services; it lives as long as the engine."""

    def __init__(self, settings: Settings, machine: Machine, proposals: Proposals) -> None:
        self.settings = settings
        self.machine = machine
        self.proposals = proposals
        self.header = Headers(settings.cluster_id, settings.member_id)
        self.peers = Peers(settings.member_id, settings.server_version)
        self.effects = Effects()
        """Those of the turn."""
        self.answers: list[Answer] = self.effects.answers
        self.is_leader = False
        self.is_learner = False
        self.leader_id = 0
        """0: no leader is known."""
        self.elected_s = -inf
        """When this member came to know the leader, or the last one that it knew."""
        self.leaderless_s = -inf
        """Since when no leader is known, if none is."""
        self.disk_full = False
        """There is little room on the device: what makes the store grow is refused."""
        self.log_full = False
        """There is no room for the log: nothing can be proposed."""
        self.state_full = False
        """There is no room to commit the state: what was applied is kept in memory, and in the log."""
        self.space_exceeded = False
        """The size of state.db has reached the quota, as of the last look."""
        self.refused_for_space = False
        """A request was refused because of it, and the alarm is still to be raised."""

    def members_changed(self) -> None:
        """The membership has been read, or a change of it has been applied."""
        own = self.machine.members.get(self.settings.member_id)
        self.is_learner = own is not None and own.isLearner
        self.effects.members_changed = True

    def answer(self, waiter: Waiter, outcome: Outcome) -> None:
        """Tell one waiter the outcome of its command."""
        if waiter is None:
            return
        if not isinstance(waiter, int):
            waiter(outcome)
        elif isinstance(outcome, EtcdError):
            self.answers.append((waiter, outcome))
        else:
            self.answers.append((waiter, self.header(outcome[0]) + outcome[1]))

    def refuses_growth(self) -> EtcdError | None:
        """The error for requests that would make the store larger, or None when there is room."""
        if self.space_exceeded:
            self.refused_for_space = True
        if self.disk_full or self.refuses_everything or self.space_exceeded or self.machine.alarms.no_space:
            return errors.NoSpace()
        return None

    @property
    def refuses_everything(self) -> bool:
        """The disk is so full that no change at all can be taken."""
        return self.log_full or self.state_full

    def propose(self, tag: bytes, request: Message, waiter: Waiter) -> None:
        """Put a request into the log unless it is larger than a request may be."""
        data = request.SerializeToString()
        if len(data) > self.settings.max_request_bytes:
            self.answer(waiter, errors.RequestTooLarge())
        elif self.refuses_everything:
            self.answer(waiter, errors.NoSpace())
        else:
            self.proposals.add(tag, data, waiter)

    def propose_as_leader(self, tag: bytes, request: Message, waiter: Waiter) -> None:
        """Put into the log what rests on what only the leader knows. It is for this term or not at all: the
        waiter is told NotLeader when the leadership has gone."""
        if self.refuses_everything:
            self.answer(waiter, errors.NoSpace())
        else:
            self.proposals.add_own(tag, request.SerializeToString(), waiter)

    def timed_out(self, begun_s: float) -> EtcdError:
        """What to tell who asked at `begun_s` for a change whose outcome is not known in time (etcd:
        parseProposeCtxErr)."""
        elections_s = 2.0 * self.settings.election_timeout_s
        if self.elected_s - elections_s < begun_s < self.elected_s:
            return errors.TimedOutLeaderFailure()
        if self.is_leader:
            voters = [member.ID for member in self.machine.members.all() if not member.isLearner]
            reached = self.peers.reaches_quorum_since(voters, begun_s)
        else:
            reached = not self.leader_id or self.peers.connected_since_s(self.leader_id) <= begun_s
        return errors.TimedOut() if reached else errors.TimedOutConnectionLost()

    def reply(self, call_id: int, body: bytes = b"") -> None:
        """Answer a call at the current revision."""
        self.answers.append((call_id, self.header(self.machine.revision) + body))
