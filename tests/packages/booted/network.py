"""A network of hosts: a switch, and a cable to each that can be pulled out. No other network is touched."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=20)


@dataclass(frozen=True, slots=True)
class Host:
    """A place in the network: a namespace, an address, and a port of the switch."""

    namespace: str
    address: str
    switch: str
    port: str

    def unplug(self) -> None:
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def plug_in(self) -> None:
        _ip("-n", self.switch, "link", "set", self.port, "up")


class Network:
    """`count` hosts, 10.0.0.1 and on."""

    def __init__(self, count: int) -> None:
        prefix = f"epy{os.getpid()}"
        self._switch = f"{prefix}s"
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge0", "type", "bridge", "forward_delay", "0")
        _ip("-n", self._switch, "link", "set", "bridge0", "up")
        self.hosts = tuple(self._host(f"{prefix}-{number}", number) for number in range(1, count + 1))

    def _host(self, namespace: str, number: int) -> Host:
        host = Host(namespace, f"10.0.0.{number}", self._switch, f"port{number}")
        _ip("netns", "add", namespace)
        _ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", host.port,
            "netns", self._switch)  # fmt: skip
        _ip("-n", self._switch, "link", "set", host.port, "master", "bridge0", "up")
        _ip("-n", namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        return host

    def take_down(self) -> None:
        for host in self.hosts:
            _ip("netns", "delete", host.namespace)
        _ip("netns", "delete", self._switch)
