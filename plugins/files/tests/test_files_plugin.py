"""Keys -> files in five formats, each read back by its own parser."""

from __future__ import annotations

import configparser
import dataclasses
import io
import json
import math
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dotenv
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from etcd_agent import RenderError
from tests.plugin_support import (
    SECTIONS,
    Readme,
    functions_of,
    installed_plugins,
    plugin_module,
    rendered,
    resource_of,
    view_of,
)

PARTS = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=8
)
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PARTS, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
FAST = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def call(name: str, values: dict[str, str], **options: Any) -> Any:
    resource = resource_of("files", options)
    return functions_of("files", resource)[name](view_of(resource, values))


def keys_of(tree: Any, path: str = "") -> dict[str, str]:
    """The keys that say ``tree``: objects are folders, everything else is JSON."""
    if isinstance(tree, dict) and tree:
        found: dict[str, str] = {}
        for name, item in tree.items():
            found |= keys_of(item, f"{path}/{name}")
        return found
    return {path: json.dumps(tree)}


def has_null(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(has_null(item) for item in (value.values() if isinstance(value, dict) else value))
    return value is None


@FAST
@given(st.dictionaries(PARTS, JSON, min_size=1, max_size=4))
def test_json_yaml_and_toml_are_read_back(tree: dict[str, Any]) -> None:
    values = keys_of(tree)
    assert json.loads(call("tree_json", values)) == tree
    assert yaml.safe_load(call("tree_yaml", values)) == tree
    if has_null(tree):
        with pytest.raises(RenderError, match="TOML has no null"):
            call("tree_toml", values)
    else:
        assert tomllib.loads(call("tree_toml", values)) == tree


@FAST
@given(st.dictionaries(st.tuples(PARTS, PARTS), TEXT, min_size=1, max_size=5))
def test_ini_is_read_back(tree: dict[tuple[str, str], str]) -> None:
    values = {f"/{section}/{name}": text for (section, name), text in tree.items()}
    try:
        text = call("tree_ini", values)
    except RenderError:
        assume(False)
    read = configparser.ConfigParser(interpolation=None, default_section="\0", delimiters=("=",))
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string(text)
    assert {
        (section, name): value for section in read.sections() for name, value in read[section].items()
    } == tree


@FAST
@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5})?", fullmatch=True), TEXT, min_size=1, max_size=4)
)
def test_environment_files_are_read_back(tree: dict[str, str]) -> None:
    assume(not any(set("'\\") & set(text) and set("$`") & set(text) for text in tree.values()))
    try:
        text = call("tree_env", {f"/{name}": value for name, value in tree.items()}, env_prefix="X_")
    except RenderError:
        assume(False)
    read = dotenv.dotenv_values(stream=io.StringIO(text), interpolate=False)
    assert read == {f"X_{name.replace('/', '_').upper()}": value for name, value in tree.items()}


def test_a_shell_reads_an_environment_file() -> None:
    values = {"/a/b": 'it\'s $HOME `x` \\ "q"\nsecond line', "/c-d": "", "/e": "plain"}
    script = call("tree_env", values) + 'printf \'%s|%s|%s\' "$A_B" "$C_D" "$E"'
    shown = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=10, check=True)
    assert shown.stdout == f"{values['/a/b']}||plain"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8080", 8080), ("-1", -1), ("1.5", 1.5), ("true", True), ("null", None), ('"8080"', "8080"),
        ("[1, 2]", [1, 2]),
        ('{"b": 1, "a": 2}', {"a": 2, "b": 1}), ("1.10", "1.10"), ("007", "007"), ("1e3", "1e3"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"), ("True", "True"), ("", ""), ("hello", "hello"), ("[1,", "[1,"),
        ("123456789012345678901234567890", 123456789012345678901234567890), ("[" * 5000, "[" * 5000),
    ],
)  # fmt: skip
def test_types(text: str, value: object) -> None:
    read = call("tree", {"/a": text})["a"]
    assert read == value and type(read) is type(value)
    assert call("tree", {"/a": text}, types="text") == {"a": text}
    assert not (isinstance(read, float) and math.isnan(read))


def test_order_lists_and_parts_of_the_tree() -> None:
    values = {"/b/10": "z", "/b/2": "y", "/a": "1", "/l/0": "p", "/l/1/x": "q", "/m/1": "no"}
    assert list(call("tree", values)) == ["a", "b", "l", "m"]
    assert call("tree", values, lists=True) == {
        "a": 1, "b": {"10": "z", "2": "y"}, "l": ["p", {"x": "q"}], "m": {"1": "no"},
    }  # fmt: skip
    assert call("tree", values, top="/b") == {"10": "z", "2": "y"}
    assert call("tree", {}) == {} and call("tree_json", {}) == "{}\n"
    resource = resource_of("files", {"top": "/b"}, prefix="/app")
    assert rendered("files", resource, {"/app/b/c": "d"}, "toml.j2").splitlines()[1:] == ['c = "d"']


@pytest.mark.parametrize(
    ("function", "values", "message"),
    [
        ("tree", {"/a": "1", "/a/b": "2"}, "'/a': it has a value and keys below it"),
        ("tree", {"/a//b": "1"}, "a part of the key is empty"),
        ("tree", {"/a" * 101: "1"}, "more than 100 parts"),
        ("tree_toml", {"/a/b": "[null]"}, "/a/b/0: TOML has no null"),
        ("tree_ini", {"/a": "1"}, "/a: an INI file has sections"),
        ("tree_ini", {"/s/a": "x\n[t]"}, "one line without white space"),
        ("tree_ini", {"/s/a": " x"}, "one line without white space"),
        ("tree_ini", {"/s/#a": "x"}, "INI cannot hold this name"),
        ("tree_ini", {"/s/a=b": "x"}, "INI cannot hold this name"),
        ("tree_ini", {"/s]/a": "x"}, "INI cannot hold this name"),
        ("tree_ini", {"/s.t/a": "x", "/s/t/a": "y"}, r"\[s.t\] has this name from another key"),
        ("tree_env", {"/a/b": "1", "/a_b": "2"}, "would both be A_B"),
        ("tree_env", {"/1": "x"}, "'1', which is not the name of a variable"),
        ("tree_env", {"/a": "x\ty"}, "control character"),
    ],
)
def test_what_cannot_be_held_is_refused(function: str, values: dict[str, str], message: str) -> None:
    with pytest.raises(RenderError, match=message):
        call(function, values)


def test_the_manual_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Readme("files")
    assert readme.sections == SECTIONS
    module = plugin_module("files")
    assert readme.settings == {field.name for field in dataclasses.fields(module.Settings)}
    for name in (Path(__file__).parents[1] / "templates").iterdir():
        assert f"`files:{name.name}`" in readme.text
    for name in module._functions(module.settings_of(resource_of("files"))):
        assert f"`{name}(top)`" in readme.text
    files = readme.render(tmp_path, monkeypatch)
    assert tomllib.loads(files["/etc/app/app.toml"]) == {
        "listen": "127.0.0.1", "log": {"level": "info", "targets": ["journal", "file"]}, "motto": "it's fine",
        "port": 8080,
    }  # fmt: skip
    assert 'APP_MOTTO="it\'s fine"\n' in files["/etc/app/app.env"]
    assert "APP_PORT=8080\n" in files["/etc/app/app.env"]
