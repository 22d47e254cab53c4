"""What a member knows of the other members besides what is replicated: whether it reaches them, since when,
and which version they run.

It comes with the batches as news of the links (`Batch.connected`, `Batch.versions`) and lives only in memory.
Source: etcd server/etcdserver/api/rafthttp/peer_status.go, server/etcdserver/cluster_util.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from etcd_server.raft.quorum import majority

Version = tuple[int, int, int]


def parse_version(text: str) -> Version | None:
    """ "3.6.0" as numbers, anything behind a "-" or "+" left out; None for what is no version."""
    parts = text.split("-")[0].split("+")[0].split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    major, minor, patch = map(int, parts)
    return major, minor, patch


class Peers:
    """The other members, as seen from this one."""

    def __init__(self, member_id: int, version: str) -> None:
        self._member_id = member_id
        self._connected_s: dict[int, float] = {}
        self._versions: dict[int, Version | None] = {member_id: parse_version(version)}

    def connected(self, member_id: int, *, is_up: bool, now: float) -> None:
        """The link to a member has come up or gone down."""
        if is_up:
            self._connected_s.setdefault(member_id, now)
        else:
            self._connected_s.pop(member_id, None)

    def told_version(self, member_id: int, version: str) -> None:
        """A member has said which version it runs."""
        self._versions[member_id] = parse_version(version)

    def connected_since_s(self, member_id: int) -> float:
        """Since when this member reaches another, itself always (-inf); inf: it does not."""
        return -inf if member_id == self._member_id else self._connected_s.get(member_id, inf)

    def is_connected(self, member_id: int) -> bool:
        return self.connected_since_s(member_id) < inf

    def reaches_quorum_since(self, voters: Iterable[int], since_s: float) -> bool:
        """Whether a majority of the voters, this member included, has been reached since then."""
        reached = [self.connected_since_s(voter) <= since_s for voter in voters]
        return sum(reached) >= majority(len(reached))

    def lowest_version(self, members: Iterable[int]) -> Version | None:
        """The lowest version among the members, as major, minor, 0; None when one of them is not known."""
        versions = [self._versions.get(member) for member in members]
        known = [version for version in versions if version is not None]
        if not known or len(known) < len(versions):
            return None
        major, minor, _ = min(known)
        return major, minor, 0
