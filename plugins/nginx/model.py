"""nginx's upstreams, servers and locations, read from keys and checked value by value. Pure.

Whatever reaches a template has passed a whitelist here: names, addresses, paths and numbers that cannot end a
directive, open a block, quote or comment. So a value can be wrong, but it can never become another directive.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, TypeVar

from etcd_agent import RenderError, View

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?"
)
_SERVER_NAME = re.compile(r"_|(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?:\.\*)?")
_PATH = re.compile(r"/[A-Za-z0-9._~!&()*+,=:@%/-]*")
_FILE = re.compile(r"/[A-Za-z0-9._+/-]*")
_URL = re.compile(r"(?:https?://[A-Za-z0-9.-]+(?::\d{1,5})?)?/[A-Za-z0-9._~&()*+,=:@%/?-]*")
_TIME = re.compile(r"[1-9][0-9]{0,5}(?:ms|s|m|h)?")
_JSON = re.compile(r"""\[\s*["\]]|[0-9]+\Z|true\Z|false\Z""")
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


class _Reader:
    """Reads one key after another; every refusal names the key, never its value in full."""

    def __init__(self, view: View) -> None:
        self._view = view

    def fail(self, key: str, message: str) -> NoReturn:
        raise RenderError(f"key {self._view.resource.prefix}{key}: {message}")

    def children(self, top: str) -> list[str]:
        if not self._view.resource.covers(top):
            return []
        names = self._view.ls(top)
        for name in names:
            if not _NAME.fullmatch(name):
                self.fail(f"{top}/{name}", "expected a name of letters, digits, '_', '.' and '-'")
        return names

    def upstream(self, name: str) -> Upstream:
        top = f"/upstreams/{name}"
        self._known(top, ("servers", "method", "keepalive"))
        return Upstream(
            name,
            self._value(f"{top}/method", _choice(_METHODS), "round_robin"),
            self._value(f"{top}/keepalive", _integer(0, 10_000), 0),
            tuple(self._upstream_server(f"{top}/servers/{each}") for each in self.children(f"{top}/servers")),
        )

    def _upstream_server(self, key: str) -> UpstreamServer:
        self._leaf(key)
        fields = self._fields(key, "address")
        self._names(key, fields, ("address", "weight", "max_fails", "fail_timeout", "backup", "down"))
        return UpstreamServer(
            address=self._field(key, fields, "address", address),
            weight=self._field(key, fields, "weight", _integer(1, 65_535), 1),
            max_fails=self._field(key, fields, "max_fails", _integer(0, 10_000), 1),
            fail_timeout=self._field(key, fields, "fail_timeout", _time, "10s"),
            backup=self._field(key, fields, "backup", _boolean, False),
            down=self._field(key, fields, "down", _boolean, False),
        )

    def server(self, name: str) -> Server:
        top = f"/servers/{name}"
        self._known(top, ("listen", "server_name", "default", "locations"))
        if not self._view.exists(f"{top}/listen"):
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
            self._value(f"{top}/listen", _several(listen), ()),
            self._value(f"{top}/server_name", _several(_server_name), ("_",)),
            self._value(f"{top}/default", _boolean, False),
            locations,
        )

    def _location(self, key: str) -> Location:
        self._leaf(key)
        fields = self._fields(key, None)
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
        self._names(key, fields, known)
        if sum(name in fields for name in ("upstream", "root", "return")) != 1:
            self.fail(key, "expected exactly one of upstream, root and return")
        for name, needs in (("scheme", "upstream"), ("read_timeout", "upstream"), ("to", "return")):
            if name in fields and needs not in fields:
                self.fail(key, f"{name} needs {needs}")
        return Location(
            path=self._field(key, fields, "path", _matching(_PATH, "a path such as /api/"), "/"),
            exact=self._field(key, fields, "exact", _boolean, False),
            upstream=self._field(key, fields, "upstream", _matching(_NAME, "the name of an upstream"), ""),
            scheme=self._field(key, fields, "scheme", _choice(("http", "https")), "http"),
            read_timeout=self._field(key, fields, "read_timeout", _time, ""),
            connect_timeout=self._field(key, fields, "connect_timeout", _time, ""),
            root=self._field(key, fields, "root", _matching(_FILE, "an absolute directory"), ""),
            return_code=self._field(key, fields, "return", _return_code, 0),
            return_to=self._field(key, fields, "to", _matching(_URL, "a path or URL"), ""),
        )

    def _known(self, top: str, names: tuple[str, ...]) -> None:
        for child in self._view.ls(top):
            if self._view.exists(top) or child not in names:
                key = top if self._view.exists(top) else f"{top}/{child}"
                near = difflib.get_close_matches(child, names, n=1)
                hint = f"; did you mean {top}/{near[0]}?" if near and key != top else ""
                self.fail(key, f"unknown key; known below {top}: {', '.join(names)}{hint}")

    def _leaf(self, key: str) -> None:
        if not self._view.exists(key) or self._view.lsdir(key) or len(self._view.ls(key)) > 1:
            self.fail(key, "expected one value here and no keys below it")

    def _fields(self, key: str, plain: str | None) -> Mapping[str, Any]:
        """The JSON object at ``key``; a value that does not begin with '{' is the field ``plain`` of one."""
        text = self._view.getv(key).strip()
        if plain is not None and not text.startswith("{"):
            return {plain: text}
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            self.fail(key, f"expected a JSON object: line {error.lineno} column {error.colno}: {error.msg}")
        if not isinstance(value, dict):
            self.fail(key, "expected a JSON object")
        return value

    def _names(self, key: str, fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                self.fail(key, f"unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))

    def _field(
        self,
        key: str,
        fields: Mapping[str, Any],
        name: str,
        convert: Callable[[Any], T],
        default: T | None = None,
    ) -> T:
        if name not in fields:
            if default is None:
                self.fail(key, f"the field {name!r} is missing")
            return default
        try:
            return convert(fields[name])
        except ValueError as error:
            self.fail(key, f"{name}: {error}")

    def _value(self, key: str, convert: Callable[[Any], T], default: T) -> T:
        """A plain value or JSON: ``80``, ``example.com`` and ``["80", "[::]:80"]`` are all understood."""
        if not self._view.exists(key):
            return default
        text = self._view.getv(key).strip()
        value: Any = text
        if _JSON.match(text):
            try:
                value = json.loads(text)
            except json.JSONDecodeError as error:
                self.fail(key, f"not JSON: {error.msg}")
        try:
            return convert(value)
        except ValueError as error:
            self.fail(key, str(error))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"expected {expected}, not {_shown(value)}")
        return value

    return convert


_time = _matching(_TIME, 'a time such as "10s"')
_server_name = _matching(_SERVER_NAME, 'a host name such as "example.com" or "*.example.com"')


def _choice(names: tuple[str, ...]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}, not {_shown(value)}")
        return str(value)

    return convert


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}, not {_shown(value)}")
        return value

    return convert


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {_shown(value)}")
    return value


def _return_code(value: Any) -> int:
    if isinstance(value, bool) or value not in _RETURN_CODES:
        raise ValueError(f"expected one of {', '.join(map(str, _RETURN_CODES))}, not {_shown(value)}")
    return int(value)


def _several(convert: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
    """A JSON list, or words divided by white space; no word twice."""

    def convert_all(value: Any) -> tuple[str, ...]:
        items = value if isinstance(value, list) else str(value).split()
        if not items:
            raise ValueError("expected at least one value")
        converted = tuple(convert(item if isinstance(item, str) else str(item)) for item in items)
        if len(set(converted)) != len(converted):
            raise ValueError("a value is there twice")
        return converted

    return convert_all


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise ValueError(f"expected a port from 1 to 65535, not {_shown(text)}")
    return int(text)


def _unix(value: str) -> str:
    if not _FILE.fullmatch(value.removeprefix("unix:")):
        raise ValueError(f"expected unix:/absolute/path, not {_shown(value)}")
    return value


def address(value: Any) -> str:
    """``host:port``, ``10.0.0.1:80``, ``[::1]:80`` or ``unix:/path``: a server of an upstream."""
    if not isinstance(value, str):
        raise ValueError(f"expected host:port, not {_shown(value)}")
    if value.startswith("unix:"):
        return _unix(value)
    host, colon, port = value.rpartition(":")
    if not colon:
        raise ValueError(f"expected host:port, not {_shown(value)}")
    return f"{_host(host, value)}:{_port(port)}"


def listen(value: Any) -> str:
    """``80``, ``127.0.0.1:8080``, ``[::1]:80`` or ``unix:/path``: what ``listen`` takes."""
    text = str(value)
    if text.startswith("unix:"):
        return _unix(text)
    if text.isdecimal():
        return str(_port(text))
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"expected a port or address:port, not {_shown(text)}")
    if host == "*":
        return f"*:{_port(port)}"
    try:
        plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        number = ipaddress.ip_address(plain)
    except ValueError as error:
        raise ValueError(f"expected an IP address before the port, not {_shown(text)}") from error
    return f"[{number}]:{_port(port)}" if number.version == 6 else f"{number}:{_port(port)}"


def _host(host: str, value: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError as error:
            raise ValueError(f"expected an IPv6 address between the brackets, not {_shown(value)}") from error
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise ValueError(f"expected an IPv4 address, not {_shown(value)}") from error
    if not _HOST.fullmatch(host):
        raise ValueError(f"expected host:port, not {_shown(value)}")
    return host
