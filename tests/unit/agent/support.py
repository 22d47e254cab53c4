"""What the agent's tests share: snapshots, resources, a service that can be made to fail, and a disk that
crashes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from etcd_agent import config as agent_config
from etcd_agent.apply import Applier
from etcd_agent.builtin import BuiltinPlugin
from etcd_agent.errors import ReloadError
from etcd_agent.execute import Executor
from etcd_agent.files import FileSystem
from etcd_agent.hookspecs import hookimpl
from etcd_agent.plugins import PluginSet
from etcd_agent.values import AgentConfig, Applied, Entry, Event, Problem, Resource, Snapshot

ROOT = Path(__file__).resolve().parents[3]


def snapshot(values: Mapping[str, str], revision: int = 10, cluster_id: int = 7) -> Snapshot:
    return Snapshot(
        cluster_id, revision, {key: Entry(value.encode(), revision) for key, value in values.items()}
    )


def write_tree(folder: Path, files: Mapping[str, str]) -> None:
    """Write files (names relative to ``folder``), making their directories."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def load_config(
    folder: Path, resources: Mapping[str, str], templates: Mapping[str, str], head: str = ""
) -> AgentConfig:
    """A configuration in ``folder``: conf.d files by name, templates by name, and lines for agent.toml."""
    write_tree(folder, {f"conf.d/{name}.toml": text for name, text in resources.items()})
    write_tree(folder, {f"templates/{name}": text for name, text in templates.items()})
    write_tree(folder, {"agent.toml": f'state_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n{head}'})
    return agent_config.load(str(folder / "agent.toml"))


class Service:
    """A daemon that reads files at reload; ``BAD`` in one fails the reload, ``SICK`` the health."""

    def __init__(self, files: FileSystem | None = None) -> None:
        self.running: dict[str, bytes] = {}
        self.reloads = 0
        self.events: list[Event] = []
        self.always_fail = False
        self._files = files

    @hookimpl
    def agent_reload(self, resource: Resource, applied: Applied) -> str | None:
        if resource.reload.configured:
            return None
        if self._files is not None:
            self._files.step("before reload", resource.name)
        now = {path: Path(path).read_bytes() for path in applied.files if Path(path).exists()}
        if self.always_fail or any(b"BAD" in content for content in now.values()):
            raise ReloadError("the service refuses its files")
        self.running = now
        self.reloads += 1
        if self._files is not None:
            self._files.step("after reload", resource.name)
        return "reloaded"

    @hookimpl
    def agent_health(self, applied: Applied) -> Problem | None:
        return Problem("sick") if any(b"SICK" in content for content in self.running.values()) else None

    @hookimpl
    def agent_event(self, event: Event) -> None:
        self.events.append(event)


class Crash(BaseException):
    """The process is gone: nothing may handle it."""


class CrashingFileSystem(FileSystem):
    """The real file system until step number ``at``; from there on every step is a crash, as after a kill."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.steps: list[str] = []

    def step(self, what: str, path: str) -> None:
        if len(self.steps) >= self.at:
            raise Crash(f"{what} {path}")
        self.steps.append(f"{what} {path}")


def make_applier(
    config: AgentConfig, service: object, files: FileSystem | None = None
) -> tuple[Applier, Executor]:
    """An applier whose plugins are the agent's own and ``service``; it never sleeps."""
    plugins = PluginSet(config.plugins, [("builtin", BuiltinPlugin()), ("service", service)])
    executor = Executor(
        config.state_dir,
        plugins,
        safety=config.safety,
        files=files,
        clock=lambda: 1000.0,
        sleep=lambda seconds: None,
    )
    return Applier(config, plugins, executor), executor


def with_resource(config: AgentConfig, **changes: object) -> AgentConfig:
    """The configuration with its one resource changed."""
    (resource,) = config.resources
    return replace(config, resources=(replace(resource, **changes),))  # type: ignore[arg-type]


@contextmanager
def plugin_packages(folder: Path) -> Iterator[Path]:
    """A folder for PYTHONPATH in which the first-party plugins look installed; on ``sys.path`` meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "etcd_agent_plugins").symlink_to(ROOT / "plugins")
    # The same distribution name as the real one, so that an installed etcd-py is not found a second time.
    write_tree(
        folder,
        {
            "etcd_py-0.dist-info/METADATA": "Metadata-Version: 2.1\nName: etcd-py\nVersion: 0\n",
            "etcd_py-0.dist-info/entry_points.txt": "[etcd_py_agent]\nnginx = etcd_agent_plugins.nginx\n",
        },
    )
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))


def nginx_module(name: str = "") -> ModuleType:
    """The nginx plugin, or a module of it, under its installed name (see ``plugin_packages``)."""
    return importlib.import_module("etcd_agent_plugins.nginx" + (f".{name}" if name else ""))


KEY = "/app/value"


def configure(folder: Path, extra: str = "", head: str = "", template: str = "") -> AgentConfig:
    resource = f"""
[resource]
prefix = "/app"
keys = ["/value"]
[[template]]
src = "a.j2"
dest = "{folder}/a.conf"
{template}
[health]
retries = 0
{extra}
"""
    return load_config(folder, {"app": resource}, {"a.j2": '{{ getv("/value") }}\n'}, head)


class Host:
    """One host with one resource: ``apply`` a value and look at the file."""

    def __init__(self, folder: Path, config: AgentConfig, files: FileSystem | None = None) -> None:
        self.folder = folder
        self.config = config
        self.resource = config.resources[0]
        self.service = Service()
        self.applier, self.executor = make_applier(config, self.service, files)
        self.revision = 10

    def apply(self, value: str) -> str:
        self.revision += 1
        return self.applier.run(self.resource, snapshot({KEY: value}, self.revision)).kind

    def again(self, value: str) -> str:
        """The same keys once more, as the periodic reconciliation does."""
        return self.applier.run(self.resource, snapshot({KEY: value}, self.revision)).kind

    @property
    def text(self) -> str:
        return (self.folder / "a.conf").read_text()
