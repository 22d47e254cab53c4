"""Alarms: raised, shown, cleared, and what they refuse."""

from collections.abc import Callable

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2, rpc_pb2
from tests.unit.machine.machines import ALL, Lab
from tests.unit.machine.operations import delete, put, read, txn, when

GET, ACTIVATE, DEACTIVATE = 0, 1, 2
NOSPACE, CORRUPT = rpc_pb2.NOSPACE, rpc_pb2.CORRUPT
LARGE_ID = 2**64 - 1


def shown(response: rpc_pb2.AlarmResponse) -> list[tuple[int, int]]:
    return [(alarm.memberID, alarm.alarm) for alarm in response.alarms]


def test_raise_show_clear(lab: Lab) -> None:
    assert shown(lab.alarm(GET)) == []
    assert shown(lab.alarm(ACTIVATE, NOSPACE, LARGE_ID)) == [(LARGE_ID, NOSPACE)]
    assert shown(lab.alarm(ACTIVATE, NOSPACE, LARGE_ID)) == [(LARGE_ID, NOSPACE)]
    lab.alarm(ACTIVATE, NOSPACE, 7)
    lab.alarm(ACTIVATE, CORRUPT, 7)
    assert shown(lab.alarm(GET)) == [(7, NOSPACE), (LARGE_ID, NOSPACE), (7, CORRUPT)]
    assert shown(lab.alarm(GET, CORRUPT)) == [(7, CORRUPT)]
    assert shown(lab.alarm(DEACTIVATE, NOSPACE, 7)) == [(7, NOSPACE)]
    assert shown(lab.alarm(DEACTIVATE, NOSPACE, 7)) == []
    assert shown(lab.alarm(GET, NOSPACE)) == [(LARGE_ID, NOSPACE)]


@pytest.mark.parametrize("action", [ACTIVATE, DEACTIVATE, 9])
def test_no_alarm_is_no_alarm(lab: Lab, action: int) -> None:
    assert shown(lab.alarm(action)) == []
    assert not lab.machine.alarms


def test_one_member_out_of_space_binds_all(lab: Lab) -> None:
    lab.alarm(ACTIVATE, NOSPACE, 7)
    assert lab.machine.alarms.no_space
    lab.alarm(ACTIVATE, NOSPACE, 8)
    lab.alarm(DEACTIVATE, NOSPACE, 7)
    with pytest.raises(errors.NoSpace):
        lab.put(b"a")
    lab.alarm(DEACTIVATE, NOSPACE, 8)
    lab.put(b"a")


GROWING: list[Callable[[Lab], object]] = [
    lambda lab: lab.put(b"b"),
    lambda lab: lab.put(b"b", prev_kv=True),
    lambda lab: lab.grant(9),
    lambda lab: lab.txn(txn(then=[put(b"b")])),
    lambda lab: lab.txn(txn(when("version", b"a", "=", 99), then=[put(b"b")])),
]
OTHERS: list[Callable[[Lab], object]] = [
    lambda lab: lab.delete(b"a"),
    lambda lab: lab.txn(txn(then=[delete(b"a"), read(b"a")])),
    lambda lab: lab.compact(2),
    lambda lab: lab.revoke(5),
]


@pytest.mark.parametrize("change", GROWING)
def test_out_of_space_refuses_what_grows(lab: Lab, change: Callable[[Lab], object]) -> None:
    lab.alarm(ACTIVATE, NOSPACE, 7)
    with pytest.raises(errors.NoSpace):
        change(lab)
    assert lab.machine.revision == 1


@pytest.mark.parametrize("change", OTHERS)
def test_out_of_space_lets_the_rest_pass(lab: Lab, change: Callable[[Lab], object]) -> None:
    lab.grant(5)
    lab.put(b"a")
    lab.alarm(ACTIVATE, NOSPACE, 7)
    change(lab)


@pytest.mark.parametrize("change", GROWING + OTHERS)
def test_corruption_refuses_every_change_and_no_read(lab: Lab, change: Callable[[Lab], object]) -> None:
    lab.grant(5)
    lab.put(b"a")
    lab.alarm(ACTIVATE, NOSPACE, 7)
    lab.alarm(ACTIVATE, CORRUPT, 7)
    assert lab.machine.alarms.corrupt
    with pytest.raises(errors.Corrupt):
        change(lab)
    assert lab.range(**ALL).count == 1


def test_an_alarm_raised_in_the_middle_of_an_entry_binds_what_follows(lab: Lab) -> None:
    plain = command_pb2.Command(put=rpc_pb2.PutRequest(key=b"a"))
    alarm = command_pb2.Command(
        alarm=rpc_pb2.AlarmRequest(action=rpc_pb2.AlarmRequest.ACTIVATE, alarm=NOSPACE, memberID=7)
    )
    first, _, last = lab.apply(plain, alarm, plain)
    assert first == (2, b"")
    assert isinstance(last, errors.NoSpace)


def test_alarms_survive_a_restart(lab: Lab) -> None:
    lab.alarm(ACTIVATE, NOSPACE, LARGE_ID)
    lab.machine.commit()
    lab.crash()
    assert lab.machine.alarms.no_space
    assert [alarm.memberID for alarm in lab.machine.alarms.all()] == [LARGE_ID]
