"""The commands on keys: put, get, del, watch."""

from __future__ import annotations

import sys

import click

from etcd_client import KeyValue, WatchBatch, ops
from etcd_client.ctl.output import (
    KV_TITLES,
    event_json,
    kv_json,
    kv_row,
    printable,
    write_bytes,
    write_json,
    write_table,
)
from etcd_client.ctl.settings import Settings, with_settings

SORT_TARGETS = {"create": "CREATE", "key": "KEY", "modify": "MOD", "value": "VALUE", "version": "VERSION"}


class HexLease(click.ParamType[int]):
    """A lease id, in hexadecimal as `etcdctl lease list` prints it."""

    name = "LEASE"

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> int:
        try:
            return int(str(value), 16)
        except ValueError:
            self.fail(
                f"{value!r}: expected a lease id in hexadecimal, such as 694d7f3a2b1c0d05", param, context
            )


@click.command()
@click.argument("key")
@click.argument("value", required=False)
@click.option("--lease", type=HexLease(), default="0", help="Attach the key to this lease (hexadecimal id).")
@click.option("--prev-kv", is_flag=True, help="Show what was there before.")
@click.option("--ignore-value", is_flag=True, help="Keep the stored value (only change the lease).")
@click.option("--ignore-lease", is_flag=True, help="Keep the lease the key is attached to.")
@with_settings
def put(
    settings: Settings,
    *,
    key: str,
    value: str | None,
    lease: int,
    prev_kv: bool,
    ignore_value: bool,
    ignore_lease: bool,
) -> None:
    """Write KEY. Without VALUE the value is read from standard input.

    \b
    Examples:
      etcd-pyctl put /app/db postgres://db1/app
      etcd-pyctl put /app/tls.crt < server.crt
      etcd-pyctl put -- /app/offset -5
    """
    if value is not None:
        content = value.encode("utf-8", "surrogateescape")
    else:
        content = b"" if ignore_value else sys.stdin.buffer.read()
    with settings.client() as client:
        done = client.put(
            key, content, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
        )
    previous = [done.prev_kv] if done.prev_kv else []
    if settings.write_out == "json":
        document = {"header": {"revision": done.revision}}
        write_json(document | ({"prev_kv": kv_json(done.prev_kv)} if done.prev_kv else {}))
    elif settings.write_out == "table":
        write_table(("REVISION", *KV_TITLES[:2]), [(str(done.revision), key, printable(content))])
    else:
        write_bytes(b"OK", *_lines(previous))


@click.command()
@click.argument("key")
@click.argument("range_end", required=False)
@click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="All keys from KEY on.")
@click.option("--rev", "revision", type=click.IntRange(min=0), default=0, help="As it was at this revision.")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="At most so many keys.")
@click.option("--order", type=click.Choice(["ASCEND", "DESCEND"], case_sensitive=False), help="Sort order.")
@click.option("--sort-by", type=click.Choice(list(SORT_TARGETS), case_sensitive=False), help="Sort by this.")
@click.option("--keys-only", is_flag=True, help="No values.")
@click.option("--count-only", is_flag=True, help="Only how many there are.")
@click.option("--print-value-only", is_flag=True, help="Only the values (simple output).")
@click.option(
    "--consistency", type=click.Choice(["l", "s"]), default="l", help="Linearizable or serializable."
)
@with_settings
def get(
    settings: Settings,
    *,
    key: str,
    range_end: str | None,
    prefix: bool,
    from_key: bool,
    revision: int,
    limit: int,
    order: str | None,
    sort_by: str | None,
    keys_only: bool,
    count_only: bool,
    print_value_only: bool,
    consistency: str,
) -> None:
    """Read KEY, the range from KEY to RANGE_END (exclusive), or a prefix.

    A key that does not exist is no error: nothing is printed.

    \b
    Examples:
      etcd-pyctl get /app/db
      etcd-pyctl get --prefix /app/ --keys-only
      etcd-pyctl get --prefix "" --count-only        (every key)
      etcd-pyctl get /app/db --rev 1200 --print-value-only
    """
    start, end = _span(key, range_end, prefix=prefix, from_key=from_key)
    with settings.client() as client:
        found = client.range(
            start,
            end,
            revision=revision,
            limit=limit,
            sort_order=(order or ("ASCEND" if sort_by else "NONE")).upper(),
            sort_target=SORT_TARGETS[(sort_by or "key").lower()],
            keys_only=keys_only,
            count_only=count_only,
            serializable=consistency == "s",
        )
    if settings.write_out == "json":
        header = {"cluster_id": found.cluster_id, "revision": found.revision}
        document = {"header": header, "kvs": [kv_json(kv) for kv in found.kvs], "count": found.count}
        write_json(document | ({"more": True} if found.more else {}))
    elif count_only:
        click.echo(str(found.count))
    elif settings.write_out == "table":
        write_table(KV_TITLES, map(kv_row, found.kvs))
    elif print_value_only:
        write_bytes(*(kv.value for kv in found.kvs))
    elif keys_only:
        write_bytes(*(kv.key for kv in found.kvs))
    else:
        write_bytes(*_lines(found.kvs))


@click.command(name="del")
@click.argument("key")
@click.argument("range_end", required=False)
@click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="All keys from KEY on.")
@click.option("--prev-kv", is_flag=True, help="Show what was deleted.")
@with_settings
def delete(
    settings: Settings, *, key: str, range_end: str | None, prefix: bool, from_key: bool, prev_kv: bool
) -> None:
    """Delete KEY, the range from KEY to RANGE_END (exclusive), or a prefix; print how many keys that were.

    \b
    Examples:
      etcd-pyctl del /app/db
      etcd-pyctl del --prefix /app/ --prev-kv
    """
    start, end = _span(key, range_end, prefix=prefix, from_key=from_key)
    with settings.client() as client:
        done = client.delete(start, end, prev_kv=prev_kv)
    if settings.write_out == "json":
        document = {"header": {"revision": done.revision}, "deleted": done.deleted}
        write_json(document | ({"prev_kvs": [kv_json(kv) for kv in done.prev_kvs]} if done.prev_kvs else {}))
    elif settings.write_out == "table":
        write_table(("REVISION", "DELETED"), [(str(done.revision), str(done.deleted))])
    else:
        write_bytes(str(done.deleted).encode("ascii"), *_lines(done.prev_kvs))


@click.command()
@click.argument("key")
@click.argument("range_end", required=False)
@click.option("--prefix", is_flag=True, help="All keys that begin with KEY.")
@click.option("--from-key", is_flag=True, help="All keys from KEY on.")
@click.option("--rev", "revision", type=click.IntRange(min=0), default=0, help="Begin with this revision.")
@click.option("--prev-kv", is_flag=True, help="Show the value before each change.")
@with_settings
def watch(
    settings: Settings,
    *,
    key: str,
    range_end: str | None,
    prefix: bool,
    from_key: bool,
    revision: int,
    prev_kv: bool,
) -> None:
    """Print every change of KEY, of a range or of a prefix, until interrupted. Survives the loss of servers.

    \b
    Examples:
      etcd-pyctl watch /app/db
      etcd-pyctl watch --prefix /app/ --rev 1200 -w json
    """
    start, end = _span(key, range_end, prefix=prefix, from_key=from_key)
    with settings.client() as client:
        for batch in client.watch(start, end, start_revision=revision, prev_kv=prev_kv):
            _show(settings.write_out, batch)


def _show(write_out: str, batch: WatchBatch) -> None:
    if not batch.events:
        return
    if write_out == "json":
        events = [event_json(event) for event in batch.events]
        write_json({"revision": batch.revision, "events": events})
    elif write_out == "table":
        rows = ((event.kind.value, *kv_row(event.kv)) for event in batch.events)
        write_table(("TYPE", *KV_TITLES), rows)
    else:
        for event in batch.events:
            previous = [event.prev_kv] if event.prev_kv else []
            write_bytes(event.kind.value.encode("ascii"), *_lines(previous), *_lines([event.kv]))


def _span(key: str, range_end: str | None, *, prefix: bool, from_key: bool) -> tuple[bytes, bytes | None]:
    """What of the keys is meant, as (key, range_end). Raises click.UsageError for two answers at once."""
    if [range_end is not None, prefix, from_key].count(True) > 1:
        raise click.UsageError("RANGE_END, --prefix and --from-key exclude each other")
    start = key.encode("utf-8", "surrogateescape")
    if prefix:
        return ops.prefix_of(start)
    if from_key:
        return start or b"\0", b"\0"
    return start, None if range_end is None else range_end.encode("utf-8", "surrogateescape")


def _lines(kvs: list[KeyValue] | tuple[KeyValue, ...]) -> list[bytes]:
    return [part for kv in kvs for part in (kv.key, kv.value)]
