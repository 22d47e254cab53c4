"""What the commands share: the configuration, the resources that are named, how an error ends the process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from graphlib import TopologicalSorter

from etcd_agent.apply import Applier
from etcd_agent.errors import ConfigError
from etcd_agent.follow import Store
from etcd_agent.plugins import PluginSet
from etcd_agent.runtime import builtin_plugins, make_applier
from etcd_agent.schema import schemas_of
from etcd_agent.values import AgentConfig, Gate, Resource, Snapshot

LoadConfig = Callable[[], AgentConfig]
CHANGES = 2


def applier_of(config: AgentConfig, gate: Gate | None = None) -> Applier:
    """Raises ConfigError."""
    return make_applier(config, PluginSet(config.plugins, builtin_plugins()), gate=gate)


@contextmanager
def store_of(config: AgentConfig) -> Iterator[Store]:
    store = Store(config)
    try:
        yield store
    finally:
        store.close()


def read(config: AgentConfig, store: Store, resource: Resource) -> Snapshot:
    """The keys of a resource, and the schemas of their values. Raises StoreError."""
    snapshot = store.read(resource.ranges)
    if not config.schema_prefix:
        return snapshot
    schemas = schemas_of(config.schema_prefix, store.read([config.schema_prefix]).entries)
    return Snapshot(snapshot.cluster_id, snapshot.revision, snapshot.entries, schemas)


def selected(config: AgentConfig, names: Sequence[str]) -> list[Resource]:
    """The resources that are named, or all. Raises ConfigError for an unknown name."""
    known = {resource.name: resource for resource in config.resources}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no resource {name!r}; known: {', '.join(known) or 'none'}")
    return [known[name] for name in names] if names else list(config.resources)


def in_order(resources: Sequence[Resource]) -> list[Resource]:
    """What others require comes before them."""
    known = {resource.name: resource for resource in resources}
    sorter = TopologicalSorter(
        {name: [each for each in resource.requires if each in known] for name, resource in known.items()}
    )
    return [known[name] for name in sorter.static_order()]


def setting(text: str) -> tuple[str, bytes]:
    """``KEY=VALUE``. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.startswith("/"):
        raise ConfigError(f"expected KEY=VALUE with an absolute key, not {text!r}")
    return key, os.fsencode(value)
