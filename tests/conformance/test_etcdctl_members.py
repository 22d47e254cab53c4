"""etcdctl as the administrator of three members: the same session with real etcds and with etcd-py.

etcdctl 3.4 with members of etcd 3.4 and of etcd-py, etcdctl 3.5 with members of etcd 3.5 and of etcd-py.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.conformance.etcdctl_members import HEALTH_S, PROGRAMS, Members, Session
from tests.conformance.target import Exchange
from tests.servers import available_servers

VERSIONS = [kind for kind in available_servers() if kind in PROGRAMS]
FORMS = ("simple", "json", "table", "fields")


def look(s: Session) -> None:
    """What does not change anything, through each member."""
    for at in range(3):
        s.run("put", f"key {at}", "value", at=at)
    for at in range(3):
        for form in FORMS:
            s.run("member", "list", "-w", form, at=at)
            if form != "fields":  # its lines do not tell of which member they are, once they are sorted
                s.run("endpoint", "hashkv", "--cluster", "-w", form, at=at)
        s.run("endpoint", "health", "--cluster", at=at)
        s.run("endpoint", "hashkv", "--cluster", "--rev", "3", at=at)
        s.run("endpoint", "hashkv", "--cluster", "--rev", "99", at=at)
    s.run("compaction", "4", "--physical")
    for revision in ("0", "3"):
        s.run("endpoint", "hashkv", "--cluster", "--rev", revision)


def status(s: Session) -> None:
    """Raft's numbers are taken out, columns are compared by place: the leader's is told by its ID."""
    told = json.loads(s.run("endpoint", "status", "--cluster", "-w", "json"))
    s.transcript.pop()  # which member leads is chance
    leaders = {one["Status"]["leader"] for one in told}
    assert len(leaders) == 1
    assert leaders < {one["Status"]["header"]["member_id"] for one in told}
    assert {one["Endpoint"] for one in told} == {server.url for server in s.members.servers}
    keys = sorted({key for one in told for key in one["Status"]} - {"isLearner", "dbSizeInUse"})
    s.transcript.append(Exchange("status", " ".join(keys)))


def move_the_leader(s: Session) -> None:
    for _ in range(2):
        old = s.leader()
        new, third = (old + 1) % 3, (old + 2) % 3
        everyone = ",".join(s.members.servers[at].address for at in (third, old, new))
        for at, what in ((old, "leader"), (new, "next"), (third, "third")):
            server = s.members.servers[at]
            s.name(server.address, f"{what}'s address")
            s.name(s.ids[server.name], what)
        s.run("move-leader", s.ids[s.members.servers[new].name], at=new)
        s.run("move-leader", "ffffffffffffff", at=everyone)
        s.run("move-leader", "rubbish", at=everyone)
        s.run("move-leader", at=everyone)
        s.run("move-leader", s.ids[s.members.servers[new].name], at=everyone)
        assert s.leader() == new


def change_the_members(s: Session) -> None:
    own = s.ids["m1"]
    s.run("member", "add", "stranger")
    s.run("member", "add")
    s.run("member", "add", "stranger", "--peer-urls", "rubbish")
    s.run("member", "add", "stranger", "--peer-urls", s.members.servers[1].peer_url, at=1)
    s.run("member", "remove", "77", at=1)
    s.run("member", "remove", "rubbish")
    s.run("member", "remove")
    s.run("member", "update", "77", "--peer-urls", s.members.stranger)
    s.run("member", "update", own)
    s.run("member", "update", own, "--peer-urls", s.members.servers[1].peer_url)
    s.run("member", "update", own, "--peer-urls", s.members.servers[0].peer_url, at=2)
    s.run("member", "promote", own)
    s.run("member", "promote", "77", at=1)
    # A learner that nobody starts: it cannot be promoted, nor can there be another.
    added = json.loads(
        s.run("member", "add", "stranger", "--learner", "--peer-urls", s.members.stranger, "-w", "json")
    )
    s.transcript.pop()
    assert [member.get("isLearner", False) for member in added["members"]].count(True) == 1
    s.learn_ids()
    for at in range(3):
        s.wait_for_member(s.members.stranger, at)
        for form in FORMS:
            s.run("member", "list", "-w", form, at=at)
    s.run("member", "add", "another", "--learner", "--peer-urls", "http://127.0.0.1:1", at=1)
    s.run("member", "promote", s.ids["stranger"], at=2)
    s.run("member", "remove", s.ids["stranger"], at=1)
    s.run("member", "remove", s.ids["stranger"], at=2)
    s.run("member", "list", "-w", "simple")


def session(version: str, kind: str, folder: Path) -> list[Exchange]:
    folder.mkdir()
    with Members(kind, folder) as members:
        time.sleep(HEALTH_S)
        s = Session(version, members)
        s.leader()
        look(s)
        status(s)
        change_the_members(s)
        move_the_leader(s)
    return s.transcript


@pytest.mark.skipif(not VERSIONS, reason="no etcd is installed here")
@pytest.mark.parametrize("version", VERSIONS)
def test_an_administrator_sees_no_difference(tmp_path: Path, version: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        real = pool.submit(session, version, version, tmp_path / "real")
        own = pool.submit(session, version, "etcd-py", tmp_path / "own")
        pairs = list(zip_longest(real.result(), own.result()))
    problems = [f"{a}\n--- etcd-py\n{b}" for a, b in pairs if a != b]
    assert not problems, "\n\n".join(problems)
    assert len(pairs) > 60
