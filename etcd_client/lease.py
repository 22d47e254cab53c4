"""A lease: keys attached to it vanish when it runs out or is revoked.

    with client.lease(ttl_s=10) as lease:
        client.put("/services/web/host1", "10.0.0.1:80", lease=lease.lease_id)
        serve_until_told_to_stop(lease.lost)

Inside `with`, a thread keeps the lease alive; leaving revokes it. Without `with`, call `keep_alive_once`.
`lost` is set when the server says that the lease is gone, or when nobody could renew it for a whole TTL.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from etcd_client.errors import Closed, EtcdError, NotFound
from etcd_client.session import Session, parsed
from etcd_client.types import LeaseInfo

logger = logging.getLogger(__name__)

_AGAIN_S = 1.0


class Lease:
    """A granted lease. `lease_id` is what `put(lease=...)` takes; `ttl_s` is what the server granted.

    `lost`: a threading.Event that is set once the lease is known, or must be assumed, to be gone.
    Thread-safe.
    """

    def __init__(self, session: Session, lease_id: int, ttl_s: int) -> None:
        self.lease_id = lease_id
        self.ttl_s = ttl_s
        self.lost = threading.Event()
        self.last_error: EtcdError | None = None
        self._session = session
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_lost: Callable[[], None] | None = None

    def keep_alive_once(self, *, timeout_s: float | None = None) -> int:
        """Renews the lease and returns its TTL in seconds. Raises NotFound when it has run out.

        timeout_s: how long that may take, by default as long as any call.
        """
        body = {"ID": str(self.lease_id)}
        answer = self._session.call(
            "/v3/lease/keepalive", body, repeatable=True, stream=True, timeout_s=timeout_s
        )
        info = parsed(LeaseInfo.from_json, answer, self._session.preferred())
        if info.ttl_s <= 0:
            self.lost.set()
            raise NotFound("etcdserver: requested lease not found", code=5)
        return info.ttl_s

    def time_to_live(self, *, keys: bool = False) -> LeaseInfo:
        """What is left of the lease, with its keys when `keys`. ttl_s is -1 when it is gone."""
        body = {"ID": str(self.lease_id), "keys": keys}
        answer = self._session.call("/v3/lease/timetolive", body, repeatable=True)
        return parsed(LeaseInfo.from_json, answer, self._session.preferred())

    def revoke(self) -> None:
        """Ends the lease now and deletes its keys. Raises NotFound when it is gone already."""
        self.stop_keeping_alive()
        self._session.call("/v3/lease/revoke", {"ID": str(self.lease_id)}, repeatable=False)
        self.lost.set()

    def keep_alive(self, on_lost: Callable[[], None] | None = None) -> None:
        """Starts a thread that renews the lease every third of its TTL until it is revoked or stopped.

        on_lost: called once, in that thread, when `lost` has been set because the lease is gone or could not
        be renewed; not for a revocation.
        """
        if self._thread is None:
            self._on_lost = on_lost
            self._thread = threading.Thread(
                target=self._keep_alive, name=f"etcd-lease-{self.lease_id:x}", daemon=True
            )
            self._thread.start()

    def stop_keeping_alive(self) -> None:
        """Ends the thread that `keep_alive` started; the lease runs out after its TTL."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Lease:
        self.keep_alive()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.revoke()
        except NotFound:
            logger.info("lease %x had already run out", self.lease_id)
        except EtcdError as failure:
            logger.warning(
                "lease %x not revoked: %s; it runs out in %d s", self.lease_id, failure, self.ttl_s
            )

    def _keep_alive(self) -> None:
        clock = self._session.clock
        third_s = self.ttl_s / 3
        renewed_at_s, pause_s = clock(), third_s
        while not self._stopping.wait(pause_s):
            sent_at_s = clock()
            try:
                # A call that hangs must leave time for another, and for noticing that there is none left.
                self.keep_alive_once(timeout_s=min(third_s, self._session.timeout_s))
            except (NotFound, Closed) as error:
                self.last_error = error
                self._lose()
                return
            except EtcdError as error:
                if self.last_error is None:
                    logger.warning("lease %x not renewed: %s", self.lease_id, error)
                self.last_error = error
                pause_s = min(third_s, _AGAIN_S)
                if clock() - renewed_at_s >= self.ttl_s:
                    # The server may have deleted the keys by now; whoever relies on them must know.
                    self._lose()
            else:
                self.last_error = None
                renewed_at_s, pause_s = sent_at_s, third_s

    def _lose(self) -> None:
        on_lost, self._on_lost = self._on_lost, None
        self.lost.set()
        if on_lost is not None:
            on_lost()
