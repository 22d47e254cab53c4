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
# Writes that make the store grow are refused below this much room: a share of the device within these bounds.
# What is left is for what makes room again, and for what is written between two looks.
LOWEST_ROOM_SHARE = 1 / 32
LOWEST_ROOM_BYTES = (4 * 1024 * 1024, 64 * 1024 * 1024)
CLOSE_LOOK_S = 0.1


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
        # Counted by the loop: what was given to the thread. By the thread: what it has dealt with.
        self._given = self._done = 0
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
        if alone and self._given == self._done and self._typical_s < QUICK_S:
            return self._write(readies, patient=False)
        self._give(readies)
        return 0

    def _give(self, readies: Sequence[Ready]) -> None:
        self._given += 1
        self._queue.put(readies)

    def close(self, timeout_s: float) -> None:
        """Write what has been handed over, unless the disk is full, and end the thread."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            over = False
            while not over:
                gathered: list[Ready] = []
                taken = [self._queue.get()]
                while not self._queue.empty():
                    taken.append(self._queue.get())
                for readies in taken:
                    over |= readies is None
                    gathered.extend(readies or ())
                if gathered and (number := self._write(gathered, patient=True)):
                    self._post(Persisted(number))
                self._done += len(taken)
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
                self._give(readies)
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
        self._look_s = CLOSE_LOOK_S
        least, most = LOWEST_ROOM_BYTES
        share_bytes = int(directory.device_size_bytes() * LOWEST_ROOM_SHARE)
        self._lowest_room_bytes = max(least, min(most, share_bytes))
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
                self._wake.wait(self._look_s)
                self._wake.clear()
                self._watch_room()
                now = time.monotonic()
                try:
                    interval_s = KEEPER_INTERVAL_S if self._full else CHECKPOINT_INTERVAL_S
                    if self._checkpoint_wanted or now - checked_s >= interval_s:
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
        lowest_bytes = self._lowest_room_bytes
        self._look_s = CLOSE_LOOK_S if free_bytes < 8 * lowest_bytes else KEEPER_INTERVAL_S
        if free_bytes < lowest_bytes:
            self._report(full=True)
        elif free_bytes >= 2 * lowest_bytes:
            self._report(full=False)
            if free_bytes - self._reserve.size_bytes >= 2 * lowest_bytes:
                self._reserve.take()

    def _report(self, *, full: bool) -> None:
        if full != self._full:
            self._full = full
            self._post(DiskState("device", full=full))
