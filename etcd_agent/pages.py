"""``/metrics /healthz /readyz /status`` on a loopback address or a unix socket, and the control socket.

Both are the standard library's HTTP server in a thread of its own. The control socket stands in the state
directory (0700) and also takes the orders of ``etcd-py-agent apply``, ``rollback`` and ``accept-cluster``
for the running agent. No page holds a value of the store.
"""

from __future__ import annotations

import http.client
import http.server
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from etcd_agent.errors import AgentError, ConfigError, FilesError

logger = logging.getLogger(__name__)

CONTROL = "control.sock"
_LIMIT_S = 5.0
_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer: ``status`` is HTTP's."""

    body: bytes
    status: int = HTTPStatus.OK
    content_type: str = _TEXT


Pages = Mapping[str, Callable[[], Page]]
Orders = Mapping[str, Callable[[Mapping[str, str]], Mapping[str, Any]]]


class Listener:
    """Serves ``pages`` (and ``orders``, by POST) until ``close``."""

    def __init__(self, listen: str, pages: Pages, orders: Orders | None = None) -> None:
        """``listen``: HOST:PORT or unix:PATH. Raises ConfigError if it cannot be listened on."""
        handler = _handler(pages, orders or {})
        self._path = listen.removeprefix("unix:") if listen.startswith("unix:") else ""
        try:
            if self._path:
                self._server: socketserver.TCPServer = _UnixServer(self._path, handler)
            else:
                parts = urlsplit(f"//{listen}")
                address = (parts.hostname or "", parts.port or 0)
                self._server = _Server(address, handler, ipv6=":" in address[0])
        except OSError as error:
            raise ConfigError(f"http.listen {listen}: cannot be listened on: {error.strerror}") from error
        self.port: int = 0 if self._path else self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, name="pages", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        if self._path and os.path.exists(self._path):
            os.unlink(self._path)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Any, *, ipv6: bool) -> None:
        if ipv6:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Replaces what a killed agent has left; 0600; a path may be longer than a socket's address."""
        path = str(self.server_address)
        if os.path.exists(path):
            os.unlink(path)
        with _reachable(path) as address:
            self.socket.bind(address)
        os.chmod(path, 0o600)


class _reachable:
    """The address of a socket's path: by way of its directory's descriptor, which is short."""

    def __init__(self, path: str) -> None:
        self._directory, self._name = os.path.split(path)

    def __enter__(self) -> str:
        self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._descriptor}/{self._name}"

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)


def _handler(pages: Pages, orders: Orders) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _LIMIT_S
        server_version = "etcd-py-agent"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(urlsplit(self.path).path)
            self._answer(page() if page else Page(b"not found\n", HTTPStatus.NOT_FOUND))

        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            order = orders.get(parts.path)
            if order is None:
                self._answer(Page(b"not found\n", HTTPStatus.NOT_FOUND))
                return
            try:
                answer = dict(order(dict(parse_qsl(parts.query))))
            except AgentError as error:
                answer = {"error": str(error), "exit_status": error.exit_status}
            self._answer(Page(json.dumps(answer).encode(), content_type="application/json"))

        def _answer(self, page: Page) -> None:
            self.send_response(page.status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(page.body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(page.body)

        def address_string(self) -> str:
            return "-"

        def log_message(self, format: str, *arguments: object) -> None:
            logger.debug("pages: " + format, *arguments)

    return Handler


def order(state_dir: str, path: str, arguments: Mapping[str, str], limit_s: float) -> dict[str, Any]:
    """Give the running agent an order and return its answer. Raises FilesError if it cannot be reached."""
    connection = http.client.HTTPConnection("localhost", timeout=limit_s)
    try:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(limit_s)
        with _reachable(f"{state_dir}/{CONTROL}") as address:
            connection.sock.connect(address)
        connection.request("POST", f"{path}?{urlencode(arguments)}")
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FilesError(f"{state_dir}/{CONTROL}: the running agent does not answer: {error}") from error
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise FilesError(f"{state_dir}/{CONTROL}: a strange answer")
    return answer
