"""The agent's commands against a real store: preview, conditional write, going back, another cluster, schema.

Each command is a process of its own, as an administrator starts it; the resource is one file with a reload
that a shell does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etcd_client import Client
from tests.servers import Server, available_servers, start_server
from tests.unit.agent.support import ROOT, write_tree

LIMIT_S = 20.0
STORES = [kind for kind in available_servers() if kind in ("3.4", "etcd-py")]
pytestmark = pytest.mark.skipif(not STORES, reason="no store to run against")
KEY = "/prod/app/value"


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {LIMIT_S} s: {what}"
        time.sleep(0.02)


class Host:
    """A host's configuration and its commands."""

    def __init__(self, folder: Path, url: str, extra: str = "", name: str = "agent") -> None:
        self.folder = folder
        self.file = folder / "app.conf"
        self.name = name
        self.agents: list[subprocess.Popen[bytes]] = []
        resource = f"""
[resource]
prefix = "/app"
keys = ["/"]
[[template]]
src = "app.j2"
dest = "{self.file}"
[check]
cmd = "! grep -q REFUSED {{{{src}}}}"
[reload]
cmd = "! grep -q FAILS {self.file}"
"""
        write_tree(
            folder / name,
            {
                "agent.toml": f"""
state_dir = "{folder}/{name}-state"
runtime_dir = "{folder}/run"
nodes = ["{url}"]
prefix = "/prod"
[schema]
prefix = "/_schemas"
[backend.retry]
backoff = "50ms"
max_backoff = "500ms"
{extra}
""",
                "conf.d/app.toml": resource,
                "templates/app.j2": '{{ host }} {{ labels.get("role", "-") }} {{ getv("/value") }}\n',
            },
        )

    def command(self, *arguments: str) -> list[str]:
        path = str(self.folder / self.name / "agent.toml")
        return [sys.executable, "-m", "etcd_agent.cli", "--config", path, *arguments]

    def run(self, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60, input=answer
        )

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            process = subprocess.Popen(self.command("run"), cwd=ROOT, stdout=log, stderr=log)
        self.agents.append(process)
        return process

    @property
    def text(self) -> str:
        return self.file.read_text() if self.file.exists() else ""

    @property
    def value(self) -> str:
        return self.text.split()[-1] if self.text else ""

    def close(self) -> None:
        for process in self.agents:
            if process.poll() is None:
                process.kill()
            process.wait(10)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = start_server(request.param, tmp_path)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def client(store: Server) -> Iterator[Client]:
    with Client(store.url) as made:
        yield made


@pytest.fixture
def host(tmp_path: Path, store: Server) -> Iterator[Host]:
    made = Host(tmp_path, store.url)
    try:
        yield made
    finally:
        made.close()


def test_preview_write_apply_go_back(host: Host, client: Client) -> None:
    client.put(KEY, "one")
    assert host.run("once").returncode == 0 and host.value == "one"

    planned = host.run("plan", "--set", f"{KEY}=two", "--host", "web-7", "--label", "role=lb")
    assert planned.returncode == 2 and "+web-7 lb two" in planned.stdout, planned.stderr
    refused = host.run("put", "--plan", f"{KEY}=REFUSED", answer="y\n")
    assert refused.returncode == 3 and "check: " in refused.stderr
    declined = host.run("put", "--plan", f"{KEY}=two", answer="n\n")
    assert declined.returncode == 1 and client.get(KEY).value == b"one"  # type: ignore[union-attr]
    written = host.run("put", "--plan", f"{KEY}=two", "--delete", "/prod/app/nothing", answer="y\n")
    assert written.returncode == 0 and "written at revision" in written.stdout, written.stderr
    assert client.get(KEY).value == b"two"  # type: ignore[union-attr]

    assert host.run("apply", "app").returncode == 0 and host.value == "two"
    assert host.run("put", f"{KEY}=FAILS").returncode == 0
    assert host.run("apply", "app").returncode == 5 and host.value == "two"
    history = json.loads(host.run("history", "app", "--json").stdout)
    results = [line["result"] for line in history["applies"]]
    assert results == ["applied", "applied", "rolled_back"]
    first, second = history["applies"][:2]
    assert first["keys"][KEY][0] == 0 and second["keys"][KEY][0] == first["keys"][KEY][1]
    shown = host.run("history", "app").stdout
    assert "generation 2: revision" in shown and "rolled_back" in shown
    went_back = host.run("rollback", "app", "--to", "2")
    assert went_back.returncode == 0 and host.value == "one", went_back.stderr
    assert host.run("apply", "app").returncode == 5, "held: the keys are what they were"
    assert host.run("rollback", "app", "--to", "99").returncode == 1


def test_a_write_between_preview_and_put_is_noticed(host: Host, client: Client) -> None:
    client.put(KEY, "one")
    client.put("/prod/app/other", "x")
    for disturb in (lambda: client.put("/prod/app/new", "1"), lambda: client.delete("/prod/app/other")):
        said = host.folder / "said"
        with said.open("w") as output:
            process = subprocess.Popen(
                host.command("put", "--plan", f"{KEY}=two"), cwd=ROOT, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=output,
            )  # fmt: skip
        wait_for(lambda said=said: "Write these keys?" in said.read_text(), "the question")
        disturb()
        process.communicate("y\n", timeout=30)
        assert process.returncode == 3 and "written since the preview" in said.read_text()
        assert client.get(KEY).value == b"one"  # type: ignore[union-attr]


def test_values_must_match_their_schema(host: Host, client: Client) -> None:
    client.put("/_schemas/prod/app", json.dumps({"type": "string", "maxLength": 5}))
    client.put(KEY, "short")
    assert host.run("once").returncode == 0
    refused = host.run("put", f"{KEY}=much-too-long")
    assert refused.returncode == 3
    assert (
        f"the value of {KEY} does not match the schema of /prod/app: expected maxLength 5" in refused.stderr
    )
    assert "much-too-long" not in refused.stderr
    agent = host.start()
    wait_for(lambda: (host.folder / "agent-state/status.json").exists(), "the agent")
    client.put(KEY, "much-too-long")

    def state() -> str:
        shown = json.loads(host.run("status", "--json").stdout)
        return str(shown["resources"][0]["state"])

    wait_for(lambda: state() == "FAILED", "the agent refuses it")
    assert host.value == "short"
    client.delete("/_schemas/prod/app")
    wait_for(lambda: host.value == "much-too-long", "another schema is news, too")
    agent.terminate()
    assert agent.wait(30) == 0


def test_another_cluster_is_held_until_it_is_accepted(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    first = start_server(STORES[-1], tmp_path / "old")
    second = start_server("3.4" if "3.4" in STORES else STORES[0], tmp_path / "new")
    host = Host(tmp_path, first.url)
    try:
        with Client(first.url) as old, Client(second.url) as new:
            old.put(KEY, "one")
            new.put(KEY, "foreign")
        assert host.run("once").returncode == 0
        config = tmp_path / "agent/agent.toml"
        config.write_text(config.read_text().replace(first.url, second.url))
        host.start()

        def error() -> str:
            shown = json.loads(host.run("status", "--json").stdout or "{}")
            return str(shown["resources"][0]["error"]) if shown else ""

        wait_for(lambda: (host.folder / "agent-state/status.json").exists(), "the agent")
        wait_for(lambda: "another cluster answers" in error(), "it is held")
        assert host.value == "one"
        accepted = host.run("accept-cluster")
        assert accepted.returncode == 0 and "is accepted" in accepted.stdout, accepted.stderr
        wait_for(lambda: host.value == "foreign", "it is taken")
    finally:
        host.close()
        first.stop()
        second.stop()


def test_two_agents_never_write_one_file(host: Host, client: Client, tmp_path: Path, store: Server) -> None:
    client.put(KEY, "one")
    agent = host.start()
    wait_for(lambda: host.value == "one", "the first agent writes it")
    other = Host(tmp_path, store.url, '[host]\nid = "other"\n', name="second")
    result = other.run("once")
    assert result.returncode == 1
    assert f"{host.file} is written by another agent of this host" in result.stderr
    assert "other" not in host.text
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(30) == 0
    assert other.run("once").returncode == 0 and "other" in host.text


@pytest.mark.skipif("3.4" not in STORES, reason="etcd is not installed")
def test_a_user_with_two_ranges_is_enough(tmp_path: Path) -> None:
    """With users switched on: the password is read from its file, and what may not be watched as a whole is
    watched part by part."""
    server = start_server("3.4", tmp_path)

    def etcdctl(*arguments: str) -> None:
        environment = {**os.environ, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": server.url}
        subprocess.run(["etcdctl", *arguments], env=environment, check=True, capture_output=True, timeout=20)

    (tmp_path / "password").write_text("s3cret\n")
    (tmp_path / "password").chmod(0o600)
    host = Host(tmp_path, server.url)
    config = tmp_path / "agent/agent.toml"
    user = f'username = "agent"\npassword_file = "{tmp_path}/password"\n'
    config.write_text(config.read_text().replace('[schema]\nprefix = "/_schemas"\n', user))
    other = (tmp_path / "agent/conf.d/app.toml").read_text().replace("/app", "/web").replace("app.", "web.")
    (tmp_path / "agent/conf.d/web.toml").write_text(other)
    (tmp_path / "agent/templates/web.j2").write_text('{{ getv("/value") }}\n')
    try:
        for key in (KEY, "/prod/web/value"):
            etcdctl("put", key, "one")
        etcdctl("user", "add", "root:root")
        etcdctl("user", "grant-role", "root", "root")
        etcdctl("role", "add", "reader")
        for prefix in ("/prod/app", "/prod/web"):
            etcdctl("role", "grant-permission", "reader", "read", "--prefix=true", prefix)
        etcdctl("user", "add", "agent:s3cret")
        etcdctl("user", "grant-role", "agent", "reader")
        etcdctl("auth", "enable")
        assert host.run("once").returncode == 0 and host.value == "one"
        agent = host.start()
        wait_for(lambda: (host.folder / "agent-state/status.json").exists(), "the agent")
        etcdctl("--user", "root:root", "put", KEY, "two")
        etcdctl("--user", "root:root", "put", "/prod/web/value", "two")
        wait_for(lambda: host.value == "two", "followed")
        wait_for(lambda: (tmp_path / "web.conf").read_text() == "two\n", "the other, too")
        etcdctl("--user", "root:root", "put", KEY, "three")
        wait_for(lambda: host.value == "three", "and still")
        agent.terminate()
        assert agent.wait(30) == 0
        log = (tmp_path / "agent.log").read_text()
        assert "the user may not watch all of /prod" in log and "s3cret" not in log
    finally:
        host.close()
        server.stop()


def test_files_alone(host: Host, client: Client) -> None:
    client.put(KEY, "REFUSED FAILS")
    assert host.run("once").returncode == 3 and not host.text
    assert host.run("once", "--sync-only").returncode == 0 and host.value == "FAILS"
    assert host.run("once").returncode == 0, "nothing is owed"
    assert host.run("apply", "--force", "app").returncode == 3, "the check is back"
