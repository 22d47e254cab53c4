"""List a prefix, then follow it, and list again whenever the history in between is gone.

This is the loop that every program needs which mirrors keys: a listing at one revision, a watch from the
next one, and a new listing after a compaction or when the endpoint turns out to be another cluster.

Invariant: applying the items in order (a Listing replaces everything, a WatchBatch changes what it names)
gives exactly the keys of the prefix at each item's revision.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from etcd_client.client import DEFAULT_IDLE_TIMEOUT_S, Client
from etcd_client.errors import ClusterChanged, Compacted, EtcdError
from etcd_client.types import BytesLike, KeyValue, WatchBatch
from etcd_client.watch import Watch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listing:
    """Every key of the prefix at `revision`, ordered by key."""

    revision: int
    kvs: tuple[KeyValue, ...]
    cluster_id: int


class Follow:
    """An iterator of Listing and WatchBatch; the first item is a Listing.

    `next` raises the errors of the listing (see etcd_client.errors) and may be called again afterwards: it
    then goes on where it was. It never ends by itself, only after `cancel` or `Client.close`. Iterated by
    one thread, cancelled from any. `last_error`: what keeps it from following now, None when nothing does.
    """

    def __init__(
        self, client: Client, prefix: BytesLike, *, idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._idle_timeout_s = idle_timeout_s
        self._lock = threading.Lock()
        self._cancelled = False
        self._watch: Watch | None = None
        self._listing_error: EtcdError | None = None

    @property
    def last_error(self) -> EtcdError | None:
        watch = self._watch
        return self._listing_error or (watch.last_error if watch else None)

    def __iter__(self) -> Iterator[Listing | WatchBatch]:
        return self

    def __next__(self) -> Listing | WatchBatch:
        while not self._cancelled:
            if self._watch is None:
                return self._list()
            try:
                return next(self._watch)
            except (Compacted, ClusterChanged) as error:
                logger.info("follow %r: %s; listing again", self._prefix, error)
                self._watch = None
            except EtcdError as error:
                # A watch that has raised is over; whoever calls again gets a new listing.
                self._watch, self._listing_error = None, error
                raise
        raise StopIteration

    def __enter__(self) -> Follow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Ends the iteration, from any thread. A listing under way is finished first."""
        with self._lock:
            self._cancelled = True
            if self._watch is not None:
                self._watch.cancel()

    def _list(self) -> Listing:
        try:
            found = self._client.get_prefix(self._prefix)
        except EtcdError as error:
            self._listing_error = error
            raise
        self._listing_error = None
        watch = self._client.watch(
            prefix=self._prefix, start_revision=found.revision + 1, idle_timeout_s=self._idle_timeout_s
        )
        with self._lock:
            self._watch = watch
            if self._cancelled:
                watch.cancel()
        return Listing(found.revision, found.kvs, found.cluster_id)
