"""Each line that the server writes at warning level is explained in docs/operations.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests import markdown

ROOT = markdown.ROOT


def warnings() -> Iterator[str]:
    """The texts of `log.warning(TEXT, ...)` and `Notice("warn", TEXT, ...)` that are constants."""
    for path in (ROOT / "etcd_server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            match ast.unparse(node.func), node.args:
                case "log.warning", [ast.Constant(value=str(text)), *_]:
                    yield text
                case "Notice", [ast.Constant(value="warn"), ast.Constant(value=str(text)), *_]:
                    yield text


def test_every_warning_is_explained() -> None:
    table = markdown.rows(markdown.section(markdown.read("docs/operations.md"), "Watching over a member"))
    explained = {text for line, *_ in table for text in markdown.code(line)}
    found = set(warnings())
    assert len(found) > 10
    assert found <= explained
