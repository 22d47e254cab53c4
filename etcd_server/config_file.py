"""The configuration file: YAML or JSON as etcd's own, or TOML with the same keys.

Keys are the names of the flags. As in etcd, a duration may be a whole number of nanoseconds, and some flags
stand in sections under shorter names (`client-transport-security`, `peer-transport-security`,
`discovery-config`, `socket-options`). What is found is returned as the text that the flag would be given on
the command line, so that a value means the same wherever it is written. A key that is not known is an error,
because a misspelt setting would be a setting that is not in force (etcd passes over it).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import toml
import yaml

from etcd_server.flags import Flag, Kind, find, nearest

_SECTIONS: dict[str, dict[str, str]] = {
    "client-transport-security": {
        "cert-file": "cert-file",
        "key-file": "key-file",
        "client-cert-file": "client-cert-file",
        "client-key-file": "client-key-file",
        "client-cert-auth": "client-cert-auth",
        "trusted-ca-file": "trusted-ca-file",
        "auto-tls": "auto-tls",
        "allowed-hostname": "client-cert-allowed-hostname",
    },
    "peer-transport-security": {
        "cert-file": "peer-cert-file",
        "key-file": "peer-key-file",
        "client-cert-file": "peer-client-cert-file",
        "client-key-file": "peer-client-key-file",
        "client-cert-auth": "peer-client-cert-auth",
        "trusted-ca-file": "peer-trusted-ca-file",
        "auto-tls": "peer-auto-tls",
        "allowed-cn": "peer-cert-allowed-cn",
        "allowed-hostname": "peer-cert-allowed-hostname",
        "skip-client-san-verification": "peer-skip-client-san-verification",
    },
    "discovery-config": {
        "discovery-token": "discovery-token",
        "discovery-endpoints": "discovery-endpoints",
    },
    "socket-options": {
        "reuse-port": "socket-reuse-port",
        "reuse-address": "socket-reuse-address",
    },
}
_OF_THE_COMMAND_LINE = frozenset({"config-file", "version", "help"})


class ConfigFileError(Exception):
    """The file cannot be used; the text is one line that names it."""


def read_config_file(path: str) -> dict[str, tuple[str, str]]:
    """{name of a flag: (the key as it stands in the file, the value as text)} of all keys that have a value.

    Raises ConfigFileError.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigFileError(f"cannot read configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigFileError(f"configuration file {path} is not UTF-8 text") from error
    found: dict[str, tuple[str, str]] = {}
    for key, value in _parse(path, text).items():
        section = _SECTIONS.get(key)
        if section is None:
            _take(path, key, key, value, found)
        elif isinstance(value, dict):
            for inner, inner_value in value.items():
                if inner not in section:
                    raise _unknown(path, f"{key}.{inner}", nearest(inner, section))
                _take(path, f"{key}.{inner}", section[inner], inner_value, found)
        elif value is not None:
            raise ConfigFileError(f"{path}: {key}: expected a section of keys, found {_shown(value)}")
    return found


def _parse(path: str, text: str) -> dict[str, Any]:
    try:
        content = toml.loads(text) if path.endswith(".toml") else yaml.safe_load(text)
    except toml.TomlDecodeError as error:
        raise ConfigFileError(f"{path}: line {error.lineno}: {error.msg}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f": line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML or JSON"
        raise ConfigFileError(f"{path}{where}: {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigFileError(f"{path}: expected keys with values, found {_shown(content)}")
    return {str(key): value for key, value in content.items()}


def _take(path: str, key: str, name: str, value: Any, found: dict[str, tuple[str, str]]) -> None:
    flag = find(name)
    if flag is None or name in _OF_THE_COMMAND_LINE:
        raise _unknown(path, key, nearest(name))
    if value is not None:
        found[flag.name] = (key, _text(path, key, flag, value))


def _unknown(path: str, key: str, near: str | None) -> ConfigFileError:
    hint = f'; did you mean "{near}"?' if near and near not in _OF_THE_COMMAND_LINE else ""
    return ConfigFileError(f'{path}: unknown key "{key}"{hint}')


def _text(path: str, key: str, flag: Flag, value: Any) -> str:
    """The value as it would be written on the command line."""
    match value:
        case bool() if flag.kind is Kind.SWITCH:
            return "true" if value else "false"
        case str():
            return value
        case int() if flag.kind is Kind.DURATION and not isinstance(value, bool):
            return f"{value}ns"
        case int() | float() if flag.kind in (Kind.TEXT, Kind.COUNT, Kind.INTEGER) and not isinstance(
            value, bool
        ):
            return str(value)
        case list() if flag.kind in (Kind.URLS, Kind.LIST) and all(isinstance(item, str) for item in value):
            return ",".join(value)
    raise ConfigFileError(f"{path}: {key}: expected {flag.kind.value}, found {_shown(value)}")


def _shown(value: Any) -> str:
    kinds = {bool: "true or false", dict: "a section", list: "a list", str: "text"}
    return kinds.get(type(value), repr(value))
