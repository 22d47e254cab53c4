"""Clients of real members, in threads: what they ask for, and exactly what they were told and when.

As in the simulator, a client has one call under way at a time, goes elsewhere when a member fails it, and
never asks the same again. An outcome is unknown when the answer did not come, and when etcd's error says so.
Watchers go on behind the last revision that they have seen, at any member. What they remember is the
simulator's `History`, so that the same checkers judge it. All times are seconds since the traffic began.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message

from etcd_server.api.errors import EtcdError, OutcomeUnknown, every_error
from etcd_server.api.proto import rpc_pb2
from tests.live import GRANT, LEASES, WATCH, Calls, wait_until
from tests.sim.history import (
    DELETE,
    LEASE_REVOKE,
    PUT,
    RANGE,
    TXN,
    Delivery,
    History,
    LeaseStory,
    Operation,
    WatchSession,
)
from tests.sim.world import Violation

KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
KEYS = 8
THINK_S = 0.06
# How often a client leaves a member that has not failed it, so that every member is asked all the time.
WANDER = 0.05
JOIN_LIMIT_S = 15.0
LEASE_LIMIT_S = 20.0

R = rpc_pb2.RangeRequest
C = rpc_pb2.Compare
_ERRORS = {error.text: error for error in every_error()}


def meaning(error: grpc.RpcError) -> EtcdError | None:
    """etcd's error that a client was told; None: no member said anything that settles it."""
    told = _ERRORS.get(str(error.details()))
    return None if told is None or issubclass(told, OutcomeUnknown) else told()


class Traffic:
    """All clients of one run against the members at `addresses`, by their number."""

    def __init__(self, addresses: Mapping[int, str], seed: int, *, writers: int = 6) -> None:
        self.addresses = addresses
        self.seed = seed
        self.history = History()
        self.counts: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self.is_asking = True
        self.is_over = threading.Event()
        self.live_leases: list[int] = []
        self.highest_revision = 1
        self._begun_s = time.monotonic()
        self._values = itertools.count(1)
        self._lock = threading.Lock()
        self.watchers = [Watcher(self, number) for number in range(3)]
        self._askers: list[Client] = [Writer(self, number) for number in range(writers)]
        self._askers += [LeaseHolder(self, number) for number in range(2)]

    def now(self) -> float:
        return time.monotonic() - self._begun_s

    def value(self) -> bytes:
        """A value that nobody has ever written."""
        return b"v%d" % next(self._values)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def begin(self) -> None:
        for client in (*self.watchers, *self._askers):
            client.begin()

    def answered(self, since_s: float = 0.0) -> int:
        """Calls that were sent after `since_s` and answered well."""
        return sum(one.succeeded and one.invoked_s >= since_s for one in list(self.history.operations))

    def written(self, since_s: float) -> int:
        """Puts that were sent after `since_s` and answered well."""
        return sum(
            one.path == PUT and one.succeeded and one.invoked_s >= since_s
            for one in list(self.history.operations)
        )

    def wait_for_answers(self, count: int, limit_s: float = 20.0) -> None:
        """Until `count` more calls that are sent from now on have been answered."""
        since_s = self.now()
        wait_until(lambda: self.answered(since_s) >= count, f"{count} answers: {self.counts}", limit_s)

    def end(self) -> None:
        """Ask nothing more, let leases run out and watchers see everything, and end. Raises what went wrong
        in a client."""
        self.is_asking = False
        self.is_over.set()
        try:
            for client in self._askers:
                client.join()
            wait_until(self._no_lease_is_left, "the end of all leases", LEASE_LIMIT_S)
            for watcher in self.watchers:
                watcher.catch_up()
        finally:
            self.abandon()
            self._raise_failures()

    def _raise_failures(self) -> None:
        for failure in self.failures:
            raise failure

    def _no_lease_is_left(self) -> bool:
        left = [
            calls.call(LEASES, rpc_pb2.LeaseLeasesRequest()).leases
            for calls in self.watchers[0].calls.values()
        ]
        return not any(left)

    def abandon(self) -> None:
        """End all threads."""
        self.is_asking = False
        self.is_over.set()
        for client in (*self._askers, *self.watchers):
            client.leave()


class Client:
    """One thread, with connections of its own."""

    def __init__(self, traffic: Traffic, kind: str, number: int) -> None:
        self.traffic = traffic
        self.number = number
        self.draw = random.Random(f"{kind} {number} {traffic.seed}")
        self.calls = {member: Calls(address) for member, address in traffic.addresses.items()}
        self.member = sorted(traffic.addresses)[number % len(traffic.addresses)]
        self._thread = threading.Thread(target=self._run, name=f"{kind} {number}", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self.act()
        except BaseException as error:
            self.traffic.failures.append(error)

    def act(self) -> None:
        raise NotImplementedError

    def join(self) -> None:
        self._thread.join(JOIN_LIMIT_S)
        assert not self._thread.is_alive(), f"{self._thread.name} does not end"

    def leave(self) -> None:
        if self._thread.ident is not None:
            self._thread.join(JOIN_LIMIT_S)
        for calls in self.calls.values():
            calls.channel.close()

    def elsewhere(self) -> None:
        self.member = self.draw.choice(sorted(self.calls))

    def pause(self, seconds: float) -> None:
        self.traffic.is_over.wait(seconds)

    def call(self, path: str, request: Message) -> Operation:
        """One call, remembered. It does not raise."""
        traffic = self.traffic
        if self.draw.random() < WANDER:
            self.elsewhere()
        operation = Operation(self.number, path, request, traffic.now(), member=(self.member, 0))
        traffic.history.operations.append(operation)
        try:
            response = self.calls[self.member].call(path, request, self.draw.uniform(0.5, 3.0))
        except grpc.RpcError as error:
            operation.error = meaning(error)
            if operation.error is None:
                traffic.count("unknown")
            else:
                operation.completed_s = traffic.now()
                traffic.count("refused")
                traffic.count(str(error.details()))
            if self.draw.random() < 0.5:
                self.elsewhere()
            self.pause(0.1)
        else:
            operation.completed_s = traffic.now()
            operation.response = response
            traffic.count("answered")
            traffic.highest_revision = max(traffic.highest_revision, response.header.revision)
        return operation


class Writer(Client):
    """Puts, deletions, transactions and reads of a few keys."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        super().__init__(traffic, "writer", number)

    def act(self) -> None:
        while self.traffic.is_asking:
            self.call(*self._request())
            self.pause(self.draw.expovariate(1 / THINK_S))

    def _key(self) -> bytes:
        return b"k%d" % self.draw.randrange(KEYS)

    def _request(self) -> tuple[str, Message]:
        draw, value = self.draw, self.traffic.value
        kind = draw.random()
        if kind < 0.35:
            request = rpc_pb2.PutRequest(key=self._key(), value=value(), prev_kv=draw.random() < 0.3)
            leases = list(self.traffic.live_leases)
            if leases and draw.random() < 0.3:
                request.lease = draw.choice(leases)
            return PUT, request
        if kind < 0.42:
            end = draw.choice([b"", b"", b"l"])
            return DELETE, rpc_pb2.DeleteRangeRequest(key=self._key(), range_end=end, prev_kv=True)
        if kind < 0.65:
            return TXN, self._txn()
        is_all = draw.random() < 0.3
        return RANGE, R(
            key=b"k" if is_all else self._key(),
            range_end=b"l" if is_all else b"",
            serializable=draw.random() < 0.25,
            limit=draw.choice([0, 0, 2]),
        )

    def _txn(self) -> rpc_pb2.TxnRequest:
        draw, traffic = self.draw, self.traffic
        key = self._key()
        known = draw.choice([0, traffic.highest_revision, max(1, traffic.highest_revision - 5)])
        request = rpc_pb2.TxnRequest(
            compare=[
                C(key=key, target=C.MOD, result=draw.choice(C.CompareResult.values()), mod_revision=known),
                C(key=self._key(), target=C.VERSION, result=draw.choice([C.GREATER, C.EQUAL]), version=0),
            ][: draw.randrange(3)]
        )
        request.success.add().request_put.CopyFrom(
            rpc_pb2.PutRequest(key=key, value=traffic.value(), prev_kv=True)
        )
        if draw.random() < 0.4:
            request.success.add().request_range.CopyFrom(R(key=b"k", range_end=b"l"))
        request.failure.add().request_range.CopyFrom(R(key=key))
        if draw.random() < 0.4:
            request.failure.add().request_put.CopyFrom(rpc_pb2.PutRequest(key=key, value=traffic.value()))
        return request


class LeaseHolder(Client):
    """Grants leases, keeps them alive for a while, then revokes them or lets them run out."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        super().__init__(traffic, "lease holder", 100 + number)

    def act(self) -> None:
        while self.traffic.is_asking:
            self._hold(self.draw.getrandbits(62) + 1, self.draw.choice([2, 3]))
            self.pause(self.draw.uniform(0.2, 1.0))

    def _hold(self, lease_id: int, ttl_s: int) -> None:
        traffic = self.traffic
        asked_s = traffic.now()
        try:
            granted = self.calls[self.member].call(
                GRANT, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s), 3.0
            )
        except grpc.RpcError:
            self.elsewhere()
            return
        story = LeaseStory(lease_id, granted.TTL, asked_s)
        traffic.history.leases[lease_id] = story
        traffic.live_leases.append(lease_id)
        traffic.count("lease granted")
        until_s = traffic.now() + self.draw.uniform(2, 8)
        while traffic.is_asking and traffic.now() < until_s and self._keep_alive(story):
            self.pause(self.draw.uniform(0.15, 0.3) * story.ttl_s)
        traffic.live_leases.remove(lease_id)
        if self.draw.random() < 0.5 and traffic.is_asking:
            story.revoke_asked_s = traffic.now()
            self.call(LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=lease_id))

    def _keep_alive(self, story: LeaseStory) -> bool:
        """Whether the lease may still live. Raises Violation when it was ended too early, or lives again."""
        traffic = self.traffic
        asked_s = traffic.now()
        request = rpc_pb2.LeaseKeepAliveRequest(ID=story.lease_id)
        try:
            [response] = self.calls[self.member].stream(KEEP_ALIVE, iter([request]), timeout_s=1.0)
        except (grpc.RpcError, ValueError):
            self.elsewhere()
            return True
        now_s = traffic.now()
        if response.TTL > 0:
            traffic.count("lease kept alive")
            if story.ended_s < asked_s:
                raise Violation("dead lease", f"{story} is kept alive after its end")
            story.alive_s = asked_s
            return True
        if now_s < story.alive_s + story.ttl_s:
            raise Violation("lease revoked early", f"{story} has ended at {now_s:.3f}")
        story.ended_s = now_s
        traffic.count("lease ran out")
        return self.draw.random() < 0.5


class Watcher(Client):
    """One watch that goes on for the whole run, over streams that come and go."""

    def __init__(self, traffic: Traffic, number: int) -> None:
        super().__init__(traffic, "watcher", number)
        key, end = [(b"k", b"l"), (b"k1", b""), (b"\0", b"\0")][number]
        self.request = rpc_pb2.WatchCreateRequest(
            key=key, range_end=end, prev_kv=number != 1, progress_notify=True, fragment=number == 0
        )
        self.next_revision = 1
        self.sessions: list[WatchSession] = []
        traffic.history.watches.append(self.sessions)
        self._stream: Any = None
        self._said: queue.SimpleQueue[rpc_pb2.WatchRequest | None] = queue.SimpleQueue()
        self._is_leaving = False

    def act(self) -> None:
        while not self._is_leaving:
            try:
                self._watch()
            except grpc.RpcError:
                self.traffic.count("watch resumed")
            time.sleep(0.05)
            self.elsewhere()

    def _watch(self) -> None:
        said = self._said = queue.SimpleQueue()
        request = rpc_pb2.WatchCreateRequest()
        request.CopyFrom(self.request)
        request.start_revision = self.next_revision
        said.put(rpc_pb2.WatchRequest(create_request=request))
        session = WatchSession(request, (self.member, 0))
        self.sessions.append(session)
        self._stream = self.calls[self.member].stream(WATCH, _until_none(said), timeout_s=self._patience_s())
        if self._is_leaving:
            self._stream.cancel()
        try:
            for response in self._stream:
                session.deliveries.append(Delivery(self.traffic.now(), response))
                if response.canceled:
                    return
                if response.events:
                    self.traffic.counts["watch event"] += len(response.events)
                    if not response.fragment:
                        self.next_revision = response.events[-1].kv.mod_revision + 1
        finally:
            said.put(None)

    def _patience_s(self) -> float:
        """How long one stream lasts: a watcher moves to another member now and then."""
        return self.draw.uniform(3, 12) if self.traffic.is_asking else 60.0

    def catch_up(self) -> None:
        """Wait until it has been told that it has everything: its last session is then current."""
        revision = max(int(calls.range(key=b"k").header.revision) for calls in self.calls.values())

        def has_all() -> bool:
            session = self.sessions[-1]
            # A watch from the next revision on lacks nothing, and is told of no progress before that.
            session.is_current = self.next_revision > revision or any(
                response.header.revision >= revision
                for response in (delivery.response for delivery in list(session.deliveries))
                if not (response.events or response.created or response.canceled)
            )
            if not session.is_current:
                self._said.put(rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest()))
                time.sleep(0.1)
            return session.is_current

        try:
            wait_until(has_all, f"watcher {self.number} has seen revision {revision}", 20.0)
        except AssertionError as error:
            told = [one.response for one in self.sessions[-1].deliveries[-3:]]
            raise AssertionError(
                f"{error}, at member {self.member}, alive: {self._thread.is_alive()}, "
                f"next {self.next_revision}, {len(self.sessions)} sessions, told last {told}"
            ) from None

    def leave(self) -> None:
        self._is_leaving = True
        if self._stream is not None:
            self._stream.cancel()
        super().leave()


def _until_none(said: queue.SimpleQueue[rpc_pb2.WatchRequest | None]) -> Iterator[Message]:
    while (request := said.get()) is not None:
        yield request
