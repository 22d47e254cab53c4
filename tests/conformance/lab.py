"""The servers that are compared, each started once for a run, and what each case saw on each of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.conformance import cases_etcdctl, cases_gateway
from tests.conformance.cases import CASES as GRPC_CASES
from tests.conformance.cases import transcript
from tests.conformance.etcdctl import Session
from tests.conformance.gateway import Gateway
from tests.conformance.target import Exchange, Target
from tests.servers import Server, available_servers, etcdctl_path, start_server

ETCDS = ("3.4", "3.5")
OURS = "etcd-py"
ALL_CASES = (*GRPC_CASES, *cases_gateway.CASES, *cases_etcdctl.CASES)


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
        running = self._servers.get(kind)
        if running is not None and not running.running:
            # A case that ended the server has failed; the cases after it are not to fail with it.
            running.start()
            if kind in self._targets:
                self._targets.pop(kind).close()
        if running is None:
            if kind not in available_servers():
                pytest.skip(f"{kind} is not installed here")
            folder = self._folder / f"{next(self._numbers)}"
            folder.mkdir()
            self._servers[kind] = start_server(kind, folder)
        return self._servers[kind]

    def target(self, kind: str) -> Target:
        address = self.server(kind).address
        if kind not in self._targets:
            self._targets[kind] = Target(address)
        return self._targets[kind]

    def seen(self, kind: str, name: str) -> list[Exchange]:
        """The transcript of the case `name` on `kind`; the case is run once."""
        if (kind, name) not in self._seen:
            if name in GRPC_CASES:
                found = transcript(self.target(kind), GRPC_CASES[name])
            elif name in cases_gateway.CASES:
                found = self._gateway(kind, name)
            else:
                found = self._etcdctl(kind, name)
            self._seen[kind, name] = found
        return self._seen[kind, name]

    def close(self) -> None:
        for target in self._targets.values():
            target.close()
        for server in self._servers.values():
            server.stop()

    def _gateway(self, kind: str, name: str) -> list[Exchange]:
        gateway = Gateway(self.server(kind).url, self.target(kind))
        gateway.begin()
        cases_gateway.CASES[name](gateway)
        gateway.close()
        return gateway.transcript

    def _etcdctl(self, kind: str, name: str) -> list[Exchange]:
        program = etcdctl_path()
        if program is None:
            pytest.skip("etcdctl 3.4 is not installed here")
        target = self.target(kind)
        target.begin()
        session = Session(program, target, self.server(kind).address)
        cases_etcdctl.CASES[name](session)
        return session.transcript
