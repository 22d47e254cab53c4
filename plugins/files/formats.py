"""A tree of values as JSON, YAML, TOML, INI or environment file, written by libraries that know how. Pure.

What a format cannot hold (null in TOML, a line feed in INI) is refused with a RenderError that names the
path.
"""

from __future__ import annotations

import configparser
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import tomli_w
import yaml

from etcd_agent import RenderError

from .. import envfile

_INI_NAME = re.compile(r"[^\s=:#;\[\]][^=:\[\]\x00-\x1f]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def to_json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def to_yaml(tree: Mapping[str, Any]) -> str:
    """YAML 1.1 as PyYAML's safe loader reads it, which quotes ``yes`` and ``1.0`` where they are text."""
    text: str = yaml.safe_dump(dict(tree), allow_unicode=True, sort_keys=False, default_flow_style=False)
    return text


def to_toml(tree: Mapping[str, Any]) -> str:
    """TOML 1.0. RenderError for null, which it does not know."""
    _no_null(tree, "")
    return tomli_w.dumps(tree)


def _no_null(value: Any, path: str) -> None:
    if value is None:
        raise RenderError(f"{path or '/'}: TOML has no null; leave the key out")
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, item in items:
        _no_null(item, f"{path}/{name}")


def to_ini(leaves: Iterable[tuple[tuple[str, ...], str]], section: str = "") -> str:
    """``[section]`` from all parts of a path but the last, joined by dots, as configparser reads them.

    ``section`` is for keys without a folder; "" refuses them.
    """
    writer = configparser.ConfigParser(interpolation=None, delimiters=("=",), default_section="\0")
    writer.optionxform = str  # type: ignore[assignment,method-assign]
    for path, value in leaves:
        shown = "/" + "/".join(path)
        head = ".".join(path[:-1]) or section
        if not head:
            raise RenderError(f"{shown}: an INI file has sections; put the key into a folder, or set section")
        if not _INI_NAME.fullmatch(path[-1]) or path[-1] != path[-1].strip() or _wrong_section(head):
            raise RenderError(f"{shown}: INI cannot hold this name")
        if value != value.strip() or "\n" in value or _CONTROL.search(value):
            raise RenderError(f"{shown}: INI holds one line without white space at its ends")
        if not writer.has_section(head):
            writer.add_section(head)
        if writer.has_option(head, path[-1]):
            raise RenderError(f"{shown}: [{head}] has this name from another key already")
        writer.set(head, path[-1], value)
    text = io.StringIO()
    writer.write(text)
    return text.getvalue().rstrip("\n") + "\n"


def _wrong_section(name: str) -> bool:
    return any(each in "[]\n\r" for each in name) or name != name.strip() or bool(_CONTROL.search(name))


def to_env(leaves: Iterable[tuple[tuple[str, ...], str]], prefix: str = "", *, upper: bool = True) -> str:
    """``PREFIX_A_B=value`` of ``/a/b`` (see ``envfile``); other characters than those become _."""
    found: dict[str, str] = {}
    origins: dict[str, str] = {}
    for path, value in leaves:
        shown = "/" + "/".join(path)
        name = prefix + re.sub(r"[^A-Za-z0-9_]", "_", "_".join(path))
        name = name.upper() if upper else name
        if name in found:
            raise RenderError(f"{shown} and {origins[name]} would both be {name}")
        if not envfile.NAME.fullmatch(name):
            raise RenderError(f"{shown} would be {name!r}, which is not the name of a variable")
        found[name], origins[name] = value, shown
    return envfile.lines(found)
