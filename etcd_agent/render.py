"""Keys -> files: Jinja2 in a sandbox, with confd's function names. Reads templates; touches nothing else.

Undefined names, keys that are missing and keys that are not watched are errors; there is no autoescaping,
blocks are trimmed and the last newline stays. The same snapshot always renders to the same bytes: confd's
``datetime`` and its look-ups of names and files are left out on purpose, because their answers change
without a key changing.
"""

from __future__ import annotations

import base64
import binascii
import grp
import json
import math
import os
import posixpath
import pwd
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

from etcd_agent.errors import RenderError
from etcd_agent.keyspace import Pair, View
from etcd_agent.values import RenderedFile, Resource, Snapshot, Template

Function = Callable[..., Any]
_DELIMITERS = ("variable_start_string", "variable_end_string", "block_start_string", "block_end_string")
MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Item:
    """What ``item`` is inside a template with ``for_each``: one child key."""

    name: str
    key: str
    value: str | None


class Renderer:
    """The templates of one configuration. ``plugin_templates`` maps a plugin's name to its directory."""

    def __init__(
        self,
        template_dir: str,
        *,
        plugin_templates: Mapping[str, str] | None = None,
        host_id: str = "",
        labels: Mapping[str, str] | None = None,
        error_on_missing_key: bool = True,
    ) -> None:
        self._host_id = host_id
        self._labels = dict(labels or {})
        self._error_on_missing_key = error_on_missing_key
        packaged = {
            name: jinja2.FileSystemLoader(directory) for name, directory in (plugin_templates or {}).items()
        }
        self._environment = SandboxedEnvironment(
            loader=jinja2.ChoiceLoader(
                [jinja2.PrefixLoader(packaged, delimiter=":"), jinja2.FileSystemLoader(template_dir)]
            ),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,  # the output is configuration, not HTML
        )
        self._delimited: dict[tuple[str, ...], SandboxedEnvironment] = {(): self._environment}
        self._environment.globals.update(FUNCTIONS)
        self._environment.filters.update(
            {name: function for name, function in FUNCTIONS.items() if name not in self._environment.filters}
        )

    def _environment_of(self, template: Template) -> SandboxedEnvironment:
        """That of all templates, or its like with the template's own delimiters."""
        found = self._delimited.get(template.delimiters)
        if found is None:
            names = _DELIMITERS[: len(template.delimiters)]
            options: dict[str, Any] = dict(zip(names, template.delimiters, strict=True))
            found = self._delimited[template.delimiters] = self._environment.overlay(**options)
        return found

    def check(self, resource: Resource) -> None:
        """Parse the resource's templates. RenderError names the file and line of the first mistake."""
        for template in resource.templates:
            self._load(template)

    def render(
        self, resource: Resource, snapshot: Snapshot, functions: Mapping[str, Function] | None = None
    ) -> tuple[RenderedFile, ...]:
        """Every file of the resource, sorted as its templates are.

        RenderError: one line, nothing was touched.
        """
        view = View(resource, snapshot, error_on_missing_key=self._error_on_missing_key)
        context = self._context(view, functions or {})
        files: list[RenderedFile] = []
        for index, template in enumerate(resource.templates):
            files.extend(self._render_template(index, template, view, context))
        seen: set[str] = set()
        for file in files:
            if file.dest in seen:
                raise RenderError(f"{resource.name}: two templates or keys would write {file.dest}")
            seen.add(file.dest)
        return tuple(files)

    def _context(self, view: View, functions: Mapping[str, Function]) -> dict[str, Any]:
        def bound(function: Function) -> Function:
            return lambda *arguments, **named: function(view, *arguments, **named)

        return {
            **{
                name: getattr(view, name)
                for name in ("exists", "get", "gets", "getv", "getvs", "ls", "lsdir")
            },
            **{name: bound(function) for name, function in functions.items()},
            "revision": view.revision,
            "host": self._host_id,
            "labels": self._labels,
        }

    def _render_template(
        self, index: int, template: Template, view: View, context: dict[str, Any]
    ) -> Iterable[RenderedFile]:
        compiled = self._load(template)
        uid, gid = owner_ids(template)
        for item in _items(template, view):
            variables = context if item is None else {**context, "item": item}
            content = self._run(template.src, partial(compiled.render, variables)).encode("utf-8")
            if len(content) > MAX_FILE_BYTES:
                raise RenderError(
                    f"{template.src}: renders to {len(content)} bytes; at most {MAX_FILE_BYTES}"
                )
            dest = template.dest if item is None else self._destination(template, variables)
            yield RenderedFile(dest, content, template.mode, uid, gid, template.sensitive, index)

    def _destination(self, template: Template, variables: Mapping[str, Any]) -> str:
        pattern = self._run(template.dest, lambda: self._environment.from_string(template.dest))
        dest: str = self._run(template.dest, lambda: pattern.render(variables))
        name = posixpath.basename(dest)
        inside = posixpath.dirname(dest) == posixpath.dirname(template.dest)
        if (
            not inside
            or name in ("", ".", "..")
            or "\0" in name
            or "\n" in name
            or len(os.fsencode(name)) > 200
        ):
            raise RenderError(
                f"a key would make the destination {dest!r}, which is no file beside {template.dest!r}"
            )
        return dest

    def _load(self, template: Template) -> jinja2.Template:
        contents = template.contents
        environment = self._environment_of(template)
        loaded: jinja2.Template = self._run(
            template.src,
            lambda: (
                environment.get_template(template.src)
                if contents is None
                else environment.from_string(contents)
            ),
        )
        return loaded

    def _run(self, src: str, step: Callable[[], Any]) -> Any:
        """Run one step of Jinja2 and turn whatever it raises into one line with its position."""
        try:
            return step()
        except RenderError as error:
            raise RenderError(f"{_position(src, error)}: {error}") from error
        except jinja2.TemplateNotFound as error:
            raise RenderError(f"template {error.name!r} does not exist (src = {src!r})") from error
        except jinja2.TemplateSyntaxError as error:
            raise RenderError(f"{error.name or src}:{error.lineno}: {error.message}") from error
        except (jinja2.UndefinedError, SecurityError, jinja2.TemplateRuntimeError) as error:
            raise RenderError(f"{_position(src, error)}: {error}") from error
        except RecursionError as error:
            raise RenderError(f"{src}: the template includes itself without end") from error
        except OSError as error:
            raise RenderError(f"{src}: cannot be read: {error.strerror}") from error
        except Exception as error:  # a template may call anything on its values; its author gets the line
            raise RenderError(f"{_position(src, error)}: {type(error).__name__}: {error}") from error


def _items(template: Template, view: View) -> list[Item | None]:
    """One Item for each child of ``for_each``, or a single None."""
    if template.for_each is None:
        return [None]
    top = template.for_each.removesuffix("/*")
    items: list[Item | None] = []
    for name in view.ls(top or "/"):
        key = f"{top}/{name}"
        if key == top:
            continue
        has_value = view.exists(key)
        if has_value or name in view.lsdir(top or "/"):
            items.append(Item(name, key, view.getv(key) if has_value else None))
    return items


def _position(src: str, error: BaseException) -> str:
    """``FILE:LINE`` of the innermost template line in the traceback (Jinja2 rewrites it so)."""
    position = src
    trace = error.__traceback__
    while trace is not None:
        if "__jinja_exception__" in trace.tb_frame.f_globals:
            file = posixpath.basename(trace.tb_frame.f_code.co_filename)
            position = f"{src if file.startswith('<') else file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return position


def owner_ids(template: Template) -> tuple[int | None, int | None]:
    """Numbers of the template's owner and group. RenderError when this host does not know them."""
    try:
        uid = pwd.getpwnam(template.owner).pw_uid if isinstance(template.owner, str) else template.owner
    except KeyError as error:
        raise RenderError(f"{template.dest}: this host has no user {template.owner!r}") from error
    try:
        gid = grp.getgrnam(template.group).gr_gid if isinstance(template.group, str) else template.group
    except KeyError as error:
        raise RenderError(f"{template.dest}: this host has no group {template.group!r}") from error
    return uid, gid


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RenderError(
            f"json: not JSON at line {error.lineno} column {error.colno}: {error.msg}"
        ) from error


def _json_object(text: str) -> Any:
    value = _json(text)
    if not isinstance(value, dict):
        raise RenderError("json: expected an object; use jsonArray for an array")
    return value


def _json_array(text: str) -> Any:
    value = _json(text)
    if not isinstance(value, list):
        raise RenderError("jsonArray: expected an array; use json for an object")
    return value


def _getenv(name: str, default: str = "") -> str:
    return os.environ.get(name) or default


def _map(*pairs: Any) -> dict[str, Any]:
    """confd's ``map("name", value, ...)``."""
    if len(pairs) % 2 or not all(isinstance(name, str) for name in pairs[::2]):
        raise RenderError("map takes pairs: a name, then a value")
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def _base64_decode(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise RenderError("base64Decode: not the base64 of a UTF-8 text") from error


def _parse_bool(text: str) -> bool:
    """Go's strconv.ParseBool."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise RenderError(f"parseBool: expected true or false, not {text!r}")


def _atoi(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise RenderError("atoi: not an integer") from error


def _quotient(left: int, right: int) -> int:
    """Division as Go does it: towards zero."""
    if right == 0:
        raise RenderError("div: division by zero")
    return (
        math.trunc(left / right)
        if abs(left) < 2**52
        else (abs(left) // abs(right)) * (1 if left * right > 0 else -1)
    )


def _remainder(left: int, right: int) -> int:
    return left - right * _quotient(left, right)


def _sequence(first: int, last: int) -> list[int]:
    if last - first > 100_000:
        raise RenderError("seq: more than 100000 numbers")
    return list(range(first, last + 1))


def _pair_length(pair: Pair) -> tuple[int, str]:
    return len(pair.key), pair.key


FUNCTIONS: Mapping[str, Function] = {
    "add": lambda left, right: left + right,
    "atoi": _atoi,
    "base": posixpath.basename,
    "base64Decode": _base64_decode,
    "base64Encode": lambda text: base64.b64encode(text.encode("utf-8")).decode("ascii"),
    "contains": lambda text, part: part in text,
    "dir": lambda path: posixpath.dirname(path) or ".",
    "div": _quotient,
    "env": _getenv,
    "getenv": _getenv,
    "join": lambda parts, separator="": separator.join(str(part) for part in parts),
    "json": _json_object,
    "jsonArray": _json_array,
    "map": _map,
    "mod": _remainder,
    "mul": lambda left, right: left * right,
    "parseBool": _parse_bool,
    "replace": lambda text, old, new, count=-1: text.replace(old, new, count),
    "reverse": lambda values: list(values)[::-1],
    "seq": _sequence,
    "sortByLength": lambda values: sorted(values, key=lambda value: (len(value), value)),
    "sortKVByLength": lambda pairs: sorted(pairs, key=_pair_length),
    "split": lambda text, separator: text.split(separator),
    "sub": lambda left, right: left - right,
    "toLower": lambda text: text.lower(),
    "toUpper": lambda text: text.upper(),
    "trimSuffix": lambda text, suffix: text.removesuffix(suffix),
}
