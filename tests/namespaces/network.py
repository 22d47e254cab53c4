"""Hosts for a scenario: network namespaces on one bridge, and what can go wrong between them.

All of it lives in a namespace of the scenario's own (`isolation.py`), where the bridge and the clients are,
so the machine's network is not touched and everything is gone with the scenario. Clients reach members over
the bridge itself, whatever is dropped between members, unless a host is unplugged.

Faults are rules of nft, each with a counter: what was dropped is known. Where namespaces cannot be made,
`Loopback` gives each member an address of its own and no faults.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

LIMIT_S = 20
SUBNET = "10.77.0"


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


class Loopback:
    """Members on 127.0.0.2, 127.0.0.3, ...: nothing between them can be broken."""

    can_partition = False

    def address(self, number: int) -> str:
        return f"127.0.0.{number + 1}"

    def inside(self, number: int) -> list[str]:
        """What to put before a command so that it runs at host `number`."""
        return []


class Network(Loopback):
    """Hosts 1 to `size`: host n has the address 10.77.0.n and hangs on port pn of the bridge."""

    can_partition = True

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self.dropped = 0
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0")
        run("ip", "addr", "add", f"{SUBNET}.254/24", "dev", "br0")
        run("ip", "link", "set", "br0", "up")
        for number in range(1, size + 1):
            self._add_host(number)
        run("nft", "add", "table", "bridge", "faults")
        for hook in ("forward", "input", "output"):
            chain = ("add", "chain", "bridge", "faults", hook)
            run("nft", *chain, f"{{ type filter hook {hook} priority 0; policy accept; }}")

    def _add_host(self, number: int) -> None:
        name = self._folder / f"namespace{number}"
        name.touch()
        run("unshare", f"--net={name}", "true")
        run("ip", "link", "add", f"p{number}", "type", "veth", "peer", "name", f"h{number}")
        run("ip", "link", "set", f"h{number}", "netns", str(name))
        run("ip", "link", "set", f"p{number}", "master", "br0", "up")
        inside = self.inside(number)
        run(*inside, "ip", "addr", "add", f"{self.address(number)}/24", "dev", f"h{number}")
        run(*inside, "ip", "link", "set", f"h{number}", "up")
        run(*inside, "ip", "link", "set", "lo", "up")

    def address(self, number: int) -> str:
        return f"{SUBNET}.{number}"

    def inside(self, number: int) -> list[str]:
        return ["nsenter", f"--net={self._folder / f'namespace{number}'}"]

    # --- faults -------------------------------------------------------------------------------------------

    def drop(self, sender: int, to: int) -> None:
        """What `sender` sends to `to` does not arrive; the other way it does."""
        self._add_rule("forward", f"iifname p{sender} oifname p{to}")

    def cut(self, one_side: Iterable[int], other_side: Iterable[int]) -> None:
        """Nothing passes between the hosts of one side and those of the other."""
        others = tuple(other_side)
        for number in one_side:
            for other in others:
                self.drop(number, other)
                self.drop(other, number)

    def unplug(self, number: int) -> None:
        """Cut a host off from everyone: the other hosts and the clients."""
        self._add_rule("forward", f"iifname p{number}")
        self._add_rule("forward", f"oifname p{number}")
        self._add_rule("input", f"iifname p{number}")
        self._add_rule("output", f"oifname p{number}")

    def heal(self) -> int:
        """Everything passes again; how many packets had been dropped since the last time."""
        dropped = self._count()
        run("nft", "flush", "table", "bridge", "faults")
        self.dropped += dropped
        return dropped

    def _count(self) -> int:
        rules = json.loads(run("nft", "-j", "list", "table", "bridge", "faults"))["nftables"]
        return sum(
            int(expression["counter"]["packets"])
            for rule in rules
            if "rule" in rule
            for expression in rule["rule"]["expr"]
            if "counter" in expression
        )

    def slow(self, number: int, kilobits_per_s: int) -> None:
        """Limit the rate at which host `number` receives."""
        limit = ("rate", f"{kilobits_per_s}kbit", "burst", "16kb", "latency", "100ms")
        run("tc", "qdisc", "replace", "dev", f"p{number}", "root", "tbf", *limit)

    def unlimited(self, number: int) -> None:
        run("tc", "qdisc", "del", "dev", f"p{number}", "root")

    def _add_rule(self, chain: str, match: str) -> None:
        run("nft", "add", "rule", "bridge", "faults", chain, *match.split(), "counter", "drop")
