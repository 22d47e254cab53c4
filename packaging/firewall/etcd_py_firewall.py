"""The command `etcd-py-firewall`: opens, closes and shows the ports of etcd-py in firewalld.

Everything is done through firewall-cmd, now and for good alike, and said. What is so already is left as it
is, so that a command may be given again. Exit status 0: done. 1: firewalld cannot be asked, or refused; one
line says why. 2: the command line is wrong.
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import click

SERVICES = {2379: "etcd-client", 2380: "etcd-server"}
"""What firewalld itself calls the usual ports."""
NOT_RUNNING, NOT_AUTHORIZED = 252, 253
"""Exit statuses of firewall-cmd."""
LIMIT_S = 60


class FirewallError(click.ClickException):
    """firewalld cannot be asked, or refused; one line."""

    def show(self, file: object = None) -> None:
        click.echo(f"etcd-py-firewall: {self.message}", err=True)


@dataclass(frozen=True, slots=True)
class Opening:
    """Something that firewalld can let in: an element of a zone, as firewall-cmd writes it."""

    kind: str
    """ "service", "port" or "rich-rule". """
    value: str
    text: str
    """For people."""


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone of firewalld, as it is now, or as it will be after a restart."""

    name: str

    def ask(self, *arguments: str, permanent: bool) -> tuple[int, str]:
        lasting = ["--permanent"] if permanent else []
        return firewall_cmd(*lasting, f"--zone={self.name}", *arguments)

    def has(self, opening: Opening, *, permanent: bool) -> bool:
        return self.ask(f"--query-{opening.kind}={opening.value}", permanent=permanent)[0] == 0

    def change(self, verb: str, opening: Opening, *, permanent: bool) -> None:
        """`verb` is "add" or "remove". Raises FirewallError."""
        status, said = self.ask(f"--{verb}-{opening.kind}={opening.value}", permanent=permanent)
        if status:
            raise FirewallError(f"zone {self.name}: {opening.text}: {said}")

    def rules(self, *, permanent: bool) -> list[str]:
        """Its rich rules."""
        return self.ask("--list-rich-rules", permanent=permanent)[1].splitlines()


def firewall_cmd(*arguments: str) -> tuple[int, str]:
    """Its exit status, and what it said. Raises FirewallError when firewalld cannot be asked at all."""
    program = shutil.which("firewall-cmd")
    if program is None:
        raise FirewallError("firewalld is not installed: there is no firewall-cmd; nothing was changed")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    said = (done.stderr.strip() or done.stdout.strip()).removeprefix("Error: ")
    if done.returncode == NOT_RUNNING:
        raise FirewallError("firewalld is not running, so it closes no port; nothing was changed")
    if done.returncode == NOT_AUTHORIZED or "Authorization failed" in said:
        raise FirewallError("firewalld refuses this user: expected root; nothing was changed")
    return done.returncode, said


def zone_of(name: str | None) -> Zone:
    """The zone of this name, or the default one. Raises FirewallError."""
    status, said = firewall_cmd("--state")
    if status:
        raise FirewallError(f"firewalld does not answer: {said}")
    if name is None:
        return Zone(firewall_cmd("--get-default-zone")[1])
    known = firewall_cmd("--get-zones")[1].split()
    if name not in known:
        raise FirewallError(f"--zone {name}: firewalld has no such zone; there are {', '.join(known)}")
    return Zone(name)


def element(port: int) -> tuple[str, str]:
    """How firewalld names a port: ("service", "etcd-client") or ("port", "4001/tcp")."""
    return ("service", SERVICES[port]) if port in SERVICES else ("port", f"{port}/tcp")


def for_all(port: int) -> Opening:
    kind, value = element(port)
    text = f"service {value} ({port}/tcp)" if kind == "service" else f"port {value}"
    return Opening(kind, value, text)


def for_source(port: int, source: str) -> Opening:
    kind, value = element(port)
    what = f'service name="{value}"' if kind == "service" else f'port port="{port}" protocol="tcp"'
    family = f"ipv{ipaddress.ip_network(source, strict=False).version}"
    rule = f'rule family="{family}" source address="{source}" {what} accept'
    return Opening("rich-rule", rule, f"{for_all(port).text} from {source}")


def sources_of(zone: Zone, port: int, *, permanent: bool) -> list[str]:
    """Who is let in by rules of this command."""
    rules = zone.rules(permanent=permanent)
    addresses = [rule.partition('source address="')[2].partition('"')[0] for rule in rules]
    return [
        address
        for address, rule in zip(addresses, rules, strict=True)
        if address and for_source(port, address).value == rule
    ]


def switch(zone: Zone, verb: str, opening: Opening) -> None:
    """Add or remove it, for good first, so that nothing is open now that will not be told of later."""
    wanted = verb == "add"
    changed = [
        "for good" if permanent else "now"
        for permanent in (True, False)
        if zone.has(opening, permanent=permanent) != wanted
    ]
    for permanent in (True, False):
        if ("for good" if permanent else "now") in changed:
            zone.change(verb, opening, permanent=permanent)
    word = "open" if wanted else "closed"
    done = f"{word} {' and '.join(reversed(changed))}" if changed else f"{word} already"
    click.echo(f"zone {zone.name}: {opening.text}: {done}")


class Source(click.ParamType[str]):
    """An address, or a network, of IPv4 or IPv6."""

    name = "ADDRESS"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            self.fail(f"expected an address such as 10.0.0.2 or 10.0.0.0/24, not {value!r}", param, context)
        return str(network.network_address) if network.num_addresses == 1 else str(network)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Those that every command has."""
    port = click.IntRange(1, 65535)
    for each in (
        click.option(
            "--peer-port", type=port, default=2380, metavar="PORT", help="of members  [default: 2380]"
        ),
        click.option(
            "--client-port", type=port, default=2379, metavar="PORT", help="of clients  [default: 2379]"
        ),
        click.option("--zone", metavar="ZONE", help="a zone of firewalld  [default: its default zone]"),
    ):
        command = each(command)
    return command


def only_options(command: Callable[..., None]) -> Callable[..., None]:
    """Those that leave a port out."""
    peer = click.option("--peer/--no-peer", default=True, help="the other members' port, or not")
    client = click.option("--client/--no-client", default=True, help="the clients' port, or not")
    return client(peer(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Opens, closes and shows the ports of etcd-py in firewalld, now and for good.

    The usual ports are firewalld's services etcd-client (2379/tcp) and etcd-server (2380/tcp); others are
    opened as ports. No package opens a port by itself.
    """


@cli.command("open")
@options
@only_options
@click.option(
    "--source",
    "sources",
    type=Source(),
    multiple=True,
    help="let only this address or network, given once for each, reach the other members' port",
)
def open_ports(
    zone: str | None, client_port: int, peer_port: int, client: bool, peer: bool, sources: tuple[str, ...]
) -> None:
    """Open the ports, to everybody, or the other members' port to some addresses."""
    where = zone_of(zone)
    if client:
        switch(where, "add", for_all(client_port))
    if peer and not sources:
        switch(where, "add", for_all(peer_port))
    if peer and sources:
        for source in sources:
            switch(where, "add", for_source(peer_port, source))
        everybody = for_all(peer_port)
        if where.has(everybody, permanent=True) or where.has(everybody, permanent=False):
            switch(where, "remove", everybody)


@cli.command("close")
@options
@only_options
@click.option(
    "--source", "sources", type=Source(), multiple=True, help="close to this address or network only"
)
def close_ports(
    zone: str | None, client_port: int, peer_port: int, client: bool, peer: bool, sources: tuple[str, ...]
) -> None:
    """Close what was opened; with --source only the other members' port to these addresses."""
    where = zone_of(zone)
    if sources:
        for source in sources:
            switch(where, "remove", for_source(peer_port, source))
        return
    if client:
        switch(where, "remove", for_all(client_port))
    if peer:
        switch(where, "remove", for_all(peer_port))
        found = {s for permanent in (True, False) for s in sources_of(where, peer_port, permanent=permanent)}
        for source in sorted(found):
            switch(where, "remove", for_source(peer_port, source))


@cli.command()
@options
def status(zone: str | None, client_port: int, peer_port: int) -> None:
    """Show what is open, now and for good."""
    where = zone_of(zone)
    for port in (client_port, peer_port):
        states = [_state(where, port, permanent=permanent) for permanent in (False, True)]
        shown = states[0] if states[0] == states[1] else f"{states[0]} now, {states[1]} for good"
        click.echo(f"zone {where.name}: {for_all(port).text}: {shown}")


def _state(zone: Zone, port: int, *, permanent: bool) -> str:
    if zone.has(for_all(port), permanent=permanent) or zone.has(
        Opening("port", f"{port}/tcp", ""), permanent=permanent
    ):
        return "open"
    sources = sources_of(zone, port, permanent=permanent)
    return f"open to {', '.join(sources)}" if sources else "closed"


def main() -> None:
    """Run the command."""
    cli()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[func-returns-value]
