"""Planted bugs: each changes one thing in the shipped code, of a class that etcd or another system once had.

A simulator that has not found a planted bug is not known to work. Every mutant here must be found within 200
seeds (`search.py`). Numbers are those of the list of bug classes; mutants
that begin with R are of the same kind, in the consensus core itself. The `canary` is a bug that no run can
miss: it proves that failures are reported at all.

Numbers that are not here belong to what the simulated members do not have: locks (M19), users (M21) and
addresses (M23). A second snapshot while one is put in place (M16) cannot be there: that takes no time here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from etcd_server.api.encoding import integer_field, varint
from etcd_server.machine import compaction
from etcd_server.machine.apply import Machine
from etcd_server.machine.members import Members
from etcd_server.machine.mvcc import Store
from etcd_server.machine.watch_places import HELD, LAGGING, SYNCED, Places
from etcd_server.machine.watchers import NO_WATCH_ID, WatchHub
from etcd_server.raft import election, replication, requests
from etcd_server.raft.log import Log
from etcd_server.raft.node import HANDLERS, Node
from etcd_server.raft.state import Raft
from etcd_server.services.cluster import Cluster
from etcd_server.services.core import Core
from etcd_server.services.engine import Engine
from etcd_server.services.kv import KV
from etcd_server.services.lease import Lease, Lessor
from etcd_server.services.reads import Group, Reads
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.errors import SyncFailed
from etcd_server.storage.install import Installation, Plan
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import last_of, pack
from etcd_server.storage.tables import FactTables

Plant = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug. `plant`: a context manager; while it is open, the bug is there."""

    name: str
    what: str
    plant: Plant


@contextmanager
def two_transactions() -> Iterator[None]:
    original = Machine._set_applied

    def set_applied(machine: Machine, index: int, term: int) -> None:
        machine.database.commit()
        machine.database.begin()
        original(machine, index, term)

    with patch.object(Machine, "_set_applied", set_applied):
        yield


@contextmanager
def answer_before_persisted() -> Iterator[None]:
    original = Node.ready

    def ready(node: Node, **options: Any) -> Any:
        found = original(node, **options)
        if found is not None and found.must_persist and node._raft.sole_voter:
            node.advance(found.number)
        return found

    with patch.object(Node, "ready", ready):
        yield


@contextmanager
def vote_is_not_saved() -> Iterator[None]:
    original = RaftLog.append

    def append(log: RaftLog, hard_state: Any, entries: Any, snapshot: Any = None) -> None:
        if hard_state is not None and not entries and snapshot is None:
            log._hard_state = hard_state
        else:
            original(log, hard_state, entries, snapshot)

    with patch.object(RaftLog, "append", append):
        yield


@contextmanager
def acknowledge_before_sync() -> Iterator[None]:
    with patch.object(Raft, "promise", Raft.send):
        yield


@contextmanager
def snapshot_without_a_plan() -> Iterator[None]:
    """State and log are replaced one after the other, and nothing says so to the next start."""

    def install(installation: Installation, plan: Plan, database: StateDatabase) -> None:
        def put_in_place() -> None:
            for step in installation._steps(plan)[1:-2]:
                step()

        database.replace(put_in_place)

    with patch.object(Installation, "install", install):
        yield


@contextmanager
def revision_from_surviving_rows() -> Iterator[None]:
    original = FactTables.meta

    def meta(facts: FactTables) -> Any:
        latest = facts._execute("SELECT max(revision) FROM current").get or pack(1)
        return replace(original(facts), revision=latest >> 24)

    with patch.object(FactTables, "meta", meta):
        yield


@contextmanager
def local_shortcut_in_apply() -> Iterator[None]:
    original = Store.check_revision

    def check_revision(store: Store, revision: int) -> None:
        if not store.tables.revisions(pack(revision), last_of(revision), 1):
            original(store, revision)

    with patch.object(Store, "check_revision", check_revision):
        yield


@contextmanager
def reads_join_a_round_under_way() -> Iterator[None]:
    original = Reads.ask

    def ask(reads: Reads, now: float) -> bool:
        if reads._asked and reads._gathered:
            group = Group(now + reads._timeout_s, reads._gathered)
            reads._gathered = []
            reads._groups.append(group)
            latest: Any = [*reads._asked.values()][-1]
            latest.groups.append(group)
            return False
        return original(reads, now)

    with patch.object(Reads, "ask", ask):
        yield


@contextmanager
def reads_without_a_quorum() -> Iterator[None]:
    original = replication.confirm_reads

    def confirm_reads(raft: Raft) -> None:
        with patch.object(replication, "agreed", lambda rounds: raft.reads.latest_round):
            original(raft)

    with patch.object(replication, "confirm_reads", confirm_reads):
        yield


@contextmanager
def progress_is_the_stores_revision() -> Iterator[None]:
    def progress(hub: WatchHub, stream_id: int) -> None:
        stream = hub._streams.get(stream_id)
        if stream is not None:
            hub._send(stream, hub._header(hub._places.revision) + integer_field(2, NO_WATCH_ID))

    with patch.object(WatchHub, "progress", progress):
        yield


@contextmanager
def watches_begin_again_after_a_snapshot() -> Iterator[None]:
    original = WatchHub.restored

    def restored(hub: WatchHub) -> None:
        original(hub)
        for stream in hub._streams.values():
            for watcher in stream.watchers.values():
                if watcher.place in (SYNCED, LAGGING):
                    hub._places.leave(watcher)
                    watcher.position = 1
                    hub._places.settle(watcher)

    with patch.object(WatchHub, "restored", restored):
        yield


@contextmanager
def slow_watchers_lose_events() -> Iterator[None]:
    original = WatchHub.resume

    def resume(hub: WatchHub, stream_id: int) -> None:
        stream = hub._streams.get(stream_id)
        if stream is not None:
            for watcher in stream.watchers.values():
                watcher.position = max(watcher.position, hub._places.revision + 1)
        original(hub, stream_id)

    with patch.object(WatchHub, "resume", resume):
        yield


@contextmanager
def compaction_eats_the_deletion() -> Iterator[None]:
    with patch.object(compaction, "main_revision", lambda packed: (packed >> 24) - 1):
        yield


@contextmanager
def future_watch_begins_now() -> Iterator[None]:
    def wait(places: Places, watcher: Any) -> None:
        watcher.position = places.revision + 1
        places.settle(watcher)

    with patch.object(Places, "wait", wait):
        yield


@contextmanager
def last_event_is_sent_again() -> Iterator[None]:
    original = WatchHub.pause

    def pause(hub: WatchHub, stream_id: int) -> None:
        original(hub, stream_id)
        stream = hub._streams.get(stream_id)
        for watcher in stream.watchers.values() if stream is not None else ():
            if watcher.place == HELD:
                watcher.position = max(1, watcher.position - 1)

    with patch.object(WatchHub, "pause", pause):
        yield


@contextmanager
def old_leader_revokes() -> Iterator[None]:
    """A member goes on ending leases by what it knew when it last led."""
    original = Lease.expire

    def expire(lease: Lease) -> None:
        core = lease._core
        was, core.is_leader = core.is_leader, True
        with patch.object(Core, "propose_as_leader", Core.propose):
            original(lease)
        core.is_leader = was

    original_tick = Engine._tick

    def ticked(engine: Engine, *arguments: Any) -> None:
        original_tick(engine, *arguments)
        if not engine.core.is_leader:
            engine.lease.expire()

    with (
        patch.object(Lessor, "demote", lambda lessor: None),
        patch.object(Lease, "expire", expire),
        patch.object(Engine, "_tick", ticked),
    ):
        yield


@contextmanager
def keepalive_from_memory() -> Iterator[None]:
    def renew(lease: Lease, lease_id: int) -> bytes:
        lease._lessor.renew(lease_id, 5, lease.now)
        return b"\x10" + varint(lease_id & 0xFFFF_FFFF_FFFF_FFFF) + b"\x18" + varint(5)

    with patch.object(Lease, "_renew", renew):
        yield


@contextmanager
def unknown_outcome_is_tried_again() -> Iterator[None]:
    original = requests.propose

    def propose(raft: Raft, kind: Any, data: bytes) -> None:
        original(raft, kind, data)
        if raft.leader_id != raft.member_id:
            original(raft, kind, data)

    with patch.object(requests, "propose", propose):
        yield


@contextmanager
def promotion_in_memory_only() -> Iterator[None]:
    original = Members.change

    def change(members: Members, wanted: Any) -> None:
        if wanted.kind == wanted.PROMOTE:
            member = members._existing(wanted.member.ID)
            members._members[member.member_id] = replace(member, is_learner=False)
        else:
            original(members, wanted)

    with patch.object(Members, "change", change):
        yield


@contextmanager
def sync_error_is_swallowed() -> Iterator[None]:
    original = RaftLog.append

    def append(log: RaftLog, *arguments: Any) -> None:
        try:
            original(log, *arguments)
        except SyncFailed:
            log._failure = None
            log._append_connection.pragma("synchronous", "OFF")
            original(log, *arguments)

    with patch.object(RaftLog, "append", append):
        yield


@contextmanager
def votes_for_a_shorter_log() -> Iterator[None]:
    with patch.object(Log, "is_up_to_date", lambda log, last_index, last_term: True):
        yield


@contextmanager
def votes_twice() -> Iterator[None]:
    original = election.on_vote_request

    def on_vote_request(raft: Raft, message: Any) -> None:
        if not message.pre_vote and raft.leader_id == 0:
            raft.vote = 0
        original(raft, message)

    handlers = {
        role: {kind: on_vote_request if handler is original else handler for kind, handler in table.items()}
        for role, table in HANDLERS.items()
    }
    with patch("etcd_server.raft.node.HANDLERS", handlers):
        yield


@contextmanager
def commit_without_an_entry() -> Iterator[None]:
    """A heartbeat's commit index is believed without looking whether the log is the leader's."""
    original = replication.broadcast_heartbeat

    def broadcast_heartbeat(raft: Raft) -> None:
        before = len(raft.messages)
        original(raft)
        for position in range(before, len(raft.messages)):
            raft.messages[position] = replace(raft.messages[position], commit=raft.log.commit_index)  # type: ignore[call-arg]

    def commit_to(log: Log, index: int) -> None:
        log.commit_index = max(log.commit_index, min(index, log.last_index))

    with (
        patch.object(replication, "broadcast_heartbeat", broadcast_heartbeat),
        patch.object(Log, "commit_to", commit_to),
    ):
        yield


@contextmanager
def changes_overlap() -> Iterator[None]:
    """Neither the service nor raft waits for the change before."""
    original, original_propose = requests._append, Cluster.propose

    def propose(cluster: Cluster) -> bool:
        cluster._is_under_way = False
        return original_propose(cluster)

    def append(raft: Raft, kind: Any, data: bytes) -> None:
        original(raft, kind, data)
        raft.pending_change_index = 0

    with patch.object(requests, "_append", append), patch.object(Cluster, "propose", propose):
        yield


@contextmanager
def canary() -> Iterator[None]:
    def answer_range(kv: KV, call_id: int, request: Any) -> None:
        core = kv._core
        core.answers.append((call_id, core.header(core.machine.revision)))

    with patch.object(KV, "_answer_range", answer_range):
        yield


MUTANTS = (
    Mutant("M1", "applied_index is saved apart from its effect", two_transactions),
    Mutant("M2", "a single member answers before the log is synced", answer_before_persisted),
    Mutant("M3", "term and vote are not saved", vote_is_not_saved),
    Mutant("M4", "an append is acknowledged before it is synced", acknowledge_before_sync),
    Mutant("M5", "a snapshot takes the place of state and log without a plan", snapshot_without_a_plan),
    Mutant(
        "M6", "after a restart the revision is that of the rows that survive", revision_from_surviving_rows
    ),
    Mutant("M7", "apply asks for what differs by member", local_shortcut_in_apply),
    Mutant("M8", "reads join a round that is under way", reads_join_a_round_under_way),
    Mutant("M9", "reads are served without a round", reads_without_a_quorum),
    Mutant("M10", "progress tells the store's revision", progress_is_the_stores_revision),
    Mutant("M11", "after a snapshot watches begin again", watches_begin_again_after_a_snapshot),
    Mutant("M12", "a slow watcher loses events", slow_watchers_lose_events),
    Mutant("M13", "compaction removes a deletion that can still be watched", compaction_eats_the_deletion),
    Mutant("M14", "a watch from a revision to come begins at once", future_watch_begins_now),
    Mutant("M15", "the last event is sent again to a slow watcher", last_event_is_sent_again),
    Mutant("M17", "an old leader ends leases", old_leader_revokes),
    Mutant("M18", "a keepalive is answered from memory", keepalive_from_memory),
    Mutant("M20", "a request with an unknown outcome is sent again", unknown_outcome_is_tried_again),
    Mutant("M22", "a promotion is not stored", promotion_in_memory_only),
    Mutant("M24", "a sync error is swallowed", sync_error_is_swallowed),
    Mutant("R1", "a vote is given to a shorter log", votes_for_a_shorter_log),
    Mutant("R2", "a member votes twice in a term", votes_twice),
    Mutant("R3", "a follower commits what it has not compared", commit_without_an_entry),
    Mutant("R4", "a change of the membership begins before the last is done", changes_overlap),
)
CANARY = Mutant("canary", "every read finds nothing", canary)
