"""Three members of one program, started together on this machine with default time-outs.

A `Trio` is measured like one server: its CPU time and memory are those of all members together, and its
`address` is that of the leader, or of a follower (`through_follower`).
"""

import contextlib
import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.servers import POLL_S, BenchError, Binary, Memory, Server, places

NAMES = ("m0", "m1", "m2")
LEADER_LIMIT_S = 60.0


class Trio:
    """Three members that serve."""

    def __init__(self, binary: Binary, folder: Path) -> None:
        self.binary = binary
        members = places(NAMES)
        self.members = [
            Server(binary, folder / place.name, members, number) for number, place in enumerate(members)
        ]
        self.leader = self.members[0]
        self.through_follower = False

    def start(self) -> None:
        """Starts all of them. Raises BenchError when one does not serve, or nobody leads."""
        for member in self.members:
            member.launch()
        for member in self.members:
            member.wait()
        self.find_leader()

    def stop(self) -> None:
        """Ends all of them."""
        for member in self.members:
            member.stop()

    def find_leader(self) -> None:
        """Asks until a member says that it leads itself. Raises BenchError."""
        deadline_s = time.monotonic() + LEADER_LIMIT_S
        while time.monotonic() < deadline_s:
            for member in self.members:
                if _leads(member.url):
                    self.leader = member
                    return
            time.sleep(POLL_S)
        raise BenchError(f"{self.binary.name}: no member leads")

    @property
    def followers(self) -> list[Server]:
        return [member for member in self.members if member is not self.leader]

    @property
    def address(self) -> str:
        """Where the load goes."""
        return (self.followers[0] if self.through_follower else self.leader).address

    def cpu_s(self) -> float:
        """CPU seconds of all members."""
        return sum(member.cpu_s() for member in self.members)

    def memory(self) -> Memory:
        """What all members keep in memory now."""
        parts = [member.memory() for member in self.members]
        return Memory(
            sum(part.resident for part in parts),
            sum(part.anonymous for part in parts),
            sum(part.file for part in parts),
        )


@contextlib.contextmanager
def running_three(binary: Binary, directory: Path) -> Iterator[Trio]:
    """Three members on empty data directories; all is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as folder:
        trio = Trio(binary, Path(folder))
        try:
            trio.start()
            yield trio
        finally:
            trio.stop()


def _leads(url: str) -> bool:
    request = urllib.request.Request(f"{url}/v3/maintenance/status", b"{}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            told = json.load(response)
    except (urllib.error.URLError, OSError):
        return False
    return bool(told.get("leader") == told["header"]["member_id"])
