"""A subtree of keys as one tree of values: nested by slashes, typed where that loses nothing. Pure.

A value is what its JSON says if writing that again gives the same text: ``8080``, ``true`` and ``[1, 2]``
become a number, a truth value and a list, while ``1.10`` and ``007`` stay text. A text that looks like one of
those is put in JSON's quotes: ``"8080"``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from etcd_agent import RenderError, View

MAX_DEPTH = 100


def leaves(view: View, top: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path below ``top`` and the value of every key, sorted. RenderError for a key without a name."""
    start = top.rstrip("/")
    for key in view.keys():  # noqa: SIM118 (View is no dict)
        if not key.startswith(start + "/") or key == "/":
            continue
        path = tuple(key[len(start) + 1 :].split("/"))
        if "" in path:
            _fail(view, key, "a part of the key is empty")
        if len(path) > MAX_DEPTH:
            _fail(view, key, f"more than {MAX_DEPTH} parts")
        if any(0xD800 <= ord(each) <= 0xDFFF for each in key):
            _fail(view, key, "the key is not UTF-8")
        yield path, view.getv(key)


def tree(view: View, top: str = "", *, typed: bool = True, lists: bool = False) -> dict[str, Any]:
    """Everything below ``top``. RenderError for a key that is a value and a folder at once.

    With ``lists`` a folder whose names are 0, 1, 2 and so on is a list.
    """
    root: dict[str, Any] = {}
    values: set[tuple[str, ...]] = set()
    for path, text in leaves(view, top):
        for depth in range(1, len(path)):
            if path[:depth] in values:
                key = f"{top.rstrip('/')}/{'/'.join(path[:depth])}"
                _fail(view, key, "it has a value and keys below it; a file can hold only one of both")
        at = root
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = _Leaf(parsed(text) if typed else text)
        values.add(path)
    plain: dict[str, Any] = _plain(root, lists, top=True)
    return plain


class _Leaf:
    """A value, told from a folder: it may be an object itself."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _plain(node: Any, lists: bool, *, top: bool = False) -> Any:
    if isinstance(node, _Leaf):
        return node.value
    names = sorted(node)
    if lists and not top and set(names) == {str(number) for number in range(len(names))}:
        return [_plain(node[str(number)], lists) for number in range(len(names))]
    return {name: _plain(node[name], lists) for name in names}


def parsed(text: str) -> Any:
    """The JSON value that ``text`` is, if it loses nothing; else the text itself."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, int | float) and not isinstance(value, bool) and json.dumps(value) != text.strip():
        return text
    return _sorted(value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def _fail(view: View, key: str, message: str) -> NoReturn:
    raise RenderError(f"key {view.resource.prefix}{key!r}: {message}")


__all__ = ["leaves", "parsed", "tree"]
