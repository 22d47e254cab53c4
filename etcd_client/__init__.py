"""A small client of etcd's v3 API over its JSON gateway, and live configuration on top of it.

    from etcd_client import Client, compare, ops

    client = Client("http://127.0.0.1:2379")
    client.put("/app/db", "postgres://db1/app")
    for batch in client.watch(prefix="/app/", start_revision=1): ...

`docs/client.md` is the guide; `etcd_client.errors` draws the error tree.
"""

from etcd_client import compare, ops, registry
from etcd_client.client import Client
from etcd_client.errors import (
    BadAnswer,
    Closed,
    ClusterChanged,
    Compacted,
    Corrupt,
    EtcdError,
    FailedPrecondition,
    FutureRevision,
    InvalidArgument,
    NoSpace,
    NotFound,
    NotNow,
    OutcomeUnknown,
    OutOfRange,
    PermissionDenied,
    RequestError,
    ServerError,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    Unreachable,
    Unsupported,
)
from etcd_client.follow import Follow, Listing
from etcd_client.lease import Lease
from etcd_client.live import Changes, LiveConfig, Snapshot
from etcd_client.types import (
    DeleteResult,
    Event,
    EventKind,
    KeyValue,
    LeaseInfo,
    Member,
    PutResult,
    RangeResult,
    Status,
    TxnResult,
    WatchBatch,
)
from etcd_client.watch import Watch

__all__ = [
    "BadAnswer",
    "Changes",
    "Client",
    "Closed",
    "ClusterChanged",
    "Compacted",
    "Corrupt",
    "DeleteResult",
    "EtcdError",
    "Event",
    "EventKind",
    "FailedPrecondition",
    "Follow",
    "FutureRevision",
    "InvalidArgument",
    "KeyValue",
    "Lease",
    "LeaseInfo",
    "Listing",
    "LiveConfig",
    "Member",
    "NoSpace",
    "NotFound",
    "NotNow",
    "OutOfRange",
    "OutcomeUnknown",
    "PermissionDenied",
    "PutResult",
    "RangeResult",
    "RequestError",
    "ServerError",
    "Snapshot",
    "Status",
    "TooManyRequests",
    "TxnResult",
    "Unauthenticated",
    "Unavailable",
    "Unreachable",
    "Unsupported",
    "Watch",
    "WatchBatch",
    "compare",
    "ops",
    "registry",
]
