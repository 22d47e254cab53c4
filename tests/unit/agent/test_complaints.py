"""What users of confd, consul-template, Vault Agent and remco complain about, one test for each: 1 to 16.

The numbers and titles are those of docs/agent.md, "What others are blamed for". (17 to 31 are in
test_complaints_operation.py.)
"""

from __future__ import annotations

import itertools
import os
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from etcd_agent.errors import CheckError, GuardError, RenderError
from etcd_agent.files import FileSystem, temporary_path
from etcd_agent.hookspecs import hookimpl
from etcd_agent.values import (
    APPLIED,
    ROLLED_BACK,
    WAITING,
    AgentConfig,
    Applied,
    Outcome,
    Problem,
    Resource,
    Rollout,
    State,
)
from etcd_client import Compacted
from tests.unit.agent.live import MemoryStore, running, wait_for
from tests.unit.agent.support import Host, Service, configure, load_config, make_applier, snapshot

FAST = '[backend.retry]\nbackoff = "20ms"\nmax_backoff = "100ms"\n'


def several(folder: Path, extra: dict[str, str] | None = None, head: str = FAST) -> AgentConfig:
    """Resources "app" and "other", a file each; ``extra`` lines by resource."""
    resources = {
        name: f"""
[resource]
prefix = "/{name}"
keys = ["/value"]
[[template]]
src = "{name}.j2"
dest = "{folder}/{name}.conf"
[health]
retries = 0
{(extra or {}).get(name, "")}
"""
        for name in ("app", "other")
    }
    templates = {f"{name}.j2": '{{ getv("/value") }}\n' for name in resources}
    return load_config(folder, resources, templates, head)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_01_a_failing_reload_does_not_end_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reload = f'[reload]\ncmd = "test ! -e {tmp_path}/broken"\n'
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})
    with running(monkeypatch, several(tmp_path, {"app": reload}), store) as live:
        live.wait(state=State.APPLIED)
        (tmp_path / "broken").touch()
        store.put({"/app/value": "two"})
        live.wait(state=State.ROLLED_BACK, reload_pending=True)
        store.put({"/other/value": "2"})
        wait_for(lambda: text(tmp_path / "other.conf") == "2\n")
        (tmp_path / "broken").unlink()
        live.wait(reload_pending=False)
        assert live.thread.is_alive()
    assert live.result == 0


def test_02_one_bad_template_stops_no_other_and_reruns_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = several(tmp_path, {"other": f'[reload]\ncmd = "echo >> {tmp_path}/reloads"'})
    (tmp_path / "templates/app.j2").write_text("{{ nobody }}")
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})
    with running(monkeypatch, config, store) as live:
        live.wait(state=State.FAILED, error=lambda error: "'nobody' is undefined" in error)
        live.wait("other", state=State.APPLIED)
        passes = live.status().passes
        wait_for(lambda: live.status().passes >= passes + 3, "the bad one is tried again and again")
    assert text(tmp_path / "reloads") == "\n"


def test_03_a_failing_command_does_not_ask_the_store_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = several(tmp_path, {"app": '[check]\ncmd = "false"'})
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})
    with running(monkeypatch, config, store) as live:
        live.wait(state=State.FAILED)
        reads, passes, began_s = store.reads, live.status().passes, time.monotonic()
        wait_for(lambda: live.status().passes >= passes + 5)
        assert store.reads == reads
        assert time.monotonic() - began_s >= 5 * 0.5 * 0.02, "with backoff"


def test_04_a_command_that_takes_too_long_does_not_disable_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = '[reload]\ncmd = "grep -q slow {{dest}} && sleep 60; true"\ntimeout = "200ms"'
    store = MemoryStore()
    store.put({"/app/value": "slow", "/other/value": "1"})
    with running(monkeypatch, several(tmp_path, {"app": slow}), store) as live:
        live.wait(state=State.ROLLED_BACK, error=lambda error: "longer than 0.2 s" in error)
        store.put({"/app/value": "quick"})
        live.wait(state=State.APPLIED)
        assert text(tmp_path / "app.conf") == "quick\n"


def test_05_no_watch_event_is_lost_and_none_is_acknowledged_before_it_is_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "refuse"
    config = several(tmp_path, {"app": f'[check]\ncmd = "test ! -e {flag}"'})
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})
    with running(monkeypatch, config, store) as live:
        live.wait(state=State.APPLIED)
        wait_for(lambda: "/app/value" in store.watches)
        broken = store.watches.pop("/app/value")
        store.put({"/app/value": "two"})  # nobody watches
        store.log.clear()
        broken.items.put(Compacted("etcdserver: mvcc: required revision has been compacted"))
        wait_for(
            lambda: text(tmp_path / "app.conf") == "two\n", "what happened in the gap is found by a list"
        )
        flag.touch()
        wait_for(lambda: "/app/value" in store.watches)
        store.put({"/app/value": "three"})
        status = live.wait(state=State.FAILED)
        assert status.revision == 3, "the revision moves only when it is applied"
        flag.unlink()
        wait_for(lambda: text(tmp_path / "app.conf") == "three\n", "tried again without another change")


def can_mount() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to make a mount namespace")
def test_06_a_check_sees_an_included_file_in_its_place(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    main = etc / "main.conf"
    main.write_text(f"include {etc}/a.conf\n")
    check = f'[check]\nmode = "overlay"\ncmd = "grep -q good $(sed -n s/include.//p {main})"'
    resource = one_file(etc, "/value", check)
    config = load_config(tmp_path, {"app": resource}, {"a.j2": '{{ getv("/value") }}\n'})
    host = Host(etc, config)
    assert host.apply("good") == APPLIED
    with pytest.raises(CheckError):
        host.apply("wrong")
    assert host.text == "good\n"


def test_07_a_file_is_validated_before_it_is_overwritten(tmp_path: Path) -> None:
    host = Host(tmp_path, configure(tmp_path, '[check]\ncmd = "grep -q good {{src}}"'))
    host.apply("good")
    inode = (tmp_path / "a.conf").stat().st_ino
    with pytest.raises(CheckError):
        host.apply("wrong")
    assert (tmp_path / "a.conf").stat().st_ino == inode and host.text == "good\n"


def test_08_no_bad_file_is_left_for_the_next_restart(tmp_path: Path) -> None:
    """All files of the resource come back, those that were new go, and the service runs with the old ones."""
    resource = f"""
[resource]
prefix = "/app"
keys = ["/"]
[[template]]
src = "main.j2"
dest = "{tmp_path}/main.conf"
[[template]]
src = "each.j2"
for_each = "/parts/*"
dest = "{tmp_path}/part-{{{{ item.name }}}}.conf"
prune = true
[health]
retries = 0
"""
    templates = {"main.j2": '{{ getv("/main") }}', "each.j2": "{{ item.value }}"}
    config = load_config(tmp_path, {"app": resource}, templates)
    service = Service()
    applier, _ = make_applier(config, service)
    applier.run(config.resources[0], snapshot({"/app/main": "1", "/app/parts/a": "a"}, 10))
    outcome = applier.run(config.resources[0], snapshot({"/app/main": "BAD", "/app/parts/b": "b"}, 11))
    assert outcome.kind == ROLLED_BACK
    files = {path.name: path.read_text() for path in tmp_path.glob("*.conf")}
    assert files == {"main.conf": "1", "part-a.conf": "a"}
    assert {Path(path).name for path in service.running} == set(files)


def test_09_a_reload_that_exits_0_and_does_not_take_is_noticed(tmp_path: Path) -> None:
    health = f'[health]\ncmd = "! grep -q ignored {tmp_path}/a.conf"\nretries = 1\ninterval = "10ms"'
    templates = {"a.j2": '{{ getv("/value") }}\n'}
    resource = one_file(tmp_path, "/value", f'[reload]\ncmd = "true"\n{health}')
    host = Host(tmp_path, load_config(tmp_path, {"app": resource}, templates))
    assert host.apply("taken") == APPLIED
    assert host.apply("ignored") == ROLLED_BACK
    assert host.text == "taken\n"


def one_file(folder: Path, key: str, extra: str = "") -> str:
    """A resource file for one file of the keys below ``/app`` + ``key``."""
    head = f'[resource]\nprefix = "/app"\nkeys = ["{key}"]\n'
    return f'{head}[[template]]\nsrc = "a.j2"\ndest = "{folder}/a.conf"\n{extra}\n'


def test_10_empty_or_partial_data_is_not_taken_for_the_truth(tmp_path: Path) -> None:
    resource = one_file(tmp_path, "/up")
    template = '{% for pair in gets("/up/*") %}{{ pair.value }}\n{% endfor %}'
    config = load_config(tmp_path, {"app": resource}, {"a.j2": template})
    applier, _ = make_applier(config, Service())
    (only,) = config.resources
    full = {f"/app/up/{number}": f"10.0.0.{number}" for number in range(8)}
    applier.run(only, snapshot(full, 10))
    before = text(tmp_path / "a.conf")
    with pytest.raises(GuardError, match=r"8 of 8 keys vanished at once .*apply --force app"):
        applier.run(only, snapshot({}, 11))
    part = dict(itertools.islice(full.items(), 3))
    with pytest.raises(GuardError, match="5 of 8 keys vanished"):
        applier.run(only, snapshot(part, 12))
    with pytest.raises(GuardError, match="it has lost writes or is an old copy"):
        applier.run(only, snapshot(full, 9))
    with pytest.raises(GuardError, match="another cluster answers"):
        applier.run(only, snapshot(full, 20, cluster_id=8))
    assert text(tmp_path / "a.conf") == before
    less = dict(itertools.islice(full.items(), 5))
    assert applier.run(only, snapshot(less, 13)).kind == APPLIED, "a few may go"
    assert applier.run(only, snapshot({}, 14), force=True).kind == APPLIED, "and all, if a person says so"


def test_11_a_storm_of_changes_is_no_storm_of_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = f'[reload]\ncmd = "echo >> {tmp_path}/reloads"\nmin_interval = "400ms"'
    store = MemoryStore()
    store.put({"/app/value": "0", "/other/value": "1"})
    with running(monkeypatch, several(tmp_path, {"app": extra}), store) as live:
        live.wait(state=State.APPLIED)
        for number in range(1, 101):
            store.put({"/app/value": str(number)})
            time.sleep(0.002)
        wait_for(lambda: text(tmp_path / "app.conf") == "100\n", "files do not wait for the reload")
        live.wait(state=State.APPLIED, revision=store.revision, reload_pending=False)
        assert len(text(tmp_path / "reloads")) <= 4, "the first, and one each 400 ms"


def test_12_wait_does_not_delay_the_first_start_and_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    store.put({"/app/value": "one", "/other/value": "1"})
    config = several(tmp_path, head=FAST + '[wait]\nmin = "600ms"\nmax = "5s"\n')
    began_s = time.monotonic()
    with running(monkeypatch, config, store) as live:
        live.wait(state=State.APPLIED)
        assert time.monotonic() - began_s < 0.6
        store.put({"/app/value": "two"})
        status = live.wait(waiting="settling")
        assert 0 < status.due_at - time.time() <= 0.6
        assert text(tmp_path / "app.conf") == "one\n"
        live.wait(state=State.APPLIED, waiting="", revision=store.revision)
        assert text(tmp_path / "app.conf") == "two\n"


def test_13_several_files_one_check_one_reload(tmp_path: Path) -> None:
    files = "".join(
        f'[[template]]\nsrc = "a.j2"\ndest = "{tmp_path}/file-{number}"\n' for number in range(20)
    )
    resource = f'[resource]\nkeys = ["/v"]\n{files}[reload]\ncmd = "echo >> {tmp_path}/reloads"\n'
    config = load_config(tmp_path, {"app": resource}, {"a.j2": '{{ getv("/v") }}'})
    applier, _ = make_applier(config, Service())
    for revision in (10, 11):
        outcome = applier.run(config.resources[0], snapshot({"/v": str(revision)}, revision))
        assert len(outcome.changed) == 20
    assert text(tmp_path / "reloads") == "\n\n"


def test_14_one_key_one_file_and_files_of_deleted_keys_go(tmp_path: Path) -> None:
    resource = f"""
[resource]
keys = ["/sites"]
[[template]]
src = "a.j2"
for_each = "/sites/*"
dest = "{tmp_path}/site-{{{{ item.name }}}}.conf"
prune = true
"""
    config = load_config(tmp_path, {"app": resource}, {"a.j2": "{{ item.value }}"})
    applier, _ = make_applier(config, Service())
    (tmp_path / "site-mine.conf").write_text("by hand")
    applier.run(config.resources[0], snapshot({"/sites/a": "1", "/sites/b": "2"}, 10))
    applier.run(config.resources[0], snapshot({"/sites/b": "2", "/sites/c": "3"}, 11))
    assert {path.name for path in tmp_path.glob("site-*")} == {
        "site-b.conf",
        "site-c.conf",
        "site-mine.conf",
    }


class Watching(FileSystem):
    """Notes how wide the permissions of temporary files are at every step."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def step(self, what: str, path: str) -> None:
        if os.path.exists(path) and path.endswith(".etcd-py-agent") and what in ("write", "chown", "chmod"):
            self.seen.add(stat.S_IMODE(os.stat(path).st_mode))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_15_owner_and_mode_are_right_from_the_first_moment_and_stay(tmp_path: Path) -> None:
    files = Watching()
    host = Host(
        tmp_path, configure(tmp_path, template='owner = "nobody"\ngroup = "daemon"\nmode = "0640"'), files
    )
    host.apply("secret")
    status = (tmp_path / "a.conf").stat()
    assert (Path(tmp_path / "a.conf").owner(), Path(tmp_path / "a.conf").group()) == ("nobody", "daemon")
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert files.seen == {0o600}, "nobody else could read it before it was his"
    assert not Path(temporary_path(f"{tmp_path}/a.conf")).exists()
    host.apply("again")
    assert (tmp_path / "a.conf").owner() == "nobody"


class OneAtATime:
    """A gate with one slot for all."""

    def __init__(self) -> None:
        self.holder = "another host"
        self.log: list[str] = []

    def acquire(self, resource: Resource, revision: int) -> str | None:
        self.log.append(f"acquire {revision}")
        if self.holder not in ("", resource.name):
            return "slot: 1 of 1 taken"
        self.holder = resource.name
        return None

    def release(self, resource: Resource, outcome: object) -> None:
        self.log.append("release")
        if self.holder == resource.name:
            self.holder = ""

    def close(self) -> None: ...


def test_16_a_host_waits_for_its_turn_with_its_old_files(tmp_path: Path) -> None:
    """The gate of a real fleet is tested with 50 agents; here is what a pass makes of its answer."""
    gate = OneAtATime()
    config = configure(tmp_path)
    only = replace(config.resources[0], rollout=Rollout(group="web", bake_s=1.0))
    service = Service()
    config = replace(config, resources=(only,))
    applier, executor = make_applier(config, service)
    executor._gate = applier._gate = gate
    waited: list[float] = []
    executor._sleep = waited.append
    first = applier.run(only, snapshot({"/app/value": "one"}, 10))
    assert (first.kind, first.detail) == (WAITING, "slot: 1 of 1 taken")
    assert not (tmp_path / "a.conf").exists() and service.reloads == 0
    gate.holder = ""
    assert applier.run(only, snapshot({"/app/value": "two"}, 11)).kind == APPLIED, "the newest keys"
    assert gate.log == ["acquire 10", "acquire 11", "release"]
    assert sum(waited) == 1.0, "the slot is kept while the change bakes"
    assert gate.holder == ""


def test_16_what_turns_bad_while_it_bakes_is_rolled_back(tmp_path: Path) -> None:
    class TurnsBad:
        checks = 0

        @hookimpl
        def agent_reload(self, applied: Applied) -> str:
            return "reloaded"

        @hookimpl
        def agent_health(self, applied: Applied) -> Problem | None:
            self.checks += 1
            bad = "two" in text(tmp_path / "a.conf") and self.checks > 3
            return Problem("turned bad") if bad else None

    config = configure(tmp_path)
    only = replace(config.resources[0], rollout=Rollout(group="web", bake_s=5.0))
    config = replace(config, resources=(only,))
    service = TurnsBad()
    applier, executor = make_applier(config, service)
    gate = OneAtATime()
    gate.holder = ""
    executor._gate = applier._gate = gate
    assert applier.run(only, snapshot({"/app/value": "one"}, 10)).kind == APPLIED
    service.checks = 0
    outcome: Outcome = applier.run(only, snapshot({"/app/value": "two"}, 11))
    assert (outcome.kind, text(tmp_path / "a.conf")) == (ROLLED_BACK, "one\n")
    assert gate.log[-1] == "release"


def test_21_a_missing_key_stops_nothing_that_can_do_without(tmp_path: Path) -> None:
    resource = one_file(tmp_path, "/")
    template = '{{ getv("/name", "default") }} {{ gets("/up/*") }} {{ getv("/name") if exists("/name") }}'
    config = load_config(tmp_path, {"app": resource}, {"a.j2": template})
    applier, _ = make_applier(config, Service())
    applier.run(config.resources[0], snapshot({}, 10))
    assert text(tmp_path / "a.conf") == "default [] "
    (tmp_path / "templates/a.j2").write_text('{{ getv("/name") }}')
    with pytest.raises(RenderError, match="key /app/name does not exist"):
        make_applier(config, Service())[0].run(config.resources[0], snapshot({}, 11))
