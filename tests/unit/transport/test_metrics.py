"""Names, types, labels and buckets of the metrics page, against a recorded page of etcd 3.5.1."""

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from etcd_server.api.errors import Code
from etcd_server.api.methods import METHODS
from etcd_server.transport.metrics import (
    APPLY_BUCKETS_S,
    COMPACTION_BUCKETS_MS,
    DISK_BUCKETS_S,
    KINDS,
    LEASE_TTL_BUCKETS_S,
    ROUND_TRIP_BUCKETS_S,
    SNAPSHOT_BUCKETS_S,
    Distribution,
    Distributions,
    Histogram,
    HistogramValue,
    Metrics,
    MetricsSnapshot,
)

# Name, type, labels; of the metrics of etcd 3.5.1 those that are claimed here.
ETCD_3_5 = """\
etcd_cluster_version gauge cluster_version
etcd_debugging_lease_granted_total counter -
etcd_debugging_lease_renewed_total counter -
etcd_debugging_lease_revoked_total counter -
etcd_debugging_lease_ttl_total histogram -
etcd_debugging_mvcc_compact_revision gauge -
etcd_debugging_mvcc_current_revision gauge -
etcd_debugging_mvcc_db_compaction_keys_total counter -
etcd_debugging_mvcc_db_compaction_last gauge -
etcd_debugging_mvcc_db_compaction_total_duration_milliseconds histogram -
etcd_debugging_mvcc_events_total counter -
etcd_debugging_mvcc_keys_total gauge -
etcd_debugging_mvcc_pending_events_total gauge -
etcd_debugging_mvcc_slow_watcher_total gauge -
etcd_debugging_mvcc_total_put_size_in_bytes gauge -
etcd_debugging_mvcc_watch_stream_total gauge -
etcd_debugging_mvcc_watcher_total gauge -
etcd_debugging_server_lease_expired_total counter -
etcd_disk_backend_commit_duration_seconds histogram -
etcd_disk_wal_fsync_duration_seconds histogram -
etcd_disk_wal_write_bytes_total gauge -
etcd_mvcc_db_open_read_transactions gauge -
etcd_mvcc_db_total_size_in_bytes gauge -
etcd_mvcc_db_total_size_in_use_in_bytes gauge -
etcd_mvcc_delete_total counter -
etcd_mvcc_put_total counter -
etcd_mvcc_range_total counter -
etcd_mvcc_txn_total counter -
etcd_network_active_peers gauge Local,Remote
etcd_network_client_grpc_received_bytes_total counter -
etcd_network_client_grpc_sent_bytes_total counter -
etcd_network_disconnected_peers_total counter Local,Remote
etcd_network_peer_received_bytes_total counter From
etcd_network_peer_received_failures_total counter From
etcd_network_peer_round_trip_time_seconds histogram To
etcd_network_peer_sent_bytes_total counter To
etcd_network_peer_sent_failures_total counter To
etcd_network_snapshot_receive_failures counter From
etcd_network_snapshot_receive_inflights_total gauge From
etcd_network_snapshot_receive_success counter From
etcd_network_snapshot_receive_total_duration_seconds histogram From
etcd_network_snapshot_send_failures counter To
etcd_network_snapshot_send_inflights_total gauge To
etcd_network_snapshot_send_success counter To
etcd_network_snapshot_send_total_duration_seconds histogram To
etcd_server_apply_duration_seconds histogram op,success,version
etcd_server_client_requests_total counter client_api_version,type
etcd_server_has_leader gauge -
etcd_server_health_failures counter -
etcd_server_health_success counter -
etcd_server_heartbeat_send_failures_total counter -
etcd_server_id gauge server_id
etcd_server_is_leader gauge -
etcd_server_is_learner gauge -
etcd_server_leader_changes_seen_total counter -
etcd_server_learner_promote_successes counter -
etcd_server_proposals_applied_total gauge -
etcd_server_proposals_committed_total gauge -
etcd_server_proposals_failed_total counter -
etcd_server_proposals_pending gauge -
etcd_server_quota_backend_bytes gauge -
etcd_server_read_indexes_failed_total counter -
etcd_server_slow_apply_total counter -
etcd_server_slow_read_indexes_total counter -
etcd_server_snapshot_apply_in_progress_total gauge -
etcd_server_version gauge server_version
etcd_snap_db_save_total_duration_seconds histogram -
grpc_server_handled_total counter grpc_code,grpc_method,grpc_service,grpc_type
grpc_server_msg_received_total counter grpc_method,grpc_service,grpc_type
grpc_server_msg_sent_total counter grpc_method,grpc_service,grpc_type
grpc_server_started_total counter grpc_method,grpc_service,grpc_type
os_fd_limit gauge -
os_fd_used gauge -
process_cpu_seconds_total counter -
process_max_fds gauge -
process_open_fds gauge -
process_resident_memory_bytes gauge -
process_start_time_seconds gauge -
process_virtual_memory_bytes gauge -
"""
# Registered by etcd 3.6 (server/etcdserver/api/etcdhttp/health.go, server/etcdserver/apply/metrics.go).
ETCD_3_6 = """\
etcd_debugging_server_alarms gauge alarm_type,server_id
etcd_server_healthcheck gauge name,type
etcd_server_healthchecks_total counter name,status,type
"""
BUCKETS = {
    "etcd_disk_wal_fsync_duration_seconds": "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512"
    " 1.024 2.048 4.096 8.192 +Inf",
    "etcd_disk_backend_commit_duration_seconds": "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512"
    " 1.024 2.048 4.096 8.192 +Inf",
    "etcd_server_apply_duration_seconds": "0.0001 0.0002 0.0004 0.0008 0.0016 0.0032 0.0064 0.0128 0.0256"
    " 0.0512 0.1024 0.2048 0.4096 0.8192 1.6384 3.2768 6.5536 13.1072 26.2144 52.4288 +Inf",
    "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds": "100 200 400 800 1600 3200 6400 12800"
    " 25600 51200 102400 204800 409600 819200 +Inf",
    "etcd_debugging_lease_ttl_total": "1 2 4 8 16 32 64 128 256 512 1024 2048 4096 8192 16384 32768 65536"
    " 131072 262144 524288 1.048576e+06 2.097152e+06 4.194304e+06 8.388608e+06 +Inf",
    "etcd_network_peer_round_trip_time_seconds": "0.0001 0.0002 0.0004 0.0008 0.0016 0.0032 0.0064 0.0128"
    " 0.0256 0.0512 0.1024 0.2048 0.4096 0.8192 1.6384 3.2768 +Inf",
    "etcd_network_snapshot_send_total_duration_seconds": "0.1 0.2 0.4 0.8 1.6 3.2 6.4 12.8 25.6 51.2 +Inf",
    "etcd_network_snapshot_receive_total_duration_seconds": "0.1 0.2 0.4 0.8 1.6 3.2 6.4 12.8 25.6 51.2 +Inf",
    "etcd_snap_db_save_total_duration_seconds": "0.1 0.2 0.4 0.8 1.6 3.2 6.4 12.8 25.6 51.2 +Inf",
}
RANGE, WATCH = "/etcdserverpb.KV/Range", "/etcdserverpb.Watch/Watch"
# As Go names them, in the recorded page.
GO_CODES = {
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
}
SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="([^"]*)"')

LEAST: dict[str, Any] = {
    "server_version": "3.6.0",
    "cluster_version": "3.6",
    "member_id": "bdae9bbc11dd390d",
    "has_leader": True,
    "is_leader": True,
    "is_learner": False,
    "leader_changes": 1,
    "proposals_committed": 24,
    "proposals_applied": 23,
    "proposals_pending": 1,
    "proposals_failed": 0,
    "read_indexes_failed": 0,
    "health_successes": 5,
    "health_failures": 3,
    "quota": 2 * 1024**3,
    "database_size": 20480,
    "database_in_use": 16384,
    "revision": 6,
    "compacted_revision": -1,
    "grpc_received": 100,
    "grpc_sent": 200,
    "rpcs_started": {RANGE: 7, WATCH: 1},
    "rpcs_handled": {(RANGE, 0): 5, (RANGE, 11): 2},
}


def histogram(bounds: tuple[float, ...], *values: float) -> HistogramValue:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    return histogram.value()


def full() -> MetricsSnapshot:
    """A snapshot in which every field is measured."""
    more: dict[str, Any] = {
        "health_checks_last": {("readyz", "linearizable_read"): 0},
        "health_checks": {("readyz", "linearizable_read", "error"): 2},
        "alarms": {("13668033151171901709", "NOSPACE"): 1},
        "client_requests": {("unary", "unknown"): 76},
        "messages_received": {RANGE: 7},
        "messages_sent": {RANGE: 5},
        "log_sync": histogram(DISK_BUCKETS_S, 0.0005, 0.001, 0.003, 9.0),
        "state_commit": histogram(DISK_BUCKETS_S),
        "apply": histogram(APPLY_BUCKETS_S, 0.0003),
        "compaction": histogram(COMPACTION_BUCKETS_MS),
        "lease_ttl": histogram(LEASE_TTL_BUCKETS_S, 60),
        "peers_active": {("a1", "b2"): True},
        "peers_disconnected": {("a1", "b2"): 3},
        "peer_sent": {("b2",): 4},
        "peer_received": {("b2",): 5},
        "peer_sent_failures": {("b2",): 6},
        "peer_received_failures": {("b2",): 7},
        "peer_round_trip": {("b2",): histogram(ROUND_TRIP_BUCKETS_S, 0.001)},
        "snapshots_sent": {("b2",): 1},
        "snapshots_not_sent": {("b2",): 2},
        "snapshots_being_sent": {("b2",): 1},
        "snapshot_send_duration": {("b2",): histogram(SNAPSHOT_BUCKETS_S, 3)},
        "snapshots_received": {("b2",): 1},
        "snapshots_not_received": {("b2",): 2},
        "snapshots_being_received": {("b2",): 1},
        "snapshot_receive_duration": {("b2",): histogram(SNAPSHOT_BUCKETS_S, 3)},
        "snapshot_save_duration": histogram(SNAPSHOT_BUCKETS_S, 2),
    }
    rest: dict[str, Any] = {
        field.name: 1 for field in fields(MetricsSnapshot) if field.name not in {*LEAST, *more}
    }
    return MetricsSnapshot(**LEAST, **more, **rest)


def render(snapshot: MetricsSnapshot) -> list[str]:
    return Metrics(lambda: snapshot).render().decode().splitlines()


def samples(lines: list[str]) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in lines:
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            yield match[1], dict(LABEL.findall(match[2] or "")), float(match[3])


def test_every_name_type_and_label_is_etcds() -> None:
    lines = render(full())
    types = dict(line.split()[2:] for line in lines if line.startswith("# TYPE"))
    labels: dict[str, set[str]] = {}
    for name, labelled, _ in samples(lines):
        family = re.sub("_(bucket|sum|count)$", "", name)
        labels.setdefault(family if types.get(family) == "histogram" else name, set()).add(
            ",".join(sorted(set(labelled) - {"le"})) or "-"
        )
    ours = {f"{name} {types[name]} {label}" for name, found in labels.items() for label in found}
    assert ours == {*ETCD_3_5.splitlines(), *ETCD_3_6.splitlines()}
    assert set(types) == set(labels)


@pytest.mark.parametrize("name", BUCKETS)
def test_every_bucket_is_etcds(name: str) -> None:
    found = [labels["le"] for sample, labels, _ in samples(render(full())) if sample == f"{name}_bucket"]
    assert found == BUCKETS[name].split()


def test_the_names_that_the_official_dashboards_read() -> None:
    shown = {name for name, _, _ in samples(render(full()))}
    assert shown >= {
        "etcd_server_has_leader",
        "etcd_server_leader_changes_seen_total",
        "etcd_server_proposals_committed_total",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_pending",
        "etcd_server_proposals_failed_total",
        "etcd_server_quota_backend_bytes",
        "etcd_mvcc_db_total_size_in_bytes",
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "etcd_disk_wal_fsync_duration_seconds_bucket",
        "etcd_disk_backend_commit_duration_seconds_bucket",
        "etcd_network_client_grpc_received_bytes_total",
        "etcd_network_client_grpc_sent_bytes_total",
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
    }


def test_the_values_are_those_of_the_snapshot() -> None:
    found = {(name, *sorted(labels.values())): value for name, labels, value in samples(render(full()))}
    assert found["etcd_server_proposals_committed_total",] == 24
    assert found["etcd_server_has_leader",] == 1
    assert found["etcd_server_is_learner",] == 0
    assert found["etcd_server_quota_backend_bytes",] == 2147483648
    assert found["etcd_debugging_mvcc_compact_revision",] == -1
    assert found["etcd_server_health_success",] == 5
    assert found["etcd_server_id", "bdae9bbc11dd390d"] == 1
    assert found["etcd_cluster_version", "3.6"] == 1
    assert found["etcd_server_healthchecks_total", "error", "linearizable_read", "readyz"] == 2
    assert found["grpc_server_started_total", "Watch", "bidi_stream", "etcdserverpb.Watch"] == 1
    assert found["grpc_server_handled_total", "OutOfRange", "Range", "etcdserverpb.KV", "unary"] == 2
    assert found["os_fd_used",] == found["process_open_fds",] > 0


def test_a_histogram_adds_up() -> None:
    name = "etcd_disk_wal_fsync_duration_seconds"
    found = {(sample, labels.get("le")): value for sample, labels, value in samples(render(full()))}
    assert [found[f"{name}_bucket", le] for le in ("0.001", "0.002", "0.004", "8.192", "+Inf")] == [
        2,
        2,
        3,
        3,
        4,
    ]
    assert found[f"{name}_count", None] == 4
    assert found[f"{name}_sum", None] == pytest.approx(9.0045)


def test_what_is_not_measured_is_left_out() -> None:
    shown = {name for name, _, _ in samples(render(MetricsSnapshot(**LEAST)))}
    assert "etcd_server_has_leader" in shown
    assert not shown & {"etcd_mvcc_put_total", "etcd_disk_wal_fsync_duration_seconds_count"}


def test_a_cluster_version_that_is_not_decided_yet_is_left_out() -> None:
    lines = render(MetricsSnapshot(**{**LEAST, "cluster_version": ""}))
    assert not [line for line in lines if line.startswith("etcd_cluster_version")]


def test_every_rpc_and_code_can_be_shown() -> None:
    handled = {(path, int(code)): 1 for path in METHODS for code in Code}
    lines = render(MetricsSnapshot(**{**LEAST, "rpcs_handled": handled}))
    codes = {labels["grpc_code"] for name, labels, _ in samples(lines) if name == "grpc_server_handled_total"}
    assert codes == GO_CODES


def test_a_snapshot_is_taken_only_for_a_page_and_once() -> None:
    taken = []

    def snapshot() -> MetricsSnapshot:
        taken.append(1)
        return MetricsSnapshot(**LEAST)

    metrics = Metrics(snapshot)
    assert not taken
    metrics.render()
    assert len(taken) == 1


def test_the_page_is_what_prometheus_reads() -> None:
    page = Metrics(full).render().decode()
    families = {family.name for family in text_string_to_metric_families(page)}
    assert {"etcd_server_has_leader", "etcd_server_health_success", "grpc_server_handled"} <= families


def test_two_servers_in_one_process_have_a_page_each() -> None:
    first = render(MetricsSnapshot(**LEAST))
    second = render(MetricsSnapshot(**{**LEAST, "revision": 7}))
    assert "etcd_debugging_mvcc_current_revision 6.0" in first
    assert "etcd_debugging_mvcc_current_revision 7.0" in second


def test_a_field_is_a_metric_of_its_own() -> None:
    assert {field.name for field in fields(MetricsSnapshot)} == set(KINDS)
    assert len({kind.name for kind in KINDS.values()}) == len(KINDS)
    assert all(kind.help.endswith(".") for kind in KINDS.values())
    assert {kind.name for kind in KINDS.values() if isinstance(kind, Distribution | Distributions)} == set(
        BUCKETS
    )
