"""The real etcd with https and with users, for tests of what speaks to it."""

from __future__ import annotations

import http.client
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path

from etcd_client import Client
from etcd_client.types import prefix_range_end
from tests.servers import RealEtcd, Server


class SecureEtcd(RealEtcd):
    """etcd with https for clients when `flags` say how. Ready when its port accepts and it says so."""

    def __init__(self, version: str, folder: Path, *, flags: Sequence[str] = (), https: bool = False) -> None:
        super().__init__(version, folder, flags=flags)
        if https:
            self.url = self.url.replace("http:", "https:")
            self._command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]

    def _healthy(self) -> bool:
        return "ready to serve client requests" in self.log_path.read_text() and self._accepts()

    def _accepts(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.client_port, timeout=1)
        try:
            connection.connect()
        except OSError:
            return False
        connection.close()
        return True


def ask(server: Server, path: str, body: dict[str, object], **options: object) -> None:
    """One administrative call by the way of the client's own session."""
    with Client(server.url, **options) as client:  # type: ignore[arg-type]
        client._session.call(path, body, repeatable=True)


def protect(server: Server, *prefixes: str, **options: object) -> None:
    """Users root and app (with `prefixes`, by default `/app/`), and authentication switched on."""
    for user in ("root", "app"):
        ask(server, "/v3/auth/user/add", {"name": user, "password": f"{user}'s password"}, **options)
        ask(server, "/v3/auth/role/add", {"name": user}, **options)
        ask(server, "/v3/auth/user/grant", {"user": user, "name": user, "role": user}, **options)
    for prefix in prefixes or ("/app/",):
        end = prefix_range_end(prefix)
        keys = {"key": b64encode(prefix.encode()).decode(), "range_end": b64encode(end).decode()}
        permission = {"permType": "READWRITE", **keys}
        ask(server, "/v3/auth/role/grant", {"name": "app", "perm": permission}, **options)
    ask(server, "/v3/auth/enable", {}, **options)
