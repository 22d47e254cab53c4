"""``NAME=value`` lines that a shell, systemd's ``EnvironmentFile=`` and dotenv libraries read alike. Pure.

Plain values stay bare, so that Docker's ``--env-file``, which knows no quotes, reads them too. Others are
put in single quotes, which all readers take literally. Only a value with a single quote, a backslash or a
line feed needs double quotes with backslashes, where dotenv libraries and shells differ about ``$`` and
backquotes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from etcd_agent import RenderError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_SPECIAL = re.compile(r'(["\\$`])')


def quoted(value: str) -> str:
    """A value as one word of a shell. RenderError for what no reader can be given."""
    if wrong := _CONTROL.search(value):
        raise RenderError(f"an environment file cannot hold the control character {wrong.group()!r}")
    if _BARE.fullmatch(value):
        return value
    if not set("'\\\n") & set(value):
        return f"'{value}'"
    return '"' + _SPECIAL.sub(r"\\\1", value) + '"'


def lines(variables: Mapping[str, str]) -> str:
    """The file. RenderError for a name that is not a variable's."""
    for name in variables:
        if not NAME.fullmatch(name):
            raise RenderError(f"{name!r} is not the name of an environment variable")
    return "".join(f"{name}={quoted(value)}\n" for name, value in variables.items())
