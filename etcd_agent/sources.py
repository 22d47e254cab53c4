"""What the main loop knows of the store: groups of subtrees, each with its follower and its mirror.

Followers send what they see to the inbox; the main loop gives it back to ``take``, which moves the mirrors
and names the resources that are concerned. So the keys that a pass is given, and what is known to have
changed, are always of one moment. JSON Schemas are a group of their own; their revision may be another one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from etcd_agent.follow import Follower, Store, changes
from etcd_agent.keyspace import Mirror, in_subtree, watch_groups
from etcd_agent.schema import schemas_of
from etcd_agent.values import AgentConfig, Entry, Resource, Snapshot, minimal_ranges
from etcd_client import WatchBatch

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Group:
    """The subtrees ``tops`` below ``above``: one watch, one mirror. ``refused`` is why its last list was not
    taken; what follows that list is not taken either.
    """

    above: str
    tops: tuple[str, ...]
    mirror: Mirror
    schemas: bool = False
    follower: Follower | None = None
    listed: bool = False
    refused: str = ""
    accepts_any: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    group: Group
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Batch:
    group: Group
    batch: WatchBatch


@dataclass(frozen=True, slots=True)
class Trouble:
    """The store went away."""

    group: Group


_REFUSED_S = 2.0

Seen = Listed | Batch | Trouble


@dataclass(slots=True)
class Sources:
    """All groups of a configuration. Used by the main loop alone; ``put`` is called by the followers."""

    put: Callable[[Seen], None]
    trouble: str = ""
    _groups: list[Group] = field(default_factory=list)
    _resources: tuple[Resource, ...] = ()
    _by_top: dict[str, list[Resource]] = field(default_factory=dict)
    _group_of: dict[str, Group] = field(default_factory=dict)
    _schema_prefix: str = ""
    _schemas: dict[str, Entry] = field(default_factory=dict)
    _relisted_at: float | None = None
    _started_with: tuple[Any, ...] = ()
    _refused_at: float = float("-inf")
    _floors: dict[int, int] = field(default_factory=dict)

    def expect(self, floors: Mapping[int, int]) -> None:
        """Lists of these clusters below these revisions are old: of what was applied, or of what was seen."""
        for cluster_id, revision in floors.items():
            self._floors[cluster_id] = max(revision, self._floors.get(cluster_id, 0))

    def accept(self) -> int:
        """Take the store as it is, whatever was known of it. Returns the id of its cluster."""
        cluster_id = self.cluster_id
        self._floors.clear()
        for group in self._groups:
            group.accepts_any = True
            if group.refused and group.follower is not None:
                group.follower.relist()
        return cluster_id

    def follow(self, config: AgentConfig, store: Store, *, anew: bool = False) -> None:
        """Follow what the configuration's resources need. Groups that stay as they are go on, unless
        ``anew``.
        """
        tops = [top for resource in config.resources for top in resource.ranges]
        wanted = {(above, group, False) for above, group in _groups_with_all(tops)}
        if config.schema_prefix:
            wanted.add((config.schema_prefix, (config.schema_prefix,), True))
        kept = [] if anew else [group for group in self._groups if _name(group) in wanted]
        for group in self._groups:
            if group not in kept and group.follower is not None:
                group.follower.stop()
        names = {_name(group) for group in kept}
        new = [Group(above, tops, Mirror(tops), schemas) for above, tops, schemas in sorted(wanted - names)]
        self._groups = [*kept, *new]
        self._started_with = (config, store)
        self._resources = config.resources
        self._schema_prefix = config.schema_prefix
        self._schemas = {}
        for group in self._groups:
            if group.schemas:
                self._schemas = schemas_of(config.schema_prefix, group.mirror.snapshot().entries)
        self._group_of = {top: group for group in self._groups if not group.schemas for top in group.tops}
        self._by_top = {}
        for resource in config.resources:
            for top in resource.ranges:
                self._by_top.setdefault(top, []).append(resource)
        for group in new:
            self._start(group, config, store)

    def _start(self, group: Group, config: AgentConfig, store: Store) -> None:
        group.follower = Follower(
            store,
            group.above,
            minimal_ranges(group.tops),
            watch=config.watch,
            retry=replace(config.backend.retry, attempts=0),
            on_list=lambda snapshot: self.put(Listed(group, snapshot)),
            on_batch=lambda batch: self.put(Batch(group, batch)),
            on_trouble=lambda: self.put(Trouble(group)),
        )
        group.follower.start()

    def take(self, seen: Seen) -> Iterable[Resource]:
        """Move the mirrors. Returns the resources that have something to do because of it."""
        group = seen.group
        if group not in self._groups:
            return ()  # the configuration has changed meanwhile
        match seen:
            case Listed(_, snapshot):
                group.refused = self._refusal(group, snapshot)
                if group.refused:
                    return ()
                group.accepts_any = False
                changed = group.mirror.replace(snapshot.cluster_id, snapshot.revision, snapshot.entries)
                if not group.listed:
                    group.listed = True
                    changed = set(group.tops)
            case Batch(_, batch):
                if group.refused:
                    return ()
                changed = group.mirror.apply(batch.revision, changes(batch))
            case _:
                if group.follower is not None and group.follower.denied and len(group.tops) > 1:
                    self._split(group)
                changed = set(group.tops)
        if not changed:
            return ()
        if group.schemas:
            return self._new_schemas(group)
        found = {resource.name: resource for top in changed for resource in self._by_top.get(top, ())}
        return found.values()

    def _split(self, group: Group) -> None:
        """The user may read the subtrees, but not all that is below ``above``: one watch for each."""
        assert group.follower is not None
        group.follower.stop()
        tops = minimal_ranges(group.tops)
        logger.warning(
            "store: the user may not watch all of %s; watching %d subtrees one by one", group.above, len(tops)
        )
        parts = [
            Group(top, inside, Mirror(inside))
            for top in tops
            for inside in [tuple(each for each in group.tops if in_subtree(each, top))]
        ]
        self._groups = [*(each for each in self._groups if each is not group), *parts]
        for part in parts:
            self._group_of.update(dict.fromkeys(part.tops, part))
            self._start(part, *self._started_with)

    def _refusal(self, group: Group, snapshot: Snapshot) -> str:
        """Why a list is not taken: a store that has lost writes must not undo files, and an old copy must
        not be mixed with what a better one says later. (Groups are listed apart: one may be a little older
        than another.)"""
        floor = self._floors.get(snapshot.cluster_id, 0)
        if group.mirror.cluster_id == snapshot.cluster_id and not group.accepts_any:
            floor = max(floor, group.mirror.revision)
        if snapshot.revision >= floor:
            return ""
        return (
            f"store: it answers at revision {snapshot.revision}, but revision {floor} of the same cluster "
            f"({snapshot.cluster_id:x}) is known: it has lost writes or is an old copy"
        )

    def _new_schemas(self, group: Group) -> Iterable[Resource]:
        """The resources whose values another schema describes now (all, when they are listed first)."""
        before, after = self._schemas, schemas_of(self._schema_prefix, group.mirror.snapshot().entries)
        self._schemas = after
        moved = [prefix for prefix in before.keys() | after.keys() if before.get(prefix) != after.get(prefix)]
        return [
            each
            for each in self._resources
            if not moved
            or any(
                in_subtree(top, prefix) or in_subtree(prefix, top) for top in each.ranges for prefix in moved
            )
        ]

    def reader(self, resource: Resource, store: Store) -> Callable[[], Snapshot | None]:
        """How a pass gets the resource's keys at one revision; None while they have never been listed.

        They are those of the mirror that holds them all, as of now; if it takes several, they are read
        together anew, by the pass.
        """
        groups = {id(group): group for group in map(self._group_of.__getitem__, resource.ranges)}
        needed = [*groups.values(), *(group for group in self._groups if group.schemas)]
        if not all(group.listed for group in needed):
            return lambda: None
        schemas = self._schemas
        if len(groups) == 1:
            (group,) = groups.values()
            snapshot = replace(group.mirror.snapshot(resource.ranges), schemas=schemas)
            return lambda: snapshot
        return lambda: replace(store.read(resource.ranges), schemas=schemas)

    def relist(self, resource: Resource) -> None:
        """List again what the resource is made from."""
        for group in {
            id(group): group for group in map(self._group_of.get, resource.ranges) if group
        }.values():
            if group.follower is not None:
                group.follower.relist()

    def relist_if_due(self, now: float, interval_s: float) -> None:
        """Every ``interval`` the whole is listed anew, watch or not: the guard against anything missed. What
        was refused is asked for sooner.
        """
        if self._relisted_at is None:
            self._relisted_at = now
        everything = now - self._relisted_at >= interval_s
        again = now - self._refused_at >= _REFUSED_S
        if everything:
            self._relisted_at = now
        if again:
            self._refused_at = now
        for group in self._groups if everything or again else ():
            if group.follower is not None and (everything or group.refused):
                group.follower.relist()

    def check_troubles(self, now: float) -> bool:
        """Ask the followers how they are. Returns whether ``trouble`` is another one."""
        troubles = [
            group.refused or group.follower.trouble(now)
            for group in self._groups
            if group.follower is not None
        ]
        trouble = next((each for each in troubles if each), "")
        changed = trouble != self.trouble
        self.trouble = trouble
        return changed

    @property
    def revision(self) -> int:
        return max((group.mirror.revision for group in self._groups), default=0)

    @property
    def cluster_id(self) -> int:
        return next((group.mirror.cluster_id for group in self._groups if group.listed), 0)

    def stop(self) -> None:
        """End all followers; does not wait for them."""
        for group in self._groups:
            if group.follower is not None:
                group.follower.stop()


def _concerned(resource: Resource, prefixes: Iterable[str]) -> bool:
    """Whether any key of the resource may lie below one of ``prefixes``."""
    return any(
        in_subtree(top, prefix) or in_subtree(prefix, top) for top in resource.ranges for prefix in prefixes
    )


def _name(group: Group) -> tuple[str, tuple[str, ...], bool]:
    return group.above, group.tops, group.schemas


def _groups_with_all(tops: Iterable[str]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """The watch groups, each with every subtree in it, those inside another one included: a resource's keys
    are found under its own."""
    everything = sorted(set(tops))
    for above in watch_groups(everything):
        yield above, tuple(top for top in everything if in_subtree(top, above))
