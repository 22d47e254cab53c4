"""grpc.health.v1.Health: Check and Watch of the server as a whole (service ""): etcd names no other.

A member serves while it knows a leader; a watch is told of each change (etcd:
server/etcdserver/api/v3rpc/health.go).
"""

from __future__ import annotations

from collections.abc import Sequence

from etcd_server.api.errors import UnknownService
from etcd_server.api.proto import health_pb2
from etcd_server.services.core import Core
from etcd_server.services.events import Effects

Status = health_pb2.HealthCheckResponse.ServingStatus


class Health:
    """The health service of one member."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._watching: dict[int, tuple[str, int]] = {}  # stream id: (service, status last told)

    def _status(self, service: str) -> int:
        if service:
            return Status.SERVICE_UNKNOWN
        return Status.SERVING if self._core.leader_id else Status.NOT_SERVING

    def check(self, calls: Sequence[tuple[int, health_pb2.HealthCheckRequest]]) -> None:
        for call_id, request in calls:
            status = self._status(request.service)
            if status == Status.SERVICE_UNKNOWN:
                self._core.answers.append((call_id, UnknownService()))
            else:
                response = health_pb2.HealthCheckResponse(status=status)  # type: ignore[arg-type]
                self._core.answers.append((call_id, response.SerializeToString()))

    def watch(self, stream_id: int, request: health_pb2.HealthCheckRequest) -> None:
        self._watching[stream_id] = (request.service, -1)

    def close(self, stream_id: int) -> None:
        self._watching.pop(stream_id, None)

    def deliver(self, effects: Effects) -> None:
        """Tell each watch what has changed since it was last told."""
        for stream_id, (service, told) in self._watching.items():
            status = self._status(service)
            if status != told:
                self._watching[stream_id] = (service, status)
                response = health_pb2.HealthCheckResponse(status=status)  # type: ignore[arg-type]
                effects.deliveries.append((stream_id, response.SerializeToString()))
