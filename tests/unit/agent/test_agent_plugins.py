"""Plugins: each loaded alone, each called alone, and each hook with the error policy that its docstring
names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_agent.errors import ConfigError
from etcd_agent.hookspecs import AgentSpecs, hookimpl
from etcd_agent.plugins import BLOCKED, BROKEN, LOADED, PluginSet
from etcd_agent.values import Applied, Event, PluginsConfig, Problem, Resource, Snapshot, Staged
from tests.unit.agent.support import plugin_packages

GOOD = """
from etcd_agent import hookimpl
@hookimpl
def agent_event(event):
    pass
"""
RESOURCE = Resource("web", "web.toml", "", ("/web",), ())
EVENT = Event("applied", "web", 1)


def load(folder: Path, **options: Any) -> PluginSet:
    return PluginSet(PluginsConfig(str(folder), **options))


def states(plugins: PluginSet) -> dict[str, str]:
    return {record.name: record.state for record in plugins.records if record.source != "built-in"}


@pytest.fixture(autouse=True)
def no_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])


def test_a_broken_file_breaks_only_itself(tmp_path: Path) -> None:
    (tmp_path / "a_good.py").write_text(GOOD)
    (tmp_path / "b_syntax.py").write_text("def (")
    (tmp_path / "c_raises.py").write_text("1 / 0")
    (tmp_path / "d_unknown.py").write_text(GOOD.replace("agent_event", "agent_evnt"))
    (tmp_path / "e_wrong_argument.py").write_text(GOOD.replace("(event)", "(evnt)"))
    (tmp_path / "f_no_hook.py").write_text("x = 1")
    (tmp_path / "g_api.py").write_text(GOOD + 'AGENT_API = ">=2,<3"')
    (tmp_path / "h_exits.py").write_text("import nothing_like_that")
    (tmp_path / "_private.py").write_text("1 / 0")
    (tmp_path / "z_good.py").write_text(GOOD + 'AGENT_API = ">=1,<2"')
    plugins = load(tmp_path)
    assert states(plugins) == {
        "a_good": LOADED,
        "b_syntax": BROKEN,
        "c_raises": BROKEN,
        "d_unknown": BROKEN,
        "e_wrong_argument": BROKEN,
        "f_no_hook": BROKEN,
        "g_api": BROKEN,
        "h_exits": BROKEN,
        "z_good": LOADED,
    }
    reasons = {record.name: record.reason for record in plugins.records}
    assert "ZeroDivisionError" in reasons["c_raises"]
    assert "unknown hook 'agent_evnt'" in reasons["d_unknown"]
    assert "evnt" in reasons["e_wrong_argument"]
    assert "it implements no hook" in reasons["f_no_hook"]
    assert "it needs hook API >=2,<3, this agent has 1.0" in reasons["g_api"]
    plugins.notify("agent_event", event=EVENT)
    assert [record.calls for record in plugins.records if record.state == LOADED] == [1, 1]


def test_strict_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"plugin bad is broken: ZeroDivisionError.*\(plugins.strict\)"):
        load(tmp_path, strict=True)


def test_a_disabled_plugin_is_not_even_imported(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + GOOD)
    plugins = load(tmp_path, disable=("x",))
    assert states(plugins) == {"x": BLOCKED}
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_that_others_could_change_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ok.py").write_text(GOOD)
    for name, change in (("group", 0o664), ("world", 0o646)):
        (tmp_path / f"{name}.py").write_text(GOOD)
        (tmp_path / f"{name}.py").chmod(change)
    (tmp_path / "owner.py").write_text(GOOD)
    os.chown(tmp_path / "owner.py", 12345, 0)
    plugins = load(tmp_path)
    assert states(plugins) == {"group": BROKEN, "ok": LOADED, "owner": BROKEN, "world": BROKEN}
    reasons = {record.name: record.reason for record in plugins.records}
    assert "writable by group or others (mode 0664)" in reasons["group"]
    assert "belongs to uid 12345" in reasons["owner"]
    tmp_path.chmod(0o777)
    assert set(states(load(tmp_path)).values()) == {BROKEN}


def test_two_plugins_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(GOOD)

    class Builtin:
        @hookimpl
        def agent_event(self, event: Event) -> None: ...

    plugins = PluginSet(PluginsConfig(str(tmp_path)), [("x", Builtin())])
    assert [(record.state, record.reason) for record in plugins.records] == [
        (LOADED, ""),
        (BROKEN, "another plugin has this name"),
    ]


class Raising:
    """Raises in every hook."""

    @hookimpl
    def agent_register_templates(self) -> None:
        raise RuntimeError("no")

    @hookimpl
    def agent_register_functions(self) -> None:
        raise RuntimeError("no")

    @hookimpl
    def agent_check_settings(self) -> None:
        raise RuntimeError("no")

    @hookimpl
    def agent_validate(self) -> None:
        raise RuntimeError("no")

    @hookimpl
    def agent_reload(self) -> None:
        raise RuntimeError("no")

    @hookimpl
    def agent_health(self) -> None:
        raise RuntimeError("no")

    @hookimpl
    def agent_event(self) -> None:
        raise RuntimeError("no")


class Answering:
    """Answers every hook."""

    def __init__(self) -> None:
        self.events = 0

    @hookimpl
    def agent_register_templates(self, register: Any) -> None:
        register("answering", "/templates")

    @hookimpl
    def agent_register_functions(self, register: Any) -> None:
        register("answer", lambda view: 42)

    @hookimpl
    def agent_check_settings(self) -> None: ...

    @hookimpl
    def agent_validate(self) -> None: ...

    @hookimpl
    def agent_reload(self) -> str:
        return "done"

    @hookimpl
    def agent_health(self) -> None: ...

    @hookimpl
    def agent_event(self) -> None:
        self.events += 1


@pytest.fixture(params=["raising first", "raising last"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[PluginSet, Answering]]:
    answering = Answering()
    both = [("raising", Raising()), ("answering", answering)]
    if request.param == "raising last":
        both.reverse()
    yield PluginSet(PluginsConfig(str(tmp_path)), both), answering


def test_agent_register_templates_leaves_out_the_plugin_that_raises(
    pair: tuple[PluginSet, Answering],
) -> None:
    plugins, _ = pair
    assert plugins.templates() == {"answering": "/templates"}
    assert "raising" not in plugins.names()


def test_agent_register_functions_leaves_out_the_plugin_that_raises(
    pair: tuple[PluginSet, Answering],
) -> None:
    plugins, _ = pair
    assert list(plugins.functions(RESOURCE)) == ["answer"]
    assert "raising" not in plugins.names()


def test_agent_check_settings_fails_closed(pair: tuple[PluginSet, Answering]) -> None:
    plugins, _ = pair
    with pytest.raises(
        ConfigError, match=r"web.toml: plugin raising failed in agent_check_settings: RuntimeError: no"
    ):
        plugins.check_settings(RESOURCE)


def test_agent_validate_fails_closed(pair: tuple[PluginSet, Answering]) -> None:
    plugins, _ = pair
    found = plugins.veto(
        "agent_validate", resource=RESOURCE, staged=Staged("/", ()), snapshot=Snapshot(1, 1, {})
    )
    assert found == [Problem("plugin raising failed in agent_validate: RuntimeError: no")]


def test_agent_reload_takes_the_first_answer_and_its_error(pair: tuple[PluginSet, Answering]) -> None:
    plugins, _ = pair
    first = plugins.records[-1].name  # pluggy calls the last one registered first
    if first == "answering":
        assert plugins.provide("agent_reload", resource=RESOURCE, applied=Applied(1, (), ())) == "done"
    else:
        with pytest.raises(RuntimeError):
            plugins.provide("agent_reload", resource=RESOURCE, applied=Applied(1, (), ()))


def test_agent_health_fails_closed(pair: tuple[PluginSet, Answering]) -> None:
    plugins, _ = pair
    assert len(plugins.veto("agent_health", resource=RESOURCE, applied=Applied(1, (), ()))) == 1


def test_agent_event_reaches_the_others(pair: tuple[PluginSet, Answering]) -> None:
    plugins, answering = pair
    plugins.notify("agent_event", event=EVENT)
    assert answering.events == 1
    record = next(record for record in plugins.records if record.name == "raising")
    assert (record.calls, record.errors, record.last_error) == (1, 1, "agent_event: RuntimeError: no")


def test_every_hook_has_a_test_here_and_a_line_in_the_guide() -> None:
    hooks = [name for name in vars(AgentSpecs) if name.startswith("agent_")]
    here = Path(__file__).read_text()
    guide = (Path(__file__).resolve().parents[3] / "docs/plugins.md").read_text()
    for hook in hooks:
        assert f"def test_{hook}_" in here, hook
        arguments = [name for name in getattr(AgentSpecs, hook).__annotations__ if name != "return"]
        assert f"### `{hook}({', '.join(arguments)})`" in guide, hook
        docstring = getattr(AgentSpecs, hook).__doc__
        assert any(
            f"*{policy}.*" in docstring for policy in ("Collection", "Veto", "Provider", "Notification")
        )


def test_attached_but_not_there(tmp_path: Path) -> None:
    resource = Resource("web", "web.toml", "", ("/web",), (), plugins={"ngnix": {}})
    with pytest.raises(ConfigError, match=r"web.toml: plugins.ngnix: there is no such plugin"):
        load(tmp_path).check_settings(resource)


def test_the_nginx_plugin_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with plugin_packages(tmp_path / "packages"):
        plugins = load(tmp_path / "none")
    (record,) = [record for record in plugins.records if record.name == "nginx"]
    assert (record.state, record.reason) == (LOADED, "")
    assert "agent_validate" in record.hooks
