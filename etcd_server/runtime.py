"""The shell round one member: real clock, threads, signals, sockets. It decides nothing.

Three threads. The loop (the main thread) owns the engine, the state database and the transport: it waits for
events, calls `engine.handle`, performs the effects. The log writer appends to the raft log, synced, so that
the loop never waits for a disk. The keeper makes checkpoints, gives space back and watches how full the disk
is. Both report through `Transport.post`, which wakes the loop.

A failed sync ends the process: what is on disk is then not known, and only a restart reads it anew. A full
disk does not: the append is tried again until there is room, and the engine refuses writes meanwhile. A
member that starts on a full disk serves what it can: reads.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from etcd_server.exchange import Exchange
from etcd_server.services.engine import Engine
from etcd_server.services.events import Batch, Effects
from etcd_server.storage.database import StateDatabase
from etcd_server.systemd import Systemd
from etcd_server.transport.http import HttpFront
from etcd_server.transport.peers import Links
from etcd_server.transport.snapshot_files import Copied, LookedInto
from etcd_server.transport.wire import Transport
from etcd_server.workers import DiskState, Durable, Failed, Keeper, LogWriter, Persisted

log = logging.getLogger("etcd_server")

STOP_GRACE_S = 5.0
# How long those may take who call while the member stops: long enough to hear that it does.
FAREWELL_S = 1.0
# How long a member that was removed waits to be told so by another.
LONGEST_FAREWELL_S = 60.0
LONGEST_WAIT_S = 0.5
CHECKPOINT_SIZE_BYTES = 16 * 1024 * 1024
SHORT_REST_BYTES = 4 * 1024 * 1024
LONGEST_JOURNAL_BYTES = 256 * 1024 * 1024
MOST_TICKS_AT_ONCE = 100
# How often round trips to other members are noted, and systemd is asked for more time.
OBSERVE_INTERVAL_S = 1.0
LITTLE_BYTES = 2048
PATIENCE_S = 30.0


class Loop:
    """The main thread: gather, handle, perform, until told to stop."""

    def __init__(
        self,
        *,
        engine: Engine,
        transport: Transport,
        front: HttpFront,
        links: Links,
        exchange: Exchange,
        database: StateDatabase,
        writer: LogWriter,
        keeper: Keeper,
        on_ready: Callable[[], None],
        on_removed: Callable[[], None],
        on_reload: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._front = front
        self._links = links
        self._exchange = exchange
        self._database = database
        self._writer = writer
        self._keeper = keeper
        self._on_ready = on_ready
        self._on_removed = on_removed
        self._on_reload = on_reload
        self._systemd = Systemd()
        self._full: set[str] = set()
        self._signals: list[int] = []
        self._rest_is_short = False
        self._is_ready = False
        self._observed_s = 0.0
        self._removed_s: float | None = None
        self._told_removed_s: float | None = None
        self._tick_s = engine.settings.heartbeat_interval_s
        self._last_tick_s = 0.0
        self._again_within_s = 0.0

    def catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def run(self) -> int:
        """Serve until a signal comes; returns the exit status."""
        engine, transport = self._engine, self._transport
        now = time.monotonic()
        self._last_tick_s = now - self._tick_s
        # Before anybody is listened to: apply what is known to be committed, the members above all.
        self._perform(engine.handle(Batch(), now))
        self._links.follow_members()
        while True:
            until_tick_s = max(0.0, self._last_tick_s + self._tick_s - time.monotonic())
            batch, now = self._gather(min(until_tick_s, self._again_within_s, LONGEST_WAIT_S))
            effects = engine.handle(batch, now)
            self._perform(effects, alone=self._is_alone(effects))
            if engine.core.state_full != ("state" in self._full):
                self._take_disk_state("state", engine.core.state_full)
            if self._signals and not self._heed(self._signals.pop(0)):
                return self._stop()
            if not transport.is_serving and (engine.is_ready or "log" in self._full):
                transport.is_serving = True
                self._again_within_s = 0.0
                self._systemd.tell("READY=1")
            if not self._is_ready and engine.is_ready:
                self._is_ready = True
                self._on_ready()
            if batch.ticks:
                self._look_around(now)
                if self._is_to_leave(now):
                    self._on_removed()
                    return self._stop()

    def _is_alone(self, effects: Effects) -> bool:
        """Whether one client waits and nobody else: its call is the only one here, or, at another member,
        what is to be written is as little as one client's."""
        open_calls = self._transport.open_calls
        if open_calls or not effects.persist:
            return open_calls == 1
        return sum(len(entry.data) for ready in effects.persist for entry in ready.entries) <= LITTLE_BYTES

    def _gather(self, wait_s: float) -> tuple[Batch, float]:
        """Wait for something to do: the turn's batch, and its time."""
        batch, posted, http = self._transport.gather(wait_s)
        now = time.monotonic()
        batch.unix_time_s = int(time.time())
        for news in posted:
            self._take(news, batch)
        for event in http:
            self._front.take(event, batch, now)
        passed = int((now - self._last_tick_s) / self._tick_s)
        if passed:
            batch.ticks = min(passed, MOST_TICKS_AT_ONCE)
            self._last_tick_s += passed * self._tick_s
            self._front.tick(batch, now)
        return batch, now

    def _look_around(self, now: float) -> None:
        """With each tick: tell systemd how things are, and note how far the other members are."""
        self._systemd.ping(now)
        self._systemd.status(self._describe())
        if now - self._observed_s >= OBSERVE_INTERVAL_S:
            self._observed_s = now
            self._links.observe()
            if not self._transport.is_serving:
                self._systemd.extend_timeout(PATIENCE_S)

    def _is_to_leave(self, now: float) -> bool:
        """Whether the member has been removed from the cluster and another member knows it, too.

        One that ends as soon as it has applied its own removal (etcd waits for a second) may leave others
        that do not know yet that the change is committed, and cannot lead without its vote. Whoever knows
        refuses the links of the removed; that is waited for, within reason.
        """
        engine, links = self._engine, self._links
        if links.is_removed:
            self._told_removed_s = now if self._told_removed_s is None else self._told_removed_s
            return now - self._told_removed_s >= FAREWELL_S
        if not engine.machine.members.is_removed(engine.settings.member_id):
            return False
        self._removed_s = now if self._removed_s is None else self._removed_s
        return now - self._removed_s >= LONGEST_FAREWELL_S

    def _take(self, news: object, batch: Batch) -> None:
        match news:
            case Persisted(number):
                batch.persisted = max(batch.persisted, number)
            case Durable(applied_index, left_size_bytes):
                batch.durable_index = applied_index
                self._rest_is_short = left_size_bytes <= SHORT_REST_BYTES
            case DiskState(finder, full):
                self._take_disk_state(finder, full)
                batch.disk_full = bool(self._full & {"device", "log"})
                batch.log_full = "log" in self._full
            case Copied() | LookedInto():
                self._exchange.take(news, batch)
            case Failed(error):
                raise error

    def _take_disk_state(self, finder: str, full: bool) -> None:
        was_full = bool(self._full)
        (self._full.add if full else self._full.discard)(finder)
        if self._full and not was_full:
            log.warning("no space left for writes; they are refused until there is room")
        elif was_full and not self._full:
            log.warning("there is room again; writes are taken")

    def _perform(self, effects: Effects, *, alone: bool = False) -> None:
        self._transport.speak(effects)
        self._again_within_s = 0.0 if effects.more_work else effects.again_within_s
        number = 0
        if effects.install is not None:
            self._exchange.install(effects.install, effects)
        elif effects.persist:
            number = self._writer.append(effects.persist, alone=alone)
        self._transport.perform(effects)
        self._exchange.perform(effects)
        if effects.members_changed:
            self._links.follow_members()
        if effects.checkpoint:
            self._keeper.checkpoint()
        if effects.cut_log_to:
            self._keeper.cut(effects.cut_log_to)
        if effects.committed:
            self._tend_journal()
        if number or effects.install is not None:
            news = Batch(persisted=number, restored=effects.install is not None)
            self._perform(self._engine.handle(news, time.monotonic()))

    def _tend_journal(self) -> None:
        """The state was committed just now. Copying its journal into the file is the keeper's work; that the
        journal begins again is done here, when little is left to copy or when it has become too long to
        wait."""
        journal_bytes = self._database.journal_size_bytes
        if self._rest_is_short or journal_bytes >= LONGEST_JOURNAL_BYTES:
            self._rest_is_short = False
            self._database.restart_journal()
        elif journal_bytes >= CHECKPOINT_SIZE_BYTES:
            self._keeper.checkpoint()

    def _heed(self, number: int) -> bool:
        """False: the signal says stop."""
        if number != signal.SIGHUP:
            log.info("received signal; shutting down", extra={"signal": signal.Signals(number).name})
            return False
        self._systemd.tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self._on_reload()
        self._systemd.tell("READY=1")
        return True

    def _describe(self) -> str:
        core, machine = self._engine.core, self._engine.machine
        if self._full:
            return f"disk full: writes are refused, reads go on (revision {machine.revision})"
        if not core.leader_id:
            reached, size = self._links.reached + 1, self._links.size + 1
            return "waiting for a leader" if size == 1 else f"waiting for quorum {reached}/{size}"
        if not self._is_ready:
            return "starting: catching up with the leader"
        role = "leader" if core.is_leader else "learner" if core.is_learner else "follower"
        return f"{role} of term {core.header.term}, revision {machine.revision}"

    def _stop(self) -> int:
        """Take nothing new, answer what is under way, tell those who stay, leave the disk tidy."""
        engine, transport = self._engine, self._transport
        self._systemd.tell("STOPPING=1")
        transport.stop_accepting()
        transport.is_serving = True
        self._hand_over()
        deadline_s = time.monotonic() + STOP_GRACE_S
        while len(engine.core.proposals) and not self._full and time.monotonic() < deadline_s:
            self._turn_away(self._tick_s)
        transport.perform(engine.stop())
        deadline_s = time.monotonic() + FAREWELL_S
        while transport.statistics()["streams_open"] and time.monotonic() < deadline_s:
            self._turn_away(FAREWELL_S / 20)
        transport.close(FAREWELL_S)
        self._writer.close(STOP_GRACE_S)
        self._exchange.close(STOP_GRACE_S)
        self._keeper.close(STOP_GRACE_S)
        return 0

    def _hand_over(self) -> None:
        """Let another member lead before this one goes, so that nobody has to wait for an election."""
        engine = self._engine
        if not engine.hand_over():
            return
        own_id = engine.settings.member_id
        deadline_s = time.monotonic() + engine.settings.election_timeout_s
        wait_s = 0.0
        while engine.core.leader_id in (0, own_id) and time.monotonic() < deadline_s:
            self._turn_away(wait_s)
            wait_s = self._tick_s
        if engine.core.leader_id in (0, own_id):
            log.warning("could not hand the leadership over in time")
        else:
            log.info("handed the leadership over", extra={"leader-id": f"{engine.core.leader_id:x}"})

    def _turn_away(self, wait_s: float) -> None:
        """A turn in which what is under way goes on, and whoever comes is told that the member stops."""
        batch, now = self._gather(wait_s)
        self._perform(self._engine.turn_away(batch, now))


def tune_interpreter() -> None:
    """Garbage that refers to itself is rare here, so the collector may look for it rarely; what exists at the
    start stays, so it need not be looked through. Threads hand the interpreter over sooner than by default:
    the log writer holds it for microseconds, and its latency is that of a put."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    sys.setswitchinterval(0.0005)
