"""A process killed in the middle of it, on a real disk: SQLite's own locks, shared memory and recovery.

The child appends, applies and commits, while a thread makes checkpoints and cuts the log; it writes each
index to its standard output once it is acknowledged. It is killed by SIGKILL at a random moment, again and
again on one directory.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from etcd_server.api.proto import command_pb2, rpc_pb2
from etcd_server.machine.apply import Machine
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.storage.database import StateDatabase
from etcd_server.storage.datadir import DataDirectory
from etcd_server.storage.maintenance import StateMaintenance, cut_log
from etcd_server.storage.raftlog import RaftLog
from etcd_server.storage.reserve import Reserve
from etcd_server.storage.schema import STATE_SCHEMA, STATE_SCHEMA_VERSION
from etcd_server.storage.verify import verify

ROUNDS = 8
ALL = 1 << 40


def batch(index: int) -> bytes:
    puts = [
        command_pb2.Command(
            put=rpc_pb2.PutRequest(key=b"key %d" % (index * 7 % 500 + number), value=b"%d" % index)
        )
        for number in range(10)
    ]
    return command_pb2.Batch(commands=puts).SerializeToString()


def opened(directory: DataDirectory) -> tuple[RaftLog, Machine]:
    """Both files, the log replayed."""
    reserve = Reserve.open(directory.reserve_path)
    log = RaftLog.open(directory.raft_log_path)
    state = StateDatabase.open(directory.state_path, STATE_SCHEMA, STATE_SCHEMA_VERSION, reserve=reserve)
    machine = Machine(state)
    log.check_joins(machine.applied_index)
    if machine.applied_index < log.last_index():
        for entry in log.entries(machine.applied_index + 1, log.last_index() + 1, ALL):
            machine.apply(entry.index, entry.term, command_pb2.Batch.FromString(entry.data).commands)
    return log, machine


def work(path: str) -> None:
    """The child: runs until it is killed."""
    directory = DataDirectory.open(path)
    log, machine = opened(directory)

    def keep() -> None:
        maintenance = StateMaintenance.open(directory.state_path)
        while True:
            cut_log(log, maintenance.checkpoint().applied_index, 20)
            log.checkpoint()

    threading.Thread(target=keep, daemon=True).start()
    while True:
        index = log.last_index() + 1
        data = batch(index)
        log.append(HardState(1, 1, index - 1), [Entry(index, 1, EntryKind.NORMAL, data)])
        sys.stdout.write(f"{index}\n")
        sys.stdout.flush()
        machine.apply(index, 1, command_pb2.Batch.FromString(data).commands)
        machine.take_changes()
        if index % 7 == 0:
            machine.commit()
        if index % 70 == 0:
            machine.database.restart_journal()


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    chance = random.Random(1)
    acknowledged = 0
    for _ in range(ROUNDS):
        arguments = [
            sys.executable,
            "-c",
            "import sys, tests.faults.test_disk_kill as t; t.work(sys.argv[1])",
        ]
        with subprocess.Popen([*arguments, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            first = child.stdout.readline()
            time.sleep(chance.uniform(0.01, 0.3))  # the moment of the kill is what varies
            child.kill()
            lines = [first, *child.stdout.read().splitlines(keepends=True)]
        complete = [int(line) for line in lines if line.endswith("\n")]
        assert complete[0] == acknowledged + 1
        acknowledged = complete[-1]
        report = verify(tmp_path)
        assert report.is_sound, report.lines()
        directory = DataDirectory.open(tmp_path)
        log, machine = opened(directory)
        assert log.last_index() in (acknowledged, acknowledged + 1)
        assert machine.revision == 1 + 10 * log.last_index()
        machine.commit()
        acknowledged = log.last_index()
        log.close()
        machine.database.close()
        directory.close()
    assert acknowledged > 50
