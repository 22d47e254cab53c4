"""Load that runs through a change: HTTP requests, each on a connection of its own, counted by answer."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

from tests.plugin_support import ended, wait_for
from tests.servers import free_ports
from tests.unit.agent.support import write_tree

NGINX = "/usr/sbin/nginx"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class HttpLoad:
    """Threads that ask ``127.0.0.1:port`` without pause from ``with`` to its end."""

    def __init__(self, port: int, threads: int = 3) -> None:
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    @property
    def total(self) -> int:
        return sum(self.answers.values()) + len(self.errors)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers[ask(self._port)] += 1
            except (OSError, ValueError) as error:
                self.errors.append(f"{time.monotonic():.3f} {type(error).__name__}: {error}")

    def __enter__(self) -> HttpLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)


def ask(port: int, timeout_s: float = 10.0) -> str:
    """The body of one GET. OSError or ValueError for anything but a whole answer with status 200."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
        answer = bytearray()
        while part := connection.recv(65_536):
            answer += part
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 ") or not body:
        raise ValueError(f"answer {bytes(answer[:60])!r}")
    return body.decode()


class Backends:
    """One nginx that answers with a name, one for each of its ports."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        temporary = "\n".join(f"{name}_temp_path {folder}/temp;" for name in TEMPORARY)
        servers = "\n".join(
            f'server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ return 200 "{name}"; }} }}'
            for name, port in self.ports.items()
        )
        write_tree(
            folder,
            {
                "temp/.keep": "",
                "nginx.conf": f"daemon off; pid {folder}/pid; error_log {folder}/log;\nevents {{}}\n"
                f"http {{\naccess_log off;\n{temporary}\n{servers}\n}}\n",
            },
        )
        command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "log")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        for port in self.ports.values():
            wait_for(lambda port=port: _listens(port), "a backend listens")

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def close(self) -> None:
        ended([self._process])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
