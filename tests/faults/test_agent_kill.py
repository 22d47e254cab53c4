"""SIGKILL at every system call of an apply: after the restart the files are wholly old or wholly new.

The agent's file system calls ``step`` before each system call that changes anything; a real child process is
killed there, for every n, and another one takes up what it left: first while the store is away (only the
manifest helps), then with the store back. The step numbers are found by running, so a new one is covered as
soon as it exists; that no call escapes the seam is what strace says, where it is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from etcd_agent.apply import Applier
from etcd_agent.files import FileSystem
from etcd_agent.manifest import Manifest, Phase
from etcd_agent.values import AgentConfig
from tests.unit.agent.support import ROOT, Service, load_config, make_applier, snapshot

OLD = {"/app/main": "old", "/app/sites/a": "old-a", "/app/sites/b": "old-b"}
NEW = {"/app/main": "new", "/app/sites/a": "new-a", "/app/sites/c": "new-c"}
NEWER = {"/app/main": "newer", "/app/sites/a": "new-a", "/app/sites/d": "newer-d"}
BAD = {**NEW, "/app/main": "BAD"}


@pytest.fixture(autouse=True)
def no_disk_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written, so the syncs are counted as steps and left out; and hundreds of
    processes need not look for plugins."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("etcd_agent.plugins._entry_points", list)


def configuration(folder: Path) -> AgentConfig:
    """Two templates, one of them with a file for each key, and a reload that a shell does."""
    (folder / "out").mkdir(parents=True, exist_ok=True)
    run = f"{folder}/running"
    reload = f"cat {folder}/out/*.conf > {run}; echo >> {folder}/reloads; ! grep -q BAD {run}"
    resource = f"""
[resource]
prefix = "/app"
keys = ["/main", "/sites"]
[[template]]
src = "main.j2"
dest = "{folder}/out/main.conf"
mode = "0640"
[[template]]
src = "site.j2"
for_each = "/sites/*"
dest = "{folder}/out/site-{{{{ item.name }}}}.conf"
prune = true
[reload]
cmd = "{reload}"
"""
    templates = {"main.j2": 'main {{ getv("/main") }}\n', "site.j2": "site {{ item.value }}\n"}
    return load_config(folder, {"app": resource}, templates)


class KillingFileSystem(FileSystem):
    """The process kills itself before step number ``at``."""

    def __init__(self, at: int = 10**9) -> None:
        self.at = at
        self.steps: list[str] = []

    def step(self, what: str, path: str) -> None:
        if len(self.steps) >= self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps.append(f"{what} {path}")


Work = Callable[[Applier, AgentConfig], object]


class Host:
    """One host: its configuration, and one agent after the other on the same state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = configuration(folder)
        self.files = KillingFileSystem()
        self.applier, _ = make_applier(self.config, Service(), self.files)

    def do(self, work: Work) -> list[str]:
        """Returns the steps that it took."""
        self.files.steps.clear()
        work(self.applier, self.config)
        return list(self.files.steps)

    def is_killed(self, work: Work, at: int) -> bool:
        """Do it in a process of its own that kills itself before step ``at``. False if it came through."""
        child = os.fork()
        if child == 0:
            try:
                self.files.at = at
                self.do(work)
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    @property
    def manifest(self) -> Manifest:
        return self.applier.manifest(self.config.resources[0])

    @property
    def reloads(self) -> int:
        path = self.folder / "reloads"
        return path.stat().st_size if path.exists() else 0


def apply(values: dict[str, str], revision: int, *, defer: bool = False) -> Work:
    def work(applier: Applier, config: AgentConfig) -> object:
        return applier.run(config.resources[0], snapshot(values, revision), defer=defer)

    return work


def both(first: Work, second: Work) -> Work:
    def work(applier: Applier, config: AgentConfig) -> object:
        return first(applier, config), second(applier, config)

    return work


def settle(applier: Applier, config: AgentConfig) -> object:
    """A pass while the store is away."""
    return applier.run(config.resources[0], None)


def disk(folder: Path) -> dict[str, str]:
    """Everything in the destination folder, temporary files included."""
    return {path.name: path.read_text() for path in sorted((folder / "out").iterdir())}


def expected(values: dict[str, str]) -> dict[str, str]:
    files = {"main.conf": f"main {values['/app/main']}\n"}
    for key, value in values.items():
        if key.startswith("/app/sites/"):
            files[f"site-{key[-1]}.conf"] = f"site {value}\n"
    return files


def check_resume(host: Host, allowed: list[dict[str, str]], step: str) -> None:
    """Restart while the store is away: whatever was begun is ended one way or the other, and reloaded."""
    reloads, owed = host.reloads, host.manifest.reload_pending
    host.do(settle)
    after = disk(host.folder)
    assert after in allowed, f"half old, half new after a kill before {step!r}: {after}"
    assert host.manifest.phase is Phase.IDLE and not host.manifest.reload_pending, step
    running = host.folder / "running"
    assert not after or running.read_text() == "".join(after[name] for name in sorted(after)), step
    assert host.reloads > reloads or not owed, f"a reload was owed: {step}"


def each_kill(
    tmp_path: Path,
    prepare: Work | None,
    work: Work,
    allowed: list[dict[str, str]],
    last: tuple[dict[str, str], dict[str, str]],
) -> int:
    """Kill ``work`` before each of its steps. Afterwards the files are one of ``allowed``; and when the store
    then says the keys ``last[0]`` once more, they are those of ``last[1]``."""
    host = Host(tmp_path / "host")
    if prepare is not None:
        prepare(host.applier, host.config)
    shutil.copytree(host.folder, tmp_path / "prepared")
    steps = host.do(work)
    for number, step in enumerate(steps):
        shutil.rmtree(host.folder)
        shutil.copytree(tmp_path / "prepared", host.folder)
        assert host.is_killed(work, number), step
        check_resume(host, allowed, step)
        host.do(apply(last[0], 31))
        assert disk(host.folder) == expected(last[1]), step
        state = host.folder / "state/resources/app"
        left = {path.name for path in state.iterdir()} - {"manifest.json", "generations"}
        assert not left and not list(state.glob("generations/*.partial")), f"{step}: {left} is left over"
    return len(steps)


def test_a_kill_at_any_step_ends_wholly_old_or_wholly_new(tmp_path: Path) -> None:
    allowed = [expected(OLD), expected(NEW)]
    assert each_kill(tmp_path, apply(OLD, 10), apply(NEW, 20), allowed, (NEW, NEW)) >= 70


def test_a_kill_at_any_step_of_a_rollback_ends_wholly_old(tmp_path: Path) -> None:
    assert each_kill(tmp_path, apply(OLD, 10), apply(BAD, 20), [expected(OLD)], (BAD, OLD)) >= 100


def test_a_kill_at_any_step_of_the_first_apply(tmp_path: Path) -> None:
    assert each_kill(tmp_path, None, apply(NEW, 20), [{}, expected(NEW)], (NEW, NEW)) > 70


def test_a_kill_at_any_step_while_a_reload_waits_for_its_time(tmp_path: Path) -> None:
    """Two changes whose one reload is delayed: the old files come back only if nothing new was whole."""
    work = both(apply(NEW, 20, defer=True), both(apply(NEWER, 21, defer=True), settle))
    allowed = [expected(OLD), expected(NEW), expected(NEWER)]
    assert each_kill(tmp_path, apply(OLD, 10), work, allowed, (NEWER, NEWER)) > 130


def test_a_kill_at_any_step_of_going_back_by_hand(tmp_path: Path) -> None:
    def go_back(applier: Applier, config: AgentConfig) -> object:
        return applier.roll_back(config.resources[0], None)

    allowed = [expected(OLD), expected(NEW)]
    prepare = both(apply(OLD, 10), apply(NEW, 20))
    assert each_kill(tmp_path, prepare, go_back, allowed, (NEW, NEW)) >= 70


def test_a_second_kill_during_the_resume_changes_nothing_of_that(tmp_path: Path) -> None:
    """Killed in the middle of the renames, then at every step of taking it up."""
    probe = Host(tmp_path / "probe")
    probe.do(apply(OLD, 10))
    steps = probe.do(apply(NEW, 20))
    renames = [number for number, step in enumerate(steps) if step.startswith(f"rename {tmp_path}/probe/out")]

    def prepare(applier: Applier, config: AgentConfig) -> object:
        host = Host(Path(config.confdir))
        host.do(apply(OLD, 10))
        return host.is_killed(apply(NEW, 20), renames[1])

    assert each_kill(tmp_path, prepare, settle, [expected(OLD), expected(NEW)], (NEW, NEW)) > 20


SCRIPT = """
import sys
from pathlib import Path
from tests.faults.test_agent_kill import NEW, OLD, Host, apply
host = Host(Path(sys.argv[1]))
host.do(apply(OLD, 10))
print("BEGIN", flush=True)
steps = host.do(apply(NEW, 20))
print("END", flush=True)
for step in steps:
    print("STEP", step)
"""
CHANGING = {
    "write": ("write", "pwrite64", "writev", "overwrite"),
    "rename": ("rename", "renameat", "renameat2"),
    "unlink": ("unlink", "unlinkat"),
    "mkdir": ("mkdir", "mkdirat"),
    "chmod": ("chmod", "fchmod", "fchmodat"),
    "chown": ("chown", "fchown", "fchownat", "lchown"),
    "sync": ("fsync", "fdatasync"),
}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_system_call_of_an_apply_escapes_the_seam(tmp_path: Path) -> None:
    """Every call that strace sees change a file below the folder is announced by a step, and the reverse."""
    trace = tmp_path / "trace"
    calls = ",".join(name for names in CHANGING.values() for name in names if name != "overwrite")
    command = ["strace", "-y", "-s", "300", "-e", f"trace={calls},openat,rmdir", "-o", str(trace),
               sys.executable, "-c", SCRIPT, str(tmp_path / "host")]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    if result.returncode and "PTRACE" in result.stderr + trace.read_text():
        pytest.skip("this place forbids ptrace")
    assert result.returncode == 0, result.stderr
    text = trace.read_text()
    between = text[text.index('"BEGIN"') : text.index('"END"')]
    seen = _changes(between, str(tmp_path / "host"))
    said = _announced([line[5:] for line in result.stdout.splitlines() if line.startswith("STEP ")])
    assert seen == said


def _changes(trace: str, folder: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in trace.splitlines():
        name = line.split("(", 1)[0]
        if folder not in line or " = -1 " in line:
            continue
        kind = next((kind for kind, names in CHANGING.items() if name in names), name)
        if kind == "unlink" and "AT_REMOVEDIR" in line:
            kind = "rmdir"
        if kind == "openat":
            if "O_CREAT" not in line:
                continue
            kind = "create"
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _announced(steps: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for step in steps:
        kind = re.sub(r"^sync directory", "sync", step).split(" ")[0]
        if kind not in ("before", "after"):
            counts[kind] = counts.get(kind, 0) + 1
    return counts
