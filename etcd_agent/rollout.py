"""The fleet's permission to change this host: slots with leases, canaries first, a halt after rollbacks.

``FleetGate`` looks at the group's keys at one revision, lets `rollout_rules` decide, and takes a slot in a
transaction that succeeds only if the slot is still free and nobody has halted the group since. A slot is the
host's: several of its resources may change under one. It is kept alive as long as a pass uses it, and given
back when the last one ends; if a pass went back to the old files, only after that has been written down, so
that nobody takes the slot who does not know.

A pass that is not let in does not wait here. While there is one, a thread follows the group (and what the
canaries report), takes the slot for it when it can be had, and only then wakes it: a free slot does not set
the whole fleet to rendering. A slot that is taken so and not claimed runs out with its lease.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from etcd_agent import rollout_rules as rules
from etcd_agent.errors import AgentError, ConfigError, HealthError, ReloadError, StoreError
from etcd_agent.loop import backoff_s
from etcd_agent.report import SENSITIVE, check_prefixes, host_key, parse, resource_key
from etcd_agent.rollout_rules import Canary, Failure, Halt, Obstacle, Paths, Situation, Slot, Take, Wait
from etcd_agent.values import ROLLED_BACK, AgentConfig, Gate, Outcome, Resource, Retry
from etcd_client import (
    Client,
    Compacted,
    EtcdError,
    EventKind,
    Follow,
    FutureRevision,
    KeyValue,
    Lease,
    Listing,
    NotFound,
    RangeResult,
    WatchBatch,
    compare,
    ops,
)

logger = logging.getLogger(__name__)

SPREAD_S = 0.2
LOOK_AGAIN_S = 60.0
_RANGES = 50  # two reads each; etcd takes 128 operations in a transaction
_RETRY = Retry(backoff_s=0.5, max_backoff_s=15.0)


def open_gate(config: AgentConfig, client: Client, wake: Callable[[str], None]) -> Gate:
    """The gate of a configuration that has a group. ``wake(resource)`` starts a pass that had to wait.

    Raises ConfigError for what cannot work: a prefix that is watched, canaries that nobody hears of.
    """
    check_prefixes(config)
    if config.rollout.canary and not config.report.enabled:
        raise ConfigError(
            f"{config.source}: rollout.canary needs [report] enabled = true: others learn from it that the "
            f"canaries have applied a change"
        )
    return FleetGate(config, client, wake)


def halt_group(client: Client, paths: Paths, *, by: str, reason: str, now: float) -> None:
    """Let nobody of the group begin to change, until ``resume_group``. Raises EtcdError."""
    halt = Halt(host=by, error=reason, at=round(now, 3))
    client.put(paths.halt, rules.dump(halt))


def resume_group(client: Client, paths: Paths) -> bool:
    """Let the group go on and forget who went back; whether it was halted. Raises EtcdError."""
    forgotten = [ops.delete(paths.halt), ops.delete_prefix(paths.failures)]
    done = client.txn(success=[ops.get(paths.halt), *forgotten])
    return any(isinstance(each, RangeResult) and each.kvs for each in done.responses)


@dataclass(slots=True)
class _Hold:
    """A slot of this host. ``users``: the passes that change under it, with the change that they bring."""

    index: int
    lease: Lease
    users: dict[str, _Change] = field(default_factory=dict)
    claimed: bool = False

    @property
    def lost(self) -> bool:
        return self.lease.lost.is_set()


@dataclass(frozen=True, slots=True)
class _Change:
    """What a pass would apply: the resource, the revision that it has read, the name of what it has read.

    The name is "" when nobody can say any more what the keys were then.
    """

    resource: Resource
    revision: int
    name: str = ""


class FleetGate:
    """See the module. One lock: a host asks for one thing at a time, and so never takes two slots for one."""

    def __init__(
        self,
        config: AgentConfig,
        client: Client,
        wake: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.time,
        spread_s: float = SPREAD_S,
    ) -> None:
        self._client = client
        self._wake = wake
        self._clock = clock
        self._spread_s = spread_s
        self._host = config.host_id
        self._report_prefix = config.report.prefix
        self._canary = config.rollout.canary
        self._paths = Paths(config.rollout.prefix, config.rollout.group)
        self._lock = threading.RLock()
        self._holds: list[_Hold] = []
        self._waiting: dict[str, tuple[_Change, Obstacle]] = {}
        self._unrecorded: list[tuple[Failure, Resource]] = []
        self._look = threading.Event()
        self._closed = threading.Event()
        self._worker: threading.Thread | None = None

    # What passes call.

    def acquire(self, resource: Resource, revision: int) -> str | None:
        with self._lock:
            try:
                change = self._named(_Change(resource, revision))
                obtained = self._obtain(change)
            except EtcdError as error:
                raise StoreError(f"rollout: {error}") from error
            if isinstance(obtained, Wait):
                self._waiting[resource.name] = (change, obtained.obstacle)
                self._watch()
                return obtained.reason
            self._waiting.pop(resource.name, None)
            self._claim(obtained, change)
            return None

    def release(self, resource: Resource, outcome: Outcome | AgentError) -> None:
        with self._lock:
            self._waiting.pop(resource.name, None)
            for hold in self._holds:
                change = hold.users.pop(resource.name, None)
                if change is None:
                    continue
                if hold.lost:
                    logger.error(
                        "%s: slot %d of group %s was lost while this host changed; another host may have "
                        "changed at the same time",
                        resource.name,
                        hold.index,
                        self._paths.group,
                    )
                self._note_failure(change, outcome)
            self._finish()
            if self._unrecorded:
                self._watch()

    def close(self) -> None:
        self._closed.set()
        self._look.set()
        with self._lock:
            for hold in [each for each in self._holds if not each.users]:
                self._drop(hold)

    # Taking a slot. With the lock; raises EtcdError.

    def _obtain(self, change: _Change) -> _Hold | Wait:
        """Look, decide, take: a slot of this host for the change, not yet in use by it."""
        rollout = change.resource.rollout
        hold = self._usable_hold(rollout.max_concurrent)
        situation, halt_revision = self._situation(change)
        decision = rules.decide(
            situation,
            max_concurrent=rollout.max_concurrent,
            max_failures=rollout.max_failures,
            first=zlib.crc32(self._host.encode()) % rollout.max_concurrent,
            has_slot=hold is not None,
        )
        if isinstance(decision, Take) and hold is None:
            return self._take(decision, change, halt_revision)
        if isinstance(decision, Wait):
            if hold is not None and not hold.users:
                self._drop(hold)
            return decision
        assert hold is not None
        return hold

    def _usable_hold(self, max_concurrent: int) -> _Hold | None:
        """A slot that this host has already, after making sure of it."""
        for hold in [each for each in self._holds if each.index < max_concurrent]:
            try:
                if not hold.lost:
                    hold.lease.keep_alive_once()
                    return hold
            except NotFound:
                logger.info("slot %d of group %s has run out", hold.index, self._paths.group)
            if not hold.users:
                self._holds.remove(hold)
        return None

    def _claim(self, hold: _Hold, change: _Change) -> None:
        hold.users[change.resource.name] = change
        if not hold.claimed:
            hold.claimed = True
            hold.lease.keep_alive(on_lost=lambda: self._say_lost(hold))

    def _say_lost(self, hold: _Hold) -> None:
        logger.error(
            "slot %d of group %s is lost: its lease could not be renewed; %s",
            hold.index,
            self._paths.group,
            f"in work: {', '.join(list(hold.users))}" if hold.users else "nothing is in work",
        )

    def _take(self, decision: Take, change: _Change, halt_revision: int) -> _Hold | Wait:
        lease = self._client.lease(max(1, round(change.resource.rollout.lease_ttl_s)))
        try:
            index = self._try(decision, change, lease.lease_id, halt_revision)
        except EtcdError:
            self._revoke(lease)
            raise
        if index is None:
            self._revoke(lease)
            return Wait(Obstacle.SLOT, "slot: taken by others a moment ago")
        hold = _Hold(index, lease)
        self._holds.append(hold)
        logger.info("%s: took slot %d of group %s", change.resource.name, index, self._paths.group)
        return hold

    def _try(self, take: Take, change: _Change, lease_id: int, halt_revision: int) -> int | None:
        since = round(self._clock(), 3)
        value = rules.dump(Slot(self._host, change.resource.name, change.revision, since))
        for index in take.indexes:
            key = self._paths.slot(index)
            conditions = [
                compare.create_revision(key) == 0,
                compare.mod_revision(self._paths.halt) == halt_revision,
            ]
            if self._client.txn(conditions, [ops.put(key, value, lease=lease_id)]).succeeded:
                return index
        return None

    # Looking.

    def _situation(self, change: _Change) -> tuple[Situation, int]:
        """The group as it is now, and the revision of its halt key (0: there is none)."""
        resource = change.resource
        canaries = rules.limits(resource.rollout, self._host)
        reports = [ops.get(resource_key(self._report_prefix, host, resource.name)) for host in canaries]
        group = ops.get_prefix(self._paths.top)
        _, (group_kvs, *canary_kvs) = self._read([group, *reports])
        entries = {kv.key.decode("utf-8", "replace"): kv for kv in group_kvs}
        halt_kv = entries.get(self._paths.halt)
        halt = self._halt_in_force([halt_kv] if halt_kv else [])
        values = {key: kv.value for key, kv in entries.items()}
        failures = rules.parse_failures(self._paths, values)
        situation = Situation(
            slots=rules.parse_slots(self._paths, values),
            halt=halt,
            canaries=[
                self._canary_seen(host, kvs, change) for host, kvs in zip(canaries, canary_kvs, strict=True)
            ],
            failures=[
                each for each in rules.failures_of(failures, change.name) if each.resource == resource.name
            ],
            behind=not change.name,
        )
        return situation, halt_kv.mod_revision if halt_kv and halt else 0

    def _canary_seen(self, host: str, kvs: Sequence[KeyValue], change: _Change) -> Canary:
        document = parse(kvs[0].value) if kvs else {}
        applied = rules.applied_revision(document)
        done = applied is not None and self._same(change, applied)
        return Canary(host, str(document.get("state", "")), done)

    def _halt_in_force(self, kvs: Sequence[KeyValue]) -> Halt | None:
        """The halt; None, and the key is gone, if a key of the resource has changed since."""
        if not kvs:
            return None
        halt = rules.parse_halt(kvs[0].value)
        if halt.by == rules.By.AGENT and self._name_of(halt.ranges, 0) != halt.change:
            key = self._paths.halt
            self._client.txn([compare.mod_revision(key) == kvs[0].mod_revision], [ops.delete(key)])
            logger.info("group %s: %s; a key has changed since, going on", self._paths.group, halt.reason)
            return None
        return halt

    def _named(self, change: _Change) -> _Change:
        """The change with its name; without, if its keys are older than the history and no longer so."""
        ranges = change.resource.ranges
        try:
            return replace(change, name=self._name_of(ranges, change.revision))
        except Compacted:
            kvs = self._keys(ranges, 0)
            newer = any(kv.mod_revision > change.revision for kv in kvs)
            return change if newer else replace(change, name=_name(kvs))

    def _same(self, change: _Change, applied: int) -> bool:
        """Whether what was applied at that revision is this change: the same keys, none newer or older.

        Where history is compacted deletions can no longer be seen, and what is left decides.
        """
        try:
            return self._name_of(change.resource.ranges, applied) == change.name
        except FutureRevision:
            return False
        except Compacted:
            kvs = self._keys(change.resource.ranges, 0)
            return _name(kvs) == change.name and all(kv.mod_revision <= applied for kv in kvs)

    def _name_of(self, ranges: Sequence[str], revision: int) -> str:
        return _name(self._keys(ranges, revision))

    def _keys(self, ranges: Sequence[str], revision: int) -> list[KeyValue]:
        """The keys of some subtrees at a revision (0: now), without values."""
        found: list[KeyValue] = []
        for first in range(0, len(ranges), _RANGES):
            reads: list[ops.Operation] = []
            for top in ranges[first : first + _RANGES]:
                reads.append(ops.get_prefix(f"{top}/", keys_only=True, revision=revision))
                if top:
                    reads.append(ops.get(top, keys_only=True, revision=revision))
            read_at, parts = self._read(reads)
            revision = revision or read_at
            found += [kv for kvs in parts for kv in kvs]
        return found

    def _read(self, reads: Sequence[ops.Operation]) -> tuple[int, list[Sequence[KeyValue]]]:
        """Several reads at one revision, which comes first."""
        done = self._client.txn(success=reads)
        return done.revision, [each.kvs for each in done.responses if isinstance(each, RangeResult)]

    # After a pass.

    def _note_failure(self, change: _Change, outcome: Outcome | AgentError) -> None:
        if isinstance(outcome, Outcome):
            error = outcome.error if outcome.kind == ROLLED_BACK else None
        else:
            # Other errors, a busy service among them, leave the old files in force as they were.
            error = str(outcome) if type(outcome) in (ReloadError, HealthError) else None
        if error is None:
            return
        text = " ".join(error.split())[: rules.MAX_ERROR]
        if any(template.sensitive for template in change.resource.templates):
            text = SENSITIVE
        failure = Failure(
            self._host, change.resource.name, change.revision, change.name, text, round(self._clock(), 3)
        )
        self._unrecorded.append((failure, change.resource))

    def _finish(self) -> bool:
        """Write down what went back, then free the slots that nobody uses; whether all of it is done."""
        try:
            while self._unrecorded:
                self._record(*self._unrecorded[0])
                del self._unrecorded[0]
        except EtcdError as error:
            logger.warning("rollout: %s; the slot is kept until the rollback is written down", error)
            return False
        for hold in [each for each in self._holds if each.claimed and not each.users]:
            self._drop(hold)
        return True

    def _record(self, failure: Failure, resource: Resource) -> None:
        """Add a rollback to those of the group, and halt it if they are too many."""
        paths = self._paths
        done = self._client.txn(
            success=[
                ops.put(paths.failure(failure.resource, failure.host), rules.dump(failure)),
                ops.get_prefix(paths.failures_of(failure.resource)),
                ops.get(paths.halt),
            ]
        )
        found = [each.kvs for each in done.responses if isinstance(each, RangeResult)]
        failures = [rules.parse_failure(kv.value) for kv in found[0]]
        stale = [
            ops.delete(kv.key)
            for kv, each in zip(found[0], failures, strict=True)
            if each.change != failure.change
        ]
        if stale:
            self._client.txn(success=stale[:100])
        halted = rules.parse_halt(found[1][0].value) if found[1] else None
        if halted is not None and (halted.by != rules.By.AGENT or halted.change == failure.change):
            return
        if len(rules.failures_of(failures, failure.change)) <= resource.rollout.max_failures:
            return
        halt = Halt(
            by=rules.By.AGENT,
            host=failure.host,
            resource=failure.resource,
            revision=failure.revision,
            change=failure.change,
            ranges=resource.ranges,
            error=failure.error,
            at=failure.at,
        )
        seen = found[1][0].mod_revision if found[1] else 0
        condition = compare.mod_revision(paths.halt) == seen
        self._client.txn([condition], [ops.put(paths.halt, rules.dump(halt))])
        logger.error("group %s is %s", paths.group, halt.reason)

    def _drop(self, hold: _Hold) -> None:
        """Give a slot back. If the store does not hear of it, the lease frees it."""
        self._holds.remove(hold)
        self._revoke(hold.lease)

    def _revoke(self, lease: Lease) -> None:
        try:
            lease.revoke()
        except NotFound:
            logger.debug("lease %x has run out already", lease.lease_id)
        except EtcdError as error:
            logger.warning("rollout: %s; the slot is free again in %d s", error, lease.ttl_s)

    # Waiting for others.

    def _watch(self) -> None:
        """Have the worker look; with the lock."""
        self._look.set()
        if self._worker is None and not self._closed.is_set():
            self._worker = threading.Thread(
                target=self._run, name=f"rollout {self._paths.group}", daemon=True
            )
            self._worker.start()

    def _run(self) -> None:
        """Looks whenever something has changed, until nobody waits and nothing is left to write down."""
        prefixes = [self._paths.top]
        for host in self._canary:
            if host != self._host:
                prefixes.append(f"{host_key(self._report_prefix, host)}/")
        followers = [_Follower(self._client, prefix, self._look) for prefix in prefixes]
        failures = 0
        while not self._closed.is_set():
            self._look.wait(LOOK_AGAIN_S)
            self._look.clear()
            # All who wait see a slot become free at once; most of them then see that it is taken again.
            self._closed.wait(random.random() * self._spread_s)
            try:
                woken, idle = self._turn(followers[0])
                failures = 0
            except Exception as error:  # whatever it is, those who wait must not be forgotten
                failures += 1
                if not isinstance(error, EtcdError):
                    logger.exception("rollout: unexpected")
                logger.log(logging.DEBUG if failures > 1 else logging.WARNING, "rollout: %s", error)
                self._closed.wait(backoff_s(_RETRY, failures, random.random))
                self._look.set()
                continue
            for name in woken:
                self._wake(name)
            if idle:
                break
        for follower in followers:
            follower.stop()

    def _turn(self, group: _Follower) -> tuple[list[str], bool]:
        """One look: the resources to wake, and whether the worker may end."""
        with self._lock:
            if not self._finish():
                self._look.set()
            woken = []
            for name, (change, obstacle) in list(self._waiting.items()):
                if obstacle is Obstacle.SLOT and group.is_full(self._paths, change.resource):
                    continue
                obtained = self._obtain(change)
                if not isinstance(obtained, Wait):
                    del self._waiting[name]
                    woken.append(name)
                elif obtained.obstacle is not obstacle:
                    self._waiting[name] = (change, obtained.obstacle)
                    woken.append(name)  # to say so
            idle = not self._waiting and not self._unrecorded
            if idle:
                self._worker = None
            return woken, idle


def _name(kvs: Iterable[KeyValue]) -> str:
    return rules.change_id((kv.key, kv.mod_revision) for kv in kvs)


class _Follower(threading.Thread):
    """The names of the keys under a prefix, and a flag that is set whenever one may have changed."""

    def __init__(self, client: Client, prefix: str, look: threading.Event) -> None:
        super().__init__(name=f"follow {prefix}", daemon=True)
        self._prefix = prefix
        self._look = look
        self._keys: set[bytes] | None = None
        self._stopping = threading.Event()
        self._follow = Follow(client, prefix)
        self.start()

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                for item in self._follow:
                    failures = 0
                    self._take(item)
                    self._look.set()
                return
            except EtcdError as error:
                failures += 1
                logger.debug("follow %s: %s", self._prefix, error)
                self._stopping.wait(backoff_s(_RETRY, failures, random.random))

    def _take(self, item: Listing | WatchBatch) -> None:
        if isinstance(item, Listing):
            self._keys = {kv.key for kv in item.kvs}
            return
        keys = set(self._keys or ())
        for event in item.events:
            if event.kind is EventKind.PUT:
                keys.add(event.kv.key)
            else:
                keys.discard(event.kv.key)
        self._keys = keys

    def is_full(self, paths: Paths, resource: Resource) -> bool:
        """Whether every slot is taken and nothing else has been said, as far as this one has heard."""
        keys = self._keys
        if keys is None or paths.halt.encode() in keys:
            return False
        slots: Iterable[bytes] = (key for key in keys if key.startswith(paths.slots.encode()))
        return sum(1 for _ in slots) >= resource.rollout.max_concurrent

    def stop(self) -> None:
        self._stopping.set()
        self._follow.cancel()
