"""Staged files at their destinations, for one command only: ``check.mode = "overlay"``.

A check such as ``nginx -t`` reads a whole tree; one staged snippet alone proves nothing. So the command runs
in a private mount namespace (``unshare --mount``) where a read-only overlayfs lays the staged files, and
whiteouts for the removed ones, over the directories of the destinations. Nobody else sees it and nothing of
it outlives the command. It needs CAP_SYS_ADMIN and overlayfs; where they are missing the check fails and says
so.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Mapping

from etcd_agent.errors import CheckError
from etcd_agent.values import FileState

_SCRIPT = """set -e
while [ "$1" != -- ]; do mount -t overlay overlay -o "ro,lowerdir=$1:$2" "$2"; shift 2; done
shift
exec "$@"
"""


def top_directories(directories: Iterable[str]) -> tuple[str, ...]:
    """Those directories that do not lie in another one of them."""
    kept: list[str] = []
    for directory in sorted(set(directories), key=lambda path: (path.count("/"), path)):
        if not any(directory == top or directory.startswith(top.rstrip("/") + "/") for top in kept):
            kept.append(directory)
    return tuple(kept)


def build(layers: str, files: Mapping[str, FileState], removed: Iterable[str]) -> tuple[str, ...]:
    """Lay out the layers below ``layers`` and return what precedes the check's command line.

    ``files`` maps destinations to what will stand there. Raises CheckError when that cannot be done here.
    """
    unshare = shutil.which("unshare", path="/usr/bin:/bin:/usr/sbin:/sbin")
    if unshare is None:
        raise CheckError('check.mode = "overlay" needs the command unshare (package util-linux)')
    real = {os.path.realpath(dest): state for dest, state in files.items()}
    gone = [os.path.realpath(dest) for dest in removed]
    tops = top_directories(os.path.dirname(path) for path in [*real, *gone])
    for top in tops:
        if _below(os.path.realpath(layers), top):
            raise CheckError(
                f'check.mode = "overlay" needs a state_dir outside of {top}, where these files are'
            )
    arguments: list[str] = []
    try:
        for number, top in enumerate(tops):
            layer = f"{layers}/{number}"
            os.makedirs(layer, mode=0o700)
            arguments += [_option(layer), top]
            _copy_attributes(top, layer)
            for path, state in real.items():
                if _below(path, top):
                    _place(layer, top, path, state)
            for path in gone:
                if _below(path, top):
                    _directories(layer, top, path)
                    os.mknod(layer + path[len(top.rstrip("/")) :], 0o600 | stat.S_IFCHR, os.makedev(0, 0))
            _option(top)
    except OSError as error:
        raise CheckError(f'check.mode = "overlay": the staged tree cannot be laid out: {error}') from error
    return (unshare, "--mount", "--propagation", "private", "/bin/sh", "-c", _SCRIPT, "sh", *arguments, "--")


def _below(path: str, top: str) -> bool:
    return path.startswith(top.rstrip("/") + "/")


def _place(layer: str, top: str, path: str, state: FileState) -> None:
    _directories(layer, top, path)
    target = layer + path[len(top.rstrip("/")) :]
    with open(target, "wb") as file:
        file.write(state.content)
        os.fchown(file.fileno(), state.uid, state.gid)
        os.fchmod(file.fileno(), state.mode)


def _directories(layer: str, top: str, path: str) -> None:
    """The directories between the layer's top and the file, looking like the real ones."""
    inner = os.path.dirname(path)[len(top.rstrip("/")) :].strip("/")
    made = ""
    for part in inner.split("/") if inner else ():
        made += "/" + part
        if not os.path.isdir(layer + made):
            os.mkdir(layer + made)
            _copy_attributes(top.rstrip("/") + made, layer + made)


def _copy_attributes(source: str, target: str) -> None:
    status = os.stat(source)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))


def _option(path: str) -> str:
    """A path as a mount option; characters that overlayfs gives a meaning are refused rather than escaped."""
    if any(character in path for character in ',:\\"'):
        raise CheckError(f'check.mode = "overlay" cannot use a path with comma, colon or backslash: {path!r}')
    return path
