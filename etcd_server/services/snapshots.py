"""Snapshots between members: what a follower gets when the log does not reach back to it any more.

The leader's raft asks for one by an InstallSnapshot message. It does not travel as a message: the state is
committed, and a copy of state.db is made and sent as a file by whoever performs the effects, at leisure. The
copy may be newer than what raft asked for, never older. That is allowed, because it holds committed entries
only and says itself which: index, term and membership are read from the copy by the receiver, and the message
that it steps into its raft is made from these. The leader learns the index from the follower's own answer;
what it guessed is only where it probes first.

The receiver steps one snapshot at a time, when the file is there and has been looked at. Raft says whether it
wants it: then state and log are replaced (`Effects.install`), before anything else happens, and the next turn
begins with `Batch.restored`. A second one that arrives meanwhile waits for that turn (etcd issue 18055).

Invariants: the log is not cut beyond a snapshot that is on its way, so that its receiver finds what follows;
what is asked for is either sent or reported as failed; each received file is installed or refused, once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from etcd_server.machine.watchers import WatchHub
from etcd_server.raft.confchange import Configuration
from etcd_server.raft.messages import InstallSnapshot, Message, Snapshot
from etcd_server.raft.node import Node
from etcd_server.raft.progress import ProgressState
from etcd_server.services.applier import Applier
from etcd_server.services.core import Core
from etcd_server.services.events import Effects, ReceivedSnapshot, SnapshotRequest

RETRY_S = 1.0
"""How long a member is left alone after a snapshot for it has failed."""


class Snapshots:
    """Those that this member sends, and those that it is sent."""

    def __init__(self, core: Core, node: Node, applier: Applier, hub: WatchHub) -> None:
        self._core = core
        self._node = node
        self._applier = applier
        self._hub = hub
        self.now = 0.0
        self._sending: dict[int, int] = {}  # member -> index that its snapshot has at least
        self._sent: dict[int, int] = {}  # as long as the member still needs what follows
        self._failed_s: dict[int, float] = {}
        self._received: deque[ReceivedSnapshot] = deque()
        self._offered: ReceivedSnapshot | None = None
        self.is_installing = False
        """State and log are being replaced: the next turn begins with `restored`."""

    # --- sending ------------------------------------------------------------------------------------------

    def ask(self, messages: Sequence[Message], effects: Effects) -> None:
        """Take what raft wants sent: an InstallSnapshot becomes a request for a copy, the rest is sent."""
        for message in messages:
            if type(message) is InstallSnapshot:
                self._ask(message, effects)
            else:
                effects.send.append(message)

    def _ask(self, message: InstallSnapshot, effects: Effects) -> None:
        to, index = message.to, message.snapshot.index
        self._sending[to] = index
        if self._core.state_full or not self._applier.commit():
            self.sent([(to, False)])
            return
        effects.make_snapshots.append(SnapshotRequest(to, message.term, index))

    def sent(self, outcomes: Sequence[tuple[int, bool]]) -> None:
        """How snapshots have ended: (member, whether it has taken it in)."""
        for to, succeeded in outcomes:
            index = self._sending.pop(to, None)
            if not succeeded:
                self._failed_s[to] = self.now
                continue
            if index is not None:
                self._sent[to] = index
            self._node.report_snapshot(to, succeeded=True)

    def tick(self) -> None:
        """Let raft try again what failed a while ago."""
        for to in [to for to, failed_s in self._failed_s.items() if self.now - failed_s >= RETRY_S]:
            del self._failed_s[to]
            self._node.report_snapshot(to, succeeded=False)

    def keep_from(self, index: int) -> int:
        """`index`, or as far as the log may be cut at most: a member that is being sent a snapshot, or has
        just taken one in, needs what follows it."""
        if self._sent:
            lagging = {
                peer.member_id
                for peer in self._node.status.peers
                if peer.recently_active
                and peer.state is not ProgressState.SNAPSHOT
                and peer.match_index < self._sent.get(peer.member_id, 0)
            }
            self._sent = {to: sent for to, sent in self._sent.items() if to in lagging}
        return min((index, *self._sending.values(), *self._sent.values()))

    # --- receiving ----------------------------------------------------------------------------------------

    def refusal(self, sender: int, term: int, index: int) -> str | None:
        """Why a snapshot of this term and index need not be sent to here; None when it may be of use."""
        if term < self._node.term:
            return f"a snapshot of term {term}, the member is in term {self._node.term}"
        if index <= self._core.machine.applied_index:
            # The answer to an earlier one may have been lost, and the sender would offer this for ever: raft
            # tells it how far this member is. It looks at nothing else of a snapshot that it has.
            known = Snapshot(index, term, Configuration(()))
            self._node.step(InstallSnapshot(self._core.settings.member_id, sender, term, known))
            return f"a snapshot of entry {index}, the member has applied {self._core.machine.applied_index}"
        if self._core.refuses_everything:
            return "no space left on the device of the member"
        return None

    def receive(self, snapshots: Sequence[ReceivedSnapshot]) -> None:
        """Offer raft the next of those that have arrived, unless one is being put in place."""
        self._received.extend(snapshots)
        if self._received and not self.is_installing:
            self._offered = offered = self._received.popleft()
            message = InstallSnapshot(
                self._core.settings.member_id, offered.sender, offered.term, offered.snapshot
            )
            self._node.step(message)

    def install(self, wanted: Snapshot, effects: Effects) -> None:
        """Raft wants this one, in the Ready that was just put into `effects.persist`."""
        offered, self._offered = self._offered, None
        assert offered is not None and offered.snapshot == wanted, "a snapshot that was not offered"
        self.is_installing = True
        effects.install = offered

    def settle(self, effects: Effects) -> None:
        """Raft has been drained: what it was offered and did not take it does not need."""
        if self._offered is not None:
            effects.refused_snapshots.append(self._offered)
            self._offered = None
        effects.more_work |= bool(self._received)

    def restored(self) -> None:
        """State and log have been replaced: everything that was read from the old ones is read again."""
        core = self._core
        self.is_installing = False
        core.machine.reopen()
        core.state_full = False
        core.members_changed()
        self._hub.restored()
