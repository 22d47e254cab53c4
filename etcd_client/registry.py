"""Service discovery: who serves what, where, now.

    with Registration(client, "/services/web/host1", "10.0.0.7:8080", {"weight": 10}):
        serve()

    with Service(client, "/services/web/") as web:
        connect(web.pick().address)             # one after the other
        for endpoints in web: ...               # all of them, after every change

An endpoint is one key below the service's prefix, held by a lease: it vanishes when its program ends, when
its host dies, or when nobody renews it. Its value is the JSON of etcd's own clientv3/naming
(`{"Op":0,"Addr":"host:port","Metadata":...}`), so that Go's gRPC resolver finds the same endpoints.

A registration survives the loss of its lease, of the store and of the store's data: it is made again as soon
as that is possible. Followers keep the last endpoints while the store is away.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from etcd_client.client import DEFAULT_IDLE_TIMEOUT_S, Client
from etcd_client.errors import EtcdError, NotFound, RequestError
from etcd_client.lease import Lease
from etcd_client.live import LiveConfig
from etcd_client.session import Backoff

logger = logging.getLogger(__name__)

DEFAULT_TTL_S = 15
_VERIFY_TTLS = 2


class NoEndpoint(LookupError):
    """A service has no endpoint now."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place where a service is. `name` is its key without the service's prefix."""

    name: str
    address: str
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def host(self) -> str:
        """The host, an IPv6 address without its brackets."""
        return self.address.rpartition(":")[0].removeprefix("[").removesuffix("]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def check_address(text: str) -> str:
    """`host:port` or `[IPv6]:port`, as it was given. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bare = ":" not in host or (host.startswith("[") and host.endswith("]"))
    if not colon or not host.strip("[]") or not bare or not port.isascii() or not port.isdigit():
        raise ValueError(f"expected host:port, not {text!r}")
    if not 0 < int(port) < 65536:
        raise ValueError(f"expected a port from 1 to 65535, not {text!r}")
    return text


def dump(address: str, metadata: Mapping[str, Any]) -> str:
    """The value of an endpoint's key."""
    document = {"Op": 0, "Addr": address, "Metadata": dict(metadata) or None}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def parse(name: str, value: str) -> Endpoint:
    """The endpoint in a key's value: clientv3/naming's JSON, or `host:port` alone. Raises ValueError."""
    text = value.strip()
    if not text.startswith("{"):
        return Endpoint(name, check_address(text))
    document = json.loads(text)
    address, metadata = document.get("Addr"), document.get("Metadata")
    if not isinstance(address, str):
        raise ValueError('expected {"Addr": "host:port", ...}')
    return Endpoint(name, check_address(address), metadata if isinstance(metadata, dict) else {})


class Registration:
    """Keeps `key` in the store, saying `address` and `metadata`, from `start` to `stop`.

    Its lease of `ttl_s` seconds is kept alive by a thread, which also makes lease and key again when they
    are lost, deleted, or forgotten by the store. `stop` takes the key away. `registered`: it stands there
    as far as is known; `last_error`: why not.

    A key that already stands there is replaced (an earlier run of this program may have left it); while
    somebody else holds it, it is left to them and taken back when they are gone.
    """

    def __init__(
        self,
        client: Client,
        key: str,
        address: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        ttl_s: int = DEFAULT_TTL_S,
    ) -> None:
        self.key = key
        self.last_error: EtcdError | None = None
        self._client = client
        self._value = dump(check_address(address), metadata or {})
        self._ttl_s = ttl_s
        self._lease: Lease | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()

    @property
    def registered(self) -> bool:
        lease = self._lease
        return lease is not None and not lease.lost.is_set()

    def start(self) -> None:
        """Registers, in a thread; does not wait for it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"register {self.key}", daemon=True)
            self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Waits until the key stands in the store for the first time."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """Takes the key away; takes at most as long as a request may. Otherwise the lease does it."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._client.timeout_s)

    def __enter__(self) -> Registration:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        backoff = Backoff(self._client.random, base_s=0.2, max_s=max(1.0, self._ttl_s / 2))
        while not self._stopping:
            try:
                if self._lease is None or self._lease.lost.is_set():
                    self._register()
                else:
                    self._verify(self._lease)
                self.last_error = None
                backoff.reset()
                self._ready.set()
                pause_s = float(_VERIFY_TTLS * self._ttl_s)
            except EtcdError as error:
                log = logger.warning if self.last_error is None else logger.debug
                log("%s: not registered: %s", self.key, error)
                self.last_error = error
                pause_s = backoff.next_s()
            self._wake.wait(pause_s)
            self._wake.clear()
        self._leave()

    def _register(self) -> None:
        lease = self._client.lease(self._ttl_s)
        try:
            self._client.put(self.key, self._value, lease=lease.lease_id)
        except RequestError:
            lease.revoke()  # not to be left behind by each attempt
            raise
        if self._lease is not None:
            self._lease.stop_keeping_alive()
        self._lease = lease
        lease.keep_alive(on_lost=self._wake.set)
        logger.info("%s: registered", self.key)

    def _verify(self, lease: Lease) -> None:
        """From time to time: is the key still there, and still ours?"""
        found = self._client.get(self.key)
        if found is None:
            logger.warning("%s: was deleted; registering again", self.key)
            try:
                self._client.put(self.key, self._value, lease=lease.lease_id)
            except NotFound:
                lease.lost.set()
                self._wake.set()
        elif found.lease != lease.lease_id:
            logger.warning("%s: somebody else holds this key; give each endpoint one of its own", self.key)

    def _leave(self) -> None:
        if self._lease is None:
            return
        try:
            self._lease.revoke()
            logger.info("%s: taken away", self.key)
        except NotFound:
            logger.info("%s: had run out", self.key)
        except EtcdError as error:
            logger.warning("%s: %s; it runs out in %d s", self.key, error, self._ttl_s)


class Service:
    """The endpoints below `prefix` (end it with "/"), kept current by a thread until `close`.

    The constructor loads them, and raises the errors of `etcd_client.errors` if it cannot. `on_change` is
    called with all endpoints after every change, in that thread. Iterating gives them now and after every
    change, and ends with `close`. Thread-safe; each iterator belongs to one thread.
    """

    def __init__(
        self,
        client: Client,
        prefix: str,
        on_change: Callable[[tuple[Endpoint, ...]], None] | None = None,
        *,
        idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S,
    ) -> None:
        self.prefix = prefix
        self._on_change = on_change
        self._moved = threading.Condition()
        self._closed = False
        self._number = 0
        self._next = client.random.randrange(1 << 16)
        self._endpoints: tuple[Endpoint, ...] = ()
        self._built = threading.Event()
        self._live = LiveConfig(client, prefix, self._changed, idle_timeout_s=idle_timeout_s)
        self._take(notify=False)
        self._built.set()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All endpoints, by name."""
        return self._endpoints

    @property
    def healthy(self) -> bool:
        """It is following; otherwise `endpoints` are those last seen."""
        return self._live.healthy

    def pick(self) -> Endpoint:
        """The next endpoint, one after the other. Raises NoEndpoint."""
        with self._moved:
            if not self._endpoints:
                raise NoEndpoint(f"no endpoint under {self.prefix}")
            self._next += 1
            return self._endpoints[self._next % len(self._endpoints)]

    def wait_for(self, condition: Callable[[tuple[Endpoint, ...]], bool], timeout_s: float) -> bool:
        """Waits until the endpoints satisfy `condition`; False when `timeout_s` is over."""
        with self._moved:
            self._moved.wait_for(lambda: condition(self._endpoints) or self._closed, timeout_s)
            return condition(self._endpoints)

    def close(self) -> None:
        """Ends following and every iterator; the last endpoints stay readable."""
        with self._moved:
            self._closed = True
            self._moved.notify_all()
        self._live.close()

    def __iter__(self) -> Iterator[tuple[Endpoint, ...]]:
        seen = -1
        while True:
            with self._moved:
                self._moved.wait_for(lambda: self._closed or self._number != seen)  # noqa: B023 (at once)
                if self._closed:
                    return
                seen, endpoints = self._number, self._endpoints
            yield endpoints

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _changed(self, changes: object) -> None:
        self._built.wait()
        self._take(notify=True)

    def _take(self, *, notify: bool) -> None:
        """Put the present keys in force."""
        endpoints = _endpoints(self._live.snapshot().values)
        with self._moved:
            if endpoints == self._endpoints:
                return
            self._endpoints = endpoints
            self._number += 1
            self._moved.notify_all()
        if notify and self._on_change is not None:
            self._on_change(endpoints)


def find(client: Client, prefix: str) -> tuple[Endpoint, ...]:
    """The endpoints below `prefix` (end it with "/") now, by name. Raises as `Client.get_prefix`."""
    found = client.get_prefix(prefix).kvs
    return _endpoints(
        {kv.key.decode("utf-8", "replace").removeprefix(prefix): _text(kv.value) for kv in found}
    )


def _endpoints(values: Mapping[str, str]) -> tuple[Endpoint, ...]:
    made: list[Endpoint] = []
    for name in sorted(values):
        try:
            made.append(parse(name, values[name]))
        except (ValueError, AttributeError) as error:
            logger.warning("%s: not an endpoint: %s", name, error)
    return tuple(made)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
