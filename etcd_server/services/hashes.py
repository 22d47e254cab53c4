"""etcdserverpb.Maintenance: Hash and HashKV, by which members are compared.

A hash is of all keys and takes its time, so each turn of the engine gives it a step, and requests go on
meanwhile. It is of one revision, whose rows do not change; only a compaction makes it begin anew. One is made
at a time; who asks for the same as somebody else who waits is answered with them.

Hash is of everything that is replicated: the key space at the current revision, leases, alarms and members.
etcd's is of its database file, with what is not replicated left out; here, too, it compares members, never
servers of different kinds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from etcd_server.api import errors
from etcd_server.api.proto import rpc_pb2
from etcd_server.machine.hashing import KeySpaceHash
from etcd_server.services.core import Core
from etcd_server.services.events import Effects

STEP_ROWS = 500
STEP_BYTES = 1024 * 1024


@dataclass(slots=True)
class Job:
    """A hash that somebody waits for. revision: of HashKV; None: it is a Hash."""

    revision: int | None
    call_ids: list[int]
    hash: KeySpaceHash | None = None


class Hashes:
    """The hashes that clients of one member have asked for, first come, first served."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._jobs: deque[Job] = deque()

    def hash_kv(self, calls: Sequence[tuple[int, rpc_pb2.HashKVRequest]]) -> None:
        """The hash of the key space at a revision; 0 is the current one, as of now."""
        for call_id, request in calls:
            self._add(call_id, request.revision or self._core.machine.revision)

    def hash(self, calls: Sequence[tuple[int, rpc_pb2.HashRequest]]) -> None:
        """The hash of everything that is replicated."""
        for call_id, _ in calls:
            self._add(call_id, None)

    def _add(self, call_id: int, revision: int | None) -> None:
        for job in self._jobs:
            # What everything is now is not what it was when somebody's Hash was begun.
            if job.revision == revision and (revision is not None or job.hash is None):
                job.call_ids.append(call_id)
                return
        self._jobs.append(Job(revision, [call_id]))

    def step(self, effects: Effects) -> None:
        """A step of the first, and the answer when that was its last."""
        if not self._jobs:
            return
        job, core = self._jobs[0], self._core
        try:
            unfinished = self._begun(job)
        except errors.EtcdError as error:
            self._jobs.popleft()
            for call_id in job.call_ids:
                core.answer(call_id, error)
        else:
            if not core.machine.hash_step(unfinished, STEP_ROWS, STEP_BYTES):
                self._jobs.popleft()
                self._answer(job, unfinished)
        effects.more_work |= bool(self._jobs)

    def _begun(self, job: Job) -> KeySpaceHash:
        machine = self._core.machine
        if job.hash is None or job.hash.compacted_revision != machine.compacted_revision:
            job.hash = machine.begin_hash(job.revision or 0, with_facts=job.revision is None)
        return job.hash

    def _answer(self, job: Job, finished: KeySpaceHash) -> None:
        response: rpc_pb2.HashResponse | rpc_pb2.HashKVResponse
        if job.revision is None:
            response = rpc_pb2.HashResponse(hash=finished.value)
        else:
            response = rpc_pb2.HashKVResponse(
                hash=finished.value,
                compact_revision=finished.compacted_revision,
                hash_revision=finished.revision,
            )
        body = response.SerializeToString()
        for call_id in job.call_ids:
            self._core.reply(call_id, body)

    def drop(self, cancelled: Sequence[int]) -> None:
        """These callers are gone."""
        if not self._jobs or not cancelled:
            return
        gone = set(cancelled)
        for job in self._jobs:
            job.call_ids = [call_id for call_id in job.call_ids if call_id not in gone]
        self._jobs = deque(job for job in self._jobs if job.call_ids)

    def stop(self) -> None:
        """The member stops: everyone who waits is told."""
        while self._jobs:
            for call_id in self._jobs.popleft().call_ids:
                self._core.answer(call_id, errors.Stopped())
