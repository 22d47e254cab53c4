"""A copy of nginx's configuration as it would be with the staged files, for ``nginx -t``; the real one is not
touched.

A staged snippet can only be judged inside the whole. From the main file every ``include`` is followed, with
the staged files standing at their destinations and the removed ones gone, and each file is copied with its
includes pointing at the copies. The other entries of the configuration folder become symlinks, so that
relative paths (certificates, password files) are found. No privilege and no mount is needed.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from etcd_agent import CheckError, Staged

_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]|(?:\\.|\$\{|[^\s{};"'#\\])+""", re.DOTALL
)
_WILDCARDS = frozenset("*?[")


@dataclass(slots=True)
class Tree:
    """The copy: ``main`` is for ``nginx -t -c``; ``originals`` maps each copy to its real file."""

    main: str = ""
    originals: dict[str, str] = field(default_factory=dict)

    def translate(self, message: str) -> str:
        """nginx's message with the copies' names replaced by the real ones."""
        for copy in sorted(self.originals, key=len, reverse=True):
            message = message.replace(copy, self.originals[copy])
        return message


def copy_tree(conf: str, staged: Staged, directory: str) -> Tree:
    """Copy the configuration whose main file is ``conf`` into the empty ``directory``.

    Raises CheckError: a file cannot be read, includes itself, or a staged file is not included from ``conf``
    at all.
    """
    copier = _Copier(conf, staged, directory)
    tree = copier.run()
    for file in staged.files:
        if _real(file.dest) not in copier.copies:
            raise CheckError(f"nginx would not read {file.dest}: nothing includes it, starting from {conf}")
    return tree


class _Copier:
    def __init__(self, conf: str, staged: Staged, directory: str) -> None:
        self._conf = conf
        self._conf_dir = os.path.dirname(conf)
        self._directory = directory
        self._staged = {_real(file.dest): file.path for file in staged.files}
        self._dests = {_real(file.dest): file.dest for file in staged.files}
        self._removed = {_real(dest) for dest in staged.removed}
        self._open: list[str] = []
        self._tree = Tree()
        self.copies: dict[str, str] = {}

    def run(self) -> Tree:
        self._tree.main = self._copy(self._conf)
        taken = set(os.listdir(self._directory))
        try:
            for name in os.listdir(self._conf_dir):
                if name not in taken:
                    os.symlink(os.path.join(self._conf_dir, name), os.path.join(self._directory, name))
        except OSError as error:
            raise CheckError(f"{self._conf_dir}: cannot be copied for the check: {error.strerror}") from error
        return self._tree

    def _copy(self, path: str) -> str:
        real = _real(path)
        if real in self._open:
            raise CheckError(f"{path} includes itself")
        if real in self.copies:
            return self.copies[real]
        number = len(self.copies)
        name = os.path.basename(self._conf) if number == 0 else f"etcd-py-agent-{number}.conf"
        copy = self.copies[real] = os.path.join(self._directory, name)
        self._tree.originals[copy] = path
        self._open.append(real)
        text = "".join(self._rewritten(self._read(path)))
        self._open.pop()
        with open(copy, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        return copy

    def _read(self, path: str) -> str:
        try:
            with open(
                self._staged.get(_real(path), path), encoding="utf-8", errors="surrogateescape"
            ) as file:
                return file.read()
        except OSError as error:
            raise CheckError(f"{path}: cannot be read for the check: {error.strerror}") from error

    def _rewritten(self, text: str) -> Iterator[str]:
        """The text with every ``include PATTERN;`` replaced by includes of the copies, on the same line."""
        position = 0
        for start, end, pattern in includes(text):
            matches = self._matches(pattern)
            if matches is None:
                continue  # nginx itself says best that a named file is not there
            yield text[position:start]
            yield " ".join(f'include "{self._copy(match)}";' for match in matches)
            yield "\n" * text.count("\n", start, end)
            position = end
        yield text[position:]

    def _matches(self, pattern: str) -> list[str] | None:
        """The files that nginx would include, in its order; None for a plain name that does not exist."""
        pattern = os.path.join(self._conf_dir, pattern)
        if not _WILDCARDS & set(pattern):
            real = _real(pattern)
            there = real in self._staged or (os.path.exists(pattern) and real not in self._removed)
            return [pattern] if there else None
        found = {path for path in glob.glob(pattern) if _real(path) not in self._removed}
        known = {_real(path) for path in found}
        found |= {
            dest for real, dest in self._dests.items() if real not in known and _matches_glob(dest, pattern)
        }
        return sorted(found)


def includes(text: str) -> Iterator[tuple[int, int, str]]:
    """Every include directive: where it starts, where its ``;`` ends, and its pattern without quotes."""
    words: list[re.Match[str]] = []
    for token in _TOKEN.finditer(text):
        shown = token.group()
        if shown[0].isspace() or shown[0] == "#":
            continue
        if shown in "{};":
            if shown == ";" and len(words) == 2 and words[0].group() == "include":
                yield words[0].start(), token.end(), _unquoted(words[1].group())
            words = []
        else:
            words.append(token)


def _unquoted(word: str) -> str:
    return word[1:-1] if word[0] in "\"'" else word


def _matches_glob(path: str, pattern: str) -> bool:
    """glob(7): ``*`` stops at a slash and does not match a leading dot."""
    names, wanted = path.split("/"), pattern.split("/")
    return len(names) == len(wanted) and all(
        fnmatch.fnmatchcase(name, want) and (not name.startswith(".") or want.startswith("."))
        for name, want in zip(names, wanted, strict=True)
    )


def _real(path: str) -> str:
    return os.path.realpath(path)
