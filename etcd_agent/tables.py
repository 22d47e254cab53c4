"""TOML tables that know where they stand: a refusal names file, line and column, and suggests the right key.

A ``Table`` wraps one table of a parsed file. Each ``take`` names a key that exists in the format, so that
``finish`` can refuse every other one. The ``toml`` library keeps no positions; ``locate`` finds them
again in the text. This module knows TOML and nothing of the agent. It reads the one file it is told to,
and never the environment.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import toml

from etcd_agent.errors import ConfigError

T = TypeVar("T")
Path = tuple[str | int, ...]

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"))*)\s*=""")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|s|m|h|d)")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_toml(path: str) -> Table:
    """The root table of the file at ``path``. Raises ConfigError: unreadable, not UTF-8, not TOML."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 at byte {error.start}; a configuration file is UTF-8 text"
        ) from error
    return parse_toml(text, path)


def parse_toml(text: str, path: str) -> Table:
    """The root table of ``text``; ``path`` is only for messages. Raises ConfigError."""
    try:
        data = toml.loads(text)
    except toml.TomlDecodeError as error:
        reason = str(error).split(" (line ")[0]
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not TOML: {reason}") from error
    except Exception as error:  # toml 0.10 lets IndexError, TypeError and others escape on some wrong input
        raise ConfigError(f"{path}: not TOML: {type(error).__name__} while parsing: {error}") from error
    return Table(data, path=path, text=text)


def locate(text: str, path: Path) -> tuple[int, int] | None:
    """Line and column (from 1) where ``path`` is written in ``text``; of its nearest parent if it is
    inline.
    """
    wanted = tuple(part for part in path if isinstance(part, str))
    indexes = {path[:at]: part for at, part in enumerate(path) if isinstance(part, int)}
    counts: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    here = True
    best: tuple[int, tuple[int, int]] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        names: tuple[str, ...] | None = None
        if header := _HEADER.match(line):
            table = _split(header.group(2))
            if header.group(1) == "[[":
                counts[table] = counts.get(table, -1) + 1
            here = all(counts.get(_names(parent), 0) == index for parent, index in indexes.items())
            names, column = table, header.start(2) + 1
        elif key := _KEY.match(line):
            names, column = table + _split(key.group(1)), key.start(1) + 1
        if (
            names is not None
            and here
            and names == wanted[: len(names)]
            and (best is None or len(names) > best[0])
        ):
            best = (len(names), (number, column))
    return best[1] if best else None


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _names(path: Path) -> tuple[str, ...]:
    return tuple(part for part in path if isinstance(part, str))


class Table:
    """One table of a TOML file (or a plugin's settings): typed reads, and an error for whatever was
    not read.
    """

    def __init__(self, data: Mapping[str, Any], *, path: str, text: str = "", at: Path = ()) -> None:
        self._data = data
        self._known: set[str] = set()
        self._path = path
        self._text = text
        self._at = at

    def __contains__(self, key: str) -> bool:
        return key in self._data

    @property
    def raw(self) -> Mapping[str, Any]:
        return self._data

    def keys(self) -> Iterable[str]:
        return self._data.keys()

    def error(self, message: str, key: str | int | None = None) -> ConfigError:
        """A ConfigError that starts with the position of ``key`` (of the table itself when None)."""
        path = self._at if key is None else (*self._at, key)
        found = locate(self._text, path)
        return ConfigError(
            f"{self._path}:{found[0]}:{found[1]}: {message}" if found else f"{self._path}: {message}"
        )

    def take(self, key: str, convert: Callable[[Any], T], default: T) -> T:
        """``convert(value)``, or ``default`` when the key is absent.

        ``convert`` raises ValueError for "expected ...".
        """
        self._known.add(key)
        if key not in self._data:
            return default
        try:
            return convert(self._data[key])
        except ValueError as error:
            raise self.error(f"{self._dotted(key)}: {error}", key) from error

    def require(self, key: str, convert: Callable[[Any], T]) -> T:
        """As ``take``, for a key that must be there."""
        self._known.add(key)
        if key not in self._data:
            raise self.error(f"{self._dotted(key)} is missing")
        value: T | None = self.take(key, convert, None)
        assert value is not None
        return value

    def table(self, key: str) -> Table:
        """The sub-table ``key``; an empty one when absent."""
        self._known.add(key)
        value = self._data.get(key, {})
        if not isinstance(value, Mapping):
            raise self.error(f"{self._dotted(key)}: expected a table, not {describe(value)}", key)
        return Table(value, path=self._path, text=self._text, at=(*self._at, key))

    def tables(self, key: str) -> list[Table]:
        """The array of tables ``key``; a single table counts as an array of one."""
        self._known.add(key)
        value = self._data.get(key, [])
        if isinstance(value, Mapping):
            return [Table(value, path=self._path, text=self._text, at=(*self._at, key))]
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.error(f"{self._dotted(key)}: expected a table or an array of tables", key)
        return [
            Table(item, path=self._path, text=self._text, at=(*self._at, key, index))
            for index, item in enumerate(value)
        ]

    def later(self, *keys: str) -> None:
        """Refuse keys of the format that this version cannot honour yet: silence would be worse."""
        for key in keys:
            self._known.add(key)
            if key in self._data:
                raise self.error(f"{self._dotted(key)} is not supported by this version yet", key)

    def finish(self) -> None:
        """Refuse every key that no ``take`` named, with the nearest name that one did."""
        for key in self._data:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1, cutoff=0.5)
                hint = (
                    f"; did you mean {near[0]!r}?"
                    if near
                    else f"; known here: {', '.join(sorted(self._known))}"
                )
                raise self.error(f"unknown key {self._dotted(key)!r}{hint}", key)

    def _dotted(self, key: str) -> str:
        return ".".join([*(part for part in self._at if isinstance(part, str)), key])


def describe(value: Any) -> str:
    """A value for a message, without betraying more than its kind when it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


def string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a string, not {describe(value)}")
    if "\0" in value:
        raise ValueError("expected a string without NUL")
    return value


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {describe(value)}")
    return value


def integer(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}, not {describe(value)}")
        return value

    return convert


def choice(*names: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in names:
            near = difflib.get_close_matches(str(value), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected one of {', '.join(names)}, not {describe(value)}{hint}")
        return str(value)

    return convert


def strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of strings, not {describe(value)}")
    return tuple(string(item) for item in value)


def string_map(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a table of strings, not {describe(value)}")
    return {string(key): string(item) for key, item in value.items()}


def duration(value: Any) -> float:
    """Seconds of ``"10s"``, ``"1m30s"``, ``"250ms"``, or a bare integer (seconds)."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**9:
        return float(value)
    if isinstance(value, str):
        parts = _DURATION.findall(value)
        if parts and "".join(number + unit for number, unit in parts) == value:
            return float(sum(float(number) * _UNITS[unit] for number, unit in parts))
    raise ValueError(f'expected a duration such as "10s", "1m30s" or "250ms", not {describe(value)}')


def file_mode(value: Any) -> int:
    """A mode as confd writes it: the string ``"0640"``."""
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3,4}", value):
        return int(value, 8)
    raise ValueError(f'expected an octal mode such as "0640", not {describe(value)}')


def command(value: Any) -> tuple[str, ...] | str:
    """A list is executed as it is; a string is given to ``/bin/sh -c``."""
    if isinstance(value, str) and value.strip():
        return string(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value) and value[0]:
        return strings(value)
    raise ValueError(f"expected a command, a list of strings or one string, not {describe(value)}")


def account(value: Any) -> str | int:
    """A user or group: a name or a number."""
    if isinstance(value, str) and value:
        return string(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1:
        return value
    raise ValueError(f"expected a user or group, a name or a number, not {describe(value)}")


def absolute_path(value: Any) -> str:
    text = string(value)
    if not text.startswith("/"):
        raise ValueError(f"expected an absolute path, not {describe(value)}")
    return text


def optional(convert: Callable[[Any], str]) -> Callable[[Any], str]:
    """The same, and "" for what is not set."""
    return lambda value: "" if value == "" else convert(value)


def key_path(value: Any) -> str:
    """A key or prefix: ``/a/b``, without a slash at its end. ``/`` and the empty string mean everything."""
    text = string(value)
    if text and not text.startswith("/"):
        raise ValueError(f"expected a key that starts with '/', not {describe(value)}")
    return text.rstrip("/")
