"""How long clients wait when the leader of three members goes: `python -m benchmarks.failover`.

Three members with default time-outs on this machine; three clients that know all of them, each beginning at
another one, put without end. Then the leader is killed, or told to stop. The pause of a client is the longest
time between two of its answers; what was answered must be there afterwards. The same clients measure any
server that takes etcd's flags.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster import Trio, running_three
from benchmarks.servers import BenchError, Binary
from etcd_client import Client, EtcdError

STEADY_S = 1.0
"""How long the clients put before the leader goes."""
PUTS_AFTERWARDS = 50
INTERVAL_S = 0.002
"""Between two puts of a client: the machine is not to be busy with them."""
LIMIT_S = 60.0
POLL_S = 0.01


@dataclass(frozen=True)
class Pause:
    """The longest time without an answer that a client met, in s. `at_leader_s`: of the one that had its
    connection to the leader. failed: puts that ended with an error."""

    longest_s: float
    at_leader_s: float
    failed: int


def measure(binary: Binary, directory: Path, *, kill: bool) -> Pause:
    """One loss of a leader of three new members; see `lose_leader`."""
    with running_three(binary, directory) as trio:
        return lose_leader(trio, kill=kill)


def lose_leader(trio: Trio, *, kill: bool) -> Pause:
    """The leader goes, by SIGKILL or by SIGTERM. Raises BenchError when the clients never go on, or when a
    put was answered that is not there."""
    leader = trio.members.index(trio.leader)
    urls = [member.url for member in trio.members]
    writers = [_Writer(urls, first) for first in range(len(urls))]
    try:
        for writer in writers:
            writer.thread.start()
        _wait(lambda: all(writer.answered for writer in writers), "the clients do not begin")
        time.sleep(STEADY_S)
        trio.leader.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        marks = [len(writer.answered) for writer in writers]
        _wait(
            lambda: all(
                len(writer.answered) >= mark + PUTS_AFTERWARDS
                for writer, mark in zip(writers, marks, strict=True)
            ),
            "the clients do not go on",
        )
    finally:
        for writer in writers:
            writer.is_over = True
        for writer in writers:
            writer.thread.join(LIMIT_S)
    for writer in writers:
        writer.check()
    return Pause(
        max(writer.longest_s for writer in writers),
        writers[leader].longest_s,
        sum(writer.failed for writer in writers),
    )


class _Writer:
    """A client that puts, and goes on whatever happens."""

    def __init__(self, urls: list[str], first: int) -> None:
        self._client = Client(urls[first:] + urls[:first])
        self._prefix = f"client{first}/"
        self.thread = threading.Thread(target=self._run, name=self._prefix)
        self.answered: list[int] = []
        self.failed = 0
        self.longest_s = 0.0
        self.is_over = False

    def _run(self) -> None:
        number = 0
        last_s = time.monotonic()
        while not self.is_over:
            try:
                self._client.put(f"{self._prefix}{number}", b"x")
            except EtcdError:
                self.failed += 1
            else:
                self.answered.append(number)
                now = time.monotonic()
                # The first put has a connection to make.
                if len(self.answered) > 1:
                    self.longest_s = max(self.longest_s, now - last_s)
                last_s = now
            number += 1
            time.sleep(INTERVAL_S)

    def check(self) -> None:
        """Everything that was answered is there. Raises BenchError."""
        kvs = self._client.get_prefix(self._prefix, keys_only=True).kvs
        self._client.close()
        found = {int(kv.key.removeprefix(self._prefix.encode())) for kv in kvs}
        if missing := set(self.answered) - found:
            raise BenchError(f"{len(missing)} puts of {self._prefix} were answered and are not there")


def _wait(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise BenchError(otherwise)
        time.sleep(POLL_S)


@dataclass
class _Table:
    """The figures of all servers, in the order in which they came."""

    pauses: dict[tuple[str, str], list[Pause]] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        yield f"{'server':<16} {'leader is':<10} {'median s':>9} {'longest s':>10} {'at leader s':>12} failed"
        for (server, how), pauses in self.pauses.items():
            longest = [pause.longest_s for pause in pauses]
            at_leader_s = statistics.median(pause.at_leader_s for pause in pauses)
            failed = sum(pause.failed for pause in pauses)
            yield (
                f"{server:<16} {how:<10} {statistics.median(longest):>9.2f} {max(longest):>10.2f} "
                f"{at_leader_s:>12.2f} {failed:>6}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the programs given in turn; returns the exit status."""
    parser = argparse.ArgumentParser(prog="failover", description="Measures the pause at a leader's death.")
    ours = str(Path(sys.executable).parent / "etcd-py")
    parser.add_argument("programs", nargs="*", default=[ours], metavar="PROGRAM", help="servers to measure")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is run")
    parser.add_argument("--directory", default="build", metavar="DIR", help="where the data directories go")
    options = parser.parse_args(arguments)
    directory = Path(options.directory)
    directory.mkdir(parents=True, exist_ok=True)
    table = _Table()
    try:
        binaries = [Binary.of(program) for program in options.programs]
        for _ in range(options.rounds):
            for binary in binaries:
                for how, kill in (("killed", True), ("stopped", False)):
                    pause = measure(binary, directory, kill=kill)
                    table.pauses.setdefault((binary.name, how), []).append(pause)
    except BenchError as error:
        print(f"failover: {error}", file=sys.stderr)
        return 1
    print("\n".join(table.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
