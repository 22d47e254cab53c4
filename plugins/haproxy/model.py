"""HAProxy's backends and frontends, read from keys and checked value by value. Pure.

Each value passes a whitelist, so none can become another directive. ``structure`` is a hash of all that only
a reload can change; weights, states and numeric addresses of servers are left out of it, because the running
process takes those through its socket (``runtime``).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from etcd_agent import View

from ..reading import (
    NAME,
    Reader,
    address,
    boolean,
    choice,
    integer,
    listen,
    matching,
    several,
    shown,
)

PLUGIN = "haproxy"
READY, DRAIN, MAINT = "ready", "drain", "maint"
_TIME = re.compile(r"[1-9][0-9]{0,5}(?:ms|s|m|h)")  # HAProxy takes a bare number for milliseconds
_PATH = re.compile(r"/[A-Za-z0-9._~!&()*+,=:@%/-]*")
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_BALANCE = ("roundrobin", "leastconn", "random", "first", "source", "uri")


@dataclass(frozen=True, slots=True)
class Server:
    """``weight`` 0 to 256; ``state`` ready, drain (no new clients) or maint (out)."""

    name: str
    address: str
    weight: int = 1
    state: str = READY
    backup: bool = False
    maxconn: int = 0

    @property
    def effective_weight(self) -> int:
        """What the file and the process say: draining is weight 0, so that a restart keeps it."""
        return 0 if self.state == DRAIN else self.weight


@dataclass(frozen=True, slots=True)
class Backend:
    """``check`` is "tcp", "off" or the path of an HTTP check."""

    name: str
    mode: str
    balance: str
    check: str
    connect_timeout: str
    server_timeout: str
    servers: tuple[Server, ...]


@dataclass(frozen=True, slots=True)
class Route:
    name: str
    backend: str
    host: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Frontend:
    name: str
    mode: str
    bind: tuple[str, ...]
    backend: str
    client_timeout: str
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that the template writes."""

    variable: str
    backends: tuple[Backend, ...]
    frontends: tuple[Frontend, ...]

    @property
    def structure(self) -> str:
        data = asdict(self)
        for backend in data["backends"]:
            for server in backend["servers"]:
                del server["weight"], server["state"]
                if is_numeric(server["address"]):
                    del server["address"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def is_numeric(where: str) -> bool:
    """Whether an address is an IP with a port: only such can be changed and compared while HAProxy runs."""
    name, _, _ = where.rpartition(":")
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def variable(resource_name: str) -> str:
    """The environment variable of HAProxy that holds the structure's hash; one for each resource."""
    return "ETCD_PY_AGENT_" + re.sub(r"[^A-Z0-9]", "_", resource_name.upper())


def build(view: View) -> Model:
    """The model of the keys. RenderError names the first wrong key and what was expected."""
    reader = _Reader(view)
    backends = tuple(reader.backend(name) for name in reader.children("/backends"))
    frontends = tuple(reader.frontend(name) for name in reader.children("/frontends"))
    filled = {backend.name for backend in backends if backend.servers}
    known = {backend.name for backend in backends}
    for frontend in frontends:
        for name in (frontend.backend, *(route.backend for route in frontend.routes)):
            if name not in filled:
                why = "has no servers" if name in known else "is not there"
                reader.fail(f"/frontends/{frontend.name}", f"names backend {name!r}, which {why}")
    return Model(
        variable(view.resource.name), tuple(each for each in backends if each.name in filled), frontends
    )


class _Reader(Reader):
    def backend(self, name: str) -> Backend:
        top = f"/backends/{name}"
        self.known(top, ("servers", "mode", "balance", "check", "connect_timeout", "server_timeout"))
        return Backend(
            name,
            self.value(f"{top}/mode", choice(("http", "tcp")), "http"),
            self.value(f"{top}/balance", choice(_BALANCE), "roundrobin"),
            self.value(f"{top}/check", _check, "tcp"),
            self.text(f"{top}/connect_timeout", _time, "5s"),
            self.text(f"{top}/server_timeout", _time, "30s"),
            tuple(self._server(f"{top}/servers/{each}", each) for each in self.children(f"{top}/servers")),
        )

    def _server(self, key: str, name: str) -> Server:
        self.leaf(key)
        fields = self.fields(key, "address")
        self.names(key, fields, ("address", "weight", "state", "backup", "maxconn"))
        return Server(
            name,
            address=self.field(key, fields, "address", address),
            weight=self.field(key, fields, "weight", integer(0, 256), 1),
            state=self.field(key, fields, "state", choice((READY, DRAIN, MAINT)), READY),
            backup=self.field(key, fields, "backup", boolean, False),
            maxconn=self.field(key, fields, "maxconn", integer(0, 1_000_000), 0),
        )

    def frontend(self, name: str) -> Frontend:
        top = f"/frontends/{name}"
        self.known(top, ("bind", "mode", "backend", "client_timeout", "routes"))
        for needed, example in (("bind", '"127.0.0.1:8080"'), ("backend", "the name of a backend")):
            if not self.exists(f"{top}/{needed}"):
                self.fail(f"{top}/{needed}", f"is missing; expected {example}")
        mode = self.value(f"{top}/mode", choice(("http", "tcp")), "http")
        routes = tuple(self._route(f"{top}/routes/{each}", each) for each in self.children(f"{top}/routes"))
        if routes and mode != "http":
            self.fail(f"{top}/routes", "routes need mode http")
        return Frontend(
            name,
            mode,
            self.value(f"{top}/bind", several(_bind), ()),
            self.text(f"{top}/backend", matching(NAME, "the name of a backend"), ""),
            self.text(f"{top}/client_timeout", _time, "30s"),
            routes,
        )

    def _route(self, key: str, name: str) -> Route:
        self.leaf(key)
        fields = self.fields(key, None)
        self.names(key, fields, ("backend", "host", "path"))
        if "host" not in fields and "path" not in fields:
            self.fail(key, "expected host, path or both")
        return Route(
            name,
            self.field(key, fields, "backend", matching(NAME, "the name of a backend")),
            self.field(key, fields, "host", matching(_HOST_NAME, 'a host name such as "example.com"'), ""),
            self.field(key, fields, "path", matching(_PATH, "a path such as /api/"), ""),
        )


_time = matching(_TIME, 'a time such as "10s"')


def _check(value: Any) -> str:
    if value in ("tcp", "off"):
        return str(value)
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        raise ValueError(f"expected tcp, off or a path such as /healthz, not {shown(value)}")
    return value


def _bind(value: Any) -> str:
    where = listen(value)
    if where.startswith("unix:"):
        return "unix@" + where.removeprefix("unix:")
    return f"*:{where}" if where.isdecimal() else where
