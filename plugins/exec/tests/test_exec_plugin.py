"""Programs in sh and Python at every hook, and every way in which a program can fail."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_agent.cli_support import applier_of
from etcd_agent.errors import AgentError, CheckError, ConfigError, HealthError, ReloadError, RenderError
from etcd_agent.plugins import PluginSet
from etcd_agent.values import Applied, Event, PluginsConfig, Resource, Snapshot, Staged, StagedFile
from etcd_agent.workers import Workers
from tests.plugin_support import (
    SECTIONS,
    Readme,
    functions_of,
    installed_plugins,
    plugin_module,
    resource_of,
    snapshot_of,
    view_of,
)
from tests.unit.agent.support import load_config

EXAMPLES = Path(__file__).parents[1] / "examples"
APPLIED = Applied(7, ("/x",), ("/x",))
ALL = ["check_settings", "function", "validate", "reload", "health", "event"]


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def program(text: str, *hooks: str, **more: Any) -> Resource:
    """A resource whose program is a line of shell."""
    return resource_of("exec", {"command": ["/bin/sh", "-c", text], "hooks": list(hooks or ALL), **more})


def hook(name: str, resource: Resource, **more: Any) -> Any:
    return getattr(plugin_module("exec"), f"agent_{name}")(resource=resource, **more)


def test_the_shell_example(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x" * 100)
    staged = Staged(str(tmp_path), (StagedFile("/etc/motd", str(file), True),))

    def validate(limit: int) -> Any:
        settings = {
            "command": [str(EXAMPLES / "limits.sh")],
            "hooks": ["validate"],
            "settings": {"max_bytes": limit},
        }
        return hook("validate", resource_of("exec", settings), staged=staged, snapshot=Snapshot(1, 1, {}))

    assert validate(100) is None
    assert str(validate(99)) == f"{file}: the file is too long"


def test_the_python_example_through_a_whole_apply(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "service.py", tmp_path / "service.py")
    config = load_config(
        tmp_path,
        {
            "app": f"""
[resource]
keys = ["/n"]
[[template]]
src = "app.j2"
dest = "{tmp_path}/app.conf"
[health]
retries = 0
[plugins.exec]
command = ["{sys.executable}", "{tmp_path}/service.py"]
hooks = {ALL}
[plugins.exec.settings]
run = "{tmp_path}/daemon"
"""
        },
        {"app.j2": 'total {{ exec("total") }}\n{{ getv("/n/word", "") }}\n'},
    )
    plugin = plugin_module("exec")
    (resource,) = config.resources
    assert plugin.agent_check_settings(resource) is None
    applier = applier_of(config)
    run, dest = tmp_path / "daemon", tmp_path / "app.conf"

    def apply(revision: int, **values: str) -> str:
        snapshot = snapshot_of({f"/n/{name}": value for name, value in values.items()})
        try:
            return applier.run(resource, dataclasses.replace(snapshot, revision=revision)).kind
        except AgentError as error:
            return str(error)

    assert apply(1, a="2", b="3") == "applied"
    assert run.read_text() == dest.read_text() == "total 5\n\n"
    failed = apply(2, a="2", b="word")
    assert ": exit status 1: ValueError: invalid literal" in failed, failed
    assert run.read_text() == "total 5\n\n"


def test_the_python_example_refuses_fails_and_is_sick(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "file"
    settings = {
        "command": [sys.executable, str(EXAMPLES / "service.py")],
        "hooks": ALL,
        "settings": {"run": str(run)},
    }
    resource = resource_of("exec", settings)
    assert (
        str(hook("check_settings", resource_of("exec", {**settings, "settings": {}})))
        == "settings.run is missing"
    )
    staged = Staged(str(tmp_path), (StagedFile("/etc/f", str(file), True),))
    applied = Applied(7, (str(file),), ())
    file.write_text("fine")
    assert hook("validate", resource, staged=staged, snapshot=Snapshot(1, 1, {})) is None
    assert hook("reload", resource, applied=applied) == "the daemon reads revision 7"
    assert hook("health", resource, applied=applied) is None
    file.write_text("FORBIDDEN UNLOADABLE")
    refused = hook("validate", resource, staged=staged, snapshot=Snapshot(1, 1, {}))
    assert str(refused) == "/etc/f: it holds what is forbidden"
    with pytest.raises(ReloadError, match="the daemon does not take it"):
        hook("reload", resource, applied=applied)
    run.write_text("SICK")
    assert str(hook("health", resource, applied=applied)) == "the daemon is sick"
    with pytest.raises(RenderError, match="there is no function 'mean'"):
        functions_of("exec", resource)["exec"](view_of(resource, {"/a": "1"}), "mean")
    assert hook("check_settings", resource) is None
    plugin_module("exec").agent_event(Event("applied", "res", 7))
    plugin_module("exec").agent_event(Event("applied", "another", 7))
    assert (tmp_path / "run.events").read_text() == "applied\n"


def test_what_a_program_is_given(tmp_path: Path) -> None:
    out = tmp_path / "request"
    resource = program(f"cat > {out}", settings={"x": [1]})
    staged = Staged("/s", (StagedFile("/d", "/p", True),), ("/gone",))
    assert hook("validate", resource, staged=staged, snapshot=snapshot_of({"/k": "v"})) is None
    request = json.loads(out.read_text())
    assert request == {
        "version": 1, "hook": "validate", "settings": {"x": [1]},
        "resource": {"name": "res", "prefix": "", "keys": [""], "files": []},
        "staged": {"files": [{"dest": "/d", "path": "/p", "changed": True}], "removed": ["/gone"]},
        "snapshot": {"revision": 1, "keys": {"/k": "v"}},
    }  # fmt: skip
    assert hook("reload", resource, applied=APPLIED) is None
    assert json.loads(out.read_text())["applied"] == {
        "revision": 7, "files": ["/x"], "changed": ["/x"], "rollback": False,
    }  # fmt: skip
    arguments = {"function": "f", "arguments": [1, "b"], "keys": {"/k": "v"}}
    with pytest.raises(RenderError, match="its answer has no result"):
        functions_of("exec", resource)["exec"](view_of(resource, {"/k": "v"}), "f", 1, "b")
    assert json.loads(out.read_text()).items() >= arguments.items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit 3", "sh: exit status 3"),
        ("echo no >&2; echo why >&2; exit 1", "sh: exit status 1: why"),
        ("kill -9 $$", "sh: exit status -9"),
        ("echo hello", "its answer is not JSON"),
        ("echo '[]'", "its answer is not a JSON object"),
        ("""echo '{"version": 2}'""", "answers in version 2; this agent speaks 1"),
        ("""echo '{"problm": "x"}'""", "has 'problm'; known: problem"),
        ("""echo '{"problem": 5}'""", "expected null, a text, or an object"),
        ("""echo '{"problem": {"message": "x", "at": 1}}'""", "expected null, a text, or an object"),
    ],
)
def test_a_program_that_fails_fails_its_hook(text: str, message: str) -> None:
    resource = program(text)
    with pytest.raises(HealthError, match=re.escape(message)):
        hook("health", resource, applied=APPLIED)
    with pytest.raises(CheckError, match=re.escape(message)):
        hook("validate", resource, staged=Staged("/", ()), snapshot=Snapshot(1, 1, {}))


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    resource = program(f"(sleep 3; touch {tmp_path}/late) & sleep 60", timeout="200ms")
    started_s = time.monotonic()
    with pytest.raises(ReloadError, match=r"ran longer than 0.2 s and was killed"):
        hook("reload", resource, applied=APPLIED)
    assert time.monotonic() - started_s < 3
    # A child that keeps the output open does not hold up a program that has ended.
    kept = program("""sleep 5 & echo '{"done": "ok"}'""", timeout="3s")
    assert hook("reload", kept, applied=APPLIED) == "ok"
    assert not (tmp_path / "late").exists()


def test_a_program_that_takes_long_holds_up_no_other_pass(tmp_path: Path) -> None:
    """Even where one pass may work at a time: while a program runs, another pass does."""
    gate, ended = tmp_path / "gate", threading.Event()
    resource = program(f"until test -e {gate}; do sleep 0.02; done", timeout="20s")
    workers = Workers(working=1)

    def slow() -> None:
        hook("health", resource, applied=APPLIED)
        ended.set()

    workers.submit(slow)
    workers.submit(gate.touch)
    assert ended.wait(15)


def test_a_program_takes_part_only_where_it_is_listed() -> None:
    resource = program("exit 1", "event")
    assert hook("health", resource, applied=APPLIED) is None
    assert hook("reload", resource, applied=APPLIED) is None
    assert functions_of("exec", resource) == {}
    assert hook("health", resource_of("nginx"), applied=APPLIED) is None
    with pytest.raises(ReloadError, match="no"):
        hook("reload", program("""echo '{"error": "no"}'"""), applied=APPLIED)


def test_settings() -> None:
    settings_of = plugin_module("exec").settings_of
    good = {"command": "/bin/true", "hooks": ["event"]}
    assert settings_of(resource_of("exec", good)).command == ("/bin/true",)
    for wrong, message in (
        ({"command": ["true"]}, "absolute path"),
        ({"hooks": ["vaildate"]}, "did you mean 'validate'"),
        ({"timeout": 0}, "more than 0"),
        ({"seting": {}}, "did you mean 'settings'"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings_of(resource_of("exec", {**good, **wrong}))
    with pytest.raises(ConfigError, match="command is missing"):
        settings_of(resource_of("exec", {"hooks": []}))
    refused = hook("check_settings", resource_of("exec", {**good, "command": "/no/program"}))
    assert str(refused).startswith("/no/program: there is no such program")


def test_it_loads_as_a_plugin() -> None:
    plugins = PluginSet(PluginsConfig("/nowhere"), [("program", plugin_module("exec"))])
    assert [record.state for record in plugins.records if record.name == "program"] == ["loaded"]


def test_the_manual_page() -> None:
    readme = Readme("exec")
    assert readme.sections == SECTIONS
    fields = {field.name.removesuffix("_s") for field in dataclasses.fields(plugin_module("exec").Settings)}
    assert readme.settings == fields
    protocol = plugin_module("exec.protocol")
    assert re.findall(r"^\| `(\w+)` \|", readme.text.partition("## Settings")[0], re.MULTILINE) == list(
        protocol.HOOKS
    )
    (block,) = readme.blocks("json")
    resource = Resource("web", "x", "/production/web", ("/limits",), (), plugins={"exec": {}})
    assert (
        json.loads(protocol.request("validate", resource, {"max_bytes": 4096})).keys()
        == json.loads(block).keys()
    )
