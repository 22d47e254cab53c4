"""https: whom the client believes, the certificate it shows, and what a failed handshake means.

The files are looked at when the client is made, so that a missing or wrong one is told by name and not by a
library's words at the first call; connections made later read them again, so a renewed certificate is taken
without a restart.

Invariant: a certificate is always verified, its name included, unless the caller asked by name for the
opposite (`insecure_skip_verify`).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from traceback import walk_tb
from typing import Any

from requests.adapters import HTTPAdapter


@dataclass(frozen=True, slots=True)
class Tls:
    """ca_file: authorities (PEM) believed instead of the system's. cert: `(certificate, key)`, PEM files.
    server_name: what the server's certificate must be for, instead of the host in its URL.
    """

    ca_file: str | None = None
    cert: tuple[str, str] | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False

    def check_files(self) -> None:
        """Raises ValueError with the file and the reason if one of them cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca_file is not None:
            try:
                context.load_verify_locations(self.ca_file)
            except OSError as error:
                raise ValueError(_file_problem("CA file", self.ca_file, error)) from error
        if self.cert is None:
            return
        certificate, key = self.cert
        for what, path in (("certificate", certificate), ("key", key)):
            try:
                with open(path, "rb"):
                    continue
            except OSError as error:
                raise ValueError(_file_problem(what, path, error)) from error
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                raise ValueError(f"the key {key} does not belong to the certificate {certificate}") from error
            raise ValueError(_file_problem("certificate and key", f"{certificate}, {key}", error)) from error


def _no_password() -> str:
    raise ssl.SSLError(1, "the key is encrypted; expected one without a passphrase")


def _file_problem(what: str, path: str, error: OSError) -> str:
    """Only ssl's own errors are about the content; they rarely say more than that it is not PEM."""
    if not isinstance(error, ssl.SSLError):
        return f"{what} {path}: {error.strerror}"
    reason = error.strerror if "encrypted" in str(error.strerror) else "expected PEM"
    return f"{what} {path}: {reason}"


class TlsAdapter(HTTPAdapter):
    """requests' adapter, with a name to be verified that differs from the host in the URL."""

    def __init__(self, server_name: str) -> None:
        self._server_name = server_name
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options, server_hostname=self._server_name)


# Alerts by which a server refuses the client's certificate or offer (RFC 8446 section 6.2). A server sends
# them only before the handshake is done on its side, so it has taken no request.
_CLIENT_ALERTS = {
    "CERTIFICATE_REQUIRED": "it demands a certificate and this client has none",
    "BAD_CERTIFICATE": "it does not accept this client's certificate",
    "UNKNOWN_CA": "it does not know the authority of this client's certificate",
    "CERTIFICATE_EXPIRED": "this client's certificate has expired",
    "CERTIFICATE_UNKNOWN": "it does not accept this client's certificate",
    "HANDSHAKE_FAILURE": "it and this client have no way of encryption in common",
    "PROTOCOL_VERSION": "it and this client have no version of TLS in common",
}


def handshake_problem(error: OSError) -> str | None:
    """Why there is no TLS connection, if the error says that the request was certainly not received."""
    if isinstance(error, ssl.SSLCertVerificationError):
        message = error.verify_message.rstrip(".")
        hint = "; is the CA file that of the server's authority?" if _is_about_the_issuer(message) else ""
        return f"certificate verify failed: the server's certificate: {message}{hint}"
    reason = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    for name, meaning in _CLIENT_ALERTS.items():
        if reason.endswith(f"ALERT_{name}"):
            return f"the server refuses the TLS handshake: {meaning}"
    if any(frame.f_code.co_name == "do_handshake" for frame, _ in walk_tb(error.__traceback__)):
        words = reason.lower().replace("_", " ") or error.strerror or "no reason given"
        return f"no TLS handshake: {words}; does the endpoint speak https?"
    return None


def lost_connection(error: ssl.SSLError) -> str:
    """In TLS 1.3 the server looks at the client's certificate when the client already sends its request, and
    what it says of it may be lost.
    """
    words = (error.reason or "").lower().replace("_", " ") or "unexpected end"
    return f"the TLS connection ended: {words}; does the server refuse, or miss, this client's certificate?"


def _is_about_the_issuer(message: str) -> bool:
    return any(word in message for word in ("issuer", "self-signed", "self signed"))
