"""What a leader knows of one member's log, and how fast it may send to it.

    PROBE      where the logs part is not known: one message, then wait for its answer or a heartbeat's
    REPLICATE  they agree up to match_index: send on without waiting, up to max_inflight unanswered messages
    SNAPSHOT   the log does not reach back far enough: send nothing until the snapshot has arrived or failed

             rejected, unreachable                              below the first entry of the log
    REPLICATE ─────────────────────► PROBE ──────────────────────────────────────────► SNAPSHOT
              ◄───────────────────── accepted       ◄───────────────────────────────── arrived, failed

Invariant: 0 <= match_index < next_index. match_index never falls within a term.
"""

from collections import deque
from enum import Enum


class ProgressState(Enum):
    """How entries are sent to a member."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """The leader's view of one member, itself included.

    `inflights` holds the last index of each unanswered message in REPLICATE. `sent_commit` is the commit
    index last told. `recheck` asks for one message even when nothing is new: something may have been lost.
    `read_round` is the latest round of reads that the member has confirmed. `awaited_index` is the entry that
    somebody waits for at the member: it should hear without delay that this one is committed.
    `recently_active` is reset by each check of the quorum.
    """

    __slots__ = (
        "_max_inflight",
        "awaited_index",
        "inflights",
        "match_index",
        "next_index",
        "pending_snapshot",
        "probe_sent",
        "read_round",
        "recently_active",
        "recheck",
        "sent_commit",
        "state",
    )

    def __init__(self, next_index: int, max_inflight: int) -> None:
        self._max_inflight = max_inflight
        self.state = ProgressState.PROBE
        self.match_index = 0
        self.next_index = next_index
        self.inflights: deque[int] = deque()
        self.pending_snapshot = 0
        self.probe_sent = False
        self.recheck = False
        self.recently_active = False
        self.read_round = 0
        self.sent_commit = 0
        self.awaited_index = 0

    @property
    def paused(self) -> bool:
        """True when nothing may be sent to this member now."""
        match self.state:
            case ProgressState.PROBE:
                return self.probe_sent
            case ProgressState.REPLICATE:
                return len(self.inflights) >= self._max_inflight and not self.recheck
            case ProgressState.SNAPSHOT:
                return True

    @property
    def full(self) -> bool:
        """True when no more entries fit into the window of unanswered messages."""
        return len(self.inflights) >= self._max_inflight

    def sent(self, last_index: int, count: int, commit: int) -> None:
        """An append of `count` entries up to last_index, telling `commit`, is on its way."""
        self.recheck = False
        self.sent_commit = commit
        if self.state is ProgressState.PROBE:
            self.probe_sent = True
        elif count:
            self.next_index = last_index + 1
            self.inflights.append(last_index)

    def awaits(self, index: int) -> None:
        """Somebody at the member waits until the entry at `index` is applied there."""
        self.awaited_index = max(self.awaited_index, index)

    def accepted(self, index: int, first_index: int) -> bool:
        """The member has everything up to index. Returns whether that was news. `first_index` is the
        leader's."""
        news = index > self.match_index
        if news:
            self.match_index = index
            self.next_index = max(self.next_index, index + 1)
        while self.inflights and self.inflights[0] <= index:
            self.inflights.popleft()
        arrived = self.state is ProgressState.SNAPSHOT and self.match_index + 1 >= first_index
        if (self.state is ProgressState.PROBE and index >= self.match_index) or arrived:
            self._enter(ProgressState.REPLICATE, self.match_index + 1)
        return news

    def rejected(self, index: int, hint: int) -> bool:
        """The member has no such entry at `index`, and at most `hint` can match. Returns False for an old
        answer."""
        if self.state is ProgressState.SNAPSHOT or index <= self.match_index:
            return False
        if self.state is ProgressState.REPLICATE:
            self.become_probe()
        elif index != self.next_index - 1:
            return False
        else:
            self._enter(ProgressState.PROBE, max(min(index, hint + 1), self.match_index + 1))
        return True

    def become_probe(self) -> None:
        """Starts over from what is known to match; after a snapshot that has arrived, from there."""
        self._enter(ProgressState.PROBE, max(self.match_index, self.pending_snapshot) + 1)

    def become_snapshot(self, index: int) -> None:
        """A snapshot up to `index` is on its way."""
        self._enter(ProgressState.SNAPSHOT, self.match_index + 1)
        self.pending_snapshot = index

    def _enter(self, state: ProgressState, next_index: int) -> None:
        self.state = state
        self.next_index = next_index
        self.inflights.clear()
        self.pending_snapshot = 0
        self.probe_sent = False
