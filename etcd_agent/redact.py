"""Takes values of the store out of a message about a sensitive resource, whoever wrote the message."""

from __future__ import annotations

from etcd_agent.values import Snapshot

_MASK = "***"
# A value of one or two characters would mask half of every message, and hides nothing.
_SHORTEST = 3


def redacted(text: str, snapshot: Snapshot) -> str:
    """``text`` without any value of ``snapshot``, and without the lines of a value of several lines."""
    secrets: set[str] = set()
    for entry in snapshot.entries.values():
        value = entry.value.decode("utf-8", "replace").strip()
        secrets.update((value, *(line.strip() for line in value.splitlines())))
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, _MASK)
    return text
