"""A kill at every single step of an apply: after the restart the files are wholly old or wholly new.

The step numbers are found by running, so a new step of the executor is covered as soon as it exists. After
each crash the agent restarts with the store away (only the manifest helps), then the store comes back.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_agent.manifest import Phase
from etcd_agent.values import AgentConfig
from tests.unit.agent.support import (
    Crash,
    CrashingFileSystem,
    Service,
    load_config,
    make_applier,
    snapshot,
)


@pytest.fixture(autouse=True)
def no_disk_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written, so the syncs are counted as steps and left out."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


OLD = {"/app/main": "old", "/app/sites/a": "old-a", "/app/sites/b": "old-b"}
NEW = {"/app/main": "new", "/app/sites/a": "new-a", "/app/sites/c": "new-c"}


def configuration(folder: Path) -> AgentConfig:
    out = folder / "out"
    out.mkdir()
    resource = f"""
[resource]
prefix = "/app"
keys = ["/main", "/sites"]
[[template]]
src = "main.j2"
dest = "{out}/main.conf"
mode = "0640"
[[template]]
src = "site.j2"
for_each = "/sites/*"
dest = "{out}/site-{{{{ item.name }}}}.conf"
prune = true
[health]
retries = 0
"""
    templates = {"main.j2": 'main {{ getv("/main") }}\n', "site.j2": "site {{ item.value }}\n"}
    return load_config(folder, {"app": resource}, templates)


def disk(folder: Path) -> dict[str, str]:
    """Everything in the destination folder, temporary files included."""
    return {path.name: path.read_text() for path in sorted((folder / "out").iterdir())}


def expected(values: dict[str, str]) -> dict[str, str]:
    files = {"main.conf": f"main {values['/app/main']}\n"}
    for key, value in values.items():
        if key.startswith("/app/sites/"):
            files[f"site-{key[-1]}.conf"] = f"site {value}\n"
    return files


def apply_once(config: AgentConfig, service: Service, values: dict[str, str], revision: int) -> None:
    applier, _ = make_applier(config, service)
    applier.run(config.resources[0], snapshot(values, revision))


def crash_at(config: AgentConfig, service: Service, values: dict[str, str], step: int) -> bool:
    """Apply with a kill before step number ``step``. Returns whether the apply got that far."""
    files = CrashingFileSystem(step)
    service._files = files
    applier, _ = make_applier(config, service, files)
    try:
        applier.run(config.resources[0], snapshot(values, 20))
    except Crash:
        return True
    finally:
        service._files = None
    return False


def steps_of(folder: Path, new: dict[str, str]) -> int:
    config = configuration(folder)
    service = Service()
    apply_once(config, service, OLD, 10)
    files = CrashingFileSystem(10**6)
    service._files = files
    applier, _ = make_applier(config, service, files)
    applier.run(config.resources[0], snapshot(new, 20))
    return len(files.steps)


def each_crash(tmp_path: Path, new: dict[str, str]) -> int:
    (tmp_path / "count").mkdir()
    total = steps_of(tmp_path / "count", new)
    for step in range(total):
        folder = tmp_path / str(step)
        folder.mkdir()
        config = configuration(folder)
        service = Service()
        apply_once(config, service, OLD, 10)
        assert disk(folder) == expected(OLD)
        assert crash_at(config, service, new, step)
        check_resume(config, service, folder, new, step)
    return total


def check_resume(config: AgentConfig, service: Service, folder: Path, new: dict[str, str], step: int) -> None:
    (resource,) = config.resources
    bad = "BAD" in new["/app/main"]
    # Restart while the store is away: whatever was begun is ended one way or the other.
    applier, executor = make_applier(config, service)
    applier.run(resource, None)
    after = disk(folder)
    assert after in (expected(OLD), expected(new)), f"step {step}: half old, half new"
    manifest = executor.manifest(resource)
    assert manifest.phase is Phase.IDLE and not manifest.reload_pending, f"step {step}"
    assert {Path(path).name: text.decode() for path, text in service.running.items()} == after, f"step {step}"
    # The store is back.
    applier.run(resource, snapshot(new, 21))
    assert disk(folder) == expected(OLD if bad else new), f"step {step}"
    assert executor.manifest(resource).phase is Phase.IDLE


def test_a_crash_at_any_step_ends_wholly_old_or_wholly_new(tmp_path: Path) -> None:
    assert each_crash(tmp_path, NEW) > 40


def test_a_crash_at_any_step_of_a_rollback_ends_wholly_old(tmp_path: Path) -> None:
    assert each_crash(tmp_path, {**NEW, "/app/main": "BAD"}) > 60


def test_a_crash_at_any_step_of_the_first_apply(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    (resource,) = config.resources
    step = 0
    while True:
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        service = Service()
        if not crash_at(config, service, NEW, step):
            break
        applier, executor = make_applier(config, service)
        applier.run(resource, None)
        assert disk(tmp_path) in ({}, expected(NEW)), f"step {step}"
        applier.run(resource, snapshot(NEW, 21))
        assert disk(tmp_path) == expected(NEW), f"step {step}"
        assert service.running and not executor.manifest(resource).reload_pending
        # Forget everything for the next round.
        for path in sorted((tmp_path / "state").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        step += 1
    assert step > 30


def test_a_second_crash_during_the_resume_changes_nothing_of_that(tmp_path: Path) -> None:
    """Crash in the middle of the swap, then at every step of the resume."""
    total = steps_of_resume(tmp_path)
    for step in range(total):
        folder = tmp_path / f"resume-{step}"
        folder.mkdir()
        config, service = crashed_among_renames(folder)
        files = CrashingFileSystem(step)
        applier, _ = make_applier(config, service, files)
        with pytest.raises(Crash):
            applier.run(config.resources[0], None)
        check_resume(config, service, folder, NEW, step)
    assert total > 10


def steps_of_resume(tmp_path: Path) -> int:
    folder = tmp_path / "resume-count"
    folder.mkdir()
    config, service = crashed_among_renames(folder)
    files = CrashingFileSystem(10**6)
    applier, _ = make_applier(config, service, files)
    applier.run(config.resources[0], None)
    return len(files.steps)


def crashed_among_renames(folder: Path) -> tuple[AgentConfig, Service]:
    config = configuration(folder)
    service = Service()
    apply_once(config, service, OLD, 10)
    (folder / "probe").mkdir()
    files = CrashingFileSystem(10**6)
    probe = configuration(folder / "probe")
    probe_service = Service()
    apply_once(probe, probe_service, OLD, 10)
    applier, _ = make_applier(probe, probe_service, files)
    applier.run(probe.resources[0], snapshot(NEW, 20))
    renames = [
        number for number, what in enumerate(files.steps) if what.startswith(f"rename {folder}/probe/out")
    ]
    assert crash_at(config, service, NEW, renames[1])
    return config, service
