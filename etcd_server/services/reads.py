"""Linearizable reads: wait until this member has applied everything that was committed when the read arrived.

All reads of a turn share one ReadIndex round (Raft thesis 6.4; etcd: server/etcdserver/v3_server.go
linearizableReadLoop). A read is a triple (function, call id, request); the function answers it from the
machine.

A read that raft cannot take, because there is no leader, and one that is not confirmed within half a second,
because the leader or a message was lost, is asked for again: any index that is confirmed later than the read
came in is good for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from etcd_server.raft.errors import ReadDropped
from etcd_server.raft.node import Node

RETRY_S = 0.5
"""As etcd's readIndexRetryTime (server/etcdserver/read/read.go)."""

Read = tuple[Callable[[int, Any], None], int, Any]


@dataclass(slots=True)
class Group:
    """The reads of one turn. `reads` is empty once they are answered, wherever the group is still listed."""

    deadline_s: float
    reads: Sequence[Read]


@dataclass(slots=True)
class Asked:
    """What raft was asked for under one context. `is_repeated`: it has been asked again under another; the
    answer to either is good."""

    asked_s: float
    groups: Sequence[Group]
    is_repeated: bool = False


class Reads:
    """The reads that wait for a confirmed index, or for that index to be applied."""

    def __init__(self, node: Node, first_context: int, timeout_s: float) -> None:
        self._node = node
        self._context = first_context
        self._timeout_s = timeout_s
        self._gathered: list[Read] = []
        self._to_ask: list[Group] = []
        self._asked: dict[int, Asked] = {}
        self._confirmed: list[tuple[int, Sequence[Group]]] = []
        self._groups: deque[Group] = deque()

    def add(self, reads: Sequence[Read]) -> None:
        self._gathered.extend(reads)

    def ask(self, now: float) -> bool:
        """Ask raft for the index behind which the turn's reads are safe; whether it has taken the
        question."""
        if self._gathered:
            group = Group(now + self._timeout_s, self._gathered)
            self._gathered = []
            self._groups.append(group)
            self._to_ask.append(group)
        elif not self._to_ask:
            return False
        self._context += 1
        try:
            self._node.read_index(self._context)
        except ReadDropped:
            return False
        self._asked[self._context] = Asked(now, self._to_ask)
        self._to_ask = []
        return True

    def confirmed(self, read_states: Iterable[tuple[int, int]]) -> None:
        """Take raft's answers: (context, index)."""
        for context, index in read_states:
            asked = self._asked.pop(context, None)
            if asked is not None:
                self._confirmed.append((index, asked.groups))

    def serve(self, applied_index: int) -> None:
        """Answer every read whose index has been applied."""
        if not self._confirmed:
            return
        waiting = []
        for index, groups in self._confirmed:
            if index <= applied_index:
                for group in groups:
                    reads, group.reads = group.reads, ()
                    for function, call_id, request in reads:
                        function(call_id, request)
            else:
                waiting.append((index, groups))
        self._confirmed = waiting

    def repeat(self, now: float, *, after_s: float = RETRY_S) -> None:
        """Let everything be asked again that was asked at least `after_s` ago and has not been confirmed."""
        done = []
        for context, asked in self._asked.items():
            open_groups = [group for group in asked.groups if group.reads]
            if not open_groups:
                done.append(context)
            elif not asked.is_repeated and now - asked.asked_s >= after_s:
                asked.is_repeated = True
                self._to_ask += open_groups
        for context in done:
            del self._asked[context]

    def expired(self, now: float) -> Iterator[Read]:
        """Reads that could not be served in time."""
        while self._groups and (not self._groups[0].reads or self._groups[0].deadline_s <= now):
            group = self._groups.popleft()
            reads, group.reads = group.reads, ()
            yield from reads
        self._to_ask = [group for group in self._to_ask if group.reads]
        if self._confirmed:
            self._confirmed = [
                (index, groups) for index, groups in self._confirmed if any(group.reads for group in groups)
            ]

    def drop_all(self) -> Iterator[Read]:
        """Everything that still waits: the member stops."""
        yield from self._gathered
        self._gathered = []
        yield from self.expired(inf)
