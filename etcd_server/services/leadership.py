"""What the leader proposes because it leads: the cluster's version, compactions.

The cluster's version is the lowest among its members', so that nobody uses what one of them does not know; it
only rises (etcd: server/etcdserver/version/monitor.go). Until each member has told its version, and a cluster
that is just beginning is given some seconds for that, the version is etcd's lowest.
"""

from __future__ import annotations

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.services.compactor import Compactor
from etcd_server.services.core import Core
from etcd_server.services.peers import Version, parse_version
from etcd_server.services.proposals import CLUSTER_VERSION, COMPACTION

LOWEST_CLUSTER_VERSION: Version = (3, 0, 0)
INTRODUCTIONS_S = 4.0
"""How long the members of a new cluster may take to tell their versions (etcd: monitorVersionInterval)."""


class Leadership:
    """The duties of a member while it leads."""

    def __init__(self, core: Core) -> None:
        self._core = core
        settings = core.settings
        self._compactor = Compactor(settings.auto_compaction_mode, settings.auto_compaction_retention)
        self._own_version = parse_version(settings.cluster_version) or LOWEST_CLUSTER_VERSION
        self._is_proposed = False

    def end(self) -> None:
        """Another member leads now."""
        self._compactor.reset()

    def act(self, now: float) -> None:
        """Propose what is due; called with each tick."""
        core, machine = self._core, self._core.machine
        if machine.applied_term == core.header.term and not self._is_proposed:
            self._agree_on_version(now)
        revision = self._compactor.due(machine.revision, now)
        if revision and revision > machine.compacted_revision:
            core.propose_as_leader(COMPACTION, rpc_pb2.CompactionRequest(revision=revision), None)

    def _agree_on_version(self, now: float) -> None:
        core, machine = self._core, self._core.machine
        present = parse_version(machine.cluster_version)
        if present is not None and present >= self._own_version:
            return
        lowest = core.peers.lowest_version(member.ID for member in machine.members.all())
        if lowest is None and present is None and now - core.elected_s >= INTRODUCTIONS_S:
            lowest = LOWEST_CLUSTER_VERSION
        if lowest is not None and (present is None or present < lowest):
            self._is_proposed = True
            version = ".".join(map(str, lowest))
            core.propose_as_leader(
                CLUSTER_VERSION, command_pb2.ClusterVersion(version=version), self._version_applied
            )

    def _version_applied(self, outcome: object) -> None:
        self._is_proposed = False
