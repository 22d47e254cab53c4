"""PostgreSQL and pgbouncer for tests: private clusters on loopback, run as a user that they accept.

A cluster is made once and copied, because making one costs seconds. Durability is switched off.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psycopg

from tests.plugin_support import ended, wait_for
from tests.servers import free_ports

PGBOUNCER = "/usr/sbin/pgbouncer"
SUPERUSER, PASSWORD = "tests", "root of tests"
_SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB",
             "max_connections=50", "listen_addresses=127.0.0.1", "log_min_messages=fatal")  # fmt: skip


def program(name: str) -> str | None:
    """PostgreSQL's own program: Debian keeps each version's in a folder of its own."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)
    return found[0] if found else shutil.which(name)


def account() -> str | None:
    """The user to run as, None if that is who runs the tests."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


def available() -> bool:
    named = program("initdb") and program("postgres") and shutil.which("psql") and os.path.exists(PGBOUNCER)
    return bool(named) and (os.geteuid() != 0 or account() is not None)


def as_account(command: list[str]) -> list[str]:
    user = account()
    return (
        command
        if user is None
        else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *command]
    )


def give(path: Path) -> None:
    """Let the account own a file or folder."""
    user = account()
    if user is not None:
        shutil.chown(path, user, user)


class Cluster:
    """One PostgreSQL server in ``folder``, which the account owns; ``origin`` is one to copy, not started."""

    def __init__(self, folder: Path, name: str, origin: Cluster | None = None) -> None:
        self.data = folder / name
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None
        if origin is not None:
            subprocess.run(as_account(["cp", "-r", str(origin.data), str(self.data)]), check=True, timeout=60)
            return
        secret = folder / "password"
        secret.write_text(PASSWORD)
        give(secret)
        initdb = [str(program("initdb")), "-D", str(self.data), "-U", SUPERUSER, "-A", "scram-sha-256", "-N"]
        initdb += [f"--pwfile={secret}", "--no-instructions", "-E", "UTF8", "--locale=C.UTF-8"]
        subprocess.run(as_account(initdb), check=True, timeout=120, stdout=subprocess.DEVNULL, cwd=folder)

    def start(self) -> None:
        settings = [word for setting in _SETTINGS for word in ("-c", setting)]
        settings += ["-c", f"port={self.port}", "-c", f"unix_socket_directories={self.data}"]
        self._process = subprocess.Popen(
            as_account([str(program("postgres")), "-D", str(self.data), *settings]),
            stdin=subprocess.DEVNULL, cwd=self.data,
        )  # fmt: skip
        wait_for(self._answers, "PostgreSQL answers")

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=SUPERUSER, password=PASSWORD, dbname=dbname,
            autocommit=True, connect_timeout=5,
        )  # fmt: skip

    def execute(self, *statements: str, dbname: str = "postgres") -> None:
        with self.connect(dbname) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def stop(self) -> None:
        if self._process is not None:
            ended([self._process])


class Pgbouncer:
    """pgbouncer with the configuration at ``path``."""

    def __init__(self, path: Path, log: Path) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                as_account([PGBOUNCER, str(path)]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def stop(self) -> None:
        ended([self._process])
