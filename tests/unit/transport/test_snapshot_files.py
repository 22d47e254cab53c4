"""Snapshots on their way between members: who may send one, and what becomes of each."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from etcd_server.api.proto import rpc_pb2
from etcd_server.raft.confchange import Configuration
from etcd_server.raft.messages import Snapshot
from etcd_server.services.events import Batch, ReceivedSnapshot, SnapshotRequest
from etcd_server.storage.snapshot import Contents, SnapshotFile
from etcd_server.transport.peers import Greeting, Refusal
from etcd_server.transport.snapshot_files import (
    LENGTH,
    SHA256,
    TERM,
    Copied,
    LookedInto,
    Offer,
    SnapshotFiles,
)

OWN = Greeting(0xC1, 0xA, 0xA, "3.6.0")
OTHER = 0xB
HASH = "0123456789abcdef" * 4
CONTENTS = Contents(70, 3, 60, Configuration((0xA, OTHER)))
REQUEST = SnapshotRequest(OTHER, 4, 69)
COPY = SnapshotFile("/data/snapshot/outgoing-1", CONTENTS, 4096, HASH)
OFFER = Offer(4, 70, HASH, 4096)


class Recorder:
    """A port and a workshop that only note what they are asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.has_room = True

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))

    def path_for(self, file_id: int, size_bytes: int) -> str | None:
        return f"/data/snapshot/incoming-{file_id}" if self.has_room else None

    def take(self) -> list[tuple[Any, ...]]:
        calls, self.calls = self.calls, []
        return calls


class Setting:
    """The bookkeeping of member a among recorders; member b is the other one."""

    def __init__(self) -> None:
        self.outside = Recorder()
        self.members = {OTHER: rpc_pb2.Member(ID=OTHER, peerURLs=["http://b:2380"])}
        self.no_use: str | None = None
        self.stranger: Refusal | None = None
        engine: Any = SimpleNamespace(
            machine=SimpleNamespace(members=SimpleNamespace(get=self.members.get)),
            snapshots=SimpleNamespace(refusal=lambda sender, term, index: self.no_use),
        )
        self.files = SnapshotFiles(self.outside, self.outside, engine, OWN, lambda greeting: self.stranger)

    def news(self) -> list[tuple[int, bool]]:
        batch = Batch()
        self.files.take_news(batch)
        return batch.snapshots_sent


@pytest.fixture
def setting() -> Setting:
    return Setting()


def headers() -> list[tuple[str, str]]:
    greeting = Greeting(OWN.cluster_id, OTHER, OWN.member_id, "3.6.0")
    return [*greeting.to_headers(), *OFFER.to_headers(), (LENGTH, str(OFFER.size_bytes))]


def received() -> ReceivedSnapshot:
    return ReceivedSnapshot(7, "/data/snapshot/incoming-7", OTHER, 4, Snapshot(70, 3, CONTENTS.configuration))


def test_a_copy_is_sent_and_removed(setting: Setting) -> None:
    files, outside = setting.files, setting.outside
    files.request(REQUEST)
    assert outside.take() == [("copy", REQUEST)]
    assert files.sent_tally.under_way == {("b",): 1}
    files.copied(Copied(REQUEST, COPY))
    greeting = replace(OWN, target_id=OTHER)
    [sent] = outside.take()
    assert sent == (
        "send_file", 1, ["http://b:2380"], COPY.path, [*greeting.to_headers(), *OFFER.to_headers()]
    )  # fmt: skip
    assert setting.news() == []
    files.sent(1, "")
    files.sent(1, "")
    assert outside.take() == [("remove", COPY.path)]
    assert setting.news() == [(OTHER, True)]
    assert setting.news() == []
    assert (files.sent_tally.succeeded, files.sent_tally.failed) == ({("b",): 1}, {})
    assert files.sent_tally.under_way == {("b",): 0}


def test_failures_of_the_sender_are_told(setting: Setting) -> None:
    files, outside = setting.files, setting.outside
    files.request(REQUEST)
    files.copied(Copied(REQUEST, None, "no room"))
    files.request(REQUEST)
    files.copied(Copied(REQUEST, COPY))
    files.sent(1, "connection lost")
    del setting.members[OTHER]
    files.request(REQUEST)
    files.copied(Copied(REQUEST, COPY))
    assert setting.news() == [(OTHER, False)] * 3
    assert [call for call in outside.take() if call[0] == "remove"] == [("remove", COPY.path)] * 2
    assert files.sent_tally.failed == {("b",): 3}
    assert files.sent_tally.under_way == {("b",): 0}


def test_a_file_that_raft_wants(setting: Setting) -> None:
    files, outside = setting.files, setting.outside
    files.asked(7, headers())
    assert outside.take() == [("accept_file", 7, "/data/snapshot/incoming-7")]
    assert files.receiving == 1
    files.received(7, 4096, HASH)
    assert outside.take() == [("look_into", 7, "/data/snapshot/incoming-7")]
    batch = Batch()
    files.looked_into(LookedInto(7, CONTENTS), batch)
    assert batch.snapshots_received == [received()]
    files.installed(received())
    assert outside.take() == [("finish_file", 7, 200, "")]
    assert files.receiving == 0
    assert files.received_tally.succeeded == {("b",): 1}


def test_files_that_are_of_no_use(setting: Setting) -> None:
    files, outside = setting.files, setting.outside
    gone = ("remove", "/data/snapshot/incoming-7")
    files.asked(7, headers())
    files.received(7, 4096, "f" * 64)
    _, removed, (name, number, status, text) = outside.take()
    assert (removed, name, number, status) == (gone, "finish_file", 7, 422)
    assert text == f"4096 bytes arrived with SHA-256 {'f' * 64}, {HASH} was expected"
    files.asked(7, headers())
    files.received(7, 4096, HASH)
    batch = Batch()
    files.looked_into(LookedInto(7, None, "the file is damaged"), batch)
    assert batch.snapshots_received == []
    assert outside.take()[2:] == [gone, ("finish_file", 7, 422, "the file is damaged")]
    files.asked(7, headers())
    files.received(7, 4096, HASH)
    files.looked_into(LookedInto(7, CONTENTS), batch)
    files.refused(received())
    assert outside.take()[2:] == [
        gone, ("finish_file", 7, 409, "the member does not need this snapshot any more")
    ]  # fmt: skip
    files.asked(7, headers())
    files.failed(7, "connection lost")
    assert [call[0] for call in outside.take()] == ["accept_file"], "the wire has removed it"
    assert files.received_tally.failed == {("b",): 4}
    assert files.receiving == 0
    for late in (lambda: files.received(7, 1, HASH), lambda: files.failed(7, "again")):
        late()
    assert outside.take() == []


def test_offers_that_are_refused_at_once(setting: Setting) -> None:
    files, outside = setting.files, setting.outside
    setting.no_use = "a snapshot of term 3, the member is in term 4"
    files.asked(1, headers())
    setting.stranger = Refusal(412, "cluster ID mismatch")
    files.asked(2, headers())
    setting.stranger = setting.no_use = None
    outside.has_room = False
    files.asked(3, headers())
    assert outside.take() == [
        ("refuse_file", 1, 409, "a snapshot of term 3, the member is in term 4"),
        ("refuse_file", 2, 412, "cluster ID mismatch"),
        ("refuse_file", 3, 507, "no room for a snapshot of 4096 bytes"),
    ]
    assert files.receiving == 0


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (TERM, "-1", f'{TERM}: expected a number, found "-1"'),
        (TERM, "", f'{TERM}: expected a number, found ""'),
        (LENGTH, "9" * 20, f'{LENGTH}: expected a number, found "{"9" * 20}"'),
        (SHA256, "abc", f'{SHA256}: expected 64 hexadecimal digits, found "abc"'),
        (SHA256, "g" * 64, f'{SHA256}: expected 64 hexadecimal digits, found "{"g" * 64}"'),
        ("x-etcd-member-id", "nobody", "x-etcd-member-id: "),
    ],
)
def test_headers_that_make_no_sense(setting: Setting, name: str, value: str, text: str) -> None:
    told = [(name, value) if name == other else (other, its) for other, its in headers()]
    setting.files.asked(1, told)
    [(call, number, status, found)] = setting.outside.take()
    assert (call, number, status) == ("refuse_file", 1, 400)
    assert found.startswith(text)


def test_an_offer_survives_its_headers() -> None:
    assert Offer.from_headers(headers()) == OFFER
