"""--force-new-cluster: a member that goes on alone, with its data, when the quorum is lost for good.

The log gets the entries that a leader would have written: this member votes, all others are removed. They
count as committed, and so does everything before them in the log: what was answered to a client through this
member is there, and what only might have been decided is decided now. Members that come back are told that
they were removed, and end.

Invariant: nothing that this member has on its disk is dropped. (etcd, server/storage/wal and
server/etcdserver/bootstrap.go, drops the entries that it does not know to be committed.)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.bootstrap import BootstrapError, Identity, read_identity
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage.raftlog import RaftLog

log = logging.getLogger("etcd_server")

PAGE_BYTES = 4 * 1024 * 1024


def go_on_alone(data_dir: str | os.PathLike[str], raft_log: RaftLog, machine: Machine) -> Identity:
    """Write to the log that the member of this directory is the only one, unless it is. Raises
    BootstrapError, StorageError."""
    identity = read_identity(data_dir)
    if identity is None:
        raise BootstrapError(f"--force-new-cluster: {data_dir} holds no member's data; is it the right one?")
    others, is_voter = _membership(identity.member_id, raft_log, machine)
    if not others and is_voter:
        return identity
    kinds = command_pb2.ConfChange
    changes = [] if is_voter else [(kinds.PROMOTE, identity.member_id)]
    changes += [(kinds.REMOVE, number) for number in sorted(others)]
    hard_state, _, last_index = raft_log.initial()
    term = hard_state.term + 1
    entries = [
        Entry(
            index,
            term,
            EntryKind.CONF_CHANGE,
            command_pb2.ConfChange(kind=kind, member=rpc_pb2.Member(ID=number)).SerializeToString(),
        )
        for index, (kind, number) in enumerate(changes, start=last_index + 1)
    ]
    raft_log.append(HardState(term, identity.member_id, entries[-1].index), entries)
    log.warning(
        "forced a new cluster: start without --force-new-cluster from now on",
        extra={
            "local-member-id": f"{identity.member_id:x}",
            "removed": ",".join(f"{number:x}" for number in sorted(others)),
        },
    )
    return identity


def _membership(own_id: int, raft_log: RaftLog, machine: Machine) -> tuple[set[int], bool]:
    """All other members that there are, or may be when the log is applied; and whether this one votes then.

    Raises BootstrapError when this member is none.
    """
    kinds = command_pb2.ConfChange
    voting = {member.ID: not member.isLearner for member in machine.members.all()}
    others = voting.keys() - {own_id}
    for change in _changes(raft_log, machine.applied_index):
        number = change.member.ID
        if change.kind in (kinds.ADD_VOTER, kinds.PROMOTE):
            voting[number] = True
        elif change.kind == kinds.ADD_LEARNER:
            voting.setdefault(number, False)
        elif change.kind == kinds.REMOVE and number == own_id:
            voting.pop(own_id, None)
        if number != own_id:
            others.add(number)
    if own_id not in voting:
        raise BootstrapError(
            f"--force-new-cluster: member {own_id:x} is no member of the cluster as far as its data go; "
            "recover another one"
        )
    return others, voting[own_id]


def _changes(raft_log: RaftLog, applied_index: int) -> Iterator[command_pb2.ConfChange]:
    """The changes of the membership in the log that are not applied yet."""
    next_index, end = applied_index + 1, raft_log.last_index() + 1
    while next_index < end:
        for entry in raft_log.entries(next_index, end, PAGE_BYTES):
            next_index = entry.index + 1
            if entry.kind == EntryKind.CONF_CHANGE:
                yield command_pb2.ConfChange.FromString(entry.data)
