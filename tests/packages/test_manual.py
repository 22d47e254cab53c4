"""The manual pages and completions that are installed: all is in them, and troff has no complaint."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_agent.cli import cli as agent
from etcd_agent.config import load
from etcd_agent.tables import Table
from etcd_client.ctl import commands as ctl
from etcd_server.flags import FLAGS, HONOURED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("manual")
    paths = (ROOT, ROOT / "packaging/firewall", ROOT / "packaging/manual")
    subprocess.run(
        [sys.executable, ROOT / "packaging/manual/pages.py", made],
        env={**os.environ, "PYTHONPATH": ":".join(map(str, paths))}, check=True, timeout=60,
    )  # fmt: skip
    return made


def page(folder: Path, name: str) -> str:
    """Its words, without what roff makes of them."""
    volume = name.rpartition(".")[2]
    text = (folder / f"man{volume}" / name).read_text()
    return re.sub(r"\\f.", "", text).replace("\\-", "-").replace("\\e", "\\").replace("\\&", "")


def test_every_flag(folder: Path) -> None:
    names = {name for name, flag in FLAGS.items() if flag.support is HONOURED}
    assert set(re.findall(r"^--([\w-]+)$", page(folder, "etcd-py.8"), re.MULTILINE)) == names
    variables = {FLAGS[name].environment_name for name in names - {"help", "version", "config-file"}}
    assert set(re.findall(r"^(ETCD_\w+)$", page(folder, "etcd-py.conf.5"), re.MULTILINE)) == variables


def test_every_command(folder: Path) -> None:
    for name, command in (("etcd-pyctl.1", ctl), ("etcd-py-agent.8", agent)):
        text = page(folder, name)
        for below in command.commands.values():
            assert f'.SS "{below.name} ' in text, below.name
    assert '.SS "open ' in page(folder, "etcd-py-firewall.8")


def test_every_setting_of_the_agent(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that the agent asks its file for."""
    asked: set[str] = set()
    for name in ("take", "table"):
        real = getattr(Table, name)

        def note(table: Table, key: str, *rest: object, real: object = real) -> object:
            asked.add(key)
            return real(table, key, *rest)  # type: ignore[operator]

        monkeypatch.setattr(Table, name, note)
    (tmp_path / "agent.toml").write_text("")
    load(str(tmp_path / "agent.toml"))
    assert {"nodes", "retry", "lease_ttl"} <= asked
    text = page(folder, "etcd-py-agent.toml.5")
    assert {key for key in asked if not re.search(rf"\b{key}\b", text)} == set()


@pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
def test_troff_understands(folder: Path) -> None:
    for path in folder.glob("man*/*"):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z", path], cwd=folder, capture_output=True, timeout=20, check=True
        )
        assert done.stderr == b"", path.name


def test_completions(folder: Path) -> None:
    for name in ("etcd-py", "etcd-pyctl", "etcd-py-agent", "etcd-py-firewall"):
        assert name in (folder / "zsh" / f"_{name}").read_text()
        assert name in (folder / "fish" / f"{name}.fish").read_text()
        subprocess.run(["bash", "-n", folder / "bash" / name], check=True, timeout=10)
    script = f". {folder}/bash/etcd-py; complete -p etcd-py"
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=10)
    assert "--data-dir" in said.stdout and "verify" in said.stdout
