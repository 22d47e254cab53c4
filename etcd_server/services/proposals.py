"""Requests that change the store, on their way through the log.

All requests of one turn travel in one raft entry (more only where an entry would grow past
`MAX_ENTRY_BYTES`): the log row, the sync and the hand-over are paid once. The entry is a serialised
`etcdpy.Batch`, made by putting the requests' own bytes one after another; whoever applies it, here or
elsewhere, now or after a restart, parses it anew, so that there is one path only.

A proposal is identified by a number that no other proposal of the cluster has: a random start for each boot
of a member, counted up. Invariant: each waiter that was added is answered once: with its outcome when its
entry is applied, or with an error when the entry was dropped or its outcome is not known in time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from etcd_server.api.encoding import varint
from etcd_server.api.errors import EtcdError

MAX_ENTRY_BYTES = 4 * 1024 * 1024

# Field tags of etcdpy.Command (command.proto): field number << 3 | 2.
PUT = b"\x0a"
DELETE_RANGE = b"\x12"
TXN = b"\x1a"
COMPACTION = b"\x22"
LEASE_GRANT = b"\x2a"
LEASE_REVOKE = b"\x32"
ALARM = b"\x3a"
MEMBER_ATTRIBUTES = b"\x42"
CLUSTER_VERSION = b"\x4a"

Outcome = tuple[int, bytes] | EtcdError

Waiter = int | Callable[[Outcome], None] | None
"""Who wants the outcome: a call id, a function for what needs more than an answer, or nobody."""


class Pending(NamedTuple):
    waiters: Sequence[Waiter]
    deadline_s: float


class Proposals:
    """Gathers the commands of a turn, and remembers who waits for which entry."""

    def __init__(self, first_id: int, timeout_s: float) -> None:
        self._next_id = first_id
        self._timeout_s = timeout_s
        self._parts: list[bytes] = []
        self._waiters: list[Waiter] = []
        self._gathered_bytes = 0
        self._sealed: list[tuple[list[bytes], list[Waiter]]] = []
        self._pending: OrderedDict[int, Pending] = OrderedDict()

    def add(self, tag: bytes, request: bytes, waiter: Waiter) -> None:
        """Put one command, the serialised request behind its field tag, into the entry of this turn."""
        command = tag + varint(len(request)) + request
        self._parts.append(b"\x12" + varint(len(command)) + command)
        self._waiters.append(waiter)
        self._gathered_bytes += len(command)
        if self._gathered_bytes >= MAX_ENTRY_BYTES:
            self._seal()

    def _seal(self) -> None:
        if self._waiters:
            self._sealed.append((self._parts, self._waiters))
            self._parts, self._waiters, self._gathered_bytes = [], [], 0

    def take(self, now: float) -> Iterator[tuple[int, bytes]]:
        """The entries of this turn as (proposal id, data); from here on each is waited for."""
        self._seal()
        sealed, self._sealed = self._sealed, []
        for parts, waiters in sealed:
            proposal_id = self._next_id
            self._next_id += 1
            self._pending[proposal_id] = Pending(waiters, now + self._timeout_s)
            yield proposal_id, b"\x08" + varint(proposal_id) + b"".join(parts)

    def pop(self, proposal_id: int) -> Sequence[Waiter]:
        """The waiters of an entry; empty if it was not proposed here or nobody waits any longer."""
        pending = self._pending.pop(proposal_id, None)
        return pending.waiters if pending is not None else ()

    def expired(self, now: float) -> Iterator[Waiter]:
        """Waiters whose outcome did not come in time; their entry may still be applied later."""
        while self._pending:
            proposal_id, pending = next(iter(self._pending.items()))
            if pending.deadline_s > now:
                return
            del self._pending[proposal_id]
            yield from pending.waiters

    def drop_all(self) -> Iterator[Waiter]:
        """Everyone who still waits: the member stops."""
        while self._pending:
            yield from self._pending.popitem(last=False)[1].waiters

    def __len__(self) -> int:
        return sum(len(pending.waiters) for pending in self._pending.values())
