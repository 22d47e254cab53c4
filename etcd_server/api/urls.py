"""URLs of members, as flags, requests and other members give them: what one may look like.

Source of the rules and texts: etcd client/pkg/types/urls.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit


def checked(text: str) -> str:
    """One URL: http or https with host and port and nothing else, unix or unixs with a path. Raises
    ValueError; the text is etcd's where it has one."""
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ValueError(f"{error}: {text}") from None
    if parts.scheme in ("unix", "unixs"):
        if not parts.netloc and not parts.path.strip("/"):
            raise ValueError(f"URL has no path of a socket: {text}")
        return text
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {text}")
    if not _has_port(parts.netloc):
        raise ValueError(f'URL address does not have the form "host:port": {text}')
    if parts.path:
        raise ValueError(f"URL must not contain a path: {text}")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"URL must be a scheme, a host and a port, and nothing else: {text}")
    return text


def of_member(texts: Iterable[str]) -> tuple[str, ...]:
    """The URLs of one member, each once, sorted; there must be one. Raises ValueError."""
    found = {checked(text.strip()) for text in texts}
    if not found:
        raise ValueError("no valid URLs given")
    return tuple(sorted(found))


def _has_port(netloc: str) -> bool:
    name, separator, port = netloc.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return False
    if set(name) & set(" \t<>\"'"):
        return False
    return ":" not in name or (name.startswith("[") and name.endswith("]"))
