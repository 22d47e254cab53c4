"""Texts and codes are those of etcd v3.7.1, api/v3rpc/rpctypes/error.go: clients know errors by them."""

import re

import pytest

from etcd_server.api import errors
from etcd_server.api.errors import Code, EtcdError

# Our class, the gRPC code, the text; in the order of etcd's file.
ETCD = """\
KeyNotProvided INVALID_ARGUMENT etcdserver: key is not provided
KeyNotFound INVALID_ARGUMENT etcdserver: key not found
ValueProvided INVALID_ARGUMENT etcdserver: value is provided
LeaseProvided INVALID_ARGUMENT etcdserver: lease is provided
TooManyOperations INVALID_ARGUMENT etcdserver: too many operations in txn request
DuplicateKey INVALID_ARGUMENT etcdserver: duplicate key given in txn request
InvalidClientAPIVersion INVALID_ARGUMENT etcdserver: invalid client api version
InvalidSortOption INVALID_ARGUMENT etcdserver: invalid sort option
Compacted OUT_OF_RANGE etcdserver: mvcc: required revision has been compacted
FutureRevision OUT_OF_RANGE etcdserver: mvcc: required revision is a future revision
NoSpace RESOURCE_EXHAUSTED etcdserver: mvcc: database space exceeded
LeaseNotFound NOT_FOUND etcdserver: requested lease not found
LeaseExists FAILED_PRECONDITION etcdserver: lease already exists
LeaseTTLTooLarge OUT_OF_RANGE etcdserver: too large lease TTL
WatchCanceled CANCELLED etcdserver: watch canceled
MemberExists FAILED_PRECONDITION etcdserver: member ID already exist
PeerURLExists FAILED_PRECONDITION etcdserver: Peer URLs already exists
MemberNotEnoughStarted FAILED_PRECONDITION etcdserver: re-configuration failed due to not enough\
 started members
MemberBadURLs INVALID_ARGUMENT etcdserver: given member URLs are invalid
MemberNotFound NOT_FOUND etcdserver: member not found
MemberNotLearner FAILED_PRECONDITION etcdserver: can only promote a learner member
LearnerNotReady FAILED_PRECONDITION etcdserver: can only promote a learner member which is in sync with leader
TooManyLearners FAILED_PRECONDITION etcdserver: too many learner members in cluster
ClusterIDMismatch FAILED_PRECONDITION etcdserver: cluster ID mismatch
RequestTooLarge INVALID_ARGUMENT etcdserver: request is too large
TooManyRequests RESOURCE_EXHAUSTED etcdserver: too many requests
RootUserNotFound FAILED_PRECONDITION etcdserver: root user does not exist
RootRoleNotGranted FAILED_PRECONDITION etcdserver: root user does not have root role
UserExists FAILED_PRECONDITION etcdserver: user name already exists
UserNameEmpty INVALID_ARGUMENT etcdserver: user name is empty
UserNotFound FAILED_PRECONDITION etcdserver: user name not found
RoleExists FAILED_PRECONDITION etcdserver: role name already exists
RoleNotFound FAILED_PRECONDITION etcdserver: role name not found
RoleNameEmpty INVALID_ARGUMENT etcdserver: role name is empty
AuthenticationFailed INVALID_ARGUMENT etcdserver: authentication failed, invalid user ID or password
PermissionNotGiven INVALID_ARGUMENT etcdserver: permission not given
PermissionDenied PERMISSION_DENIED etcdserver: permission denied
RoleNotGranted FAILED_PRECONDITION etcdserver: role is not granted to the user
PermissionNotGranted FAILED_PRECONDITION etcdserver: permission is not granted to the role
AuthNotEnabled FAILED_PRECONDITION etcdserver: authentication is not enabled
InvalidAuthToken UNAUTHENTICATED etcdserver: invalid auth token
InvalidAuthManagement INVALID_ARGUMENT etcdserver: invalid auth management
AuthRevisionOld INVALID_ARGUMENT etcdserver: revision of auth store is old
NoLeader UNAVAILABLE etcdserver: no leader
NotLeader FAILED_PRECONDITION etcdserver: not leader
LeaderChanged UNAVAILABLE etcdserver: leader changed
NotCapable FAILED_PRECONDITION etcdserver: not capable
Stopped UNAVAILABLE etcdserver: server stopped
TimedOut UNAVAILABLE etcdserver: request timed out
TimedOutLeaderFailure UNAVAILABLE etcdserver: request timed out, possibly due to previous leader failure
TimedOutConnectionLost UNAVAILABLE etcdserver: request timed out, possibly due to connection lost
TimedOutAppliedIndex UNAVAILABLE etcdserver: request timed out, waiting for the applied index took too long
Unhealthy UNAVAILABLE etcdserver: unhealthy cluster
Corrupt DATA_LOSS etcdserver: corrupt cluster
NotSupportedForLearner FAILED_PRECONDITION etcdserver: rpc not supported for learner
BadLeaderTransferee FAILED_PRECONDITION etcdserver: bad leader transferee
WrongDowngradeVersionFormat INVALID_ARGUMENT etcdserver: wrong downgrade target version format
InvalidDowngradeTargetVersion INVALID_ARGUMENT etcdserver: invalid downgrade target version
ClusterVersionUnavailable FAILED_PRECONDITION etcdserver: cluster version not found during downgrade
DowngradeInProgress FAILED_PRECONDITION etcdserver: cluster has a downgrade job in progress
NoInflightDowngrade FAILED_PRECONDITION etcdserver: no inflight downgrade job
RequestCanceled CANCELLED etcdserver: request canceled
DeadlineExceeded DEADLINE_EXCEEDED etcdserver: context deadline exceeded
"""
ROWS = [line.split(" ", 2) for line in ETCD.splitlines()]


@pytest.mark.parametrize(("name", "code", "text"), ROWS, ids=[row[0] for row in ROWS])
def test_every_error_of_etcd_has_a_class(name: str, code: str, text: str) -> None:
    error: EtcdError = getattr(errors, name)()
    assert (error.code.name, error.text, str(error)) == (code, text, text)


def test_what_etcd_does_not_list_is_ours_on_purpose() -> None:
    listed = {name for name, _, _ in ROWS}
    others = {error.__name__ for error in errors.every_error()} - listed
    grpc_go = {"Unimplemented", "MalformedMessage", "MessageTooLarge", "UnknownService"}
    assert others == grpc_go | {"TimedOutLeaderTransfer", "Internal"}


def test_no_text_stands_for_two_errors() -> None:
    texts = [error.text for error in errors.every_error()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.INVALID_ARGUMENT, 400),
        (Code.OUT_OF_RANGE, 400),
        (Code.FAILED_PRECONDITION, 400),
        (Code.UNAUTHENTICATED, 401),
        (Code.PERMISSION_DENIED, 403),
        (Code.NOT_FOUND, 404),
        (Code.RESOURCE_EXHAUSTED, 429),
        (Code.UNAVAILABLE, 503),
        (Code.DATA_LOSS, 500),
        (Code.UNKNOWN, 500),
        (Code.UNIMPLEMENTED, 501),
        (Code.DEADLINE_EXCEEDED, 504),
    ],
)
def test_http_status_follows_the_code(code: Code, status: int) -> None:
    assert errors.HTTP_STATUS[code] == status
    assert all(e.http_status == status for e in errors.every_error() if e.code == code)


def test_every_code_has_a_status() -> None:
    assert set(errors.HTTP_STATUS) == set(Code)


def test_an_instance_may_say_more_than_its_class() -> None:
    error = errors.Unimplemented("unknown method Fly for service etcdserverpb.KV")
    assert error.text == str(error) == "unknown method Fly for service etcdserverpb.KV"
    assert (error.code, error.http_status) == (Code.UNIMPLEMENTED, 501)
    assert errors.Unimplemented.text == "unknown method"


@pytest.mark.parametrize("error", errors.every_error(), ids=lambda error: error.__name__)
def test_every_error_has_one_of_the_four_branches(error: type[EtcdError]) -> None:
    branches = (errors.ClientError, errors.NotNow, errors.OutcomeUnknown, errors.ServerFault)
    assert sum(issubclass(error, branch) for branch in branches) == 1


def test_the_drawing_names_every_class() -> None:
    drawn = set(re.findall(r"\w+", errors.__doc__ or ""))
    assert {error.__name__ for error in errors.every_error()} <= drawn
