"""The configuration files that are installed: each is accepted as it is, and with every line in force."""

from __future__ import annotations

import itertools
import re
import runpy
import sys
from pathlib import Path

import pytest
import toml

from etcd_agent import config as agent_config
from etcd_server.config import load, parse_command_line
from etcd_server.flags import FLAGS, HONOURED, find

ROOT = Path(__file__).resolve().parents[2]
UNSET = re.compile(r"^#(?=[\w-]+ ?= ?|ETCD_)", re.MULTILINE)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the build of the packages makes them."""
    monkeypatch.setattr(sys, "argv", ["configuration.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "packaging/configuration.py"), run_name="__main__")
    return tmp_path


def environment(text: str) -> dict[str, str]:
    """The variables that systemd's EnvironmentFile= would set."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}


def settings() -> set[str]:
    special = {"config-file", "version", "help"}
    return {name for name, flag in FLAGS.items() if flag.support is HONOURED} - special


def test_the_environment_file_as_it_is(files: Path) -> None:
    loaded = load(parse_command_line([]), environment((files / "etcd-py.conf").read_text()))
    assert loaded.config.data_dir == "/var/lib/etcd-py"
    assert loaded.config.listen_client_urls == ("http://localhost:2379",)


def test_the_environment_file_with_every_line(files: Path) -> None:
    variables = environment(UNSET.sub("", (files / "etcd-py.conf").read_text()))
    assert variables.pop("ETCD_CONFIG_FILE") == "/etc/etcd-py/etcd-py.toml"
    assert variables.keys() == {FLAGS[name].environment_name for name in settings()}
    changed = load(parse_command_line([]), variables).config
    assert changed == load(parse_command_line([]), environment((files / "etcd-py.conf").read_text())).config


def test_the_file_as_it_is(files: Path) -> None:
    loaded = load(parse_command_line(["--config-file", str(files / "etcd-py.toml")]), {})
    conf = load(parse_command_line([]), environment((files / "etcd-py.conf").read_text()))
    assert loaded.config == conf.config


def test_the_file_with_every_line(files: Path) -> None:
    text = UNSET.sub("", (files / "etcd-py.toml").read_text())
    assert {flag.name for key in toml.loads(text) if (flag := find(key))} == settings()
    (files / "all.toml").write_text(text)
    assert load(parse_command_line(["--config-file", str(files / "all.toml")]), {}).config


def test_every_line_is_explained(files: Path) -> None:
    """A comment stands before each setting."""
    for name in ("etcd-py.conf", "etcd-py.toml"):
        lines = (files / name).read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if re.match(r"#?(ETCD_\w+=|[a-z][a-z-]+ = )", line):
                assert before.startswith("# "), line


def test_the_agents_file(tmp_path: Path) -> None:
    text = (ROOT / "packaging/rpm/agent.toml").read_text()
    (tmp_path / "agent.toml").write_text(text)
    as_it_is = agent_config.load(str(tmp_path / "agent.toml"))
    assert as_it_is.log_format == "journal"
    every = re.sub(r"^#(?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    (tmp_path / "agent.toml").write_text(every)
    assert agent_config.load(str(tmp_path / "agent.toml")).listen == "127.0.0.1:9479"
