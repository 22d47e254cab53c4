"""How a cluster grows and shrinks, as etcd's documentation tells it: one member, a second, a third, one less.

Real processes on loopback, the flags and the v2 API of the story itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from etcd_server.api.proto import rpc_pb2
from tests.live import STATUS, LiveServer, assert_no_traceback, assert_one_line, wait_until

TOKEN = "eagle-cluster"
LIMIT_S = 30.0
MEMBER_LIST = "/etcdserverpb.Cluster/MemberList"
Start = Callable[..., LiveServer]


class Eagle(LiveServer):
    """A member of the story; --initial-cluster names whom it is told."""

    def __init__(self, folder: Path, name: str, state: str, others: tuple[Eagle, ...] = ()) -> None:
        super().__init__(folder, name=name)
        self.set_flag("--initial-cluster-token", TOKEN)
        self.set_flag("--initial-cluster-state", state)
        named = [f"{each.name}={each.peer_url}" for each in (*others, self)]
        self.set_flag("--initial-cluster", ",".join(named))

    def set_flag(self, name: str, value: str) -> None:
        self._command.append(f"{name}={value}")

    def members(self) -> dict[str, dict[str, Any]]:
        """The v2 list of members, by the first peer URL."""
        listed = requests.get(f"{self.url}/v2/members", timeout=LIMIT_S).json()["members"]
        return {member["peerURLs"][0]: member for member in listed}

    def add(self, peer_url: str) -> requests.Response:
        return requests.post(f"{self.url}/v2/members", json={"peerURLs": [peer_url]}, timeout=LIMIT_S)

    def add_when_healthy(self, peer_url: str) -> dict[str, Any]:
        """Members must have been in touch for 5 s before the next one is added."""

        def added() -> requests.Response | None:
            answer = self.add(peer_url)
            assert answer.status_code in (201, 500), answer.text
            return answer if answer.status_code == 201 else None

        answer: requests.Response = wait_until(added, f"{peer_url} added", LIMIT_S)
        told: dict[str, Any] = answer.json()
        return told

    def remove(self, member_id: str) -> requests.Response:
        return requests.delete(f"{self.url}/v2/members/{member_id}", timeout=LIMIT_S)

    def key(self, key: bytes) -> bytes | None:
        with self.calls() as calls:
            return calls.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        with self.calls() as calls:
            calls.put(key, value)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for server in _started:
        if server.running:
            server.stop()
    _started.clear()


_started: list[Eagle] = []


def start(server: Eagle, *, ready: bool = True) -> Eagle:
    """Start a member; it is ended with the test."""
    _started.append(server)
    if ready:
        server.start(LIMIT_S)
    else:
        server.launch()
    return server


@pytest.mark.timeout(180)
def test_the_story(folder: Path) -> None:
    first = start(Eagle(folder, "first", "new"))
    assert list(first.members()) == [first.peer_url]
    [told] = first.members().values()
    assert (told["name"], told["clientURLs"]) == ("first", [first.url])
    first.put(b"k", b"before")

    # The second is added; until it is started there is no quorum, and the first waits for it.
    second = Eagle(folder, "second", "existing", (first,))
    added = first.add(second.peer_url)
    assert added.status_code == 201
    assert added.json() | {"id": ""} == {
        "id": "",
        "name": "",
        "peerURLs": [second.peer_url],
        "clientURLs": [],
    }
    assert first.members().keys() == {first.peer_url, second.peer_url}
    assert first.add(second.peer_url).status_code in (409, 500)
    with first.calls() as calls:
        waiting = calls.function("/etcdserverpb.KV/Put").future(
            rpc_pb2.PutRequest(key=b"k", value=b"after"), timeout=LIMIT_S
        )
        assert not waiting.done()
        start(second)
        assert waiting.result(LIMIT_S).header.revision == 3
    assert second.key(b"k") == first.key(b"k") == b"after"
    wait_until(lambda: second.members() == first.members(), "the same members", LIMIT_S)
    assert {member["name"] for member in second.members().values()} == {"first", "second"}

    # A third follows.
    third = Eagle(folder, "third", "existing", (first, second))
    third_id = second.add_when_healthy(third.peer_url)["id"]
    start(third)
    assert third.key(b"k") == b"after"
    third.put(b"k", b"from the third")
    for member in (first, second):
        assert member.key(b"k") == b"from the third"
        with member.calls() as calls:
            status = calls.call(STATUS, rpc_pb2.StatusRequest())
            assert status.leader
            listed = calls.call(MEMBER_LIST, rpc_pb2.MemberListRequest(linearizable=True))
            assert {each.name for each in listed.members} == {"first", "second", "third"}

    # One is removed: its process ends by itself, and says why.
    def removed() -> bool:
        answer = first.remove(third_id)
        assert answer.status_code in (204, 500), answer.text
        return answer.status_code == 204

    wait_until(removed, "the third removed", LIMIT_S)
    assert third.wait_for_exit(LIMIT_S) == 0
    assert f"member {third_id} has been permanently removed from cluster" in third.output
    assert_no_traceback(third.output)
    assert first.remove(third_id).status_code == 410
    for member in (first, second):
        assert member.members().keys() == {first.peer_url, second.peer_url}
    second.put(b"k", b"without the third")
    assert first.key(b"k") == b"without the third"

    # Its data are of no use any more.
    third.launch()
    assert third.wait_for_exit(LIMIT_S) == 0
    assert third.output.count("has been permanently removed") >= 2
    for member in (first, second):
        assert member.stop() == 0
        assert_no_traceback(member.output)


@pytest.mark.timeout(120)
def test_starts_that_are_refused(folder: Path) -> None:
    first = start(Eagle(folder, "first", "new"))
    second = Eagle(folder, "second", "existing", (first,))

    def refusal(server: Eagle, **flags: str) -> str:
        for name, value in flags.items():
            server.set_flag(f"--{name.replace('_', '-')}", value)
        ended = server.run_to_the_end()
        assert ended.returncode == 1
        assert_one_line(ended.stderr)
        return ended.stderr.splitlines()[-1]

    assert "member count is unequal: --initial-cluster names 2, cluster" in refusal(second)
    assert first.add(second.peer_url).status_code == 201
    elsewhere = Eagle(folder, "elsewhere", "existing", (first,))
    assert "PeerURLs: no match found for existing member" in refusal(elsewhere)
    alone = Eagle(folder, "alone", "existing")
    assert "cannot fetch cluster info from peer urls" in refusal(alone)
    nameless = Eagle(folder, "nameless", "existing", (first,))
    assert 'couldn\'t find local name "other"' in refusal(nameless, name="other")

    start(second)
    second.stop()
    data = second.data_dir
    data.rename(folder / "kept")
    assert 'has been started before, as "second"' in refusal(second)
    (folder / "second.data").rename(folder / "emptied")
    (folder / "kept").rename(data)
    start(second)


def test_one_who_starts_with_another_token_is_not_let_in(folder: Path) -> None:
    """Two clusters that were begun apart, though their members name each other."""
    first = start(Eagle(folder, "first", "new"))
    stranger = Eagle(folder, "stranger", "new", (first,))
    stranger.set_flag("--initial-cluster-token", "another-cluster")
    start(stranger, ready=False)
    wait_until(lambda: "cluster ID mismatch" in stranger.output, "the refusal", LIMIT_S)
    assert list(first.members()) == [first.peer_url]
    first.put(b"k", b"v")
    assert json.loads(requests.get(f"{first.url}/health", timeout=LIMIT_S).text)["health"] == "true"


@pytest.mark.timeout(120)
def test_a_quorum_that_is_lost_for_good(folder: Path) -> None:
    first = start(Eagle(folder, "first", "new"))
    second = Eagle(folder, "second", "existing", (first,))
    second_id = first.add_when_healthy(second.peer_url)["id"]
    start(second)
    for number in range(100):
        first.put(b"k%d" % number, b"v")
    second.kill()
    first.stop()

    missing = Eagle(folder, "missing", "new")
    missing.set_flag("--force-new-cluster", "true")
    refused = missing.run_to_the_end()
    assert refused.returncode == 1
    assert_one_line(refused.stderr, "--force-new-cluster: .* holds no member's data")

    first.set_flag("--force-new-cluster", "true")
    start(first)
    assert list(first.members()) == [first.peer_url]
    with first.calls() as calls:
        assert len(calls.everything().kvs) == 100
    first.put(b"k", b"alone")
    assert first.stop() == 0
    first.set_flag("--force-new-cluster", "false")
    start(first)
    assert first.key(b"k") == b"alone"
    # The other one comes back, and is told.
    start(second, ready=False)
    assert second.wait_for_exit(LIMIT_S) == 0
    assert f"member {second_id} has been permanently removed" in second.output
    assert first.stop() == 0
    assert first.verify().returncode == 0
