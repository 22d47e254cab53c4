"""docs/plugins.md is followed to the letter: its tutorial with a real store, its example, the skeleton."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from etcd_agent import skeleton
from etcd_agent.errors import ConfigError, FilesError
from etcd_agent.plugins import PluginSet
from etcd_agent.values import PluginsConfig, Resource, Snapshot, Staged, StagedFile
from tests.markdown import ROOT, blocks, read, section
from tests.servers import available_servers, start_server

FOLDER, STORE = "/tmp/tutorial", "http://127.0.0.1:2379"
STORES = [kind for kind in available_servers() if kind in ("3.4", "etcd-py")]
GUIDE = read("docs/plugins.md")


class Step(NamedTuple):
    """A file to write, or a command with what it prints (``...`` stands for anything)."""

    file: str
    text: str
    command: str = ""


def steps(text: str) -> Iterator[Step]:
    for block in blocks(text):
        if block.language == "console":
            for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, expected = part.partition("\n")
                yield Step("", expected, command)
        else:
            named = re.fullmatch(r"`([^`]+)`:", block.before)
            assert named, f"a block without the name of its file: {block.text[:60]!r}"
            yield Step(named[1], block.text)


def like(expected: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in expected.split("...")), re.DOTALL)


@pytest.mark.skipif(not STORES, reason="no store to run against")
def test_the_tutorial(tmp_path: Path) -> None:
    folder = tmp_path / "tutorial"
    folder.mkdir(mode=0o755)
    with start_server(STORES[-1], tmp_path) as store:
        environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT), "ETCDCTL_ENDPOINTS": store.url, "PYTEST_ADDOPTS": "-p no:cacheprovider",
        }  # fmt: skip
        ran = 0
        try:
            for step in steps(section(GUIDE, "Tutorial: a plugin from nothing")):
                text = step.text.replace(FOLDER, str(folder)).replace(STORE, store.url)
                if step.file:
                    path = folder / step.file
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(text)
                    path.chmod(0o644)
                    continue
                done = subprocess.run(
                    ["sh", "-c", step.command], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
                )  # fmt: skip
                assert like(text).fullmatch(done.stdout), (
                    f"$ {step.command}\n{done.stdout}\nexpected:\n{text}"
                )
                ran += 1
        finally:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / "bannerd.pid").read_text()), signal.SIGTERM)
        assert ran > 20


def test_the_first_example(tmp_path: Path) -> None:
    (block,) = (block for block in blocks(GUIDE.partition("\n## ")[0]) if block.language == "python")
    (tmp_path / "limits.py").write_text(block.text)
    (tmp_path / "limits.py").chmod(0o644)
    plugins = PluginSet(PluginsConfig(str(tmp_path)))
    assert [record.state for record in plugins.records if record.name == "limits"] == ["loaded"]
    (tmp_path / "staged").write_text("x" * 11)
    resource = Resource("r", "r.toml", "", ("",), (), plugins={"limits": {"max_bytes": 10}})
    staged = Staged(str(tmp_path), (StagedFile("/dest", str(tmp_path / "staged"), True),))
    snapshot = Snapshot(1, 1, {})
    (refusal,) = plugins.veto("agent_validate", resource=resource, staged=staged, snapshot=snapshot)
    assert str(refusal) == "/dest: the file is too long"


def test_every_first_party_plugin_is_listed() -> None:
    names = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/README.md"))
    assert re.findall(r"\]\(\.\./plugins/(\w+)/README\.md\)", GUIDE) == names


def test_a_skeleton_is_written_once_and_under_a_name_that_can_be_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "demo"
    written = skeleton.new("demo", str(target))
    assert len(written) == 6 and all(Path(path).stat().st_size > 100 for path in written)
    assert "@" not in "".join(Path(path).read_text().replace("@hookimpl", "").replace("@dataclass", "")
                              .replace("@pytest", "") for path in written)  # fmt: skip
    with pytest.raises(FilesError, match="is there already"):
        skeleton.new("demo", str(target))
    for name in ("", "Demo", "a_b", "-a", "a--b", "1a", "a/b", "a" * 51):
        with pytest.raises(ConfigError, match="cannot name a plugin"):
            skeleton.new(name, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_skeleton_has_no_lint(tmp_path: Path) -> None:
    skeleton.new("two-words", str(tmp_path / "demo"))
    ruff = Path(sys.executable).parent / "ruff"
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    config = ["--isolated", "--line-length", "110", "--no-cache"]
    done = subprocess.run(
        [ruff, "check", *config, "."],
        cwd=tmp_path / "demo",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout
