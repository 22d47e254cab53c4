"""Every flag of the server, once: command line, environment, configuration file, `--help` and the tables of
docs/configuration.md are read off, or held against, this table.

The names are etcd's, of all its releases from 3.4 to 3.7 (etcd: server/embed/config.go,
server/etcdmain/help.go), so that the command line of an existing installation can be used as it stands.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """How the text of a value is read (flag_values.py)."""

    TEXT = "text"
    SWITCH = "true or false"
    COUNT = "a whole number, not negative"
    INTEGER = "a whole number"
    DURATION = 'a duration such as "100ms", "5s" or "1h30m"'
    URLS = "a comma-separated list of URLs"
    LIST = "a comma-separated list"


class Support(Enum):
    """What comes of a flag.

    HONOURED: it does what it says. IGNORED: it has no effect, because what it tunes does not exist here or
    needs no tuning; a warning says so. LATER: it asks for something that is not there yet; its default is
    accepted and any other value refused, because a server that only seemed to do it would be less safe than
    it looks, or mean something else.
    """

    HONOURED = "honoured"
    IGNORED = "ignored"
    LATER = "not supported yet"


HONOURED, IGNORED, LATER = Support.HONOURED, Support.IGNORED, Support.LATER


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `default` is text as a user would write it; `help` one sentence that names the unit."""

    name: str
    kind: Kind
    default: str
    help: str
    support: Support = HONOURED
    choices: tuple[str, ...] = ()

    @property
    def environment_name(self) -> str:
        """`--a-b` is ETCD_A_B."""
        return "ETCD_" + self.name.upper().replace("-", "_")


def _text(name: str, default: str, help: str, support: Support = HONOURED, *choices: str) -> Flag:
    return Flag(name, Kind.TEXT, default, help, support, choices)


def _switch(name: str, default: str, help: str, support: Support = HONOURED) -> Flag:
    return Flag(name, Kind.SWITCH, default, help, support)


def _count(name: str, default: str, help: str, support: Support = HONOURED) -> Flag:
    return Flag(name, Kind.COUNT, default, help, support)


def _duration(name: str, default: str, help: str, support: Support = HONOURED) -> Flag:
    return Flag(name, Kind.DURATION, default, help, support)


def _urls(name: str, default: str, help: str, support: Support = HONOURED) -> Flag:
    return Flag(name, Kind.URLS, default, help, support)


def _list(name: str, default: str, help: str, support: Support = HONOURED) -> Flag:
    return Flag(name, Kind.LIST, default, help, support)


GROUPS: Final[dict[str, tuple[Flag, ...]]] = {
    "General": (
        _text(
            "config-file",
            "",
            "Read all settings from this file, .toml, or YAML or JSON as etcd's; other flags and the "
            "environment are then ignored.",
        ),
        _switch("version", "false", "Print the version and exit."),
        _switch("help", "false", "Print this and exit; also -h."),
    ),
    "Member": (
        _text("name", "default", "Name of this member, for people and for --initial-cluster."),
        _text("data-dir", "", "Directory of the data; empty: ${name}.etcd in the working directory."),
        _urls(
            "listen-client-urls",
            "http://localhost:2379",
            "URLs to listen on for clients: http://IP:PORT or unix:///PATH.",
        ),
        _urls("listen-peer-urls", "http://localhost:2380", "URLs to listen on for other members."),
        _count("heartbeat-interval", "100", "Time between two heartbeats of the leader, in milliseconds."),
        _count(
            "election-timeout",
            "1000",
            "Silence of the leader after which a member stands for election, in milliseconds; at least 5 "
            "heartbeats, at most 50000.",
        ),
        _count("snapshot-count", "10000", "Applied entries after which the log is cut."),
        _count(
            "snapshot-catchup-entries",
            "5000",
            "Entries kept in the log behind a cut, for members that are a little behind.",
        ),
        Flag(
            "quota-backend-bytes",
            Kind.INTEGER,
            "0",
            "Largest size of the stored data, in bytes; beyond it writes are refused. 0: 2147483648 (2 "
            "GiB). Negative: no limit.",
        ),
        _count("max-txn-ops", "128", "Largest number of operations in one transaction."),
        _count("max-request-bytes", "1572864", "Largest request taken from a client, in bytes."),
        _count(
            "max-concurrent-streams",
            "4096",
            "Largest number of calls open at once on one connection. (etcd: no limit.)",
        ),
        _duration("grpc-keepalive-min-time", "5s", "Shortest interval at which a client may send pings."),
        _duration("grpc-keepalive-interval", "2h", "Idle time after which a connection is tested by a ping."),
        _duration(
            "grpc-keepalive-timeout",
            "20s",
            "Time to wait for the answer to such a ping before the connection is closed.",
        ),
    ),
    "Clustering": (
        _urls(
            "initial-advertise-peer-urls",
            "http://localhost:2380",
            "URLs at which other members reach this one.",
        ),
        _urls(
            "advertise-client-urls",
            "http://localhost:2379",
            "URLs at which clients reach this member, as they are told by MemberList. Required when "
            "--listen-client-urls is given.",
        ),
        _text(
            "initial-cluster",
            "",
            "The first members, as name=peer-URL pairs separated by commas; empty: this member alone. "
            "Read only when the data directory is new.",
        ),
        _text(
            "initial-cluster-state",
            "new",
            "Whether a new data directory begins a cluster (new) or joins one (existing).",
            HONOURED,
            "new",
            "existing",
        ),
        _text(
            "initial-cluster-token",
            "etcd-cluster",
            "Name of the cluster; it makes the ids of clusters with the same URLs differ.",
        ),
        _switch(
            "pre-vote",
            "true",
            "Ask before standing for election, so that a member that was cut off does not disturb the "
            "others.",
        ),
        _switch(
            "strict-reconfig-check", "true", "Refuse changes of the membership that would lose the quorum."
        ),
        _switch(
            "initial-election-tick-advance",
            "true",
            "At the start, when the others are there, wait for a leader for two heartbeats rather than for a "
            "whole election time-out.",
        ),
        _count(
            "max-learners",
            "1",
            "Largest number of learners in the cluster; that of the leader counts when one is added.",
        ),
        _switch(
            "force-new-cluster",
            "false",
            "Make this member a cluster of its own, with its data: recovery from the loss of a quorum. For "
            "one start only.",
        ),
        _text(
            "auto-compaction-mode",
            "periodic",
            "What --auto-compaction-retention counts: time (periodic) or revisions (revision).",
            HONOURED,
            "periodic",
            "revision",
        ),
        _text(
            "auto-compaction-retention",
            "0",
            'History to keep: a duration such as "30m", or a bare number of hours, in mode periodic; a '
            "number of revisions in mode revision. 0: keep everything.",
        ),
    ),
    "Watch": (
        _duration(
            "watch-progress-notify-interval",
            "10m",
            "Interval of the progress notices that watches may ask for; at least 100ms.",
        ),
    ),
    "Monitoring": (
        _urls(
            "listen-metrics-urls",
            "",
            "Further URLs that serve /metrics and the health pages, and nothing else.",
        ),
    ),
    "Logging": (
        _text(
            "log-level",
            "info",
            "Least severe messages that are written.",
            HONOURED,
            "debug",
            "info",
            "warn",
            "error",
            "panic",
            "fatal",
        ),
        _text("log-format", "json", "Form of a message.", HONOURED, "json", "console"),
        _list(
            "log-outputs",
            "default",
            "Where messages go: default (standard error), stdout, stderr, or paths of files.",
        ),
        _text("logger", "zap", "Must be zap: the form of etcd's own messages.", HONOURED, "zap"),
    ),
    "Not supported by this version yet": (
        _text("cert-file", "", "Certificate of this server for its clients.", LATER),
        _text("key-file", "", "Key of --cert-file.", LATER),
        _switch("client-cert-auth", "false", "Demand a certificate from clients.", LATER),
        _text("trusted-ca-file", "", "Authority that clients' certificates are checked against.", LATER),
        _text("client-cert-file", "", "Certificate for connections to itself.", LATER),
        _text("client-key-file", "", "Key of --client-cert-file.", LATER),
        _text("client-crl-file", "", "Revoked certificates of clients.", LATER),
        _list("client-cert-allowed-hostname", "", "Host names that a client's certificate may carry.", LATER),
        _switch("auto-tls", "false", "Make a certificate for clients at the start.", LATER),
        _text("peer-cert-file", "", "Certificate of this server for other members.", LATER),
        _text("peer-key-file", "", "Key of --peer-cert-file.", LATER),
        _switch("peer-client-cert-auth", "false", "Demand a certificate from other members.", LATER),
        _text("peer-trusted-ca-file", "", "Authority that members' certificates are checked against.", LATER),
        _text("peer-client-cert-file", "", "Certificate for connections to other members.", LATER),
        _text("peer-client-key-file", "", "Key of --peer-client-cert-file.", LATER),
        _text("peer-crl-file", "", "Revoked certificates of members.", LATER),
        _list("peer-cert-allowed-cn", "", "Common names that a member's certificate may carry.", LATER),
        _list("peer-cert-allowed-hostname", "", "Host names that a member's certificate may carry.", LATER),
        _switch("peer-auto-tls", "false", "Make a certificate for other members at the start.", LATER),
        _switch(
            "peer-skip-client-san-verification",
            "false",
            "Do not check the addresses in a member's certificate.",
            LATER,
        ),
        _list("host-whitelist", "*", "Host names that plain HTTP requests may be addressed to.", LATER),
        _list("cors", "*", "Origins from which browsers may ask.", LATER),
        _text("auth-token", "simple", "Kind of the tokens of logged-in users.", LATER),
        _urls(
            "listen-client-http-urls",
            "",
            "URLs for HTTP alone, which then leaves --listen-client-urls.",
            LATER,
        ),
        _switch("enable-grpc-gateway", "true", "Serve the JSON gateway.", LATER),
        _switch("enable-v2", "false", "Serve the v2 API.", LATER),
        _text("experimental-enable-v2v3", "", "Prefix of v3 keys that the v2 API shows.", LATER),
        _text("wal-dir", "", "Directory of the log, apart from the data.", LATER),
        _switch("unsafe-no-fsync", "false", "Do not wait for the disk. Loses data.", LATER),
        _switch("enable-log-rotation", "false", "Rotate the log file.", LATER),
        _text("discovery", "", "URL of a v2 discovery service.", LATER),
        _text("discovery-proxy", "", "HTTP proxy on the way to the v2 discovery service.", LATER),
        _text("discovery-token", "", "Token for v3 discovery.", LATER),
        _list("discovery-endpoints", "", "Endpoints of the v3 discovery service.", LATER),
        _text("discovery-srv", "", "DNS domain whose SRV records name the first members.", LATER),
        _text("discovery-srv-name", "", "Suffix of the names of these SRV records.", LATER),
        _text("proxy", "off", "Be a v2 proxy.", LATER),
    ),
    "Accepted without effect": (
        _count("max-snapshots", "5", "Number of snapshot files to keep; there are none.", IGNORED),
        _count("max-wals", "5", "Number of log files to keep; there is one.", IGNORED),
        _switch("memory-mlock", "false", "Keep the data in memory.", IGNORED),
        _text("backend-bbolt-freelist-type", "map", "A detail of bbolt, which is not used.", IGNORED),
        _duration("backend-batch-interval", "0s", "Longest time between two commits of the state.", IGNORED),
        Flag(
            "backend-batch-limit",
            Kind.INTEGER,
            "0",
            "Largest number of operations between two commits of the state.",
            IGNORED,
        ),
        Flag(
            "bootstrap-defrag-threshold-megabytes",
            Kind.COUNT,
            "0",
            "Defragment at the start; space is given back all the time.",
            IGNORED,
        ),
        _duration("raft-read-timeout", "5s", "Time limit of reads from other members.", IGNORED),
        _duration("raft-write-timeout", "5s", "Time limit of writes to other members.", IGNORED),
        _switch("socket-reuse-port", "false", "Share the port with other processes.", IGNORED),
        _switch(
            "socket-reuse-address",
            "false",
            "Listen on an address that was in use a moment ago; always so here.",
            IGNORED,
        ),
        _count("compaction-batch-limit", "1000", "Revisions removed in one step of a compaction.", IGNORED),
        _duration("compaction-sleep-interval", "10ms", "Rest between two steps of a compaction.", IGNORED),
        _duration("corrupt-check-time", "0s", "Interval of comparisons with other members.", IGNORED),
        _duration(
            "compact-hash-check-time",
            "1m",
            "Interval of comparisons of compacted history with other members.",
            IGNORED,
        ),
        _duration("downgrade-check-time", "5s", "Interval of looks at a downgrade under way.", IGNORED),
        _duration(
            "warning-apply-duration",
            "100ms",
            "Time to apply a request after which a warning is written.",
            IGNORED,
        ),
        _duration(
            "warning-unary-request-duration",
            "300ms",
            "Time to answer a call after which a warning is written.",
            IGNORED,
        ),
        _text("metrics", "basic", "Detail of the metrics.", IGNORED, "basic", "extensive"),
        _switch("enable-pprof", "false", "Serve profiles of the Go runtime.", IGNORED),
        _text(
            "log-rotation-config-json",
            '{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}',
            "Details of --enable-log-rotation.",
            IGNORED,
        ),
        _text(
            "feature-gates",
            "",
            "Features of etcd to switch, as name=true pairs separated by commas.",
            IGNORED,
        ),
        _text("v2-deprecation", "", "Stage of the end of the v2 API.", IGNORED),
        _count("bcrypt-cost", "10", "Effort to hash a password.", IGNORED),
        _count("auth-token-ttl", "300", "Life of a token, in seconds.", IGNORED),
        _count(
            "self-signed-cert-validity", "1", "Life of a certificate made at the start, in years.", IGNORED
        ),
        _list("cipher-suites", "", "Ciphers for TLS 1.2.", IGNORED),
        _text("tls-min-version", "TLS1.2", "Lowest version of TLS.", IGNORED),
        _text("tls-max-version", "", "Highest version of TLS.", IGNORED),
        _text("discovery-fallback", "exit", "What to do when v2 discovery fails.", IGNORED, "exit", "proxy"),
        _duration("discovery-dial-timeout", "2s", "v3 discovery: time limit of connecting.", IGNORED),
        _duration("discovery-request-timeout", "5s", "v3 discovery: time limit of a request.", IGNORED),
        _duration("discovery-keepalive-time", "2s", "v3 discovery: interval of pings.", IGNORED),
        _duration("discovery-keepalive-timeout", "6s", "v3 discovery: time limit of a ping.", IGNORED),
        _switch("discovery-insecure-transport", "true", "v3 discovery: no TLS.", IGNORED),
        _switch(
            "discovery-insecure-skip-tls-verify", "false", "v3 discovery: do not check certificates.", IGNORED
        ),
        _text("discovery-cert", "", "v3 discovery: certificate.", IGNORED),
        _text("discovery-key", "", "v3 discovery: key.", IGNORED),
        _text("discovery-cacert", "", "v3 discovery: authority.", IGNORED),
        _text("discovery-user", "", "v3 discovery: user.", IGNORED),
        _text("discovery-password", "", "v3 discovery: password.", IGNORED),
        _switch("enable-distributed-tracing", "false", "Send traces by OpenTelemetry.", IGNORED),
        _text("distributed-tracing-address", "localhost:4317", "Receiver of the traces.", IGNORED),
        _text("distributed-tracing-service-name", "etcd", "Name of the service in the traces.", IGNORED),
        _text("distributed-tracing-instance-id", "", "Name of this member in the traces.", IGNORED),
        _count("distributed-tracing-sampling-rate", "0", "Traces to send, per million.", IGNORED),
        _switch(
            "experimental-initial-corrupt-check",
            "false",
            "Compare with other members before serving.",
            IGNORED,
        ),
        _switch(
            "experimental-compact-hash-check-enabled",
            "false",
            "Compare compacted history with other members.",
            IGNORED,
        ),
        _switch(
            "experimental-enable-lease-checkpoint",
            "false",
            "Tell members the remaining time of leases.",
            IGNORED,
        ),
        _switch(
            "experimental-enable-lease-checkpoint-persist",
            "false",
            "Store the remaining time of leases.",
            IGNORED,
        ),
        _switch(
            "experimental-txn-mode-write-with-shared-buffer", "true", "A detail of etcd's storage.", IGNORED
        ),
        _switch(
            "experimental-stop-grpc-service-on-defrag",
            "false",
            "Refuse calls during a defragmentation.",
            IGNORED,
        ),
        _switch("debug", "false", "Formerly --log-level=debug.", IGNORED),
        _text("log-package-levels", "", "Formerly levels for parts of etcd.", IGNORED),
        _count("proxy-failure-wait", "5000", "v2 proxy: rest after a failure, in milliseconds.", IGNORED),
        _count("proxy-refresh-interval", "30000", "v2 proxy: refresh, in milliseconds.", IGNORED),
        _count("proxy-dial-timeout", "1000", "v2 proxy: time limit of connecting, in milliseconds.", IGNORED),
        _count("proxy-write-timeout", "5000", "v2 proxy: time limit of a write, in milliseconds.", IGNORED),
        _count("proxy-read-timeout", "0", "v2 proxy: time limit of a read, in milliseconds.", IGNORED),
        *(
            _text(name, "", "Of etcd before 3.0.", IGNORED)
            for name in (
                "cluster-active-size",
                "cluster-remove-delay",
                "cluster-sync-interval",
                "config",
                "force",
                "max-result-buffer",
                "max-retry-attempts",
                "peer-heartbeat-interval",
                "peer-election-timeout",
                "retry-interval",
                "snapshot",
                "v",
                "vv",
            )
        ),
    ),
}

FLAGS: Final[dict[str, Flag]] = {flag.name: flag for flags in GROUPS.values() for flag in flags}

FORMER_NAMES: Final[dict[str, str]] = {
    "log-output": "log-outputs",
    "experimental-snapshot-catch-up-entries": "snapshot-catchup-entries",
    **{
        f"experimental-{name}": name
        for name in (
            "backend-bbolt-freelist-type",
            "bootstrap-defrag-threshold-megabytes",
            "compact-hash-check-time",
            "compaction-batch-limit",
            "compaction-sleep-interval",
            "corrupt-check-time",
            "distributed-tracing-address",
            "distributed-tracing-instance-id",
            "distributed-tracing-sampling-rate",
            "distributed-tracing-service-name",
            "downgrade-check-time",
            "enable-distributed-tracing",
            "memory-mlock",
            "peer-skip-client-san-verification",
            "snapshot-catchup-entries",
            "warning-apply-duration",
            "warning-unary-request-duration",
            "watch-progress-notify-interval",
        )
    },
}
"""Names that a flag had in an earlier etcd, and its name today; both are accepted."""

FEATURE_GATES: Final = frozenset(
    {
        "AllAlpha",
        "AllBeta",
        "CompactHashCheck",
        "FastLeaseKeepAlive",
        "InitialCorruptCheck",
        "LeaseCheckpoint",
        "LeaseCheckpointPersist",
        "PriorityRequest",
        "SetMemberLocalAddr",
        "StopGRPCServiceOnDefrag",
        "TxnModeWriteWithSharedBuffer",
    }
)
"""etcd: server/features/etcd_features.go. None has an effect here."""


def find(name: str) -> Flag | None:
    """The flag of this name, today's or a former one."""
    return FLAGS.get(FORMER_NAMES.get(name, name))


def nearest(name: str, known: Iterable[str] = ()) -> str | None:
    """What a user who wrote `name` may have meant: of `known`, or else of all flags that have an effect."""
    effective = known or [flag.name for flag in FLAGS.values() if flag.support is not IGNORED]
    return next(iter(difflib.get_close_matches(name, effective, 1)), None)
