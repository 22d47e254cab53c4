"""Prometheus's targets and their labels, read from keys, and the groups of a ``file_sd`` file. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from etcd_agent import View

from ..reading import Reader, host_port, shown

PLUGIN = "prometheus"
# What Prometheus takes for the name of a label (its data model, "Metric names and labels").
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """``labels`` as sorted pairs."""

    labels: tuple[tuple[str, str], ...]
    address: str


def targets(view: View, job: str, common: Mapping[str, str]) -> tuple[Target, ...]:
    """The targets of ``job`` ("" means all jobs, each with a label job). RenderError names the wrong key."""
    reader = _Reader(view)
    jobs = [job] if job else reader.children("/targets")
    found: dict[Target, str] = {}
    for name in jobs:
        more = {**common} if job else {**common, "job": name}
        for key in (f"/targets/{name}/{each}" for each in reader.children(f"/targets/{name}")):
            for target in reader.targets(key, more):
                if target in found:
                    reader.fail(key, f"{target.address} is there already, by {found[target]}")
                found[target] = key
    return tuple(sorted(found))


class _Reader(Reader):
    def targets(self, key: str, common: Mapping[str, str]) -> list[Target]:
        self.leaf(key)
        fields = self.fields(key, "address")
        self.names(key, fields, ("address", "targets", "labels"))
        if ("address" in fields) == ("targets" in fields):
            self.fail(key, "expected an address, or targets, a list of them")
        addresses: list[str]
        if "address" in fields:
            addresses = [self.field(key, fields, "address", host_port)]
        else:
            addresses = self.field(key, fields, "targets", _addresses)
        labels = {**common, **self.field(key, fields, "labels", labels_of, {})}
        return [Target(tuple(sorted(labels.items())), address) for address in addresses]


def _addresses(value: Any) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a list of addresses, not {shown(value)}")
    return [host_port(each) for each in value]


def labels_of(value: Any) -> dict[str, str]:
    """``{"name": "value"}``, checked."""
    if not isinstance(value, Mapping):
        raise ValueError(f"expected an object of names and values, not {shown(value)}")
    for name, text in value.items():
        if not isinstance(name, str) or not LABEL.fullmatch(name):
            raise ValueError(f"expected the name of a label, not {shown(name)}")
        if not isinstance(text, str):
            raise ValueError(f"{name}: expected a text, not {shown(text)}")
    return dict(value)


def groups(found: tuple[Target, ...]) -> list[dict[str, Any]]:
    """file_sd's form: targets with the same labels together."""
    made: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for target in found:
        made.setdefault(target.labels, []).append(target.address)
    return [
        {"targets": addresses, **({"labels": dict(labels)} if labels else {})}
        for labels, addresses in made.items()
    ]


def to_json(found: tuple[Target, ...]) -> str:
    return json.dumps(groups(found), indent=2, ensure_ascii=False) + "\n"


def to_yaml(found: tuple[Target, ...]) -> str:
    text: str = yaml.safe_dump(groups(found), allow_unicode=True, sort_keys=False, default_flow_style=False)
    return text


def addresses_of(text: str) -> list[str] | None:
    """The addresses in a file of ours, JSON or YAML (JSON is YAML); None for another file."""
    try:
        data = yaml.safe_load(text)
        return sorted({address for group in data for address in group["targets"]})
    except (yaml.YAMLError, TypeError, KeyError):
        return None


def missing(api: Mapping[str, Any], path: str, wanted: list[str]) -> list[str]:
    """Which addresses Prometheus does not have from the file ``path`` (its API, ``/api/v1/targets``)."""
    data = api.get("data", {})
    known = {
        each.get("discoveredLabels", {}).get("__address__")
        for each in (*data.get("activeTargets", ()), *data.get("droppedTargets", ()))
        if each.get("discoveredLabels", {}).get("__meta_filepath") == path
    }
    return [address for address in wanted if address not in known]
