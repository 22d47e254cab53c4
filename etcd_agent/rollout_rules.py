"""Who may change now: the keys of a rollout, what stands in them, and the decision. Pure.

    <prefix>/<group>/slot/<i>                   who changes now: {host, resource, revision, since}, with a
                                                lease, so that a dead host's slot is free again
    <prefix>/<group>/failed/<resource>/<host>   who had to go back: {revision, change, error, at}
    <prefix>/<group>/halt                       nobody begins: {by, host, resource, revision, change, ranges,
                                                error, at}

A *change* is named by its keys and their revisions (``change_id``), not by the revision at which somebody
read them: that one moves with every write to the store. So hosts that read at different moments agree on what
they are about to apply, a halt ends as soon as a key of the halted resource changes, and a deletion counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from etcd_agent.report import key_part
from etcd_agent.values import Rollout, State

MAX_ERROR = 500


@dataclass(frozen=True, slots=True)
class Paths:
    """The keys of one group."""

    prefix: str
    group: str

    @property
    def top(self) -> str:
        return f"{self.prefix}/{key_part(self.group)}/"

    @property
    def halt(self) -> str:
        return f"{self.top}halt"

    @property
    def slots(self) -> str:
        return f"{self.top}slot/"

    @property
    def failures(self) -> str:
        return f"{self.top}failed/"

    def slot(self, index: int) -> str:
        return f"{self.slots}{index}"

    def failures_of(self, resource: str) -> str:
        return f"{self.failures}{key_part(resource)}/"

    def failure(self, resource: str, host: str) -> str:
        return f"{self.failures_of(resource)}{key_part(host)}"


@dataclass(frozen=True, slots=True)
class Slot:
    """Who holds a slot, for what, since when (seconds since the epoch)."""

    host: str = "?"
    resource: str = ""
    revision: int = 0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A host that went back to its old files."""

    host: str
    resource: str
    revision: int
    change: str
    error: str
    at: float


class By(StrEnum):
    """Who has halted a group: agents, until a key changes; a person, until the person says so."""

    AGENT = "agent"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Halt:
    """Nobody of the group begins to change. ``ranges``: the keys whose change ends it, by an agent's halt."""

    by: str = By.OPERATOR
    host: str = ""
    resource: str = ""
    revision: int = 0
    change: str = ""
    ranges: tuple[str, ...] = ()
    error: str = ""
    at: float = 0.0

    @property
    def reason(self) -> str:
        if self.by == By.AGENT:
            return _went_back(self)
        return f"halted by {self.host or 'an operator'}" + (f": {self.error}" if self.error else "")


def _went_back(one: Halt | Failure) -> str:
    return f"halted: {one.resource} of revision {one.revision} was rolled back on {one.host}"


@dataclass(frozen=True, slots=True)
class Canary:
    """A host that goes first: its state ("" if it has not reported), and whether it has this change."""

    host: str
    state: str
    done: bool


@dataclass(frozen=True, slots=True)
class Situation:
    """What a host sees at one revision.

    ``canaries``: those it must wait for, none if it is one itself. ``failures``: hosts that went back from
    the very change that it would make. ``behind``: its keys are so old that their change has no name.
    """

    slots: Mapping[int, Slot] = field(default_factory=dict)
    halt: Halt | None = None
    canaries: Sequence[Canary] = ()
    failures: Sequence[Failure] = ()
    behind: bool = False


class Obstacle(StrEnum):
    BEHIND = "behind"
    HALT = "halt"
    CANARY = "canary"
    SLOT = "slot"


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now. ``reason`` is a line for people."""

    obstacle: Obstacle
    reason: str


@dataclass(frozen=True, slots=True)
class Take:
    """Try these slots, in this order."""

    indexes: tuple[int, ...]


def decide(
    situation: Situation,
    *,
    max_concurrent: int,
    max_failures: int = 0,
    first: int = 0,
    has_slot: bool = False,
) -> Take | Wait:
    """What a host that wants to change does: halt before canaries before slots.

    A change from which more than ``max_failures`` hosts went back is not tried even when the halt is over: a
    newer change ends it, and this host may not have heard of that one yet.

    ``first`` is where it begins to look, so that hosts do not all try the same free slot; with ``has_slot``
    it needs none. Slots beyond ``max_concurrent``, left from a time when it was higher, count as taken.
    """
    if situation.halt is not None:
        return Wait(Obstacle.HALT, situation.halt.reason)
    if situation.behind:
        return Wait(Obstacle.BEHIND, "newer keys are on their way")
    if len(situation.failures) > max_failures:
        return Wait(Obstacle.HALT, _went_back(situation.failures[0]))
    missing = [canary for canary in situation.canaries if not canary.done]
    if missing:
        states = ", ".join(f"{canary.host} {canary.state or 'has not reported'}" for canary in missing[:3])
        return Wait(Obstacle.CANARY, f"canary: {states}")
    if has_slot:
        return Take(())
    if len(situation.slots) >= max_concurrent:
        return Wait(Obstacle.SLOT, f"slot: {len(situation.slots)} of {max_concurrent} taken")
    indexes = ((first + step) % max_concurrent for step in range(max_concurrent))
    return Take(tuple(_head((index for index in indexes if index not in situation.slots), 3)))


def _head(indexes: Iterable[int], count: int) -> Iterator[int]:
    for index, _ in zip(indexes, range(count), strict=False):
        yield index


def applied_revision(document: Mapping[str, Any]) -> int | None:
    """The revision that a host's report says is in force there; None if it says anything else."""
    if document.get("state") != State.APPLIED or document.get("reload_pending"):
        return None
    return _number(document.get("revision")) or None


def failures_of(failures: Iterable[Failure], change: str) -> list[Failure]:
    """Those of one change."""
    return [failure for failure in failures if failure.change == change]


def limits(rollout: Rollout, host: str) -> tuple[str, ...]:
    """The canaries that this host waits for."""
    return () if host in rollout.canary else rollout.canary


def change_id(keys: Iterable[tuple[bytes, int]]) -> str:
    """A name for the state of some keys: (key, mod_revision), whatever their order."""
    digest = hashlib.sha256()
    for key, mod_revision in sorted(keys):
        digest.update(b"%d %d " % (len(key), mod_revision) + key)
    return digest.hexdigest()[:32]


# --- documents --------------------------------------------------------------------------------------------


def dump(value: Slot | Failure | Halt) -> str:
    return json.dumps(asdict(value), separators=(",", ":"))


def parse_slot(value: bytes) -> Slot:
    """The slot's holder; an unknown one for what is no such document: it is taken all the same."""
    document = _object(value)
    return Slot(
        host=str(document.get("host", "?")),
        resource=str(document.get("resource", "")),
        revision=_number(document.get("revision")),
        since=float(_number(document.get("since"))),
    )


def parse_halt(value: bytes) -> Halt:
    """The halt; one by an operator for what is no such document: whoever wrote it wanted a stop."""
    document = _object(value)
    if document.get("by") != By.AGENT:
        return Halt(
            host=str(document.get("host", "")),
            error=str(document.get("error", "")) if document else "the halt key holds no document",
            at=float(_number(document.get("at"))),
        )
    ranges = document.get("ranges")
    return Halt(
        by=By.AGENT,
        host=str(document.get("host", "?")),
        resource=str(document.get("resource", "")),
        revision=_number(document.get("revision")),
        change=str(document.get("change", "")),
        ranges=tuple(map(str, ranges)) if isinstance(ranges, list) else (),
        error=str(document.get("error", "")),
        at=float(_number(document.get("at"))),
    )


def parse_failure(value: bytes) -> Failure:
    document = _object(value)
    return Failure(
        host=str(document.get("host", "?")),
        resource=str(document.get("resource", "")),
        revision=_number(document.get("revision")),
        change=str(document.get("change", "")),
        error=str(document.get("error", "")),
        at=float(_number(document.get("at"))),
    )


def parse_slots(paths: Paths, entries: Mapping[str, bytes]) -> dict[int, Slot]:
    """The slots among the keys of a group."""
    found = {}
    for key, value in entries.items():
        name = key.removeprefix(paths.slots)
        if name != key and name.isdigit():
            found[int(name)] = parse_slot(value)
    return found


def parse_failures(paths: Paths, entries: Mapping[str, bytes]) -> list[Failure]:
    return [parse_failure(value) for key, value in entries.items() if key.startswith(paths.failures)]


def _object(value: bytes) -> dict[str, Any]:
    try:
        document = json.loads(value)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0
