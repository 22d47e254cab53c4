"""What is left on the disks of real members, and what clients were told, before the simulator's judges.

The log of the members that have stopped is the ledger. It is given to a fresh machine, which says what became
of each entry and what every member must hold, row by row; and to the plain model, which must agree. Then come
the checks of reads, watches and linearizability, the same code as after a simulated run.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw

from etcd_server.api.proto import command_pb2
from etcd_server.machine.apply import Machine as StateMachine
from etcd_server.raft.messages import Entry, EntryKind
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from tests.namespaces.machines import Machine
from tests.sim.history import PUT, RANGE, History
from tests.sim.invariants import Invariants, Record
from tests.sim.plan import draw_plan
from tests.sim.verdict import check_linearizability, check_reads, replay_ledger
from tests.sim.watch_checks import Truth, check_watch
from tests.sim.world import Violation, World

TABLES = ("revisions", "current", "history", "leases", "members", "removed_members", "alarms", "meta")


def judge(folder: Path, machines: Sequence[Machine], history: History, ended_s: float) -> Counter[str]:
    """All checks of a run whose members have stopped; what was judged. Raises Violation.

    folder: for scratch files, made here. ended_s: when the traffic had ended.
    """
    folder.mkdir()
    entries = agreed_log(folder, machines)
    database = StateDatabase.open(str(folder / "replayed.db"), STATE_SCHEMA, STATE_SCHEMA_VERSION)
    ledger = replayed(StateMachine(database), entries, ended_s)
    rows = {name: _rows(database.connection, name) for name in TABLES}
    database.close()
    check_equal(machines, rows)
    replay = replay_ledger(ledger)
    if replay.model.leases:
        raise Violation(
            "lease outlived", f"nobody keeps them alive, but they are there: {replay.model.leases}"
        )
    check_reads(history.operations, replay.model)
    truth = Truth(replay.model.events, replay.model.revision)
    for sessions in history.watches:
        check_watch(sessions, truth)
    world = World(draw_plan(0))
    invariants = Invariants(world)
    invariants.ledger.extend(ledger)
    # When a lease's end was proposed is not known: at any time, then. Its revision says where it belongs.
    invariants.written_s.update({(entry.index, entry.term): 0.0 for entry in entries})
    check_linearizability(world, invariants, history, replay)
    if world.counts["history too hard to judge"]:
        raise Violation("linearizable", "the history is too hard to judge")
    watches = [session for sessions in history.watches for session in sessions]
    return world.counts + Counter(
        {
            "entry": len(entries),
            "revision": replay.model.revision,
            "watch session": len(watches),
            "event delivered": sum(
                len(delivery.response.events) for session in watches for delivery in session.deliveries
            ),
        }
    )


def judge_the_judges(folder: Path, machines: Sequence[Machine], history: History, ended_s: float) -> None:
    """The history of a good run, changed a little, must be refused: a read of a value that was another, an
    answer that tells another revision, an event that never came."""
    read = next(one for one in history.operations if one.path == RANGE and one.succeeded and one.response.kvs)
    put = next(one for one in history.operations if one.path == PUT and one.succeeded)
    delivery = next(one for one in history.watches[0][0].deliveries if one.response.events)
    for name, message, change in (
        ("reads", read.response, lambda response: setattr(response.kvs[0], "value", b"another")),
        ("linearizable", put.response, lambda response: setattr(response.header, "revision", 1)),
        ("watch", delivery.response, lambda response: response.events.pop(0)),
    ):
        kept = type(message).FromString(message.SerializeToString())
        change(message)
        try:
            judge(folder / f"planted-{name}", machines, history, ended_s)
        except Violation as violation:
            assert violation.check.startswith(name), violation
        else:
            raise AssertionError(f"the judges do not see what was planted: {name}")
        message.CopyFrom(kept)


def agreed_log(folder: Path, machines: Sequence[Machine]) -> list[Entry]:
    """The committed entries, of which every member's log must hold the same, from where it begins (log
    matching, committed part). One of the logs must never have been cut."""
    logs: dict[str, tuple[int, int, list[Entry]]] = {}
    for machine in machines:
        copy = folder / f"log-{machine.name}"
        copy.mkdir()
        for file in machine.data_dir.glob("raft.db*"):
            shutil.copy(file, copy)
        log = RaftLog.open(str(copy / "raft.db"), journal_size_bytes=1 << 16)
        hard_state, first, last = log.initial()
        entries: list[Entry] = []
        while first + len(entries) <= last:
            entries += log.entries(first + len(entries), last + 1, 1 << 24)
        log.close()
        logs[machine.name] = (first, hard_state.commit, entries)
    applied = max(_applied_index(machine) for machine in machines)
    committed = max(applied, *(commit for _, commit, _ in logs.values()))
    whole = [entries for first, _, entries in logs.values() if first == 1]
    if not whole:
        raise Violation("ledger", f"no log begins at 1: {[first for first, _, _ in logs.values()]}")
    longest = max(whole, key=len)[:committed]
    if len(longest) < committed:
        raise Violation("ledger", f"{committed} entries are committed, {len(longest)} are in whole logs")
    for name, (first, commit, entries) in logs.items():
        if entries[: commit - first + 1] != longest[first - 1 : commit]:
            raise Violation("log matching", f"{name} has other committed entries, from {first} to {commit}")
    return longest


def replayed(machine: StateMachine, entries: Sequence[Entry], ended_s: float) -> list[Record]:
    """What the machine makes of each entry."""
    ledger = []
    for entry in entries:
        outcomes: Sequence[Any] = ()
        if entry.kind is EntryKind.NORMAL:
            batch = command_pb2.Batch.FromString(entry.data)
            outcomes = machine.apply(entry.index, entry.term, batch.commands)
        elif entry.kind is EntryKind.CONF_CHANGE:
            change = command_pb2.ConfChange.FromString(entry.data)
            outcomes = [machine.apply_conf_change(entry.index, entry.term, change)]
        else:
            machine.apply(entry.index, entry.term, ())
        ledger.append(Record(entry, ended_s, ended_s, outcomes, machine.revision))
    machine.take_changes()
    machine.take_lease_changes()
    machine.commit()
    return ledger


def check_equal(machines: Sequence[Machine], rows: dict[str, list[Any]]) -> None:
    """Every member holds these rows, no more and no less."""
    for machine in machines:
        found = state_of(machine)
        for name in TABLES:
            if found[name] != rows[name]:
                unlike = [pair for pair in zip(found[name], rows[name], strict=False) if pair[0] != pair[1]]
                raise Violation(
                    "equal states",
                    f"{machine.name}: {len(found[name])} of {len(rows[name])} rows in {name}; {unlike[:2]}",
                )


def state_of(machine: Machine) -> dict[str, list[Any]]:
    """Every row of the state of a member that has stopped."""
    connection = _open(machine)
    found = {name: _rows(connection, name) for name in TABLES}
    connection.close()
    return found


def check_disks(machines: Sequence[Machine]) -> None:
    """`etcd-py verify` finds nothing."""
    for machine in machines:
        done = machine.verify()
        if done.returncode:
            raise Violation("verify", f"{machine.name}: {done.stdout}{done.stderr}")


def _applied_index(machine: Machine) -> int:
    connection = _open(machine)
    [(found,)] = connection.execute("SELECT applied_index FROM meta")
    connection.close()
    return int(found)


def _open(machine: Machine) -> apsw.Connection:
    return apsw.Connection(str(machine.data_dir / "state.db"), flags=apsw.SQLITE_OPEN_READONLY)


def _rows(connection: apsw.Connection, table: str) -> list[Any]:
    return connection.execute(f"SELECT * FROM {table}").fetchall()
