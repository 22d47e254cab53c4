"""`Client`: etcd's v3 API as plain, typed, synchronous calls over the JSON gateway.

Works against any etcd from 3.4 on and against etcd-py. Thread-safe: one client serves a whole program.
Errors are those of `etcd_client.errors`; which calls are repeated, and which never, is `session.py`'s rule.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from random import Random
from types import TracebackType
from typing import TypeVar, Unpack
from weakref import WeakSet

from etcd_client import ops
from etcd_client.auth import Credentials, Tokens
from etcd_client.compare import Compare
from etcd_client.errors import NotFound
from etcd_client.lease import Lease
from etcd_client.ops import Operation, RangeOptions, prefix_of
from etcd_client.session import Session, parse_endpoints, parsed
from etcd_client.tls import Tls
from etcd_client.transport import RequestsTransport, Transport
from etcd_client.types import (
    BytesLike,
    DeleteResult,
    Header,
    Json,
    KeyValue,
    LeaseInfo,
    Member,
    PutResult,
    RangeResult,
    Status,
    TxnResult,
    base64_text,
)
from etcd_client.watch import Watch

T = TypeVar("T")

DEFAULT_IDLE_TIMEOUT_S = 60.0


class Client:
    """A connection to one cluster.

    endpoints: URLs, `host:port`s, or one comma-separated string; tried in order, the one that answers is
    kept. timeout_s: how long one call may take, repetitions included. connect_timeout_s: how long one
    endpoint may take to accept. random: the source of jitter. transport: what carries requests; tests put
    their own.

    For https: ca_file (PEM) holds the authorities that are believed instead of the system's; cert is this
    client's `(certificate, key)`, PEM files; server_name is the name that the servers' certificates must
    have, instead of the endpoint's host; insecure_skip_tls_verify believes any certificate, so that whoever
    is in between can read and change everything.

    user and password: each call carries a token got with them and renewed as needed (see auth.py). password
    may be a function, which is asked each time.

    Raises ValueError for endpoints that are not URLs and for files that cannot be used, with the reason.
    Connects only when something is asked.
    """

    def __init__(
        self,
        endpoints: str | Iterable[str] = "http://127.0.0.1:2379",
        *,
        timeout_s: float = 5.0,
        connect_timeout_s: float = 2.0,
        ca_file: str | None = None,
        cert: tuple[str, str] | None = None,
        server_name: str | None = None,
        insecure_skip_tls_verify: bool = False,
        user: str | None = None,
        password: str | Callable[[], str] = "",
        random: Random | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.random = random or Random()
        tls = Tls(ca_file, cert, server_name, insecure_skip_tls_verify)
        self._session = Session(
            parse_endpoints(endpoints),
            transport or RequestsTransport(tls),
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            random=self.random,
            tokens=Tokens(Credentials(user, password)) if user else None,
        )
        self._lock = threading.Lock()
        self._watches: WeakSet[Watch] = WeakSet()

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._session.endpoints

    @property
    def timeout_s(self) -> float:
        """How long one call may take."""
        return self._session.timeout_s

    def close(self) -> None:
        """Ends every watch of this client and refuses further calls with Closed."""
        with self._lock:
            watches = list(self._watches)
        self._session.close()
        for watch in watches:
            watch.cancel()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(
        self, key: BytesLike, *, revision: int | None = None, serializable: bool = False
    ) -> KeyValue | None:
        """The key now, or as it was at `revision`; None when it did not exist.

        Raises Compacted or FutureRevision for a revision that cannot be read.
        """
        found = self.range(key, revision=revision, serializable=serializable).kvs
        return found[0] if found else None

    def range(
        self, key: BytesLike, range_end: BytesLike | None = None, **options: Unpack[RangeOptions]
    ) -> RangeResult:
        """The keys of [key, range_end), or one key; options as `ops.RangeOptions`.

        range_end b"\\0" means "to the last key"; key b"\\0" with range_end b"\\0" is every key.
        """
        body = ops.range_body(key, range_end, **options)
        return self._call("/v3/kv/range", body, RangeResult.from_json, repeatable=True)

    def get_prefix(self, prefix: BytesLike, **options: Unpack[RangeOptions]) -> RangeResult:
        """All keys that begin with `prefix`, at one revision; the empty prefix is every key."""
        return self.range(*prefix_of(prefix), **options)

    def put(
        self,
        key: BytesLike,
        value: BytesLike = b"",
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> PutResult:
        """Writes a key.

        lease: attach to this lease id; 0 detaches. prev_kv: return what was there. ignore_value /
        ignore_lease: keep what is stored (the key must exist, and `value` / `lease` must not be given).
        Raises NotFound for an unknown lease, OutcomeUnknown when it may or may not have been written.
        """
        body = ops.put_body(
            key, value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
        )
        return self._call("/v3/kv/put", body, PutResult.from_json)

    def delete(
        self, key: BytesLike, range_end: BytesLike | None = None, *, prev_kv: bool = False
    ) -> DeleteResult:
        """Deletes a key or a range; deleting nothing is not an error and moves no revision."""
        body = ops.delete_body(key, range_end, prev_kv=prev_kv)
        return self._call("/v3/kv/deleterange", body, DeleteResult.from_json)

    def delete_prefix(self, prefix: BytesLike, *, prev_kv: bool = False) -> DeleteResult:
        """Deletes all keys that begin with `prefix`; the empty prefix is every key."""
        return self.delete(*prefix_of(prefix), prev_kv=prev_kv)

    def txn(
        self,
        compare: Sequence[Compare] = (),
        success: Sequence[Operation] = (),
        failure: Sequence[Operation] = (),
    ) -> TxnResult:
        """If every comparison holds, does `success`, else `failure`, at one revision.

        See etcd_client.compare and etcd_client.ops. A txn that only reads is repeated like a read.
        """
        body = ops.txn_body(compare, success, failure)
        repeatable = all(operation.repeatable for operation in (*success, *failure))
        return self._call("/v3/kv/txn", body, TxnResult.from_json, repeatable=repeatable)

    def compact(self, revision: int, *, physical: bool = False) -> int:
        """Forgets history before `revision`; returns the store's revision.

        physical: wait until it is gone from disk. Raises Compacted, FutureRevision.
        """
        body = {"revision": str(revision), "physical": physical}
        return self._call("/v3/kv/compaction", body, Header.from_json).revision

    def lease(self, ttl_s: int, *, lease_id: int = 0) -> Lease:
        """Grants a lease of `ttl_s` seconds (the server may grant more); lease_id 0: the server chooses.

        Use it in a `with` statement to have it kept alive. Raises FailedPrecondition when the id is taken.
        """
        body = {"TTL": str(ttl_s), "ID": str(lease_id)}
        granted = self._call("/v3/lease/grant", body, LeaseInfo.from_json)
        return Lease(self._session, granted.lease_id, granted.ttl_s)

    def existing_lease(self, lease_id: int) -> Lease:
        """A Lease for an id that somebody granted before. Raises NotFound when it has run out."""
        body = {"ID": str(lease_id)}
        info = self._call("/v3/lease/timetolive", body, LeaseInfo.from_json, repeatable=True)
        if info.ttl_s < 0:
            raise NotFound("etcdserver: requested lease not found", code=5)
        return Lease(self._session, lease_id, info.granted_ttl_s)

    def leases(self) -> tuple[int, ...]:
        """The ids of all leases."""
        return self._call(
            "/v3/lease/leases",
            {},
            lambda answer: tuple(int(lease["ID"]) for lease in answer.get("leases", ())),
            repeatable=True,
        )

    def watch(
        self,
        key: BytesLike | None = None,
        range_end: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        start_revision: int = 0,
        prev_kv: bool = False,
        progress_notify: bool = True,
        puts: bool = True,
        deletes: bool = True,
        idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S,
    ) -> Watch:
        """Follows a key, a range, or everything under `prefix`, from `start_revision` (0 = from now on).

        Returns at once; the first `next` connects. The iterator resumes by itself (see watch.py) and
        raises Compacted when history since its position is gone: list again, then watch from the listing's
        revision + 1, or use `Follow`, which does so. prev_kv: events carry the value before. puts/deletes:
        False leaves those events out. idle_timeout_s: a stream silent for so long is replaced; keep the
        server's --watch-progress-notify-interval below it and a healthy quiet stream is never replaced.
        """
        if (key is None) == (prefix is None):
            raise ValueError("watch: expected either key or prefix")
        if start_revision < 0 or idle_timeout_s <= 0:
            raise ValueError("watch: start_revision must not be negative, idle_timeout_s must be positive")
        if prefix is not None:
            key, range_end = prefix_of(prefix)
        request: Json = {"key": base64_text(key or b"")}
        if range_end is not None:
            request["range_end"] = base64_text(range_end)
        request |= {"prev_kv": prev_kv, "progress_notify": progress_notify}
        filters = [name for name, wanted in (("NOPUT", puts), ("NODELETE", deletes)) if not wanted]
        if filters:
            request["filters"] = filters
        watch = Watch(self._session, request, start_revision=start_revision, idle_timeout_s=idle_timeout_s)
        with self._lock:
            self._watches.add(watch)
        if self._session.closed:
            watch.cancel()
        return watch

    def status(self, endpoint: str | None = None) -> Status:
        """What the member behind `endpoint` (None: whichever answers) says of itself."""
        target = parse_endpoints(endpoint)[0] if endpoint else None
        return self._call(
            "/v3/maintenance/status",
            {},
            lambda answer: Status.from_json(target or self._session.preferred(), answer),
            repeatable=True,
            endpoint=target,
        )

    def member_list(self, *, linearizable: bool = True) -> tuple[Member, ...]:
        """The members of the cluster. linearizable is ignored by etcd before 3.5."""
        return self._call(
            "/v3/cluster/member/list",
            {"linearizable": linearizable},
            lambda answer: tuple(Member.from_json(member) for member in answer.get("members", ())),
            repeatable=True,
        )

    def _call(
        self,
        path: str,
        body: Json,
        parse: Callable[[Json], T],
        *,
        repeatable: bool = False,
        endpoint: str | None = None,
    ) -> T:
        answer = self._session.call(path, body, repeatable=repeatable, endpoint=endpoint)
        return parsed(parse, answer, endpoint or self._session.preferred())
