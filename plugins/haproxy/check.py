"""The files for ``haproxy -c``: the whole configuration with the staged files in place of the real ones.

HAProxy has no include; it is given its files one by one, or folders whose ``*.cfg`` it reads in the order of
their names. So nothing is copied: the staged files are named instead of the files that they will replace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from etcd_agent import CheckError, Staged


def files(conf: Sequence[str], staged: Staged) -> dict[str, str]:
    """Real file -> the file to check, in HAProxy's order.

    Raises CheckError: no staged file is read from ``conf`` at all.
    """
    paths = {os.path.realpath(file.dest): file.path for file in staged.files}
    removed = {os.path.realpath(dest) for dest in staged.removed}
    found: dict[str, str] = {}
    for entry in conf:
        for path in _expanded(entry, paths):
            if os.path.realpath(path) not in removed:
                found[path] = paths.get(os.path.realpath(path), path)
    read = {os.path.realpath(path) for path in found}
    if staged.files and not read & paths.keys():
        raise CheckError(
            f"haproxy would not read {staged.files[0].dest}: it is not among its files {', '.join(conf)}"
        )
    return found


def _expanded(entry: str, staged: Mapping[str, str]) -> list[str]:
    """A file, or the ``*.cfg`` of a folder as they would be."""
    if not os.path.isdir(entry):
        return [entry]
    real = os.path.realpath(entry)
    names = {name for name in os.listdir(entry) if name.endswith(".cfg") and not name.startswith(".")}
    names |= {os.path.basename(path) for path in staged if os.path.dirname(path) == real}
    return [os.path.join(entry, name) for name in sorted(names) if name.endswith(".cfg")]
