"""Alarms: replicated marks that a member is out of space (NOSPACE) or disagrees about the data (CORRUPT).

One alarm of any member binds the whole cluster: NOSPACE refuses what makes the store larger, CORRUPT refuses
every change. Raising and clearing an alarm are commands, so that all members begin and end to refuse at the
same entry.

Source: etcd server/etcdserver/api/v3alarm/alarms.go,
server/etcdserver/apply/{capped,corrupt,uber_applier}.go.
"""

from __future__ import annotations

from etcd_server.api import errors
from etcd_server.api.encoding import repeated_field
from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.txn import contains_put
from etcd_server.storage.tables import FactTables

_GROWS = frozenset(("put", "lease_grant"))
_CHANGES = frozenset(("put", "delete_range", "txn", "compaction", "lease_grant", "lease_revoke"))


class Alarms:
    """The alarms that are raised."""

    def __init__(self, facts: FactTables) -> None:
        self._facts = facts
        self._raised = facts.alarms()

    @property
    def no_space(self) -> bool:
        return any(alarm == rpc_pb2.NOSPACE for alarm, _ in self._raised)

    @property
    def corrupt(self) -> bool:
        return any(alarm == rpc_pb2.CORRUPT for alarm, _ in self._raised)

    def __bool__(self) -> bool:
        return bool(self._raised)

    def all(self, kind: rpc_pb2.AlarmType.ValueType = rpc_pb2.NONE) -> list[rpc_pb2.AlarmMember]:
        """The alarms of one kind, or of every kind for NONE; by kind and member."""
        return [
            rpc_pb2.AlarmMember(memberID=member_id, alarm=rpc_pb2.AlarmType.ValueType(alarm))
            for alarm, member_id in self._raised
            if kind in (rpc_pb2.NONE, alarm)
        ]

    def apply(self, request: rpc_pb2.AlarmRequest) -> bytes:
        """Show, raise or clear alarms; the answer without its header, holding what was found or changed."""
        wanted = (request.alarm, request.memberID)
        match request.action:
            case rpc_pb2.AlarmRequest.GET:
                return _body(self.all(request.alarm))
            case rpc_pb2.AlarmRequest.ACTIVATE if request.alarm != rpc_pb2.NONE:
                if wanted not in self._raised:
                    self._facts.insert_alarm(*wanted)
            case rpc_pb2.AlarmRequest.DEACTIVATE if wanted in self._raised:
                self._facts.delete_alarm(*wanted)
            case _:
                return b""
        self._raised = self._facts.alarms()
        return _body([rpc_pb2.AlarmMember(memberID=request.memberID, alarm=request.alarm)])

    def refusal(self, kind: str, request: object) -> errors.EtcdError | None:
        """The error that the alarms raised now give to a command of `kind` (a field of etcdpy.Command), if
        any.
        """
        if self.corrupt and kind in _CHANGES:
            return errors.Corrupt()
        if self.no_space and (
            kind in _GROWS or (isinstance(request, rpc_pb2.TxnRequest) and contains_put(request))
        ):
            return errors.NoSpace()
        return None


def _body(alarms: list[rpc_pb2.AlarmMember]) -> bytes:
    return repeated_field(2, [alarm.SerializeToString() for alarm in alarms])
