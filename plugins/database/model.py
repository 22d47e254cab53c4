"""How databases are reached, read once from keys for every format. Pure.

A database is either one JSON object at ``/databases/NAME`` or one key for each field below it, whose value is
taken as it stands. Names, hosts, ports and options pass a whitelist; user, password and database name may be
any text without control characters, and it is up to ``formats`` to write them so that they are read back.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from etcd_agent import RenderError, View

from ..reading import FILE, HOST, NAME, Reader, choice, port, shown

PLUGIN = "database"
POSTGRESQL, MYSQL = "postgresql", "mysql"
_PORTS = {POSTGRESQL: 5432, MYSQL: 3306}
_FIELDS = ("engine", "host", "port", "user", "password", "database")
_GROUPS = ("options", "jdbc", "pgbouncer")
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Database:
    """One source for all formats. ``hosts`` are names, IP addresses without brackets, or socket folders."""

    name: str
    engine: str
    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str | None
    database: str
    options: Mapping[str, str] = field(default_factory=dict)
    jdbc: Mapping[str, str] = field(default_factory=dict)
    pgbouncer: Mapping[str, str] = field(default_factory=dict)

    def only_host(self, form: str) -> tuple[str, int]:
        """The host for a format that knows one. RenderError if there are several."""
        if len(self.hosts) != 1:
            raise RenderError(f"database {self.name}: {form} knows one host, not {len(self.hosts)}")
        return self.hosts[0]

    def need(self, engine: str, form: str) -> None:
        if self.engine != engine:
            raise RenderError(f"database {self.name}: {form} is for {engine}, not for {self.engine}")


@dataclass(frozen=True, slots=True)
class Pool:
    """pgbouncer's own part: ``[pgbouncer]`` settings, and the users that log in to it (with passwords)."""

    settings: Mapping[str, str]
    clients: Mapping[str, str]


def databases(view: View) -> tuple[Database, ...]:
    """All databases, by name. RenderError names the first wrong key."""
    reader = _Reader(view)
    return tuple(reader.database(name) for name in reader.children("/databases"))


def database(view: View, name: str) -> Database:
    """The database ``name``; "" for the only one that there is."""
    found = {each.name: each for each in databases(view)}
    if not name and len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        known = ", ".join(found) or "none"
        wanted = f"there is no database {name!r}" if name else "which database? (setting name)"
        raise RenderError(f"{wanted}; known below {view.resource.prefix}/databases: {known}")
    return found[name]


def pool(view: View) -> Pool:
    """What ``/pgbouncer`` and ``/clients`` say."""
    reader = _Reader(view)
    settings = {name: reader.setting(f"/pgbouncer/{name}") for name in reader.children("/pgbouncer")}
    clients = {name: reader.text(f"/clients/{name}", _text, "") for name in reader.children("/clients")}
    return Pool(settings, clients)


class _Reader(Reader):
    def database(self, name: str) -> Database:
        top = f"/databases/{name}"
        data = self._object(top) if self.exists(top) else self._tree(top)
        self.names(top, data, (*_FIELDS, *_GROUPS))
        engine = self.field(top, data, "engine", choice((POSTGRESQL, MYSQL)), POSTGRESQL)
        try:
            hosts = _hosts(data.get("host", "localhost"), data.get("port", _PORTS[engine]))
        except ValueError as error:
            self.fail(top, str(error))
        user = self.field(top, data, "user", _filled)
        return Database(
            name,
            engine,
            hosts,
            user,
            self.field(top, data, "password", _text) if "password" in data else None,
            self.field(top, data, "database", _filled, name),
            *(self._options(top, data, group) for group in _GROUPS),
        )

    def setting(self, key: str) -> str:
        """A setting of pgbouncer, which takes the rest of the line and trims it."""
        value = self.text(key, _text, "")
        if value != value.strip():
            self.fail(key, "expected a value without white space at its ends")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", key.rpartition("/")[2]):
            self.fail(key, "expected the name of a setting of pgbouncer, such as pool_mode")
        return value

    def _object(self, top: str) -> Mapping[str, Any]:
        self.leaf(top)
        return self.fields(top, None)

    def _tree(self, top: str) -> Mapping[str, Any]:
        self.known(top, (*_FIELDS, *_GROUPS))
        data: dict[str, Any] = {}
        for name in self.children(top):
            key = f"{top}/{name}"
            if name in _GROUPS:
                if self.exists(key):
                    self.fail(key, "expected an object of names and values, or a key below it for each")
                data[name] = {each: self._view.getv(f"{key}/{each}") for each in self.children(key)}
            else:
                self.leaf(key)
                data[name] = self._view.getv(key)
        return data

    def _options(self, top: str, data: Mapping[str, Any], group: str) -> dict[str, str]:
        given = data.get(group, {})
        if not isinstance(given, dict):
            self.fail(top, f"{group}: expected an object of names and values")
        found: dict[str, str] = {}
        for name, value in given.items():
            if not _OPTION.fullmatch(name):
                self.fail(top, f"{group}: expected the name of an option, not {shown(name)}")
            try:
                found[name] = _scalar(value)
            except ValueError as error:
                self.fail(top, f"{group}.{name}: {error}")
        return dict(sorted(found.items()))


def _hosts(host: Any, ports: Any) -> tuple[tuple[str, int], ...]:
    """``a``, ``a,b`` with one port or as many; a socket folder; IPv6 with or without brackets."""
    if not isinstance(host, str):
        raise ValueError(f"host: expected a text, not {shown(host)}")
    names = [_host(name.strip()) for name in host.split(",")]
    numbers = [port(text.strip()) for text in str(ports).split(",")]
    if len(numbers) not in (1, len(names)):
        raise ValueError(f"port: expected one port or {len(names)}, not {len(numbers)}")
    return tuple(zip(names, numbers * len(names) if len(numbers) == 1 else numbers, strict=True))


def _host(name: str) -> str:
    plain = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        return str(ipaddress.ip_address(plain))
    except ValueError:
        known = (FILE if name.startswith("/") else HOST).fullmatch(name)
    if not known or re.fullmatch(r"[0-9.]+", name):
        raise ValueError(f"host: expected a host name, an IP address or a folder, not {shown(name)}")
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, not {type(value).__name__}")
    if _CONTROL.search(value):
        raise ValueError("expected a text without control characters (is there a line feed at its end?)")
    return value


def _filled(value: Any) -> str:
    text = _text(value)
    if not text:
        raise ValueError("expected a text that is not empty")
    return text


def _scalar(value: Any) -> str:
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return _text(value)


__all__ = ["MYSQL", "NAME", "PLUGIN", "POSTGRESQL", "Database", "Pool", "database", "databases", "pool"]
