"""How a cluster begins."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from etcd_server import bootstrap
from etcd_server.api.proto import command_pb2
from etcd_server.bootstrap import BootstrapError, FirstEntries, Identity, first_entries, parse_initial_cluster
from etcd_server.config import load, parse_command_line
from etcd_server.raft.confchange import ChangeKind, ConfChange
from etcd_server.raft.messages import Entry, EntryKind, HardState
from etcd_server.raft.node import Node
from etcd_server.raft.state import Config as RaftConfig


def first(*arguments: str) -> FirstEntries:
    return first_entries(load(parse_command_line(arguments), {}).config)


def refusal(*arguments: str) -> str:
    with pytest.raises(BootstrapError) as caught:
        first(*arguments)
    assert "\n" not in str(caught.value) and caught.value.exit_status == 1
    return str(caught.value)


def test_the_ids_of_the_default_member_are_those_of_etcd() -> None:
    begun = first()
    assert f"{begun.member_id:x} {begun.cluster_id:x}" == "8e9e05c52164694d cdf818194e3a8c32"


def test_the_token_and_the_urls_make_the_ids() -> None:
    ids = {
        first(*arguments).identity
        for arguments in (
            [],
            ["--initial-cluster-token", "other"],
            ["--name", "m", "--initial-advertise-peer-urls", "http://10.0.0.1:2380"],
        )
    }
    assert len(ids) == 3
    assert first("--name", "other").identity == first().identity


def test_the_first_entry_makes_the_member() -> None:
    (entry,) = first("--name", "m1").entries
    assert (entry.index, entry.term, entry.kind) == (1, 1, EntryKind.CONF_CHANGE)
    change = command_pb2.ConfChange.FromString(entry.data)
    assert change.kind == command_pb2.ConfChange.ADD_VOTER
    assert (change.member.ID, change.member.name) == (first().member_id, "m1")
    assert list(change.member.peerURLs) == ["http://localhost:2380"]


def test_raft_elects_a_leader_from_the_first_entries() -> None:
    begun = first()
    log = [Entry(0, 0, EntryKind.EMPTY, b""), *begun.entries]

    class Log:
        def first_index(self) -> int:
            return 1

        def last_index(self) -> int:
            return len(log) - 1

        def term(self, index: int) -> int:
            return log[index].term

        def entries(self, low: int, high: int, max_bytes: int) -> list[Entry]:
            return log[low:high]

    hard_state = HardState(term=1, vote=0, commit=len(begun.entries))
    node = Node(
        RaftConfig(member_id=begun.member_id, voters=(), hard_state=hard_state), Log(), random.Random(1)
    )
    for _ in range(100):
        node.tick()
        while ready := node.ready():
            log.extend(ready.entries)
            for entry in ready.committed_entries:
                kind = ChangeKind.ADD_VOTER if entry.kind is EntryKind.CONF_CHANGE else None
                if kind is not None:
                    member = command_pb2.ConfChange.FromString(entry.data).member
                    node.apply_conf_change(ConfChange(kind, member.ID))
            node.advance(ready.number)
    assert node.status.leader_id == begun.member_id


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("a=http://1.1.1.1:1", {"a": ("http://1.1.1.1:1",)}),
        (
            "b=http://2.2.2.2:1, a=http://1.1.1.1:2,a=http://1.1.1.1:1,",
            {"b": ("http://2.2.2.2:1",), "a": ("http://1.1.1.1:1", "http://1.1.1.1:2")},
        ),
        ("", {}),
    ],
)
def test_initial_cluster_is_read(text: str, members: dict[str, tuple[str, ...]]) -> None:
    assert parse_initial_cluster(text) == members


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("http://1.1.1.1:1", '--initial-cluster: expected name=URL, found "http://1.1.1.1:1"'),
        ("=http://1.1.1.1:1", '--initial-cluster: expected name=URL, found "=http://1.1.1.1:1"'),
        ("a=1.1.1.1", "--initial-cluster: member a: URL scheme must be http, https, unix, or unixs: 1.1.1.1"),
    ],
)
def test_an_initial_cluster_that_cannot_be_read(text: str, error: str) -> None:
    with pytest.raises(BootstrapError) as caught:
        parse_initial_cluster(text)
    assert str(caught.value) == error


def test_what_does_not_make_a_cluster_is_refused() -> None:
    peer = "http://localhost:2380"
    assert refusal("--initial-cluster", f"other={peer}") == (
        'couldn\'t find local name "default" in the initial cluster configuration '
        f"(--initial-cluster other={peer})"
    )
    assert refusal("--initial-cluster", "default=http://localhost:1") == (
        "--initial-cluster has default=http://localhost:1 but missing from "
        f"--initial-advertise-peer-urls={peer}"
    )
    assert refusal(
        "--initial-cluster", f"default={peer}", "--initial-advertise-peer-urls", f"{peer},http://a:1"
    ) == (f"--initial-advertise-peer-urls has http://a:1 but missing from --initial-cluster=default={peer}")
    duplicate = f"default={peer},b={peer}"
    assert refusal("--initial-cluster", duplicate) == f"initial cluster {duplicate} has duplicate url"


def named(url: str, *, known: dict[str, str]) -> FirstEntries:
    """One member whose flags name `url`, and http://10.0.0.1:2380, for itself."""

    def resolve(name: str) -> str:
        if name not in known:
            raise OSError(-2, f"{name}: Name or service not known")
        return known[name]

    cluster = ("--initial-cluster", f"m={url}", "--initial-advertise-peer-urls", "http://10.0.0.1:2380")
    return first_entries(load(parse_command_line(["--name", "m", *cluster]), {}).config, resolve)


def test_a_host_may_be_named_in_two_ways() -> None:
    hosts = {"10.0.0.1": "10.0.0.1", "m.example": "10.0.0.1", "other.example": "10.0.0.2"}
    begun = named("http://m.example:2380", known=hosts)
    change = command_pb2.ConfChange.FromString(begun.entries[0].data)
    assert list(change.member.peerURLs) == ["http://m.example:2380"]
    with pytest.raises(BootstrapError, match=r"has m=http://other.example:2380 but missing from"):
        named("http://other.example:2380", known=hosts)
    with pytest.raises(BootstrapError, match=r"has m=http://m.example:1 but missing from"):
        named("http://m.example:1", known=hosts)
    with pytest.raises(BootstrapError) as caught:
        named("http://unknown.example:2380", known=hosts)
    assert str(caught.value) == (
        "failed to resolve http://10.0.0.1:2380 to match --initial-cluster=m=http://unknown.example:2380 "
        "(unknown.example: Name or service not known)"
    )


def test_a_host_is_asked_for_again_before_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESOLVE_LIMIT_S", 0.05)
    monkeypatch.setattr(bootstrap, "RESOLVE_INTERVAL_S", 0.01)
    answers = iter([OSError(-3, "Try again"), [(2, 1, 6, "", ("10.0.0.9", 0))]])

    def ask(*_: object, **__: object) -> object:
        answer = next(answers, OSError(-3, "Try again"))
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("socket.getaddrinfo", ask)
    assert bootstrap.resolve_host("m.example") == "10.0.0.9"
    with pytest.raises(OSError, match=r"m\.example: Try again"):
        bootstrap.resolve_host("m.example")


def test_the_first_members_begin_with_the_same_entries() -> None:
    members = {"a": "http://10.0.0.1:2380", "b": "http://10.0.0.2:2380", "c": "http://10.0.0.3:2380"}
    cluster = ",".join(f"{name}={url}" for name, url in members.items())
    begun = [
        first("--name", name, "--initial-advertise-peer-urls", url, "--initial-cluster", cluster)
        for name, url in members.items()
    ]
    assert begun[0].entries == begun[1].entries == begun[2].entries
    assert len({one.cluster_id for one in begun}) == 1
    ids = [command_pb2.ConfChange.FromString(entry.data).member.ID for entry in begun[0].entries]
    assert ids == sorted(one.member_id for one in begun)


def test_the_identity_is_kept_in_the_data_directory(tmp_path: Path) -> None:
    identity = first().identity
    assert bootstrap.is_new(tmp_path) and bootstrap.read_identity(tmp_path) is None
    bootstrap.write_identity(tmp_path, identity)
    assert not bootstrap.is_new(tmp_path)
    assert bootstrap.read_identity(tmp_path) == identity
    text = (tmp_path / "identity").read_text()
    assert text == "member 8e9e05c52164694d\ncluster cdf818194e3a8c32\n"
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]


@pytest.mark.parametrize("text", ["", "member 8e9e\n", "member 8e9e05c52164694d\ncluster zzf818194e3a8c32\n"])
def test_a_damaged_identity_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "identity").write_text(text)
    with pytest.raises(BootstrapError, match=r"identity: damaged: "):
        bootstrap.read_identity(tmp_path)
    with pytest.raises(ValueError):
        Identity.from_text(text)
