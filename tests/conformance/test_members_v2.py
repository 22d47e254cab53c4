"""The v2 API of the members: the same requests to etcd 3.4, etcd 3.5 and etcd-py, whole answers compared.

IDs and ports are named by what they stand for before the comparison; of JSON that cannot be read only the
status is compared, since etcd quotes Go's parsers there.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.servers import Server, available_servers, free_ports, start_server

LIMIT_S = 10.0
KINDS = ("3.4", "3.5", "etcd-py")
AS_JSON = {"Content-Type": "application/json"}
HEADERS = ("Content-Type", "X-Etcd-Cluster-Id", "Allow", "X-Content-Type-Options")

BAD_BODIES = (
    "",
    "{",
    "null",
    "{}",
    '{"peerURLs":[]}',
    '{"peerURLs":null}',
    '{"peerURLs":["x"]}',
    '{"peerURLs":[""]}',
    '{"peerURLs":["ftp://a:1"]}',
    '{"peerURLs":["http://a"]}',
    '{"PEERURLS":["http://a"]}',
    '{"peerURLs":["http://a:1/p"]}',
    '{"peerURLs":["http://a:1/"]}',
)
UNREADABLE_BODIES = (
    "[]",
    "1",
    '{"peerURLs":"x"}',
    '{"peerURLs":[1]}',
    '{"peerURLs":["unix://h:1"]}x',
    '{"peerURLs":["http://a b:1"]}',
    '{"peerURLs":["http://a:xx"]}',
    '{"peerURLs":["127.0.0.1:9"]}',
)


def in_one_order(text: str) -> str:
    """A list of members sorted by URL rather than by ID, which nobody can foresee."""
    if not text.startswith(('{"members":[', "[")):
        return text
    document = json.loads(text)
    members = document["members"] if isinstance(document, dict) else document
    members.sort(key=lambda member: "127.0.0.1" not in str(member.get("clientURLs")))
    return json.dumps(document, separators=(",", ":")) + text[len(text.rstrip()) :]


class Talk:
    """Requests to one server, and what was answered, as comparable text."""

    def __init__(self, server: Server, spare: list[int]) -> None:
        self._server = server
        self._session = requests.Session()
        self._session.trust_env = False
        self._names = {str(server.client_port): "CLIENT", str(server.peer_port): "PEER"}
        self._names |= {str(port): f"SPARE{number}" for number, port in enumerate(spare)}
        self.spare = [f"http://127.0.0.1:{port}" for port in spare]
        self.told: list[str] = []

    def send(
        self,
        method: str,
        path: str,
        body: str = "",
        headers: dict[str, str] | None = None,
        *,
        to_peers: bool = False,
        only_status: bool = False,
    ) -> requests.Response:
        base = self._server.peer_url if to_peers else self._server.url
        answer = self._session.request(method, base + path, data=body, headers=headers, timeout=LIMIT_S)
        shown = {name: answer.headers[name] for name in HEADERS if name in answer.headers}
        told = (
            f"{answer.status_code}"
            if only_status
            else f"{answer.status_code} {shown} {in_one_order(answer.text)!r}"
        )
        self.told.append(self._named(f"{method} {path} {body!r} {headers}\n    {told}"))
        return answer

    def _named(self, text: str) -> str:
        def name(found: re.Match[str]) -> str:
            return self._names.setdefault(found[0], f"ID{len(self._names)}")

        text = re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda found: self._names.get(found[0], found[0]), text)
        return re.sub(r"\b(?:[0-9a-f]{14,16}|\d{16,20})\b", name, text)

    def settle(self) -> None:
        """etcd 3.5.1 loses a change of the membership that follows another too closely (etcd issue 15528)."""
        body = json.dumps({"key": "aw==", "value": "dg=="})
        self._session.post(f"{self._server.url}/v3/kv/put", data=body, timeout=LIMIT_S).raise_for_status()

    def close(self) -> None:
        self._session.close()


def converse(talk: Talk, own_peer_url: str) -> None:
    for path in ("", "/", "?x=1", "/leader", "/leader/", "/x"):
        talk.send("GET", f"/v2/members{path}")
    for path in ("/v2/machines", "/v2/machines/", "/v2/membersx", "/members"):
        talk.send("GET", path)
    for path in ("/members", "/members/", "/members/x", "/v2/members", "/v2/machines"):
        talk.send("GET", path, to_peers=True)
    for method, path in (("HEAD", "/v2/machines"), ("POST", "/v2/machines"), ("PATCH", "/v2/members")):
        talk.send(method, path)
    talk.send("HEAD", "/v2/members")
    talk.send("POST", "/members", to_peers=True)

    good = '{"peerURLs":["http://127.0.0.1:9"]}'
    for headers in (None, {"Content-Type": "text/plain; charset=utf-8"}):
        talk.send("POST", "/v2/members", good, headers)
        talk.send("PUT", "/v2/members/12", good, headers)
    for body in BAD_BODIES:
        talk.send("POST", "/v2/members", body, AS_JSON)
    for body in UNREADABLE_BODIES:
        talk.send("POST", "/v2/members", body, AS_JSON, only_status=True)
    taken = json.dumps({"peerURLs": [own_peer_url]})
    talk.send("POST", "/v2/members", taken, AS_JSON)
    talk.settle()
    for path in ("", "/", "/zz"):
        talk.send("PUT", f"/v2/members{path}", good, AS_JSON)
        talk.send("DELETE", f"/v2/members{path}")
    for method in ("PUT", "DELETE"):
        talk.send(method, "/v2/members/12", good, AS_JSON)
        talk.settle()
    [own] = talk.send("GET", "/v2/members").json()["members"]
    moved = json.dumps({"peerURLs": [talk.spare[0], f" {own_peer_url}"]})
    talk.send("PUT", f"/v2/members/{own['id']}", moved, {"Content-Type": "Application/JSON; x"})
    talk.settle()
    talk.send("PUT", f"/v2/members/{own['id']}", taken, AS_JSON)
    talk.settle()
    talk.send("DELETE", f"/v2/members/{own['id']}", only_status=True)
    talk.settle()

    added = talk.send("POST", "/v2/members", json.dumps({"peerURLs": [talk.spare[1]], "name": "x"}), AS_JSON)
    assert added.status_code == 201
    for path in ("/v2/members", "/v2/machines"):
        talk.send("GET", path)
    talk.send("GET", "/members", to_peers=True)
    # The new member has not been started, so the next change would lose the quorum.
    talk.send("POST", "/v2/members", json.dumps({"peerURLs": [talk.spare[2]]}), AS_JSON, only_status=True)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for kind in KINDS:
        if kind not in available_servers():
            continue
        folder: Path = tmp_path_factory.mktemp(f"v2members-{kind}")
        flags = () if kind == "etcd-py" else ("--enable-v2",)
        server = start_server(kind, folder, flags=flags)
        talk = Talk(server, sorted(free_ports(3)))
        try:
            converse(talk, server.peer_url)
        finally:
            talk.close()
            server.stop()
        found[kind] = talk.told
    yield found


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(KINDS, 2)))
def test_all_answer_alike(answers: dict[str, list[str]], one: str, other: str) -> None:
    if not {one, other} <= answers.keys():
        pytest.skip(f"{one} or {other} is not installed here")
    assert len(answers[one]) == len(answers[other]) > 60
    for left, right in zip(answers[one], answers[other], strict=True):
        assert left == right
