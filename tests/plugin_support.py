"""What the tests of first-party plugins share: installed packages, READMEs, the agent as a process."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from etcd_agent import View, cli
from etcd_agent.cli_support import applier_of
from etcd_agent.config import load
from etcd_agent.errors import FilesError
from etcd_agent.render import Renderer
from etcd_agent.status import read_status
from etcd_agent.values import Entry, Resource, Snapshot, Template
from tests.markdown import ROOT
from tests.unit.agent.support import write_tree

LIMIT_S = 20.0
SECTIONS = ["Name", "Description", "Settings", "Examples", "Failure"]


@contextmanager
def installed_plugins(folder: Path) -> Iterator[Path]:
    """A folder for PYTHONPATH in which all first-party plugins look installed; on ``sys.path`` meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "etcd_agent_plugins").symlink_to(ROOT / "plugins")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [f"{name} = {target}" for name, target in project["entry-points"]["etcd_py_agent"].items()]
    # The same distribution name as the real one, so that an installed etcd-py is not found a second time.
    write_tree(
        folder,
        {
            "etcd_py-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: etcd-py\nVersion: 0\n",
            "etcd_py-0.dist-info/entry_points.txt": "\n".join(["[etcd_py_agent]", *lines, ""]),
        },
    )
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))


def plugin_module(name: str) -> Any:
    """A first-party plugin ("haproxy") or a module of one ("haproxy.model") under its installed name."""
    return importlib.import_module(f"etcd_agent_plugins.{name}")


def resource_of(
    plugin: str,
    settings: Mapping[str, Any] | None = None,
    *,
    prefix: str = "",
    keys: tuple[str, ...] = ("",),
    templates: tuple[Template, ...] = (),
) -> Resource:
    return Resource("res", "res.toml", prefix, keys, templates, plugins={plugin: settings or {}})


def snapshot_of(values: Mapping[str, str]) -> Snapshot:
    return Snapshot(1, 1, {key: Entry(value.encode(), 1) for key, value in values.items()})


def view_of(resource: Resource, values: Mapping[str, str]) -> View:
    return View(resource, snapshot_of(values))


def functions_of(plugin: str, resource: Resource) -> dict[str, Any]:
    functions: dict[str, Any] = {}
    plugin_module(plugin).agent_register_functions(register=functions.__setitem__, resource=resource)
    return functions


def rendered(plugin: str, resource: Resource, values: Mapping[str, str], template: str) -> str:
    """What the plugin's own template makes of these keys."""
    folder = str(ROOT / "plugins" / plugin / "templates")
    resource = Resource(
        resource.name,
        resource.source,
        resource.prefix,
        resource.keys,
        (Template(f"{plugin}:{template}", "/x"),),
        plugins=resource.plugins,
    )
    renderer = Renderer("/nowhere", plugin_templates={plugin: folder})
    (file,) = renderer.render(resource, snapshot_of(values), functions_of(plugin, resource))
    return file.content.decode()


class Readme:
    """The manual page of a plugin, and the result of its examples."""

    def __init__(self, plugin: str) -> None:
        self.plugin = plugin
        self.text = (ROOT / "plugins" / plugin / "README.md").read_text()

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"```{language}\n(.*?)```", self.text, re.DOTALL)

    @property
    def sections(self) -> list[str]:
        return re.findall(r"^## (.*)$", self.text, re.MULTILINE)

    @property
    def settings(self) -> set[str]:
        table = self.text.partition("## Settings")[2].partition("\n## ")[0]
        return set(re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE))

    def keys(self) -> dict[str, str]:
        """The keys that its consoles put."""
        found: dict[str, str] = {}
        for line in "".join(self.blocks("console")).replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[:2] == ["etcdctl", "put"]:
                found[words[2]] = words[3]
        return found

    def render(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *, head: str = "") -> dict[str, str]:
        """Destination -> text, of every TOML block that is a resource file, with the keys of the consoles."""
        # The command sets up logging for its process, which is not this one's business.
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
        resources = {f"r{number}": block for number, block in enumerate(self.blocks("toml"))}
        write_tree(
            folder,
            {
                "agent.toml": f'state_dir = "{folder}/state"\n{head}',
                "keys.json": json.dumps(self.keys()),
                **{f"conf.d/{name}.toml": text for name, text in resources.items()},
            },
        )
        config = load(str(folder / "agent.toml"))
        files: dict[str, str] = {}
        applier = applier_of(config)
        for resource in config.resources:
            applier.check_templates(resource)
            for file in applier.render(resource, cli._mock(str(folder / "keys.json"))):
                files[file.dest] = file.content.decode()
        return files


def wait_for(
    condition: Callable[[], object], what: str | Callable[[], str], limit_s: float = LIMIT_S
) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, (
            f"not within {limit_s} s: {what if isinstance(what, str) else what()}"
        )
        time.sleep(0.02)


class AgentProcess:
    """The agent with one configuration folder: commands of it, and ``run`` as a process."""

    def __init__(self, folder: Path, packages: Path) -> None:
        self.folder = folder
        self.packages = packages
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, store_url: str, resources: Mapping[str, str], templates: Mapping[str, str] = {}) -> None:
        write_tree(
            self.folder / "etc",
            {
                "agent.toml": f"""
state_dir = "{self.folder}/state"
nodes = ["{store_url}"]
prefix = "/demo"
start_grace = "500ms"
log_level = "debug"
[backend]
dial_timeout = "1s"
request_timeout = "2s"
[backend.retry]
backoff = "50ms"
max_backoff = "500ms"
""",
                **{f"conf.d/{name}.toml": text for name, text in resources.items()},
                **{f"templates/{name}": text for name, text in templates.items()},
            },
        )

    def command(self, *arguments: str) -> list[str]:
        config = str(self.folder / "etc/agent.toml")
        return [sys.executable, "-m", "etcd_agent.cli", "--config", config, *arguments]

    def environment(self) -> dict[str, str]:
        path = [str(self.packages), str(ROOT), *os.environ.get("PYTHONPATH", "").split(":")]
        return {**os.environ, "PYTHONPATH": ":".join(filter(None, path))}

    def run(self, *arguments: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment(), cwd=self.folder, capture_output=True, text=True,
            timeout=limit_s,
        )  # fmt: skip

    def start(self) -> None:
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command("run"), env=self.environment(), cwd=self.folder, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        path = self.folder / "agent.log"
        return path.read_text() if path.exists() else ""

    def tail(self) -> str:
        return "\n".join(self.log.splitlines()[-15:])

    def status(self, name: str) -> dict[str, Any]:
        """What the agent last said of the resource; {} before it has said anything."""
        try:
            said = read_status(f"{self.folder}/state")
        except FilesError:
            return {}
        return next((asdict(each) for each in said.resources if each.name == name), {})

    def wait_status(self, name: str, limit_s: float = LIMIT_S, **wanted: object) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def matches() -> bool:
            seen.clear()
            seen.update(self.status(name))
            return all(seen.get(field) == value for field, value in wanted.items())

        wait_for(matches, lambda: f"status {wanted}, but {seen}; agent's log:\n{self.tail()}", limit_s)
        return seen

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


def ended(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """Every process asked to end, then made to."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
