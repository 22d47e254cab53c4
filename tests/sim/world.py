"""Virtual time: one heap of events, one thread, every choice from the seed.

The world owns the clock, the hosts, the network, the clients and what they remember. Each part draws from a
random source of its own (`source`), so that a new draw in one does not shift the others. What happens is
traced: a running checksum tells whether two runs were the same, and the last events are kept as a script that
a person can read.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any
from zlib import crc32

from tests.sim.plan import Plan

LAST_EVENTS = 200


class Violation(AssertionError):
    """A run has shown something that must never happen. `check` names the invariant."""

    def __init__(self, check: str, text: str) -> None:
        super().__init__(f"{check}: {text}")
        self.check = check


class World:
    """Virtual time and what happened in it. `now` is in seconds, from 0."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self.trace_hash = 0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._last: deque[tuple[float, str, str, Any]] = deque(maxlen=LAST_EVENTS)

    def source(self, name: str) -> random.Random:
        """A source of randomness for one part of the world."""
        return random.Random(f"{name} {self.plan.seed}")

    # --- time ---------------------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have `action(*arguments)` happen `delay_s` from now."""
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._sequence, action, arguments))

    def run_until(self, end_s: float) -> None:
        """Let everything happen that is due before `end_s`."""
        heap = self._heap
        while heap and heap[0][0] < end_s:
            self.now, _, action, arguments = heapq.heappop(heap)
            self.events += 1
            action(*arguments)
        self.now = max(self.now, end_s)

    # --- the trace ----------------------------------------------------------------------------------------

    def trace(self, who: str, what: str, detail: Any = "") -> None:
        """Something has happened. `detail` is made text only when somebody wants to read it."""
        self._last.append((self.now, who, what, detail))
        self.trace_hash = crc32(f"{self.now!r} {who} {what}".encode(), self.trace_hash)

    def script(self) -> Iterator[str]:
        """The last events, oldest first, a line each."""
        for now_s, who, what, detail in self._last:
            text = describe(detail)
            yield f"{now_s:10.4f}  {who:<9} {what}{'  ' + text if text else ''}"


def describe(detail: Any) -> str:
    """A detail of the trace as one line: a dataclass without what is empty."""
    if isinstance(detail, str):
        text = detail
    elif is_dataclass(detail):
        values = [(field.name, getattr(detail, field.name)) for field in fields(detail)]
        text = " ".join(
            f"{name}={value}" for name, value in values if value or (value == 0 and name == "index")
        )
        text = f"{type(detail).__name__} {text}"
    else:
        text = repr(detail)
    text = " ".join(text.split())
    return text if len(text) <= 240 else text[:237] + "..."


@contextmanager
def checking(check: str) -> Iterator[None]:
    """Let a failed assertion inside be a violation of the invariant `check`."""
    try:
        yield
    except Violation:
        raise
    except AssertionError as error:
        raise Violation(check, str(error)) from error
