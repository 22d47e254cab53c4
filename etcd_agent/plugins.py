"""Loads plugins one by one, so that a broken one breaks only itself, and calls them by the policy of each
hook.

Order: built-ins, entry points of the group ``etcd_py_agent`` by name, files of ``plugins.dir`` by name.
pluggy itself isolates nothing (one raising implementation ends the call for all), so each plugin is called
alone here. The agent is often root: a plugin file or folder that anybody but root (or the agent's own user)
could change is refused.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pluggy

from etcd_agent.errors import AgentError, ConfigError
from etcd_agent.hookspecs import HOOK_API, PROJECT, AgentSpecs, problems
from etcd_agent.values import PluginsConfig, Problem, Resource

logger = logging.getLogger(__name__)

SLOW_HOOK_S = 1.0
LOADED, BLOCKED, BROKEN = "loaded", "blocked", "broken"
_API = re.compile(r">=(\d+),<(\d+)")


@dataclass(slots=True)
class PluginRecord:
    """One plugin as ``etcd-py-agent plugins`` lists it. ``reason`` says why it is not loaded."""

    name: str
    source: str
    version: str = ""
    state: str = LOADED
    reason: str = ""
    hooks: tuple[str, ...] = ()
    calls: int = 0
    errors: int = 0
    last_error: str = ""
    slowest_s: float = 0.0
    instance: Any = field(default=None, repr=False)


class PluginSet:
    """The loaded plugins of one configuration, and the four ways to call them."""

    def __init__(self, config: PluginsConfig, builtins: Sequence[tuple[str, Any]] = ()) -> None:
        """Load everything. Raises ConfigError only with ``strict`` and a broken plugin."""
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(AgentSpecs)
        self._disabled = set(config.disable)
        self.records: list[PluginRecord] = []
        for name, instance in builtins:
            self._add(PluginRecord(name, "built-in"), lambda instance=instance: instance)
        for entry_point in _entry_points():
            version = entry_point.dist.version if entry_point.dist else ""
            record = PluginRecord(entry_point.name, f"entry point {entry_point.value}", version)
            self._add(record, entry_point.load)
        for record, path in _plugin_files(config.dir):
            self._add(record, lambda path=path, name=record.name: _load_file(name, path))
        broken = [record for record in self.records if record.state == BROKEN]
        for record in broken:
            logger.warning("plugin %s is broken: %s", record.name, record.reason)
        if config.strict and broken:
            raise ConfigError(f"plugin {broken[0].name} is broken: {broken[0].reason} (plugins.strict)")

    def names(self) -> frozenset[str]:
        return frozenset(record.name for record in self.records if record.state == LOADED)

    def _add(self, record: PluginRecord, load: Any) -> None:
        self.records.append(record)
        if record.name in self._disabled:
            record.state, record.reason = BLOCKED, "named in plugins.disable"
            return
        if any(other.name == record.name and other is not record for other in self.records):
            record.state, record.reason = BROKEN, "another plugin has this name"
            return
        try:
            if isinstance(record.instance, AgentError):
                raise record.instance
            instance = load()
            _check_api(instance)
            self._register(record, instance)
        except Exception as error:  # whatever the import of a stranger's module raises
            self._mark_broken(record, error)

    def _register(self, record: PluginRecord, instance: Any) -> None:
        self._manager.register(instance, record.name)
        record.instance = instance
        self._manager.check_pending()
        record.hooks = tuple(sorted(caller.name for caller in self._manager.get_hookcallers(instance) or ()))
        if not record.hooks:
            raise ValueError("it implements no hook (is the marker etcd_agent.hookimpl missing?)")

    def _mark_broken(self, record: PluginRecord, error: BaseException) -> None:
        if record.instance is not None and self._manager.is_registered(record.instance):
            self._manager.unregister(record.instance)
        # Before pluggy 1.7 a registration that failed half-way stayed in force under its name.
        elif (left := self._manager.get_plugin(record.name)) is not None:
            self._manager.unregister(left)
        record.state, record.reason, record.instance = BROKEN, _one_line(error), None

    def collect(self, hook: str, **arguments: Any) -> None:
        """Collection: a plugin that raises is broken from now on and left out."""
        for record, call in self._each(hook, arguments):
            try:
                self._timed(record, hook, call)
            except Exception as error:  # policy of the class: this plugin alone is left out
                logger.warning("plugin %s is broken: %s raised %s", record.name, hook, _one_line(error))
                self._mark_broken(record, error)

    def veto(self, hook: str, **arguments: Any) -> list[Problem]:
        """Veto: every plugin is asked; an exception counts as a refusal."""
        found: list[Problem] = []
        for record, call in self._each(hook, arguments):
            try:
                answers = self._timed(record, hook, call)
            except AgentError as error:
                found.append(Problem(str(error)))
            except Exception as error:  # policy of the class: fail closed
                found.append(Problem(f"plugin {record.name} failed in {hook}: {_one_line(error)}"))
            else:
                found.extend(problems(answers))
        return found

    def provide(self, hook: str, **arguments: Any) -> Any:
        """Provider: the first answer, or None. What the answering plugin raises goes to the caller."""
        for record, call in self._each(hook, arguments):
            answer = self._timed(record, hook, call)
            if answer is not None:
                return answer
        return None

    def notify(self, hook: str, **arguments: Any) -> None:
        """Notification: an exception is logged and counted."""
        for record, call in self._each(hook, arguments):
            try:
                self._timed(record, hook, call)
            except Exception as error:  # policy of the class: never affects an apply
                logger.warning("plugin %s: %s raised %s", record.name, hook, _one_line(error))

    def templates(self) -> dict[str, str]:
        """Template directories by plugin name."""
        found: dict[str, str] = {}
        self.collect("agent_register_templates", register=found.__setitem__)
        return found

    def functions(self, resource: Resource) -> dict[str, Any]:
        """Template functions for one resource."""
        found: dict[str, Any] = {}
        self.collect("agent_register_functions", register=found.__setitem__, resource=resource)
        return found

    def check_settings(self, resource: Resource) -> None:
        """ConfigError for a plugin that is attached but not loaded, or whose settings a plugin refuses."""
        for name in resource.plugins:
            if name not in self.names():
                reasons = [record.reason for record in self.records if record.name == name]
                raise ConfigError(
                    f"{resource.source}: plugins.{name}: "
                    + (f"that plugin is not loaded: {reasons[0]}" if reasons else "there is no such plugin")
                )
        refusals = self.veto("agent_check_settings", resource=resource)
        if refusals:
            text = str(refusals[0])  # one that was raised by a Table begins with the file already
            raise ConfigError(text if text.startswith(resource.source) else f"{resource.source}: {text}")

    def _each(self, hook: str, arguments: dict[str, Any]) -> Iterator[tuple[PluginRecord, Any]]:
        """Every plugin that implements the hook, in calling order, with a call of it alone."""
        caller = getattr(self._manager.hook, hook)
        implementations = [each.plugin for each in reversed(caller.get_hookimpls())]
        records = {id(record.instance): record for record in self.records if record.instance is not None}
        for plugin in implementations:
            others = [other for other in implementations if other is not plugin]
            alone = self._manager.subset_hook_caller(hook, remove_plugins=others)
            yield records[id(plugin)], lambda alone=alone: alone(**arguments)

    def _timed(self, record: PluginRecord, hook: str, call: Any) -> Any:
        started_s = time.monotonic()
        record.calls += 1
        try:
            return call()
        except Exception as error:
            record.errors += 1
            record.last_error = f"{hook}: {_one_line(error)}"
            raise
        finally:
            took_s = time.monotonic() - started_s
            record.slowest_s = max(record.slowest_s, took_s)
            if took_s > SLOW_HOOK_S:
                logger.info("plugin %s: %s took %.1f s", record.name, hook, took_s)


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=PROJECT), key=lambda each: each.name)


def _plugin_files(directory: str) -> Iterator[tuple[PluginRecord, str]]:
    """The ``*.py`` of the plugin folder; one that is not trusted has its refusal as instance."""
    if not os.path.isdir(directory):
        return
    unsafe_directory = unsafe(directory)
    for name in sorted(os.listdir(directory)):
        if name.endswith(".py") and not name.startswith(("_", ".")):
            path = os.path.join(directory, name)
            record = PluginRecord(name.removesuffix(".py"), path)
            if reason := unsafe_directory or unsafe(path):
                record.instance = ConfigError(reason)
            yield record, path


def unsafe(path: str) -> str | None:
    """Why code at ``path`` is not run: somebody else than root or the agent could change it."""
    status = os.stat(path)
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to uid {status.st_uid}, not to root"
    if stat.S_IMODE(status.st_mode) & 0o022:
        return f"{path} is writable by group or others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _load_file(name: str, path: str) -> Any:
    specification = importlib.util.spec_from_file_location(f"etcd_py_agent_plugin_{name}", path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[specification.name]
        raise
    return module


def _check_api(instance: Any) -> None:
    """``AGENT_API = ">=1,<2"`` in a plugin says which major versions of the contract it knows."""
    wanted = getattr(instance, "AGENT_API", None)
    if wanted is None:
        return
    match = _API.fullmatch(str(wanted).replace(" ", ""))
    if match is None:
        raise ValueError(f'AGENT_API: expected a range such as ">=1,<2", not {wanted!r}')
    major = int(HOOK_API.split(".")[0])
    if not int(match.group(1)) <= major < int(match.group(2)):
        raise ValueError(f"it needs hook API {wanted}, this agent has {HOOK_API}")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, AgentError) and text else f"{type(error).__name__}: {text}"
