"""Clients: what a cluster is asked for while it is being broken.

Each client has one call under way at a time and remembers what it was told (`history.py`). It goes to another
member when one fails it, and gives up on a call after a while: the outcome is then unknown, and it never asks
the same again. Values are unique. Watchers resume behind the last revision that they have seen, at any
member; some read slowly. Lease holders keep leases alive, put keys on them, let them run out or revoke them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etcd_server.api.errors import EtcdError, OutcomeUnknown
from etcd_server.api.methods import METHODS
from etcd_server.api.proto import rpc_pb2
from tests.sim.history import (
    COMPACT,
    LEASE_GRANT,
    LEASE_REVOKE,
    Delivery,
    History,
    LeaseStory,
    Operation,
    WatchSession,
)
from tests.sim.node import Cluster
from tests.sim.process import Process, Stream
from tests.sim.requests import Requests
from tests.sim.world import Violation, World

WATCH = "/etcdserverpb.Watch/Watch"
LEASE_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
MEMBER_LIST = "/etcdserverpb.Cluster/MemberList"
MEMBER_ADD = "/etcdserverpb.Cluster/MemberAdd"
MEMBER_REMOVE = "/etcdserverpb.Cluster/MemberRemove"
MEMBER_UPDATE = "/etcdserverpb.Cluster/MemberUpdate"
MEMBER_PROMOTE = "/etcdserverpb.Cluster/MemberPromote"


class Clients:
    """All clients of one run."""

    def __init__(self, world: World, cluster: Cluster) -> None:
        plan = world.plan
        self.world = world
        self.cluster = cluster
        self.hosts = cluster.hosts
        self.history = History()
        self.is_asking = True
        self.highest_revision = 1
        self.live_leases: list[int] = []
        self._next_call = 1
        self._next_value = 0
        self.writers = [Writer(self, number) for number in range(plan.clients)]
        self.watchers = [Watcher(self, number) for number in range(plan.watchers)]
        self.holders = [LeaseHolder(self, number) for number in range(plan.lease_holders)]
        self.lonely: list[Compactor | Administrator] = []
        if plan.compaction_interval_s:
            self.lonely.append(Compactor(self))
        if plan.membership_interval_s:
            self.lonely += [Administrator(self, number) for number in range(2)]

    def begin(self) -> None:
        for client in (*self.writers, *self.watchers, *self.holders):
            self.world.after(client.draw.uniform(0.5, 1.5), client.act)
        for lonely in self.lonely:
            self.world.after(2.0, lonely.act)

    @property
    def are_quiet(self) -> bool:
        """Nobody waits for an answer."""
        return not any(client.is_busy for client in (*self.writers, *self.holders, *self.lonely))

    def number(self) -> int:
        """A number that no other call or stream has."""
        self._next_call += 1
        return self._next_call

    def value(self) -> bytes:
        """A value that nobody has ever written."""
        self._next_value += 1
        size = self.world.plan.value_bytes
        return (b"v%d" % self._next_value).ljust(size, b".")


class Client:
    """One client: sends one call at a time to the member that it has chosen."""

    def __init__(self, clients: Clients, kind: str, number: int) -> None:
        self.clients = clients
        self.world = clients.world
        self.plan = clients.world.plan
        self.name = f"{kind} {number}"
        self.client_id = len(clients.history.operations) + number
        self.draw = clients.world.source(self.name)
        self.host = self.draw.choice(clients.hosts)
        self._under_way = 0

    def act(self) -> None:
        """Begin, or go on after an answer."""
        raise NotImplementedError

    @property
    def is_busy(self) -> bool:
        return self._under_way > 0

    def elsewhere(self) -> None:
        """Choose a member again."""
        self.host = self.draw.choice(self.clients.hosts)

    def call(self, path: str, request: Any, then: Callable[[Operation], None]) -> None:
        """Send a call. `then` hears of it once: answered, refused, or unknown after a while."""
        process = self.host.process
        operation = Operation(self.client_id, path, request, self.world.now)
        if process is None:
            self.elsewhere()
            self.world.after(0.05, then, operation)
            return
        operation.member = (self.host.number, self.host.lives)
        self._under_way += 1
        call_id = self.clients.number()
        waiting = True

        def told(answer: bytes | EtcdError | None) -> None:
            nonlocal waiting
            if not waiting:
                return
            waiting, self._under_way = False, 0
            self._take(operation, answer)
            then(operation)

        def give_up() -> None:
            if waiting:
                self.world.counts["client gave up"] += 1
                process.cancel(call_id)
                told(None)

        self.clients.history.operations.append(operation)
        self.world.after(self.draw.uniform(0.0001, 0.003), _arrive, process, call_id, path, request, told)
        self.world.after(self.draw.uniform(0.5, 5), give_up)

    def _take(self, operation: Operation, answer: bytes | EtcdError | None) -> None:
        counts = self.world.counts
        if isinstance(answer, bytes):
            operation.response = METHODS[operation.path].response.FromString(answer)
            operation.completed_s = self.world.now
            revision = operation.response.header.revision
            self.clients.highest_revision = max(self.clients.highest_revision, revision)
            counts["operation succeeded"] += 1
            return
        if answer is None or isinstance(answer, OutcomeUnknown):
            counts["outcome unknown"] += 1
        else:
            counts["operation refused"] += 1
            operation.completed_s = self.world.now
        operation.error = answer
        if self.draw.random() < 0.7:
            self.elsewhere()


def _arrive(process: Process, call_id: int, path: str, request: Any, told: Callable[[Any], None]) -> None:
    if process.host.process is process:
        process.call(call_id, path, request, told)
    else:
        told(None)


class Writer(Client):
    """Puts, deletes, transactions and reads of a few keys."""

    def __init__(self, clients: Clients, number: int) -> None:
        super().__init__(clients, "writer", number)
        self.client_id = number
        self._requests = Requests(self.draw, self.plan, clients)

    def act(self) -> None:
        if self.clients.is_asking:
            path, request = self._requests.next()
            self.call(path, request, self._done)

    def _done(self, operation: Operation) -> None:
        self.world.after(self.draw.expovariate(1 / self.plan.think_s), self.act)


class Compactor(Client):
    """Forgets the past, up to the present at times."""

    def __init__(self, clients: Clients) -> None:
        super().__init__(clients, "compactor", 0)
        self.client_id = 900

    def act(self) -> None:
        if not self.clients.is_asking:
            return
        highest = self.clients.highest_revision
        back = self.draw.choice([0, 0, 1, 3, 20])
        if highest - back > 1:
            request = rpc_pb2.CompactionRequest(revision=highest - back, physical=self.draw.random() < 0.3)
            self.call(COMPACT, request, self._done)
        else:
            self.world.after(1.0, self.act)

    def _done(self, operation: Operation) -> None:
        if operation.succeeded:
            self.world.counts["compaction"] += 1
        self.world.after(self.draw.expovariate(1 / self.plan.compaction_interval_s), self.act)


class Administrator(Client):
    """One of two, who do not know of each other. Adds members, with a new machine or at the address of a
    member that is gone, promotes and removes them. A member that was added is started, whoever may have heard
    of it."""

    def __init__(self, clients: Clients, number: int) -> None:
        super().__init__(clients, "administrator", number)
        self.client_id = 901 + number
        self._addresses = len(clients.hosts)
        self._is_sure = True

    def act(self) -> None:
        if self.clients.is_asking:
            # A member that was added may be the one that is missing for a quorum: any list will do then.
            self.call(MEMBER_LIST, rpc_pb2.MemberListRequest(linearizable=self._is_sure), self._listed)

    def _listed(self, operation: Operation) -> None:
        cluster = self.clients.cluster
        self._is_sure = operation.succeeded and operation.request.linearizable
        if not operation.succeeded:
            self.world.after(0.5, self.act)
            return
        members = list(operation.response.members)
        for member in members:
            if member.ID not in cluster.all_hosts:
                cluster.add_host(member.ID)
                self.world.after(self.draw.uniform(0.1, 3), cluster.all_hosts[member.ID].start)
        if self._is_sure and self.clients.is_asking:
            path, request = self._change(members)
            self.call(path, request, self._changed)
        else:
            self._is_sure = True
            self.world.after(0.5, self.act)

    def _change(self, members: list[rpc_pb2.Member]) -> tuple[str, Any]:
        draw = self.draw
        learners = [member for member in members if member.isLearner]
        if learners and draw.random() < 0.7:
            return MEMBER_PROMOTE, rpc_pb2.MemberPromoteRequest(ID=learners[0].ID)
        if len(members) > 1 and (len(members) > 5 or draw.random() < 0.45):
            return MEMBER_REMOVE, rpc_pb2.MemberRemoveRequest(ID=draw.choice(members).ID)
        if draw.random() < 0.15:
            chosen = draw.choice(members)
            return MEMBER_UPDATE, rpc_pb2.MemberUpdateRequest(ID=chosen.ID, peerURLs=[self._address()])
        return MEMBER_ADD, rpc_pb2.MemberAddRequest(peerURLs=[self._address()], isLearner=draw.random() < 0.6)

    def _address(self) -> str:
        if self.draw.random() < 0.7:
            self._addresses += 1
            return f"http://10.0.1.{self._addresses}:2380"
        return f"http://10.0.1.{self.draw.randrange(self._addresses + 1)}:2380"

    def _changed(self, operation: Operation) -> None:
        if operation.succeeded:
            self.world.counts[_CHANGES[operation.path]] += 1
        # Not too long: a member whose addition was in doubt may be waited for.
        delay_s = min(self.draw.expovariate(1 / (2 * self.plan.membership_interval_s)), 8.0)
        self.world.after(delay_s, self.act)


_CHANGES = {
    MEMBER_ADD: "member added",
    MEMBER_PROMOTE: "member promoted",
    MEMBER_REMOVE: "member removed",
    MEMBER_UPDATE: "member updated",
}


class Watcher(Client):
    """One watch that goes on for the whole run, over streams that come and go."""

    def __init__(self, clients: Clients, number: int) -> None:
        super().__init__(clients, "watcher", number)
        draw = self.draw
        key, end = draw.choice([(b"k", b"l"), (b"k", b"l"), (b"k00", b""), (b"k01", b"k05"), (b"\0", b"\0")])
        self.request = rpc_pb2.WatchCreateRequest(
            key=key,
            range_end=end,
            prev_kv=draw.random() < 0.4,
            progress_notify=draw.random() < 0.4,
            fragment=draw.random() < 0.3,
        )
        if draw.random() < 0.2:
            kinds = rpc_pb2.WatchCreateRequest.FilterType.values()
            self.request.filters.append(draw.choice(kinds))
        self.next_revision = draw.choice([0, 1, 1, 2, 30])
        self.sessions: list[WatchSession] = []
        clients.history.watches.append(self.sessions)
        self.stream_id = 0
        self.process: Process | None = None

    def act(self) -> None:
        """Open a stream and go on where the last one ended."""
        process = self.host.process
        if process is None or process.is_paused:
            self.elsewhere()
            self.world.after(0.2, self.act)
            return
        request = rpc_pb2.WatchCreateRequest()
        request.CopyFrom(self.request)
        request.start_revision = self.next_revision
        session = WatchSession(request, (self.host.number, self.host.lives), begun_s=self.world.now)
        self.sessions.append(session)
        stream_id = self.stream_id = self.clients.number()
        self.process = process

        def heard(message: bytes) -> None:
            if self.stream_id == stream_id:
                self._hear(session, rpc_pb2.WatchResponse.FromString(message))

        def ended(error: EtcdError | None) -> None:
            if self.stream_id == stream_id:
                self._reconnect()

        process.open_stream(stream_id, WATCH, Stream(heard, ended))
        process.say(stream_id, rpc_pb2.WatchRequest(create_request=request))
        self.world.after(self.draw.expovariate(1 / 4), self._interfere, stream_id)

    def _hear(self, session: WatchSession, response: rpc_pb2.WatchResponse) -> None:
        session.deliveries.append(Delivery(self.world.now, response))
        counts = self.world.counts
        if response.events:
            counts["watch event"] += len(response.events)
            if not response.fragment:
                self.next_revision = max(self.next_revision, response.events[-1].kv.mod_revision + 1)
        elif response.created:
            if not self.next_revision:
                self.next_revision = response.header.revision + 1
        elif not response.canceled:
            counts["watch progress"] += 1
        if response.canceled:
            if response.compact_revision:
                counts["watch met compaction"] += 1
                self.next_revision = max(self.next_revision, response.compact_revision)
            self._reconnect()

    def _reconnect(self) -> None:
        if self.process is not None and self.process.host.process is self.process:
            self.process.cancel(self.stream_id)
        self.stream_id = 0
        self.elsewhere()
        self.world.counts["watch resumed"] += 1
        self.world.after(self.draw.uniform(0.01, 0.5), self.act)

    def _interfere(self, stream_id: int) -> None:
        """Now and then: read slowly for a while, ask for progress, or leave."""
        process = self.process
        if self.stream_id != stream_id or process is None or not self.clients.is_asking:
            return
        kind = self.draw.random()
        if kind < 0.4:
            self.world.counts["watch slow"] += 1
            process.set_slow(stream_id, slow=True)
            self.world.after(self.draw.uniform(0.1, 4), self._read_again, stream_id)
        elif kind < 0.8:
            request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
            process.say(stream_id, request)
        else:
            self._reconnect()
            return
        self.world.after(self.draw.expovariate(1 / 4), self._interfere, stream_id)

    def _read_again(self, stream_id: int) -> None:
        if self.stream_id == stream_id and self.process is not None:
            self.process.set_slow(stream_id, slow=False)
            if self.draw.random() < 0.5:
                request = rpc_pb2.WatchRequest(progress_request=rpc_pb2.WatchProgressRequest())
                self.process.say(stream_id, request)


class LeaseHolder(Client):
    """Grants leases, keeps them alive for a while, then lets them run out or revokes them."""

    def __init__(self, clients: Clients, number: int) -> None:
        super().__init__(clients, "lease holder", number)
        self.client_id = 500 + number
        self.lease_id = 0
        self.process: Process | None = None
        self.stream_id = 0
        self.sent_s: list[float] = []

    def act(self) -> None:
        if not self.clients.is_asking:
            return
        lease_id = self.draw.getrandbits(62) + 1
        ttl_s = self.draw.choice([1, 2, 3, 5])
        self.call(LEASE_GRANT, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl_s), self._granted)

    def _granted(self, operation: Operation) -> None:
        if not operation.succeeded:
            self.world.after(0.5, self.act)
            return
        response = operation.response
        self.lease_id = response.ID
        story = LeaseStory(response.ID, response.TTL, operation.invoked_s)
        self.clients.history.leases[response.ID] = story
        self.clients.live_leases.append(response.ID)
        self.world.counts["lease granted"] += 1
        self.world.after(response.TTL / 4, self._keep_alive, story)
        self.world.after(self.draw.uniform(2, 25), self._end, story)

    def _keep_alive(self, story: LeaseStory) -> None:
        """One keepalive, on the stream that is open, or on a new one to another member."""
        if self.lease_id != story.lease_id or not self.clients.is_asking:
            return
        self._say_keep_alive(story.lease_id)
        self.world.after(self.draw.uniform(0.15, 0.35) * story.ttl_s, self._keep_alive, story)

    def _say_keep_alive(self, lease_id: int) -> None:
        if self.stream_id == 0 and self.clients.is_asking:
            self._open()
        if self.process is not None and self.stream_id and self.clients.is_asking:
            self.sent_s.append(self.world.now)
            self.process.say(self.stream_id, rpc_pb2.LeaseKeepAliveRequest(ID=lease_id))

    def _open(self) -> None:
        self.elsewhere()
        process = self.host.process
        if process is None:
            return
        stream_id = self.stream_id = self.clients.number()
        self.process = process
        sent_s = self.sent_s = []

        def heard(message: bytes) -> None:
            # Answers may overtake each other: the oldest unanswered request is the one that is safe to count.
            asked_s = sent_s.pop(0)
            response = rpc_pb2.LeaseKeepAliveResponse.FromString(message)
            if response.TTL > 0:
                self.world.counts["lease kept alive"] += 1
                kept = self.clients.history.leases[response.ID]
                kept.alive_s = max(kept.alive_s, asked_s)
                if kept.ended_s < asked_s:
                    raise Violation("dead lease", f"lease {kept.lease_id:x} is kept alive after its end")
            elif self.lease_id == response.ID:
                self._gone()

        def ended(error: EtcdError | None) -> None:
            if self.stream_id == stream_id:
                self.stream_id = 0

        process.open_stream(stream_id, LEASE_KEEP_ALIVE, Stream(heard, ended))

    def _end(self, story: LeaseStory) -> None:
        """No more keepalives; half of the leases are revoked, the others run out."""
        if self.lease_id != story.lease_id:
            return
        if self.draw.random() < 0.5 and self.clients.is_asking:
            story.revoke_asked_s = self.world.now
            self.call(LEASE_REVOKE, rpc_pb2.LeaseRevokeRequest(ID=story.lease_id), lambda _: None)
        if self.draw.random() < 0.5:
            self.world.after(self.draw.uniform(0.1, 10), self._say_keep_alive, story.lease_id)
        self._gone()

    def _gone(self) -> None:
        self.clients.live_leases.remove(self.lease_id)
        self.lease_id = 0
        self.world.after(self.draw.uniform(0.5, 3), self.act)
