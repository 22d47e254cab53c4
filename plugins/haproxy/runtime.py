"""What the file says of servers, what the running HAProxy says, and the commands in between. Pure.

The file is the plugin's own: the lines of its template are read back, so nothing has to be remembered between
an apply and a rollback, a crash and the next start.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .model import is_numeric

_MARK = re.compile(r"^    setenv (ETCD_PY_AGENT_[A-Z0-9_]+) ([0-9a-f]{16})$", re.MULTILINE)
_LINE = re.compile(r"^(?:backend (\S+)|    server (\S+) (\S+) weight (\d+)( disabled)?\b.*)$", re.MULTILINE)
_FORCED_MAINTENANCE = 0x01  # SRV_ADMF_FMAINT of haproxy/server-t.h
_FORCED_DRAIN = 0x08  # SRV_ADMF_FDRAIN
_COLUMNS = ("be_name", "srv_name", "srv_addr", "srv_port", "srv_uweight", "srv_admin_state")

Servers = Mapping[tuple[str, str], "ServerState"]


@dataclass(frozen=True, slots=True)
class ServerState:
    """What can change while HAProxy runs. ``address`` None: a name or a path, which is not compared."""

    address: tuple[str, int] | None
    weight: int
    maintenance: bool
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file of this plugin: the mark that HAProxy shows once it has read it, and its servers."""

    variable: str
    structure: str
    servers: Servers


def wanted(text: str) -> Wanted | None:
    """What a file says; None for one that is not this plugin's."""
    mark = _MARK.search(text)
    if mark is None:
        return None
    servers: dict[tuple[str, str], ServerState] = {}
    backend = ""
    for line in _LINE.finditer(text):
        if line.group(1):
            backend = line.group(1)
        else:
            servers[backend, line.group(2)] = ServerState(
                _numeric(line.group(3)), int(line.group(4)), line.group(5) is not None
            )
    return Wanted(mark.group(1), mark.group(2), servers)


def running(table: str) -> Servers:
    """The answer of ``show servers state``. ValueError for anything else."""
    lines = table.splitlines()
    head = next((line for line in lines if line.startswith("# be_id")), None)
    if head is None:
        raise ValueError("show servers state: HAProxy answers without a table")
    at = {name: number for number, name in enumerate(head[2:].split())}
    if missing := [name for name in _COLUMNS if name not in at]:
        raise ValueError(f"show servers state: no column {missing[0]}")
    servers: dict[tuple[str, str], ServerState] = {}
    for line in lines[lines.index(head) + 1 :]:
        cells = line.split()
        if len(cells) <= max(at[name] for name in _COLUMNS):
            continue
        backend, server, host, port, weight, admin = (cells[at[name]] for name in _COLUMNS)
        flags = int(admin)
        servers[backend, server] = ServerState(
            _pair(host, port), int(weight), bool(flags & _FORCED_MAINTENANCE), bool(flags & _FORCED_DRAIN)
        )
    return servers


def differences(want: Servers, have: Servers) -> list[str]:
    """One line for each server that is not as the file says."""
    return [
        f"{backend}/{server}: {_shown(have.get((backend, server)))}, expected {_shown(state)}"
        for (backend, server), state in want.items()
        if not _same(state, have.get((backend, server)))
    ]


def commands(want: Servers, have: Servers) -> list[str]:
    """What turns the running servers into the wanted ones. Out goes first, in comes last."""
    out: list[str] = []
    middle: list[str] = []
    back: list[str] = []
    for (backend, server), state in want.items():
        now = have.get((backend, server))
        if now is None or _same(state, now):
            continue
        name = f"{backend}/{server}"
        if state.maintenance and not now.maintenance:
            out.append(f"set server {name} state maint")
        if state.address is not None and state.address != now.address:
            host, port = state.address
            middle.append(f"set server {name} addr {host} port {port}")
        if state.weight != now.weight:
            middle.append(f"set server {name} weight {state.weight}")
        if (now.maintenance and not state.maintenance) or now.drain:
            back.append(f"set server {name} state {'maint' if state.maintenance else 'ready'}")
    return [*out, *middle, *back]


def _same(want: ServerState, have: ServerState | None) -> bool:
    return (
        have is not None
        and (want.address is None or want.address == have.address)
        and (want.weight, want.maintenance, want.drain) == (have.weight, have.maintenance, have.drain)
    )


def _shown(state: ServerState | None) -> str:
    if state is None:
        return "not there"
    where = f"{state.address[0]}:{state.address[1]} " if state.address else ""
    flags = (" maint" if state.maintenance else "") + (" drain" if state.drain else "")
    return f"{where}weight {state.weight}{flags}"


def _numeric(where: str) -> tuple[str, int] | None:
    if not is_numeric(where):
        return None
    host, _, port = where.rpartition(":")
    return _pair(host.strip("[]"), port)


def _pair(host: str, port: str) -> tuple[str, int] | None:
    try:
        return str(ipaddress.ip_address(host)), int(port)
    except ValueError:
        return None
