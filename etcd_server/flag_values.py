"""The values of flags: from text, as Go's flag package and etcd read them, and back.

Each reader raises ValueError with a text that fits behind `invalid value "..." for --flag: `.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from etcd_server.api.urls import checked as checked_url
from etcd_server.flags import Flag, Kind

Value = str | bool | int | float | tuple[str, ...]

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_LARGEST = 2**63 - 1


def read(flag: Flag, text: str) -> Value:
    """The value that `text` means for `flag`. Raises ValueError."""
    value = _READERS[flag.kind](text)
    if flag.choices and text not in flag.choices:
        raise ValueError(f"expected {' or '.join(flag.choices)}")
    return value


def default(flag: Flag) -> Value:
    """The value of a flag that is not given."""
    return _READERS[flag.kind](flag.default) if flag.default else _EMPTY.get(flag.kind, "")


def switch(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("expected true or false")


def integer(text: str) -> int:
    """A whole number of 64 bits with a sign; 0x and other prefixes as in Go."""
    try:
        number = int(text, 0)
    except ValueError:
        raise ValueError("expected a whole number") from None
    if abs(number) > _LARGEST:
        raise ValueError("value out of range")
    return number


def count(text: str) -> int:
    """A whole number that is not negative."""
    number = integer(text)
    if number < 0:
        raise ValueError("expected a whole number, not negative")
    return number


def duration_s(text: str) -> float:
    """Go's durations, in seconds: "300ms", "-1.5h", "2h45m", "0"."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    if digits == "0":
        return 0.0
    parts = list(_DURATION_PART.finditer(digits))
    if not digits or "".join(part.group() for part in parts) != digits:
        raise ValueError('expected a duration such as "100ms", "5s" or "1h30m"')
    seconds = sum(float(part[1]) * _UNIT_S[part[2]] for part in parts)
    return -seconds if text[0] == "-" else seconds


def strings(text: str) -> tuple[str, ...]:
    """A comma-separated list; each element once, in the order given."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def urls(text: str) -> tuple[str, ...]:
    """A comma-separated list of URLs; each once, sorted as etcd sorts them."""
    found = {url(part.strip()) for part in text.split(",")}
    return tuple(sorted(found))


def url(text: str) -> str:
    """One URL: http or https with host and port and nothing else, unix or unixs with a path."""
    return checked_url(text)


def is_socket_path(url_text: str) -> bool:
    """Whether a URL that `url` has accepted is that of a unix socket."""
    return url_text.startswith(("unix:", "unixs:"))


def is_tls(url_text: str) -> bool:
    """Whether a URL that `url` has accepted asks for TLS."""
    return url_text.startswith(("https:", "unixs:"))


def host(url_text: str) -> str:
    """The host of an http or https URL that `url` has accepted; without the brackets of an IPv6 address."""
    return urlsplit(url_text).netloc.rpartition(":")[0].strip("[]")


def is_bindable(host_name: str) -> bool:
    """etcd listens on addresses and on "localhost", not on other names (embed.checkBindURLs)."""
    if host_name == "localhost":
        return True
    try:
        ipaddress.ip_address(host_name)
    except ValueError:
        return False
    return True


_READERS: dict[Kind, Callable[[str], Value]] = {
    Kind.TEXT: str,
    Kind.SWITCH: switch,
    Kind.COUNT: count,
    Kind.INTEGER: integer,
    Kind.DURATION: duration_s,
    Kind.URLS: urls,
    Kind.LIST: strings,
}
_EMPTY: dict[Kind, Value] = {Kind.URLS: (), Kind.LIST: ()}
