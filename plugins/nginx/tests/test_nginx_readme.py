"""The README's examples are run, and its tables list every setting and key that the code knows."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_agent import cli
from tests.unit.agent.support import ROOT, nginx_module, plugin_packages, write_tree

README = (ROOT / "plugins/nginx/README.md").read_text()


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with plugin_packages(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_sections_of_a_manual_page() -> None:
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == [
        "Name",
        "Description",
        "Settings",
        "Examples",
        "Failure",
    ]


def test_every_setting_and_field_is_in_the_tables() -> None:
    Settings, model = nginx_module().Settings, nginx_module("model")

    for field in dataclasses.fields(Settings):
        assert f"| `{field.name}` |" in README, field.name
    for kind, left_out in ((model.UpstreamServer, ()), (model.Location, ("return_code", "return_to"))):
        for field in dataclasses.fields(kind):
            assert field.name in left_out or f"`{field.name}`" in README, field.name


def test_the_examples_render(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # the command sets up logging for its process
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    (resource,) = blocks("toml")
    keys = {}
    for line in "".join(blocks("console")).splitlines():
        words = shlex.split(line)
        if words[:2] == ["etcdctl", "put"]:
            keys[words[2]] = words[3]
    assert len(keys) == 7
    write_tree(
        tmp_path,
        {
            "agent.toml": f'state_dir = "{tmp_path}/state"\n',
            "conf.d/nginx.toml": resource,
            "keys.json": json.dumps(keys),
        },
    )
    config = ["--config", str(tmp_path / "agent.toml")]
    cli.main([*config, "check-config"])
    cli.main([*config, "render", "nginx", "--mock-data", str(tmp_path / "keys.json")])
    shown = capfd.readouterr().out
    assert "1 resources, no error" in shown
    assert "server 10.0.0.2:8080 weight=5 " in shown
    assert "server_name example.com www.example.com;" in shown
