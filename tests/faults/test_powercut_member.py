"""A whole member, from request to answer, on a disk that loses power.

Calls of every kind go through the engine in turns, with checkpoints, cuts of the log and compactions in
between, until the power fails at a random access. Then `verify` must find nothing, the member must start, and
the history that a watch gives must continue the one that was known: all that was answered is in it, what was
under way is in it wholly or not at all, and nothing else. Then it goes on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pytest

from etcd_server.api.errors import EtcdError
from etcd_server.api.methods import METHODS
from etcd_server.api.proto import rpc_pb2
from etcd_server.services.events import Batch
from etcd_server.storage.errors import StorageError
from etcd_server.storage.maintenance import StateMaintenance
from etcd_server.storage.verify import verify_files
from tests.faults.simdisk import SimulatedDisk
from tests.live import COMPACT, DELETE, GRANT, LEASES, PUT, RANGE, REVOKE, TXN, WATCH, watch_request
from tests.member import Member

SEEDS = 200
LIVES = 3
LEASE_IDS = range(1, 6)
KEYS = 12
SETTINGS = {"snapshot_count": 10, "catch_up_entries": 5}


class Event(NamedTuple):
    revision: int
    key: bytes
    value: bytes | None
    """None: deleted."""


class Asked(NamedTuple):
    """One call: what it changes if it takes place."""

    path: str
    request: Any
    writes: dict[bytes, bytes]
    """key: value, all at one revision; the value is used by no other call."""


class World:
    """What is known of a member over its lives."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(f"member {seed}")
        self.history: list[Event] = []
        self.answered: list[tuple[Asked, Any]] = []
        self.unknown: list[Asked] = []
        self.leases: set[int] = set()
        self._values = 0

    @property
    def revision(self) -> int:
        return self.history[-1].revision if self.history else 1

    # --- working

    def step(self, member: Member, maintenance: StateMaintenance) -> None:
        kind = self.random.random()
        if kind < 0.75:
            self.ask(member)
        elif kind < 0.9:
            member.pass_time(self.random.choice((0.1, 0.3)))
        elif kind < 0.95:
            durable_index = maintenance.checkpoint().applied_index
            if not member.database.in_transaction:
                member.database.restart_journal()
            member.turn(Batch(durable_index=durable_index))
        elif kind < 0.97:
            member.log.checkpoint()
        elif self.revision > 1:
            revision = self.random.randrange(1, self.revision + 1)
            with suppress(EtcdError):
                member.call(COMPACT, rpc_pb2.CompactionRequest(revision=revision))

    def ask(self, member: Member) -> None:
        """Several calls in one turn, and their answers as far as the power lasts."""
        kinds = ((PUT, self.put), (TXN, self.txn), (DELETE, self.deletion), (GRANT, self.grant))
        path, make = self.random.choice((*kinds, (PUT, self.put), (REVOKE, self.revocation)))
        asked = [make(path) for _ in range(self.random.randrange(1, 6))]
        self.unknown += asked
        ids = member.send(path, *(each.request for each in asked))
        for each, call_id in zip(asked, ids, strict=True):
            self.unknown.remove(each)
            answer = member.answers.pop(call_id)
            if isinstance(answer, EtcdError):
                continue
            self.answered.append((each, METHODS[path].response.FromString(answer)))
            if path == GRANT:
                self.leases.add(each.request.ID)
            elif path == REVOKE:
                self.leases.discard(each.request.ID)

    def value(self) -> bytes:
        self._values += 1
        return b"%d " % self._values + bytes(self.random.choice((0, 10, 200, 3_000)))

    def key(self) -> bytes:
        return b"k%02d" % self.random.randrange(KEYS)

    def put(self, path: str) -> Asked:
        key, value = self.key(), self.value()
        lease = self.random.choice([0, 0, 0, *self.leases])
        return Asked(path, rpc_pb2.PutRequest(key=key, value=value, lease=lease), {key: value})

    def txn(self, path: str) -> Asked:
        value = self.value()
        writes = {b"t%d" % number: value for number in range(3)}
        puts = [
            rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value)) for key in sorted(writes)
        ]
        return Asked(path, rpc_pb2.TxnRequest(success=puts), writes)

    def deletion(self, path: str) -> Asked:
        key = self.key()
        end = key[:2] + b"\xff" if self.random.random() < 0.3 else b""
        return Asked(path, rpc_pb2.DeleteRangeRequest(key=key, range_end=end), {})

    def grant(self, path: str) -> Asked:
        return Asked(path, rpc_pb2.LeaseGrantRequest(ID=self.random.choice(LEASE_IDS), TTL=3600), {})

    def revocation(self, path: str) -> Asked:
        return Asked(path, rpc_pb2.LeaseRevokeRequest(ID=self.random.choice(LEASE_IDS)), {})

    # --- comparing

    def recovered(self, member: Member) -> None:
        """Compare a member that has just started with what is known, and learn what it says."""
        now = member.call(RANGE, rpc_pb2.RangeRequest(key=b"\0", range_end=b"\0"))
        new = [*history(member, self.revision, now.header.revision)]
        assert sorted({event.revision for event in new}) == [
            *range(self.revision + 1, now.header.revision + 1)
        ]
        self.check_answers(new)
        self.history += new
        model: dict[bytes, tuple[bytes, int]] = {}
        for event in self.history:
            if event.value is None:
                del model[event.key]
            else:
                model[event.key] = (event.value, event.revision)
        assert {kv.key: (kv.value, kv.mod_revision) for kv in now.kvs} == model
        self.check_leases(member)
        self.answered.clear()
        self.unknown.clear()

    def check_answers(self, new: list[Event]) -> None:
        by_revision: dict[int, dict[bytes, bytes | None]] = {}
        for event in new:
            by_revision.setdefault(event.revision, {})[event.key] = event.value
        explained = set()
        for asked, response in self.answered:
            revision = response.header.revision
            if asked.writes:
                assert by_revision.get(revision) == asked.writes, "an answered write is lost"
                explained.add(revision)
            elif asked.path == DELETE and response.deleted:
                found = by_revision.get(revision, {})
                assert [*found.values()] == [None] * response.deleted, "an answered deletion is lost"
                explained.add(revision)
        possible: list[Any] = [asked.writes for asked in self.unknown if asked.writes]
        for revision, found in by_revision.items():
            if revision not in explained and any(value is not None for value in found.values()):
                assert found in possible, "half of a request, or one that nobody made"
                possible.remove(found)

    def check_leases(self, member: Member) -> None:
        found = {lease.ID for lease in member.call(LEASES, rpc_pb2.LeaseLeasesRequest()).leases}
        granting = {asked.request.ID for asked in self.unknown if asked.path == GRANT}
        revoking = {asked.request.ID for asked in self.unknown if asked.path == REVOKE}
        assert self.leases - revoking <= found <= self.leases | granting
        self.leases = found


def history(member: Member, after: int, up_to: int) -> Iterator[Event]:
    """What a watch says from behind one revision up to another."""
    if after == up_to:
        return
    stream = member.open(WATCH, watch_request(b"\0", range_end=b"\0", start_revision=after + 1))
    revision = after
    while revision < up_to:
        member.turn()
        for response in member.heard(stream, WATCH):
            assert not response.canceled, response.cancel_reason
            for event in response.events:
                revision = event.kv.mod_revision
                yield Event(revision, event.kv.key, None if event.type else event.kv.value)


def live(seed: int, folder: Path, *, syncs_lie: bool = False) -> SimulatedDisk:
    """Run one seed. Raises AssertionError or StorageError when a life does not continue the one before it."""
    world = World(seed)
    starts = 0

    def start(disk: SimulatedDisk) -> Member:
        nonlocal starts
        starts += 1
        return Member(Path(disk.path("")), vfs=disk.vfs_name, seed=starts, **SETTINGS)

    with SimulatedDisk(seed, folder) as disk:
        disk.syncs_lie = syncs_lie
        for _ in range(LIVES):
            disk.cut_power_within(world.random.choice((200, 600, 1500)))
            with suppress(StorageError, apsw.Error):
                member = start(disk)
                maintenance = None
                try:
                    maintenance = StateMaintenance.open(disk.path("state.db"), vfs=disk.vfs_name)
                    world.recovered(member)
                    while not disk.is_dead:
                        world.step(member, maintenance)
                finally:
                    disk.cut_power()
                    member.abandon()
                    if maintenance is not None:
                        with suppress(StorageError):
                            maintenance.close()
            disk.restart()
            report = verify_files(disk.path("raft.db"), disk.path("state.db"), vfs=disk.vfs_name)
            assert report.is_sound, report.lines()
            member = start(disk)
            world.recovered(member)
            member.close()
    return disk


@pytest.mark.parametrize("block", range(10))
def test_what_was_answered_survives_a_power_cut(block: int, tmp_path: Path) -> None:
    lost = 0
    for seed in range(block * SEEDS // 10, (block + 1) * SEEDS // 10):
        try:
            lost += live(seed, tmp_path / str(seed)).unsynced_lost
        except (AssertionError, StorageError) as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert lost > 0


def test_a_disk_that_only_pretends_to_sync_is_noticed(tmp_path: Path) -> None:
    failed = 0
    for seed in range(20):
        try:
            live(seed, tmp_path / str(seed), syncs_lie=True)
        except (AssertionError, StorageError, apsw.Error):
            failed += 1
    assert failed >= 10
