"""A whole member without wire, threads or clock: what the services promise, through `Engine.handle`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_server.api import errors
from etcd_server.api.proto import health_pb2, rpc_pb2
from etcd_server.services.events import STREAM_HALF_CLOSE, STREAM_PAUSED, STREAM_RESUMED, Batch
from etcd_server.storage.errors import StateRolledBack
from tests.member import MEMBER_ID, Member

PUT = "/etcdserverpb.KV/Put"
RANGE = "/etcdserverpb.KV/Range"
DELETE = "/etcdserverpb.KV/DeleteRange"
TXN = "/etcdserverpb.KV/Txn"
COMPACT = "/etcdserverpb.KV/Compact"
GRANT = "/etcdserverpb.Lease/LeaseGrant"
REVOKE = "/etcdserverpb.Lease/LeaseRevoke"
TIME_TO_LIVE = "/etcdserverpb.Lease/LeaseTimeToLive"
LEASES = "/etcdserverpb.Lease/LeaseLeases"
KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
WATCH = "/etcdserverpb.Watch/Watch"
STATUS = "/etcdserverpb.Maintenance/Status"
ALARM = "/etcdserverpb.Maintenance/Alarm"
MEMBER_LIST = "/etcdserverpb.Cluster/MemberList"


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    member = Member(tmp_path)
    yield member
    member.close()


def put(key: bytes, value: bytes = b"v", **options: Any) -> rpc_pb2.PutRequest:
    return rpc_pb2.PutRequest(key=key, value=value, **options)


def get(key: bytes, **options: Any) -> rpc_pb2.RangeRequest:
    return rpc_pb2.RangeRequest(key=key, **options)


def watch(key: bytes, **options: Any) -> rpc_pb2.WatchRequest:
    return rpc_pb2.WatchRequest(create_request=rpc_pb2.WatchCreateRequest(key=key, **options))


# --- KV
# -------------------------------------------------------------------------------------------------------


def test_all_changes_of_a_turn_travel_in_one_entry_each_with_a_revision_of_its_own(member: Member) -> None:
    before = member.log.last_index()
    ids = member.send(PUT, *[put(b"k%d" % n) for n in range(50)])
    assert member.log.last_index() == before + 1
    assert [member.result(PUT, call_id).header.revision for call_id in ids] == list(range(2, 52))


def test_nothing_is_answered_before_it_is_on_disk(member: Member) -> None:
    effects = member.engine.handle(Batch(calls={PUT: [(7, put(b"k"))]}), member.now)
    assert effects.answers == []
    [ready] = effects.persist
    assert not member.engine.handle(Batch(ticks=1), member.now).answers
    member.log.append(ready.hard_state, ready.entries)
    assert [i for i, _ in member.engine.handle(Batch(persisted=ready.number), member.now).answers] == [7]


@pytest.mark.parametrize(
    ("path", "request_", "error"),
    [
        (PUT, put(b""), errors.KeyNotProvided),
        (PUT, put(b"k", b"v", ignore_value=True), errors.ValueProvided),
        (PUT, put(b"k", lease=7, ignore_lease=True), errors.LeaseProvided),
        (PUT, put(b"k", b"", ignore_value=True), errors.KeyNotFound),
        (PUT, put(b"k", lease=7), errors.LeaseNotFound),
        (PUT, put(b"k", b"x" * 1_600_000), errors.RequestTooLarge),
        (RANGE, get(b""), errors.KeyNotProvided),
        (RANGE, get(b"k", revision=99), errors.FutureRevision),
        (RANGE, rpc_pb2.RangeRequest(key=b"k", sort_order=9), errors.InvalidSortOption),  # type: ignore[arg-type]
        (DELETE, rpc_pb2.DeleteRangeRequest(), errors.KeyNotProvided),
        (COMPACT, rpc_pb2.CompactionRequest(revision=99), errors.FutureRevision),
        (GRANT, rpc_pb2.LeaseGrantRequest(TTL=9_000_000_001), errors.LeaseTTLTooLarge),
        (REVOKE, rpc_pb2.LeaseRevokeRequest(ID=7), errors.LeaseNotFound),
    ],
)
def test_refused(member: Member, path: str, request_: Any, error: type[errors.EtcdError]) -> None:
    with pytest.raises(error):
        member.call(path, request_)
    assert member.call(RANGE, get(b"x")).header.revision == 1


def test_a_read_only_txn_enters_no_log(member: Member) -> None:
    before = member.log.last_index()
    txn = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=get(b"k"))])
    assert member.call(TXN, txn).succeeded
    assert member.log.last_index() == before


def test_a_new_member_has_compacted_nothing(member: Member) -> None:
    assert member.engine.machine.compacted_revision == -1
    member.pass_time(1.0)
    assert member.engine.machine.compacted_revision == -1
    member.call(COMPACT, rpc_pb2.CompactionRequest(revision=0))


def test_a_physical_compaction_is_answered_when_the_rows_are_gone(member: Member) -> None:
    for _ in range(1500):
        member.call(PUT, put(b"k"))
    [call_id] = member.send(COMPACT, rpc_pb2.CompactionRequest(revision=1400, physical=True))
    assert call_id not in member.answers
    turns = 0
    while call_id not in member.answers:
        assert member.turn().more_work or call_id in member.answers
        turns += 1
        assert turns < 100
    member.result(COMPACT, call_id)
    with pytest.raises(errors.Compacted):
        member.call(RANGE, get(b"k", revision=1399))
    assert member.call(RANGE, get(b"k", revision=1400)).kvs[0].version == 1399


def test_requests_that_get_no_answer_in_time_are_told_that_the_outcome_is_unknown(member: Member) -> None:
    effects = member.engine.handle(Batch(calls={PUT: [(7, put(b"k"))]}), member.now)
    assert effects.persist
    member.now += member.settings.request_timeout_s + 1
    [(call_id, answer)] = member.engine.handle(Batch(ticks=1), member.now).answers
    assert call_id == 7
    assert isinstance(answer, errors.TimedOut)


# --- space
# ----------------------------------------------------------------------------------------------------


def test_the_quota_refuses_growth_raises_the_alarm_and_lets_everything_else_pass(tmp_path: Path) -> None:
    member = Member(tmp_path, quota_bytes=512 * 1024)
    with pytest.raises(errors.NoSpace):
        for n in range(100):
            member.call(PUT, put(b"k%d" % n, b"x" * 50_000))
            member.pass_time(0.1)
    member.pass_time(0.3)
    alarms = member.call(ALARM, rpc_pb2.AlarmRequest()).alarms
    assert [(alarm.memberID, alarm.alarm) for alarm in alarms] == [(MEMBER_ID, rpc_pb2.NOSPACE)]
    with pytest.raises(errors.NoSpace):
        member.call(GRANT, rpc_pb2.LeaseGrantRequest(TTL=10))
    assert member.call(RANGE, get(b"k0")).count == 1
    assert member.call(DELETE, rpc_pb2.DeleteRangeRequest(key=b"k", range_end=b"l")).deleted > 1
    assert any("NOSPACE" in error for error in member.call(STATUS, rpc_pb2.StatusRequest()).errors)
    member.close()


def test_a_full_disk_refuses_writes_and_answers_reads_until_there_is_room(member: Member) -> None:
    member.call(PUT, put(b"k"))
    member.turn(Batch(disk_full=True))
    growing = ((PUT, put(b"k")), (GRANT, rpc_pb2.LeaseGrantRequest(TTL=5)))
    for path, request in growing:
        with pytest.raises(errors.NoSpace):
            member.call(path, request)
    assert member.call(RANGE, get(b"k")).count == 1
    # What may make room is taken as long as the log can be written.
    deletion = (DELETE, rpc_pb2.DeleteRangeRequest(key=b"other"))
    assert member.call(*deletion).deleted == 0
    member.turn(Batch(disk_full=True, log_full=True))
    for path, request in (*growing, deletion):
        with pytest.raises(errors.NoSpace):
            member.call(path, request)
    assert member.call(RANGE, get(b"k")).count == 1
    member.turn(Batch(disk_full=False, log_full=False))
    assert member.call(PUT, put(b"k")).header.revision == 3


def test_a_state_that_finds_no_room_is_kept_until_there_is_some(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, commit = member.database, member.database.commit
    member.pass_time(0.5)

    def fail() -> None:
        database.rollback()
        raise StateRolledBack("no space left on the device")

    monkeypatch.setattr(database, "commit", fail)
    member.call(PUT, put(b"k", b"answered"))
    member.pass_time(5.0)
    assert member.call(RANGE, get(b"k")).kvs[0].value == b"answered"
    for path, request in ((PUT, put(b"k")), (DELETE, rpc_pb2.DeleteRangeRequest(key=b"k"))):
        with pytest.raises(errors.NoSpace):
            member.call(path, request)
    monkeypatch.setattr(database, "commit", commit)
    member.pass_time(1.5)
    assert not database.in_transaction
    assert member.call(PUT, put(b"k")).header.revision == 3


def test_what_a_full_disk_took_from_the_state_is_applied_again_from_the_log(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, database = member.engine.machine, member.engine.machine.database
    stream = member.open(WATCH, watch(b"k", range_end=b"l"))
    for n in range(10):
        member.call(PUT, put(b"k%d" % n))
    commit = database.commit

    def fail_once() -> None:
        monkeypatch.setattr(database, "commit", commit)
        database.rollback()
        raise StateRolledBack("no space left on the device")

    monkeypatch.setattr(database, "commit", fail_once)
    applied_index = machine.applied_index
    member.pass_time(2.0)
    assert machine.applied_index == applied_index
    assert member.call(RANGE, get(b"k", range_end=b"l")).count == 10
    assert member.call(PUT, put(b"k0")).header.revision == 12
    events = [event for response in member.heard(stream, WATCH) for event in response.events]
    assert [event.kv.mod_revision for event in events] == list(range(2, 13))


# --- restart
# --------------------------------------------------------------------------------------------------


def test_a_restart_finds_everything_that_was_answered(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.call(PUT, put(b"k", b"1"))
    member.pass_time(0.5)
    member.call(PUT, put(b"k", b"2"))
    member.database.rollback()  # as a crash would: the state was not committed, the log was
    member.database.close()
    member.log.close()
    member = Member(tmp_path)
    [kv] = member.call(RANGE, get(b"k")).kvs
    assert (kv.value, kv.version, kv.mod_revision) == (b"2", 2, 3)
    assert member.call(PUT, put(b"k", b"3")).header.revision == 4
    member.close()


def test_the_log_is_cut_only_behind_a_checkpoint_and_keeps_what_followers_may_need(tmp_path: Path) -> None:
    member = Member(tmp_path, snapshot_count=20, catch_up_entries=10)
    for n in range(100):
        member.call(PUT, put(b"k%d" % n))
    assert member.log.first_index() == 1
    applied_index = member.engine.machine.applied_index
    member.turn(Batch(durable_index=applied_index - 50))
    assert member.log.first_index() == applied_index - 50 + 1
    member.turn(Batch(durable_index=applied_index))
    assert member.log.first_index() == applied_index - 10 + 1
    member.close()


# --- leases
# ---------------------------------------------------------------------------------------------------


def test_a_lease_that_runs_out_takes_its_keys_in_one_revision(member: Member) -> None:
    lease = member.call(GRANT, rpc_pb2.LeaseGrantRequest(TTL=3))
    assert (lease.TTL, lease.ID > 0) == (3, True)
    for key in (b"b", b"a", b"c"):
        member.call(PUT, put(key, lease=lease.ID))
    stream = member.open(WATCH, watch(b"a", range_end=b"z"))
    member.pass_time(2.0)
    remaining = member.call(TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=lease.ID, keys=True))
    assert (remaining.grantedTTL, list(remaining.keys)) == (3, [b"a", b"b", b"c"])
    assert 0 <= remaining.TTL <= 1
    member.pass_time(2.0)
    _, response = member.heard(stream, WATCH)
    assert [event.kv.key for event in response.events] == [b"a", b"b", b"c"]
    assert {event.kv.mod_revision for event in response.events} == {5}
    assert not member.call(LEASES, rpc_pb2.LeaseLeasesRequest()).leases
    assert member.call(TIME_TO_LIVE, rpc_pb2.LeaseTimeToLiveRequest(ID=lease.ID)).TTL == -1


def test_a_lease_lives_while_keepalives_are_answered(member: Member) -> None:
    lease = member.call(GRANT, rpc_pb2.LeaseGrantRequest(TTL=2))
    stream = member.open(KEEP_ALIVE)
    for _ in range(10):
        member.pass_time(1.5)
        member.say(stream, rpc_pb2.LeaseKeepAliveRequest(ID=lease.ID))
        [answer] = member.heard(stream, KEEP_ALIVE)
        assert (answer.ID, answer.TTL) == (lease.ID, 2)
    member.pass_time(3.0)
    member.say(stream, rpc_pb2.LeaseKeepAliveRequest(ID=lease.ID))
    [answer] = member.heard(stream, KEEP_ALIVE)
    assert (answer.ID, answer.TTL) == (lease.ID, 0)
    member.turn(Batch(streams=[(STREAM_HALF_CLOSE, stream, None)]))
    assert member.ended == {stream: None}


@pytest.mark.parametrize("ttl", [-5, 0, 1, 2])
def test_no_lease_is_shorter_than_one_and_a_half_elections(member: Member, ttl: int) -> None:
    assert member.call(GRANT, rpc_pb2.LeaseGrantRequest(TTL=ttl)).TTL == 2


def test_leases_are_listed_in_the_order_in_which_they_run_out(member: Member) -> None:
    for lease_id, ttl in ((1, 30), (2, 10), (3, 20)):
        member.call(GRANT, rpc_pb2.LeaseGrantRequest(ID=lease_id, TTL=ttl))
    listed = [lease.ID for lease in member.call(LEASES, rpc_pb2.LeaseLeasesRequest()).leases]
    assert listed == [2, 3, 1]


def test_leases_survive_a_restart_and_run_their_full_time_again(tmp_path: Path) -> None:
    member = Member(tmp_path)
    lease = member.call(GRANT, rpc_pb2.LeaseGrantRequest(TTL=5))
    member.call(PUT, put(b"k", lease=lease.ID))
    member.pass_time(4.0)
    member.close()
    member = Member(tmp_path)
    member.pass_time(4.0)
    assert member.call(RANGE, get(b"k")).count == 1
    member.pass_time(3.0)
    assert member.call(RANGE, get(b"k")).count == 0
    member.close()


# --- watches
# --------------------------------------------------------------------------------------------------


def test_a_paused_stream_gets_everything_after_it_resumes(member: Member) -> None:
    stream = member.open(WATCH, watch(b"k"))
    member.turn(Batch(streams=[(STREAM_PAUSED, stream, None)]))
    for n in range(20):
        member.call(PUT, put(b"k", b"%d" % n))
    assert [response.created for response in member.heard(stream, WATCH)] == [True]
    member.turn(Batch(streams=[(STREAM_RESUMED, stream, None)]))
    for _ in range(20):
        member.turn()
    events = [event for response in member.heard(stream, WATCH) for event in response.events]
    assert [event.kv.value for event in events] == [b"%d" % n for n in range(20)]


def test_the_end_of_the_clients_half_leaves_its_watches_alone(member: Member) -> None:
    stream = member.open(WATCH, watch(b"k"))
    member.turn(Batch(streams=[(STREAM_HALF_CLOSE, stream, None)]))
    member.call(PUT, put(b"k"))
    assert len(member.heard(stream, WATCH)) == 2


def test_stopping_tells_everyone_who_waits(member: Member) -> None:
    stream = member.open(WATCH, watch(b"k"))
    member.engine.handle(Batch(calls={PUT: [(7, put(b"k"))]}), member.now)
    effects = member.engine.stop()
    assert [(i, type(answer)) for i, answer in effects.answers] == [(7, errors.Stopped)]
    assert [(i, type(error)) for i, error in effects.ended] == [(stream, errors.Stopped)]


# --- the rest
# -------------------------------------------------------------------------------------------------


def test_status_and_member_list(member: Member) -> None:
    status = member.call(STATUS, rpc_pb2.StatusRequest())
    assert status.leader == status.header.member_id == MEMBER_ID
    assert status.raftIndex == status.raftAppliedIndex == member.engine.machine.applied_index
    assert status.version.startswith("3.6.")
    assert 0 < status.dbSizeInUse <= status.dbSize
    [only] = member.call(MEMBER_LIST, rpc_pb2.MemberListRequest(linearizable=True)).members
    assert (only.ID, only.name, only.isLearner) == (MEMBER_ID, "default", False)


def test_health_by_call_and_by_stream(member: Member) -> None:
    check, stream_path = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
    serving = health_pb2.HealthCheckResponse.SERVING
    assert member.call(check, health_pb2.HealthCheckRequest()).status == serving
    with pytest.raises(errors.UnknownService):
        member.call(check, health_pb2.HealthCheckRequest(service="etcdserverpb.KV"))
    stream = member.open(stream_path, health_pb2.HealthCheckRequest())
    assert [response.status for response in member.heard(stream, stream_path)] == [serving]
    member.turn()
    assert member.heard(stream, stream_path) == []


def test_auto_compaction_by_revision(tmp_path: Path) -> None:
    member = Member(tmp_path, auto_compaction_mode="revision", auto_compaction_retention=10)
    for _ in range(50):
        member.call(PUT, put(b"k"))
    member.pass_time(0.2)
    member.now += 301
    member.pass_time(0.3)
    with pytest.raises(errors.Compacted):
        member.call(RANGE, get(b"k", revision=40))
    assert member.call(RANGE, get(b"k", revision=41)).count == 1
    member.close()
