"""https: whom the client believes, and the certificate by which it says who it is."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_client import Client, Unreachable

OPENSSL = shutil.which("openssl")
LIMIT_S = 5.0
ANSWER = b'{"header":{"revision":"7"},"count":"0"}'

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="the openssl program is not installed")


def authority(folder: Path, name: str) -> Path:
    """A certificate authority; returns its certificate, with its key beside it."""
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt",
    )  # fmt: skip
    return folder / f"{name}.crt"


def issued(folder: Path, name: str, ca: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 issued by `ca`: (certificate, key)."""
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", request,
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca.with_suffix(".key"), "-CAcreateserial",
        "-days", "2", "-extfile", extensions, "-out", folder / f"{name}.crt",
    )  # fmt: skip
    return str(folder / f"{name}.crt"), str(folder / f"{name}.key")


def _openssl(*arguments: str | Path) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *map(str, arguments)], check=True, capture_output=True, timeout=20)


class TlsServer:
    """Answers every request with ANSWER and demands a client certificate; notes the names that came."""

    def __init__(self, folder: Path) -> None:
        self.ca = authority(folder, "ca")
        self.names: list[str] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*issued(folder, "server", self.ca))
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        self._listener = context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                # A handshake that failed, or the end; which of them, the loop's condition says.
                continue
            with connection:
                connection.settimeout(LIMIT_S)
                shown: Any = connection.getpeercert()
                self.names.append(dict(pair for group in shown["subject"] for pair in group)["commonName"])
                read = b""
                while not read.endswith(b"}"):
                    read += connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER))

    def close(self) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_S)
        self._listener.close()
        assert not self._thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    made = TlsServer(tmp_path)
    yield made
    made.close()


def test_both_sides_prove_who_they_are(server: TlsServer, tmp_path: Path) -> None:
    certificate = issued(tmp_path, "me", server.ca)
    with Client(server.url, ca_file=str(server.ca), cert=certificate) as client:
        assert client.range("k").revision == 7
    assert server.names == ["me"]


def test_a_server_that_cannot_prove_itself_is_sent_nothing(server: TlsServer, tmp_path: Path) -> None:
    certificate = issued(tmp_path, "me", server.ca)
    other = authority(tmp_path, "other")
    with (
        Client(server.url, ca_file=str(other), cert=certificate, timeout_s=0.3) as client,
        pytest.raises(Unreachable, match="certificate verify failed"),
    ):
        client.put("k", "v")
    assert server.names == []
