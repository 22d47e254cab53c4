"""Reads the project's Markdown: sections, tables, fenced blocks, links; only the forms that are used here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block, and the line of text before it."""

    language: str
    text: str
    before: str


def read(path: str) -> str:
    return (ROOT / path).read_text()


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of the same level or above."""
    found = re.search(rf"^(#+) {re.escape(heading)}$\n", text, re.MULTILINE)
    assert found, f"no section {heading!r}"
    level = len(found[1])
    rest = text[found.end() :]
    fences = [match.span() for match in _FENCE.finditer(rest)]
    for end in re.finditer(rf"^#{{1,{level}}} ", rest, re.MULTILINE):
        if not any(begin <= end.start() < stop for begin, stop in fences):
            return rest[: end.start()]
    return rest


def rows(text: str) -> list[list[str]]:
    """The cells of every table row in `text`, without heads."""
    lines = _FENCE.sub("", text).splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for number, line in enumerate(lines)
        if line.startswith("|") and not _is_head(lines, number)
    ]


def _is_head(lines: list[str], number: int) -> bool:
    rule = re.compile(r"\|( --- \|)+")
    return any(rule.fullmatch(line) for line in lines[number : number + 2])


def code(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def blocks(text: str) -> list[Block]:
    return [
        Block(found[1], found[2], text[: found.start()].rstrip().rpartition("\n")[2])
        for found in _FENCE.finditer(text)
    ]


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text))
