"""Which release this is, and whose behaviour it has."""

from __future__ import annotations

import platform
from typing import Final

VERSION: Final = "0.1.0"
"""Of etcd-py."""

ETCD_VERSION: Final = "3.6.0"
"""The release of etcd whose API is served: what /version, Status and `--version` answer to etcd's clients,
which switch features on by it."""

CLUSTER_VERSION: Final = "3.6.0"
"""What the members of one cluster agree on: the lowest level among them, with the patch number 0."""


def describe() -> str:
    """The lines of `--version`. The first is etcd's own, because scripts read it."""
    return (
        f"etcd Version: {ETCD_VERSION}\n"
        f"etcd-py Version: {VERSION}\n"
        f"Python Version: {platform.python_version()}\n"
        f"OS/Arch: {platform.system().lower()}/{platform.machine()}\n"
    )
