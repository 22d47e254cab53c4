"""etcd-pyctl as a program: output, errors in one line, exit statuses."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from tests.servers import Server, available_servers, free_ports, start_server

LIMIT_S = 30.0
PROGRAM = [sys.executable, "-c", "from etcd_client.ctl import main; main()"]


@pytest.fixture(scope="module", params=available_servers())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(request.param, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


def run(
    endpoints: str, *arguments: str, stdin: bytes = b"", program: Sequence[str] = PROGRAM
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*program, *arguments],
        env=os.environ | {"ETCDCTL_ENDPOINTS": endpoints},
        input=stdin,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )


def output(server: Server, *arguments: str, stdin: bytes = b"") -> bytes:
    done = run(server.url, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_keys(server: Server) -> None:
    assert output(server, "put", "/c/a", "1") == b"OK\n"
    assert output(server, "put", "/c/a", "2", "--prev-kv") == b"OK\n/c/a\n1\n"
    assert output(server, "put", "/c/b", stdin=b"\xff\x00") == b"OK\n"
    assert output(server, "put", "--", "/c/c", "-5") == b"OK\n"
    assert output(server, "get", "/c/a") == b"/c/a\n2\n"
    assert output(server, "get", "/c/none") == b""
    assert output(server, "get", "--prefix", "/c/", "--keys-only") == b"/c/a\n/c/b\n/c/c\n"
    assert output(server, "get", "--prefix", "/c/", "--count-only") == b"3\n"
    assert output(server, "get", "--prefix", "/c/", "--limit", "1", "--order", "descend") == b"/c/c\n-5\n"
    assert output(server, "get", "/c/b", "--print-value-only") == b"\xff\x00\n"
    assert output(server, "get", "/c/a", "/c/c", "--keys-only", "--consistency", "s") == b"/c/a\n/c/b\n"
    found = json.loads(output(server, "get", "/c/a", "-w", "json"))
    assert base64.b64decode(found["kvs"][0]["value"]) == b"2"
    assert (found["count"], found["kvs"][0]["version"]) == (1, 2)
    first = found["kvs"][0]["create_revision"]
    assert output(server, "get", "/c/a", "--rev", str(first)) == b"/c/a\n1\n"
    table = output(server, "-w", "table", "get", "--prefix", "/c/").decode()
    assert "| KEY  | VALUE" in table
    assert r"| /c/b | \xff\x00 |" in table
    assert output(server, "del", "/c/c", "--prev-kv") == b"1\n/c/c\n-5\n"
    assert output(server, "del", "--prefix", "/c/") == b"2\n"


def test_watch_prints_history_until_interrupted(server: Server) -> None:
    first = json.loads(output(server, "put", "/w/k", "1", "-w", "json"))["header"]["revision"]
    output(server, "put", "/w/k", "2")
    output(server, "del", "/w/k")
    watching = subprocess.Popen(
        [*PROGRAM, "--endpoints", server.url, "watch", "--prefix", "/w/", "--rev", str(first), "--prev-kv"],
        stdout=subprocess.PIPE,
    )
    try:
        assert watching.stdout is not None
        lines = [watching.stdout.readline() for _ in range(13)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(LIMIT_S) == 130
    finally:
        watching.kill()
        watching.wait(LIMIT_S)
    assert b"".join(lines) == b"PUT\n/w/k\n1\nPUT\n/w/k\n1\n/w/k\n2\nDELETE\n/w/k\n2\n/w/k\n\n"


def test_status(server: Server) -> None:
    table = output(server, "status", "-w", "table").decode()
    for expected in ("ENDPOINT", "DB SIZE", "iB", server.url, "true"):
        assert expected in table
    (status,) = json.loads(output(server, "status", "-w", "json"))["statuses"]
    assert status["db_size_bytes"] > 0
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    done = run(f"{server.url},{dead}", "--command-timeout", "500ms", "status")
    assert (done.returncode, done.stdout.count(b"\n"), done.stderr.count(b"\n")) == (3, 1, 1)
    assert dead.encode() in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["get", ""], 1, "key is not provided"),
        (["get", "k", "--rev", "999999"], 1, "future revision"),
        (["put", "k", "v", "--lease", "77"], 1, "lease not found"),
        (["put", "k", "v", "--lease", "xyz"], 2, "hexadecimal"),
        (["get", "k", "l", "--prefix"], 2, "exclude each other"),
        (["--endpoints", "ftp://x", "get", "k"], 2, "expected http://HOST:PORT"),
        (["get", "k", "--command-timeout", "soon"], 2, "expected a time such as"),
        (["frobnicate"], 2, "No such command"),
        (["get"], 2, "Missing argument"),
        (["get", "k", "--cert", "setup.cfg"], 2, "does not exist"),
    ],
)
def test_errors_are_one_line(server: Server, arguments: list[str], status: int, text: str) -> None:
    done = run(server.url, *arguments)
    assert done.returncode == status
    assert done.stdout == b""
    assert text in done.stderr.decode()
    assert done.stderr.startswith(b"etcd-pyctl: ")
    assert done.stderr.count(b"\n") == 1


def test_no_server() -> None:
    done = run(f"http://127.0.0.1:{free_ports(1)[0]}", "--command-timeout", "300ms", "put", "k", "v")
    assert done.returncode == 3
    assert b"Connection refused" in done.stderr


def test_help_teaches() -> None:
    for command in ((), ("put",), ("get",), ("del",), ("watch",), ("status",)):
        done = run("", *command, "--help")
        assert done.returncode == 0
        assert b"Examples:" in done.stdout
    assert b"Exit status:" in run("", "--help").stdout
