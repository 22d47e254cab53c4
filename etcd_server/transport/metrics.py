"""The metrics page: names, types, labels and buckets are those of etcd, so that its dashboards and alerts
work.

Nothing is counted here. The parts of the server keep plain integers, and histograms that are fed once for a
batch; when the page is asked for, one `MetricsSnapshot` of them is taken and turned into samples. Each
field of it says, as an annotation, which metric it is: that is the whole table of metrics. A field that is
None is not measured, and its metric is left out rather than shown as zero.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, get_type_hints

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from etcd_server.api.errors import Code
from etcd_server.api.methods import METHODS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the page, as etcd names it."""


# --- histograms -------------------------------------------------------------------------------------------


class Histogram:
    """Durations (or other sizes), counted in buckets. Observe once for a batch, from one thread."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: the inclusive upper bounds of the buckets, rising; one without bound is added."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def value(self) -> "HistogramValue":
        return HistogramValue(self._bounds, tuple(self._counts), self._sum)


class HistogramValue(NamedTuple):
    """A histogram at one moment: `counts` has one number for each bucket and a last one for what is above."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


def _doubling(start: float, count: int) -> tuple[float, ...]:
    return tuple(start * 2**power for power in range(count))


DISK_BUCKETS_S = _doubling(0.001, 14)
"""etcd_disk_wal_fsync_duration_seconds, etcd_disk_backend_commit_duration_seconds."""
APPLY_BUCKETS_S = _doubling(0.0001, 20)
"""etcd_server_apply_duration_seconds."""
COMPACTION_BUCKETS_MS = _doubling(100, 14)
"""etcd_debugging_mvcc_db_compaction_total_duration_milliseconds."""
ROUND_TRIP_BUCKETS_S = _doubling(0.0001, 16)
"""etcd_network_peer_round_trip_time_seconds."""
SNAPSHOT_BUCKETS_S = _doubling(0.1, 10)
"""etcd_network_snapshot_send_total_duration_seconds, its like for receiving, and
etcd_snap_db_save_total_duration_seconds."""
LEASE_TTL_BUCKETS_S = _doubling(1, 24)
"""etcd_debugging_lease_ttl_total."""


# --- how a field of the snapshot becomes a metric -----------------------------------------------------------

Samples = Iterator[tuple[str, dict[str, str], float]]
"""Suffix of the name, labels, value."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number that goes up and down."""

    name: str
    help: str
    type: str = field(default="gauge", init=False)

    def samples(self, value: float) -> Samples:
        yield "", {}, float(value)


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that only goes up while the process lives."""

    name: str
    help: str
    type: str = field(default="counter", init=False)

    def samples(self, value: float) -> Samples:
        yield "", {}, float(value)


@dataclass(frozen=True, slots=True)
class Info:
    """A text, shown as the label of a gauge that is always 1; the empty text is not known yet."""

    name: str
    label: str
    help: str
    type: str = field(default="gauge", init=False)

    def samples(self, value: str) -> Samples:
        if value:
            yield "", {self.label: value}, 1.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """Numbers by the values of their labels."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str

    def samples(self, value: Mapping[tuple[str, ...], float]) -> Samples:
        for values, number in value.items():
            yield "", dict(zip(self.labels, values, strict=True)), float(number)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram, with labels that are always the same."""

    name: str
    help: str
    labels: tuple[tuple[str, str], ...] = ()
    type: str = field(default="histogram", init=False)

    def samples(self, value: HistogramValue) -> Samples:
        return _distribution(dict(self.labels), value)


@dataclass(frozen=True, slots=True)
class Distributions:
    """Histograms by the values of their labels."""

    name: str
    labels: tuple[str, ...]
    help: str
    type: str = field(default="histogram", init=False)

    def samples(self, value: Mapping[tuple[str, ...], HistogramValue]) -> Samples:
        for values, histogram in value.items():
            yield from _distribution(dict(zip(self.labels, values, strict=True)), histogram)


def _distribution(labels: dict[str, str], value: HistogramValue) -> Samples:
    total = 0
    for bound, count in zip((*value.bounds, float("inf")), value.counts, strict=True):
        total += count
        yield "_bucket", {**labels, "le": _bound(bound)}, float(total)
    yield "_sum", labels, value.sum
    yield "_count", labels, float(total)


def _bound(bound: float) -> str:
    """As Go writes it: a bucket is known by this text."""
    return str(floatToGoString(bound)).removesuffix(".0")  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class PerRpc:
    """Numbers by gRPC path."""

    name: str
    help: str
    type: str = field(default="counter", init=False)

    def samples(self, value: Mapping[str, int]) -> Samples:
        for path, number in value.items():
            yield "", _RPC_LABELS[path], float(number)


@dataclass(frozen=True, slots=True)
class PerRpcAndCode:
    """Numbers by gRPC path and status code. etcd shows all codes of all methods from the start, some 850
    lines that are zero for ever; here a code of a method is shown once it has occurred, and OK always."""

    name: str
    help: str
    type: str = field(default="counter", init=False)

    def samples(self, value: Mapping[tuple[str, int], int]) -> Samples:
        for (path, code), number in value.items():
            yield "", {"grpc_code": _GO_CODES[code], **_RPC_LABELS[path]}, float(number)


Kind = Gauge | Counter | Info | Labelled | Distribution | Distributions | PerRpc | PerRpcAndCode
"""A metric: its name, type and help, and the samples that the value of its field stands for."""

_RPC_LABELS: Mapping[str, dict[str, str]] = {
    path: {"grpc_method": rpc.method, "grpc_service": rpc.service, "grpc_type": rpc.kind.value}
    for path, rpc in METHODS.items()
}
# "FAILED_PRECONDITION" is "FailedPrecondition" in Go; of the two that do not follow, one is spelt with one l.
_GO_CODES: Mapping[int, str] = {
    **{code: code.name.title().replace("_", "") for code in Code},
    Code.OK: "OK",
    Code.CANCELLED: "Canceled",
}


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """Every number of the metrics page at one moment. Counts are since the process started, sizes in
    bytes."""

    # What this member is.
    server_version: Annotated[
        str, Info("etcd_server_version", "server_version", "Release of etcd whose API is served.")
    ]
    cluster_version: Annotated[
        str, Info("etcd_cluster_version", "cluster_version", "Version of the cluster, as major.minor.")
    ]
    member_id: Annotated[
        str, Info("etcd_server_id", "server_id", "ID of this member, in hexadecimal digits.")
    ]

    # Raft.
    has_leader: Annotated[bool, Gauge("etcd_server_has_leader", "1 when this member knows a leader.")]
    is_leader: Annotated[bool, Gauge("etcd_server_is_leader", "1 when this member is the leader.")]
    is_learner: Annotated[bool, Gauge("etcd_server_is_learner", "1 when this member is a learner.")]
    leader_changes: Annotated[
        int, Counter("etcd_server_leader_changes_seen_total", "Leaders that this member has come to know.")
    ]
    proposals_committed: Annotated[
        int, Gauge("etcd_server_proposals_committed_total", "Log entries committed.")
    ]
    proposals_applied: Annotated[int, Gauge("etcd_server_proposals_applied_total", "Log entries applied.")]
    proposals_pending: Annotated[
        int, Gauge("etcd_server_proposals_pending", "Proposals that wait for their outcome.")
    ]
    proposals_failed: Annotated[
        int, Counter("etcd_server_proposals_failed_total", "Proposals refused, or not decided in time.")
    ]
    read_indexes_failed: Annotated[
        int, Counter("etcd_server_read_indexes_failed_total", "Linearizable reads that failed.")
    ]
    slow_read_indexes: Annotated[
        int | None, Counter("etcd_server_slow_read_indexes_total", "Linearizable reads that took too long.")
    ] = None
    slow_apply: Annotated[
        int | None, Counter("etcd_server_slow_apply_total", "Batches that took too long to apply.")
    ] = None
    heartbeat_send_failures: Annotated[
        int | None,
        Counter("etcd_server_heartbeat_send_failures_total", "Heartbeats of the leader sent too late."),
    ] = None
    learner_promote_successes: Annotated[
        int | None, Counter("etcd_server_learner_promote_successes", "Learners promoted by this leader.")
    ] = None
    snapshot_apply_in_progress: Annotated[
        int | None,
        Gauge(
            "etcd_server_snapshot_apply_in_progress_total", "1 while a snapshot from the leader is taken in."
        ),
    ] = None

    # Health pages.
    health_successes: Annotated[
        int, Counter("etcd_server_health_success", "Answers of /health that were good.")
    ]
    health_failures: Annotated[
        int, Counter("etcd_server_health_failures", "Answers of /health that were bad.")
    ]
    health_checks_last: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_server_healthcheck", "gauge", ("type", "name"), "Last result of each check: 1 is good."
        ),
    ] = None
    """By page ("livez", "readyz") and check."""
    health_checks: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_server_healthchecks_total", "counter", ("type", "name", "status"), "Checks made, by result."
        ),
    ] = None
    """By page, check and "success" or "error"."""
    alarms: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_debugging_server_alarms", "gauge", ("server_id", "alarm_type"), "1 for a raised alarm."
        ),
    ] = None
    """By member ID (decimal digits) and alarm ("NOSPACE", "CORRUPT")."""

    # Disk.
    quota: Annotated[int, Gauge("etcd_server_quota_backend_bytes", "Size that the data may reach.")]
    log_sync: Annotated[
        HistogramValue | None,
        Distribution("etcd_disk_wal_fsync_duration_seconds", "Synced appends to the raft log."),
    ] = None
    log_written: Annotated[
        int | None, Gauge("etcd_disk_wal_write_bytes_total", "Bytes appended to the raft log.")
    ] = None
    state_commit: Annotated[
        HistogramValue | None,
        Distribution("etcd_disk_backend_commit_duration_seconds", "Commits of the state database."),
    ] = None
    apply: Annotated[
        HistogramValue | None,
        Distribution(
            "etcd_server_apply_duration_seconds",
            "Applying the committed entries of one turn.",
            (("op", "Batch"), ("success", "true"), ("version", "v3")),
        ),
    ] = None
    database_size: Annotated[
        int, Gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the state database on disk.")
    ]
    database_in_use: Annotated[
        int, Gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "The part of it that holds data.")
    ]
    open_read_transactions: Annotated[
        int | None, Gauge("etcd_mvcc_db_open_read_transactions", "Read transactions that are open.")
    ] = None

    # Keys.
    revision: Annotated[int, Gauge("etcd_debugging_mvcc_current_revision", "Revision of the store.")]
    compacted_revision: Annotated[
        int, Gauge("etcd_debugging_mvcc_compact_revision", "Revision of the last compaction; -1: none yet.")
    ]
    keys: Annotated[int | None, Gauge("etcd_debugging_mvcc_keys_total", "Live keys.")] = None
    puts: Annotated[int | None, Counter("etcd_mvcc_put_total", "Puts, those of transactions included.")] = (
        None
    )
    deletes: Annotated[
        int | None, Counter("etcd_mvcc_delete_total", "Deletes, those of transactions included.")
    ] = None
    ranges: Annotated[
        int | None, Counter("etcd_mvcc_range_total", "Ranges, those of transactions included.")
    ] = None
    txns: Annotated[int | None, Counter("etcd_mvcc_txn_total", "Transactions.")] = None
    put_bytes: Annotated[
        int | None, Gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put.")
    ] = None
    compacted_rows: Annotated[
        int | None,
        Counter("etcd_debugging_mvcc_db_compaction_keys_total", "Revisions dropped by compaction."),
    ] = None
    compaction_last_unix_s: Annotated[
        float | None,
        Gauge("etcd_debugging_mvcc_db_compaction_last", "Unix time of the last compaction; 0: none yet."),
    ] = None
    compaction: Annotated[
        HistogramValue | None,
        Distribution(
            "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", "Compactions, from start to end."
        ),
    ] = None

    # Watches.
    watch_streams: Annotated[
        int | None, Gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams that are open.")
    ] = None
    watchers: Annotated[int | None, Gauge("etcd_debugging_mvcc_watcher_total", "Watches that are open.")] = (
        None
    )
    slow_watchers: Annotated[
        int | None, Gauge("etcd_debugging_mvcc_slow_watcher_total", "Watches that are behind the store.")
    ] = None
    events: Annotated[int | None, Counter("etcd_debugging_mvcc_events_total", "Events sent to watches.")] = (
        None
    )
    pending_events: Annotated[
        int | None, Gauge("etcd_debugging_mvcc_pending_events_total", "Events that wait to be sent.")
    ] = None

    # Leases.
    leases_granted: Annotated[
        int | None, Counter("etcd_debugging_lease_granted_total", "Leases granted.")
    ] = None
    leases_renewed: Annotated[
        int | None, Counter("etcd_debugging_lease_renewed_total", "Leases renewed by this leader.")
    ] = None
    leases_revoked: Annotated[
        int | None, Counter("etcd_debugging_lease_revoked_total", "Leases revoked, for whatever reason.")
    ] = None
    leases_expired: Annotated[
        int | None, Counter("etcd_debugging_server_lease_expired_total", "Leases that ran out.")
    ] = None
    lease_ttl: Annotated[
        HistogramValue | None, Distribution("etcd_debugging_lease_ttl_total", "TTLs of the leases granted.")
    ] = None

    # Links to other members, by their IDs in hexadecimal digits.
    peers_active: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled("etcd_network_active_peers", "gauge", ("Local", "Remote"), "1 for a link that is up."),
    ] = None
    peers_disconnected: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled("etcd_network_disconnected_peers_total", "counter", ("Local", "Remote"), "Links lost."),
    ] = None
    peer_sent: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled("etcd_network_peer_sent_bytes_total", "counter", ("To",), "Bytes sent to members."),
    ] = None
    peer_received: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_network_peer_received_bytes_total", "counter", ("From",), "Bytes received from members."
        ),
    ] = None
    peer_sent_failures: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_network_peer_sent_failures_total",
            "counter",
            ("To",),
            "Connections to members lost or not made, and frames dropped.",
        ),
    ] = None
    peer_received_failures: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_network_peer_received_failures_total",
            "counter",
            ("From",),
            "Frames of members that could not be read.",
        ),
    ] = None
    peer_round_trip: Annotated[
        Mapping[tuple[str, ...], HistogramValue] | None,
        Distributions(
            "etcd_network_peer_round_trip_time_seconds", ("To",), "Round trips of the links' pings."
        ),
    ] = None

    # Snapshots on their way between members.
    snapshots_sent: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled("etcd_network_snapshot_send_success", "counter", ("To",), "Snapshots that members took in."),
    ] = None
    snapshots_not_sent: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_network_snapshot_send_failures",
            "counter",
            ("To",),
            "Snapshots that members did not take in.",
        ),
    ] = None
    snapshots_being_sent: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_network_snapshot_send_inflights_total",
            "gauge",
            ("To",),
            "Snapshots on their way to members.",
        ),
    ] = None
    snapshot_send_duration: Annotated[
        Mapping[tuple[str, ...], HistogramValue] | None,
        Distributions(
            "etcd_network_snapshot_send_total_duration_seconds", ("To",), "From the copy to the answer."
        ),
    ] = None
    snapshots_received: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_network_snapshot_receive_success", "counter", ("From",), "Snapshots that were taken in."
        ),
    ] = None
    snapshots_not_received: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_network_snapshot_receive_failures", "counter", ("From",), "Snapshots that were of no use."
        ),
    ] = None
    snapshots_being_received: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_network_snapshot_receive_inflights_total",
            "gauge",
            ("From",),
            "Snapshots on their way to here.",
        ),
    ] = None
    snapshot_receive_duration: Annotated[
        Mapping[tuple[str, ...], HistogramValue] | None,
        Distributions(
            "etcd_network_snapshot_receive_total_duration_seconds", ("From",), "Until they were in place."
        ),
    ] = None
    snapshot_save_duration: Annotated[
        HistogramValue | None,
        Distribution(
            "etcd_snap_db_save_total_duration_seconds", "Until a received snapshot was on the disk."
        ),
    ] = None

    # gRPC. The mappings by path need only hold the methods that are served.
    grpc_received: Annotated[
        int, Counter("etcd_network_client_grpc_received_bytes_total", "Bytes of messages from gRPC clients.")
    ]
    grpc_sent: Annotated[
        int, Counter("etcd_network_client_grpc_sent_bytes_total", "Bytes of messages to gRPC clients.")
    ]
    client_requests: Annotated[
        Mapping[tuple[str, ...], float] | None,
        Labelled(
            "etcd_server_client_requests_total",
            "counter",
            ("type", "client_api_version"),
            "Requests by kind and by the version that clients say they speak.",
        ),
    ] = None
    """By "unary" or "stream", and the metadata client-api-version or "unknown"."""
    rpcs_started: Annotated[Mapping[str, int], PerRpc("grpc_server_started_total", "RPCs begun.")]
    rpcs_handled: Annotated[
        Mapping[tuple[str, int], int], PerRpcAndCode("grpc_server_handled_total", "RPCs ended, by status.")
    ]
    messages_received: Annotated[
        Mapping[str, int] | None, PerRpc("grpc_server_msg_received_total", "Messages received.")
    ] = None
    messages_sent: Annotated[
        Mapping[str, int] | None, PerRpc("grpc_server_msg_sent_total", "Messages sent.")
    ] = None


def _kinds() -> dict[str, Kind]:
    hints = get_type_hints(MetricsSnapshot, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


KINDS: Mapping[str, Kind] = _kinds()
"""Field of `MetricsSnapshot` -> metric."""


# --- the page -----------------------------------------------------------------------------------------------


class Metrics:
    """The metrics page of one server, with a registry of its own."""

    def __init__(self, snapshot: Callable[[], MetricsSnapshot]) -> None:
        """`snapshot` is called once for each page."""
        self.registry = CollectorRegistry()
        self.registry.register(_Samples(snapshot))
        self.registry.register(_Process())

    def render(self) -> bytes:
        """The page in Prometheus' text format (`CONTENT_TYPE`). Reads /proc of this process."""
        page = generate_latest(self.registry)
        # The library names every counter "..._total" in its head lines; three of etcd's are not named so.
        for name in _COUNTERS_WITHOUT_TOTAL:
            for head in ("# HELP", "# TYPE"):
                page = page.replace(f"{head} {name}_total ".encode(), f"{head} {name} ".encode())
        return page


_COUNTERS_WITHOUT_TOTAL = tuple(
    kind.name for kind in KINDS.values() if kind.type == "counter" and not kind.name.endswith("_total")
)


class _Samples(Collector):
    """The fields of a snapshot as metrics."""

    def __init__(self, snapshot: Callable[[], MetricsSnapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        snapshot = self._snapshot()
        for name, kind in KINDS.items():
            value = getattr(snapshot, name)
            if value is None:
                continue
            family_name = kind.name.removesuffix("_total") if kind.type == "counter" else kind.name
            family = Metric(family_name, kind.help, kind.type)
            for suffix, labels, number in kind.samples(value):
                family.add_sample(kind.name + suffix, labels, number)
            yield family


class _Process(Collector):
    """process_*, and what etcd calls the same numbers: os_fd_used and os_fd_limit."""

    def __init__(self) -> None:
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterable[Metric]:
        same = {"process_open_fds": "os_fd_used", "process_max_fds": "os_fd_limit"}
        for metric in self._process.collect():
            yield metric
            if metric.name in same:
                again = Metric(same[metric.name], metric.documentation, "gauge")
                again.add_sample(again.name, {}, metric.samples[0].value)
                yield again
