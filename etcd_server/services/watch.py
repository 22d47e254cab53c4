"""etcdserverpb.Watch: the stream's requests, handed to the hub (`machine/watchers.py`), and its answers taken
back.

The end of the client's half of a stream does not end its watches (etcd: server/etcdserver/api/v3rpc/watch.go:
only the stream's context does).
"""

from __future__ import annotations

from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.watchers import WatchHub

CATCH_UP_ROWS = 2_000
"""How much history one turn reads for watchers that are behind."""


class Watch:
    """The Watch service of one member."""

    def __init__(self, hub: WatchHub) -> None:
        self.hub = hub

    def request(self, stream_id: int, request: rpc_pb2.WatchRequest, now: float) -> None:
        kind = request.WhichOneof("request_union")
        if kind == "create_request":
            self.hub.create(stream_id, request.create_request, now)
        elif kind == "cancel_request":
            self.hub.cancel(stream_id, request.cancel_request.watch_id)
        elif kind == "progress_request":
            self.hub.progress(stream_id)
