"""Services of this host, in the store while they are well: ``services.d/*.toml``.

Each file is one ``[service]`` with its ``[check]``. While the check passes, ``host:port`` and metadata stand
under a key with a lease; they are taken away when it fails, when the agent stops, and, by the lease, when
the host dies. `Judge` decides, purely, from a row of results; a thread for each service runs the check and
acts on it through `etcd_client.registry.Registration`, which outlives lost leases and absent stores.
"""

from __future__ import annotations

import glob
import logging
import os
import random
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from etcd_agent import commands, tables
from etcd_agent.builtin import http_problem
from etcd_agent.errors import ConfigError
from etcd_agent.report import key_part
from etcd_agent.tables import Table, read_toml
from etcd_agent.values import Command, ServiceCheck, ServiceConfig
from etcd_client import Client
from etcd_client.registry import Registration, check_address

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def load_services(confdir: str, host: str) -> tuple[ServiceConfig, ...]:
    """All of ``confdir/services.d/*.toml``, by file name. Raises ConfigError; keys must not repeat."""
    services: list[ServiceConfig] = []
    for path in sorted(glob.glob(f"{glob.escape(confdir)}/services.d/*.toml")):
        service = load_service(path, host)
        for other in services:
            if other.key == service.key:
                raise ConfigError(f"{path}: the key {service.key} is that of {other.source}, too")
        services.append(service)
    return tuple(services)


def load_service(path: str, host: str) -> ServiceConfig:
    """One file; ``%H`` in ``address`` and ``key`` is the host's id. Raises ConfigError."""
    root = read_toml(path)
    table = root.table("service")
    if "service" not in root:
        raise root.error("expected a table [service]")
    name = table.take("name", _name, os.path.basename(path).removesuffix(".toml"))
    service = ServiceConfig(
        name=name,
        source=path,
        address=table.require("address", lambda value: _address(value, host)),
        key=table.take("key", lambda value: _key(value, host), f"/services/{name}/{key_part(host)}"),
        metadata=table.take("metadata", tables.string_map, {}),
        ttl_s=round(table.take("ttl", _ttl, 15.0)),
        check=_check(root.table("check"), host),
    )
    table.finish()
    root.finish()
    return service


def _check(table: Table, host: str) -> ServiceCheck:
    check = ServiceCheck(
        tcp=table.take("tcp", lambda value: _address(value, host), None),
        http=table.take("http", _url, None),
        expect=table.take("expect", tables.integer(100, 599), 200),
        cmd=table.take("cmd", _command, None),
        interval_s=table.take("interval", _positive, 5.0),
        timeout_s=table.take("timeout", _positive, 2.0),
        rise=table.take("rise", tables.integer(1, 1000), 2),
        fall=table.take("fall", tables.integer(1, 1000), 3),
    )
    table.finish()
    return check


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"expected letters, digits, '.', '_' and '-', not {tables.describe(value)}")
    return value


def _address(value: Any, host: str) -> str:
    return check_address(tables.string(value).replace("%H", host))


def _key(value: Any, host: str) -> str:
    key = tables.key_path(tables.string(value).replace("%H", key_part(host)))
    if not key:
        raise ValueError("expected a key such as /services/web/%H")
    return key


def _url(value: Any) -> str | None:
    text = tables.string(value)
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f'expected a URL such as "http://127.0.0.1:8080/healthz", not {text!r}')
    return text


def _command(value: Any) -> Command | None:
    return tables.command(value)


def _positive(value: Any) -> float:
    seconds = tables.duration(value)
    if seconds <= 0:
        raise ValueError("expected a duration greater than zero")
    return seconds


def _ttl(value: Any) -> float:
    seconds = tables.duration(value)
    if seconds < 1:
        raise ValueError("expected a duration of a second or more")
    return seconds


# --- checking ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Judge:
    """Whether a service is well, after each result. It is not until ``rise`` checks have passed."""

    rise: int
    fall: int
    well: bool = False
    _row: int = 0

    def observe(self, passed: bool) -> bool:
        """Take one result; whether the service is well now."""
        if passed == self.well:
            self._row = 0
            return self.well
        self._row += 1
        if self._row >= (self.rise if passed else self.fall):
            self.well, self._row = passed, 0
        return self.well


def problem(check: ServiceCheck) -> str | None:
    """Run what is configured, each with its limit; why the service is not well, or None."""
    if check.tcp is not None:
        host, _, port = check.tcp.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), check.timeout_s).close()
        except OSError as error:
            return f"{check.tcp}: {error.strerror or error}"
    if check.http is not None:
        reason = http_problem(check.http, check.expect, check.timeout_s)
        if reason is not None:
            return f"{check.http}: {reason}"
    if check.cmd is not None:
        result = commands.run(check.cmd, timeout_s=check.timeout_s)
        if not result.ok:
            return result.reason(check.cmd, check.timeout_s)
    return None


class Watcher(threading.Thread):
    """Checks one service and keeps it in the store while it is well, until ``stop``."""

    def __init__(
        self,
        service: ServiceConfig,
        client: Client,
        *,
        well: bool = False,
        run_check: Callable[[ServiceCheck], str | None] = problem,
    ) -> None:
        super().__init__(name=f"service {service.name}", daemon=True)
        self.service = service
        self.reason: str | None = "not checked yet"
        self._client = client
        self._run_check = run_check
        self._judge = Judge(
            service.check.rise if service.check.configured else 1, service.check.fall, well=well
        )
        self._stopping = threading.Event()
        self._registration: Registration | None = None

    @property
    def registered(self) -> bool:
        registration = self._registration
        return registration is not None and registration.registered

    def run(self) -> None:
        check = self.service.check
        # Services of many hosts, started together, are not to be checked together.
        pause_s = 0.0
        while not self._stopping.wait(pause_s):
            self.reason = self._checked(check)
            self._act(self._judge.observe(self.reason is None))
            pause_s = check.interval_s * (0.95 + 0.1 * random.random())
        self._act(False)

    def _checked(self, check: ServiceCheck) -> str | None:
        try:
            return self._run_check(check)
        except Exception as error:  # a bug must not leave a service in the store for ever
            logger.exception("service %s: unexpected", self.service.name)
            return f"{type(error).__name__}: {error}"

    def _act(self, well: bool) -> None:
        service = self.service
        if well and self._registration is None:
            logger.info("service %s: is well; registering %s", service.name, service.key)
            self._registration = Registration(
                self._client, service.key, service.address, service.metadata, ttl_s=service.ttl_s
            )
            self._registration.start()
        elif not well and self._registration is not None:
            if self._stopping.is_set():
                logger.info("service %s: no longer offered; taking %s away", service.name, service.key)
            else:
                logger.warning("service %s: %s; taking %s away", service.name, self.reason, service.key)
            registration, self._registration = self._registration, None
            registration.stop()

    def stop(self) -> None:
        """End soon, and take the service out of the store; ``join`` waits for that."""
        self._stopping.set()


class Registrar:
    """All services of a configuration. ``set_services`` may be called again; unchanged ones go on."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._watchers: dict[str, Watcher] = {}
        self._well: frozenset[str] = frozenset()

    def adopt(self, other: Registrar) -> None:
        """Go on where ``other`` is: with its services as they stand, or, if they are offered through another
        client, with what it thinks of them. To be called before ``set_services``; then ``other`` is closed.
        """
        if other._client is self._client:
            self._watchers, other._watchers = other._watchers, self._watchers
        else:
            self._well = frozenset(key for key, watcher in other._watchers.items() if watcher.registered)

    def set_services(self, services: Sequence[ServiceConfig]) -> None:
        wanted = {service.key: service for service in services}
        ended = [
            self._watchers.pop(key)
            for key, watcher in list(self._watchers.items())
            if wanted.get(key) != watcher.service
        ]
        self._end(ended)
        for key, service in wanted.items():
            if key not in self._watchers:
                watcher = self._watchers[key] = Watcher(service, self._client, well=key in self._well)
                watcher.start()
        self._well = frozenset()

    def states(self) -> dict[str, str]:
        """What is known of each service, for people: "registered", or why not."""
        return {
            watcher.service.name: "registered" if watcher.registered else (watcher.reason or "registering")
            for watcher in self._watchers.values()
        }

    def close(self) -> None:
        """Take all services away; the agent stops."""
        self.set_services(())

    def _end(self, watchers: Sequence[Watcher]) -> None:
        for watcher in watchers:
            watcher.stop()
        for watcher in watchers:
            watcher.join(self._client.timeout_s + watcher.service.check.timeout_s)
