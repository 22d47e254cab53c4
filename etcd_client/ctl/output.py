"""How answers look: `simple` for people and pipes (etcdctl's form), `json` for programs, `table` to overview.

JSON has etcdctl's shape: keys and values in base64, numbers as numbers. Simple output writes keys and values
as the bytes they are.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import click

from etcd_client import Event, KeyValue

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def write_bytes(*lines: bytes) -> None:
    """Each of `lines` with a line feed, as it is."""
    sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
    sys.stdout.buffer.flush()


def write_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, separators=(",", ":")))


def write_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of text under titles; the first column is aligned to the left, numbers to the right."""
    cells = [list(titles), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    click.echo(rule)
    for number, row in enumerate(cells):
        padded = (
            cell.rjust(width) if number and _is_number(cell) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        click.echo("| " + " | ".join(padded) + " |")
        if number == 0:
            click.echo(rule)
    click.echo(rule)


def size_text(size_bytes: int) -> str:
    """A size with its unit: 20480 -> "20 KiB"."""
    size, unit = float(size_bytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.3g} {_UNITS[unit]}"


def printable(value: bytes) -> str:
    """Bytes for a table cell: UTF-8 where they are, \\xNN where not, control characters escaped."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def kv_json(kv: KeyValue) -> dict[str, Any]:
    document = {
        "key": b64encode(kv.key).decode("ascii"),
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
        "value": b64encode(kv.value).decode("ascii"),
        "lease": kv.lease,
    }
    return {name: field for name, field in document.items() if field}


def event_json(event: Event) -> dict[str, Any]:
    document: dict[str, Any] = {"type": event.kind.value, "kv": kv_json(event.kv)}
    if event.prev_kv is not None:
        document["prev_kv"] = kv_json(event.prev_kv)
    return document


KV_TITLES = ("KEY", "VALUE", "CREATE REVISION", "MOD REVISION", "VERSION", "LEASE")


def kv_row(kv: KeyValue) -> tuple[str, ...]:
    """A row under KV_TITLES."""
    return (
        printable(kv.key),
        printable(kv.value),
        str(kv.create_revision),
        str(kv.mod_revision),
        str(kv.version),
        f"{kv.lease:x}" if kv.lease else "",
    )


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).removesuffix("B").removesuffix(" ").isdigit() or (
        cell[:1].isdigit() and cell.endswith("B")
    )
