"""The two threads beside the loop: one appends to the raft log, one keeps the files small and watches the
device.

They own no state of the member. What they have done, or met, they tell the loop through `post`, which wakes
it: one of the four kinds of news below.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from etcd_server.raft.messages import Entry, HardState, Ready
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.errors import DiskFull
from etcd_server.storage.maintenance import StateMaintenance
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.reserve import Reserve

RETRY_FULL_DISK_S = 0.5
QUICK_S = 0.001
KEEPER_INTERVAL_S = 1.0
CHECKPOINT_INTERVAL_S = 30.0
RELEASE_PAGES = 256
LOWEST_ROOM_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Persisted:
    """Every Ready up to `number` is on disk."""

    number: int


@dataclass(frozen=True, slots=True)
class Durable:
    """A synced checkpoint of the state holds everything up to `applied_index`; its journal may begin
    again."""

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
    """Appends to the raft log in a thread of its own; whatever has gathered goes into one synced
    transaction."""

    def __init__(self, raft_log: RaftLog, post: Post, observe_s: Callable[[float], None]) -> None:
        self._log = raft_log
        self._post = post
        self._observe_s = observe_s
        self._queue: queue.SimpleQueue[Sequence[Ready] | None] = queue.SimpleQueue()
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._typical_s = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def append(self, readies: Sequence[Ready], *, alone: bool) -> int:
        """Have these written: returns the number of the last when it is on disk already, otherwise 0, and
        `Persisted` is posted when they are.

        alone: nobody but the one who asked for this waits for anything. Then, and only while the disk has
        been quick, the write is made here and now: two threads that hand over to each other would cost a
        single client as much again as half of the sync.
        """
        if alone and self._is_idle.is_set() and self._typical_s < QUICK_S:
            return self._write(readies, patient=False)
        self._is_idle.clear()
        self._queue.put(readies)
        return 0

    def close(self, timeout_s: float) -> None:
        """Write what has been handed over, unless the disk is full, and end the thread."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while (readies := self._queue.get()) is not None:
                gathered = list(readies)
                while not self._queue.empty() and (more := self._queue.get()) is not None:
                    gathered.extend(more)
                if number := self._write(gathered, patient=True):
                    self._post(Persisted(number))
                if self._queue.empty():
                    self._is_idle.set()
        except BaseException as error:  # the loop ends the process with it
            self._post(Failed(error))

    def _write(self, readies: Sequence[Ready], *, patient: bool) -> int:
        """Append to the log; the number of the last Ready. On a full disk: wait for room, until the member
        stops (0); if not `patient`, leave that to the thread (0)."""
        hard_state = next((r.hard_state for r in reversed(readies) if r.hard_state is not None), None)
        entries = [entry for ready in readies for entry in ready.entries]
        begun_s = time.monotonic()
        try:
            self._log.append(hard_state, entries)
        except DiskFull:
            self._post(DiskState("log", full=True))
            if not patient:
                self._is_idle.clear()
                self._queue.put(readies)
                return 0
            if not self._append_when_there_is_room(hard_state, entries):
                return 0
        took_s = time.monotonic() - begun_s
        self._typical_s += (took_s - self._typical_s) / 8
        self._observe_s(took_s)
        return readies[-1].number

    def _append_when_there_is_room(self, hard_state: HardState | None, entries: Sequence[Entry]) -> bool:
        while not self._stopping.wait(RETRY_FULL_DISK_S):
            with suppress(DiskFull):
                self._log.append(hard_state, entries)
                self._post(DiskState("log", full=False))
                return True
        return False


class Keeper:
    """Checkpoints, cuts the log, gives space back and watches the room on the device, in a thread of its
    own."""

    def __init__(self, directory: DataDirectory, reserve: Reserve, raft_log: RaftLog, post: Post) -> None:
        self._directory = directory
        self._reserve = reserve
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
            self._reserve.take()

    def _report(self, *, full: bool) -> None:
        if full != self._full:
            self._full = full
            self._post(DiskState("device", full=full))
