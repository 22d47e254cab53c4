"""etcdserverpb.Maintenance: Status and Alarm."""

from __future__ import annotations

from collections.abc import Sequence

from etcd_server.api.proto import rpc_pb2
from etcd_server.raft.node import Node
from etcd_server.services.core import Core
from etcd_server.services.proposals import ALARM
from etcd_server.services.reads import Reads

NO_LEADER = "etcdserver: no leader"


class Maintenance:
    """Status and Alarm of one member."""

    def __init__(self, core: Core, reads: Reads, node: Node) -> None:
        self._core = core
        self._reads = reads
        self._node = node

    def status(self, calls: Sequence[tuple[int, rpc_pb2.StatusRequest]]) -> None:
        core, machine, settings = self._core, self._core.machine, self._core.settings
        status = self._node.status
        response = rpc_pb2.StatusResponse(
            version=settings.server_version,
            dbSize=machine.database.size_bytes,
            dbSizeInUse=machine.database.size_in_use_bytes,
            leader=core.leader_id,
            raftIndex=status.commit_index,
            raftTerm=status.term,
            raftAppliedIndex=machine.applied_index,
            isLearner=False,
            storageVersion=settings.cluster_version,
            dbSizeQuota=max(settings.quota_bytes, 0),
            downgradeInfo=rpc_pb2.DowngradeInfo(),
        )
        if not core.leader_id:
            response.errors.append(NO_LEADER)
        # One line each, with the space at its end, as Go prints the message.
        response.errors.extend(
            f"memberID:{alarm.memberID} alarm:{rpc_pb2.AlarmType.Name(alarm.alarm)} "
            for alarm in machine.alarms.all()
        )
        body = response.SerializeToString()
        for call_id, _ in calls:
            core.reply(call_id, body)

    def alarm(self, calls: Sequence[tuple[int, rpc_pb2.AlarmRequest]]) -> None:
        for call_id, request in calls:
            self._core.propose(ALARM, request, call_id)
