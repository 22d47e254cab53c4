"""Three members of one kind, and a session of etcdctl with them, written down so that kinds can be compared.

What the members chose or measured is named by what it stands for: IDs, addresses, versions, sizes, terms,
indexes, times. Lines are sorted, since members are told in the order of their IDs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from tests.conformance.target import Exchange
from tests.servers import EtcdPy, RealEtcd, Server, free_ports

LIMIT_S = 20.0
TOKEN = "conformance"
# A change of the membership is taken when all have been in touch for this long.
HEALTH_S = 5.5
_CANDIDATES = {"3.4": Path("/usr/bin/etcdctl"), "3.5": Path(sys.executable).parent / "etcdctl"}
PROGRAMS = {version: str(path) for version, path in _CANDIDATES.items() if path.exists()}
_MEASURED = (
    (re.compile(r"took = [\d.]+\w*s"), "took = *"),
    (re.compile(r'"took":"[^"]+"'), '"took":"*"'),
    (re.compile(r"\d+(?:\.\d+)? [kM]B"), "<size>"),
    (re.compile(r"\b3\.\d+\.\d+\b"), "<version>"),
    (re.compile(r'"(raft_term|raftIndex|raftTerm|raftAppliedIndex|dbSize|dbSizeInUse)":\d+'), r'"\1":*'),
    (re.compile(r'"(RaftTerm|RaftIndex|RaftAppliedIndex|DBSize|DBSizeInUse)" : \d+'), r'"\1" : *'),
    (re.compile(r"-{3,}"), "---"),
    (re.compile(r" +"), " "),
)
_LOG_LINE = re.compile(r'^\{"level":.*\n?', re.MULTILINE)


class Members:
    """A cluster of three of one kind: "3.4", "3.5" or "etcd-py". A context manager."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.servers: list[Server] = []
        for name in ("m1", "m2", "m3"):
            made = EtcdPy(folder, name=name) if kind == "etcd-py" else RealEtcd(kind, folder, name=name)
            self.servers.append(made)
        everyone = ",".join(f"{server.name}={server.peer_url}" for server in self.servers)
        for server in self.servers:
            server.add_flags("--initial-cluster", everyone, "--initial-cluster-token", TOKEN)
        self.stranger = f"http://127.0.0.1:{free_ports(1)[0]}"
        """Where nobody listens."""

    def __enter__(self) -> Members:
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(lambda server: server.start(), self.servers))
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(lambda server: server.stop(), self.servers))


class Session:
    """etcdctl of one version and the members; `transcript` is what can be compared."""

    def __init__(self, version: str, members: Members) -> None:
        self._program = PROGRAMS[version]
        self.members = members
        self.transcript: list[Exchange] = []
        self._names: dict[str, str] = {}
        for number, server in enumerate(members.servers, 1):
            for address, what in ((server.address, "client"), (server.peer_url[7:], "peer")):
                self._names[address] = f"<{what} {number}>"
        self._names[members.stranger[7:]] = "<peer of a stranger>"
        self.ids: dict[str, str] = {}
        """Member name -> ID in hexadecimal."""
        self.learn_ids()

    def run(self, *words: str, at: int | str = 0) -> str:
        """Run a command at the member of that number (from 0), or at the endpoints given."""
        endpoints = self.members.servers[at].address if isinstance(at, int) else at
        done = subprocess.run(
            [self._program, "--endpoints", endpoints, *words],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            env=os.environ | {"ETCDCTL_API": "3"},
            check=False,
        )
        output = self._ordered(done.stdout) + _LOG_LINE.sub("", done.stderr)
        told = self._plain(" ".join(["etcdctl", "--endpoints", endpoints, *words]))
        lines = sorted(line.rstrip() for line in self._plain(output).splitlines() if line.strip())
        self.transcript.append(Exchange(told, "\n".join([f"exit {done.returncode}", *lines])))
        return done.stdout

    def learn_ids(self) -> None:
        """Give new members' IDs their names."""
        answer = requests.post(
            f"{self.members.servers[0].url}/v3/cluster/member/list", json={}, timeout=LIMIT_S
        ).json()
        self._named(answer["header"]["cluster_id"], "cluster")
        for member in answer["members"]:
            # A stranger that was added has no name yet.
            name = member.get("name") or "stranger"
            if name not in self.ids:
                self.ids[name] = self._named(member["ID"], name)

    def _named(self, decimal: str, name: str) -> str:
        digits = f"{int(decimal):x}"
        for written in (decimal, digits.zfill(16), digits):
            self._names[written] = f"<{name}>"
        return digits

    def leader(self) -> int:
        """The number of the member that leads, once all say the same."""
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            told = [self._status(server.url) for server in self.members.servers]
            leaders = {one.get("leader") for one in told}
            if len(leaders) == 1 and None not in leaders:
                return [one["header"]["member_id"] for one in told].index(leaders.pop())
            time.sleep(0.05)
        raise AssertionError("no leader that all know")

    def wait_for_member(self, peer_url: str, at: int) -> None:
        """Until the member of that number knows of the one with this peer URL."""
        url = f"{self.members.servers[at].url}/v3/cluster/member/list"
        deadline_s = time.monotonic() + LIMIT_S
        while peer_url not in requests.post(url, json={"linearizable": True}, timeout=LIMIT_S).text:
            assert time.monotonic() < deadline_s, f"member {at} does not hear of {peer_url}"
            time.sleep(0.05)

    @staticmethod
    def _status(url: str) -> dict[str, Any]:
        answer = requests.post(f"{url}/v3/maintenance/status", json={}, timeout=LIMIT_S)
        return dict(json.loads(answer.text))

    def name(self, text: str, name: str) -> None:
        """Have `text` written as <name>."""
        self._names[text] = f"<{name}>"

    def _ordered(self, output: str) -> str:
        """JSON with its lists in an order that does not follow from IDs."""
        if not output.startswith(("{", "[")):
            return output
        return json.dumps(self._renamed(json.loads(output)), separators=(",", ":"), sort_keys=True) + "\n"

    def _renamed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._renamed(one) for name, one in value.items()}
        if isinstance(value, list):
            return sorted((self._renamed(one) for one in value), key=json.dumps)
        if isinstance(value, str) or str(value) in self._names:
            return self._plain(str(value))
        return value

    def _plain(self, text: str) -> str:
        for written in sorted(self._names, key=len, reverse=True):
            text = text.replace(written, self._names[written])
        for pattern, replacement in _MEASURED:
            text = pattern.sub(replacement, text)
        return text
