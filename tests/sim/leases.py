"""The ledger of leases: when each was last known to live, and whether it ended too early or too late.

A client knows that a lease lives for its TTL from the moment at which it sent a keepalive that was answered;
the leader counted from later, on a clock of its own. So a lease may not end before that time has passed on
the slowest clock there is, unless a client revoked it.
"""

from __future__ import annotations

from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import command_pb2
from etcd_server.raft.messages import EntryKind
from tests.sim.history import LeaseStory
from tests.sim.invariants import Record
from tests.sim.world import Violation, World


class LeaseLedger:
    """The leases that clients know, and how each ended."""

    def __init__(self, world: World, stories: dict[int, LeaseStory]) -> None:
        self._world = world
        self._stories = stories

    def applied(self, record: Record) -> None:
        """An entry has been applied for the first time anywhere. Raises Violation."""
        if record.entry.kind is not EntryKind.NORMAL:
            return
        batch = command_pb2.Batch.FromString(record.entry.data)
        for command, outcome in zip(batch.commands, record.outcomes, strict=True):
            if command.HasField("lease_revoke") and not isinstance(outcome, EtcdError):
                self._ended(command.lease_revoke.ID)

    def _ended(self, lease_id: int) -> None:
        self._world.counts["lease ended"] += 1
        story = self._stories.get(lease_id)
        now_s = self._world.now
        if story is None:
            return
        story.ended_s = now_s
        if story.revoke_asked_s <= now_s:
            return
        shortest_s = story.ttl_s / (1 + self._world.plan.clock_drift)
        if now_s - story.alive_s < shortest_s:
            raise Violation(
                "lease revoked early",
                f"lease {lease_id:x} of {story.ttl_s} s was alive at {story.alive_s:.3f} "
                f"and ended at {now_s:.3f}",
            )
