"""Which changes of the membership are safe to begin: --strict-reconfig-check. Pure.

A change is refused where the quorum of the membership that it makes could not be reached: members that were
added and never started count against it, and so do members that this one has lost touch with. The checks are
made by the leader before it proposes; what is impossible whatever the health of the members (an unknown ID, a
URL that is taken) is refused by the machine when the change is applied.

Source: etcd server/etcdserver/server.go (mayAddMember, mayRemoveMember, mayPromoteMember) and
server/etcdserver/api/membership/cluster.go (IsReadyTo...), v3.7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etcd_server.api.errors import EtcdError, MemberNotEnoughStarted, Unhealthy
from etcd_server.api.proto import rpc_pb2

HEALTH_INTERVAL_S = 5.0
"""For how long members must have been in touch to count on them (etcd: HealthInterval)."""

IsConnected = Callable[[int], bool]
"""Whether a member, by ID, is in touch; the member that asks is, always."""


def quorum(voters: int) -> int:
    """The smallest majority of this many."""
    return voters // 2 + 1


def refusal_to_add(
    members: Sequence[rpc_pb2.Member], *, is_learner: bool, is_steady: IsConnected
) -> EtcdError | None:
    """Why no member may be added now, or None. `is_steady`: in touch for HEALTH_INTERVAL_S."""
    voters = _voters(members)
    started = _started(voters)
    # The first member of all may be given a second one that is started afterwards.
    first = len(voters) == 1 and started == 1
    if not is_learner and not first and started < quorum(len(voters) + 1):
        return MemberNotEnoughStarted()
    if len(voters) > 1 and _connected(voters, is_steady) < quorum(len(voters) + 1):
        return Unhealthy()
    return None


def refusal_to_remove(
    members: Sequence[rpc_pb2.Member], member_id: int, *, is_connected: IsConnected, is_steady: IsConnected
) -> EtcdError | None:
    """Why this member may not be removed now, or None; one that only learns always may."""
    voters = _voters(members)
    if any(member_id == member.ID for member in members) and all(member_id != each.ID for each in voters):
        return None
    rest = [member for member in voters if member_id != member.ID]
    if _started(rest) < quorum(len(rest)):
        return MemberNotEnoughStarted()
    if not is_connected(member_id):
        return None  # it is down, and no part of the quorum that works
    if _connected(voters, is_steady) - 1 < quorum(len(voters) - 1):
        return Unhealthy()
    return None


def refusal_to_promote(members: Sequence[rpc_pb2.Member]) -> EtcdError | None:
    """Why a learner that is in sync may not be promoted now, or None."""
    voters = _voters(members)
    if _started(voters) + 1 < quorum(len(voters) + 1):
        return MemberNotEnoughStarted()
    return None


def _voters(members: Sequence[rpc_pb2.Member]) -> list[rpc_pb2.Member]:
    return [member for member in members if not member.isLearner]


def _started(members: Sequence[rpc_pb2.Member]) -> int:
    """A member has a name when it has been started."""
    return sum(bool(member.name) for member in members)


def _connected(members: Sequence[rpc_pb2.Member], is_connected: IsConnected) -> int:
    return sum(is_connected(member.ID) for member in members)
