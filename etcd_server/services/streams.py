"""The streams that are open: which service each belongs to, and the way of its events to it.

A stream whose client requires a leader (metadata "hasleader") is refused while none is known, and ends when
none has been known for three election time-outs: its client then tries another member (etcd:
server/etcdserver/api/v3rpc/interceptor.go monitorLeader).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from etcd_server.api.errors import NoLeader, Stopped
from etcd_server.machine.watchers import WatchHub
from etcd_server.services.core import Core
from etcd_server.services.events import (
    STREAM_HALF_CLOSE,
    STREAM_MESSAGE,
    STREAM_OPEN,
    STREAM_PAUSED,
    STREAM_REQUIRES_LEADER,
    STREAM_RESUMED,
    Effects,
    StreamEvent,
)
from etcd_server.services.health import Health
from etcd_server.services.lease import Lease
from etcd_server.services.watch import Watch

WATCH = "/etcdserverpb.Watch/Watch"
LEASE_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
STREAMS = (WATCH, LEASE_KEEP_ALIVE, HEALTH_WATCH)

ELECTIONS_WITHOUT_LEADER = 3
"""Election time-outs without a leader after which a stream that requires one ends."""


class Streams:
    """All open streams of one member."""

    def __init__(self, core: Core, hub: WatchHub, watch: Watch, lease: Lease, health: Health) -> None:
        self._core = core
        self._hub = hub
        self._watch = watch
        self._lease = lease
        self._health = health
        self._paths: dict[int, str] = {}
        self._requiring_leader: set[int] = set()

    def __contains__(self, stream_id: int) -> bool:
        return stream_id in self._paths

    def take(self, events: Iterable[StreamEvent], effects: Effects, now: float) -> None:
        for kind, stream_id, payload in events:
            self._take(kind, stream_id, payload, effects, now)

    def _take(self, kind: int, stream_id: int, payload: Any, effects: Effects, now: float) -> None:
        if kind == STREAM_OPEN:
            self._paths[stream_id] = payload
            if payload == WATCH:
                self._hub.open_stream(stream_id)
            return
        path = self._paths.get(stream_id)
        if path is None:
            return
        if kind == STREAM_MESSAGE:
            if path == WATCH:
                self._watch.request(stream_id, payload, now)
            elif path == LEASE_KEEP_ALIVE:
                self._lease.keep_alive(stream_id, payload)
            else:
                self._health.watch(stream_id, payload)
        elif kind == STREAM_HALF_CLOSE and path == LEASE_KEEP_ALIVE:
            self._lease.half_close(stream_id)
        elif kind == STREAM_PAUSED and path == WATCH:
            self._hub.pause(stream_id)
        elif kind == STREAM_RESUMED and path == WATCH:
            self._hub.resume(stream_id)
        elif kind == STREAM_REQUIRES_LEADER:
            if self._core.leader_id:
                self._requiring_leader.add(stream_id)
            else:
                self._end(stream_id, effects)

    def _end(self, stream_id: int, effects: Effects) -> None:
        effects.ended.append((stream_id, NoLeader()))
        self.close(stream_id)

    def tick(self, effects: Effects, now: float) -> None:
        """End the streams that require a leader when there has been none for long."""
        core = self._core
        if core.leader_id or not self._requiring_leader:
            return
        if now - core.leaderless_s >= ELECTIONS_WITHOUT_LEADER * core.settings.election_timeout_s:
            for stream_id in sorted(self._requiring_leader):
                self._end(stream_id, effects)

    def close(self, stream_id: int) -> None:
        path = self._paths.pop(stream_id, None)
        self._requiring_leader.discard(stream_id)
        if path == WATCH:
            self._hub.close_stream(stream_id)
        elif path == LEASE_KEEP_ALIVE:
            self._lease.close(stream_id)
        elif path == HEALTH_WATCH:
            self._health.close(stream_id)

    def end_all(self, effects: Effects) -> None:
        """The member stops: every stream ends and is told why."""
        effects.ended.extend((stream_id, Stopped()) for stream_id in self._paths)
