"""A real etcd-py process for tests of faults and signals, spoken to by gRPC with the project's own messages.

`LiveServer` is a `servers.EtcdPy` that can also be started without waiting for it, ended by any signal, asked
for its exit status, and looked at from outside: what it printed, what it told systemd.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from etcd_server.api.methods import METHODS
from etcd_server.api.proto import rpc_pb2
from tests.servers import EtcdPy, etcd_py_command

ROOT = Path(__file__).resolve().parent.parent
WAIT_S = 20.0
CALL_S = 10.0
LONGEST_LOOK_S = 5.0
RANGE = "/etcdserverpb.KV/Range"
PUT = "/etcdserverpb.KV/Put"
DELETE = "/etcdserverpb.KV/DeleteRange"
TXN = "/etcdserverpb.KV/Txn"
COMPACT = "/etcdserverpb.KV/Compact"
WATCH = "/etcdserverpb.Watch/Watch"
GRANT = "/etcdserverpb.Lease/LeaseGrant"
REVOKE = "/etcdserverpb.Lease/LeaseRevoke"
LEASES = "/etcdserverpb.Lease/LeaseLeases"
STATUS = "/etcdserverpb.Maintenance/Status"


def wait_until(reached: Callable[[], Any], what: str, limit_s: float = WAIT_S) -> Any:
    """Looks again and again; the first true result. For what only shows by looking.

    A machine that stood still for a while is not held against those who are waited for."""
    left_s, looked_s = limit_s, time.monotonic()
    while not (found := reached()):
        now_s = time.monotonic()
        left_s -= min(now_s - looked_s, LONGEST_LOOK_S)
        looked_s = now_s
        assert left_s > 0, f"not in {limit_s} s: {what}"
        time.sleep(0.01)
    return found


class Calls:
    """A gRPC channel to one server."""

    def __init__(self, address: str) -> None:
        # Each channel has connections of its own, and tries again at once when the server is back.
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
        ]
        self.channel = grpc.insecure_channel(address, options)
        self._unary: dict[str, Any] = {}

    def __enter__(self) -> Calls:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def function(self, path: str) -> Any:
        if path not in self._unary:
            response = METHODS[path].response.FromString
            self._unary[path] = self.channel.unary_unary(
                path, METHODS[path].request.SerializeToString, response
            )
        return self._unary[path]

    def call(self, path: str, request: Message, timeout_s: float = CALL_S) -> Any:
        """The response; raises grpc.RpcError."""
        return self.function(path)(request, timeout=timeout_s)

    def stream(self, path: str, requests: Iterator[Message], timeout_s: float = 60.0) -> Any:
        response = METHODS[path].response.FromString
        make = self.channel.stream_stream(path, METHODS[path].request.SerializeToString, response)
        return make(requests, timeout=timeout_s)

    def put(self, key: bytes, value: bytes, timeout_s: float = CALL_S) -> Any:
        return self.call(PUT, rpc_pb2.PutRequest(key=key, value=value), timeout_s)

    def range(self, *, timeout_s: float = CALL_S, **fields: Any) -> Any:
        return self.call(RANGE, rpc_pb2.RangeRequest(**fields), timeout_s)

    def everything(self, **fields: Any) -> Any:
        return self.range(key=b"\0", range_end=b"\0", **fields)

    def get(self, key: bytes) -> bytes | None:
        kvs = self.range(key=key).kvs
        return kvs[0].value if kvs else None


class WatchStream:
    """One Watch call, read in a thread of its own; `read_nothing` leaves what comes in the transport."""

    def __init__(self, calls: Calls, *requests: rpc_pb2.WatchRequest, read_nothing: bool = False) -> None:
        self.responses: list[Any] = []
        self.error: grpc.RpcError | None = None
        self._changed = threading.Condition()
        self._over = threading.Event()
        self.call = calls.stream(WATCH, self._requests(requests))
        self._thread = threading.Thread(target=self._read, daemon=True)
        if not read_nothing:
            self.read()

    def read(self) -> None:
        self._thread.start()

    def _requests(self, requests: Sequence[rpc_pb2.WatchRequest]) -> Iterator[Message]:
        yield from requests
        self._over.wait()

    def _read(self) -> None:
        try:
            for response in self.call:
                with self._changed:
                    self.responses.append(response)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.error = error
        with self._changed:
            self._changed.notify_all()

    @property
    def events(self) -> list[Any]:
        return [event for response in list(self.responses) for event in response.events]

    @property
    def last_events(self) -> list[Any]:
        return list(self.responses[-1].events) if self.responses else []

    def wait(self, reached: Callable[[WatchStream], Any], limit_s: float = WAIT_S) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: reached(self), limit_s), (len(self.responses), self.error)

    def close(self) -> None:
        self._over.set()
        self.call.cancel()
        if self._thread.ident is not None:
            self._thread.join(WAIT_S)


def watch_request(key: bytes, **fields: Any) -> rpc_pb2.WatchRequest:
    return rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key, **fields))


class LiveServer(EtcdPy):
    """See the module's docstring."""

    def __init__(
        self,
        folder: Path,
        *,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        data_dir: Path | None = None,
        name: str = "m1",
    ) -> None:
        super().__init__(
            folder, name=name, flags=[*flags, *(("--data-dir", str(data_dir)) if data_dir else ())]
        )
        if data_dir is not None:
            self.data_dir = data_dir
        self._environment = {**os.environ, **environment} if environment else None

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process and wait for nothing."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment
            )
        return self.process

    def run_to_the_end(self) -> subprocess.CompletedProcess[str]:
        """Start the process and wait until it ends, for a start that is refused."""
        return subprocess.run(
            self._command,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
            env=self._environment,
            stdin=subprocess.DEVNULL,
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait_for_exit(self, limit_s: float = WAIT_S) -> int:
        assert self.process is not None
        status = self.process.wait(limit_s)
        self.process = None
        return status

    def calls(self) -> Calls:
        return Calls(self.address)

    @property
    def output(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def log(self) -> list[dict[str, Any]]:
        """The messages of the log (JSON), and nothing else."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def verify(self) -> subprocess.CompletedProcess[str]:
        return verify(self.data_dir)


def verify(data_dir: Path) -> subprocess.CompletedProcess[str]:
    """`etcd-py verify DATA-DIR`."""
    command = etcd_py_command()
    assert command is not None
    return subprocess.run(
        [*command, "verify", str(data_dir)], capture_output=True, text=True, timeout=60, check=False
    )


def assert_one_line(text: str, *patterns: str) -> None:
    """Standard error of a refused start: the log's own lines (JSON), then one line for the user."""
    lines = [line for line in text.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, text
    assert lines[0].startswith("etcd-py: "), text
    for pattern in patterns:
        assert re.search(pattern, lines[0]), (pattern, lines[0])


def assert_no_traceback(text: str) -> None:
    """Where a mistake in the code was met, its stack is a field of a message of the log, and nowhere else."""
    assert not [line for line in text.splitlines() if not line.startswith("{") and "Traceback" in line], text


@contextmanager
def systemd_socket(folder: Path) -> Iterator[tuple[str, list[tuple[float, str]]]]:
    """systemd's end of NOTIFY_SOCKET: its address, and (time, message) of what has come so far."""
    address = str(folder / "notify")
    received: list[tuple[float, str]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(address)
        end.settimeout(0.1)
        over = threading.Event()

        def receive() -> None:
            while not over.is_set():
                try:
                    message = end.recv(65536).decode()
                except TimeoutError:
                    continue
                received.append((time.monotonic(), message))

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        try:
            yield address, received
        finally:
            over.set()
            thread.join(WAIT_S)


def in_mount_namespace(module: str, scenario: str, *arguments: str) -> None:
    """Run `module.scenario(*arguments)` in a namespace of its own: its mounts and processes end with it."""
    program = (
        "import importlib, sys; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])"
    )
    command = [
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *(sys.executable, "-c", program, module, scenario, *arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
