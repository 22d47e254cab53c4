"""``etcd-py-agent plugin new NAME``: the beginning of a plugin, a package with a manual and a passing test.

What is written is a whole, small plugin: keys to a file, a check of its settings and of the staged file, a
reload and a health check, with the pure part apart from the rest. Nothing is overwritten.
"""

from __future__ import annotations

import os
import re

from etcd_agent.errors import ConfigError, FilesError

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


def new(name: str, directory: str) -> list[str]:
    """Write the plugin ``name`` into ``directory`` (by default called as it is), and return the files' paths.

    ConfigError for a name that cannot be one; FilesError where something is there already.
    """
    if not _NAME.fullmatch(name) or len(name) > 50:
        raise ConfigError(f"{name!r} cannot name a plugin: expected small letters, digits and single dashes")
    if os.path.lexists(directory):
        raise FilesError(f"{directory}: is there already; nothing was written")
    written = []
    try:
        for path, text in files(name).items():
            target = os.path.join(directory, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "x", encoding="utf-8") as file:
                file.write(text)
            written.append(target)
    except OSError as error:
        raise FilesError(f"{directory}: cannot be written: {error.strerror}") from error
    return written


def files(name: str) -> dict[str, str]:
    """The files of the plugin ``name``, by their paths."""
    module = name.replace("-", "_")
    package = f"etcd_py_agent_{module}"
    values = {"@name@": name, "@module@": module, "@package@": package}
    texts = {
        "pyproject.toml": _PROJECT,
        "README.md": _README,
        f"{package}/__init__.py": _HOOKS,
        f"{package}/model.py": _MODEL,
        f"{package}/templates/{name}.conf.j2": _TEMPLATE,
        f"tests/test_{module}.py": _TEST,
    }
    for placeholder, value in values.items():
        texts = {path: text.replace(placeholder, value) for path, text in texts.items()}
    return texts


_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "etcd-py-agent-@name@"
version = "0.1.0"
description = "@name@ from keys, by etcd-py-agent"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["etcd-py"]

# The name on the left is the plugin's: what [plugins.@name@] and src = "@name@:..." mean.
[project.entry-points.etcd_py_agent]
@name@ = "@package@"

[tool.setuptools]
packages = ["@package@"]

[tool.setuptools.package-data]
"*" = ["templates/*"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
"""

_README = """\
# @name@

## Name

@name@ - say here in one line what it does

## Description

The template `@name@:@name@.conf.j2` writes one line `NAME = VALUE` for each key `/options/NAME` (relative to
the resource's prefix). A value is one line without white space at its ends.

## Settings

| setting | default | meaning |
| --- | --- | --- |
| `max_lines` | 1000 | a file with more is refused |

## Examples

```toml
[resource]
name   = "@name@"
prefix = "/@name@"
keys   = ["/options"]

[[template]]
src  = "@name@:@name@.conf.j2"
dest = "/etc/@name@.conf"

[plugins.@name@]
max_lines = 100
```

```console
etcdctl put /@name@/options/level info
```

## Failure

A wrong value, or too many lines: the resource is FAILED, the error names the key or the file, and the old
file stays.
"""

_HOOKS = '''\
"""@name@: say here what the plugin does.

Attach it with a table ``[plugins.@name@]``; README.md is the manual.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from etcd_agent import Problem, Table, hookimpl, tables

from . import model

AGENT_API = ">=1,<2"
NAME = "@name@"


@dataclass(frozen=True)
class Settings:
    max_lines: int


def settings_of(resource):
    """The settings of a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    settings = Settings(max_lines=table.take("max_lines", tables.integer(1, 1_000_000), 1000))
    table.finish()  # refuses every key that was not taken
    return settings


@hookimpl
def agent_register_templates(register):
    register(NAME, os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates"))


@hookimpl
def agent_register_functions(register, resource):
    if resource.settings(NAME) is not None:
        register("@module@", model.options)


@hookimpl
def agent_check_settings(resource):
    settings_of(resource)


@hookimpl
def agent_validate(resource, staged):
    settings = settings_of(resource)
    if settings is None:
        return None
    for file in staged.files:
        with open(file.path, "rb") as content:
            lines = sum(1 for _ in content)
        if lines > settings.max_lines:
            return Problem(f"{lines} lines; at most {settings.max_lines} (max_lines)", file.dest)
    return None


# agent_reload makes the service read its files again, and agent_health proves that it has (docs/plugins.md of
# etcd-py). Until you write them, [reload] and [health] of the resource file do it.
'''

_MODEL = '''\
"""The keys of @name@, checked value by value. Pure: no disk, no network, no clock."""

from __future__ import annotations

from etcd_agent import RenderError


def options(view):
    """``[(name, value), ...]`` of ``/options``, by name. RenderError names the first wrong key."""
    found = []
    for name in view.ls("/options"):
        value = view.getv(f"/options/{name}")
        if value != value.strip() or len(value.splitlines()) != 1:
            key = f"{view.resource.prefix}/options/{name}"
            raise RenderError(f"key {key}: expected one line without white space at its ends")
        found.append((name, value))
    return found
'''

_TEMPLATE = """\
# Written by etcd-py-agent; changes made here are overwritten.
{% for name, value in @module@() %}
{{ name }} = {{ value }}
{% endfor %}
"""

_TEST = '''\
"""Run with ``python -m pytest``: the plugin in the agent's own hands, without a store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from etcd_agent.plugins import PluginSet
from etcd_agent.values import PluginsConfig, Resource, Staged, StagedFile

import @package@ as plugin

PROJECT = Path(__file__).resolve().parent.parent


def agent(folder, *arguments):
    """Run the agent's command with this plugin in its plugins folder."""
    (folder / "plugins.d").mkdir(mode=0o755, exist_ok=True)
    link = folder / "plugins.d/@name@.py"
    link.write_text(f"import sys\\nsys.path.insert(0, {str(PROJECT)!r})\\nfrom @package@ import *\\n")
    link.chmod(0o644)
    command = [sys.executable, "-m", "etcd_agent.cli", "--config", str(folder / "agent.toml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "agent.toml").write_text(f'state_dir = "{tmp_path}/state"\\n')
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/@name@.toml").write_text(f"""
[resource]
prefix = "/@name@"
keys = ["/options"]
[[template]]
src = "@name@:@name@.conf.j2"
dest = "{tmp_path}/out.conf"
[plugins.@name@]
max_lines = 3
""")
    return tmp_path


def rendered(folder, **options):
    keys = {f"/@name@/options/{name}": value for name, value in options.items()}
    (folder / "keys.json").write_text(json.dumps(keys))
    return agent(folder, "render", "@name@", "--mock-data", str(folder / "keys.json"))


def test_keys_become_a_file(folder):
    result = rendered(folder, level="info", colour="blue")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[2:] == ["colour = blue", "level = info"]


def test_a_wrong_value_names_its_key(folder):
    result = rendered(folder, level="two\\nlines")
    assert result.returncode == 3
    assert "/@name@/options/level: expected one line" in result.stderr


def test_an_unknown_setting_is_refused(folder):
    path = folder / "conf.d/@name@.toml"
    path.write_text(path.read_text().replace("max_lines", "max_line"))
    result = agent(folder, "check-config")
    assert result.returncode == 1 and "did you mean 'max_lines'" in result.stderr


def test_a_long_file_is_refused(tmp_path):
    (tmp_path / "staged").write_text("line\\n" * 4)
    resource = Resource("r", "r.toml", "", ("/options",), (), plugins={"@name@": {"max_lines": 3}})
    staged = Staged(str(tmp_path), (StagedFile("/etc/out.conf", str(tmp_path / "staged"), True),))
    assert str(plugin.agent_validate(resource, staged)) == "/etc/out.conf: 4 lines; at most 3 (max_lines)"


def test_the_agent_loads_it():
    plugins = PluginSet(PluginsConfig("/nowhere"), [("@name@", plugin)])
    (record,) = [record for record in plugins.records if record.source == "built-in"]
    assert (record.state, record.reason) == ("loaded", "")
'''
