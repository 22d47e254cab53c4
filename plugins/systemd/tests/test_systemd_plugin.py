"""Drop-ins from keys, the real systemd-analyze on them, and a unit in every state by a feigned systemctl."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_agent import ReloadError, RenderError
from etcd_agent.errors import ConfigError
from etcd_agent.values import Applied, Health, Resource, Staged, StagedFile, Template
from tests.plugin_support import (
    SECTIONS,
    Readme,
    installed_plugins,
    plugin_module,
    rendered,
    resource_of,
)
from tests.unit.agent.support import write_tree

WELL = {
    "LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success",
    "NRestarts": "0", "MainPID": "42", "NeedDaemonReload": "no", "DropInPaths": "/d/app.service.d/50.conf",
}  # fmt: skip
SYSTEMCTL = """#!/bin/sh
echo "$*" >> {folder}/log
case $* in
*show*) cd {folder}; if [ -e second ] && [ -e looked ]; then cat second; else cat first; fi; touch looked ;;
*) test ! -e {folder}/fail || {{ echo "Failed to connect to bus" >&2; exit 1; }} ;;
esac
"""


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def test_a_drop_in() -> None:
    resource = resource_of("systemd", {"unit": "app.service"})
    keys = {
        "/Service/Environment": '["A=1", "B=two words"]',
        "/Service/ExecStart": '["", "/bin/app"]',
        "/Unit/Description": "app",
        "/Socket/ListenStream": "[::1]:80",
    }
    assert rendered("systemd", resource, keys, "drop-in.conf.j2").splitlines()[1:] == [
        "", "[Service]", "Environment=A=1", "Environment=B=two words", "ExecStart=", "ExecStart=/bin/app",
        "", "[Socket]", "ListenStream=[::1]:80",
        "", "[Unit]", "Description=app",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("/Servise/Environment", "A=1", "expected the name of a section"),
        ("/Service/environment", "A=1", "expected the name of a directive"),
        ("/Service/Environment", "A=1\nExecStart=/bin/evil", "expected one line"),
        ("/Service/Environment", '["A=1", "x\\n[Unit]"]', "expected one line"),
        ("/Service/Environment", "A=1 \\", "backslash at its end"),
        ("/Service/Environment", " A=1", "expected one line without white space"),
        ("/Service/Environment/A", "1", "expected one value here"),
        ("/Service", "x", "expected one value here"),
    ],
)
def test_wrong_keys_and_values(key: str, value: str, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        rendered("systemd", resource_of("systemd", {"unit": "app.service"}), {key: value}, "drop-in.conf.j2")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_real_systemd_analyze_judges_staged_drop_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """basic.target is a unit that every systemd has; its drop-ins are those of the stage alone."""
    check = plugin_module("systemd.check")
    dest = "/etc/systemd/system/basic.target.d/50-test.conf"
    stage = tmp_path / "stage"
    stage.mkdir()

    def verify(text: str, path: str = dest, removed: tuple[str, ...] = ()) -> str:
        (stage / "file").write_text(text)
        staged = Staged(str(stage), (StagedFile(path, str(stage / "file"), True),), removed)
        return str(check.verify("systemd-analyze", "basic.target", staged, 20.0))

    assert verify("[Unit]\nDocumentation=https://example.com\n") == "None"
    unknown = verify("[Unit]\nNoSuchThing=1\n", removed=("/etc/systemd/system/basic.target.d/gone.conf",))
    assert unknown.startswith(f"systemd-analyze verify: {dest}:2: Unknown key")
    assert f"{dest}:2: " in verify("[Unit]\nJobTimeoutSec=soon\n")
    assert f"{dest}:1: " in verify("Description=no section\n")
    assert verify("anything", "/etc/app.conf") == "None", "a file of another kind is not systemd's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage"]
    assert "cannot be started" in str(check.verify("/no/analyze", "basic.target", Staged(
        str(stage), (StagedFile(dest, str(stage / "file"), True),)), 5.0))  # fmt: skip


@dataclasses.dataclass
class Unit:
    """app.service as a systemctl made of files tells it."""

    folder: Path
    resource: Resource

    def shows(self, then: dict[str, str] | None = None, **first: str) -> None:
        for name, values in (("first", {**WELL, **first}), ("second", then)):
            (self.folder / name).unlink(missing_ok=True)
            if values is not None:
                values = {**WELL, **first, **values}
                (self.folder / name).write_text("".join(f"{key}={value}\n" for key, value in values.items()))
        (self.folder / "looked").unlink(missing_ok=True)

    def health(self, *files: str) -> str:
        return str(
            plugin_module("systemd").agent_health(resource=self.resource, applied=Applied(1, files, files))
        )

    def reload(self, *files: str) -> str | None:
        (self.folder / "log").write_text("")
        done: str | None = plugin_module("systemd").agent_reload(
            resource=self.resource, applied=Applied(1, files, files)
        )
        return done

    @property
    def asked(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()


@pytest.fixture
def unit(tmp_path: Path) -> Unit:
    write_tree(tmp_path, {"systemctl": SYSTEMCTL.format(folder=tmp_path)})
    (tmp_path / "systemctl").chmod(0o755)
    settings = {"unit": "app.service", "systemctl": str(tmp_path / "systemctl"), "settle": "10ms"}
    resource = dataclasses.replace(resource_of("systemd", settings), health=Health(timeout_s=10.0))
    return Unit(tmp_path, resource)


def test_reload_and_restart(unit: Unit) -> None:
    assert unit.reload("/d/app.service.d/50.conf") == "app.service: try-reload-or-restart"
    assert unit.asked == [
        "--no-ask-password daemon-reload", "--no-ask-password try-reload-or-restart -- app.service",
    ]  # fmt: skip
    assert unit.reload("/etc/app.conf") and len(unit.asked) == 1, "no unit file, no daemon-reload"
    settings = dict(unit.resource.plugins["systemd"])
    unit.resource = dataclasses.replace(unit.resource, plugins={"systemd": {**settings, "action": "restart"}})
    assert (
        unit.reload("/lib/systemd/system/app.service") == "app.service: try-restart" and len(unit.asked) == 2
    )
    (unit.folder / "fail").touch()
    with pytest.raises(ReloadError, match="exit status 1: Failed to connect to bus"):
        unit.reload()
    unit.resource = dataclasses.replace(unit.resource, plugins={"systemd": {**settings, "action": "none"}})
    assert unit.reload("/d/app.service.d/50.conf") is None and unit.asked == []


def test_a_unit_that_the_new_files_have_broken_is_started_with_the_old_ones(unit: Unit) -> None:
    unit.shows(ActiveState="failed")
    applied = Applied(1, ("/d/app.service.d/50.conf",), (), rollback=True)
    done = plugin_module("systemd").agent_reload(resource=unit.resource, applied=applied)
    assert done == "app.service: restart"
    asked = [line.removeprefix("--no-ask-password ") for line in unit.asked if "show" not in line]
    assert asked == ["daemon-reload", "reset-failed -- app.service", "restart -- app.service"]
    unit.shows(ActiveState="inactive")
    assert "try-reload" in str(plugin_module("systemd").agent_reload(resource=unit.resource, applied=applied))


def test_a_unit_in_every_state(unit: Unit) -> None:
    drop_in = unit.folder / "app.service.d/50.conf"
    write_tree(unit.folder, {"app.service.d/50.conf": ""})
    unit.shows()
    assert unit.health() == "None"
    unit.shows(DropInPaths=f"/a {drop_in}")
    assert unit.health(str(drop_in)) == "None"
    for first, then, message in (
        ({"LoadState": "not-found"}, None, "app.service: not-found"),
        ({"NeedDaemonReload": "yes"}, None, "systemd has not read its files again"),
        ({"ActiveState": "failed", "Result": "exit-code"}, None, "failed (exit-code)"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, None, "activating, auto-restart"),
        ({"ActiveState": "activating"}, {"ActiveState": "active"}, "activating a moment ago"),
        ({}, {"NRestarts": "1", "MainPID": "43"}, "was restarted by systemd (1 times so far)"),
        ({}, {"MainPID": "43"}, "its main process is another one"),
        ({}, {"ActiveState": "failed", "Result": "core-dump"}, "failed (core-dump)"),
    ):
        unit.shows(then, **first)
        assert message in unit.health(), first
    unit.shows()
    assert f"systemd does not use {drop_in}" in unit.health(str(drop_in))
    unit.shows(ActiveState="inactive", SubState="dead")
    assert unit.health() == "None", "what does not run is left alone"
    settings = {**unit.resource.plugins["systemd"], "require_active": True}
    unit.resource = dataclasses.replace(unit.resource, plugins={"systemd": settings})
    assert unit.health() == "app.service: does not run"
    (unit.folder / "systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    with pytest.raises(ReloadError, match="no bus"):
        unit.health()


def test_settings() -> None:
    module = plugin_module("systemd")
    for wrong, message in (
        ({}, "unit is missing"),
        ({"unit": "app"}, "expected a unit"),
        ({"unit": "-x.service"}, "expected a unit"),
        ({"unit": "a.service", "action": "relod"}, "did you mean 'reload'"),
        ({"unit": "a.service", "untl": 1}, "unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            module.settings_of(resource_of("systemd", wrong))
    good: Any = {"unit": "app@1.service"}
    for dest, refused in (
        ("/etc/systemd/system/app@1.service.d/a.conf", False),
        ("/etc/systemd/system/app@1.service.d/a.txt", True),
        ("/etc/systemd/system/app.service.d/a.conf", True),
    ):
        resource = resource_of("systemd", good, templates=(Template("systemd:drop-in.conf.j2", dest),))
        assert (module.agent_check_settings(resource=resource) is not None) == refused, dest


def test_the_manual_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Readme("systemd")
    assert readme.sections == SECTIONS
    fields = {
        field.name.removesuffix("_s") for field in dataclasses.fields(plugin_module("systemd").Settings)
    }
    assert readme.settings == fields
    write_tree(tmp_path, {"templates/app.conf.j2": "x\n"})
    files = readme.render(tmp_path, monkeypatch)
    assert files["/etc/systemd/system/app.service.d/50-etcd.conf"].splitlines()[2:] == [
        "[Service]", "Environment=LEVEL=info", "Environment=REGION=eu", "ExecStart=",
        "ExecStart=/usr/bin/app --port 8080", "TimeoutStopSec=20s",
    ]  # fmt: skip
