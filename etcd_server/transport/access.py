"""Who may ask over plain HTTP, and what browsers are told: host white list and CORS, for every page and path.

etcd asks the same questions in the same order (server/embed/serve.go, accessController): a host that is not
listed is refused, unless TLS already proves which host was meant; an allowed origin gets CORS headers;
OPTIONS is answered here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from etcd_server.transport.answers import Headers, HttpAnswer, error_text

ANY = frozenset({"*"})


@dataclass(frozen=True, slots=True)
class AccessRules:
    """`cors`: origins that may call from a browser; `host_whitelist`: host names that requests without TLS
    may be for. "*", or nothing at all, allows everything."""

    cors: frozenset[str] = ANY
    host_whitelist: frozenset[str] = ANY

    def answer(self, method: str, headers: Sequence[tuple[str, str]], *, over_tls: bool) -> HttpAnswer | None:
        """The answer to a request that gets no further, or None. Names of `headers` are in lower case."""
        host = _hostname(_header(headers, "host") or _header(headers, ":authority"))
        if not over_tls and not _allows(self.host_whitelist, host):
            refusal = "is not in the host white list: refused as a possible DNS rebinding"
            return error_text(421, f"the Host header names {host!r}, which {refusal}")
        if method == "OPTIONS":
            return HttpAnswer(200, self.headers(headers), b"")
        return None

    def headers(self, headers: Sequence[tuple[str, str]]) -> Headers:
        """What to add to the answer of a request with these headers."""
        origin = _header(headers, "origin")
        if _allows(self.cors, "*"):
            origin = "*"
        elif origin not in self.cors:
            return []
        return [
            ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
            ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
            ("Access-Control-Allow-Origin", origin),
        ]


def _allows(listed: frozenset[str], name: str) -> bool:
    return not listed or "*" in listed or name in listed


def _header(headers: Sequence[tuple[str, str]], wanted: str) -> str:
    return next((value for name, value in headers if name == wanted), "")


def _hostname(host: str) -> str:
    """The name or address in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and ":" not in name else host
