"""Databases: one source of host, port, user, password and options, written as every driver and tool wants it;
pgbouncer is reloaded and proved to have read what it was given.

Attach it with a table ``[plugins.database]``; README.md is the manual. The plugin keeps no state.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from etcd_agent import Applied, Problem, ReloadError, Resource, Table, View, hookimpl, tables

from . import formats, model, pool

AGENT_API = ">=1,<2"
NAME = model.PLUGIN
_PRIVATE = 0o077
_PASSWORD = re.compile(r"\bpassword\s*=|://[^/@]*:[^/@]*@", re.IGNORECASE)
_ENV_PREFIX = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_]*)?")


@dataclass(frozen=True, slots=True)
class Settings:
    """``[plugins.database]``: which database the templates of one database mean, and where pgbouncer is."""

    name: str
    driver: str
    env_prefix: str
    pgbouncer: str
    passfile: str
    psql: str
    settle_s: float
    require_running: bool

    @property
    def console(self) -> pool.Console:
        return pool.Console(self.psql, self.pgbouncer, self.passfile)


def settings_of(resource: Resource) -> Settings | None:
    """The settings for a resource, or None where the plugin is not attached. Raises ConfigError."""
    data = resource.settings(NAME)
    if data is None:
        return None
    table = Table(data, path=resource.source, at=("plugins", NAME))
    settings = Settings(
        name=table.take("name", tables.string, ""),
        driver=table.take("driver", tables.string, ""),
        env_prefix=table.take("env_prefix", _env_prefix, "DATABASE_"),
        pgbouncer=table.take("pgbouncer", _conninfo, ""),
        passfile=table.take("passfile", tables.optional(tables.absolute_path), ""),
        psql=table.take("psql", tables.absolute_path, "/usr/bin/psql"),
        settle_s=table.take("settle", tables.duration, 2.0),
        require_running=table.take("require_running", tables.boolean, False),
    )
    table.finish()
    return settings


def _env_prefix(value: Any) -> str:
    if not _ENV_PREFIX.fullmatch(tables.string(value)):
        raise ValueError(f"expected the beginning of a variable's name, not {tables.describe(value)}")
    return str(value)


def _conninfo(value: Any) -> str:
    if _PASSWORD.search(tables.string(value)):
        raise ValueError("expected no password here, where ps would show it; put it into passfile")
    return str(value)


@hookimpl
def agent_register_templates(register: Callable[[str, str], None]) -> None:
    register(NAME, os.path.join(os.path.dirname(os.path.abspath(__file__)), "templates"))


@hookimpl
def agent_register_functions(register: Callable[[str, Callable[..., Any]], None], resource: Resource) -> None:
    settings = settings_of(resource)
    if settings is None:
        return
    for name, function in _functions(settings).items():
        register(name, function)


def _functions(settings: Settings) -> Mapping[str, Callable[..., Any]]:
    """What templates call. ``name`` "" is the setting ``name``, or the only database."""

    def one(view: View, name: str) -> model.Database:
        return model.database(view, name or settings.name)

    def single(form: Callable[[model.Database], str]) -> Callable[..., str]:
        return lambda view, name="": form(one(view, name))

    return {
        "database": one_or_default(one),
        "libpq_uri": single(formats.libpq_uri),
        "libpq_dsn": single(formats.libpq_dsn),
        "libpq_env": single(formats.libpq_env),
        "pgpass": lambda view: formats.pgpass(model.databases(view)),
        "pgbouncer_ini": lambda view: pool.ini(model.databases(view), model.pool(view)),
        "pgbouncer_userlist": lambda view: pool.userlist(model.databases(view), model.pool(view)),
        "sqlalchemy_url": lambda view, name="", driver="": formats.sqlalchemy_url(
            one(view, name), driver or settings.driver
        ),
        "jdbc_url": single(formats.jdbc_url),
        "jdbc_properties": single(formats.jdbc_properties),
        "my_cnf": single(formats.my_cnf),
        "django_databases": lambda view: formats.django_databases(model.databases(view), settings.name),
        "php_array": single(formats.php_array),
        "database_env": lambda view, name="": formats.database_env(one(view, name), settings.env_prefix),
        "database_json": single(formats.as_json),
    }


def one_or_default(one: Callable[[View, str], model.Database]) -> Callable[..., model.Database]:
    return lambda view, name="": one(view, name)


@hookimpl
def agent_check_settings(resource: Resource) -> Problem | None:
    """The settings, and that no file with a password can be read by everybody or shown in a diff."""
    if settings_of(resource) is None:
        return None
    for template in resource.templates:
        if not template.sensitive:
            return Problem("it holds passwords: set sensitive = true", template.dest)
        if template.mode is None or template.mode & 0o007:
            return Problem('it holds passwords: set a mode such as "0640"', template.dest)
        if template.src == f"{NAME}:pgpass.j2" and template.mode & _PRIVATE:
            return Problem('libpq ignores it with this mode: set mode = "0600"', template.dest)
    return None


@hookimpl
def agent_reload(resource: Resource, applied: Applied) -> str | None:
    """RELOAD on pgbouncer's console, and wait until it has read the files to their end."""
    settings = settings_of(resource)
    if settings is None or not settings.pgbouncer or resource.reload.configured:
        return None
    timeout_s = resource.reload.timeout_s
    files = pool.expected(applied.files)
    before = pool.held(settings.console, timeout_s)
    if before is None:
        return "pgbouncer does not run; it reads its files when it starts"
    if files is None:  # no pgbouncer.ini of ours among the files, so nothing proves what it reads
        pool.tell(settings.console, timeout_s)
        return "pgbouncer was told to reload"
    if not pool.reload(settings.console, files, before, settings.settle_s, timeout_s):
        raise ReloadError(
            f"pgbouncer was told to reload, but after {timeout_s:g} s it has not read its files "
            "to their end; see its log"
        )
    return "pgbouncer reloaded"


@hookimpl
def agent_health(resource: Resource, applied: Applied) -> Problem | None:
    """What pgbouncer has read is what stands on disk."""
    settings = settings_of(resource)
    if settings is None or not settings.pgbouncer:
        return None
    files = pool.expected(applied.files)
    held = pool.held(settings.console, resource.health.timeout_s)
    if held is None:
        return Problem("pgbouncer does not run") if settings.require_running else None
    if files is not None and held.marker != files.marker:
        return Problem("pgbouncer has not read the files on disk to their end; see its log")
    return None
