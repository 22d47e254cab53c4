"""Every error a client can be told, once: etcd's exact text, the gRPC status code, the HTTP status.

etcd's clients recognise an error by its text (etcd v3.7, api/v3rpc/rpctypes/error.go), so the texts are part
of the protocol. The tree is cut by what the client should make of it:

    EtcdError
    ├── ClientError       the client's fault, or a fact it must deal with: repeating changes nothing
    │   ├── InvalidRequest ── KeyNotProvided, KeyNotFound, ValueProvided, LeaseProvided, TooManyOperations,
    │   │                     DuplicateKey, InvalidClientAPIVersion, InvalidSortOption, RequestTooLarge,
    │   │                     MemberBadURLs, UserNameEmpty, RoleNameEmpty, AuthenticationFailed,
    │   │                     PermissionNotGiven, InvalidAuthManagement, AuthRevisionOld,
    │   │                     WrongDowngradeVersionFormat, InvalidDowngradeTargetVersion
    │   ├── Compacted, FutureRevision, LeaseTTLTooLarge                                      (out of range)
    │   ├── LeaseNotFound, MemberNotFound, UnknownService                                       (not found)
    │   ├── LeaseExists, MemberExists, PeerURLExists, MemberNotLearner, TooManyLearners, ClusterIDMismatch,
    │   │   RootUserNotFound, RootRoleNotGranted, UserExists, UserNotFound, RoleExists, RoleNotFound,
    │   │   RoleNotGranted, PermissionNotGranted, AuthNotEnabled, BadLeaderTransferee,
    │   │   NoInflightDowngrade                                                       (failed precondition)
    │   ├── PermissionDenied, InvalidAuthToken
    │   ├── WatchCanceled
    │   └── Unimplemented, MalformedMessage, MessageTooLarge
    ├── NotNow            nothing was done: the same call may succeed later or at another member
    │   ├── NoSpace, TooManyRequests                                                   (resource exhausted)
    │   ├── NoLeader, Unhealthy                                                               (unavailable)
    │   └── NotLeader, NotCapable, NotSupportedForLearner, LearnerNotReady, MemberNotEnoughStarted,
    │       ClusterVersionUnavailable, DowngradeInProgress                            (failed precondition)
    ├── OutcomeUnknown    what was asked for may have been done, or may be done yet
    │   ├── LeaderChanged, Stopped
    │   ├── TimedOut, TimedOutLeaderFailure, TimedOutConnectionLost, TimedOutAppliedIndex,
    │   │   TimedOutLeaderTransfer
    │   └── DeadlineExceeded, RequestCanceled
    └── ServerFault       ours: a bug, or damaged data
        └── Internal, Corrupt

An instance may carry another text than its class, where etcd itself composes one.
"""

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """The status codes of gRPC."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: dict[Code, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""gRPC code -> status of the JSON gateway's answer (grpc-gateway v2, which etcd has since 3.6)."""


class EtcdError(Exception):
    """An error that a client is told. `code` is the gRPC status code, `http_status` that of the JSON gateway,
    `text` what both say. Equal errors are interchangeable: raise it, return it, or keep it as an outcome."""

    code: ClassVar[Code] = Code.UNKNOWN
    http_status: ClassVar[int] = HTTP_STATUS[Code.UNKNOWN]
    text: str = "etcdserver: unknown error"

    def __init_subclass__(cls, code: Code | None = None, text: str | None = None) -> None:
        """What a subclass does not say it has from its parent."""
        super().__init_subclass__()
        if code is not None:
            cls.code = code
            cls.http_status = HTTP_STATUS[code]
        if text is not None:
            cls.text = text

    def __init__(self, text: str | None = None) -> None:
        """`text`: what to say instead of the text of the class."""
        if text is not None:
            self.text = text
        super().__init__(self.text)


def every_error() -> tuple[type[EtcdError], ...]:
    """All classes of the tree that stand for one error (its leaves), in the order of this file."""

    def leaves(cls: type[EtcdError]) -> list[type[EtcdError]]:
        children = cls.__subclasses__()
        return [leaf for child in children for leaf in leaves(child)] if children else [cls]

    return tuple(leaves(EtcdError))


# The client's fault ---------------------------------------------------------------------------------------


class ClientError(EtcdError):
    """The request is wrong, forbidden, or meets a state in which it has no meaning."""


class InvalidRequest(ClientError, code=Code.INVALID_ARGUMENT, text="etcdserver: invalid request"):
    """The request is wrong whatever the state. Raised itself with a text that names the field."""


class KeyNotProvided(InvalidRequest, text="etcdserver: key is not provided"):
    pass


class KeyNotFound(InvalidRequest, text="etcdserver: key not found"):
    """Also etcd's answer to an operation of a txn that holds no request."""


class ValueProvided(InvalidRequest, text="etcdserver: value is provided"):
    """A put with ignore_value has a value."""


class LeaseProvided(InvalidRequest, text="etcdserver: lease is provided"):
    """A put with ignore_lease has a lease."""


class TooManyOperations(InvalidRequest, text="etcdserver: too many operations in txn request"):
    pass


class DuplicateKey(InvalidRequest, text="etcdserver: duplicate key given in txn request"):
    pass


class InvalidClientAPIVersion(InvalidRequest, text="etcdserver: invalid client api version"):
    pass


class InvalidSortOption(InvalidRequest, text="etcdserver: invalid sort option"):
    pass


class RequestTooLarge(InvalidRequest, text="etcdserver: request is too large"):
    pass


class MemberBadURLs(InvalidRequest, text="etcdserver: given member URLs are invalid"):
    pass


class UserNameEmpty(InvalidRequest, text="etcdserver: user name is empty"):
    """Also etcd's answer to a call without a token while authentication is on."""


class RoleNameEmpty(InvalidRequest, text="etcdserver: role name is empty"):
    pass


class AuthenticationFailed(
    InvalidRequest, text="etcdserver: authentication failed, invalid user ID or password"
):
    pass


class PermissionNotGiven(InvalidRequest, text="etcdserver: permission not given"):
    pass


class InvalidAuthManagement(InvalidRequest, text="etcdserver: invalid auth management"):
    pass


class AuthRevisionOld(InvalidRequest, text="etcdserver: revision of auth store is old"):
    """The token was made before users or roles changed; clients authenticate again by themselves."""


class WrongDowngradeVersionFormat(InvalidRequest, text="etcdserver: wrong downgrade target version format"):
    pass


class InvalidDowngradeTargetVersion(InvalidRequest, text="etcdserver: invalid downgrade target version"):
    pass


class Compacted(
    ClientError, code=Code.OUT_OF_RANGE, text="etcdserver: mvcc: required revision has been compacted"
):
    pass


class FutureRevision(
    ClientError, code=Code.OUT_OF_RANGE, text="etcdserver: mvcc: required revision is a future revision"
):
    pass


class LeaseTTLTooLarge(ClientError, code=Code.OUT_OF_RANGE, text="etcdserver: too large lease TTL"):
    pass


class LeaseNotFound(ClientError, code=Code.NOT_FOUND, text="etcdserver: requested lease not found"):
    pass


class MemberNotFound(ClientError, code=Code.NOT_FOUND, text="etcdserver: member not found"):
    pass


class UnknownService(ClientError, code=Code.NOT_FOUND, text="unknown service"):
    """The health service was asked about a service that the server does not have: grpc-go's words."""


class LeaseExists(ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: lease already exists"):
    pass


class MemberExists(ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: member ID already exist"):
    pass


class PeerURLExists(ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: Peer URLs already exists"):
    pass


class MemberNotLearner(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: can only promote a learner member"
):
    pass


class TooManyLearners(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: too many learner members in cluster"
):
    pass


class ClusterIDMismatch(ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: cluster ID mismatch"):
    pass


class RootUserNotFound(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: root user does not exist"
):
    pass


class RootRoleNotGranted(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: root user does not have root role"
):
    pass


class UserExists(ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: user name already exists"):
    pass


class UserNotFound(ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: user name not found"):
    pass


class RoleExists(ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: role name already exists"):
    pass


class RoleNotFound(ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: role name not found"):
    pass


class RoleNotGranted(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: role is not granted to the user"
):
    pass


class PermissionNotGranted(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: permission is not granted to the role"
):
    pass


class AuthNotEnabled(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: authentication is not enabled"
):
    pass


class BadLeaderTransferee(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: bad leader transferee"
):
    pass


class NoInflightDowngrade(
    ClientError, code=Code.FAILED_PRECONDITION, text="etcdserver: no inflight downgrade job"
):
    pass


class PermissionDenied(ClientError, code=Code.PERMISSION_DENIED, text="etcdserver: permission denied"):
    pass


class InvalidAuthToken(ClientError, code=Code.UNAUTHENTICATED, text="etcdserver: invalid auth token"):
    """The token is unknown or has run out; clients authenticate again by themselves."""


class WatchCanceled(ClientError, code=Code.CANCELLED, text="etcdserver: watch canceled"):
    pass


class Unimplemented(ClientError, code=Code.UNIMPLEMENTED, text="unknown method"):
    """grpc-go's words; raised with a text that names method and service."""


class MalformedMessage(ClientError, code=Code.INTERNAL, text="grpc: error unmarshalling request"):
    """The bytes of a request are not a message of its type: grpc-go's code and words."""


class MessageTooLarge(
    ClientError, code=Code.RESOURCE_EXHAUSTED, text="grpc: received message larger than max"
):
    """Larger than any message may be: grpc-go's code and words; raised with a text that names both sizes."""


# Not now, try again ---------------------------------------------------------------------------------------


class NotNow(EtcdError, code=Code.UNAVAILABLE):
    """Nothing was done, and nothing will be: trying again, later or at another member, is safe."""


class NoSpace(NotNow, code=Code.RESOURCE_EXHAUSTED, text="etcdserver: mvcc: database space exceeded"):
    pass


class TooManyRequests(NotNow, code=Code.RESOURCE_EXHAUSTED, text="etcdserver: too many requests"):
    pass


class NoLeader(NotNow, text="etcdserver: no leader"):
    pass


class Unhealthy(NotNow, text="etcdserver: unhealthy cluster"):
    """A change of the membership would leave too few connected members."""


class NotLeader(NotNow, code=Code.FAILED_PRECONDITION, text="etcdserver: not leader"):
    pass


class NotCapable(NotNow, code=Code.FAILED_PRECONDITION, text="etcdserver: not capable"):
    """The cluster's version is older than the call."""


class NotSupportedForLearner(
    NotNow, code=Code.FAILED_PRECONDITION, text="etcdserver: rpc not supported for learner"
):
    pass


class LearnerNotReady(
    NotNow,
    code=Code.FAILED_PRECONDITION,
    text="etcdserver: can only promote a learner member which is in sync with leader",
):
    pass


class MemberNotEnoughStarted(
    NotNow,
    code=Code.FAILED_PRECONDITION,
    text="etcdserver: re-configuration failed due to not enough started members",
):
    pass


class ClusterVersionUnavailable(
    NotNow, code=Code.FAILED_PRECONDITION, text="etcdserver: cluster version not found during downgrade"
):
    pass


class DowngradeInProgress(
    NotNow, code=Code.FAILED_PRECONDITION, text="etcdserver: cluster has a downgrade job in progress"
):
    pass


# Outcome unknown ------------------------------------------------------------------------------------------


class OutcomeUnknown(EtcdError, code=Code.UNAVAILABLE):
    """A change that was asked for may have been made, or may be made yet: read before repeating it."""


class LeaderChanged(OutcomeUnknown, text="etcdserver: leader changed"):
    pass


class Stopped(OutcomeUnknown, text="etcdserver: server stopped"):
    pass


class TimedOut(OutcomeUnknown, text="etcdserver: request timed out"):
    pass


class TimedOutLeaderFailure(
    OutcomeUnknown, text="etcdserver: request timed out, possibly due to previous leader failure"
):
    pass


class TimedOutConnectionLost(
    OutcomeUnknown, text="etcdserver: request timed out, possibly due to connection lost"
):
    pass


class TimedOutAppliedIndex(
    OutcomeUnknown,
    text="etcdserver: request timed out, waiting for the applied index took too long",
):
    pass


class TimedOutLeaderTransfer(
    OutcomeUnknown,
    code=Code.UNKNOWN,
    text="etcdserver: request timed out, leader transfer took too long",
):
    """Not among the errors that etcd gives a code: its clients see UNKNOWN."""


class DeadlineExceeded(
    OutcomeUnknown, code=Code.DEADLINE_EXCEEDED, text="etcdserver: context deadline exceeded"
):
    pass


class RequestCanceled(OutcomeUnknown, code=Code.CANCELLED, text="etcdserver: request canceled"):
    pass


# Ours -----------------------------------------------------------------------------------------------------


class ServerFault(EtcdError, code=Code.INTERNAL):
    """This member, not the client, is at fault."""


class Internal(ServerFault, text="etcdserver: internal error"):
    """A bug. Raised with a text that says what was found; the log has the rest."""


class Corrupt(ServerFault, code=Code.DATA_LOSS, text="etcdserver: corrupt cluster"):
    """Members disagree about the data, or this one's is damaged."""
