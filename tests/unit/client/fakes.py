"""A scripted transport: what each endpoint does with each request, in order, without a network.

An endpoint's script is a list of answers, consumed one a request: an exception to raise from `send`, or a
FakeResponse. `Stream.hold` makes a stream wait, as a real one does, until it is aborted.
"""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from random import Random
from typing import Any
from urllib.parse import urlsplit

from etcd_client import Client
from etcd_client.session import Session
from etcd_client.transport import ConnectionLost, Request

A, B, C = "http://a:2379", "http://b:2379", "http://c:2379"
LIMIT_S = 5.0
CLUSTER = 7


class FakeResponse:
    """A whole answer."""

    def __init__(self, document: object, status: int = 200) -> None:
        self.status = status
        self.closed = False
        self._content = document if isinstance(document, bytes) else json.dumps(document).encode()

    def read(self) -> bytes:
        return self._content

    def chunks(self) -> Iterator[bytes]:
        yield self._content

    def abort(self) -> None:
        return

    def close(self) -> None:
        self.closed = True


class Stream(FakeResponse):
    """A stream of frames, then `end`: None for the end of the stream, an exception, or Stream.hold."""

    hold = object()

    def __init__(self, *frames: object, end: object = None) -> None:
        super().__init__({})
        self._frames = frames
        self._end = end
        self._aborted = threading.Event()
        self.reached_end = threading.Event()

    def chunks(self) -> Iterator[bytes]:
        for frame in self._frames:
            yield frame if isinstance(frame, bytes) else json.dumps(frame).encode() + b"\n"
        self.reached_end.set()
        if isinstance(self._end, Exception):
            raise self._end
        if self._end is Stream.hold:
            if not self._aborted.wait(LIMIT_S):
                raise AssertionError("a held stream was never aborted")
            raise ConnectionLost("aborted")

    def abort(self) -> None:
        self._aborted.set()


class FakeTransport:
    """Answers from the scripts; `requests` is what was sent, as (endpoint, path, body)."""

    def __init__(self, **scripts: list[Any]) -> None:
        self._scripts = {"abc"["abc".index(name)]: list(script) for name, script in scripts.items()}
        self._lock = threading.Lock()
        self.requests: list[tuple[str, str, Any]] = []
        self.raw: list[Request] = []
        self.closed = False

    def send(self, request: Request) -> FakeResponse:
        parts = urlsplit(request.url)
        name = parts.hostname or ""
        with self._lock:
            self.requests.append((name, parts.path, json.loads(request.body)))
            self.raw.append(request)
            script = self._scripts.get(name, [])
            if not script:
                raise AssertionError(f"endpoint {name} was asked once more than its script says: {request}")
            answer = script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, FakeResponse)
        return answer

    def close(self) -> None:
        self.closed = True

    @property
    def asked(self) -> str:
        """Which endpoints were asked, in order: "aab"."""
        return "".join(name for name, _, _ in self.requests)


class Clock:
    """Time that only waiting moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.waits_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.waits_s.append(seconds)
        self.now_s += seconds


def fake_session(transport: FakeTransport, *endpoints: str, clock: Clock | None = None) -> Session:
    clock = clock or Clock()
    return Session(
        endpoints or (A, B),
        transport,
        timeout_s=5.0,
        connect_timeout_s=2.0,
        random=Random(1),
        clock=clock,
        wait=clock.wait,
    )


def fake_client(transport: FakeTransport, *endpoints: str) -> Client:
    return Client(endpoints or (A, B), transport=transport, random=Random(1))


def header(revision: int = 5, cluster_id: int = CLUSTER) -> dict[str, Any]:
    return {"cluster_id": str(cluster_id), "member_id": "1", "revision": str(revision), "raft_term": "2"}


def ok(revision: int = 5, **fields: Any) -> FakeResponse:
    return FakeResponse({"header": header(revision), **fields})


def refused(code: int, text: str, status: int = 400) -> FakeResponse:
    return FakeResponse({"error": text, "message": text, "code": code}, status)


def kv(key: str, value: str, mod_revision: int, create_revision: int = 0) -> dict[str, str]:
    return {
        "key": b64encode(key.encode()).decode(),
        "value": b64encode(value.encode()).decode(),
        "create_revision": str(create_revision or mod_revision),
        "mod_revision": str(mod_revision),
        "version": "1",
    }


def created(revision: int, cluster_id: int = CLUSTER) -> dict[str, Any]:
    return {"result": {"header": header(revision, cluster_id), "created": True}}


def put_events(*changes: tuple[str, str, int], revision: int = 0) -> dict[str, Any]:
    """A frame with one PUT for each (key, value, mod_revision)."""
    events = [{"kv": kv(key, value, mod_revision)} for key, value, mod_revision in changes]
    return {"result": {"header": header(revision or changes[-1][2]), "events": events}}


def delete_event(key: str, mod_revision: int) -> dict[str, Any]:
    deleted = {"key": b64encode(key.encode()).decode(), "mod_revision": str(mod_revision)}
    return {"result": {"header": header(mod_revision), "events": [{"type": "DELETE", "kv": deleted}]}}


def progress(revision: int) -> dict[str, Any]:
    return {"result": {"header": header(revision)}}


def cancelled(reason: str = "", compact_revision: int = 0, *, with_created: bool = False) -> dict[str, Any]:
    result: dict[str, Any] = {"header": header(0), "canceled": True}
    if with_created:
        result |= {"created": True, "watch_id": "-1"}
    if reason:
        result["cancel_reason"] = reason
    if compact_revision:
        result["compact_revision"] = str(compact_revision)
    return {"result": result}


def error_frame(code: int, message: str) -> dict[str, Any]:
    return {"error": {"grpc_code": code, "http_code": 503, "message": message, "http_status": "x"}}
