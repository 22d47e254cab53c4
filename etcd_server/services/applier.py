"""What a committed entry does to this member: the machine applies it, those who wait are answered, watchers
are told.

A full disk may take the open transaction of the state, with all that was applied since the last commit. The
log has it all, so it is applied again, in silence, and nobody notices (`Applier.replay`). What cannot be
committed is kept in the open transaction until there is room, and meanwhile nothing new is taken.

Invariants: entries are applied in the order of the log; each waiter is answered once; the watch hub gets
every change once, in order.
"""

from __future__ import annotations

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2
from etcd_server.machine.watchers import WatchHub
from etcd_server.raft.confchange import ChangeKind, ConfChange
from etcd_server.raft.log import LogStorage
from etcd_server.raft.messages import Entry, EntryKind
from etcd_server.raft.node import Node
from etcd_server.services.core import Core
from etcd_server.services.lease import Lease
from etcd_server.storage.errors import StateRolledBack

REPLAY_BYTES = 4 * 1024 * 1024

# What a committed change of the membership means to raft.
RAFT_CHANGES = {
    command_pb2.ConfChange.ADD_VOTER: ChangeKind.ADD_VOTER,
    command_pb2.ConfChange.ADD_LEARNER: ChangeKind.ADD_LEARNER,
    command_pb2.ConfChange.REMOVE: ChangeKind.REMOVE,
    command_pb2.ConfChange.UPDATE: ChangeKind.NOTHING,
    command_pb2.ConfChange.PROMOTE: ChangeKind.ADD_VOTER,
}


class Applier:
    """Applies committed entries for one member."""

    def __init__(self, core: Core, node: Node, log_storage: LogStorage, hub: WatchHub, lease: Lease) -> None:
        self._core = core
        self._node = node
        self._log_storage = log_storage
        self._hub = hub
        self._lease = lease
        self.applied_total = 0

    def apply(self, entry: Entry) -> None:
        """Apply one committed entry, and answer those who wait for it."""
        try:
            self._perform(entry)
        except StateRolledBack:
            self.replay(entry.index - 1)
            self._perform(entry)
        self.applied_total += 1

    def _perform(self, entry: Entry) -> None:
        core, machine = self._core, self._core.machine
        if entry.kind == EntryKind.NORMAL:
            batch = command_pb2.Batch.FromString(entry.data)
            outcomes = machine.apply(entry.index, entry.term, batch.commands)
            header, answers = core.header, core.answers
            for waiter, result in zip(core.proposals.pop(batch.proposal_id), outcomes, strict=False):
                # The common case, a call answered with success, is written out: it is paid for each put.
                if type(waiter) is int and type(result) is tuple:
                    answers.append((waiter, header(result[0]) + result[1]))
                else:
                    core.answer(waiter, result)
            self._lease.applied()
            self._hub.notify(machine.take_changes())
        elif entry.kind == EntryKind.CONF_CHANGE:
            change = command_pb2.ConfChange.FromString(entry.data)
            outcome = machine.apply_conf_change(entry.index, entry.term, change)
            refused = isinstance(outcome, errors.EtcdError)
            kind = ChangeKind.NOTHING if refused else RAFT_CHANGES[change.kind]
            self._node.apply_conf_change(ConfChange(kind, change.member.ID))
            core.members_changed()
            if outcome is not None:
                for waiter in core.proposals.pop(change.proposal_id):
                    core.answer(waiter, outcome)
        else:
            machine.apply(entry.index, entry.term, ())

    def replay(self, up_to_index: int) -> None:
        """Bring the state back to where it was: a full disk took the open transaction, the log still has it
        all.

        It is not committed here, since there is no room for that. Nobody is told anything again. A second
        failure is not caught: the process ends, and the next start replays."""
        self._core.state_full = True
        machine = self._core.machine
        while machine.applied_index < up_to_index:
            for entry in self._log_storage.entries(machine.applied_index + 1, up_to_index + 1, REPLAY_BYTES):
                if entry.kind == EntryKind.NORMAL:
                    machine.apply(entry.index, entry.term, command_pb2.Batch.FromString(entry.data).commands)
                elif entry.kind == EntryKind.CONF_CHANGE:
                    change = command_pb2.ConfChange.FromString(entry.data)
                    machine.apply_conf_change(entry.index, entry.term, change)
                else:
                    machine.apply(entry.index, entry.term, ())
            machine.take_changes()
            machine.take_lease_changes()

    def commit(self) -> bool:
        """Commit the state: what was applied, and applied_index, in one transaction. False: there is no room
        for it, so that it is still to be done."""
        machine = self._core.machine
        applied_index = machine.applied_index
        try:
            machine.commit()
        except StateRolledBack:
            self.replay(applied_index)
            return False
        self._core.state_full = False
        return True
