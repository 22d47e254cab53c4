"""Files from a prefix: the keys below it as JSON, YAML, TOML, INI or environment file, without a template.

Attach it with a table ``[plugins.files]``; README.md is the manual. The plugin only renders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from etcd_agent import Resource, Table, View, hookimpl, tables

from . import formats, model

AGENT_API = ">=1,<2"
NAME = "files"
_PREFIX = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*)?")


@dataclass(frozen=True, slots=True)
class Settings:
    """``[plugins.files]``."""

    top: str
    types: str
    lists: bool
    section: str
    env_prefix: str
    env_case: str


def settings_of(resource: Resource) -> Settings | None:
    """The settings for a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    settings = Settings(
        top=table.take("top", tables.key_path, ""),
        types=table.take("types", tables.choice("json", "text"), "json"),
        lists=table.take("lists", tables.boolean, False),
        section=table.take("section", tables.string, ""),
        env_prefix=table.take("env_prefix", _env_prefix, ""),
        env_case=table.take("env_case", tables.choice("upper", "keep"), "upper"),
    )
    table.finish()
    return settings


def _env_prefix(value: Any) -> str:
    if not _PREFIX.fullmatch(tables.string(value)):
        raise ValueError(f"expected the beginning of a variable's name, not {tables.describe(value)}")
    return str(value)


@hookimpl
def agent_register_templates(register: Callable[[str, str], None]) -> None:
    register(NAME, os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates"))


@hookimpl
def agent_register_functions(register: Callable[[str, Callable[..., Any]], None], resource: Resource) -> None:
    settings = settings_of(resource)
    if settings is not None:
        for name, function in _functions(settings).items():
            register(name, function)


def _functions(settings: Settings) -> Mapping[str, Callable[..., Any]]:
    """What templates call. ``top`` None is the setting ``top``."""

    def tree(view: View, top: str | None = None) -> dict[str, Any]:
        at = settings.top if top is None else top
        return model.tree(view, at, typed=settings.types == "json", lists=settings.lists)

    def leaves(view: View, top: str | None = None) -> list[tuple[tuple[str, ...], str]]:
        return list(model.leaves(view, settings.top if top is None else top))

    return {
        "tree": tree,
        "tree_json": lambda view, top=None: formats.to_json(tree(view, top)),
        "tree_yaml": lambda view, top=None: formats.to_yaml(tree(view, top)),
        "tree_toml": lambda view, top=None: formats.to_toml(tree(view, top)),
        "tree_ini": lambda view, top=None: formats.to_ini(leaves(view, top), settings.section),
        "tree_env": lambda view, top=None: formats.to_env(
            leaves(view, top), settings.env_prefix, upper=settings.env_case == "upper"
        ),
    }


@hookimpl
def agent_check_settings(resource: Resource) -> None:
    settings_of(resource)
