"""Linearizable reads: wait until this member has applied everything that was committed when the read arrived.

All reads of a turn share one ReadIndex round (Raft thesis 6.4; etcd: server/etcdserver/v3_server.go
linearizableReadLoop). A read is a triple (function, call id, request); the function answers it from the
machine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etcd_server.raft.errors import ReadDropped
from etcd_server.raft.node import Node

Read = tuple[Callable[[int, Any], None], int, Any]


class Reads:
    """The reads that wait for a confirmed index."""

    def __init__(self, node: Node, first_context: int, timeout_s: float) -> None:
        self._node = node
        self._context = first_context
        self._timeout_s = timeout_s
        self._gathered: list[Read] = []
        self._asked: OrderedDict[int, tuple[float, Sequence[Read]]] = OrderedDict()
        self._confirmed: list[tuple[int, Sequence[Read]]] = []

    def add(self, reads: Sequence[Read]) -> None:
        self._gathered.extend(reads)

    @property
    def are_gathered(self) -> bool:
        return bool(self._gathered)

    def ask(self, now: float) -> Sequence[Read]:
        """Ask raft for the index behind which the turn's reads are safe. Returns the reads that cannot be
        asked for, because there is no leader."""
        if not self._gathered:
            return ()
        reads, self._gathered = self._gathered, []
        self._context += 1
        try:
            self._node.read_index(self._context)
        except ReadDropped:
            return reads
        self._asked[self._context] = (now + self._timeout_s, reads)
        return ()

    def confirmed(self, read_states: Iterable[tuple[int, int]]) -> None:
        """Take raft's answers: (context, index)."""
        for context, index in read_states:
            asked = self._asked.pop(context, None)
            if asked is not None:
                self._confirmed.append((index, asked[1]))

    def serve(self, applied_index: int) -> None:
        """Answer every read whose index has been applied."""
        waiting = []
        for index, reads in self._confirmed:
            if index <= applied_index:
                for function, call_id, request in reads:
                    function(call_id, request)
            else:
                waiting.append((index, reads))
        self._confirmed = waiting

    def expired(self, now: float) -> Iterator[Read]:
        """Reads that were not confirmed in time."""
        while self._asked:
            context, (deadline_s, reads) = next(iter(self._asked.items()))
            if deadline_s > now:
                return
            del self._asked[context]
            yield from reads

    def drop_all(self) -> Iterator[Read]:
        """Everything that still waits: the member stops."""
        yield from self._gathered
        self._gathered = []
        while self._asked:
            yield from self._asked.popitem()[1][1]
        for _, reads in self._confirmed:
            yield from reads
        self._confirmed = []
