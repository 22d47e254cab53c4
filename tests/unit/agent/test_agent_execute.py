"""Applying: what reaches the disk, what refuses it, and what comes back when the service does not take it."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from etcd_agent.checks import stage_path
from etcd_agent.errors import CheckError, ConfigError, FilesError, GuardError, ReloadError, RenderError
from etcd_agent.files import FileSystem, temporary_path
from etcd_agent.manifest import Phase
from etcd_agent.values import APPLIED, HELD, RESUMED, ROLLED_BACK, UNCHANGED, WRITTEN, AgentConfig
from tests.unit.agent.support import (
    KEY,
    Crash,
    CrashingFileSystem,
    Host,
    Service,
    configure,
    load_config,
    make_applier,
    snapshot,
)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, configure(tmp_path))


def test_apply_writes_reloads_and_acknowledges(host: Host) -> None:
    assert host.apply("one") == APPLIED
    assert host.text == "one\n"
    assert (host.folder / "a.conf").stat().st_mode & 0o7777 == 0o644
    manifest = host.executor.manifest(host.resource)
    assert (manifest.phase, manifest.current.revision, manifest.reload_pending) == (Phase.IDLE, 11, False)
    assert host.service.reloads == 1


def test_same_keys_again_do_nothing(host: Host) -> None:
    host.apply("one")
    assert host.again("one") == UNCHANGED
    assert host.service.reloads == 1


def test_an_existing_file_keeps_its_mode_and_owner(host: Host) -> None:
    path = host.folder / "a.conf"
    path.write_text("before")
    path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    host.apply("one")
    status = path.stat()
    assert status.st_mode & 0o7777 == 0o604
    assert os.geteuid() != 0 or (status.st_uid, status.st_gid) == (12345, 23456)


def test_mode_of_the_template_wins_and_a_drifted_mode_is_repaired(tmp_path: Path) -> None:
    host = Host(tmp_path, configure(tmp_path, template='mode = "0600"'))
    host.apply("one")
    (tmp_path / "a.conf").chmod(0o644)
    assert host.again("one") == APPLIED
    assert (tmp_path / "a.conf").stat().st_mode & 0o777 == 0o600


def test_a_symlink_stays_and_its_target_is_replaced(host: Host) -> None:
    target = host.folder / "target.conf"
    target.write_text("before")
    (host.folder / "a.conf").symlink_to("target.conf")
    host.apply("one")
    assert (host.folder / "a.conf").is_symlink()
    assert target.read_text() == "one\n"


def test_drift_is_repaired(host: Host) -> None:
    host.apply("one")
    (host.folder / "a.conf").write_text("edited by hand")
    assert host.again("one") == APPLIED
    assert host.text == "one\n"


def test_nothing_is_touched_when_rendering_fails(host: Host) -> None:
    host.apply("one")
    with pytest.raises(RenderError, match="/app/value does not exist"):
        host.applier.run(host.resource, snapshot({}, 99))
    assert host.text == "one\n"


def test_check_command_sees_the_staged_file_and_refuses_it(tmp_path: Path) -> None:
    check = '[check]\ncmd = "grep -q good {{src}} || { echo no good in it; exit 3; }"'
    host = Host(tmp_path, configure(tmp_path, check))
    assert host.apply("good 1") == APPLIED
    with pytest.raises(CheckError, match="exit status 3: no good in it"):
        host.apply("wrong")
    assert host.text == "good 1\n"
    assert host.service.reloads == 1
    assert host.apply("good 2") == APPLIED


def test_confd_spelling_of_variables_and_quoting(tmp_path: Path) -> None:
    folder = tmp_path / "it's a dir"
    folder.mkdir()
    host = Host(folder, configure(folder, '[check]\ncmd = "test -f {{.src}} && test ! -e {{ dest }}"'))
    assert host.apply("one") == APPLIED


def test_check_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "child-survived"
    command = f"(sleep 3; touch {marker}) & sleep 60"
    host = Host(tmp_path, configure(tmp_path, f'[check]\ncmd = "{command}"\ntimeout = "200ms"'))
    with pytest.raises(CheckError, match=r"longer than 0\.2 s and was killed"):
        host.apply("one")
    deadline_s = time.monotonic() + 2
    while [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(marker) in text_of(path)]:
        assert time.monotonic() < deadline_s, "a child of the command lives on"


def text_of(path: Path) -> str:
    """A file of /proc, whose process may be gone."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("json", '{"a": 1}', "{a: 1}"),
        ("yaml", "a: 1", "a: [1"),
        ("toml", "a = 1", "a = "),
        ("xml", "<a/>", "<a>"),
        ("ini", "[a]", "a"),
    ],
)
def test_format_check(tmp_path: Path, name: str, good: str, bad: str) -> None:
    host = Host(tmp_path, configure(tmp_path, f'[check]\nformat = "{name}"'))
    assert host.apply(good) == APPLIED
    with pytest.raises(CheckError, match=f"not {name}"):
        host.apply(bad)
    assert host.text == good + "\n"


def test_a_check_does_not_betray_a_sensitive_file(tmp_path: Path) -> None:
    check = '[check]\ncmd = "cat {{src}}; exit 1"'
    host = Host(tmp_path, configure(tmp_path, check, template="sensitive = true"))
    with pytest.raises(CheckError) as caught:
        host.apply("s3cret")
    assert "exit status 1" in str(caught.value) and "s3cret" not in str(caught.value)


@pytest.mark.parametrize("value", ["BAD", "SICK"])
def test_failed_reload_or_health_restores_reloads_and_remembers(host: Host, value: str) -> None:
    host.apply("one")
    assert host.apply(value) == ROLLED_BACK
    assert host.text == "one\n"
    assert host.service.running == {f"{host.folder}/a.conf": b"one\n"}
    manifest = host.executor.manifest(host.resource)
    assert (manifest.current.revision, manifest.reload_pending) == (11, False)
    reloads = host.service.reloads
    assert host.again(value) == HELD, "the same content from the same keys is not tried again"
    assert host.service.reloads == reloads
    assert host.apply(value) == ROLLED_BACK, "a newer write of the key is tried"
    assert host.apply("two") == APPLIED
    assert host.text == "two\n"


def test_rollback_of_a_first_apply_leaves_no_file(host: Host) -> None:
    assert host.apply("BAD") == ROLLED_BACK
    assert not (host.folder / "a.conf").exists()


def test_going_back_to_the_good_value_forgets_the_bad_one(host: Host) -> None:
    host.apply("one")
    host.apply("BAD")
    assert host.apply("one") == UNCHANGED
    assert host.executor.manifest(host.resource).bad is None


def test_a_failing_reload_with_the_old_files_stays_pending_until_it_succeeds(host: Host) -> None:
    host.apply("one")
    host.service.always_fail = True
    assert host.apply("two") == ROLLED_BACK
    assert host.text == "one\n"
    assert host.executor.manifest(host.resource).reload_pending
    with pytest.raises(ReloadError):
        host.applier.run(host.resource, None)
    host.service.always_fail = False
    assert host.applier.run(host.resource, None).kind == RESUMED
    assert not host.executor.manifest(host.resource).reload_pending


def test_without_rollback_the_reload_stays_pending_and_a_newer_key_mends_it(tmp_path: Path) -> None:
    host = Host(tmp_path, configure(tmp_path, "[rollback]\nenabled = false"))
    host.apply("one")
    with pytest.raises(ReloadError):
        host.apply("BAD")
    assert host.text == "BAD\n"
    with pytest.raises(ReloadError):
        host.again("BAD")
    assert host.executor.manifest(host.resource).current.revision == 11, "acknowledged only when it succeeded"
    assert host.apply("two") == APPLIED
    assert host.service.running == {f"{tmp_path}/a.conf": b"two\n"}


def test_reload_command_timeout_rolls_back(tmp_path: Path) -> None:
    command = "grep -q slow {{dest}} && exec sleep 60; true"
    host = Host(tmp_path, configure(tmp_path, f'[reload]\ncmd = "{command}"\ntimeout = "300ms"'))
    assert host.apply("quick") == APPLIED
    outcome = host.applier.run(host.resource, snapshot({KEY: "slow"}, 50))
    assert outcome.kind == ROLLED_BACK
    assert "longer than 0.3 s" in outcome.error
    assert host.text == "quick\n"


def test_command_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    command = f"env > {tmp_path}/env"
    host = Host(tmp_path, configure(tmp_path, f'[reload]\ncmd = "{command}"'))
    host.apply("one")
    lines = (tmp_path / "env").read_text().splitlines()
    assert "AGENT_RESOURCE=app" in lines
    assert "AGENT_REVISION=11" in lines
    assert f"AGENT_DEST={tmp_path}/a.conf" in lines
    assert not [line for line in lines if line.startswith(("NOTIFY_SOCKET", "WATCHDOG"))]


def two_files(folder: Path) -> AgentConfig:
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    resource = "\n".join(
        ['[resource]\nkeys = ["/app"]', "[health]\nretries = 0"]
        + [f'[[template]]\nsrc = "a.j2"\ndest = "{folder}/{name}/a.conf"' for name in ("one", "two")]
    )
    return load_config(folder, {"app": resource}, {"a.j2": '{{ getv("/app/value") }}\n'})


class FailingRename(FileSystem):
    """Renames of the second file fail, as on a bind-mounted file."""

    broken = False

    def step(self, what: str, path: str) -> None:
        if self.broken and what == "rename" and path.endswith("/two/a.conf"):
            raise OSError(16, "Device or resource busy")


def test_a_file_that_cannot_be_swapped_brings_the_others_back(tmp_path: Path) -> None:
    files = FailingRename()
    host = Host(tmp_path, two_files(tmp_path), files)
    host.apply("one")
    files.broken = True
    with pytest.raises(
        FilesError, match=r"two/a\.conf: cannot be replaced: Device or resource busy \(a bind"
    ):
        host.apply("two")
    assert (tmp_path / "one/a.conf").read_text() == (tmp_path / "two/a.conf").read_text() == "one\n"
    assert not list(tmp_path.glob("*/.a.conf*"))
    assert host.service.reloads == 1, "nothing new was reloaded, so nothing old needs to be"
    files.broken = False
    assert host.again("two") == APPLIED, "it is not held to be bad"


def test_a_missing_directory_is_found_before_any_file_is_swapped(tmp_path: Path) -> None:
    host = Host(tmp_path, two_files(tmp_path))
    host.apply("one")
    (tmp_path / "two/a.conf").unlink()
    (tmp_path / "two").rmdir()
    with pytest.raises(FilesError, match="No such file or directory"):
        host.apply("two")
    assert (tmp_path / "one/a.conf").read_text() == "one\n"


def test_crash_among_renames_with_a_damaged_stage_goes_back(tmp_path: Path) -> None:
    config = two_files(tmp_path)
    host = Host(tmp_path, config)
    host.apply("one")
    probe = CrashingFileSystem(10**6)
    make_applier(config, host.service, probe)[0].run(host.resource, snapshot({KEY: "probe"}, 20))
    step = max(number for number, what in enumerate(probe.steps) if what.startswith(f"rename {tmp_path}/two"))
    with pytest.raises(Crash):
        applier, _ = make_applier(config, host.service, CrashingFileSystem(step))
        applier.run(host.resource, snapshot({KEY: "three"}, 21))
    assert (tmp_path / "one/a.conf").read_text() == "three\n", "half new"
    staged = stage_path(f"{config.state_dir}/resources/app/stage", f"{tmp_path}/two/a.conf")
    Path(staged).write_text("torn")
    outcome = host.applier.run(host.resource, None)
    assert outcome.kind == ROLLED_BACK
    assert (tmp_path / "one/a.conf").read_text() == (tmp_path / "two/a.conf").read_text() == "probe\n"
    assert not Path(temporary_path(f"{tmp_path}/two/a.conf")).exists()
    assert host.service.running[f"{tmp_path}/one/a.conf"] == b"probe\n"
    assert host.applier.run(host.resource, snapshot({KEY: "three"}, 21)).kind == APPLIED


def test_a_damaged_manifest_is_kept_aside_and_one_reload_is_made(host: Host) -> None:
    host.apply("one")
    path = host.folder / "state/resources/app/manifest.json"
    path.write_text("{")
    assert host.again("one") == RESUMED
    assert (host.folder / "state/resources/app/manifest.json.damaged").read_text() == "{"
    assert host.service.reloads == 2
    assert host.again("one") == UNCHANGED


def test_revisions_of_one_cluster_never_go_back(host: Host) -> None:
    host.apply("one")
    with pytest.raises(GuardError, match="revision 5, but revision 11"):
        host.applier.run(host.resource, snapshot({KEY: "older"}, 5))
    assert host.text == "one\n"


def test_another_cluster_is_held_until_it_is_accepted(host: Host) -> None:
    host.apply("one")
    rebuilt = snapshot({KEY: "rebuilt"}, 5, cluster_id=8)
    with pytest.raises(GuardError, match="another cluster answers: 8; the files here come from cluster 7"):
        host.applier.run(host.resource, rebuilt)
    assert host.text == "one\n"
    safety = replace(host.config.safety, accept_cluster=True)
    accepting = Host(host.folder, replace(host.config, safety=safety))
    assert accepting.applier.run(host.resource, rebuilt).kind == APPLIED
    assert host.text == "rebuilt\n"


def test_a_file_does_not_become_empty_unless_it_may(tmp_path: Path) -> None:
    host = Host(tmp_path, configure(tmp_path))
    host.apply("one")
    with pytest.raises(GuardError, match="would become empty"):
        host.apply("")
    (tmp_path / "again").mkdir()
    permitted = Host(
        tmp_path / "again", configure(tmp_path / "again", head="[safety]\nrefuse_empty = false\n")
    )
    permitted.apply("one")
    assert permitted.apply("") == APPLIED


def test_only_the_last_generations_are_kept(tmp_path: Path) -> None:
    host = Host(tmp_path, configure(tmp_path, head="[safety]\nbackups = 2\n"))
    for number in range(6):
        host.apply(f"value {number}")
    kept = sorted(path.name for path in (tmp_path / "state/resources/app/generations").iterdir())
    assert kept == ["5", "6"]
    assert (tmp_path / "state/resources/app/generations/6/0").read_text() == "value 4\n"


def test_state_is_private(host: Host) -> None:
    host.apply("one")
    for path in (host.folder / "state").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def can_mount() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to make a mount namespace")
def test_overlay_check_sees_the_whole_tree_and_only_it_does(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    (etc / "sites").mkdir(parents=True)
    (etc / "main.conf").write_text("include sites\n")
    check = f"cat {etc}/main.conf {etc}/sites/*.conf > {tmp_path}/seen; ! grep -q wrong {etc}/sites/*.conf"
    resource = f"""
[resource]
keys = ["/app"]
[[template]]
src = "site.j2"
for_each = "/app/*"
dest = "{etc}/sites/{{{{ item.name }}}}.conf"
prune = true
[check]
mode = "overlay"
cmd = "{check}"
[health]
retries = 0
"""
    config = load_config(tmp_path, {"app": resource}, {"site.j2": "{{ item.value }}\n"})
    applier, _ = make_applier(config, Service())
    applier.run(config.resources[0], snapshot({"/app/a": "1", "/app/b": "2"}, 10))
    applier.run(config.resources[0], snapshot({"/app/a": "1 again", "/app/c": "3"}, 11))
    assert (tmp_path / "seen").read_text() == "include sites\n1 again\n3\n", "b, to be removed, is not seen"
    with pytest.raises(CheckError, match="exit status 1"):
        applier.run(config.resources[0], snapshot({"/app/a": "wrong", "/app/c": "3"}, 12))
    assert sorted(path.name for path in (etc / "sites").iterdir()) == ["a.conf", "c.conf"]
    assert (etc / "sites/a.conf").read_text() == "1 again\n"
    assert "etcd-py-agent" not in Path("/proc/mounts").read_text()


def test_a_reload_that_waits_is_done_although_what_came_next_is_held(host: Host) -> None:
    host.apply("one")
    assert host.apply("BAD") == ROLLED_BACK
    bad_revision = host.revision
    good = snapshot({KEY: "two"}, host.revision + 1)
    assert host.applier.run(host.resource, good, defer=True).kind == WRITTEN
    held = snapshot({KEY: "BAD"}, bad_revision)
    held = replace(held, revision=host.revision + 5)
    assert host.applier.run(host.resource, held, defer=True).kind == WRITTEN
    assert host.applier.run(host.resource, held).kind == APPLIED, "what stands is reloaded with"
    assert host.service.running == {f"{host.folder}/a.conf": b"two\n"}
    assert host.text == "two\n"


def test_a_template_in_the_resource_file_and_directories_that_are_made(tmp_path: Path) -> None:
    dest = tmp_path / "made/for/it/a.conf"
    template = """contents = '{{ getv("/value") }}!'\nmake_directories = true\n"""
    resource = f'[resource]\nprefix = "/app"\nkeys = ["/value"]\n[[template]]\ndest = "{dest}"\n{template}'
    config = load_config(tmp_path, {"app": resource}, {})
    host = Host(tmp_path, config)
    assert host.apply("one") == APPLIED
    assert dest.read_text() == "one!" and dest.parent.stat().st_mode & 0o777 == 0o755
    assert host.apply("BAD") == ROLLED_BACK and dest.read_text() == "one!"
    with pytest.raises(ConfigError, match="either src or contents: expected one of them"):
        load_config(tmp_path, {"app": resource.replace("contents", 'src = "a.j2"\ncontents')}, {})
