"""The network between members: raft messages as values, and everything that can become of them.

A message may be lost, doubled, overtaken or late; a path may be cut, in one direction only as well, or
clogged: what is under way then arrives when it opens. Without the fault "reordering" a path keeps the order,
as the links between members do.

Wishes and forwarded calls, and the answers to them, are never doubled: a link is a stream that hands each
frame over at most once, and a proposal that arrives twice is two proposals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from etcd_server.raft.messages import (
    ForwardProposal,
    ForwardRead,
    ForwardReadResponse,
    ForwardTransfer,
    Message,
)
from etcd_server.services.events import Forwarded, ForwardedAnswer, ForwardedCall, ProposalRefused
from tests.sim.world import World

AT_MOST_ONCE = (
    ForwardProposal,
    ForwardRead,
    ForwardReadResponse,
    ForwardTransfer,
    ForwardedCall,
    ForwardedAnswer,
    ProposalRefused,
)
LATE_S = 0.1  # as long as a heartbeat interval, or longer
Path = tuple[int, int]


class Network:
    """Paths between members, by member ID."""

    def __init__(self, world: World, deliver: Callable[[Message | Forwarded], None]) -> None:
        self._world = world
        self._deliver = deliver
        self._draw = world.source("network")
        self._cuts: dict[int, frozenset[Path]] = {}
        self._next_cut = 0
        self._clogged_until_s: dict[Path, float] = {}
        self._last_arrival_s: dict[Path, float] = {}
        self.is_calm = False

    # --- faults -------------------------------------------------------------------------------------------

    def cut(self, paths: Iterable[Path], duration_s: float) -> None:
        """Let nothing pass on these paths for a while; cuts add up. Not once everything has healed."""
        if self.is_calm:
            return
        number = self._next_cut
        self._next_cut += 1
        self._cuts[number] = frozenset(paths)
        self._world.after(duration_s, self._mend, number)

    def _mend(self, number: int) -> None:
        self._cuts.pop(number, None)

    def clog(self, path: Path, duration_s: float) -> None:
        """Hold back what travels on a path until it opens again. Not once everything has healed."""
        if self.is_calm:
            return
        until_s = self._world.now + duration_s
        self._clogged_until_s[path] = max(until_s, self._clogged_until_s.get(path, 0.0))

    def heal(self) -> None:
        """From now on everything arrives, soon and in order."""
        self._cuts.clear()
        self._clogged_until_s.clear()
        self.is_calm = True

    def is_cut(self, path: Path) -> bool:
        return any(path in paths for paths in self._cuts.values())

    # --- messages -----------------------------------------------------------------------------------------

    def send(self, message: Message | Forwarded) -> None:
        world, plan, draw = self._world, self._world.plan, self._draw
        path = (message.sender, message.to)
        world.counts[type(message).__name__] += 1
        copies = 1
        if not self.is_calm:
            if self.is_cut(path):
                world.counts["message cut off"] += 1
                return
            if plan.loss and draw.random() < plan.loss:
                world.counts["message lost"] += 1
                return
            if (
                plan.duplication
                and draw.random() < plan.duplication
                and not isinstance(message, AT_MOST_ONCE)
            ):
                world.counts["message doubled"] += 1
                copies = 2
        for _ in range(copies):
            delay_s = self._delay_s(path)
            if delay_s > LATE_S:
                world.counts["message late"] += 1
            world.after(delay_s, self._arrive, message)

    def _delay_s(self, path: Path) -> float:
        world, plan, draw = self._world, self._world.plan, self._draw
        mean_s = min(plan.delay_s, 0.002) if self.is_calm else plan.delay_s
        arrival_s = world.now + 0.0001 + min(draw.expovariate(1 / mean_s), 0.5)
        arrival_s = max(arrival_s, self._clogged_until_s.get(path, 0.0))
        earlier_s = self._last_arrival_s.get(path, 0.0)
        if arrival_s < earlier_s:
            if not self.is_calm and plan.reordering and draw.random() < plan.reordering:
                world.counts["message overtaken"] += 1
                return arrival_s - world.now
            arrival_s = earlier_s
        self._last_arrival_s[path] = arrival_s
        return arrival_s - world.now

    def _arrive(self, message: Message | Forwarded) -> None:
        if self.is_cut((message.sender, message.to)):
            self._world.counts["message cut off"] += 1
            return
        self._deliver(message)


# --- shapes of partitions -----------------------------------------------------------------------------------

Shape = Callable[[random.Random, list[int], int], set[Path]]
"""Of (source, members, the one that it is about where it is about one) the paths that are cut."""


def between(some: Iterable[int], others: Iterable[int]) -> set[Path]:
    """All paths between two sides, both ways."""
    some, others = list(some), list(others)
    return {path for a in some for b in others if a != b for path in ((a, b), (b, a))}


def halves(draw: random.Random, members: list[int], one: int) -> set[Path]:
    """Two sides of any size."""
    side = draw.sample(members, draw.randrange(1, len(members)))
    return between(side, [member for member in members if member not in side])


def isolate(draw: random.Random, members: list[int], one: int) -> set[Path]:
    """One member alone."""
    return between([one], members)


def ring(draw: random.Random, members: list[int], one: int) -> set[Path]:
    """Each sees its two neighbours only."""
    order = draw.sample(members, len(members))
    kept = {frozenset((a, order[n - 1])) for n, a in enumerate(order)}
    return {(a, b) for a in members for b in members if a != b and frozenset((a, b)) not in kept}


def bridge(draw: random.Random, members: list[int], one: int) -> set[Path]:
    """Two sides, and one member that sees both."""
    order = draw.sample([member for member in members if member != one], len(members) - 1)
    middle = len(order) // 2
    return between(order[:middle], order[middle:])


def deaf(draw: random.Random, members: list[int], one: int) -> set[Path]:
    """One member hears nobody."""
    return {(other, one) for other in members if other != one}


def mute(draw: random.Random, members: list[int], one: int) -> set[Path]:
    """One member is heard by nobody."""
    return {(one, other) for other in members if other != one}


def one_path(draw: random.Random, members: list[int], one: int) -> set[Path]:
    """A single direction between two members."""
    return {(one, draw.choice([member for member in members if member != one]))}


SHAPES: dict[str, Shape] = {
    "halves": halves,
    "isolate": isolate,
    "ring": ring,
    "bridge": bridge,
    "deaf": deaf,
    "mute": mute,
    "one path": one_path,
}
