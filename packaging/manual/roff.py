"""Manual pages in the macros of man(7): text, lists of terms, examples, and Markdown as docs/ uses it.

Nothing here knows what it is about; pages.py does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_CODE = re.compile(r"`([^`]+)`")
_STRONG = re.compile(r"\*\*([^*]+)\*\*")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
_ITEM = re.compile(r"(?:-|\d+\.) ")


def escaped(text: str) -> str:
    """Plain text, so that no character of it is a command."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def inline(text: str) -> str:
    """Code and strong words in bold, links as their words."""
    text = _LINK.sub(r"\1", text)
    parts = re.split(r"(`[^`]+`|\*\*[^*]+\*\*)", text)
    shown = [
        f"\\fB{escaped(part.strip('`*'))}\\fR"
        if _CODE.fullmatch(part) or _STRONG.fullmatch(part)
        else escaped(part)
        for part in parts
    ]
    return "".join(shown)


def head(name: str, volume: int, title: str, version: str) -> str:
    return f'.TH {name.upper()} {volume} "" "etcd-py {version}" "{title}"\n.nh\n.ad l\n'


def section(title: str, *content: str) -> str:
    return f'.SH "{escaped(title.upper())}"\n' + "".join(content)


def subsection(title: str, *content: str) -> str:
    return f'.SS "{escaped(title)}"\n' + "".join(content)


def paragraph(text: str) -> str:
    return f".PP\n{inline(text)}\n"


def term(name: str, *texts: str) -> str:
    """An entry of a list: a term, and what it means."""
    return f".TP\n{name}\n" + "\n.br\n".join(inline(text) for text in texts if text) + "\n"


def bold(text: str) -> str:
    return f"\\fB{escaped(text)}\\fR"


def example(text: str) -> str:
    """As it stands, indented."""
    return f".PP\n.RS 4\n.nf\n{escaped(text.rstrip())}\n.fi\n.RE\n"


def markdown(text: str) -> str:
    """Headings below the page's own, paragraphs, lists, tables as lists of terms, fenced blocks."""
    return "".join(_block(block) for block in _blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterable[list[str]]:
    """Runs of lines that belong together; a fenced block is one, whatever is in it."""
    block: list[str] = []
    fenced = False
    for line in lines:
        if line.startswith("```"):
            if not fenced and block:
                yield block
                block = []
            block.append(line)
            fenced = not fenced
            if not fenced:
                yield block
                block = []
        elif line.strip() or fenced:
            block.append(line)
        elif block:
            yield block
            block = []
    if block:
        yield block


def _block(lines: list[str]) -> str:
    first = lines[0]
    if first.startswith("```"):
        return example("\n".join(lines[1:-1]))
    if first.startswith("#"):
        return subsection(first.lstrip("# ").replace("`", "")) + (_block(lines[1:]) if lines[1:] else "")
    if first.startswith("|"):
        return "".join(_row(line) for line in lines[2:])
    if _ITEM.match(first):
        return _items(lines)
    return paragraph(" ".join(line.strip() for line in lines))


def _row(line: str) -> str:
    cells = [
        cell.strip() for cell in re.split(r"\s\|(?=\s)", line.strip().removeprefix("|").removesuffix("|"))
    ]
    name, *texts = cells
    if len(texts) == 2:
        # name, default, meaning
        texts = [texts[1], f"Default: {texts[0]}" if texts[0] else ""]
    return term(inline(name), *(texts if any(texts) else ["(no more is said)"]))


def _items(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        if _ITEM.match(line):
            items.append(_ITEM.sub("", line, count=1))
        else:
            items[-1] += f" {line.strip()}"
    return "".join(f".IP \\(bu 3\n{inline(item)}\n" for item in items)
