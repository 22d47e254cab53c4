"""A watch over the JSON gateway that survives what happens to long HTTP streams.

It goes on at the next endpoint, from the revision after the last one delivered, when the stream carries
an error frame, ends, stays silent for `idle_timeout_s`, or its connection is lost. It asks the server
(`Grpc-Metadata-hasleader`) to end the stream when there is no leader, instead of leaving it silent (etcd
issue 10819). What cannot be survived without the caller is raised: Compacted (list again), ClusterChanged,
and the caller's own faults.

Invariant: every event of the range with a revision from `start_revision` on is delivered exactly once, in
order, whole revisions at a time. Safe to cancel from any thread; iterated by one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from types import TracebackType

from etcd_client.auth import TOKEN_TEXTS
from etcd_client.errors import (
    BadAnswer,
    ClusterChanged,
    Compacted,
    EtcdError,
    InvalidArgument,
    NotNow,
    PermissionDenied,
    ServerError,
    Unauthenticated,
    Unavailable,
)
from etcd_client.session import Backoff, Session, decode, no_answer, parsed, result_of_frame
from etcd_client.transport import IdleTimeout, Response, TransportError
from etcd_client.types import Event, Header, Json, WatchBatch

logger = logging.getLogger(__name__)

# A stream that lived this long was a good one: what follows is a new trouble, met without a long wait.
_STEADY_S = 5.0


class Watch:
    """An iterator of WatchBatch. Made by `Client.watch`; ends after `cancel`.

    `next_revision`: where it would resume (0 until the first answer when it starts at "now").
    `connected`: a stream is open and the server has confirmed the watch. `last_error`: why the last stream
    ended, None while connected.
    """

    def __init__(
        self,
        session: Session,
        create_request: Json,
        *,
        start_revision: int,
        idle_timeout_s: float,
    ) -> None:
        self.next_revision = start_revision
        self.cluster_id = 0
        self.connected = False
        self.last_error: EtcdError | None = None
        self._seen_revision = 0
        self._session = session
        self._create_request = create_request
        self._idle_timeout_s = idle_timeout_s
        self._backoff = Backoff(session.random)
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._response: Response | None = None
        self._token: str | None = None
        self._token_refused = False
        self._token_renewed = False
        self._batches = self._run()

    def __iter__(self) -> Iterator[WatchBatch]:
        return self

    def __next__(self) -> WatchBatch:
        return next(self._batches)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ends the watch, from any thread and any number of times. A blocked `next` stops iterating."""
        with self._lock:
            self._cancelled.set()
            if self._response is not None:
                self._response.abort()

    def _run(self) -> Iterator[WatchBatch]:
        while not self.cancelled:
            endpoint = self._session.preferred()
            opened_at_s = self._session.clock()
            try:
                yield from self._stream(endpoint)
                trouble: EtcdError = Unavailable("the watch stream ended", endpoint=endpoint)
            except (NotNow, ServerError) as error:
                trouble = error
            except (Unauthenticated, PermissionDenied) as error:
                # etcd before 3.5.5 says "permission denied" for a token that has expired, too.
                if self._token_renewed or not self._session.has_user:
                    raise
                self._token_refused = True
                self._note(error)
                continue
            finally:
                self.connected = False
            if self.cancelled:
                return
            self._note(trouble)
            self._session.rotate(endpoint)
            if isinstance(trouble.__cause__, IdleTimeout):
                continue
            if self._session.clock() - opened_at_s >= _STEADY_S:
                self._backoff.reset()
            self._cancelled.wait(self._backoff.next_s())

    def _note(self, trouble: EtcdError) -> None:
        self.last_error = trouble
        logger.info("watch: %s; resuming at revision %s", trouble, self.next_revision or "now")

    def _stream(self, endpoint: str) -> Iterator[WatchBatch]:
        """The batches of one stream, until it ends. Raises what ended it, if anything did."""
        request = dict(self._create_request)
        if self.next_revision:
            request["start_revision"] = str(self.next_revision)
        response = self._session.open_stream(
            endpoint,
            "/v3/watch",
            {"create_request": request},
            token=self._current_token(endpoint),
            headers={"Grpc-Metadata-hasleader": "true"},
            idle_timeout_s=self._idle_timeout_s,
        )
        try:
            with self._lock:
                if self.cancelled:
                    return
                self._response = response
            for line in _lines(response):
                result = result_of_frame(decode(line, endpoint), endpoint, repeatable=True)
                batch = parsed(lambda document: self._take(document, endpoint), result, endpoint)
                if batch is not None:
                    yield batch
        except TransportError as error:
            raise no_answer(error, endpoint, repeatable=True) from error
        finally:
            with self._lock:
                self._response = None
            response.close()

    def _current_token(self, endpoint: str) -> str:
        """The user's token; another one when the last stream was refused with it."""
        refused = self._token if self._token_refused else None
        self._token = self._session.token(endpoint, instead_of=refused)
        self._token_renewed, self._token_refused = self._token_refused, False
        return self._token

    def _take(self, result: Json, endpoint: str) -> WatchBatch | None:
        """Accounts for one WatchResponse; the batch for the caller, if there is one."""
        header = Header.from_json(result)
        self._check_cluster(header, endpoint)
        if result.get("canceled"):
            raise _cancellation(result, endpoint)
        if result.get("created"):
            if header.revision < self._seen_revision:
                # A member that lags will catch up; a store restored from an old backup will not, and
                # waiting silently for its revisions to come by again would hide that.
                raise Unavailable(
                    f"the store is at revision {header.revision}, {self._seen_revision} was already seen",
                    endpoint=endpoint,
                )
            self.connected = True
            self.last_error = None
            self._token_renewed = False
            # header.revision is the store's revision when the watch was made: what follows is newer.
            self.next_revision = self.next_revision or header.revision + 1
            self._seen_revision = header.revision
            return None
        events = tuple(Event.from_json(event) for event in result.get("events", ()))
        # While history is being caught up header.revision runs ahead of the events, so that only a
        # response without events (a progress notification) speaks for all changes up to it.
        revision = events[-1].kv.mod_revision if events else header.revision
        if events and events[0].kv.mod_revision < self.next_revision:
            raise BadAnswer(
                f"an event of revision {events[0].kv.mod_revision} in a watch from {self.next_revision}",
                endpoint=endpoint,
            )
        self.next_revision = max(self.next_revision, revision + 1)
        self._seen_revision = max(self._seen_revision, revision)
        self._backoff.reset()
        return WatchBatch(revision=revision, events=events, cluster_id=header.cluster_id)

    def _check_cluster(self, header: Header, endpoint: str) -> None:
        if self.cluster_id and header.cluster_id != self.cluster_id:
            raise ClusterChanged(
                f"cluster {header.cluster_id:x} answers, the watch began in {self.cluster_id:x}",
                endpoint=endpoint,
            )
        self.cluster_id = header.cluster_id


def _lines(response: Response) -> Iterator[bytes]:
    """The lines of a stream as they are completed; a last line without its end is dropped."""
    parts: list[bytes] = []
    for chunk in response.chunks():
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            parts.append(line)
            whole = b"".join(parts).strip()
            parts.clear()
            if whole:
                yield whole
        if rest:
            parts.append(rest)


def _cancellation(result: Json, endpoint: str) -> EtcdError:
    """Why the server cancelled the watch, as the error for it."""
    reason = str(result.get("cancel_reason", ""))
    compact_revision = int(result.get("compact_revision", 0))
    if compact_revision or "has been compacted" in reason:
        text = reason or "etcdserver: mvcc: required revision has been compacted"
        return Compacted(text, endpoint=endpoint, compact_revision=compact_revision)
    if "permission denied" in reason:
        return PermissionDenied(reason, code=7, endpoint=endpoint)
    if any(text in reason for text in TOKEN_TEXTS):
        return Unauthenticated(reason, code=16, endpoint=endpoint)
    if result.get("created") and "leader" not in reason:
        return InvalidArgument(reason or "the server refused the watch", endpoint=endpoint)
    return Unavailable(reason or "the server cancelled the watch", endpoint=endpoint)
