"""Requests that change the store, on their way through the log.

All requests of one turn travel in one raft entry (more only where an entry would grow past
`MAX_ENTRY_BYTES`): the log row, the sync and the hand-over are paid once. The entry is a serialised
`etcdpy.Batch`, made by putting the requests' own bytes one after another; whoever applies it, here or
elsewhere, now or after a restart, parses it anew, so that there is one path only.

A proposal is identified by a number that no other proposal of the cluster has: a random start for each boot
of a member, counted up. An entry that raft has certainly not taken, because there is no leader, is kept and
proposed again: an election delays changes, it does not fail them. So is one that another member has refused,
by another number, so that what is said twice is not done twice. An entry that was handed to a leader which
then lost its place is never proposed again, since it may yet be applied.

What a leader proposes of itself (`add_own`) travels in an entry of its own that is not kept: it rests on what
only the leader of this term knows.

Invariant: each waiter that was added is answered once: with its outcome when its entry is applied, or with an
error when the entry was dropped or its outcome is not known in time.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from etcd_server.api.encoding import read_varint, varint
from etcd_server.api.errors import EtcdError

MAX_ENTRY_BYTES = 4 * 1024 * 1024
MAX_KEPT_BYTES = 64 * 1024 * 1024
"""Of entries that wait for a leader; what comes on top of that is refused."""

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


@dataclass(slots=True)
class Pending:
    """An entry that is waited for. `term`: of raft when it was handed over; 0 before that. `data`: as long as
    it may have to be proposed again."""

    waiters: Sequence[Waiter]
    deadline_s: float
    data: bytes = b""
    term: int = 0


class Sealed(NamedTuple):
    """An entry that is to be proposed. `is_own`: by the leader of this term or not at all."""

    proposal_id: int
    data: bytes
    is_own: bool


class Proposals:
    """Gathers the commands of a turn, and remembers who waits for which entry."""

    def __init__(self, first_id: int, timeout_s: float) -> None:
        self._next_id = first_id
        self.timeout_s = timeout_s
        self._parts: list[bytes] = []
        self._waiters: list[Waiter] = []
        self._gathered_bytes = 0
        self._full: list[tuple[list[bytes], list[Waiter]]] = []
        self._own_parts: list[bytes] = []
        self._own_waiters: list[Waiter] = []
        self._sealed: deque[Sealed] = deque()
        self._sealed_bytes = 0
        self._turned_away: list[int] = []
        self._pending: OrderedDict[int, Pending] = OrderedDict()

    def add(self, tag: bytes, request: bytes, waiter: Waiter) -> None:
        """Put one command, the serialised request behind its field tag, into the entry of this turn."""
        command = tag + varint(len(request)) + request
        self._parts.append(b"\x12" + varint(len(command)) + command)
        self._waiters.append(waiter)
        self._gathered_bytes += len(command)
        if self._gathered_bytes >= MAX_ENTRY_BYTES:
            self._full.append((self._parts, self._waiters))
            self._parts, self._waiters, self._gathered_bytes = [], [], 0

    def add_own(self, tag: bytes, request: bytes, waiter: Waiter) -> None:
        """As `add`, for what the leader proposes because it leads."""
        command = tag + varint(len(request)) + request
        self._own_parts.append(b"\x12" + varint(len(command)) + command)
        self._own_waiters.append(waiter)

    def add_change(self, change: bytes, waiter: Waiter, term: int, now: float) -> tuple[int, bytes]:
        """A change of the membership, a serialised ConfChange without its proposal_id, which has an entry of
        its own: its proposal id and data, to be handed to raft in this term at once."""
        proposal_id = self._next_id
        self._next_id += 1
        self._pending[proposal_id] = Pending((waiter,), now + self.timeout_s, term=term)
        return proposal_id, b"\x08" + varint(proposal_id) + change

    def seal(self, now: float) -> None:
        """End the turn's gathering: its commands become entries, and from here on each is waited for."""
        for parts, waiters in self._full:
            self._seal(parts, waiters, now)
        self._full.clear()
        if self._waiters:
            self._seal(self._parts, self._waiters, now)
            self._parts, self._waiters, self._gathered_bytes = [], [], 0
        if self._own_waiters:
            self._seal(self._own_parts, self._own_waiters, now, is_own=True)
            self._own_parts, self._own_waiters = [], []

    def _seal(
        self, parts: Sequence[bytes], waiters: Sequence[Waiter], now: float, *, is_own: bool = False
    ) -> None:
        proposal_id = self._next_id
        self._next_id += 1
        data = b"\x08" + varint(proposal_id) + b"".join(parts)
        self._pending[proposal_id] = Pending(waiters, now + self.timeout_s, b"" if is_own else data)
        self._sealed.append(Sealed(proposal_id, data, is_own))
        self._sealed_bytes += len(data)

    def next_sealed(self) -> Sealed | None:
        """The oldest entry that is to be proposed and still waited for; it stays until `taken` or
        `refused`."""
        while self._sealed:
            if self._sealed[0].proposal_id in self._pending:
                return self._sealed[0]
            self._drop_first()
        return None

    def _drop_first(self) -> Sealed:
        first = self._sealed.popleft()
        self._sealed_bytes -= len(first.data)
        return first

    def taken(self, term: int) -> None:
        """Raft has taken the entry that `next_sealed` gave, in this term."""
        self._pending[self._drop_first().proposal_id].term = term

    def turned_away(self, proposal_id: int) -> None:
        """The member to which raft has passed an entry on has refused it: `retry` will have it proposed
        again."""
        pending = self._pending.get(proposal_id)
        if pending is not None and pending.term and pending.data:
            pending.term = 0
            self._turned_away.append(proposal_id)

    def retry(self) -> None:
        """Some time has passed, or another member leads: propose again what was turned away."""
        turned_away, self._turned_away = self._turned_away, []
        for proposal_id in turned_away:
            pending = self._pending.pop(proposal_id, None)
            if pending is None:
                continue
            _, start = read_varint(pending.data, 1)
            pending.data = b"\x08" + varint(self._next_id) + pending.data[start:]
            self._pending[self._next_id] = pending
            self._sealed.append(Sealed(self._next_id, pending.data, is_own=False))
            self._sealed_bytes += len(pending.data)
            self._next_id += 1

    def refused(self) -> Sequence[Waiter]:
        """The entry that `next_sealed` gave will not be proposed: those who waited for it."""
        return self.pop(self._drop_first().proposal_id)

    def overflow(self) -> Iterator[Waiter]:
        """Those who wait for more entries than can be kept until there is a leader, the latest first."""
        while self._sealed_bytes > MAX_KEPT_BYTES:
            last = self._sealed.pop()
            self._sealed_bytes -= len(last.data)
            yield from self.pop(last.proposal_id)

    def pop(self, proposal_id: int) -> Sequence[Waiter]:
        """The waiters of an entry; empty if it was not proposed here or nobody waits any longer."""
        pending = self._pending.pop(proposal_id, None)
        return pending.waiters if pending is not None else ()

    def lost(self, term: int) -> Iterator[Waiter]:
        """An entry of `term` has been applied: those who wait for one that was handed to an earlier leader.
        It was lost with that leader, but for a message that is still on its way."""
        lost = [number for number, pending in self._pending.items() if 0 < pending.term < term]
        for proposal_id in lost:
            yield from self._pending.pop(proposal_id).waiters

    def expired(self, now: float) -> Iterator[tuple[float, Waiter]]:
        """(when it was added, waiter) of those whose outcome did not come in time; their entry may still be
        applied later."""
        late = [number for number, pending in self._pending.items() if pending.deadline_s <= now]
        for proposal_id in late:
            pending = self._pending.pop(proposal_id)
            for waiter in pending.waiters:
                yield pending.deadline_s - self.timeout_s, waiter

    def drop_all(self) -> Iterator[Waiter]:
        """Everyone who still waits: the member stops."""
        self._sealed.clear()
        while self._pending:
            yield from self._pending.popitem(last=False)[1].waiters

    def __len__(self) -> int:
        return sum(len(pending.waiters) for pending in self._pending.values())
