"""A machine and the model of store_model.py, given the same requests; whatever they answer must be equal."""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from etcd_server.api.errors import EtcdError
from etcd_server.api.proto import command_pb2, kv_pb2, rpc_pb2
from tests.properties.store_model import Event, Model
from tests.unit.machine.machines import Lab

KEYS = [b"a", b"a\0", b"b", b"bb", b"c", b"\xff"]
ENDS = [b"", b"", b"\0", b"a\0", b"b", b"c", b"\xff"]
LEASES = [1, 2]

keys = st.sampled_from(KEYS)
ends = st.sampled_from(ENDS)
values = st.sampled_from([b"", b"x", b"y", b"z" * 130])
rarely = st.sampled_from([False] * 5 + [True])
# Relative to the current revision: what is asked for depends on how far the machine is.
backwards = st.integers(-1, 10)


@st.composite
def puts(draw: st.DrawFn) -> rpc_pb2.PutRequest:
    ignore_value, ignore_lease = draw(rarely), draw(rarely)
    return rpc_pb2.PutRequest(
        key=draw(keys),
        value=b"" if ignore_value else draw(values),
        lease=0 if ignore_lease else draw(st.sampled_from([0, 0, 0, *LEASES])),
        prev_kv=draw(rarely),
        ignore_value=ignore_value,
        ignore_lease=ignore_lease,
    )


@st.composite
def deletions(draw: st.DrawFn) -> rpc_pb2.DeleteRangeRequest:
    return rpc_pb2.DeleteRangeRequest(key=draw(keys), range_end=draw(ends), prev_kv=draw(rarely))


@st.composite
def ranges(draw: st.DrawFn) -> rpc_pb2.RangeRequest:
    """`revision` says how far to look back; `looking_back` makes a revision of it."""
    request = rpc_pb2.RangeRequest(
        key=draw(keys),
        range_end=draw(ends),
        limit=draw(st.sampled_from([0, 0, 1, 2, 3, 10])),
        sort_order=draw(st.sampled_from(rpc_pb2.RangeRequest.SortOrder.values())),
        sort_target=draw(st.sampled_from(rpc_pb2.RangeRequest.SortTarget.values())),
        keys_only=draw(rarely),
        count_only=draw(rarely),
        revision=draw(backwards),
    )
    for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        if draw(rarely):
            setattr(request, name, draw(st.integers(1, 20)))
    return request


class Twins(RuleBasedStateMachine):
    """The rules that all tests of the store share: puts, deletions, reads, crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.lab = Lab(self.folder)
        self.model = Model()

    def teardown(self) -> None:
        self.lab.finish_compaction()
        self.lab.check_tables()
        self.lab.machine.database.close()
        shutil.rmtree(self.folder)

    def looking_back(self, request: rpc_pb2.RangeRequest) -> None:
        """Make a revision of `revision`: 0 stays "now", 1 is the current one, 2 the one before, -1 next."""
        if request.revision > 0:
            request.revision = self.model.revision + 1 - request.revision
        elif request.revision < 0:
            request.revision = self.model.revision - request.revision

    def both(self, real: Callable[[], Any], expected: Callable[[], Any]) -> None:
        """Both answer alike, or both refuse with the same error and change nothing."""
        answers = []
        for ask in (real, expected):
            try:
                answers.append(ask())
            except EtcdError as error:
                answers.append(type(error))
        assert answers[0] == answers[1], f"machine: {answers[0]}\nmodel: {answers[1]}"

    @rule(requests=st.lists(puts(), min_size=1, max_size=8))
    def put_in_one_entry(self, requests: list[rpc_pb2.PutRequest]) -> None:
        outcomes = self.lab.apply(*(command_pb2.Command(put=request) for request in requests))
        for request, outcome in zip(requests, outcomes, strict=True):
            self.both(partial(put_response, outcome), partial(self.model.put, request))

    @rule(request=deletions())
    def delete(self, request: rpc_pb2.DeleteRangeRequest) -> None:
        self.both(
            lambda: self.lab.delete(request.key, request.range_end, prev_kv=request.prev_kv),
            lambda: self.model.delete(request),
        )

    @rule(request=ranges())
    def read(self, request: rpc_pb2.RangeRequest) -> None:
        self.looking_back(request)
        self.both(
            lambda: rpc_pb2.RangeResponse.FromString(self.lab.machine.range(request)),
            lambda: self.model.range(request),
        )

    @rule(commit=st.booleans())
    def crash(self, commit: bool) -> None:
        """The log brings back what was not committed."""
        if commit:
            self.lab.machine.commit()
        self.lab.crash()
        self.lab.replay()

    @invariant()
    def same_keys(self) -> None:
        assert self.lab.machine.revision == self.model.revision
        kvs = self.lab.range(b"\0", b"\0").kvs
        assert list(kvs) == [self.model.now[key] for key in sorted(self.model.now)]


def put_response(outcome: Any) -> rpc_pb2.PutResponse:
    if isinstance(outcome, EtcdError):
        raise outcome
    response = rpc_pb2.PutResponse.FromString(outcome[1])
    response.header.revision = outcome[0]
    return response


def told(lab: Lab, first: int, limit_rows: int) -> list[Event]:
    """All events from revision `first` on, read in pages as the watch hub does."""
    events: list[Event] = []
    while rows := lab.machine.events_since(first, lab.machine.revision, limit_rows):
        for packed, is_deletion, key, kv, previous in rows:
            before = lab.machine.kv_at(previous)
            message = kv_pb2.KeyValue.FromString(kv)
            assert message.key == key
            parsed = None if before is None else kv_pb2.KeyValue.FromString(before)
            events.append(Event(packed >> 24, is_deletion, message, parsed))
        first = (rows[-1][0] >> 24) + 1
    return events
