"""The shell of ``etcd-py-agent run``: threads, signals, systemd, the lock of the state directory.

One main loop owns the scheduler and everything that is known; it never waits for the store or for a command.
Followers (one thread for each watched subtree) and passes (one thread for each resource in work) report to
its inbox. SIGTERM stops after the passes in work, at most ``STOP_LIMIT_S`` later: what is then unfinished is
in its manifest and is resumed at the next start. SIGHUP loads the configuration again; a wrong one is refused
and the old one stays.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from etcd_agent.apply import Applier
from etcd_agent.builtin import BuiltinPlugin
from etcd_agent.config import load
from etcd_agent.errors import AgentError, ConfigError, GuardError
from etcd_agent.execute import Executor
from etcd_agent.follow import Follower, Store
from etcd_agent.keyspace import in_subtree, restrict
from etcd_agent.locks import state_lock
from etcd_agent.loop import Scheduler
from etcd_agent.notify import Notifier
from etcd_agent.plugins import PluginSet
from etcd_agent.status import AgentStatus, summary, write_status
from etcd_agent.values import AgentConfig, Outcome, Resource, Snapshot, minimal_ranges

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 20.0
MAX_PASSES_AT_ONCE = 8
_LONGEST_WAIT_S = 1.0


class StoppedError(AgentError):
    """The agent stops; what is in work stays in its manifest."""


def builtin_plugins() -> list[tuple[str, Any]]:
    return [("builtin", BuiltinPlugin())]


@dataclass(frozen=True, slots=True)
class _Finished:
    resource: Resource
    result: Outcome | AgentError
    pending: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class _Changed:
    top: str


class Agent:
    """``run()`` until SIGTERM or SIGINT. ``load_config`` is called at SIGHUP and may raise ConfigError."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        load_config: Callable[[], AgentConfig] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """Raises ConfigError: a plugin or its settings are refused."""
        self._config = config
        self._load_config = load_config or (lambda: load(config.source))
        self._notifier = notifier or Notifier()
        self._inbox: queue.SimpleQueue[_Finished | _Changed | signal.Signals] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._started = time.time()
        self._grace_ends_at = time.monotonic() + config.start_grace_s
        self._ready = False
        self._written: AgentStatus | None = None
        self._exit_status = 0
        self._relisted_at = time.monotonic()
        self._applier = self._make_applier(config)
        retry = config.backend.retry
        self._scheduler = Scheduler(
            retry, config.interval_s, config.on_error, random=random.random, clock=time.time
        )
        self._store = Store(config)
        self._followers: dict[str, Follower] = {}

    def _make_applier(self, config: AgentConfig) -> Applier:
        plugins = PluginSet(config.plugins, builtin_plugins())
        executor = Executor(config.state_dir, plugins, safety=config.safety, sleep=self._sleep)
        return Applier(config, plugins, executor)

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StoppedError("stopping; to be resumed at the next start")

    def run(self) -> int:
        """Returns the exit status: 0 after a signal, that of the error under ``on_error = "exit"``."""
        with state_lock(self._config.state_dir):
            previous = {
                number: signal.signal(number, lambda number, frame: self._inbox.put(signal.Signals(number)))
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            }
            try:
                logger.info("starting with %d resources", len(self._config.resources))
                if not self._config.resources:
                    logger.warning("there is no resource file in %s/conf.d", self._config.confdir)
                self._scheduler.set_resources(self._config.resources, time.monotonic())
                self._set_followers()
                while not self._stopping.is_set():
                    self._turn()
                return self._stop()
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def stop(self) -> None:
        """As SIGTERM, from any thread."""
        self._inbox.put(signal.SIGTERM)

    # One turn of the loop.

    def _turn(self) -> None:
        wait_s = min(self._notifier.watchdog_s or _LONGEST_WAIT_S, _LONGEST_WAIT_S)
        if len(self._scheduler.running) < MAX_PASSES_AT_ONCE:
            wait_s = min(wait_s, self._scheduler.next_at() - time.monotonic())
        for message in self._messages(max(0.0, wait_s)):
            self._take(message)
        self._relist_if_due()
        self._start_passes()
        self._publish()

    def _messages(self, wait_s: float) -> Iterator[_Finished | _Changed | signal.Signals]:
        with contextlib.suppress(queue.Empty):
            yield self._inbox.get(timeout=wait_s) if wait_s > 0 else self._inbox.get_nowait()
            while True:
                yield self._inbox.get_nowait()

    def _take(self, message: _Finished | _Changed | signal.Signals) -> None:
        now = time.monotonic()
        match message:
            case _Changed(top):
                for resource in self._config.resources:
                    if any(in_subtree(each, top) for each in resource.ranges):
                        self._scheduler.changed(resource, now)
            case _Finished(resource, result, pending, complete):
                self._scheduler.finished(resource, result, now, pending=pending, complete=complete)
                if isinstance(result, GuardError):
                    for follower in self._followers_of(resource):
                        follower.relist()
                if isinstance(result, AgentError) and self._config.on_error == "exit":
                    logger.error("stopping because of %s (on_error = exit)", resource.name)
                    self._exit_status = result.exit_status
                    self._stopping.set()
            case signal.SIGHUP:
                self._reload_config()
            case _:
                logger.info("stopping on %s", message.name)
                self._stopping.set()

    def _start_passes(self) -> None:
        now = time.monotonic()
        for resource in self._scheduler.due(now):
            if len(self._scheduler.running) >= MAX_PASSES_AT_ONCE:
                return
            self._scheduler.started(resource, now)
            arguments = (self._applier, resource, self._reader(resource), self._config.noop)
            threading.Thread(
                target=self._pass, args=arguments, name=f"apply {resource.name}", daemon=True
            ).start()

    def _pass(
        self, applier: Applier, resource: Resource, read: Callable[[], Snapshot | None], noop: bool
    ) -> None:
        """In a thread of its own: one pass, and its result to the inbox whatever happens."""
        snapshot: Snapshot | None = None
        pending = True
        result: Outcome | AgentError
        try:
            snapshot = read()
            result = applier.run(resource, snapshot, noop=noop)
            pending = applier.manifest(resource).reload_pending
        except AgentError as error:
            result = error
            with contextlib.suppress(AgentError):
                pending = applier.manifest(resource).reload_pending
        except Exception as error:  # a bug must not end this resource's passes for ever
            logger.exception("%s: unexpected", resource.name)
            result = AgentError(f"{type(error).__name__}: {error} (a bug of the agent; see its log)")
        self._inbox.put(_Finished(resource, result, pending, snapshot is not None))

    def _reader(self, resource: Resource) -> Callable[[], Snapshot | None]:
        """How a pass gets the resource's keys at one revision; None while they have never been listed.

        They come from the mirror that covers them all; if it takes several, they are read together anew.
        """
        store, followers = self._store, self._followers_of(resource)

        def read() -> Snapshot | None:
            snapshots = [follower.snapshot for follower in followers]
            if any(snapshot is None for snapshot in snapshots):
                return None
            if len(snapshots) == 1 and snapshots[0] is not None:
                return restrict(snapshots[0], resource.ranges)
            return store.read(resource.ranges)

        return read

    # Followers.

    def _tops(self) -> tuple[str, ...]:
        return minimal_ranges(top for resource in self._config.resources for top in resource.ranges)

    def _followers_of(self, resource: Resource) -> list[Follower]:
        """Those whose subtrees hold the resource's keys."""
        return [
            follower
            for follower in self._followers.values()
            if any(in_subtree(each, follower.top) for each in resource.ranges)
        ]

    def _set_followers(self) -> None:
        tops = self._tops()
        for top in set(self._followers) - set(tops):
            self._followers.pop(top).stop()
        for top in tops:
            if top not in self._followers:
                self._followers[top] = Follower(
                    self._store,
                    top,
                    watch=self._config.watch,
                    retry=replace(self._config.backend.retry, attempts=0),
                    on_change=partial(self._inbox.put, _Changed(top)),
                )
        for follower in self._followers.values():
            if not follower.is_alive():
                follower.start()

    def _relist_if_due(self) -> None:
        """Every ``interval`` the whole is listed anew, watch or not: the guard against anything missed."""
        now = time.monotonic()
        if now - self._relisted_at >= self._config.interval_s:
            self._relisted_at = now
            for follower in self._followers.values():
                follower.relist()

    # Configuration.

    def _reload_config(self) -> None:
        self._notifier.reloading(time.monotonic())
        try:
            config = self._load_config()
            if config.state_dir != self._config.state_dir:
                raise ConfigError(
                    f"{config.source}: state_dir cannot change while the agent runs; restart it"
                )
            applier = self._make_applier(config)
            for resource in config.resources:
                applier.check_templates(resource)
        except AgentError as error:
            logger.error("reload refused, the old configuration stays: %s", error)
            self._notifier.ready()
            return
        old, self._config, self._applier = self._config, config, applier
        if (old.nodes, old.backend, old.watch) != (config.nodes, config.backend, config.watch):
            self._store.close()
            for follower in self._followers.values():
                follower.stop()
            self._store, self._followers = Store(config), {}
        self._scheduler.set_pace(config.backend.retry, config.interval_s, config.on_error)
        self._scheduler.set_resources(config.resources, time.monotonic())
        for (
            resource
        ) in config.resources:  # templates may have changed, too; without changes a pass does nothing
            self._scheduler.changed(resource, time.monotonic())
        self._set_followers()
        logger.info("configuration loaded again: %d resources", len(config.resources))
        self._notifier.ready()

    # Status, systemd, end.

    def _publish(self) -> None:
        status = self._status()
        if self._news(status):
            self._written = status
            try:
                write_status(self._config.state_dir, status)
            except OSError as error:
                logger.warning("status.json cannot be written: %s", error.strerror)
        self._notifier.status(summary(status))
        if not self._ready and self._may_be_ready(status):
            self._ready = True
            logger.info("ready: %s", summary(status))
            self._notifier.ready()
        if not self._ready and self._scheduler.running:
            self._notifier.extend_start(30.0)
        if not self._stuck():
            self._notifier.progress(time.monotonic())

    def _news(self, status: AgentStatus) -> bool:
        """Whether the status file is worth writing: at once for a change, each second for a mere revision."""
        last = self._written
        if last is None or replace(status, written=last.written, revision=last.revision) != last:
            return True
        return status.revision != last.revision and status.written - last.written >= 1.0

    def _may_be_ready(self, status: AgentStatus) -> bool:
        """After the first complete pass of all; without the store if all files are as last applied."""
        if self._scheduler.passed():
            return True
        return (
            time.monotonic() >= self._grace_ends_at
            and bool(status.store_error)
            and not self._scheduler.running
            and all(self._applier.intact(resource) for resource in self._config.resources)
        )

    def _stuck(self) -> bool:
        """Whether a pass runs far longer than its own limits allow: then the watchdog is not fed."""
        now = time.monotonic()
        limits = {each.name: pass_limit_s(each) for each in self._config.resources}
        return any(
            now - since > limits.get(name, 0.0) + 60 for name, since in self._scheduler.running.items()
        )

    def _status(self) -> AgentStatus:
        now = time.monotonic()
        troubles = [follower.trouble(now) for follower in self._followers.values()]
        errors = [trouble for trouble in troubles if trouble]
        snapshots = [follower.snapshot for follower in self._followers.values() if follower.snapshot]
        return AgentStatus(
            pid=os.getpid(),
            config=self._config.source,
            started=self._started,
            written=time.time(),
            nodes=self._config.nodes,
            revision=max((snapshot.revision for snapshot in snapshots), default=0),
            store_error=errors[0] if errors else "",
            stopping=self._stopping.is_set(),
            resources=tuple(self._scheduler.statuses.values()),
        )

    def _stop(self) -> int:
        self._notifier.stopping()
        self._publish()
        for follower in self._followers.values():
            follower.stop()
        self._store.close()
        deadline = time.monotonic() + STOP_LIMIT_S
        while self._scheduler.running and time.monotonic() < deadline:
            for message in self._messages(0.1):
                if isinstance(message, _Finished):
                    self._take(message)
        for name in self._scheduler.running:
            logger.warning("%s: still in work; it is resumed at the next start", name)
        self._publish()
        logger.info("stopped")
        return self._exit_status


def pass_limit_s(resource: Resource) -> float:
    """The longest that a pass with a rollback can take by the resource's own limits."""
    health = resource.health
    check_s = resource.check.timeout_s * max(1, len(resource.templates))
    health_s = (1 + health.retries) * (2 * health.timeout_s + health.interval_s)
    return 2 * (check_s + resource.reload.timeout_s + health_s)
