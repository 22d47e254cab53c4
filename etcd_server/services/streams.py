"""The streams that are open: which service each belongs to, and the way of its events to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from etcd_server.api.errors import Stopped
from etcd_server.machine.watchers import WatchHub
from etcd_server.services.events import (
    STREAM_HALF_CLOSE,
    STREAM_MESSAGE,
    STREAM_OPEN,
    STREAM_PAUSED,
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


class Streams:
    """All open streams of one member."""

    def __init__(self, hub: WatchHub, watch: Watch, lease: Lease, health: Health) -> None:
        self._hub = hub
        self._watch = watch
        self._lease = lease
        self._health = health
        self._paths: dict[int, str] = {}

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
                self._lease.keep_alive(stream_id, payload, effects)
            else:
                self._health.watch(stream_id, payload)
        elif kind == STREAM_HALF_CLOSE and path == LEASE_KEEP_ALIVE:
            effects.ended.append((stream_id, None))
            self.close(stream_id)
        elif kind == STREAM_PAUSED and path == WATCH:
            self._hub.pause(stream_id)
        elif kind == STREAM_RESUMED and path == WATCH:
            self._hub.resume(stream_id)

    def close(self, stream_id: int) -> None:
        path = self._paths.pop(stream_id, None)
        if path == WATCH:
            self._hub.close_stream(stream_id)
        elif path == HEALTH_WATCH:
            self._health.close(stream_id)

    def end_all(self, effects: Effects) -> None:
        """The member stops: every stream ends and is told why."""
        effects.ended.extend((stream_id, Stopped()) for stream_id in self._paths)
