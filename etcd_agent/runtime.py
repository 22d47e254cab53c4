"""The shell of ``etcd-py-agent run``: threads, signals, systemd, the lock of the state directory.

One main loop owns the scheduler, the mirrors of the store's keys and everything that is known; it never waits
for the store or for a command. Followers (one thread and one watch for all subtrees below one key) and passes
(threads of ``Workers``) report to its inbox. SIGTERM stops after the passes in work, at most ``STOP_LIMIT_S``
later: what is then unfinished is in its manifest and is resumed at the next start. SIGHUP loads the
configuration again; a wrong one is refused and the old one stays.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from etcd_agent import discovery
from etcd_agent.apply import Applier, exit_status
from etcd_agent.audit import Audit
from etcd_agent.builtin import BuiltinPlugin
from etcd_agent.config import load
from etcd_agent.errors import AgentError, ConfigError, GuardError
from etcd_agent.execute import Executor
from etcd_agent.fleet_services import Services
from etcd_agent.follow import Store
from etcd_agent.locks import DestinationLocks, state_lock
from etcd_agent.loop import Scheduler
from etcd_agent.metrics import Metrics
from etcd_agent.notify import Notifier
from etcd_agent.operation import Operation, Order
from etcd_agent.plugins import PluginSet
from etcd_agent.sources import Batch, Listed, Sources, Trouble
from etcd_agent.status import AgentStatus, StatusFile, summary
from etcd_agent.values import AgentConfig, Gate, Outcome, Resource, ResourceStatus, Snapshot
from etcd_agent.workers import Workers

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 20.0
_LONGEST_WAIT_S = 1.0
_STUCK_AFTER_S = 60.0
# How often DNS is asked for the members while none of those known answers.
_MEMBERS_EVERY_S = 5.0


class StoppedError(AgentError):
    """The agent stops; what is in work stays in its manifest."""


def builtin_plugins() -> list[tuple[str, Any]]:
    return [("builtin", BuiltinPlugin())]


def make_applier(
    config: AgentConfig,
    plugins: PluginSet,
    *,
    gate: Gate | None = None,
    locks: DestinationLocks | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Applier:
    """What applies the resources of a configuration. Raises ConfigError: settings that a plugin refuses."""
    executor = Executor(
        config.state_dir,
        plugins,
        safety=config.safety,
        sleep=sleep,
        gate=gate,
        sync_only=config.sync_only,
        keep_stage=config.keep_stage_file,
        locks=locks or DestinationLocks(f"{config.runtime_dir}/destinations.lock"),
    )
    audit = Audit(f"{config.state_dir}/audit.jsonl")
    return Applier(config, plugins, executor, gate=gate, audit=audit)


@dataclass(frozen=True, slots=True)
class _Finished:
    resource: Resource
    result: Outcome | AgentError
    pending: bool
    complete: bool
    duration_s: float


@dataclass(frozen=True, slots=True)
class _Wake:
    """A slot is there for the resource."""

    name: str


@dataclass(frozen=True, slots=True)
class _Members:
    """What DNS names now for a configuration; none if it was asked in vain."""

    config: AgentConfig
    nodes: tuple[str, ...]


Message = _Finished | _Wake | _Members | Order | Listed | Batch | Trouble | signal.Signals


class Agent:
    """``run()`` until SIGTERM or SIGINT. ``load_config`` is called at SIGHUP and may raise ConfigError."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        load_config: Callable[[], AgentConfig] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """Raises ConfigError: a plugin or its settings are refused, a certificate cannot be read."""
        self._config = config
        self._load_config = load_config or (lambda: load(config.source))
        self._notifier = notifier or Notifier()
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._started = time.time()
        self._grace_ends_at = time.monotonic() + config.start_grace_s
        self._ready = False
        self._exit_status = 0
        self._orders: dict[str, Order] = {}
        self._metrics = Metrics()
        self._workers = Workers()
        self._locks = DestinationLocks(f"{config.runtime_dir}/destinations.lock")
        self._store = Store(config)
        self._config = self._with_members(config, self._store)
        self._ask_members_at = 0.0
        self._services = Services(config, self._store.client, self._wake)
        self._applier = self._make_applier(config, self._services)
        self._scheduler = Scheduler(
            config.backend.retry,
            config.interval_s,
            config.on_error,
            random=random.random,
            clock=time.time,
            on_status=self._on_status,
        )
        self._sources = Sources(self._inbox.put)
        self._file = StatusFile(config.state_dir)
        self._turned_at = time.monotonic()
        self._operation = Operation(self)

    def _make_applier(self, config: AgentConfig, services: Services) -> Applier:
        plugins = PluginSet(config.plugins, builtin_plugins())
        return make_applier(config, plugins, gate=services.gate, locks=self._locks, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StoppedError("stopping; to be resumed at the next start")

    def run(self) -> int:
        """Returns the exit status: 0 after a signal, that of the error under ``on_error = "exit"``.

        Signals are taken in the main thread alone; elsewhere there is ``stop``.
        """
        with state_lock(self._config.state_dir), self._signals():
            try:
                self._operation.open(self._config)
                logger.info("starting with %d resources", len(self._config.resources))
                if not self._config.resources:
                    logger.warning("there is no resource file in %s/conf.d", self._config.confdir)
                self._scheduler.set_resources(self._config.resources, time.monotonic())
                self._expect_applied()
                self._sources.follow(self._config, self._store)
                self._services.offer(self._config)
                while not self._stopping.is_set():
                    self._turn()
                return self._stop()
            finally:
                self._operation.close()
                self._locks.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {
            number: signal.signal(number, lambda number, frame: self._inbox.put(signal.Signals(number)))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def reload(self) -> None:
        """As SIGHUP, from any thread."""
        self._inbox.put(signal.SIGHUP)

    def _expect_applied(self) -> None:
        """Nothing older than what is applied here is taken from the store."""
        if self._config.safety.accept_cluster:
            return
        for resource in self._config.resources:
            current = self._applier.manifest(resource).current
            self._sources.expect({current.cluster_id: current.revision})

    def stop(self) -> None:
        """As SIGTERM, from any thread."""
        self._inbox.put(signal.SIGTERM)

    def give(self, order: Order) -> None:
        """Give an order, from any thread. Its answer comes when it has been carried out."""
        self._inbox.put(order)

    def _wake(self, name: str) -> None:
        self._inbox.put(_Wake(name))

    # One turn of the loop.

    def _turn(self) -> None:
        now = time.monotonic()
        wait_s = min(self._notifier.watchdog_s or _LONGEST_WAIT_S, _LONGEST_WAIT_S)
        if len(self._scheduler.running) < self._workers.most:
            wait_s = min(wait_s, self._scheduler.next_at() - now)
        wait_s = min(wait_s, self._file.due_in_s(now))
        for message in self._messages(max(0.0, wait_s)):
            self._take(message)
        self._turned_at = time.monotonic()
        self._sources.relist_if_due(self._turned_at, self._config.interval_s)
        self._start_passes()
        self._publish()

    def _messages(self, wait_s: float) -> Iterator[Message]:
        with contextlib.suppress(queue.Empty):
            yield self._inbox.get(timeout=wait_s) if wait_s > 0 else self._inbox.get_nowait()
            while True:
                yield self._inbox.get_nowait()

    def _take(self, message: Message) -> None:
        now = time.monotonic()
        match message:
            case Listed() | Batch() | Trouble():
                self._file.touch()
                for resource in self._sources.take(message):
                    self._scheduler.changed(resource, now)
            case _Finished():
                self._finish(message, now)
            case _Wake(name):
                self._scheduler.wake(name)
            case _Members():
                self._take_members(message)
            case Order():
                self._accept(message)
            case signal.SIGHUP:
                self._reload_config()
            case _:
                logger.info("stopping on %s", message.name)
                self._stopping.set()

    def _finish(self, message: _Finished, now: float) -> None:
        resource, result = message.resource, message.result
        self._scheduler.finished(resource, result, now, pending=message.pending, complete=message.complete)
        self._metrics.passed(resource.name, result, message.duration_s)
        if isinstance(result, GuardError):
            self._sources.relist(resource)
        if isinstance(result, AgentError) and self._config.on_error == "exit" and not self._stopping.is_set():
            logger.error("stopping because of %s (on_error = exit)", resource.name)
            self._exit_status = result.exit_status
            self._stopping.set()

    def _accept(self, order: Order) -> None:
        """Begin to carry out an order."""
        now = time.monotonic()
        if order.kind == "accept-cluster":
            cluster_id = self._sources.accept()
            self._applier.accept(cluster_id)
            for resource in self._config.resources:
                self._scheduler.changed(resource, now)
            message = f"cluster {cluster_id:x} is accepted"
            logger.warning("%s", message)
            order.answer.put({"message": message, "exit_status": 0})
            return
        if all(resource.name != order.name for resource in self._config.resources):
            known = ", ".join(resource.name for resource in self._config.resources) or "none"
            order.answer.put(
                {"error": f"there is no resource {order.name!r}; known: {known}", "exit_status": 1}
            )
            return
        if order.name in self._orders:
            order.refuse(f"{order.name}: another order is being carried out")
            return
        self._orders[order.name] = order
        self._scheduler.wake(order.name)

    def _start_passes(self) -> None:
        now = time.monotonic()
        if self._scheduler.next_at() > now:
            return
        for resource in self._scheduler.due(now):
            if len(self._scheduler.running) >= self._workers.most or self._stopping.is_set():
                self._scheduler.put_back(resource)
                continue
            defer = self._scheduler.started(resource, now)
            read = self._sources.reader(resource, self._store)
            if resource.name in self._scheduler.settling:
                read = _nothing
            order = self._orders.pop(resource.name, None)
            job = partial(self._pass, self._applier, resource, read, defer, order)
            self._workers.submit(job)

    def _pass(
        self,
        applier: Applier,
        resource: Resource,
        read: Callable[[], Snapshot | None],
        defer: bool,
        order: Order | None,
    ) -> None:
        """In a thread of its own: one pass, and its result to the inbox whatever happens."""
        started_s = time.monotonic()
        snapshot: Snapshot | None = None
        pending = True
        result: Outcome | AgentError
        try:
            if order is not None and order.kind == "rollback":
                result = applier.roll_back(resource, order.number)
            else:
                snapshot = read()
                force = order is not None and order.force
                noop = self._config.noop
                result = applier.run(
                    resource, snapshot, noop=noop, defer=defer and order is None, force=force
                )
            pending = self._is_pending(applier, resource)
        except AgentError as error:
            result = error
            with contextlib.suppress(AgentError):
                pending = self._is_pending(applier, resource)
        except Exception as error:  # a bug must not end this resource's passes for ever
            logger.exception("%s: unexpected", resource.name)
            result = AgentError(f"{type(error).__name__}: {error} (a bug of the agent; see its log)")
        took_s = time.monotonic() - started_s
        self._inbox.put(_Finished(resource, result, pending, snapshot is not None, took_s))
        if order is not None:
            order.answer.put(answer_of(result))

    def _is_pending(self, applier: Applier, resource: Resource) -> bool:
        """Whether a reload is owed that this agent is to do."""
        return applier.manifest(resource).reload_pending and not self._config.sync_only

    # Configuration.

    def _reload_config(self) -> None:
        self._notifier.reloading(time.monotonic())
        try:
            config = self._load_config()
            for name in ("state_dir", "runtime_dir"):
                if getattr(config, name) != getattr(self._config, name):
                    raise ConfigError(
                        f"{config.source}: {name} cannot change while the agent runs; restart it"
                    )
            self._take_over(config)
        except AgentError as error:
            logger.error("reload refused, the old configuration stays: %s", error)
        else:
            logger.info("configuration loaded again: %d resources", len(config.resources))
        self._notifier.ready()

    @staticmethod
    def _with_members(config: AgentConfig, store: Store) -> AgentConfig:
        return replace(config, nodes=store.nodes) if config.srv is not None else config

    def _ask_members(self, now: float) -> None:
        """Ask DNS again while the store is away, in a thread: it may take its time."""
        if self._config.srv is None or not self._sources.trouble or now < self._ask_members_at:
            return
        self._ask_members_at = float("inf")
        asked = self._config

        def ask() -> None:
            nodes: tuple[str, ...] = ()
            try:
                nodes = discovery.members(asked)
            except AgentError as error:
                logger.debug("%s", error)
            except Exception:  # a bug must not be the last question
                logger.exception("DNS: unexpected")
            finally:
                self._inbox.put(_Members(asked, nodes))

        threading.Thread(target=ask, name="members", daemon=True).start()

    def _take_members(self, found: _Members) -> None:
        self._ask_members_at = time.monotonic() + _MEMBERS_EVERY_S
        known = self._config
        if not found.nodes or found.config is not known or set(found.nodes) == set(known.nodes):
            return
        logger.warning("store: its members are now %s, by DNS", ", ".join(found.nodes))
        try:
            self._take_over(replace(known, nodes=found.nodes))
        except AgentError as error:
            logger.error("the members that DNS names are not taken: %s", error)

    def _take_over(self, config: AgentConfig) -> None:
        """All that may refuse the new configuration comes before anything of the old one ends."""
        old = self._config
        if config.srv is not None and config.srv == old.srv and not config.nodes:
            config = replace(config, nodes=old.nodes)
        new_store = (old.srv, old.nodes, old.backend, old.credentials) != (
            config.srv,
            config.nodes,
            config.backend,
            config.credentials,
        )
        store = Store(config) if new_store else self._store
        if new_store:
            config = self._with_members(config, store)
        services = self._services
        if new_store or self._services.differ(config):
            services = Services(config, store.client, self._wake)
        try:
            applier = self._make_applier(config, services)
            for resource in config.resources:
                applier.check_templates(resource)
            self._operation.change(config)
        except AgentError:
            if services is not self._services:
                services.close()
            if new_store:
                store.close()
            raise
        self._config, self._applier = config, applier
        if services is not self._services:
            services.adopt(self._services)
            self._services.close()
            self._services = services
            for status in self._scheduler.statuses.values():
                services.changed(status)
        services.offer(config)
        for gone in {each.name for each in old.resources} - {each.name for each in config.resources}:
            self._metrics.forget(gone)
        now = time.monotonic()
        self._scheduler.set_pace(config.backend.retry, config.interval_s, config.on_error)
        self._scheduler.set_resources(config.resources, now)
        for resource in config.resources:  # templates may have changed, too; else a pass does nothing
            self._scheduler.changed(resource, now)
        if new_store:
            self._store.close()
            self._store = store
        self._sources.follow(config, store, anew=new_store or old.watch != config.watch)

    # Status, systemd, end.

    def _on_status(self, status: ResourceStatus) -> None:
        self._file.touch()
        self._metrics.changed(status)
        self._services.changed(status)

    def _publish(self) -> None:
        now = time.monotonic()
        if self._sources.check_troubles(now):
            self._file.touch()
        self._ask_members(now)
        if self._file.due_in_s(now) <= 0:
            status = self.status()
            self._file.write(status, now)
            self._notifier.status(summary(status))
        if not self._ready and self._may_be_ready():
            self._ready = True
            self._file.touch()
            status = self.status()
            self._notifier.status(summary(status))
            logger.info("ready: %s", summary(status))
            self._notifier.ready()
        if not self._ready and self._scheduler.running:
            self._notifier.extend_start(30.0)
        if not self._stuck(now):
            self._notifier.progress(now)

    def _may_be_ready(self) -> bool:
        """After the first complete pass of all; without the store if all files are as last applied."""
        if self._scheduler.passed():
            return True
        return (
            time.monotonic() >= self._grace_ends_at
            and bool(self._sources.trouble)
            and not self._scheduler.running
            and all(self._applier.intact(resource) for resource in self._config.resources)
        )

    def _stuck(self, now: float) -> bool:
        """Whether a pass runs far longer than its own limits allow: then the watchdog is not fed."""
        running = self._scheduler.running
        if not running or now - min(running.values()) < _STUCK_AFTER_S:
            return False
        limits = {each.name: pass_limit_s(each) for each in self._config.resources}
        return any(now - since > limits.get(name, 0.0) + _STUCK_AFTER_S for name, since in running.items())

    @property
    def healthy(self) -> bool:
        """Whether the main loop still turns. From any thread."""
        now = time.monotonic()
        return now - self._turned_at < _STUCK_AFTER_S / 2 and not self._stuck(now)

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def metrics(self) -> Metrics:
        return self._metrics

    def status(self) -> AgentStatus:
        """What is known now. From any thread."""
        return AgentStatus(
            pid=os.getpid(),
            config=self._config.source,
            started=self._started,
            written=time.time(),
            nodes=self._config.nodes,
            revision=self._sources.revision,
            store_error=self._sources.trouble,
            stopping=self._stopping.is_set(),
            ready=self._ready,
            cluster_id=self._sources.cluster_id,
            services=self._services.offered,
            resources=tuple(self._scheduler.statuses.values()),
        )

    def _stop(self) -> int:
        self._notifier.stopping()
        self._notifier.status(summary(self.status()))
        self._sources.stop()
        deadline = time.monotonic() + STOP_LIMIT_S
        while self._scheduler.running and time.monotonic() < deadline:
            for message in self._messages(0.1):
                if isinstance(message, _Finished):
                    self._take(message)
        for name in self._scheduler.running:
            logger.warning("%s: still in work; it is resumed at the next start", name)
        for order in self._orders.values():
            order.refuse("the agent stops")
        self._services.close()
        self._store.close()
        self._file.write(self.status(), time.monotonic())
        logger.info("stopped")
        return self._exit_status


def _nothing() -> Snapshot | None:
    """What is read for a pass that only does what is owed."""
    return None


def answer_of(result: Outcome | AgentError) -> Mapping[str, Any]:
    """What a person is told of a pass that was ordered."""
    if isinstance(result, AgentError):
        return {"error": str(result), "exit_status": result.exit_status}
    message = " ".join(filter(None, (result.kind.replace("_", " "), f"at revision {result.revision}")))
    detail = result.error or result.detail
    return {"message": f"{message}: {detail}" if detail else message, "exit_status": exit_status(result)}


def pass_limit_s(resource: Resource) -> float:
    """The longest that a pass with a rollback can take by the resource's own limits."""
    health = resource.health
    check_s = resource.check.timeout_s * max(1, len(resource.templates))
    health_s = (1 + health.retries) * (2 * health.timeout_s + health.interval_s)
    bake_s = resource.rollout.bake_s + health_s if resource.rollout.group else 0.0
    return 2 * (check_s + resource.reload.timeout_s + health_s) + bake_s
