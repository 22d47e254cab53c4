"""The members of the cluster: who they are, where they are reached, who only learns.

Members come and go by configuration changes of raft, which are entries of the log like any other; a change
that has become impossible by the time it is applied is refused, on every member alike. The id of a removed
member never returns. Name and client URLs are told by each member itself when it has started
(MemberAttributes).

Source: etcd server/etcdserver/api/membership/{cluster,member}.go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.storage.tables import FactTables, MemberRow

MAX_LEARNERS = 1
"""How many there may be unless a change says otherwise: etcd's default of --max-learners."""


def member_id(peer_urls: Iterable[str], token: str, now_s: int | None = None) -> int:
    """The id of a member, an unsigned 64-bit number.

    token: the name of the cluster (--initial-cluster-token).
    now_s: seconds since 1970, for a member that joins a running cluster; None for one of the first members,
    whose
        id each of them must be able to compute alone.
    """
    text = "".join(sorted(peer_urls)) + token + ("" if now_s is None else str(now_s))
    return int.from_bytes(hashlib.sha1(text.encode()).digest()[:8], "big")


def cluster_id(member_ids: Iterable[int]) -> int:
    """The id of a cluster that began with these members, an unsigned 64-bit number."""
    data = b"".join(number.to_bytes(8, "big") for number in sorted(member_ids))
    return int.from_bytes(hashlib.sha1(data).digest()[:8], "big")


class Members:
    """The members as of the last applied entry."""

    def __init__(self, facts: FactTables) -> None:
        self._facts = facts
        self._members = {member.member_id: member for member in facts.members()}
        self._removed = set(facts.removed_members())

    def all(self) -> list[rpc_pb2.Member]:
        """Every member, by id."""
        return [_message(self._members[number]) for number in sorted(self._members)]

    def get(self, number: int) -> rpc_pb2.Member | None:
        member = self._members.get(number)
        return None if member is None else _message(member)

    def is_removed(self, number: int) -> bool:
        return number in self._removed

    def update_attributes(self, attributes: command_pb2.MemberAttributes) -> None:
        """Take over a member's name and client URLs. Raises MemberNotFound."""
        member = self._existing(attributes.member_id)
        self._set(replace(member, name=attributes.name, client_urls=tuple(attributes.client_urls)))

    def change(self, change: command_pb2.ConfChange) -> None:
        """Apply one change of the membership.

        Raises MemberNotFound, MemberExists, PeerURLExists, MemberNotLearner, TooManyLearners, and
        MemberNotEnoughStarted for the removal of the last voter; nothing is changed then.
        """
        number, kinds = change.member.ID, command_pb2.ConfChange
        if number in self._removed:
            raise errors.MemberNotFound
        match change.kind:
            case kinds.ADD_VOTER | kinds.ADD_LEARNER:
                learners = change.max_learners if change.HasField("max_learners") else MAX_LEARNERS
                self._add(change.member, change.kind == kinds.ADD_LEARNER, learners)
            case kinds.PROMOTE:
                member = self._existing(number)
                if not member.is_learner:
                    raise errors.MemberNotLearner
                self._set(replace(member, is_learner=False))
            case kinds.UPDATE:
                member = self._existing(number)
                self._check_urls(change.member.peerURLs, besides=number)
                self._set(replace(member, peer_urls=tuple(change.member.peerURLs)))
            case kinds.REMOVE:
                if not self._existing(number).is_learner and self._voters == 1:
                    raise errors.MemberNotEnoughStarted  # raft keeps the last voter, too
                self._facts.remove_member(number)
                del self._members[number]
                self._removed.add(number)
            case _:
                raise errors.Internal(f"a change of the membership of an unknown kind: {change.kind}")

    def _add(self, member: rpc_pb2.Member, is_learner: bool, max_learners: int) -> None:
        if member.ID in self._members:
            raise errors.MemberExists
        self._check_urls(member.peerURLs, besides=member.ID)
        if is_learner and sum(other.is_learner for other in self._members.values()) >= max_learners:
            raise errors.TooManyLearners
        self._set(
            MemberRow(member.ID, member.name, tuple(member.peerURLs), tuple(member.clientURLs), is_learner)
        )

    @property
    def _voters(self) -> int:
        return sum(not member.is_learner for member in self._members.values())

    def _existing(self, number: int) -> MemberRow:
        member = self._members.get(number)
        if member is None:
            raise errors.MemberNotFound
        return member

    def _check_urls(self, peer_urls: Sequence[str], *, besides: int) -> None:
        taken = {
            url for other in self._members.values() if other.member_id != besides for url in other.peer_urls
        }
        if not taken.isdisjoint(peer_urls):
            raise errors.PeerURLExists

    def _set(self, member: MemberRow) -> None:
        self._facts.set_member(member)
        self._members[member.member_id] = member


def _message(member: MemberRow) -> rpc_pb2.Member:
    return rpc_pb2.Member(
        ID=member.member_id,
        name=member.name,
        peerURLs=member.peer_urls,
        clientURLs=member.client_urls,
        isLearner=member.is_learner,
    )
