"""Several real etcd-py processes as one cluster, started with the flags of etcd's documentation.

Each member has a folder and ports of its own; it is started, killed and started again by its process id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc

from etcd_server.api.proto import rpc_pb2
from tests.live import STATUS, Calls, LiveServer, wait_until

TOKEN = "etcd-cluster-1"


class LiveMember(LiveServer):
    """One member of a `LiveCluster`."""

    def status(self, timeout_s: float = 2.0) -> rpc_pb2.StatusResponse | None:
        """What the member says of itself; None when it does not answer."""
        if not self.running:
            return None
        with self.calls() as calls:
            try:
                status = calls.call(STATUS, rpc_pb2.StatusRequest(), timeout_s)
            except grpc.RpcError:
                return None
        assert isinstance(status, rpc_pb2.StatusResponse)
        return status


class LiveCluster:
    """A context manager: members "infra0", "infra1", ..., not started; all ended at the end."""

    def __init__(
        self,
        folder: Path,
        size: int = 3,
        *,
        flags: Sequence[str] = (),
        environments: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        self.members: list[LiveMember] = []
        for number in range(size):
            member_folder = folder / f"infra{number}"
            member_folder.mkdir()
            environment = (environments or {}).get(number)
            self.members.append(LiveMember(member_folder, flags=flags, environment=environment))
        self.initial_cluster = ",".join(
            f"infra{number}={member.peer_url}" for number, member in enumerate(self.members)
        )
        for number, member in enumerate(self.members):
            member.add_flags(
                *("--name", f"infra{number}"),
                *("--initial-cluster", self.initial_cluster),
                *("--initial-cluster-state", "new"),
                *("--initial-cluster-token", TOKEN),
            )

    def __enter__(self) -> LiveCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.kill()

    @property
    def running(self) -> list[LiveMember]:
        return [member for member in self.members if member.running]

    @property
    def addresses(self) -> str:
        """For `etcdctl --endpoints`."""
        return ",".join(member.address for member in self.members)

    def start(self, *members: LiveMember) -> None:
        """Start these, or all, at once, and wait until they have a leader and serve."""
        started = members or tuple(self.members)
        for member in started:
            member.launch()
        for member in started:
            wait_until(self._serves(member), f"{member.folder.name} serves\n{member.log_tail()}")

    def _serves(self, member: LiveMember) -> Callable[[], bool]:
        def serves() -> bool:
            assert member.process is not None
            assert member.process.poll() is None, member.log_tail()
            status = member.status()
            return status is not None and status.leader != 0

        return serves

    def leader(self, *besides: LiveMember) -> LiveMember:
        """The member that leads and that the others among those that run follow."""

        def find() -> LiveMember | None:
            told = [(member, member.status()) for member in self.running if member not in besides]
            known = [(member, status) for member, status in told if status is not None]
            if len(known) < len(told) or len({status.leader for _, status in known}) != 1:
                return None
            for member, status in known:
                if status.header.member_id == status.leader:
                    return member
            return None

        found = wait_until(find, "a leader")
        assert isinstance(found, LiveMember)
        return found

    def followers(self) -> list[LiveMember]:
        leader = self.leader()
        return [member for member in self.running if member is not leader]


class Writer:
    """Puts keys "<name>/<n>" one after another at one of several members, and goes on through failures.

    answered: the numbers whose put was answered; longest_pause_s: between two answers.
    """

    def __init__(self, name: str, members: Sequence[LiveMember]) -> None:
        self.name = name
        self.answered: list[int] = []
        self.failures: list[str] = []
        self.longest_pause_s = 0.0
        self.is_over = False
        self._calls = [Calls(member.address) for member in members]

    def run(self) -> None:
        """Until `is_over`; a failed put is given up and the next member is asked."""
        number = at = 0
        last_s = time.monotonic()
        while not self.is_over:
            try:
                self._calls[at].put(b"%s/%d" % (self.name.encode(), number), b"v", timeout_s=5.0)
            except grpc.RpcError as error:
                self.failures.append(str(error.details()))
                at = (at + 1) % len(self._calls)
            else:
                self.answered.append(number)
                now = time.monotonic()
                self.longest_pause_s = max(self.longest_pause_s, now - last_s)
                last_s = now
            number += 1
        for calls in self._calls:
            calls.channel.close()
