"""pgbouncer: its two files, the marker that proves that it has read them, and its admin console.

``RELOAD`` (and SIGHUP) succeed whatever the files hold: pgbouncer reads them up to the first mistake, logs
that and goes on. So the last line of the file is an entry of ``[databases]`` whose ``dbname`` is a hash of
all that was to be read; once ``SHOW DATABASES`` shows it, everything above it has been taken. The hash covers
passwords and is shown to pgbouncer's statistics users, so it is a slow one.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from etcd_agent import ReloadError, RenderError, commands, idle

from .model import POSTGRESQL, Database, Pool

MARKER = "etcd_py_agent"
_MARKER_LINE = re.compile(rf"^{MARKER} = .* dbname=([0-9a-f]{{16}})\b", re.MULTILINE)
_DATABASE_LINE = re.compile(rf"^(?!{MARKER} )([A-Za-z0-9_.-]+) = (host=.*)$", re.MULTILINE)
_FIELD = re.compile(r"(\w+)=('(?:[^']|'')*'|\S*)")
_AWAY = re.compile(r"Connection refused|No such file or directory")
_POLL_S = 0.05
_HASH_ROUNDS = 20_000
# What a line of [databases] takes besides the connection (pgbouncer.org/config.html, "Section [databases]").
DATABASE_SETTINGS = (
    "application_name", "auth_dbname", "auth_query", "auth_user", "client_encoding", "connect_query",
    "datestyle", "load_balance_hosts", "max_db_client_connections", "max_db_connections", "min_pool_size",
    "pool_mode", "pool_size", "reserve_pool", "reserve_pool_size", "server_lifetime", "timezone",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Console:
    """How the admin console is reached: a connection string without a password, and a file with it."""

    psql: str
    conninfo: str
    passfile: str


def ini(databases: Iterable[Database], pool: Pool) -> str:
    """pgbouncer.ini, or with no settings only its ``[databases]``, to be included at its end."""
    lines: list[str] = []
    if pool.settings:
        lines += ["[pgbouncer]", *(f"{name} = {value}" for name, value in sorted(pool.settings.items())), ""]
    lines.append("[databases]")
    pooled = [each for each in databases if each.engine == POSTGRESQL]
    for database in pooled:
        if database.name == MARKER:
            raise RenderError(f"the database name {MARKER} is taken by the marker")
        lines.append(f"{database.name} = {_connection(database)}")
    lines.append(f"{MARKER} = host=127.0.0.1 port=1 dbname={_hash(_canonical(pooled, pool))} pool_size=1")
    return "\n".join(lines) + "\n"


def _connection(database: Database) -> str:
    """One connection string, quoted as pgbouncer reads it: a quote is doubled, a backslash means itself."""
    ports = {port for _, port in database.hosts}
    if len(ports) != 1:
        raise RenderError(f"database {database.name}: pgbouncer knows one port for all hosts")
    fields = {
        "host": ",".join(host for host, _ in database.hosts),
        "port": str(ports.pop()),
        "dbname": database.database,
        "user": database.user,
        **({} if database.password is None else {"password": database.password}),
    }
    for name, value in database.pgbouncer.items():
        if name not in DATABASE_SETTINGS:
            raise RenderError(
                f"database {database.name}: pgbouncer: unknown setting {name!r}; "
                f"known: {', '.join(DATABASE_SETTINGS)}"
            )
        fields[name] = value
    return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_./:,-]+", text) else "'" + text.replace("'", "''") + "'"


def userlist(databases: Iterable[Database], pool: Pool) -> str:
    """userlist.txt: ``/clients``, or where there are none the databases' own users."""
    users: dict[str, str] = dict(pool.clients)
    if not users:
        for database in databases:
            if database.engine != POSTGRESQL or database.password is None:
                continue
            if users.setdefault(database.user, database.password) != database.password:
                raise RenderError(
                    f"user {database.user!r} has two passwords; say under /clients who logs in to pgbouncer"
                )
    return "".join(f"{_user(name)} {_user(password)}\n" for name, password in sorted(users.items()))


def _user(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _canonical(databases: Iterable[Database], pool: Pool) -> str:
    return json.dumps([[asdict(each) for each in databases], asdict(pool)], sort_keys=True)


@lru_cache(maxsize=64)
def _hash(text: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", text.encode(), MARKER.encode(), _HASH_ROUNDS).hex()[:16]


@dataclass(frozen=True, slots=True)
class Files:
    """pgbouncer's file as it stands on disk, and its marker."""

    text: str
    marker: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What the console shows: the marker ("" if none), and host, port, database and user of each database."""

    marker: str
    servers: Mapping[str, tuple[str, ...]]


def expected(files: Iterable[str]) -> Files | None:
    """The first of these files that has a marker."""
    for path in files:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        if found := _MARKER_LINE.search(text):
            return Files(text, found.group(1))
    return None


def _run(console: Console, sql: str, timeout_s: float) -> commands.Result:
    environment = {"PGPASSFILE": console.passfile, "PGCONNECT_TIMEOUT": str(max(2, int(timeout_s)))}
    form = ("-X", "-w", "-q", "-A", "-P", "footer=off", "-F", "\t")
    command = (console.psql, *form, "-d", console.conninfo, "-c", sql)
    return commands.run(command, timeout_s=timeout_s, env=environment)


def _asked(console: Console, sql: str, timeout_s: float) -> str:
    """The answer. ReloadError when pgbouncer refuses or is away."""
    result = _run(console, sql, timeout_s)
    if not result.ok:
        raise ReloadError(f"pgbouncer: {result.reason((console.psql, sql), timeout_s)}")
    return result.output


def held(console: Console, timeout_s: float) -> Shown | None:
    """What pgbouncer has read; None when it does not run. ReloadError otherwise."""
    result = _run(console, "SHOW DATABASES", timeout_s)
    if not result.ok:
        if _AWAY.search(result.output):
            return None
        raise ReloadError(f"pgbouncer: {result.reason((console.psql, 'SHOW DATABASES'), timeout_s)}")
    return shown(result.output)


def shown(table: str) -> Shown:
    """The rows of ``SHOW DATABASES``: name, host, port, database, force_user, ..."""
    rows = [line.split("\t") for line in table.splitlines()]
    servers = {row[0]: tuple(row[1:5]) for row in rows if len(row) > 4}
    marker = servers.pop(MARKER, ("", "", "", ""))[2]
    servers.pop("pgbouncer", None)
    return Shown(marker, servers)


def moved(before: Shown, text: str) -> list[str]:
    """The databases whose server connections a reload of this file would replace."""
    found: list[str] = []
    for line in _DATABASE_LINE.finditer(text):
        fields = {name: _unquoted(value) for name, value in _FIELD.findall(line.group(2))}
        wanted = tuple(fields.get(name, "") for name in ("host", "port", "dbname", "user"))
        if before.servers.get(line.group(1), wanted) != wanted:
            found.append(line.group(1))
    return found


def _unquoted(value: str) -> str:
    return value[1:-1].replace("''", "'") if value.startswith("'") else value


def reload(console: Console, files: Files, before: Shown, settle_s: float, timeout_s: float) -> bool:
    """RELOAD, then wait until the marker is there; False if it does not come. ReloadError as ``held``.

    Of a database that moves pgbouncer breaks off the connections that are just logging in to its server,
    takes that for failed logins, and turns clients away for a while (pgbouncer's #420 and #1536). PAUSE does
    the same. So the reload waits for a moment in which none is logging in.
    """
    deadline_s = time.monotonic() + timeout_s
    if names := moved(before, files.text):
        _await_quiet(console, names, min(settle_s, timeout_s), timeout_s)
    _asked(console, "RELOAD", timeout_s)
    while (now := held(console, timeout_s)) is None or now.marker != files.marker:
        if time.monotonic() >= deadline_s:
            return False
        with idle():
            time.sleep(_POLL_S)
    return True


def tell(console: Console, timeout_s: float) -> None:
    """RELOAD without proof. ReloadError as ``held``."""
    _asked(console, "RELOAD", timeout_s)


def _await_quiet(console: Console, names: Sequence[str], settle_s: float, timeout_s: float) -> None:
    """Wait until nothing logs in, seen twice in a row; no longer than ``settle_s``."""
    deadline_s = time.monotonic() + settle_s
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline_s:
        busy = logins(_asked(console, "SHOW POOLS", timeout_s))
        quiet = 0 if any(busy.get(name) for name in names) else quiet + 1
        with idle():
            time.sleep(_POLL_S)


def logins(table: str) -> dict[str, int]:
    """From ``SHOW POOLS`` with its head: how many server connections of each database are logging in."""
    head, *rows = (line.split("\t") for line in table.splitlines())
    found: dict[str, int] = {}
    for row in rows:
        if len(row) == len(head):
            cells = dict(zip(head, row, strict=True))
            found[cells["database"]] = found.get(cells["database"], 0) + int(cells["sv_login"])
    return found
