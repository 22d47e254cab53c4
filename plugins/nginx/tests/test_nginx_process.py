"""What is known of a running nginx, against a /proc made of files and against a real nginx."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent.support import nginx_module, plugin_packages, write_tree

NGINX = "/usr/sbin/nginx"


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with plugin_packages(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


@pytest.fixture
def process() -> Any:
    return nginx_module("process")


def proc(folder: Path, pid: int, title: str, parent: int, start: int) -> None:
    fields = " ".join(["S", str(parent), *["0"] * 17, str(start), "0"])
    write_tree(folder, {f"{pid}/cmdline": title + "\0", f"{pid}/stat": f"{pid} (ng) inx) {fields}\n"})


def test_master_and_workers(tmp_path: Path, process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_PROC", str(tmp_path))
    proc(tmp_path, 100, "nginx: master process nginx -c x", 1, 5)
    proc(tmp_path, 101, "nginx: worker process", 100, 6)
    proc(tmp_path, 102, "nginx: worker process is shutting down", 100, 7)
    proc(tmp_path, 103, "nginx: cache manager process", 100, 8)
    proc(tmp_path, 104, "nginx: worker process", 99, 9)
    (tmp_path / "pid").write_text("100\n")
    assert process.master_pid(str(tmp_path / "pid")) == 100
    found = sorted((worker.pid, worker.start, worker.leaving) for worker in process.workers(100))
    assert found == [(101, 6, False), (102, 7, True)]


@pytest.mark.parametrize("text", ["", "x", "0", "-5", "4194304"])
def test_no_master(tmp_path: Path, process: Any, text: str) -> None:
    (tmp_path / "pid").write_text(text)
    assert process.master_pid(str(tmp_path / "pid")) is None
    assert process.master_pid(str(tmp_path / "none")) is None


def test_a_pid_that_another_program_has_now(tmp_path: Path, process: Any) -> None:
    (tmp_path / "pid").write_text(str(os.getpid()))
    assert process.master_pid(str(tmp_path / "pid")) is None


def test_a_hidden_process_is_not_taken_for_none(
    tmp_path: Path, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_PROC", str(tmp_path))
    (tmp_path / "pid").write_text(str(os.getpid()))
    with pytest.raises(process.HiddenError, match="/proc does not show it"):
        process.master_pid(str(tmp_path / "pid"))


@pytest.mark.skipif(not os.path.exists(NGINX), reason="nginx is not installed")
def test_a_reload_of_a_real_nginx_is_seen(tmp_path: Path, process: Any) -> None:
    conf = f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/log; events {{}}\n"
    write_tree(tmp_path, {"nginx.conf": conf})
    command = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "log")]
    nginx = subprocess.Popen(command)
    try:
        pid_file = str(tmp_path / "pid")
        assert process.await_new_workers(pid_file, (), 10.0)
        before = process.workers(nginx.pid)
        assert process.master_pid(pid_file) == nginx.pid and len(before) == 1
        started_s = time.monotonic()
        assert not process.await_new_workers(pid_file, before, 0.2), "nothing was reloaded"
        assert time.monotonic() - started_s >= 0.2
        subprocess.run([*command, "-s", "reload"], check=True, timeout=10)
        assert process.await_new_workers(pid_file, before, 10.0)
        assert not {worker.pid for worker in before} & {
            worker.pid for worker in process.workers(nginx.pid) if not worker.leaving
        }
    finally:
        nginx.terminate()
        nginx.wait(10)
