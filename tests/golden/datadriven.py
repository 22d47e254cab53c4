"""Golden scripts: text files of commands, each followed by the output that it must print.

A script is a story that a person can read and a reviewer can check. Its parts:

    # A comment explains what the next command shows, and cites the paper.
    put key=a value="two words" lease
    further input lines, handed over as they are
    ----
    the expected output, up to the first blank line

A command is a word with arguments: `name=value`, `name=(a,b,c)`, or a bare `name`. Output that holds a blank
line stands between doubled marks (`----` twice before it and twice after it). `run` gives each command to a
handler and compares. With `pytest tests/golden --rewrite`, or `GOLDEN_REWRITE=1` in the environment, the
handler's output is written into the file instead; read the difference before committing it: it is the change
of behaviour.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "----"
_WORD = re.compile(
    r'(?P<name>[^\s="()]+)(?:=(?:\((?P<list>[^)]*)\)|"(?P<quoted>[^"]*)"|(?P<value>[^\s"()]*)))?(?=\s|$)\s*'
)


@dataclass(slots=True)
class Command:
    """One command: where it stands, its name and arguments, the lines below it, the expected output."""

    location: str
    name: str
    arguments: dict[str, str]
    input: str
    expected: str

    def text(self, name: str, default: str | None = None) -> str:
        """The argument as text; raises ValueError, naming the line, when it is absent and has no default."""
        value = self.arguments.get(name, default)
        if value is None:
            raise ValueError(f"{self.location}: {self.name} needs {name}=")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        """The argument as an integer."""
        return int(self.text(name, None if default is None else str(default)))

    def numbers(self, name: str) -> tuple[int, ...]:
        """The argument `name=(1,2,3)` or `name=1` as integers; empty when it is absent."""
        return tuple(int(item) for item in self.arguments.get(name, "").split(",") if item.strip())

    def flag(self, name: str) -> bool:
        """True when the bare word, or `name=true`, is there."""
        return self.arguments.get(name, "false") in ("", "true")


Handler = Callable[[Command], str]


def scripts(folder: Path) -> list[Path]:
    """The scripts of a folder, in order of name."""
    found = sorted(folder.glob("*.txt"))
    assert found, f"no golden script in {folder}"
    return found


def run(path: Path, handler: Handler, rewrite: bool = False) -> None:
    """Runs a script; raises AssertionError at the first output that differs, or rewrites the file."""
    out: list[str] = []
    for part in _parts(path):
        if isinstance(part, str):
            out.append(part)
            continue
        header, command = part
        actual = handler(command).rstrip("\n")
        if not rewrite:
            assert actual == command.expected, (
                f"{command.location}: {command.name}\nexpected:\n{command.expected}\nactual:\n{actual}"
            )
        doubled = [MARK] if "" in actual.split("\n")[:-1] else []
        body = actual.split("\n") if actual else []
        out += [*header, MARK, *doubled, *body, *doubled, *doubled, ""]
    if rewrite:
        path.write_text("\n".join(out).rstrip("\n") + "\n")


def _parts(path: Path) -> Iterator[str | tuple[list[str], Command]]:
    """Yields the comments and blank lines between commands as they are, and each command with its lines."""
    lines = path.read_text().split("\n")
    at = 0
    while at < len(lines):
        if not lines[at].strip() or lines[at].startswith("#"):
            yield lines[at]
            at += 1
            continue
        start = at
        while at < len(lines) and lines[at] != MARK:
            at += 1
        if at == len(lines):
            raise ValueError(f"{path.name}:{start + 1}: no {MARK} after the command")
        header, doubled = lines[start:at], lines[at + 1 : at + 2] == [MARK]
        at += 2 if doubled else 1
        body = at
        while at < len(lines) and (lines[at : at + 2] != [MARK, MARK] if doubled else lines[at] != ""):
            at += 1
        expected = "\n".join(lines[body:at])
        at += 3 if doubled else 1
        location = f"{path.name}:{start + 1}"
        name, arguments = _command(header[0], location)
        yield header, Command(location, name, arguments, "\n".join(header[1:]), expected)


def _command(line: str, location: str) -> tuple[str, dict[str, str]]:
    """Splits `name argument=value ...`; raises ValueError, naming the line, when it cannot be read."""
    name, _, rest = line.strip().partition(" ")
    arguments: dict[str, str] = {}
    at, rest = 0, rest.strip()
    while at < len(rest):
        found = _WORD.match(rest, at)
        if found is None:
            raise ValueError(f"{location}: cannot read the argument at: {rest[at:]}")
        values = (found["list"], found["quoted"], found["value"])
        arguments[found["name"]] = next((value for value in values if value is not None), "")
        at = found.end()
    return name, arguments
