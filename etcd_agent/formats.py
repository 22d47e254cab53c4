"""``check.format``: whether a staged file is JSON, YAML, TOML, XML or INI at all. Pure; answers with one
line."""

from __future__ import annotations

import configparser
import json
from collections.abc import Callable, Mapping
from xml.etree import ElementTree

import toml
import yaml


def problem(content: bytes, name: str) -> str | None:
    """Why ``content`` is not in the format ``name`` ("none" accepts everything), or None if it is."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return None if name == "none" else f"not UTF-8 at byte {error.start}"
    try:
        _PARSERS[name](text)
    except Exception as error:  # toml 0.10 raises IndexError and others on some wrong input
        return f"not {name}: {' '.join(str(error).split())}"
    return None


def _ini(text: str) -> None:
    configparser.ConfigParser(strict=True, interpolation=None).read_string(text)


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "none": lambda text: None,
    "json": json.loads,
    "yaml": lambda text: list(yaml.compose_all(text, Loader=yaml.SafeLoader)),
    "toml": toml.loads,
    "xml": ElementTree.fromstring,
    "ini": _ini,
}
