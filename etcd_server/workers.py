"""The threads beside the loop: one appends to the raft log, one keeps the files small and watches the device,
one makes copies of the state for other members and looks into those that have come from them.

They own no state of the member. What they have done, or met, they tell the loop through `post`, which wakes
it: one of the kinds of news below, or of `transport/snapshot_files.py`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from etcd_server.raft.messages import Entry, HardState, Ready
from etcd_server.services.events import SnapshotRequest
from etcd_server.storage import snapshot
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.errors import DiskFailed, DiskFull, StorageError
from etcd_server.storage.maintenance import Checkpoint, StateMaintenance
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.reserve import Reserve
from etcd_server.transport.snapshot_files import Copied, LookedInto

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
        self._queue: queue.SimpleQueue[Sequence[Ready] | threading.Event | None] = queue.SimpleQueue()
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

    def finish(self, timeout_s: float) -> None:
        """Wait until all that was handed over is on the disk. Raises DiskFailed when that takes too long."""
        reached = threading.Event()
        self._given += 1
        self._queue.put(reached)
        if not reached.wait(timeout_s):
            raise DiskFailed(
                f"{self._log.path}: a write does not end within {timeout_s:.0f} s; check the disk"
            )

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
                for item in taken:
                    over |= item is None
                    if item is not None and not isinstance(item, threading.Event):
                        gathered.extend(item)
                if gathered and (number := self._write(gathered, patient=True)):
                    self._post(Persisted(number))
                self._done += len(taken)
                for item in taken:
                    if isinstance(item, threading.Event):
                        item.set()
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


def lowest_room_bytes(directory: DataDirectory) -> int:
    """Below this much room on the device writes that make the store grow are refused."""
    least, most = LOWEST_ROOM_BYTES
    return max(least, min(most, int(directory.device_size_bytes() * LOWEST_ROOM_SHARE)))


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
        self._lowest_room_bytes = lowest_room_bytes(directory)
        self._using_state = threading.Lock()
        self._state: StateMaintenance | None = None
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def checkpoint(self) -> None:
        self._checkpoint_wanted = True
        self._wake.set()

    def cut(self, index: int) -> None:
        self._cut_to = max(self._cut_to, index)
        self._wake.set()

    @contextmanager
    def away_from_state(self) -> Iterator[None]:
        """Meanwhile the thread has nothing open of state.db; a checkpoint under way is waited for."""
        with self._using_state:
            self._close_state()
            yield

    def close(self, timeout_s: float) -> None:
        """A last checkpoint, so that the next start has little to replay; then the thread ends."""
        self._checkpoint_wanted = self._stopping = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
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
                        done = self._checkpoint()
                        self._post(Durable(done.applied_index, done.left_size_bytes))
                    self._keep_log()
                except DiskFull:
                    self._report(full=True)
            with self._using_state:
                self._close_state()
        except BaseException as error:  # the loop ends the process with it
            self._post(Failed(error))

    def _checkpoint(self) -> Checkpoint:
        with self._using_state:
            if self._state is None:
                self._state = StateMaintenance.open(self._directory.state_path)
            return self._state.checkpoint()

    def _close_state(self) -> None:
        if self._state is not None:
            self._state.close()
            self._state = None

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


class Courier:
    """Makes copies of the state for other members, and looks into those that have come from them, in a thread
    of its own."""

    def __init__(self, directory: DataDirectory, post: Post) -> None:
        self._directory = directory
        self._post = post
        self._lowest_room_bytes = 2 * lowest_room_bytes(directory)
        self._using_state = threading.Lock()
        self._is_hindered = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._copies = 0
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def copy(self, request: SnapshotRequest) -> None:
        """Copy state.db for a member; `Copied` is posted."""
        self._copies += 1
        path = self._path(f"outgoing-{self._copies}")
        self._jobs.put(lambda: self._copy(request, path))

    def look_into(self, file_id: int, path: str) -> None:
        """See what a received file stands for; `LookedInto` is posted."""
        self._jobs.put(lambda: self._look_into(file_id, path))

    def remove(self, path: str) -> None:
        """Remove a copy; a large file takes its time."""
        self._jobs.put(lambda: snapshot.remove(path))

    def path_for(self, file_id: int, size_bytes: int) -> str | None:
        """Where a file of this size may be received; None when there is no room for it."""
        if self._directory.free_size_bytes() < size_bytes + self._lowest_room_bytes:
            return None
        self._directory.make_snapshot_directory()
        return self._path(f"incoming-{file_id}")

    @contextmanager
    def away_from_state(self) -> Iterator[None]:
        """Meanwhile the thread has nothing open of state.db; a copy under way is given up."""
        self._is_hindered = True
        with self._using_state:
            self._is_hindered = False
            yield

    def close(self, timeout_s: float) -> None:
        """Give up a copy under way and end the thread."""
        self._is_hindered = True
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _path(self, name: str) -> str:
        return f"{self._directory.snapshot_path}/{name}"

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        except BaseException as error:  # the loop ends the process with it
            self._post(Failed(error))

    def _copy(self, request: SnapshotRequest, path: str) -> None:
        made, error = None, "the state was replaced meanwhile"
        try:
            self._directory.make_snapshot_directory()
            with self._using_state:
                made = snapshot.make(
                    self._directory.state_path,
                    path,
                    least_free_bytes=self._lowest_room_bytes,
                    is_cancelled=lambda: self._is_hindered,
                )
        except StorageError as failure:
            error = str(failure)
        self._post(Copied(request, made, "" if made is not None else error))

    def _look_into(self, file_id: int, path: str) -> None:
        try:
            self._post(LookedInto(file_id, snapshot.look_into(path)))
        except StorageError as failure:
            self._post(LookedInto(file_id, None, str(failure)))
