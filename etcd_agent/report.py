"""What each host tells the fleet of itself, in the store.

    <prefix>/<host>             {version, started, group, labels}, with a lease: the key is there while the
                                agent lives
    <prefix>/<host>/<resource>  {state, revision, hash, since, error, reload_pending, drift}, without a lease:
                                what a host last said stays readable when it is gone

The words are those of OpAMP's remote configuration status. Only news is written, and what comes within a
moment is written together: a resource that passes through PENDING and APPLYING to where it was is none, and a
mere new revision waits for other news or ``REVISION_S``. No value of the store is in a report; of a resource
with a sensitive file not even the text of an error is.

The main loop hands statuses over and never waits; a thread writes them. The store may be away: the newest
status of each resource is kept and written when it is back.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any
from urllib.parse import quote

from etcd_agent.errors import ConfigError
from etcd_agent.loop import backoff_s
from etcd_agent.values import AgentConfig, Reporter, ResourceStatus, Retry
from etcd_client import Client, EtcdError, Lease, RequestError, ops

logger = logging.getLogger(__name__)

SETTLE_S = 0.2
REVISION_S = 60.0
MAX_ERROR = 500
SENSITIVE = "see the agent's log on the host: this resource is sensitive"
_OPERATIONS = 100
_RETRY = Retry(backoff_s=0.5, max_backoff_s=15.0)

Document = Mapping[str, Any]


def key_part(name: str) -> str:
    """A host's or resource's name as one part of a key: "/" and what is not printable is percent-encoded."""
    return quote(name, safe="@:+=,")


def host_key(prefix: str, host: str) -> str:
    return f"{prefix}/{key_part(host)}"


def resource_key(prefix: str, host: str, resource: str) -> str:
    return f"{prefix}/{key_part(host)}/{key_part(resource)}"


def document_of(status: ResourceStatus, *, sensitive: bool) -> dict[str, Any]:
    """What is written of a resource."""
    error = " ".join(status.error.split())[:MAX_ERROR]
    return {
        "state": str(status.state),
        "revision": status.revision,
        "hash": status.hash,
        "since": round(status.since, 3),
        "error": "see the agent's log on the host: this resource is sensitive"
        if error and sensitive
        else error,
        "reload_pending": status.reload_pending,
        "drift": list(status.drift),
    }


def is_news(written: Document | None, document: Document) -> bool:
    """Whether a reader would learn something: more than a new revision, or when it was as it is."""
    if written is None:
        return True
    return any(document[name] != written[name] for name in document if name not in ("revision", "since"))


def check_prefixes(config: AgentConfig) -> None:
    """Raises ConfigError if a resource watches what the agents themselves write: each report, and each slot,
    would be a change that leads to the next report.
    """
    written = {
        "report.prefix": config.report.prefix if config.report.enabled else None,
        "rollout.prefix": config.rollout.prefix if config.rollout.group else None,
    }
    for setting, prefix in written.items():
        for resource in config.resources:
            for top in resource.ranges:
                if prefix is not None and _meet(prefix, top):
                    raise ConfigError(
                        f"{resource.source}: watches {top or '/'}, which meets {setting} {prefix or '/'}: "
                        f"expected keys apart from those that agents write"
                    )


def _meet(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def open_reporter(config: AgentConfig, client: Client) -> Reporter:
    """The reporter of a configuration. Raises ConfigError for a prefix that is watched."""
    check_prefixes(config)
    return StoreReporter(config, client)


class StoreReporter:
    """Writes the host's reports in a thread of its own, from the first ``changed`` until ``close``.

    ``settle_s`` is how long further news is waited for. Thread-safe.
    """

    def __init__(
        self,
        config: AgentConfig,
        client: Client,
        *,
        settle_s: float = SETTLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._prefix, self._host, self._ttl_s = config.report.prefix, config.host_id, config.report.ttl_s
        self._sensitive = {
            each.name: any(template.sensitive for template in each.templates) for each in config.resources
        }
        self._about = {
            "version": metadata.version("etcd-py"),
            "started": round(time.time(), 3),
            "group": config.rollout.group,
            "labels": dict(config.labels),
        }
        self._settle_s = settle_s
        self._clock = clock
        self._news = threading.Condition()
        self._latest: dict[str, dict[str, Any]] = {}
        self._written: dict[str, dict[str, Any]] = {}
        self._lease: Lease | None = None
        self._closing = False
        self._revisions_at = clock() + REVISION_S
        self._thread = threading.Thread(target=self._run, name="report", daemon=True)
        self._thread.start()

    def changed(self, status: ResourceStatus) -> None:
        document = document_of(status, sensitive=self._sensitive.get(status.name, True))
        with self._news:
            self._latest[status.name] = document
            self._news.notify()

    def close(self) -> None:
        """Writes what is left and gives the lease back, at most as long as a request may take."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(self._client.timeout_s)

    def _run(self) -> None:
        failures = 0
        while True:
            with self._news:
                self._news.wait_for(self._has_work, timeout=self._next_revisions_s())
                closing = self._closing
                if not closing:
                    self._news.wait_for(lambda: self._closing, timeout=self._settle_s)
            try:
                if not closing or self._lease is not None:
                    self._write()
                failures = 0
            except Exception as error:  # whatever it is, later news must be written
                failures += 1
                if not isinstance(error, EtcdError):
                    logger.exception("report: unexpected")
                log = logger.warning if failures == 1 else logger.debug
                log("report: %s; tried again until it is written", error)
                with self._news:
                    delay_s = backoff_s(_RETRY, failures, random.random)
                    self._news.wait_for(lambda: self._closing, timeout=delay_s)
            if closing:
                self._leave()
                return

    def _has_work(self) -> bool:
        return self._closing or self._lease is None or self._lease.lost.is_set() or bool(self._due())

    def _next_revisions_s(self) -> float:
        return max(0.0, self._revisions_at - self._clock())

    def _due(self) -> dict[str, dict[str, Any]]:
        """What is to be written now, by resource. With the lock."""
        every = self._clock() >= self._revisions_at
        return {
            name: document
            for name, document in self._latest.items()
            if is_news(self._written.get(name), document) or (every and document != self._written.get(name))
        }

    def _write(self) -> None:
        self._renew_lease()
        with self._news:
            due = self._due()
            if self._clock() >= self._revisions_at:
                self._revisions_at = self._clock() + REVISION_S
        puts = [self._put(self._resource_key(name), document) for name, document in due.items()]
        for first in range(0, len(puts), _OPERATIONS):
            self._client.txn(success=puts[first : first + _OPERATIONS])
        with self._news:
            self._written.update(due)

    def _renew_lease(self) -> None:
        """A lease and the host's key with it, and nothing of resources that are no longer configured."""
        if self._lease is not None and not self._lease.lost.is_set():
            return
        if self._lease is not None:
            self._lease.stop_keeping_alive()
        top = host_key(self._prefix, self._host)
        known = {self._resource_key(name).encode() for name in self._sensitive}
        found = self._client.get_prefix(f"{top}/", keys_only=True)
        stale = [ops.delete(kv.key) for kv in found.kvs if kv.key not in known]
        lease = self._client.lease(max(1, round(self._ttl_s)))
        try:
            self._client.txn(success=[self._put(top, self._about, lease.lease_id), *stale[: _OPERATIONS - 1]])
        except RequestError:
            lease.revoke()  # not to be left behind by each attempt
            raise
        with self._news:
            self._written.clear()
        self._lease = lease
        lease.keep_alive(on_lost=self._poke)

    def _poke(self) -> None:
        with self._news:
            self._news.notify()

    def _leave(self) -> None:
        if self._lease is not None:
            try:
                self._lease.revoke()
            except EtcdError as error:
                logger.info("report: %s; the host's key goes with its lease", error)

    def _resource_key(self, name: str) -> str:
        return resource_key(self._prefix, self._host, name)

    def _put(self, key: str, document: Document, lease: int = 0) -> ops.Operation:
        return ops.put(key, json.dumps(document, separators=(",", ":")), lease=lease)


def parse(value: bytes) -> dict[str, Any]:
    """A report as it was written; ``{}`` for what is none."""
    try:
        document = json.loads(value)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
