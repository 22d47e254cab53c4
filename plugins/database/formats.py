"""A ``Database`` as each driver and tool wants it, quoted by that one's own rules. Pure.

Each function says whose parser it writes for; what that parser cannot read back is refused with a
RenderError, never written wrongly. A message names the database, never its password.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from etcd_agent import RenderError

from .. import envfile
from .model import MYSQL, POSTGRESQL, Database

# libpq's names -> pgjdbc's, where they differ; those that have none are refused.
_JDBC_NAMES = {"application_name": "ApplicationName", "connect_timeout": "connectTimeout"}
_JDBC_SAME = {"sslmode", "sslcert", "sslkey", "sslrootcert", "sslpassword", "gssencmode", "options"}
_DJANGO = {POSTGRESQL: "django.db.backends.postgresql", MYSQL: "django.db.backends.mysql"}
_DRIVERS = {POSTGRESQL: "postgresql+psycopg", MYSQL: "mysql+pymysql"}
_DRIVER = re.compile(r"[a-z0-9_]+(?:\+[a-z0-9_]+)?")
_DEFAULT_SOCKET_FOLDERS = ("/tmp", "/run/postgresql", "/var/run/postgresql")


def _encoded(text: str) -> str:
    return quote(text, safe="")


def _query(pairs: Iterable[tuple[str, str]]) -> str:
    text = "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in pairs)
    return f"?{text}" if text else ""


def _credentials(database: Database) -> str:
    password = "" if database.password is None else f":{_encoded(database.password)}"
    return f"{_encoded(database.user)}{password}@"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def libpq_uri(database: Database) -> str:
    """``postgresql://...`` for libpq and all that is built on it (PostgreSQL, "Connection URIs")."""
    database.need(POSTGRESQL, "libpq_uri")
    hosts = ",".join(
        f"{_encoded(host) if host.startswith('/') else _bracketed(host)}:{port}"
        for host, port in database.hosts
    )
    path = f"{hosts}/{_encoded(database.database)}"
    return f"postgresql://{_credentials(database)}{path}{_query(database.options.items())}"


def libpq_dsn(database: Database) -> str:
    """``host='...' port='...'`` (PostgreSQL, "Keyword/Value Connection Strings")."""
    database.need(POSTGRESQL, "libpq_dsn")
    fields = {
        "host": ",".join(host for host, _ in database.hosts),
        "port": ",".join(str(port) for _, port in database.hosts),
        "dbname": database.database,
        "user": database.user,
        **({} if database.password is None else {"password": database.password}),
        **database.options,
    }
    return " ".join(f"{name}='{_escaped(value, chr(92) + chr(39))}'" for name, value in fields.items())


def _escaped(text: str, special: str) -> str:
    """A backslash before each of the special characters."""
    return "".join(f"\\{each}" if each in special else each for each in text)


def pgpass(databases: Iterable[Database]) -> str:
    """``host:port:database:user:password`` for each host (PostgreSQL, "The Password File")."""
    lines: list[str] = []
    for database in databases:
        if database.engine != POSTGRESQL or database.password is None:
            continue
        for host, port in database.hosts:
            # libpq looks its default folder up as "localhost"; which one that is, its build has decided.
            names = [host, "localhost"] if host in _DEFAULT_SOCKET_FOLDERS else [host]
            for name in names:
                fields = (name, str(port), database.database, database.user, database.password)
                lines.append(":".join(_escaped(text, "\\:") for text in fields) + "\n")
    return "".join(dict.fromkeys(lines))


def sqlalchemy_url(database: Database, driver: str = "") -> str:
    """The URL for ``sqlalchemy.create_engine``; ``driver`` as ``postgresql+asyncpg``."""
    driver = driver or _DRIVERS[database.engine]
    if not _DRIVER.fullmatch(driver):
        raise RenderError(f"sqlalchemy_url: expected a driver such as postgresql+psycopg, not {driver!r}")
    # SQLAlchemy takes the path as it stands: versions differ in whether they decode it.
    if _encoded(database.database) != database.database:
        raise RenderError(
            f"database {database.name}: SQLAlchemy's URL cannot hold the database name {database.database!r}"
        )
    pairs = list(database.options.items())
    first, port = database.hosts[0]
    where = f"{_bracketed(first)}:{port}"
    if first.startswith("/") and len(database.hosts) == 1:
        where = ""
        if database.engine == MYSQL:
            pairs.insert(0, ("unix_socket", first))
        else:
            pairs[:0] = [("host", first), ("port", str(port))]
    elif len(database.hosts) > 1:
        if database.engine != POSTGRESQL or any(host.startswith("/") for host, _ in database.hosts):
            database.only_host("sqlalchemy_url")
        where = ""
        pairs[:0] = [("host", f"{_bracketed(host)}:{number}") for host, number in database.hosts]
    return f"{driver}://{_credentials(database)}{where}/{database.database}{_query(pairs)}"


def jdbc_url(database: Database) -> str:
    """``jdbc:postgresql://...`` or ``jdbc:mysql://...``, without user and password."""
    if any(host.startswith("/") for host, _ in database.hosts):
        raise RenderError(f"database {database.name}: JDBC knows no Unix sockets")
    hosts = ",".join(f"{_bracketed(host)}:{port}" for host, port in database.hosts)
    options = {**_jdbc_options(database), **database.jdbc}
    query = _query(sorted(options.items()))
    return f"jdbc:{database.engine}://{hosts}/{_encoded(database.database)}{query}"


def _jdbc_options(database: Database) -> dict[str, str]:
    """libpq's options under pgjdbc's names; MySQL's have none in common with Connector/J."""
    found: dict[str, str] = {}
    for name, value in database.options.items():
        if database.engine == POSTGRESQL and (name in _JDBC_SAME or name in _JDBC_NAMES):
            found[_JDBC_NAMES.get(name, name)] = value
        elif name not in database.jdbc:
            raise RenderError(
                f"database {database.name}: option {name!r} has no name in JDBC; put it under jdbc, too, "
                "with the driver's own name and value"
            )
    return found


def jdbc_properties(database: Database) -> str:
    """``url``, ``user`` and ``password`` for java.util.Properties."""
    fields = {"url": jdbc_url(database), "user": database.user}
    if database.password is not None:
        fields["password"] = database.password
    return "".join(f"{name}={_java(value)}\n" for name, value in fields.items())


def _java(text: str) -> str:
    return "".join(
        f"\\{each}"
        if each in "\\=:#! "
        else each
        if " " <= each <= "~"
        else "".join(f"\\u{unit:04x}" for unit in _utf16(each))
        for each in text
    )


def _utf16(character: str) -> list[int]:
    data = character.encode("utf-16-be")
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]


def my_cnf(database: Database) -> str:
    """``[client]`` of an option file (MySQL, "Using Option Files")."""
    database.need(MYSQL, "my_cnf")
    host, port = database.only_host("my_cnf")
    where = {"socket": host} if host.startswith("/") else {"host": host, "port": str(port)}
    client = {**where, "user": database.user, **database.options}
    if database.password is not None:
        client["password"] = database.password
    # "database" is known to mysql, not to every program that reads [client].
    return "[client]\n" + _my_lines(client) + "[mysql]\n" + _my_lines({"database": database.database})


def _my_lines(fields: Mapping[str, str]) -> str:
    return "".join(f'{name}="{_escaped(value, chr(92) + chr(34))}"\n' for name, value in fields.items())


def django_databases(databases: Iterable[Database], default: str = "") -> str:
    """A Python module with ``DATABASES``; ``default`` is the database that Django calls so."""
    found: dict[str, dict[str, object]] = {}
    for database in databases:
        options: dict[str, object] = dict(database.options)
        alias = "default" if database.name == default else database.name
        entry: dict[str, object] = {
            "ENGINE": _DJANGO[database.engine],
            "NAME": database.database,
            "USER": database.user,
            "HOST": ",".join(host for host, _ in database.hosts),
            "PORT": ",".join(str(port) for _, port in database.hosts),
        }
        if database.engine == MYSQL:
            database.only_host("django_databases")
        if database.password is not None:
            entry["PASSWORD"] = database.password
        if options:
            entry["OPTIONS"] = options
        found[alias] = entry
    return f"DATABASES = {_python(found)}\n"


def _python(value: object, depth: int = 0) -> str:
    """A literal, one entry a line, ASCII only."""
    if not isinstance(value, Mapping):
        return ascii(value)
    inside = "".join(
        f"{'    ' * (depth + 1)}{name!a}: {_python(item, depth + 1)},\n" for name, item in value.items()
    )
    return "{\n" + inside + "    " * depth + "}"


def php_array(database: Database) -> str:
    """A PHP file that returns ``dsn``, ``username`` and ``password`` for PDO."""
    fields = {"dsn": _pdo(database), "username": database.user}
    if database.password is not None:
        fields["password"] = database.password
    lines = [f"    {_php(name)} => {_php(value)},\n" for name, value in fields.items()]
    return "<?php\n\nreturn [\n" + "".join(lines) + "];\n"


def _php(text: str) -> str:
    return "'" + _escaped(text, "\\'") + "'"


def _pdo(database: Database) -> str:
    """PDO's drivers split at semicolons before anything else, so no value may hold one."""
    if database.engine == POSTGRESQL:
        fields = {
            "host": ",".join(host for host, _ in database.hosts),
            "port": ",".join(str(port) for _, port in database.hosts),
            "dbname": database.database,
            **database.options,
        }
        parts = [f"{name}='{_escaped(value, chr(92) + chr(39))}'" for name, value in fields.items()]
    else:
        host, port = database.only_host("php_array")
        fields = {"unix_socket": host} if host.startswith("/") else {"host": host, "port": str(port)}
        fields = {**fields, "dbname": database.database, **database.options}
        parts = [f"{name}={value}" for name, value in fields.items()]
    if any(";" in part for part in parts):
        raise RenderError(f"database {database.name}: a PDO data source name cannot hold a semicolon")
    return f"{'pgsql' if database.engine == POSTGRESQL else 'mysql'}:" + ";".join(parts)


def database_env(database: Database, prefix: str = "DATABASE_") -> str:
    """``DATABASE_URL``, ``DATABASE_HOST``, ... for a shell, systemd and dotenv (see ``envfile``)."""
    url = libpq_uri(database) if database.engine == POSTGRESQL else _plain_url(database)
    fields = {
        "URL": url,
        "HOST": ",".join(host for host, _ in database.hosts),
        "PORT": ",".join(str(port) for _, port in database.hosts),
        "NAME": database.database,
        "USER": database.user,
    }
    if database.password is not None:
        fields["PASSWORD"] = database.password
    return envfile.lines({f"{prefix}{name}": value for name, value in fields.items()})


def libpq_env(database: Database) -> str:
    """``PGHOST``, ``PGPASSWORD`` and the others that libpq itself reads."""
    database.need(POSTGRESQL, "libpq_env")
    names = {"sslmode": "PGSSLMODE", "connect_timeout": "PGCONNECT_TIMEOUT", "application_name": "PGAPPNAME",
             "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY",
             "target_session_attrs": "PGTARGETSESSIONATTRS", "options": "PGOPTIONS"}  # fmt: skip
    fields = {
        "PGHOST": ",".join(host for host, _ in database.hosts),
        "PGPORT": ",".join(str(port) for _, port in database.hosts),
        "PGDATABASE": database.database,
        "PGUSER": database.user,
    }
    if database.password is not None:
        fields["PGPASSWORD"] = database.password
    for name, value in database.options.items():
        if name not in names:
            raise RenderError(f"database {database.name}: libpq reads {name!r} from no environment variable")
        fields[names[name]] = value
    return envfile.lines(fields)


def _plain_url(database: Database) -> str:
    host, port = database.only_host("database_env")
    if host.startswith("/"):
        query = _query([("socket", host), *database.options.items()])
        return f"mysql://{_credentials(database)}localhost/{_encoded(database.database)}{query}"
    where = f"{_bracketed(host)}:{port}/{_encoded(database.database)}"
    return f"mysql://{_credentials(database)}{where}{_query(database.options.items())}"


def as_json(database: Database) -> str:
    """All fields as one JSON object, for what has no format of its own."""
    fields: dict[str, object] = {
        "engine": database.engine,
        "hosts": [{"host": host, "port": port} for host, port in database.hosts],
        "user": database.user,
        "database": database.database,
        "options": dict(database.options),
    }
    if database.password is not None:
        fields["password"] = database.password
    return json.dumps(fields, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
