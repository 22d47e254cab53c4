"""etcdserverpb.Cluster: the members."""

from __future__ import annotations

from collections.abc import Sequence

from etcd_server.api.proto import rpc_pb2
from etcd_server.services.core import Core
from etcd_server.services.reads import Reads


class Cluster:
    """MemberList of one member."""

    def __init__(self, core: Core, reads: Reads) -> None:
        self._core = core
        self._reads = reads

    def member_list(self, calls: Sequence[tuple[int, rpc_pb2.MemberListRequest]]) -> None:
        linearizable = []
        for call_id, request in calls:
            if request.linearizable:
                linearizable.append((self._answer, call_id, request))
            else:
                self._answer(call_id, request)
        self._reads.add(linearizable)

    def _answer(self, call_id: int, request: rpc_pb2.MemberListRequest) -> None:
        response = rpc_pb2.MemberListResponse(members=self._core.machine.members.all())
        # etcd's answers of this service carry no revision (api/v3rpc/member.go fills in cluster, member and
        # term).
        self._core.answers.append((call_id, self._core.header(0) + response.SerializeToString()))
