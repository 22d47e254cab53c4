"""Rounds of SIGKILL under write load, on one data directory.

In each round many clients write (puts, txns over three keys, deletions, leases, now and then a compaction)
and a watcher follows, until the process is killed at a random moment. `etcd-py verify` then looks at the
files, the process is started again, sometimes killed once more while it starts, and what it holds is compared
with what had been answered.

The history that is compared with is the server's own, read again after the restart by a watch from the
revision at which the round began: it must contain what every client was told, what the watcher had seen must
be its beginning, and it may contain besides only what was under way.

20 rounds in a test run; KILL_ROUNDS=200 for all. KILL_SEED chooses others.
"""

from __future__ import annotations

import base64
import os
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import requests

from etcd_server.api.proto import rpc_pb2
from tests.live import (
    COMPACT,
    DELETE,
    GRANT,
    LEASES,
    PUT,
    REVOKE,
    TXN,
    Calls,
    LiveServer,
    WatchStream,
    assert_no_traceback,
    watch_request,
)

ROUNDS = int(os.environ.get("KILL_ROUNDS", "20"))
SEED = int(os.environ.get("KILL_SEED", "1"))
CLIENTS = 12
CHANNELS = 3
GATEWAY_CLIENTS = 2
KEYS_PER_CLIENT = 20
VALUE_SIZES = (10, 10, 200, 5_000, 50_000)
FLAGS = ("--snapshot-count", "200", "--snapshot-catchup-entries", "100", "--log-level", "warn")


class Event(NamedTuple):
    revision: int
    key: bytes
    value: bytes | None
    """None: deleted."""


@dataclass
class Told:
    """What clients were told in one round. Filled by many threads; lists and sets are appended to only."""

    puts: list[Event] = field(default_factory=list)
    txns: list[tuple[int, list[bytes], bytes]] = field(default_factory=list)
    deletions: list[tuple[int, int]] = field(default_factory=list)
    """(revision, number of keys deleted)"""
    granted: set[int] = field(default_factory=set)
    revoked: set[int] = field(default_factory=set)
    revoking: set[int] = field(default_factory=set)
    """Asked for; perhaps not answered."""
    revisions: list[int] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)

    @property
    def writes(self) -> int:
        return len(self.puts) + len(self.txns) + len(self.deletions) + len(self.granted) + len(self.revoked)


class Client:
    """Writes until the server is gone. Its own keys, values that are never used twice."""

    def __init__(self, name: str, calls: Calls, told: Told, value_size: int, rng: random.Random) -> None:
        self._name = name.encode()
        self._calls = calls
        self._told = told
        self._value_size = value_size
        self._random = rng
        self._count = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        actions: list[Callable[[], None]] = [self._put] * 12 + [self._txn] * 4 + [self._delete, self._lease]
        try:
            while True:
                self._random.choice(actions)()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                self._told.surprises.append(f"{error.code()} {error.details()}")

    def _value(self) -> bytes:
        self._count += 1
        head = b"%s %d " % (self._name, self._count)
        return head + bytes(max(0, self._value_size - len(head)))

    def _key(self) -> bytes:
        return b"k/%s/%d" % (self._name, self._random.randrange(KEYS_PER_CLIENT))

    def _put(self) -> None:
        key, value = self._key(), self._value()
        revision = self._calls.put(key, value).header.revision
        self._told.puts.append(Event(revision, key, value))
        self._told.revisions.append(revision)

    def _txn(self) -> None:
        value = self._value()
        keys = [b"t/%s/%s" % (self._name, part) for part in (b"a", b"b", b"c")]
        puts = [rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=key, value=value)) for key in keys]
        response = self._calls.call(TXN, rpc_pb2.TxnRequest(success=puts))
        self._told.txns.append((response.header.revision, keys, value))
        self._told.revisions.append(response.header.revision)

    def _delete(self) -> None:
        start = b"k/%s/" % self._name
        request = rpc_pb2.DeleteRangeRequest(key=start, range_end=start + b"5")
        response = self._calls.call(DELETE, request)
        if response.deleted:
            self._told.deletions.append((response.header.revision, response.deleted))
        self._told.revisions.append(response.header.revision)

    def _lease(self) -> None:
        lease = self._calls.call(GRANT, rpc_pb2.LeaseGrantRequest(TTL=3600)).ID
        self._told.granted.add(lease)
        attached = [b"l/%s/%d" % (self._name, number) for number in range(3)]
        for key in attached:
            value = self._value()
            put = rpc_pb2.PutRequest(key=key, value=value, lease=lease)
            self._told.puts.append(Event(self._calls.call(PUT, put).header.revision, key, value))
        if self._random.random() < 0.9:
            self._told.revoking.add(lease)
            response = self._calls.call(REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease))
            self._told.revoked.add(lease)
            self._told.deletions.append((response.header.revision, len(attached)))


class GatewayClient(Client):
    """The same through the JSON gateway: puts only."""

    url = ""

    def _run(self) -> None:
        with requests.Session() as session:
            while True:
                key, value = self._key(), self._value()
                body = {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}
                try:
                    answer = session.post(f"{self.url}/v3/kv/put", json=body, timeout=10)
                    revision = int(answer.json()["header"]["revision"])
                except requests.RequestException:
                    return
                self._told.puts.append(Event(revision, key, value))


@dataclass
class World:
    """The server and all that is known of it."""

    server: LiveServer
    random: random.Random
    revision: int = 1
    model: dict[bytes, Event] = field(default_factory=dict)
    leases: set[int] = field(default_factory=set)
    writes: int = 0
    extra_kills: int = 0
    restarts_s: list[float] = field(default_factory=list)

    def round(self, number: int) -> None:
        told, seen = self._load(number)
        found = self.server.verify()
        assert found.returncode == 0, found.stdout
        while self.random.random() < 0.15:
            self.server.launch()
            time.sleep(self.random.uniform(0.05, 0.5))
            self.server.kill()
            self.extra_kills += 1
        begun_s = time.monotonic()
        self.server.start()
        self.restarts_s.append(time.monotonic() - begun_s)
        with self.server.calls() as calls:
            self._check(calls, told, seen)
        assert_no_traceback(self.server.output)

    def _load(self, number: int) -> tuple[Told, list[Event]]:
        """Write until the kill: what clients were told, and what a watcher saw."""
        told = Told()
        size = self.random.choice(VALUE_SIZES)
        channels = [self.server.calls() for _ in range(CHANNELS)]
        watcher = WatchStream(channels[0], self._everything_after(self.revision))
        watcher.wait(lambda stream: stream.responses)
        clients = []
        for index in range(CLIENTS + GATEWAY_CLIENTS):
            kind = Client if index < CLIENTS else GatewayClient
            seed = random.Random(self.random.random())
            clients.append(kind(f"{number}.{index}", channels[index % CHANNELS], told, size, seed))
        time.sleep(self.random.uniform(0.05, 0.5))
        if self.random.random() < 0.5:
            channels[0].call(COMPACT, rpc_pb2.CompactionRequest(revision=self.revision))
        time.sleep(self.random.uniform(0.0, 0.7))
        self.server.kill()
        for client in clients:
            client.join()
        watcher.wait(lambda stream: stream.error)
        seen = events(watcher)
        watcher.close()
        for calls in channels:
            calls.channel.close()
        assert not told.surprises, told.surprises
        return told, seen

    def _everything_after(self, revision: int) -> rpc_pb2.WatchRequest:
        return watch_request(b"\0", range_end=b"\0", start_revision=revision + 1)

    def _history(self, calls: Calls, after: int, up_to: int) -> list[Event]:
        """All events of a watch from behind one revision up to another."""
        if after == up_to:
            return []
        stream = WatchStream(calls, self._everything_after(after))
        stream.wait(lambda stream: any(event.kv.mod_revision >= up_to for event in stream.last_events))
        found = events(stream)
        stream.close()
        return found

    def _check(self, calls: Calls, told: Told, seen: list[Event]) -> None:
        before, header = self.revision, calls.range(key=b"x").header
        for revision in told.revisions + [event.revision for event in seen]:
            assert header.revision >= revision, "the revision went back"
        history = self._history(calls, before, header.revision)
        assert sorted({event.revision for event in history}) == [*range(before + 1, header.revision + 1)]
        assert history[: len(seen)] == seen, "the watcher had seen another history"
        last_seen = seen[-1].revision if seen else before
        assert self._history(calls, last_seen, header.revision) == history[len(seen) :]
        self._check_answers(told, history)
        self._check_leases(calls, told)
        self._follow(history)
        self.revision = header.revision
        self.writes += told.writes

    def _check_answers(self, told: Told, history: list[Event]) -> None:
        by_revision: dict[int, list[Event]] = defaultdict(list)
        values: dict[bytes, list[Event]] = defaultdict(list)
        for event in history:
            by_revision[event.revision].append(event)
            if event.value is not None:
                values[event.value].append(event)
        for put in told.puts:
            assert by_revision[put.revision] == [put], "an answered put is lost"
        for revision, keys, value in told.txns:
            assert by_revision[revision] == [Event(revision, key, value) for key in keys], "a txn is lost"
        for revision, count in told.deletions:
            kinds = [event.value for event in by_revision[revision]]
            assert kinds == [None] * count, "an answered deletion is lost"
        for value, found in values.items():
            if found[0].key.startswith(b"t/"):
                assert len(found) == 3, f"half a txn: {found}"
                assert len({event.revision for event in found}) == 1, f"a txn in parts: {found}"
            else:
                assert len(found) == 1, f"{value[:20]!r} was written twice"

    def _check_leases(self, calls: Calls, told: Told) -> None:
        response = calls.call(LEASES, rpc_pb2.LeaseLeasesRequest())
        found = {lease.ID for lease in response.leases}
        assert (self.leases | told.granted) - told.revoking <= found, "a lease is lost"
        assert not told.revoked & found, "a revoked lease is back"
        self.leases = found

    def _follow(self, history: list[Event]) -> None:
        for event in history:
            known = self.model.get(event.key)
            assert known is None or known.revision < event.revision
            if event.value is None:
                assert self.model.pop(event.key, None) is not None, f"{event.key!r} was deleted twice"
            else:
                self.model[event.key] = event

    def check_everything(self) -> None:
        found: dict[bytes, Event] = {}
        with self.server.calls() as calls:
            start, more = b"\0", True
            while more:
                page = calls.range(key=start, range_end=b"\0", limit=500, revision=self.revision)
                found |= {kv.key: Event(kv.mod_revision, kv.key, kv.value) for kv in page.kvs}
                start, more = page.kvs[-1].key + b"\0", page.more
        assert found == self.model


def events(stream: WatchStream) -> list[Event]:
    return [
        Event(event.kv.mod_revision, event.kv.key, None if event.type else event.kv.value)
        for event in stream.events
    ]


@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_nothing_that_was_answered_is_lost(tmp_path: Path) -> None:
    server = LiveServer(tmp_path, flags=FLAGS)
    GatewayClient.url = server.url
    world = World(server, random.Random(f"kill {SEED}"))
    server.start()
    try:
        for number in range(ROUNDS):
            try:
                world.round(number)
            except AssertionError as error:
                raise AssertionError(f"round {number} of seed {SEED}: {error}") from error
        world.check_everything()
        assert server.stop() == 0
        assert server.verify().returncode == 0
    finally:
        server.kill()
    restarts_s = sorted(world.restarts_s)
    print(
        f"\n{ROUNDS} rounds, {world.extra_kills} kills while starting: {world.writes} writes acknowledged, "
        f"0 lost, revision {world.revision}; ready again after {statistics.median(restarts_s):.2f} s "
        f"(at most {restarts_s[-1]:.2f} s)"
    )
    assert world.writes > 20 * ROUNDS
