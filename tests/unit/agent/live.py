"""A whole agent in a thread of the test, against a store made of dictionaries."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest

from etcd_agent import runtime
from etcd_agent.errors import StoreError
from etcd_agent.keyspace import in_subtree
from etcd_agent.notify import Notifier
from etcd_agent.runtime import Agent
from etcd_agent.values import AgentConfig, Entry, ResourceStatus, Snapshot
from etcd_client import Event, EventKind, KeyValue, WatchBatch

LIMIT_S = 10.0


def wait_for(condition: Callable[[], object], what: str = "", limit_s: float = LIMIT_S) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s: {what}"
        time.sleep(0.005)


class MemoryWatch:
    """Gives what is put into it: batches, or an exception to raise."""

    def __init__(self, above: str) -> None:
        self.above = above
        self.last_error: Exception | None = None
        self.items: queue.SimpleQueue[WatchBatch | Exception | None] = queue.SimpleQueue()

    def __iter__(self) -> Iterator[WatchBatch]:
        while (item := self.items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def cancel(self) -> None:
        self.items.put(None)


class MemoryStore:
    """Stands for ``etcd_agent.follow.Store``. ``reads`` counts what the agent asks."""

    def __init__(self) -> None:
        self.cluster_id, self.revision = 7, 1
        self.keys: dict[str, Entry] = {}
        self.is_away = False
        self.reads = 0
        self.client = None
        self.watches: dict[str, MemoryWatch] = {}
        self.log: list[WatchBatch] = []
        self._lock = threading.Lock()

    def put(self, values: dict[str, str | None]) -> None:
        """One transaction; None deletes."""
        with self._lock:
            self.revision += 1
            events = []
            for key, value in values.items():
                kind = EventKind.DELETE if value is None else EventKind.PUT
                content = b"" if value is None else value.encode()
                events.append(Event(kind, KeyValue(key.encode(), content, 1, self.revision, 1)))
                self.keys.pop(key, None)
                if value is not None:
                    self.keys[key] = Entry(content, self.revision)
            batch = WatchBatch(self.revision, tuple(events), self.cluster_id)
            self.log.append(batch)
            for watch in self.watches.values():
                watch.items.put(batch)

    def read(self, tops: Sequence[str], above: str | None = None) -> Snapshot:
        with self._lock:
            self.reads += 1
            if self.is_away:
                raise StoreError("store: refused")
            entries = {
                key: entry for key, entry in self.keys.items() if any(in_subtree(key, top) for top in tops)
            }
            return Snapshot(self.cluster_id, self.revision, entries)

    def watch(self, above: str, tops: Sequence[str], start_revision: int) -> MemoryWatch:
        """What is below ``above`` for the mirror to sort out; all of it, from the start revision on."""
        with self._lock:
            watch = MemoryWatch(above)
            for batch in self.log:
                if batch.revision >= start_revision:
                    watch.items.put(batch)
            self.watches[above] = watch
            return watch

    def close(self) -> None:
        for watch in self.watches.values():
            watch.cancel()


class LiveAgent:
    """``sent``: what systemd was told."""

    def __init__(self, config: AgentConfig, load: Callable[[], AgentConfig] | None = None) -> None:
        self.sent: list[str] = []
        self.agent = Agent(config, load_config=load, notifier=Notifier(self.sent.append, {}))
        self.result: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.result = self.agent.run()

    def status(self, name: str = "app") -> ResourceStatus:
        return self.agent._scheduler.statuses.get(name) or ResourceStatus(name)

    def wait(self, name: str = "app", **wanted: Any) -> ResourceStatus:
        """Until the status of a resource is as wanted; a function judges for itself."""

        def matches() -> bool:
            status = self.status(name)
            return all(
                value(getattr(status, field)) if callable(value) else getattr(status, field) == value
                for field, value in wanted.items()
            )

        wait_for(matches, f"{name}: {wanted}")
        return self.status(name)

    def stop(self) -> None:
        self.agent.stop()
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()


@contextmanager
def running(
    monkeypatch: pytest.MonkeyPatch,
    config: AgentConfig,
    store: MemoryStore,
    *plugins: object,
    load: Callable[[], AgentConfig] | None = None,
) -> Iterator[LiveAgent]:
    """The agent with its own plugin and ``plugins``."""
    builtin = runtime.builtin_plugins()
    more = [(f"plugin{number}", plugin) for number, plugin in enumerate(plugins)]
    monkeypatch.setattr(runtime, "builtin_plugins", lambda: [*builtin, *more])
    monkeypatch.setattr(runtime, "Store", lambda config: cast(Any, store))
    live = LiveAgent(config, load)
    try:
        yield live
    finally:
        live.stop()
