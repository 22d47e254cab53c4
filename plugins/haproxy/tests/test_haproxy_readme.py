"""The README's examples are run, and its table lists every setting that the code knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_agent.errors import ConfigError
from etcd_agent.values import Applied
from tests.plugin_support import SECTIONS, Readme, installed_plugins, plugin_module, resource_of


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def test_the_manual_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Readme("haproxy")
    assert readme.sections == SECTIONS
    assert readme.settings == {field.name for field in dataclasses.fields(plugin_module("haproxy").Settings)}
    for field in dataclasses.fields(plugin_module("haproxy.model").Server):
        assert field.name == "name" or f"`{field.name}`" in readme.text
    (text,) = readme.render(tmp_path, monkeypatch).values()
    assert "    server a 10.0.0.1:8080 weight 1 check\n" in text
    assert "    server b 10.0.0.2:8080 weight 5 disabled check\n" in text
    assert "    use_backend files if { path_beg /files/ }\n" in text


def test_without_a_socket_it_renders_and_checks_only() -> None:
    module, resource = plugin_module("haproxy"), resource_of("haproxy", {"socket": ""})
    assert module.agent_reload(resource=resource, applied=Applied(1, ("/x",), ("/x",))) is None
    assert module.agent_health(resource=resource, applied=Applied(1, ("/x",), ())) is None


def test_settings() -> None:
    settings_of = plugin_module("haproxy").settings_of
    assert settings_of(resource_of("nginx")) is None
    assert settings_of(resource_of("haproxy", {"conf": "/a"})).conf == ("/a",)
    for wrong, message in (
        ({"conf": []}, "expected at least one file"),
        ({"conf": ["relative"]}, "expected an absolute path"),
        ({"sokket": "/x"}, "did you mean 'socket'"),
        ({"runtime": 1}, "expected true or false"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings_of(resource_of("haproxy", wrong))
