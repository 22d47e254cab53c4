"""Prometheus: targets with labels from keys, as ``file_sd`` files, and the proof that it has found them.

Attach it with a table ``[plugins.prometheus]``; README.md is the manual. Prometheus watches its files itself,
so there is nothing to reload.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests

from etcd_agent import Applied, Problem, Resource, Table, View, hookimpl, idle, tables

from . import model

AGENT_API = ">=1,<2"
NAME = model.PLUGIN


@dataclass(frozen=True, slots=True)
class Settings:
    """``[plugins.prometheus]``: labels for every target, and where Prometheus is asked for what it found."""

    labels: dict[str, str]
    api: str


def settings_of(resource: Resource) -> Settings | None:
    """The settings for a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    labels: dict[str, str] = table.take("labels", model.labels_of, {})
    settings = Settings(labels=labels, api=table.take("api", _url, ""))
    table.finish()
    return settings


def _url(value: Any) -> str:
    text = tables.string(value)
    if text and not text.startswith(("http://", "https://")):
        raise ValueError(f'expected a URL such as "http://127.0.0.1:9090", not {tables.describe(value)}')
    return text.rstrip("/")


@hookimpl
def agent_register_templates(register: Callable[[str, str], None]) -> None:
    register(NAME, os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates"))


@hookimpl
def agent_register_functions(register: Callable[[str, Callable[..., Any]], None], resource: Resource) -> None:
    settings = settings_of(resource)
    if settings is None:
        return
    labels = settings.labels

    def as_json(view: View, job: str = "") -> str:
        return model.to_json(model.targets(view, job, labels))

    def as_yaml(view: View, job: str = "") -> str:
        return model.to_yaml(model.targets(view, job, labels))

    register("file_sd_json", as_json)
    register("file_sd_yaml", as_yaml)


@hookimpl
def agent_check_settings(resource: Resource) -> None:
    settings_of(resource)


@hookimpl
def agent_reload(resource: Resource) -> str | None:
    if resource.settings(NAME) is None or resource.reload.configured:
        return None
    return "Prometheus follows its files by itself"


@hookimpl
def agent_health(resource: Resource, applied: Applied) -> Problem | None:
    """Prometheus has found every target of the files on disk. Nobody answering is no fault of the files."""
    settings = settings_of(resource)
    if settings is None or not settings.api:
        return None
    url = f"{settings.api}/api/v1/targets"
    with requests.Session() as session:
        session.trust_env = False
        try:
            with idle():
                answer = session.get(url, timeout=resource.health.timeout_s)
            found = answer.json()
        except requests.ConnectionError:
            return None
        except (requests.RequestException, ValueError) as error:
            return Problem(f"Prometheus does not say what it has found: {type(error).__name__}", url)
    for path in applied.files:
        wanted = _addresses(path)
        if wanted is None:
            continue
        if lacking := model.missing(found, path, wanted):
            return Problem(f"Prometheus has not found {len(lacking)} targets yet, such as {lacking[0]}", path)
    return None


def _addresses(path: str) -> list[str] | None:
    try:
        with open(path, encoding="utf-8") as file:
            return model.addresses_of(file.read())
    except FileNotFoundError:
        return None
