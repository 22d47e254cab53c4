"""`etcd-py-agent fleet` and `rollout` as commands, against a real store."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from etcd_agent.cli import main
from etcd_agent.report import host_key, resource_key
from etcd_client import Client
from tests.live import wait_until
from tests.servers import Server, available_servers, free_ports, start_server

LIMIT_S = 30.0
PREFIX = "/_agents/status"
STORES = [kind for kind in available_servers() if kind != "3.5"]
PROGRAM = [sys.executable, "-m", "etcd_agent.cli"]
ENVIRONMENT = {**os.environ, "COLUMNS": "200"}


@pytest.fixture(scope="module", params=STORES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(request.param, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url) as made:
        made.delete_prefix("/_agents/")
        yield made


@pytest.fixture
def config(server: Server, tmp_path: Path) -> Path:
    return written(tmp_path, server.url)


def written(folder: Path, url: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(
        f'state_dir = "{folder}"\nnodes = ["{url}"]\n[rollout]\ngroup = "web"\n[report]\nenabled = true\n'
        '[backend]\nrequest_timeout = "1s"\n'
    )
    return path


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in this process: a start of Python for each would take longer than all the rest."""
    printed, complained = io.StringIO(), io.StringIO()
    status: object = 0
    with redirect_stdout(printed), redirect_stderr(complained):
        try:
            main(["--config", str(config), *arguments])
        except SystemExit as end:
            status = end.code or 0
    assert isinstance(status, int)
    return subprocess.CompletedProcess(arguments, status, printed.getvalue(), complained.getvalue())


def report(client: Client, host: str, state: str, *, alive: bool = True) -> None:
    lease = client.lease(60).lease_id
    if alive:
        client.put(host_key(PREFIX, host), json.dumps({"group": "web"}), lease=lease)
    document = {
        "state": state,
        "revision": 7,
        "hash": "abc",
        "since": 1.0,
        "error": "",
        "reload_pending": False,
    }
    client.put(resource_key(PREFIX, host, "nginx"), json.dumps(document))


def test_fleet(client: Client, config: Path) -> None:
    nobody = run(config, "fleet")
    assert (nobody.returncode, nobody.stdout) == (2, "")
    assert nobody.stderr == "no host has reported under /_agents/status; is report.enabled set on them?\n"
    report(client, "web1", "APPLIED")
    report(client, "web2", "APPLIED")
    well = run(config, "fleet")
    assert well.returncode == 0, well.stderr
    assert "\x1b" not in well.stdout
    assert well.stdout.splitlines()[-1] == "2 hosts, 2 alive; 2 resources: 2 APPLIED"
    report(client, "web3", "FAILED", alive=False)
    shown = run(config, "fleet", "--json")
    assert shown.returncode == 2
    assert [host["alive"] for host in json.loads(shown.stdout)["hosts"]] == [True, True, False]


def test_a_host_that_is_gone_can_be_forgotten(client: Client, config: Path) -> None:
    report(client, "web1", "APPLIED")
    report(client, "web2", "APPLIED", alive=False)
    lives = run(config, "fleet", "--forget", "web1")
    assert lives.returncode == 1
    assert lives.stderr == "etcd-py-agent: web1 lives and would report again; stop its agent first\n"
    assert run(config, "fleet", "--forget", "web2").stdout == "web2 is forgotten, with 1 report\n"
    assert run(config, "fleet", "--forget", "web2").returncode == 1
    assert run(config, "fleet").returncode == 0


def test_fleet_is_watched(client: Client, config: Path) -> None:
    report(client, "web1", "APPLIED")
    lines: list[str] = []
    process = subprocess.Popen(
        [*PROGRAM, "--config", str(config), "fleet", "--watch", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    reader.start()
    try:
        wait_until(lambda: lines, "the first line")
        report(client, "web1", "FAILED")
        wait_until(lambda: '"FAILED"' in lines[-1], "the change")
        assert [host["well"] for host in json.loads(lines[-1])["hosts"]] == [False]
        process.send_signal(2)
        assert process.wait(LIMIT_S) == 130
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait(LIMIT_S)
        reader.join(LIMIT_S)
        process.stdout.close()
        process.stderr.close()


def test_rollout(client: Client, config: Path) -> None:
    running = run(config, "rollout", "status")
    assert (running.returncode, running.stdout.splitlines()[1]) == (0, "state    running")
    assert run(config, "rollout", "resume").stdout == "group web was not halted\n"
    halted = run(config, "rollout", "halt", "--reason", "freeze")
    assert (halted.returncode, halted.stdout) == (0, "group web is halted\n")
    status = run(config, "rollout", "status", "web")
    assert status.returncode == 2
    assert "state    HALTED: halted by " in status.stdout and ": freeze, " in status.stdout
    assert run(config, "rollout", "status", "db").returncode == 0
    document = json.loads(run(config, "rollout", "status", "--json").stdout)
    assert (document["group"], document["halted"], document["halt"]["error"]) == ("web", True, "freeze")
    client.put("/_agents/rollout/web/failed/nginx/web1", "{}")
    assert run(config, "rollout", "resume", "web").stdout == "group web goes on\n"
    assert client.get_prefix("/_agents/rollout/").count == 0


def test_without_a_store(tmp_path: Path) -> None:
    config = written(tmp_path, f"http://127.0.0.1:{free_ports(1)[0]}")
    for arguments in (("fleet",), ("rollout", "status"), ("rollout", "halt"), ("rollout", "resume")):
        done = run(config, *arguments)
        assert done.returncode == 4, arguments
        assert done.stderr.startswith("etcd-py-agent: store: cannot connect") and done.stderr.count("\n") == 1


def test_without_a_group(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path}"\n')
    done = run(config, "rollout", "status")
    assert (done.returncode, done.stderr) == (
        1, f"etcd-py-agent: {config} names no rollout.group; expected GROUP\n"
    )  # fmt: skip
