"""Names and addresses, read from keys and checked: for a hosts file and for dnsmasq's configuration. Pure."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from etcd_agent import View

from ..reading import HOST, Reader, host_port, shown

PLUGIN = "hosts"
_SERVICE = re.compile(r"_[A-Za-z0-9-]{1,15}\._(?:tcp|udp)(?:\.[A-Za-z0-9-]{1,63})*")


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    addresses: tuple[str, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """One SRV record."""

    name: str
    target: str
    port: int
    priority: int
    weight: int


@dataclass(frozen=True, slots=True)
class Zone:
    """Everything that the templates write."""

    hosts: tuple[Host, ...]
    cnames: tuple[tuple[str, str], ...]
    domains: tuple[tuple[str, tuple[str, ...]], ...]
    services: tuple[Service, ...]


def build(view: View) -> Zone:
    """The zone of the keys. RenderError names the first wrong key."""
    reader = _Reader(view)
    hosts = tuple(reader.host(name) for name in reader.children("/hosts"))
    owners: dict[str, str] = {}
    for host in hosts:
        for name in (host.name, *host.aliases):
            if owners.setdefault(name.lower(), host.name) != host.name:
                reader.fail(f"/hosts/{host.name}", f"{name} is a name of {owners[name.lower()]} already")
    return Zone(
        hosts,
        tuple((name, reader.cname(name)) for name in reader.children("/cnames")),
        tuple((name, reader.domain(name)) for name in reader.children("/domains")),
        tuple(each for name in reader.service_names() for each in reader.services(name)),
    )


class _Reader(Reader):
    def host(self, name: str) -> Host:
        key = f"/hosts/{name}"
        self.leaf(key)
        self._name(key, name)
        fields = self.fields(key, "addresses")
        self.names(key, fields, ("addresses", "aliases"))
        return Host(
            name.lower(),
            self.field(key, fields, "addresses", _addresses),
            self.field(key, fields, "aliases", _aliases, ()),
        )

    def cname(self, name: str) -> str:
        key = f"/cnames/{name}"
        self.leaf(key)
        self._name(key, name)
        return self.text(key, _host_name, "")

    def domain(self, name: str) -> tuple[str, ...]:
        key = f"/domains/{name}"
        self.leaf(key)
        self._name(key, name)
        return self.text(key, _addresses, ())

    def service_names(self) -> list[str]:
        """Names of services begin with an underscore, which ``children`` does not know."""
        if not self._view.resource.covers("/services"):
            return []
        names = self._view.ls("/services")
        for name in names:
            if not _SERVICE.fullmatch(name):
                self.fail(f"/services/{name}", 'expected a name such as "_http._tcp.example.com"')
        return names

    def services(self, name: str) -> list[Service]:
        found = []
        for each in self.children(f"/services/{name}"):
            key = f"/services/{name}/{each}"
            self.leaf(key)
            fields = self.fields(key, "address")
            self.names(key, fields, ("address", "priority", "weight"))
            target, _, port = self.field(key, fields, "address", host_port).rpartition(":")
            if not HOST.fullmatch(target) or re.fullmatch(r"[0-9.]+", target):
                self.fail(key, f"address: expected the name of a host and a port, not {shown(target)}")
            priority = self.field(key, fields, "priority", _number, 0)
            weight = self.field(key, fields, "weight", _number, 1)
            found.append(Service(name, target, int(port), priority, weight))
        return found

    def _name(self, key: str, name: str) -> None:
        if not HOST.fullmatch(name) or re.fullmatch(r"[0-9.]+", name):
            self.fail(key, "expected the name of a host")


def _words(value: Any) -> list[Any]:
    return value if isinstance(value, list) else str(value).split()


def _addresses(value: Any) -> tuple[str, ...]:
    """IP addresses, as words or as a list; in the order given."""
    found = []
    for word in _words(value):
        try:
            found.append(str(ipaddress.ip_address(word)))
        except ValueError as error:
            raise ValueError(f"expected IP addresses, not {shown(word)}") from error
    if not found:
        raise ValueError("expected at least one IP address")
    return tuple(dict.fromkeys(found))


def _aliases(value: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_host_name(word) for word in _words(value)))


def _host_name(value: Any) -> str:
    if not isinstance(value, str) or not HOST.fullmatch(value) or re.fullmatch(r"[0-9.]+", value):
        raise ValueError(f"expected the name of a host, not {shown(value)}")
    return value.lower()


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65_535:
        raise ValueError(f"expected an integer from 0 to 65535, not {shown(value)}")
    return value


def hosts_in(text: str) -> dict[str, list[str]]:
    """Names and their addresses in a hosts file of ours; localhost's lines are left out."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        for name in names:
            if not name.startswith(("localhost", "ip6-")):
                found.setdefault(name, []).append(address)
    return found
