"""nginx's upstreams, servers and locations, read from keys and checked value by value. Pure.

Whatever reaches a template has passed a whitelist here: names, addresses, paths and numbers that cannot end a
directive, open a block, quote or comment. So a value can be wrong, but it can never become another directive.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from etcd_agent import View

from ..reading import FILE, NAME, Reader, address, boolean, choice, integer, listen, matching, several, shown

_SERVER_NAME = re.compile(r"_|(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?:\.\*)?")
_PATH = re.compile(r"/[A-Za-z0-9._~!&()*+,=:@%/-]*")
_URL = re.compile(r"(?:https?://[A-Za-z0-9.-]+(?::\d{1,5})?)?/[A-Za-z0-9._~&()*+,=:@%/?-]*")
_TIME = re.compile(r"[1-9][0-9]{0,5}(?:ms|s|m|h)?")
_METHODS = ("round_robin", "least_conn", "ip_hash", "random")
_RETURN_CODES = (200, 204, 301, 302, 303, 307, 308, 400, 403, 404, 410, 429, 444, 500, 503)


@dataclass(frozen=True, slots=True)
class UpstreamServer:
    address: str
    weight: int = 1
    max_fails: int = 1
    fail_timeout: str = "10s"
    backup: bool = False
    down: bool = False


@dataclass(frozen=True, slots=True)
class Upstream:
    name: str
    method: str
    keepalive: int
    servers: tuple[UpstreamServer, ...]


@dataclass(frozen=True, slots=True)
class Location:
    """Exactly one of ``upstream``, ``root`` and ``return_code`` is set (the last: not 0)."""

    path: str
    exact: bool = False
    upstream: str = ""
    scheme: str = "http"
    read_timeout: str = ""
    connect_timeout: str = ""
    root: str = ""
    return_code: int = 0
    return_to: str = ""


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    listen: tuple[str, ...]
    server_names: tuple[str, ...]
    default: bool
    locations: tuple[Location, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """Everything that the template writes. Upstreams without servers are left out."""

    upstreams: tuple[Upstream, ...]
    servers: tuple[Server, ...]
    marker_listen: str

    @property
    def marker(self) -> str:
        """A short hash of the whole: what the new workers serve when they have taken this configuration."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def build(view: View) -> Model:
    """The model of the keys. RenderError names the first wrong key and what was expected."""
    reader = _Reader(view)
    upstreams = tuple(reader.upstream(name) for name in reader.children("/upstreams"))
    servers = tuple(reader.server(name) for name in reader.children("/servers"))
    filled = {upstream.name for upstream in upstreams if upstream.servers}
    for server in servers:
        for location in server.locations:
            if location.upstream and location.upstream not in filled:
                known = (
                    "has no servers"
                    if any(each.name == location.upstream for each in upstreams)
                    else "is not there"
                )
                reader.fail(
                    f"/servers/{server.name}/locations",
                    f"location {location.path} names upstream {location.upstream!r}, which {known}",
                )
    settings = view.resource.settings("nginx") or {}
    return Model(
        tuple(upstream for upstream in upstreams if upstream.servers),
        servers,
        str(settings.get("marker", "")),
    )


class _Reader(Reader):
    """The keys of nginx."""

    def upstream(self, name: str) -> Upstream:
        top = f"/upstreams/{name}"
        self.known(top, ("servers", "method", "keepalive"))
        return Upstream(
            name,
            self.value(f"{top}/method", choice(_METHODS), "round_robin"),
            self.value(f"{top}/keepalive", integer(0, 10_000), 0),
            tuple(self._upstream_server(f"{top}/servers/{each}") for each in self.children(f"{top}/servers")),
        )

    def _upstream_server(self, key: str) -> UpstreamServer:
        self.leaf(key)
        fields = self.fields(key, "address")
        self.names(key, fields, ("address", "weight", "max_fails", "fail_timeout", "backup", "down"))
        return UpstreamServer(
            address=self.field(key, fields, "address", address),
            weight=self.field(key, fields, "weight", integer(1, 65_535), 1),
            max_fails=self.field(key, fields, "max_fails", integer(0, 10_000), 1),
            fail_timeout=self.field(key, fields, "fail_timeout", _time, "10s"),
            backup=self.field(key, fields, "backup", boolean, False),
            down=self.field(key, fields, "down", boolean, False),
        )

    def server(self, name: str) -> Server:
        top = f"/servers/{name}"
        self.known(top, ("listen", "server_name", "default", "locations"))
        if not self.exists(f"{top}/listen"):
            self.fail(
                f"{top}/listen", 'is missing; expected a port or address such as "80" or "127.0.0.1:8080"'
            )
        locations = tuple(
            self._location(f"{top}/locations/{each}") for each in self.children(f"{top}/locations")
        )
        paths = [(location.path, location.exact) for location in locations]
        for at, path in enumerate(paths):
            if path in paths[:at]:
                self.fail(f"{top}/locations", f"two locations have the path {path[0]}")
        return Server(
            name,
            self.value(f"{top}/listen", several(listen), ()),
            self.value(f"{top}/server_name", several(_server_name), ("_",)),
            self.value(f"{top}/default", boolean, False),
            locations,
        )

    def _location(self, key: str) -> Location:
        self.leaf(key)
        fields = self.fields(key, None)
        known = (
            "path",
            "exact",
            "upstream",
            "scheme",
            "read_timeout",
            "connect_timeout",
            "root",
            "return",
            "to",
        )
        self.names(key, fields, known)
        if sum(name in fields for name in ("upstream", "root", "return")) != 1:
            self.fail(key, "expected exactly one of upstream, root and return")
        for name, needs in (("scheme", "upstream"), ("read_timeout", "upstream"), ("to", "return")):
            if name in fields and needs not in fields:
                self.fail(key, f"{name} needs {needs}")
        return Location(
            path=self.field(key, fields, "path", matching(_PATH, "a path such as /api/"), "/"),
            exact=self.field(key, fields, "exact", boolean, False),
            upstream=self.field(key, fields, "upstream", matching(NAME, "the name of an upstream"), ""),
            scheme=self.field(key, fields, "scheme", choice(("http", "https")), "http"),
            read_timeout=self.field(key, fields, "read_timeout", _time, ""),
            connect_timeout=self.field(key, fields, "connect_timeout", _time, ""),
            root=self.field(key, fields, "root", matching(FILE, "an absolute directory"), ""),
            return_code=self.field(key, fields, "return", _return_code, 0),
            return_to=self.field(key, fields, "to", matching(_URL, "a path or URL"), ""),
        )


_time = matching(_TIME, 'a time such as "10s"')
_server_name = matching(_SERVER_NAME, 'a host name such as "example.com" or "*.example.com"')


def _return_code(value: Any) -> int:
    if isinstance(value, bool) or value not in _RETURN_CODES:
        raise ValueError(f"expected one of {', '.join(map(str, _RETURN_CODES))}, not {shown(value)}")
    return int(value)
