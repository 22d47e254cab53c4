"""etcdserverpb.Maintenance: Status, Alarm and MoveLeader."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.raft.node import Node
from etcd_server.services.core import Core
from etcd_server.services.proposals import ALARM
from etcd_server.services.reads import Reads

NO_LEADER = "etcdserver: no leader"


@dataclass(frozen=True, slots=True)
class Move:
    """A call of MoveLeader that is not answered yet; `target` is to lead."""

    call_id: int
    target: int
    deadline_s: float


class Maintenance:
    """Status, Alarm and MoveLeader of one member."""

    def __init__(self, core: Core, reads: Reads, node: Node) -> None:
        self._core = core
        self._reads = reads
        self._node = node
        self._moves: deque[Move] = deque()
        self.now = 0.0

    def status(self, calls: Sequence[tuple[int, rpc_pb2.StatusRequest]]) -> None:
        core, machine, settings = self._core, self._core.machine, self._core.settings
        status = self._node.status
        response = rpc_pb2.StatusResponse(
            version=settings.server_version,
            dbSize=machine.database.size_bytes,
            dbSizeInUse=machine.database.size_in_use_bytes,
            leader=status.leader_id,
            raftIndex=status.commit_index,
            raftTerm=status.term,
            raftAppliedIndex=machine.applied_index,
            isLearner=core.is_learner,
            storageVersion=settings.cluster_version,
            dbSizeQuota=max(settings.quota_bytes, 0),
            downgradeInfo=rpc_pb2.DowngradeInfo(),
        )
        if not status.leader_id:
            response.errors.append(NO_LEADER)
        # One line each, with the space at its end, as Go prints the message.
        response.errors.extend(
            f"memberID:{alarm.memberID} alarm:{rpc_pb2.AlarmType.Name(alarm.alarm)} "
            for alarm in machine.alarms.all()
        )
        body = response.SerializeToString()
        for call_id, _ in calls:
            core.reply(call_id, body)

    def move_leader(self, calls: Sequence[tuple[int, rpc_pb2.MoveLeaderRequest]]) -> None:
        """Have another voter lead; answered when it does (etcd: server/etcdserver/server.go MoveLeader)."""
        core = self._core
        for call_id, request in calls:
            member = core.machine.members.get(request.targetID)
            if not core.is_leader:
                core.answer(call_id, errors.NotLeader())
            elif member is None or member.isLearner:
                core.answer(call_id, errors.BadLeaderTransferee())
            else:
                if core.settings.member_id != member.ID:
                    self._node.transfer_leadership(member.ID)
                self._moves.append(Move(call_id, member.ID, self.now + core.settings.request_timeout_s))
        self._answer_moves()

    def _answer_moves(self) -> None:
        core, moves = self._core, self._moves
        if not moves:
            return
        self._moves = deque()
        # Raft gives a transfer up after an election time-out; this member then still leads.
        target = self._node.status.transfer_target if core.is_leader else 0
        for move in moves:
            if core.leader_id == move.target:
                core.answers.append((move.call_id, b""))  # etcd gives this answer no header
            elif move.deadline_s <= self.now or (core.is_leader and target != move.target):
                core.answer(move.call_id, errors.TimedOutLeaderTransfer())
            else:
                self._moves.append(move)

    def tick(self) -> None:
        """Answer those who asked for another leader, once it leads or will not."""
        self._answer_moves()

    def stop(self) -> None:
        """The member stops: everyone who waits is told."""
        while self._moves:
            self._core.answer(self._moves.popleft().call_id, errors.Stopped())

    def alarm(self, calls: Sequence[tuple[int, rpc_pb2.AlarmRequest]]) -> None:
        for call_id, request in calls:
            self._core.propose(ALARM, request, call_id)
