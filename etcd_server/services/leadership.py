"""What the leader proposes of itself: who it is, the cluster's version, the alarm for exceeded space,
compactions.

A member that has just begun to lead is not ready before its own name and client URLs are applied: then it is
sure that the log works, and others can find it (etcd: server/etcdserver/server.go publishV3).
"""

from __future__ import annotations

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.services.compactor import Compactor
from etcd_server.services.core import Core
from etcd_server.services.proposals import ALARM, CLUSTER_VERSION, COMPACTION, MEMBER_ATTRIBUTES


class Leadership:
    """The duties of a member while it leads."""

    def __init__(self, core: Core) -> None:
        self._core = core
        settings = core.settings
        self._compactor = Compactor(settings.auto_compaction_mode, settings.auto_compaction_retention)
        self.is_published = False
        self._publishing = False
        self._version_proposed = False
        self._alarm_proposed = False

    def end(self) -> None:
        """Another member leads now."""
        self._compactor.reset()

    def act(self, now: float) -> None:
        """What only the leader proposes of itself."""
        core, machine = self._core, self._core.machine
        if not self._publishing and machine.applied_term == core.header.term:
            self._publishing = True
            self._publish()
        if not self._version_proposed and machine.cluster_version != self._core.settings.cluster_version:
            self._version_proposed = True
            core.propose(
                CLUSTER_VERSION, command_pb2.ClusterVersion(version=self._core.settings.cluster_version), None
            )
        if core.refused_for_space and not machine.alarms.no_space and not self._alarm_proposed:
            self._alarm_proposed = True
            alarm = rpc_pb2.AlarmRequest(
                action=rpc_pb2.AlarmRequest.ACTIVATE,
                memberID=self._core.settings.member_id,
                alarm=rpc_pb2.NOSPACE,
            )
            core.propose(ALARM, alarm, self._alarm_applied)
        revision = self._compactor.due(machine.revision, now)
        if revision and revision > machine.compacted_revision:
            core.propose(COMPACTION, rpc_pb2.CompactionRequest(revision=revision), None)

    def _publish(self) -> None:
        """Make known what this member is called and where clients find it, unless it is known already: a
        member that was started again on a full disk could not."""
        settings = self._core.settings
        known = self._core.machine.members.get(settings.member_id)
        if known is not None and (known.name, tuple(known.clientURLs)) == (
            settings.member_name,
            settings.client_urls,
        ):
            self.is_published = True
            return
        attributes = command_pb2.MemberAttributes(
            member_id=settings.member_id, name=settings.member_name, client_urls=settings.client_urls
        )
        self._core.propose(MEMBER_ATTRIBUTES, attributes, self._attributes_applied)

    def _attributes_applied(self, outcome: object) -> None:
        self.is_published = not isinstance(outcome, errors.EtcdError)
        self._publishing = self.is_published

    def _alarm_applied(self, outcome: object) -> None:
        self._core.refused_for_space = self._alarm_proposed = False
