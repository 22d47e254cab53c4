"""The shell round one member: real clock, threads, signals, sockets. It decides nothing.

Three threads. The loop (the main thread) owns the engine, the state database and the transport: it waits for
events, calls `engine.handle`, performs the effects. The log writer appends to the raft log, synced, so that
the loop never waits for a disk. The keeper makes checkpoints, gives space back and watches how full the disk
is. Both report through `Transport.post`, which wakes the loop.

A failed sync ends the process: what is on disk is then not known, and only a restart reads it anew. A full
disk does not: the append is tried again until there is room, and the engine refuses writes meanwhile. """

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

import sdnotify

from etcd_server.raft.messages import Entry, Ready
from etcd_server.services.engine import Engine
from etcd_server.services.events import Batch, Effects
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.errors import DiskFull
from etcd_server.storage.maintenance import StateMaintenance
from etcd_server.storage.raftlog import RaftLog
from etcd_server.transport.http import HttpFront
from etcd_server.transport.wire import Transport

log = logging.getLogger("etcd_server")

STOP_GRACE_S = 5.0
RETRY_FULL_DISK_S = 0.5
KEEPER_INTERVAL_S = 1.0
CHECKPOINT_INTERVAL_S = 30.0
CHECKPOINT_SIZE_BYTES = 16 * 1024 * 1024
SHORT_REST_BYTES = 4 * 1024 * 1024
LONGEST_JOURNAL_BYTES = 256 * 1024 * 1024
RELEASE_PAGES = 256
LOWEST_ROOM_BYTES = 4 * 1024 * 1024
MOST_TICKS_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Persisted:
    """Every Ready up to `number` is on disk."""

    number: int


@dataclass(frozen=True, slots=True)
class Durable:
    """A synced checkpoint of the state holds everything up to `applied_index`; its journal may begin again."""

    applied_index: int
    left_size_bytes: int


@dataclass(frozen=True, slots=True)
class DiskState:
    """What a thread has found: there is no room, or there is again."""

    finder: str
    full: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """A thread met what ends the process."""

    error: BaseException


Post = Callable[[object], None]


class LogWriter:
    """Appends to the raft log in a thread of its own; whatever has gathered goes into one synced transaction."""

    def __init__(self, raft_log: RaftLog, post: Post, observe_s: Callable[[float], None]) -> None:
        self._log = raft_log
        self._post = post
        self._observe_s = observe_s
        self._queue: queue.SimpleQueue[Ready | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def append(self, ready: Ready) -> None:
        self._queue.put(ready)

    def close(self, timeout_s: float) -> None:
        """Write what has been handed over, unless the disk is full, and end the thread."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while True:
                items = [self._queue.get()]
                while not self._queue.empty():
                    items.append(self._queue.get())
                self._write([item for item in items if item is not None])
                if None in items:
                    return
        except BaseException as error:  # the loop ends the process with it
            self._post(Failed(error))

    def _write(self, readies: Sequence[Ready]) -> None:
        if not readies:
            return
        hard_state = next((r.hard_state for r in reversed(readies) if r.hard_state is not None), None)
        entries: list[Entry] = []
        for ready in readies:
            if ready.entries and entries:
                # A later Ready may replace the end of an earlier one that is not on disk yet.
                del entries[max(0, ready.entries[0].index - entries[0].index) :]
            entries.extend(ready.entries)
        full = False
        begun_s = time.monotonic()
        while True:
            try:
                self._log.append(hard_state, entries)
                break
            except DiskFull:
                full = True
                self._post(DiskState("log", full=True))
                if self._stopping.wait(RETRY_FULL_DISK_S):
                    return
        self._observe_s(time.monotonic() - begun_s)
        if full:
            self._post(DiskState("log", full=False))
        self._post(Persisted(readies[-1].number))


class Keeper:
    """Checkpoints, cuts the log, gives space back and watches the room on the device, in a thread of its own."""

    def __init__(self, directory: DataDirectory, raft_log: RaftLog, post: Post) -> None:
        self._directory = directory
        self._log = raft_log
        self._post = post
        self._cut_to = 0
        self._wake = threading.Event()
        self._checkpoint_wanted = False
        self._stopping = False
        self._full = False
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def checkpoint(self) -> None:
        self._checkpoint_wanted = True
        self._wake.set()

    def cut(self, index: int) -> None:
        self._cut_to = max(self._cut_to, index)
        self._wake.set()

    def close(self, timeout_s: float) -> None:
        """A last checkpoint, so that the next start has little to replay; then the thread ends."""
        self._checkpoint_wanted = self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            state = StateMaintenance.open(self._directory.state_path)
            checked_s = time.monotonic()
            while not self._stopping:
                self._wake.wait(KEEPER_INTERVAL_S)
                self._wake.clear()
                self._watch_room()
                now = time.monotonic()
                try:
                    if self._checkpoint_wanted or now - checked_s >= CHECKPOINT_INTERVAL_S:
                        self._checkpoint_wanted = False
                        checked_s = now
                        done = state.checkpoint()
                        self._post(Durable(done.applied_index, done.left_size_bytes))
                    self._keep_log()
                except DiskFull:
                    self._report(full=True)
            state.close()
        except BaseException as error:  # the loop ends the process with it
            self._post(Failed(error))

    def _keep_log(self) -> None:
        if self._cut_to >= self._log.first_index():
            self._log.cut(self._cut_to)
        if self._log.checkpoint_is_due or self._stopping:
            self._log.checkpoint()
            self._log.release_space(RELEASE_PAGES)

    def _watch_room(self) -> None:
        free_bytes = self._directory.free_size_bytes()
        if free_bytes < LOWEST_ROOM_BYTES:
            self._report(full=True)
        elif free_bytes >= 2 * LOWEST_ROOM_BYTES:
            self._report(full=False)

    def _report(self, *, full: bool) -> None:
        if full != self._full:
            self._full = full
            self._post(DiskState("device", full=full))


class Systemd:
    """What systemd is told. Without systemd every call is nothing (no NOTIFY_SOCKET)."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._interval_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6 if for_us else 0.0
        self._pinged_s = 0.0
        self._status = ""

    def tell(self, state: str) -> None:
        # sdnotify encodes latin-1 and loses a message that it cannot encode.
        self._notifier.notify(state.encode("ascii", "replace").decode())

    def status(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self.tell(f"STATUS={text}")

    def ping(self, now: float) -> None:
        """The loop is alive: called from each turn, told at half the watchdog's time."""
        if self._interval_s and now - self._pinged_s >= self._interval_s:
            self._pinged_s = now
            self.tell("WATCHDOG=1")


class Loop:
    """The main thread: gather, handle, perform, until told to stop."""

    def __init__(
        self,
        *,
        engine: Engine,
        transport: Transport,
        front: HttpFront,
        database: StateDatabase,
        writer: LogWriter,
        keeper: Keeper,
        on_ready: Callable[[], None],
        on_reload: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._front = front
        self._database = database
        self._writer = writer
        self._keeper = keeper
        self._on_ready = on_ready
        self._on_reload = on_reload
        self._systemd = Systemd()
        self._full: set[str] = set()
        self._signals: list[int] = []
        self._rest_is_short = False
        self._tick_s = engine.settings.heartbeat_interval_s

    def catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def run(self) -> int:
        """Serve until a signal comes; returns the exit status."""
        engine, transport, front = self._engine, self._transport, self._front
        ready = more_work = False
        last_tick_s = time.monotonic()
        while True:
            wait_s = 0.0 if more_work else max(0.0, last_tick_s + self._tick_s - time.monotonic())
            batch, posted, http = transport.gather(wait_s)
            now = time.monotonic()
            for news in posted:
                self._take(news, batch)
            for event in http:
                front.take(event, batch, now)
            passed = int((now - last_tick_s) / self._tick_s)
            if passed:
                batch.ticks = min(passed, MOST_TICKS_AT_ONCE)
                last_tick_s += passed * self._tick_s
                front.tick(batch, now)
                self._systemd.ping(now)
                if self._signals and not self._heed(self._signals.pop(0)):
                    return self._stop()
            effects = engine.handle(batch, now)
            self._perform(effects)
            more_work = effects.more_work
            if not ready and engine.is_ready:
                ready = True
                self._on_ready()
                self._systemd.tell("READY=1")
            if passed:
                self._systemd.status(self._describe(ready))

    def _take(self, news: object, batch: Batch) -> None:
        match news:
            case Persisted(number):
                batch.persisted = max(batch.persisted, number)
            case Durable(applied_index, left_size_bytes):
                batch.durable_index = applied_index
                self._rest_is_short = left_size_bytes <= SHORT_REST_BYTES
            case DiskState(finder, full):
                (self._full.add if full else self._full.discard)(finder)
                batch.disk_full = bool(self._full)
                log.warning(
                    "no space left for writes; they are refused until there is room"
                    if full
                    else "there is room again; writes are taken"
                )
            case Failed(error):
                raise error

    def _perform(self, effects: Effects) -> None:
        for ready in effects.persist:
            self._writer.append(ready)
        self._transport.perform(effects)
        if effects.cut_log_to:
            self._keeper.cut(effects.cut_log_to)
        if effects.committed:
            self._tend_journal()

    def _tend_journal(self) -> None:
        """The state was committed just now. Copying its journal into the file is the keeper's work; that the
        journal begins again is done here, when little is left to copy or when it has become too long to wait."""
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

    def _describe(self, ready: bool) -> str:
        core, machine = self._engine.core, self._engine.machine
        if self._full:
            return f"disk full: writes are refused, reads go on (revision {machine.revision})"
        if not ready:
            return "starting: waiting for a leader"
        role = "leader" if core.is_leader else "follower"
        return f"{role} of term {core.header.term}, revision {machine.revision}"

    def _stop(self) -> int:
        """Take nothing new, answer what is under way, tell those who stay, leave the disk tidy."""
        self._systemd.tell("STOPPING=1")
        self._transport.stop_accepting()
        deadline_s = time.monotonic() + STOP_GRACE_S
        while len(self._engine.core.proposals) and not self._full and time.monotonic() < deadline_s:
            batch, posted, _ = self._transport.gather(self._tick_s)
            for news in posted:
                self._take(news, batch)
            self._perform(self._engine.handle(batch, time.monotonic()))
        self._transport.perform(self._engine.stop())
        self._writer.close(STOP_GRACE_S)
        self._keeper.close(STOP_GRACE_S)
        self._transport.close(STOP_GRACE_S)
        return 0


def tune_interpreter() -> None:
    """Garbage that refers to itself is rare here, so the collector may look for it rarely; what exists at the
    start stays, so it need not be looked through. Threads hand the interpreter over sooner than by default:
    the log writer holds it for microseconds, and its latency is that of a put."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    sys.setswitchinterval(0.0005)
