"""What users of confd, consul-template, Vault Agent and remco complain about, one test for each: 17 to 31.

See test_complaints.py, which has 1 to 16 and 21.
"""

from __future__ import annotations

import errno
import getpass
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from etcd_agent import runtime
from etcd_agent.config import load
from etcd_agent.errors import AgentError, CheckError, FilesError, ReloadError, RenderError
from etcd_agent.files import FileSystem
from etcd_agent.hookspecs import hookimpl
from etcd_agent.manifest import Phase
from etcd_agent.pages import order
from etcd_agent.plan import diff
from etcd_agent.plugins import PluginSet
from etcd_agent.values import APPLIED, RESUMED, ROLLED_BACK, UNCHANGED, AgentConfig, State
from tests.servers import free_ports
from tests.unit.agent.live import MemoryStore, running, wait_for
from tests.unit.agent.support import ROOT, Host, Service, configure, load_config, make_applier, snapshot
from tests.unit.agent.test_complaints import FAST, can_mount, one_file, several, text


def test_17_status_health_and_metrics_tell_whether_it_is_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)
    config = replace(several(tmp_path), listen=f"127.0.0.1:{port}")
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})

    def page(name: str) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{port}/{name}", timeout=5)

    with running(monkeypatch, config, store) as live:
        live.wait(state=State.APPLIED)
        wait_for(lambda: page("readyz").status_code == 200)
        assert page("readyz").text == "rev 2, 2/2 applied, watching\n"
        assert page("healthz").text == "ok\n"
        shown = page("status").json()
        assert (shown["revision"], shown["ready"]) == (2, True)
        assert {each["name"]: each["revision"] for each in shown["resources"]} == {"app": 2, "other": 2}
        (tmp_path / "templates/app.j2").write_text("{{ nobody }}")
        store.put({"/app/value": "two"})
        live.wait(state=State.FAILED)
        answer = page("readyz")
        assert answer.status_code == 503 and "degraded: " in answer.text and "failed: app" in answer.text
        metrics = page("metrics").text
        assert 'etcd_agent_resources{state="failed"} 1.0' in metrics
        assert 'etcd_agent_applied_revision{resource="app"} 2.0' in metrics
        assert "etcd_agent_store_up 1.0" in metrics
        assert page("nothing").status_code == 404
        assert "one" not in page("status").text, "no page holds a value"


def test_18_ready_is_said_when_the_files_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    store.is_away = True
    store.put({"/app/value": "one", "/other/value": "1"})
    config = several(tmp_path, {"app": '[check]\ncmd = "sleep 0.3"'})
    with running(monkeypatch, config, store) as live:
        live.wait(state=State.UNKNOWN)
        assert "READY=1" not in live.sent
        store.is_away = False
        wait_for(lambda: "READY=1" in live.sent)
        assert text(tmp_path / "app.conf") == "one\n" and text(tmp_path / "other.conf") == "1\n"


def test_19_a_start_without_the_store_serves_the_last_good_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = several(tmp_path, head='start_grace = "100ms"\n' + FAST)
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})
    with running(monkeypatch, config, store) as live:
        wait_for(lambda: "READY=1" in live.sent)
    again = MemoryStore()
    again.is_away = True
    with running(monkeypatch, config, again) as live:
        wait_for(lambda: "READY=1" in live.sent)
        assert any(line.startswith("STATUS=degraded: ") and "store away" in line for line in live.sent)
        assert text(tmp_path / "app.conf") == "one\n"
        again.revision, again.is_away = 10, False
        again.put({"/app/value": "two", "/other/value": "1"})
        wait_for(lambda: text(tmp_path / "app.conf") == "two\n", "and goes on when it is back")


def test_20_a_command_that_asks_or_leaves_a_child_blocks_nothing(tmp_path: Path) -> None:
    reload = '[reload]\ncmd = "cat; sleep 30 & exit 0"\ntimeout = "20s"'
    host = Host(tmp_path, configure(tmp_path, reload))
    began_s = time.monotonic()
    assert host.apply("one") == APPLIED
    assert time.monotonic() - began_s < 5.0, "input is empty, and nobody waits for the child's output"


def test_22_a_plugin_that_breaks_down_costs_its_resource_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        @hookimpl
        def agent_reload(self, resource: object) -> str | None:
            if getattr(resource, "name", "") == "app":
                raise ZeroDivisionError("oops")
            return "fine"

    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})
    with running(monkeypatch, several(tmp_path), store, Broken()) as live:
        live.wait("other", state=State.APPLIED)
        status = live.wait(state=State.ROLLED_BACK)
        assert "a plugin failed: ZeroDivisionError: oops" in status.error
        store.put({"/other/value": "2"})
        wait_for(lambda: text(tmp_path / "other.conf") == "2\n")


def test_23_a_new_configuration_replaces_the_old_one_or_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload = f'[reload]\ncmd = "echo >> {tmp_path}/reloads"'
    config = several(tmp_path, {"app": reload})
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})

    def load_again() -> AgentConfig:
        return load(config.source)

    with running(monkeypatch, config, store, load=load_again) as live:
        live.wait(state=State.APPLIED)
        live.wait("other", state=State.APPLIED)
        resource = tmp_path / "conf.d/other.toml"
        good = resource.read_text()
        resource.write_text(good + "nonsense = 1\n")
        live.agent.reload()
        wait_for(lambda: live.sent.count("READY=1") >= 2)
        store.put({"/other/value": "2"})
        wait_for(lambda: text(tmp_path / "other.conf") == "2\n", "the old one is still at work")
        resource.unlink()
        (tmp_path / "conf.d/third.toml").write_text(good.replace("other.conf", "third.conf"))
        live.agent.reload()
        wait_for(lambda: text(tmp_path / "third.conf") == "2\n", "what is new is rendered")
        assert {each.name for each in live.agent.status().resources} == {"app", "third"}, (
            "replaced, not merged"
        )
        (tmp_path / "third.conf").unlink()
        live.agent.reload()
        wait_for(lambda: text(tmp_path / "third.conf") == "2\n", "what is missing is rendered")
    assert text(tmp_path / "reloads") == "\n", "what did not change was not reloaded"


class MountedFile(FileSystem):
    """The destination is a mount point of its own."""

    def step(self, what: str, path: str) -> None:
        if what == "rename" and path.endswith("/a.conf"):
            raise OSError(errno.EBUSY, "Device or resource busy")


def test_24_a_bind_mounted_file_is_an_error_or_overwritten_if_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text("a much longer content than the next\n")
    inode = (tmp_path / "a.conf").stat().st_ino
    host = Host(tmp_path, configure(tmp_path), MountedFile())
    with pytest.raises(
        FilesError, match=r"cannot be replaced: .*mount its directory instead, or set in_place"
    ):
        host.apply("one")
    assert text(tmp_path / "a.conf").startswith("a much longer")
    permitted = Host(tmp_path, configure(tmp_path, template="in_place = true"), MountedFile())
    assert permitted.apply("two") == APPLIED
    assert permitted.text == "two\n" and (tmp_path / "a.conf").stat().st_ino == inode
    assert permitted.apply("BAD") == ROLLED_BACK
    assert permitted.text == "two\n" and not list(tmp_path.glob(".a.conf*"))


MOUNTED = """
import sys
from pathlib import Path
from tests.unit.agent.support import Host, configure
host = Host(Path(sys.argv[1]), configure(Path(sys.argv[1]), template="in_place = true"))
print(host.apply("one"), end="")
"""


@pytest.mark.skipif(not can_mount(), reason="needs the right to make a mount namespace")
def test_24_a_really_bind_mounted_file(tmp_path: Path) -> None:
    for name in ("a.conf", "elsewhere"):
        (tmp_path / name).write_text("before\n")
    script = f'mount --bind {tmp_path}/elsewhere {tmp_path}/a.conf && exec "$0" -c "$1" {tmp_path}'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, MOUNTED]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "applied"), result.stderr
    assert text(tmp_path / "elsewhere") == "one\n", "the file that is mounted there was written"


def test_24_a_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.conf").write_text("before")
    (tmp_path / "a.conf").symlink_to("real.conf")
    Host(tmp_path, configure(tmp_path)).apply("one")
    assert (tmp_path / "a.conf").is_symlink() and text(tmp_path / "real.conf") == "one\n"


def settable(path: Path, name: str) -> bool:
    try:
        os.setxattr(path, name, b"system_u:object_r:net_conf_t:s0")
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", ["security.selinux", "user.note"])
def test_25_the_selinux_label_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.conf"
    path.write_text("before")
    if not settable(path, name):
        pytest.skip(f"{name} cannot be set here")
    label = os.getxattr(path, name)
    host = Host(tmp_path, configure(tmp_path))
    host.apply("one")
    assert os.getxattr(path, name) == label
    host.apply("BAD")
    assert host.text == "one\n" and os.getxattr(path, name) == label, "after a rollback, too"
    path.unlink()
    host.apply("three")
    assert host.applier.roll_back(host.resource, 2).kind == APPLIED
    assert os.getxattr(path, name) == label, "a generation remembers it"


SECRET = "hunter2-s3cret"


def test_26_a_secret_is_in_no_log_no_error_no_status_and_no_audit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = f"""[check]
cmd = "! grep -q REFUSE {{{{src}}}} || {{ cat {{{{src}}}}; exit 1; }}"
format = "none"
[reload]
cmd = "! grep -q FAIL {tmp_path}/a.conf || {{ cat {tmp_path}/a.conf; exit 1; }}"
"""
    caplog.set_level(logging.DEBUG)
    host = Host(tmp_path, configure(tmp_path, extra, template="sensitive = true"))
    config = load(str(tmp_path / "agent.toml"))
    applier = runtime.make_applier(config, PluginSet(config.plugins, runtime.builtin_plugins()))
    said: list[str] = []

    def run(value: str) -> None:
        host.revision += 1
        try:
            outcome = applier.run(host.resource, snapshot({"/app/value": value}, host.revision))
            said.append(f"{outcome}")
        except AgentError as error:
            said.append(str(error))

    run(SECRET)
    for mark in ("REFUSE", "FAIL"):
        run(f"{SECRET} {mark}")
        assert "exit status 1" in said[-1]
    (tmp_path / "templates/a.j2").write_text('{{ getv("/value") + 1 }} {{ json(getv("/value")) }}')
    run(SECRET)
    (tmp_path / "templates/a.j2").write_text('{{ parseBool(getv("/value")) }}')
    run(f"{SECRET} no boolean")
    assert "parseBool" in said[-1] and "***" in said[-1]
    (tmp_path / "templates/a.j2").write_text('new {{ getv("/value") }}')
    shown = diff(applier.plan(host.resource, snapshot({"/app/value": SECRET}, 99)))
    assert "sensitive, content not shown" in shown
    audit = text(tmp_path / "state/audit.jsonl")
    assert '"files": {' in audit and "sensitive" in audit
    manifest = text(tmp_path / "state/resources/app/manifest.json")
    for place in (*said, caplog.text, shown, audit, manifest):
        assert SECRET not in place
    holders = [path for path in (tmp_path / "state").rglob("*") if path.is_file() and SECRET in text(path)]
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders), "backups are private"


def test_26_backups_of_secrets_can_be_off(tmp_path: Path) -> None:
    head = "[safety]\nsensitive_backups = false\n"
    host = Host(tmp_path, configure(tmp_path, head=head, template="sensitive = true"))
    host.apply(SECRET)
    assert host.apply("BAD") == ROLLED_BACK and host.text == f"{SECRET}\n", "while it is applied there is one"
    host.apply("other")
    assert not [path for path in (tmp_path / "state").rglob("*") if path.is_file() and SECRET in text(path)]


def test_27_an_apply_can_be_forced_and_a_reload_that_is_owed_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload = f'[reload]\ncmd = "echo >> {tmp_path}/reloads; test ! -e {tmp_path}/no"'
    config = several(tmp_path, {"app": reload})
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})
    with running(monkeypatch, config, store) as live:
        live.wait(state=State.APPLIED)
        answer = order(config.state_dir, "/apply", {"resource": "app"}, 10.0)
        assert answer == {"message": "unchanged at revision 2", "exit_status": 0}
        assert text(tmp_path / "reloads") == "\n"
        answer = order(config.state_dir, "/apply", {"resource": "app", "force": "1"}, 10.0)
        assert answer["exit_status"] == 0 and "applied at revision 2" in answer["message"]
        assert text(tmp_path / "reloads") == "\n\n", "reloaded although no file changed"
        (tmp_path / "no").touch()
        store.put({"/app/value": "two"})
        live.wait(state=State.ROLLED_BACK, reload_pending=True)
        (tmp_path / "no").unlink()
        live.wait(reload_pending=False)
        answer = order(config.state_dir, "/apply", {"resource": "app", "force": "1"}, 10.0)
        assert answer["exit_status"] == 0 and text(tmp_path / "app.conf") == "two\n", "what was held is tried"
        wrong = order(config.state_dir, "/apply", {"resource": "nothing"}, 10.0)
        assert "no resource 'nothing'" in wrong["error"]


def test_28_a_plan_is_the_apply_up_to_the_rename_and_checks(tmp_path: Path) -> None:
    host = Host(tmp_path, configure(tmp_path, '[check]\ncmd = "grep -q good {{src}}"'))
    host.apply("good 1")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "state/resources").rglob("*")}
    keys = snapshot({"/app/value": "good 2"}, 20)
    plan = host.applier.plan(host.resource, keys)
    host.applier.check(host.resource, plan, keys, str(tmp_path / "preview/stage"))
    assert "-good 1" in diff(plan) and "+good 2" in diff(plan)
    wrong = snapshot({"/app/value": "wrong"}, 21)
    with pytest.raises(CheckError):
        host.applier.check(
            host.resource, host.applier.plan(host.resource, wrong), wrong, str(tmp_path / "preview/stage")
        )
    assert host.text == "good 1\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "state/resources").rglob("*")} == before
    assert host.applier.run(host.resource, keys).changed == plan.changed


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down what it is asked, shows the state in ``active``, fails as it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "systemctl"
    show = f'test "$1" != show || {{ echo ActiveState=$(cat {tmp_path}/active 2>&1); exit 0; }}'
    fail = f"test ! -e {tmp_path}/says || {{ cat {tmp_path}/says; exit 1; }}"
    script.write_text(f'#!/bin/sh\n{show}\necho "$@" >> {tmp_path}/asked\n{fail}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_29_each_template_says_what_its_change_needs(tmp_path: Path, systemctl: Path) -> None:
    files = "".join(
        f'[[template]]\nsrc = "{name}.j2"\ndest = "{tmp_path}/{name}.conf"\n{action}\n'
        for name, action in (("a", ""), ("b", 'action = "restart"'), ("c", 'action = "none"'))
    )
    resource = f'[resource]\nkeys = ["/"]\n{files}[reload]\nunit = "web.service"\n'
    templates = {f"{name}.j2": f'{{{{ getv("/{name}") }}}}' for name in "abc"}
    config = load_config(tmp_path, {"web": resource}, templates)
    applier, _ = make_applier(config, Service())
    values = {"/a": "1", "/b": "1", "/c": "1"}
    applier.run(config.resources[0], snapshot(values, 10))
    for revision, name in enumerate("abc", 11):
        values = {**values, f"/{name}": str(revision)}
        applier.run(config.resources[0], snapshot(values, revision))
    assert systemctl.read_text().splitlines() == [
        "try-restart -- web.service",
        "try-reload-or-restart -- web.service",
        "try-restart -- web.service",
    ], "the strongest of the first apply, then what each needs; nothing for c"


def test_30_a_unit_that_is_down_stays_down_and_a_rate_limit_is_no_failure(
    tmp_path: Path, systemctl: Path
) -> None:
    host = Host(tmp_path, configure(tmp_path, '[reload]\nunit = "web.service"'))
    host.apply("one")
    assert systemctl.read_text() == "try-reload-or-restart -- web.service\n", (
        "try-: not started if not running"
    )
    (tmp_path / "says").write_text(
        "Job for web.service failed because start of the service was attempted too often.\n"
    )
    with pytest.raises(ReloadError, match="attempted too often"):
        host.apply("two")
    manifest = host.executor.manifest(host.resource)
    assert host.text == "two\n" and manifest.reload_pending and manifest.phase is Phase.RELOADING
    (tmp_path / "says").unlink()
    assert host.again("two") == RESUMED
    (tmp_path / "says").write_text("Job for web.service failed.\n")
    assert host.apply("three") == ROLLED_BACK, "any other failure is one"


@pytest.mark.parametrize("action", ["restart", "reload", "signal:HUP"])
def test_30_a_unit_that_bad_files_have_broken_runs_again_with_the_old_ones(
    tmp_path: Path, systemctl: Path, action: str
) -> None:
    state = tmp_path / "active"
    state.write_text("active")
    health = f'[health]\nretries = 0\ncmd = "! grep -q BROKEN {tmp_path}/a.conf"'
    config = configure(tmp_path, f'[reload]\nunit = "web.service"\naction = "{action}"')
    path = tmp_path / "conf.d" / "app.toml"
    path.write_text(path.read_text().replace("[health]\nretries = 0", health))
    host = Host(tmp_path, load(config.source))
    host.apply("one")
    systemctl.write_text("")
    assert host.apply("BROKEN") == ROLLED_BACK and host.text == "one\n"
    usual = systemctl.read_text().splitlines()
    assert len(usual) == 2 and usual[0] == usual[1], "it runs: the usual action, there and back"

    systemctl.write_text("")
    state.write_text("failed")
    assert host.apply("BROKEN too") == ROLLED_BACK and host.text == "one\n"
    again = ["reset-failed -- web.service", "restart -- web.service"]
    assert systemctl.read_text().splitlines() == [usual[0], *again]

    systemctl.write_text("")
    assert host.apply("two") == APPLIED
    assert systemctl.read_text().splitlines() == usual[:1], "new files start nothing that was down"
    assert not host.executor.manifest(host.resource).reload_pending


def test_31_commands_get_names_and_context(tmp_path: Path) -> None:
    dump = f"env > {tmp_path}/env; echo {{{{dest}}}} {{{{ .src }}}} >> {tmp_path}/env"
    template = f'owner = "{getpass.getuser()}"'
    host = Host(tmp_path, configure(tmp_path, f'[reload]\ncmd = "{dump}"', template=template))
    host.apply("one")
    host.apply("two")
    lines = (tmp_path / "env").read_text().splitlines()
    assert "AGENT_RESOURCE=app" in lines and f"AGENT_DEST={tmp_path}/a.conf" in lines
    assert "AGENT_REVISION=12" in lines
    (changed,) = [line.partition("=")[2] for line in lines if line.startswith("AGENT_CHANGED_KEYS=")]
    assert json.loads(changed) == ["/app/value"]
    assert lines[-1] == f"{tmp_path}/a.conf {tmp_path}/a.conf"


def test_drift_is_reported_repaired_or_ignored(tmp_path: Path) -> None:
    for policy, kind, left in (
        ("report", "drifted", "edited"),
        ("ignore", UNCHANGED, "edited"),
        ("repair", APPLIED, "one\n"),
    ):
        folder = tmp_path / policy
        folder.mkdir()
        resource = one_file(folder, "/value").replace("keys =", f'drift = "{policy}"\nkeys =')
        config = load_config(folder, {"app": resource}, {"a.j2": '{{ getv("/value") }}\n'})
        host = Host(folder, config)
        host.apply("one")
        (folder / "a.conf").write_text("edited")
        outcome = host.applier.run(host.resource, snapshot({"/app/value": "one"}, host.revision))
        assert (outcome.kind, text(folder / "a.conf")) == (kind, left)
        assert bool(outcome.drift) == (policy == "report")
        assert host.apply("two") == APPLIED and host.text == "two\n", "a changed key writes in any case"


def test_a_failure_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    host = Host(tmp_path, configure(tmp_path, '[check]\ncmd = "false"'))
    caplog.set_level(logging.INFO)
    for _ in range(5):
        with pytest.raises(CheckError):
            host.again("one")
    assert caplog.text.count("exit status 1") == 1
    with pytest.raises(RenderError):
        host.applier.run(host.resource, snapshot({}, 50))
    assert caplog.text.count("does not exist") == 1, "another failure is news"


def test_history_and_going_back_by_hand(tmp_path: Path) -> None:
    host = Host(tmp_path, configure(tmp_path))
    for value in ("one", "two", "three"):
        host.apply(value)
    kept = host.applier.history(host.resource)
    assert [(each.number, each.content.revision) for each in kept] == [(1, 0), (2, 11), (3, 12)]
    assert host.applier.roll_back(host.resource, 2).kind == APPLIED
    assert host.text == "one\n" and host.service.running == {f"{tmp_path}/a.conf": b"one\n"}
    assert host.again("three") == "held", "the keys as they are stay held"
    assert host.apply("four") == APPLIED, "until one changes"
    assert host.applier.roll_back(host.resource, None).kind == APPLIED
    assert host.text == "one\n"
    forced = host.applier.run(host.resource, snapshot({"/app/value": "four"}, host.revision), force=True)
    assert forced.kind == APPLIED and host.text == "four\n"
    with pytest.raises(AgentError, match="there is no generation 77; kept: "):
        host.applier.roll_back(host.resource, 77)
