"""One entry, one transaction: order, outcomes, restarts and a full disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from etcd_server.api import errors
from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.storage.errors import StateRolledBack
from tests.unit.machine.machines import ALL, Lab
from tests.unit.machine.operations import delete, put, txn, when


def command(key: bytes, value: bytes = b"") -> command_pb2.Command:
    return command_pb2.Command(put=rpc_pb2.PutRequest(key=key, value=value))


def some_entries(lab: Lab) -> None:
    """A little of everything, in several entries."""
    lab.grant(5)
    lab.apply(command(b"a", b"1"), command(b"b", b"1"), command(b"a", b"2"))
    lab.put(b"leased", b"x", lease=5)
    lab.txn(txn(when("version", b"a", "=", 2), then=[put(b"c", b"1"), delete(b"b")]))
    lab.alarm(1, rpc_pb2.NOSPACE, 7)
    lab.apply(command(b"refused"))
    lab.alarm(2, rpc_pb2.NOSPACE, 7)
    lab.do(cluster_version=command_pb2.ClusterVersion(version="3.6.0"))
    lab.apply(command(b"d", b"1"), command(b"d", b"2"))
    lab.delete(b"d")
    lab.compact(4)
    lab.revoke(5)
    lab.apply()


def test_an_entry_is_applied_once(lab: Lab) -> None:
    assert lab.machine.apply(1, 1, [command(b"a")]) == [(2, b"")]
    assert lab.machine.apply(1, 1, [command(b"b")]) == []
    assert lab.keys() == [b"a"]
    assert (lab.machine.applied_index, lab.machine.applied_term) == (1, 1)


def test_an_entry_without_commands_counts(lab: Lab) -> None:
    assert lab.machine.apply(1, 3, ()) == []
    assert (lab.machine.applied_index, lab.machine.applied_term) == (1, 3)


def test_a_gap_in_the_log_is_never_passed_over(lab: Lab) -> None:
    with pytest.raises(errors.Internal, match="entry 2 cannot follow entry 0"):
        lab.machine.apply(2, 1, [command(b"a")])


def test_a_command_of_an_unknown_kind_is_never_passed_over(lab: Lab) -> None:
    with pytest.raises(errors.Internal, match="newer version"):
        lab.machine.apply(1, 1, [command_pb2.Command()])


def test_the_cluster_version_is_kept(lab: Lab) -> None:
    assert lab.machine.cluster_version == ""
    lab.do(cluster_version=command_pb2.ClusterVersion(version="3.6.0"))
    lab.machine.commit()
    lab.crash()
    assert lab.machine.cluster_version == "3.6.0"


def test_the_same_entries_make_the_same_tables(lab: Lab, tmp_path: Path) -> None:
    some_entries(lab)
    (tmp_path / "other").mkdir()
    other = Lab(tmp_path / "other")
    for index, commands in enumerate(lab.entries, 1):
        other.machine.apply(index, 1, commands)
        if index % 3 == 0:
            other.machine.commit()
    assert other.content() == lab.content()
    lab.finish_compaction(1)
    other.finish_compaction(100)
    assert other.content() == lab.content()
    lab.check_tables()
    other.machine.database.close()


@pytest.mark.parametrize("committed_after", range(0, 14, 2))
def test_replaying_the_log_after_a_crash_gives_the_same(lab: Lab, committed_after: int) -> None:
    some_entries(lab)
    wanted, entries = lab.content(), lab.entries
    lab.machine.database.rollback()
    lab.machine.reload()
    assert lab.machine.applied_index == 0
    for index, commands in enumerate(entries, 1):
        lab.machine.apply(index, 1, commands)
        if index == committed_after:
            lab.machine.commit()
    lab.crash()
    assert lab.machine.applied_index == committed_after
    lab.replay()
    assert lab.content() == wanted


def test_nothing_of_an_uncommitted_entry_survives_a_crash(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.machine.commit()
    before = lab.content()
    some_entries(lab)
    lab.crash()
    assert lab.content() == before
    assert lab.machine.revision == 2


def test_what_is_applied_can_be_read_before_it_is_committed(lab: Lab) -> None:
    lab.put(b"a")
    assert lab.machine.database.in_transaction
    assert lab.keys() == [b"a"]
    lab.machine.commit()
    assert not lab.machine.database.in_transaction
    lab.machine.commit()


def test_a_full_disk_takes_the_transaction_and_the_log_brings_it_back(lab: Lab) -> None:
    lab.put(b"a", b"1")
    lab.machine.commit()
    connection = lab.machine.database.connection
    pages = connection.pragma("page_count")
    lab.put(b"b", b"2")
    connection.pragma("max_page_count", pages)
    with pytest.raises(StateRolledBack):
        lab.put(b"c", b"3" * 1_000_000)
    machine = lab.machine
    assert (machine.applied_index, machine.revision) == (1, 2)
    assert lab.keys() == [b"a"]
    assert machine.take_changes() == []
    connection.pragma("max_page_count", 1 << 20)
    lab.replay()
    assert lab.keys() == [b"a", b"b", b"c"]
    assert machine.revision == 4
    lab.machine.commit()


def test_a_full_disk_in_a_step_of_compaction(lab: Lab) -> None:
    for number in range(3):
        lab.put(b"a", b"%d" % number)
    lab.compact(4)
    lab.machine.commit()
    with full_disk(lab), pytest.raises(StateRolledBack):
        lab.machine.compact_step(10)
    assert lab.machine.compaction_pending
    lab.finish_compaction()
    lab.check_tables()


def test_a_full_disk_at_a_change_of_the_membership(lab: Lab) -> None:
    change = command_pb2.ConfChange(member=rpc_pb2.Member(ID=7, peerURLs=["http://a:2380"]))
    with full_disk(lab), pytest.raises(StateRolledBack):
        lab.machine.apply_conf_change(1, 1, change)
    assert lab.machine.applied_index == 0
    assert lab.machine.members.all() == []
    assert lab.machine.apply_conf_change(1, 1, change) == (1, b"")


@contextmanager
def full_disk(lab: Lab) -> Iterator[None]:
    """While this lasts, every statement that writes fails as on a full disk."""

    def refuse(*_: object) -> int:
        raise apsw.FullError

    connection = lab.machine.database.connection
    connection.create_scalar_function("refuse", refuse)
    for table in ("revisions", "members", "meta"):
        for event in ("INSERT", "DELETE", "UPDATE"):
            connection.execute(
                f"CREATE TEMP TRIGGER {table}_{event} BEFORE {event} ON main.{table}"
                " BEGIN SELECT refuse(); END"
            )
    try:
        yield
    finally:
        for table in ("revisions", "members", "meta"):
            for event in ("INSERT", "DELETE", "UPDATE"):
                connection.execute(f"DROP TRIGGER {table}_{event}")


def test_an_error_of_the_disk_at_commit_is_told_and_the_memory_goes_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.put(b"a")
    monkeypatch.setattr(lab.machine.database, "commit", _no_room)
    monkeypatch.setattr(lab.machine.database, "begin", lambda: None)
    lab.machine.database.rollback()
    with pytest.raises(StateRolledBack):
        lab.machine.commit()
    assert lab.machine.applied_index == 0
    assert lab.machine.revision == 1


def _no_room() -> None:
    raise StateRolledBack("state.db: no space left on the device")


def test_a_statement_that_fails_for_another_reason_is_not_hidden(lab: Lab) -> None:
    lab.machine.database.connection.execute("DROP TABLE history")
    lab.put(b"a")
    with pytest.raises(Exception, match="no such table") as caught:
        lab.put(b"a")
    assert isinstance(caught.value.__cause__, apsw.Error)


def test_the_views_for_people(lab: Lab) -> None:
    lab.grant(10)
    lab.put(b"a", b"old")
    lab.put(b"a", b"new", lease=10)
    lab.put(b"empty")
    run = lab.machine.database.connection.execute
    assert run("SELECT * FROM show_keys ORDER BY key").fetchall() == [
        ("a", "new", 2, 3, 2, 10),
        ("empty", "", 4, 4, 1, 0),
    ]
    assert run("SELECT * FROM show_history").fetchall() == [("a", "old", 2, 2, 1, 3)]
    assert run("SELECT * FROM show_leases").fetchall() == [(10, "000000000000000a", 60, 1)]


def test_a_thousand_puts_in_one_entry(lab: Lab) -> None:
    commands = [command(b"k%03d" % (number % 700), b"%d" % number) for number in range(1000)]
    outcomes = lab.apply(*commands)
    assert outcomes == [(number + 2, b"") for number in range(1000)]
    assert lab.range(**ALL, count_only=True).count == 700
    assert lab.get(b"k010").version == 2  # type: ignore[union-attr]
    assert len(lab.machine.events_since(2, 1001, 2000)) == 1000
    lab.check_tables()
