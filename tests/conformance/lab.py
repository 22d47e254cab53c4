"""The servers that are compared, each started once for a run, and what each case saw on each of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.target import Exchange, Target
from tests.servers import Server, available_servers, start_server

ETCDS = ("3.4", "3.5")
OURS = "etcd-py"


class Lab:
    """Starts servers when they are first needed and remembers the transcripts of the cases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[str, Server] = {}
        self._targets: dict[str, Target] = {}
        self._seen: dict[tuple[str, str], list[Exchange]] = {}
        self._numbers = itertools.count()

    def server(self, kind: str) -> Server:
        """The running server of `kind`; skips the test when it cannot be started here."""
        if kind not in self._servers:
            if kind not in available_servers():
                pytest.skip(f"{kind} is not installed here")
            folder = self._folder / f"{next(self._numbers)}"
            folder.mkdir()
            self._servers[kind] = start_server(kind, folder)
        return self._servers[kind]

    def target(self, kind: str) -> Target:
        if kind not in self._targets:
            self._targets[kind] = Target(self.server(kind).address)
        return self._targets[kind]

    def seen(self, kind: str, name: str, run: Callable[[], list[Exchange]]) -> list[Exchange]:
        """What `run` returned for the case `name` on `kind`; run once."""
        if (kind, name) not in self._seen:
            self._seen[kind, name] = run()
        return self._seen[kind, name]

    def close(self) -> None:
        for target in self._targets.values():
            target.close()
        for server in self._servers.values():
            server.stop()


def pretty(document: object) -> str:
    """JSON in one form, for comparison."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
