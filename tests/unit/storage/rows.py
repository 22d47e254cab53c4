"""Entries to write, and a way to do to a closed file what its owner would never do."""

from __future__ import annotations

import apsw

from etcd_server.raft.messages import Entry, EntryKind


def entries(first: int, last: int, term: int = 1, size: int = 10) -> list[Entry]:
    return [Entry(index, term, EntryKind.NORMAL, b"%d" % index * size) for index in range(first, last + 1)]


def run(path: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements on the file at `path`; the rows of the last."""
    connection = apsw.Connection(path)
    try:
        rows: list[tuple[object, ...]] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows
    finally:
        connection.close()
