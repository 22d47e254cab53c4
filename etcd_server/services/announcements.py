"""What each member proposes of itself, leader or not: its name and client URLs, and the alarm for exceeded
space.

A member that has just started is not ready before its own name and client URLs are applied: then it is sure
that it reaches a quorum, that the log works, and that others can find it (etcd:
server/etcdserver/server.go publishV3).
"""

from __future__ import annotations

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.services.core import Core
from etcd_server.services.proposals import ALARM, MEMBER_ATTRIBUTES


class Announcements:
    """The announcements of one member, each made until it is applied."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.is_published = False
        self._is_publishing = False
        self._is_raising_alarm = False

    def act(self) -> None:
        """Propose what is to be said; called while a leader is known."""
        core, machine = self._core, self._core.machine
        if not self.is_published and not self._is_publishing and machine.applied_term == core.header.term:
            self._publish()
        if core.refused_for_space and not machine.alarms.no_space and not self._is_raising_alarm:
            self._is_raising_alarm = True
            alarm = rpc_pb2.AlarmRequest(
                action=rpc_pb2.AlarmRequest.ACTIVATE,
                memberID=core.settings.member_id,
                alarm=rpc_pb2.NOSPACE,
            )
            core.propose(ALARM, alarm, self._alarm_applied)

    def _publish(self) -> None:
        """Make known what this member is called and where clients find it, unless it is known already: a
        member that was started again on a full disk could not."""
        settings = self._core.settings
        known = self._core.machine.members.get(settings.member_id)
        if known is None:
            return  # It has not applied yet that it was added.
        if (known.name, tuple(known.clientURLs)) == (settings.member_name, settings.client_urls):
            self.is_published = True
            return
        attributes = command_pb2.MemberAttributes(
            member_id=settings.member_id, name=settings.member_name, client_urls=settings.client_urls
        )
        self._is_publishing = True
        self._core.propose(MEMBER_ATTRIBUTES, attributes, self._attributes_applied)

    def _attributes_applied(self, outcome: object) -> None:
        self.is_published = not isinstance(outcome, errors.EtcdError)
        self._is_publishing = False

    def _alarm_applied(self, outcome: object) -> None:
        self._core.refused_for_space = self._is_raising_alarm = False
