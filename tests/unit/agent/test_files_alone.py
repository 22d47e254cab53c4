"""``sync_only``: files and nothing else. ``keep_stage_file``: what was staged, to be looked at."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from etcd_agent.errors import CheckError, GuardError, ReloadError
from etcd_agent.execute import Executor
from etcd_agent.manifest import Phase
from etcd_agent.plugins import PluginSet
from etcd_agent.runtime import builtin_plugins, make_applier
from etcd_agent.values import APPLIED, RESUMED, UNCHANGED, AgentConfig, State
from tests.unit.agent.live import MemoryStore, running
from tests.unit.agent.support import KEY, Crash, CrashingFileSystem, Host, Service, configure, snapshot

COMMANDS = """
cmd = "touch {0}/proved"
[check]
cmd = "touch {0}/checked; ! grep -q REFUSED {{{{src}}}}"
[reload]
cmd = "touch {0}/reloaded; ! test -e {0}/down"
splay = "1h"
"""


def configured(folder: Path, head: str = "", template: str = "") -> AgentConfig:
    return configure(folder, COMMANDS.format(folder), head, template)


def host_of(config: AgentConfig, folder: Path) -> Host:
    host = Host(folder, config)
    host.applier = make_applier(config, PluginSet(config.plugins, builtin_and(host.service)))
    return host


def builtin_and(service: Service) -> list[tuple[str, object]]:
    return [*builtin_plugins(), ("service", service)]


def ran(folder: Path) -> set[str]:
    """The commands that were run since the last question."""
    found = {name for name in ("checked", "reloaded", "proved") if (folder / name).exists()}
    for name in found:
        (folder / name).unlink()
    return found


def test_files_are_written_and_nothing_is_run(tmp_path: Path) -> None:
    config = configured(tmp_path)
    synced = host_of(replace(config, sync_only=True), tmp_path)
    assert synced.apply("one") == APPLIED and synced.apply("REFUSED SICK") == APPLIED
    assert synced.text == "REFUSED SICK\n" and ran(tmp_path) == set()
    assert synced.service.events[-1].detail == "neither checked nor reloaded (sync_only)"
    manifest = synced.applier.manifest(synced.resource)
    assert (manifest.phase, manifest.reload_pending) == (Phase.IDLE, False)
    with pytest.raises(GuardError, match="empty"):
        synced.applier.run(synced.resource, snapshot({KEY: ""}, 20))

    usual = host_of(config, tmp_path)
    usual.revision = 20
    usual.applier.run(usual.resource, snapshot({KEY: "REFUSED SICK"}, 20))
    assert ran(tmp_path) == set(), "nothing is owed"
    assert usual.apply("two") == APPLIED and ran(tmp_path) == {"checked", "reloaded", "proved"}


def test_a_reload_that_was_owed_stays_owed(tmp_path: Path) -> None:
    config = configured(tmp_path, head="[safety]\nrollback = false\n")
    usual = host_of(config, tmp_path)
    usual.apply("one")
    (tmp_path / "down").touch()
    with pytest.raises(ReloadError):
        usual.apply("two")
    (tmp_path / "down").unlink()
    assert ran(tmp_path) == {"checked", "reloaded", "proved"}

    synced = host_of(replace(config, sync_only=True), tmp_path)
    synced.revision = 20
    assert synced.apply("three") == APPLIED and synced.again("three") == UNCHANGED
    assert synced.text == "three\n" and ran(tmp_path) == set()
    manifest = synced.applier.manifest(synced.resource)
    assert manifest.phase is Phase.IDLE and manifest.reload_pending and manifest.changed

    usual.revision = 21
    assert usual.again("three") == RESUMED and "reloaded" in ran(tmp_path)
    assert usual.again("three") == UNCHANGED and ran(tmp_path) == set()


def test_a_kill_at_any_step_leaves_whole_files_and_owes_nothing(tmp_path: Path) -> None:
    at, killed = 0, True
    while killed:
        folder = tmp_path / str(at)
        folder.mkdir()
        config = replace(configured(folder), sync_only=True)
        plugins = PluginSet(config.plugins, builtin_and(Service()))
        files = CrashingFileSystem(10**9)
        host = Host(folder, config, files)
        executor = Executor(config.state_dir, plugins, files=files, sync_only=True)
        host.applier._executor = executor
        host.apply("one")
        files.at, files.steps = at, []
        try:
            host.apply("two")
            killed = False
        except Crash:
            killed = True
        files.at = 10**9
        host.again("two")
        assert host.text == "two\n" and ran(folder) == set()
        manifest = executor.manifest(host.resource)
        assert (manifest.phase, manifest.reload_pending) == (Phase.IDLE, False), at
        at += 1
    assert at > 10


def test_an_agent_that_only_syncs_neither_waits_nor_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``splay`` delays reloads; there is none."""
    store = MemoryStore()
    store.put({KEY: "one"})
    with running(monkeypatch, configured(tmp_path, head="sync_only = true\n"), store) as live:
        live.wait(state=State.APPLIED, changes=1)
        store.put({KEY: "two"})
        live.wait(state=State.APPLIED, changes=2)
        assert (tmp_path / "a.conf").read_text() == "two\n" and ran(tmp_path) == set()


def staged(host: Host) -> list[Path]:
    return [path for path in (host.folder / "state/resources/app/stage").rglob("*") if path.is_file()]


def test_staged_files_stay_for_a_look(tmp_path: Path) -> None:
    host = host_of(configured(tmp_path, head="keep_stage_file = true\n"), tmp_path)
    for value, error in (("one", None), ("REFUSED", CheckError), ("two", None)):
        if error is None:
            assert host.apply(value) == APPLIED and host.again(value) == UNCHANGED
        else:
            with pytest.raises(error):
                host.apply(value)
        (path,) = staged(host)
        assert path.name == "a.conf" and path.read_text() == f"{value}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("head", "template"), [("", ""), ("keep_stage_file = true\n", "sensitive = true")])
def test_staged_files_go_unless_they_are_kept_and_never_stay_when_sensitive(
    tmp_path: Path, head: str, template: str
) -> None:
    host = host_of(configured(tmp_path, head, template), tmp_path)
    assert host.apply("one") == APPLIED and staged(host) == []
    with pytest.raises(CheckError):
        host.apply("REFUSED")
    assert host.apply("two") == APPLIED and staged(host) == []
