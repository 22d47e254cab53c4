"""Rules of the code that a machine can check and that no linter of `make check` does.

Sizes, docstrings, white space, words that do not belong into a repository, who may import the wire, that
every module is used by a program and reached by a test. Generated code is left out. `TIDY_REPORT=1` prints
the files that have grown long, which is a question, not an error.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES, LONG_LINES, MAX_FUNCTION_LINES = 700, 450, 80
# Documents that are as long as what they list; everything else is code.
CODE = (".py", ".pyi", ".rs", ".sh", ".proto")
PACKAGES = ("etcd_server", "etcd_client", "etcd_agent", "plugins", "benchmarks", "scripts", "tools")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
# Put together, so that this file does not hold what it forbids.
FOREIGN = ("/".join(("", "work", "")), "/".join(("..", "shared")), "/".join(("", "root", "")))


@cache
def repository() -> tuple[Path, ...]:
    """The files of the repository, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / line for line in listed.stdout.splitlines())
    return tuple(path for path in paths if path.is_file())


@cache
def tracked() -> tuple[Path, ...]:
    """Those that people write."""
    return tuple(path for path in repository() if not is_generated(path))


def is_generated(path: Path) -> bool:
    return "_pb2." in path.name or path.suffix == ".lock" or path.name == "LICENSE"


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


@cache
def python_files() -> tuple[Path, ...]:
    return tuple(path for path in tracked() if path.suffix == ".py")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path), str(path))


def name_of(path: Path) -> str:
    """The dotted name of a module, "etcd_server.api.keys"."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def show(path: Path, line: int | None = None) -> str:
    return f"{path.relative_to(ROOT)}{'' if line is None else f':{line}'}"


def assert_none(found: list[str], what: str) -> None:
    assert not found, "\n".join([what, *found])


# --- sizes ------------------------------------------------------------------------------------------------


def test_no_file_is_too_long() -> None:
    lengths = {path: text_of(path).count("\n") for path in tracked() if path.suffix in CODE}
    if os.environ.get("TIDY_REPORT"):
        long = sorted(
            (path for path in lengths if lengths[path] > LONG_LINES), key=lambda path: lengths[path]
        )
        print("", *(f"{lengths[path]:5} {show(path)}" for path in long), sep="\n")
    assert_none(
        [f"{show(path)}: {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES],
        f"files of more than {MAX_LINES} lines",
    )


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_function_is_too_long() -> None:
    found = [
        f"{show(path, function.lineno)} {function.name}: {lines} lines"
        for path in python_files()
        for function in functions(path)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert_none(found, f"functions of more than {MAX_FUNCTION_LINES} lines")


# --- what stands in a module ------------------------------------------------------------------------------


def test_every_module_says_what_it_is() -> None:
    found = [
        show(path)
        for path in python_files()
        if text_of(path).strip() and not ast.get_docstring(tree_of(path))
    ]
    assert_none(found, "modules without a docstring")


def test_no_exception_is_swallowed() -> None:
    """No bare `except`, none whose body does nothing, no `suppress` of everything."""
    found = [show(path, line) for path in python_files() for line in _swallowed(tree_of(path))]
    assert_none(found, "exceptions swallowed")


def _swallowed(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            empty = all(isinstance(each, ast.Pass) for each in node.body)
            if node.type is None or empty:
                yield node.lineno
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("suppress")
            and {ast.unparse(each) for each in node.args} & {"Exception", "BaseException"}
        ):
            yield node.lineno


def test_nothing_is_left_to_do() -> None:
    found = [
        show(path, number)
        for path in tracked()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert_none(found, "notes of unfinished work")


def test_no_path_of_one_machine() -> None:
    found = [
        show(path, number)
        for path in tracked()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if any(word in line for word in FOREIGN)
    ]
    assert_none(found, "paths that exist on one machine only")


def test_white_space() -> None:
    found = []
    for path in tracked():
        text = text_of(path)
        for number, line in enumerate(text.splitlines(), 1):
            if line != line.rstrip() or ("\t" in line and path.name != "Makefile"):
                found.append(show(path, number))
        if text and not text.endswith("\n"):
            found.append(f"{show(path)}: no line feed at its end")
    assert_none(found, "tabs, spaces at the end of a line")


# --- who imports whom: the floors are contracts of import-linter, in pyproject.toml -----------------------


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in repository() if path.suffix == ".py"}


@cache
def imports(name: str) -> frozenset[str]:
    """The modules of this repository that a module imports, wherever in it, and their packages."""
    found = set()
    for node in ast.walk(tree_of(modules()[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = _origin(name, node)
            found |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    found |= {".".join(each.split(".")[:depth]) for each in found for depth in range(1, each.count(".") + 1)}
    return frozenset(found & modules().keys())


def _origin(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = modules()[name].name == "__init__.py"
    package = name.split(".")[: None if is_package else -1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def reached_from(roots: set[str]) -> set[str]:
    reached: set[str] = set()
    waiting = set(roots)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= imports(name) - reached
    return reached


def ours() -> set[str]:
    """The modules of the product and its tools, tests left out."""
    return {name for name in modules() if name.startswith(PACKAGES) and not is_test(name)}


def is_test(name: str) -> bool:
    return "tests" in name.split(".")


def entry_points() -> set[str]:
    """Where programs begin: commands, plugins, libraries, and what is run with `python -m`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = project["tool"]["setuptools"]["package-dir"]
    declared = {target.partition(":")[0] for target in project["project"]["scripts"].values()}
    for group in project["project"]["entry-points"].values():
        for target in group.values():
            package, _, rest = target.partition(".")
            declared.add(f"{folders.get(package, package)}.{rest}")
    run = {name for name, path in modules().items() if '\nif __name__ == "__main__":\n' in text_of(path)}
    return declared | run | {"etcd_client", "etcd_agent"}


def test_every_module_is_used() -> None:
    used = reached_from({name for name in entry_points() if not is_test(name)})
    packages = {name for name in ours() if not text_of(modules()[name]).strip()}
    assert_none(sorted(ours() - used - packages), "modules that no program imports")


def test_every_module_of_the_server_is_reached_by_a_test() -> None:
    tests = {name for name in modules() if is_test(name)}
    server = {name for name in ours() if name.startswith("etcd_server")}
    packages = {name for name in server if not text_of(modules()[name]).strip()}
    assert_none(sorted(server - reached_from(tests) - packages), "modules that no test imports")


def test_the_wire_is_imported_in_one_place() -> None:
    """import-linter cannot see it, because it is not Python."""
    wire = re.compile(
        r"^\s*(from\s+\S*\b_wire\s+import|import\s+\S*\b_wire\b|from\s+\S+\s+import\s.*\b_wire\b)"
    )
    importers = {
        name for name in ours() if any(wire.match(line) for line in text_of(modules()[name]).splitlines())
    }
    assert importers == {"etcd_server.transport.wire"}


def test_a_plugin_knows_the_agent_and_the_client_only() -> None:
    own = {name for name in ours() if name.startswith("plugins.")}
    allowed = ("plugins", "etcd_agent", "etcd_client")
    strangers = [f"{name}: {each}" for name in own for each in imports(name) if not each.startswith(allowed)]
    assert_none(strangers, "plugins that import another part")


def test_pluggy_is_imported_in_two_places() -> None:
    pluggy = re.compile(r"^\s*(import|from)\s+pluggy\b", re.MULTILINE)
    importers = {name for name in ours() if pluggy.search(text_of(modules()[name]))}
    assert importers == {"etcd_agent.hookspecs", "etcd_agent.plugins"}
