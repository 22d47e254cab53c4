"""The log writer: what is handed over is written once, in order, by whichever thread; a full disk is waited
out; the end is prompt."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from etcd_server.raft.messages import Entry, EntryKind, HardState, Ready
from etcd_server.storage.errors import DiskFull, SyncFailed
from etcd_server.storage.raftlog import RaftLog
from etcd_server.workers import DiskState, Failed, LogWriter, Persisted

WAIT_S = 10.0


class Log:
    """Stands for the raft log: keeps what is appended and by whom, can be held up and made to fail."""

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.threads: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.errors: list[Exception] = []

    def append(self, hard_state: HardState | None, entries: Sequence[Entry]) -> None:
        self.entered.set()
        assert self.open.wait(WAIT_S)
        if self.errors:
            raise self.errors.pop(0)
        self.indexes += [entry.index for entry in entries]
        self.threads.append(threading.current_thread().name)


class World:
    def __init__(self) -> None:
        self.log = Log()
        self.news: list[object] = []
        self._changed = threading.Condition()
        self.writer = LogWriter(cast(RaftLog, self.log), self._post, lambda seconds: None)

    def _post(self, news: object) -> None:
        with self._changed:
            self.news.append(news)
            self._changed.notify_all()

    def wait(self, news: object) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: news in self.news, WAIT_S), self.news


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.log.open.set()
    world.writer.close(WAIT_S)


def ready(number: int) -> Ready:
    return Ready(number, entries=[Entry(number, 1, EntryKind.NORMAL, b"")])


def test_who_is_alone_writes_in_the_own_thread(world: World) -> None:
    assert world.writer.append([ready(1)], alone=True) == 1
    assert world.log.threads == [threading.current_thread().name]
    assert world.writer.append([ready(2)], alone=False) == 0
    world.wait(Persisted(2))
    assert world.log.threads[1] == "log-writer"


def test_nobody_overtakes_what_the_thread_still_has(world: World) -> None:
    world.log.open.clear()
    assert world.writer.append([ready(1)], alone=False) == 0
    assert world.writer.append([ready(2)], alone=True) == 0
    world.log.open.set()
    world.wait(Persisted(2))
    assert world.log.indexes == [1, 2]


def test_the_order_holds_whatever_the_moment(world: World) -> None:
    for number in range(1, 3_001):
        world.writer.append([ready(number)], alone=number % 3 == 0)
    world.writer.close(WAIT_S)
    assert world.log.indexes == [*range(1, 3_001)]


def test_the_end_does_not_wait_though_it_is_taken_along_with_other_work(world: World) -> None:
    world.log.open.clear()
    world.writer.append([ready(1)], alone=False)
    assert world.log.entered.wait(WAIT_S)
    world.writer.append([ready(2)], alone=False)
    begun_s = time.monotonic()
    threading.Timer(0.1, world.log.open.set).start()
    world.writer.close(WAIT_S)
    assert time.monotonic() - begun_s < WAIT_S / 2
    assert world.log.indexes == [1, 2]


@pytest.mark.parametrize("alone", [False, True])
def test_a_full_disk_is_waited_out(world: World, alone: bool) -> None:
    world.log.errors = [DiskFull("full"), DiskFull("full")]
    assert world.writer.append([ready(1)], alone=alone) == 0
    assert world.writer.append([ready(2)], alone=True) == 0
    world.wait(DiskState("log", full=False))
    world.wait(Persisted(2))
    assert world.log.indexes == [1, 2]
    assert DiskState("log", full=True) in world.news


def test_a_failure_is_reported(world: World) -> None:
    error = SyncFailed("the disk failed to sync")
    world.log.errors = [error]
    world.writer.append([ready(1)], alone=False)
    world.wait(Failed(error))
