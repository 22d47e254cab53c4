"""Keys -> checked values, for plugins whose keys have a fixed shape: names, one leaf or one JSON object each.

What reaches a template has passed a whitelist here: a value can be wrong, but it can never end a directive,
open a block or begin a comment. Pure. A refusal is a RenderError that names the key and what was expected.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from etcd_agent import RenderError, View

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
HOST = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?"
)
FILE = re.compile(r"/[A-Za-z0-9._+/-]*")
_JSON = re.compile(r"""\[\s*["\]]|[0-9]+\Z|true\Z|false\Z""")


class Reader:
    """Reads one key after another; every refusal names the key, never its value in full."""

    def __init__(self, view: View) -> None:
        self._view = view

    def fail(self, key: str, message: str) -> NoReturn:
        raise RenderError(f"key {self._view.resource.prefix}{key}: {message}")

    def exists(self, key: str) -> bool:
        return self._view.resource.covers(key) and self._view.exists(key)

    def children(self, top: str) -> list[str]:
        """The names directly below ``top``, checked; none where ``top`` is not watched."""
        if not self._view.resource.covers(top):
            return []
        names = self._view.ls(top)
        for name in names:
            if not NAME.fullmatch(name):
                self.fail(f"{top}/{name}", "expected a name of letters, digits, '_', '.' and '-'")
        return names

    def known(self, top: str, names: Sequence[str]) -> None:
        """Refuse a value at ``top`` itself and every child that is not one of ``names``."""
        for child in self._view.ls(top):
            if self._view.exists(top) or child not in names:
                key = top if self._view.exists(top) else f"{top}/{child}"
                near = difflib.get_close_matches(child, names, n=1)
                hint = f"; did you mean {top}/{near[0]}?" if near and key != top else ""
                self.fail(key, f"unknown key; known below {top}: {', '.join(names)}{hint}")

    def leaf(self, key: str) -> None:
        if not self._view.exists(key) or self._view.lsdir(key) or len(self._view.ls(key)) > 1:
            self.fail(key, "expected one value here and no keys below it")

    def fields(self, key: str, plain: str | None) -> Mapping[str, Any]:
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

    def names(self, key: str, fields: Mapping[str, Any], known: Sequence[str]) -> None:
        """Refuse every field that is not ``known``."""
        for name in fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                self.fail(key, f"unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))

    def field(
        self,
        key: str,
        fields: Mapping[str, Any],
        name: str,
        convert: Callable[[Any], T],
        default: T | None = None,
    ) -> T:
        """One field, converted; required where there is no default."""
        if name not in fields:
            if default is None:
                self.fail(key, f"the field {name!r} is missing")
            return default
        try:
            return convert(fields[name])
        except ValueError as error:
            self.fail(key, f"{name}: {error}")

    def text(self, key: str, convert: Callable[[str], T], default: T) -> T:
        """The value of a key as it stands, converted."""
        if not self.exists(key):
            return default
        try:
            return convert(self._view.getv(key))
        except ValueError as error:
            self.fail(key, str(error))

    def value(self, key: str, convert: Callable[[Any], T], default: T) -> T:
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


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def matching(pattern: re.Pattern[str], expected: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"expected {expected}, not {shown(value)}")
        return value

    return convert


def choice(names: Sequence[str]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}, not {shown(value)}")
        return str(value)

    return convert


def integer(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}, not {shown(value)}")
        return value

    return convert


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {shown(value)}")
    return value


def several(convert: Callable[[Any], str]) -> Callable[[Any], tuple[str, ...]]:
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


def port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise ValueError(f"expected a port from 1 to 65535, not {shown(text)}")
    return int(text)


def unix_path(value: str) -> str:
    if not FILE.fullmatch(value.removeprefix("unix:")):
        raise ValueError(f"expected unix:/absolute/path, not {shown(value)}")
    return value


def address(value: Any) -> str:
    """``host:port``, ``10.0.0.1:80``, ``[::1]:80`` or ``unix:/path``: where a server is reached."""
    if not isinstance(value, str):
        raise ValueError(f"expected host:port, not {shown(value)}")
    if value.startswith("unix:"):
        return unix_path(value)
    return host_port(value)


def host_port(value: Any) -> str:
    """``host:port``, ``10.0.0.1:80`` or ``[::1]:80``."""
    if not isinstance(value, str):
        raise ValueError(f"expected host:port, not {shown(value)}")
    name, colon, number = value.rpartition(":")
    if not colon:
        raise ValueError(f"expected host:port, not {shown(value)}")
    return f"{host(name, value)}:{port(number)}"


def listen(value: Any) -> str:
    """``80``, ``127.0.0.1:8080``, ``[::1]:80`` or ``unix:/path``: where a service listens."""
    text = str(value)
    if text.startswith("unix:"):
        return unix_path(text)
    if text.isdecimal():
        return str(port(text))
    name, colon, number = text.rpartition(":")
    if not colon:
        raise ValueError(f"expected a port or address:port, not {shown(text)}")
    if name == "*":
        return f"*:{port(number)}"
    try:
        plain = name[1:-1] if name.startswith("[") and name.endswith("]") else name
        ip = ipaddress.ip_address(plain)
    except ValueError as error:
        raise ValueError(f"expected an IP address before the port, not {shown(text)}") from error
    return f"[{ip}]:{port(number)}" if ip.version == 6 else f"{ip}:{port(number)}"


def host(name: str, value: str) -> str:
    """A host name, an IPv4 address, or an IPv6 address in brackets; ``value`` is for the message."""
    if name.startswith("[") and name.endswith("]"):
        try:
            return f"[{ipaddress.IPv6Address(name[1:-1])}]"
        except ValueError as error:
            raise ValueError(f"expected an IPv6 address between the brackets, not {shown(value)}") from error
    if re.fullmatch(r"[0-9.]+", name):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as error:
            raise ValueError(f"expected an IPv4 address, not {shown(value)}") from error
    if not HOST.fullmatch(name):
        raise ValueError(f"expected host:port, not {shown(value)}")
    return name
