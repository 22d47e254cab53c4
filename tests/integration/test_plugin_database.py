"""The agent, pgbouncer, two real PostgreSQL servers and a real store: traffic moves and passwords are rotated
without a failed query; what pgbouncer does not take goes back; what is written, libpq and pgbouncer read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from etcd_client import Client
from tests import postgres
from tests.plugin_support import AgentProcess, installed_plugins, plugin_module, wait_for
from tests.postgres import Cluster, Pgbouncer
from tests.servers import Server, available_servers, free_ports, start_server

QUERIES = 10_000
STORES = [kind for kind in available_servers() if kind in ("3.4", "etcd-py")]
GROUP = f'group = "{postgres.account()}"' if postgres.account() else ""

pytestmark = [
    pytest.mark.skipif(not postgres.available(), reason="PostgreSQL, psql or pgbouncer is not installed"),
    pytest.mark.skipif(not STORES, reason="no store to run against"),
]


@pytest.fixture(scope="module")
def clusters() -> Iterator[tuple[Cluster, Cluster]]:
    """Two servers, each with a database app, the roles blue and green, and a table that names the server."""
    folder = Path(tempfile.mkdtemp(prefix="etcd-py-postgres-"))
    postgres.give(folder)
    one = Cluster(folder, "one")
    two = Cluster(folder, "two", one)
    try:
        for name, cluster in (("one", one), ("two", two)):
            cluster.start()
            cluster.execute("CREATE DATABASE app")
            cluster.execute(
                f"CREATE TABLE who AS SELECT '{name}' AS name",
                *(f"CREATE ROLE {role} LOGIN PASSWORD '{role}''s' " for role in ("blue", "green")),
                "GRANT SELECT ON who TO blue, green",
                dbname="app",
            )
        yield one, two
    finally:
        one.stop()
        two.stop()
        shutil.rmtree(folder)


class World:
    """A store, pgbouncer with the agent's files, and the agent."""

    def __init__(
        self, folder: Path, store: Server, packages: Path, clusters: tuple[Cluster, Cluster]
    ) -> None:
        self.folder = folder
        self.store = store
        self.clusters = dict(zip(("one", "two"), clusters, strict=True))
        self.client = Client(store.url)
        (self.port,) = free_ports(1)
        self.agent = AgentProcess(folder, packages)
        self.run = Path(tempfile.mkdtemp(prefix="etcd-py-pgbouncer-"))
        postgres.give(self.run)
        self.ini = self.run / "pgbouncer.ini"
        self.pgbouncer: Pgbouncer | None = None
        self.write()

    def write(self, more: str = "") -> None:
        passfile = self.folder / "passfile"
        passfile.write_text(f"127.0.0.1:{self.port}:pgbouncer:admin:ad'min\n")
        passfile.chmod(0o600)
        self.agent.write(
            self.store.url,
            {
                "pool": f"""
[resource]
keys = ["/databases", "/pgbouncer", "/clients"]
[[template]]
src = "database:pgbouncer.ini.j2"
dest = "{self.ini}"
mode = "0640"
sensitive = true
{GROUP}
[[template]]
src = "database:userlist.txt.j2"
dest = "{self.run}/userlist.txt"
mode = "0640"
sensitive = true
{GROUP}
[plugins.database]
pgbouncer = "host=127.0.0.1 port={self.port} user=admin dbname=pgbouncer"
passfile = "{passfile}"
[health]
retries = 2
interval = "100ms"
{more}
"""
            },
        )

    def put(self, key: str, value: str) -> None:
        self.client.put(f"/demo{key}", value)

    def point(self, name: str, user: str = "blue", **more: object) -> None:
        """The database app at a server, by a role, in one write."""
        fields = {
            "host": "127.0.0.1",
            "port": self.clusters[name].port,
            "user": user,
            "password": f"{user}'s",
        }
        self.put("/databases/app", json.dumps({**fields, **more}))

    def start(self) -> None:
        settings = {
            "listen_addr": "127.0.0.1", "listen_port": str(self.port), "unix_socket_dir": "",
            "auth_type": "scram-sha-256", "auth_file": f"{self.run}/userlist.txt", "admin_users": "admin",
            "pool_mode": "transaction", "default_pool_size": "4", "server_login_retry": "1",
        }  # fmt: skip
        for name, value in settings.items():
            self.put(f"/pgbouncer/{name}", value)
        self.put("/clients/web", 'w"eb')
        self.put("/clients/admin", "ad'min")
        self.point("one")
        first = self.agent.run("once")
        assert first.returncode == 0, first.stderr
        self.pgbouncer = Pgbouncer(self.ini, self.folder / "pgbouncer.log")
        self.wait_answer("one")
        self.agent.start()
        self.agent.wait_status("pool", state="APPLIED")

    def connect(
        self, user: str = "web", password: str = 'w"eb', dbname: str = "app"
    ) -> psycopg.Connection[tuple[str]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=user, password=password, dbname=dbname, autocommit=True,
            connect_timeout=5, prepare_threshold=None,
        )  # fmt: skip

    def answer(self) -> str:
        """The server and the role behind pgbouncer."""
        try:
            with self.connect() as connection:
                row = connection.execute("SELECT name || ' ' || current_user FROM who").fetchone()
        except psycopg.Error as error:
            return str(error)
        return row[0].removesuffix(" blue") if row else ""

    def wait_answer(self, wanted: str) -> None:
        wait_for(
            lambda: self.answer() == wanted,
            lambda: f"{wanted} answers, not {self.answer()}; agent:\n{self.agent.tail()}\n{self.log}",
        )

    @property
    def log(self) -> str:
        return (self.folder / "pgbouncer.log").read_text()

    def close(self) -> None:
        self.agent.close()
        if self.pgbouncer is not None:
            self.pgbouncer.stop()
        self.client.close()
        shutil.rmtree(self.run)


@pytest.fixture(params=STORES)
def world(
    request: pytest.FixtureRequest, tmp_path: Path, clusters: tuple[Cluster, Cluster]
) -> Iterator[World]:
    with installed_plugins(tmp_path / "packages") as packages:
        store = start_server(request.param, tmp_path)
        made = World(tmp_path, store, packages, clusters)
        try:
            yield made
        finally:
            made.close()
            store.stop()


class Queries:
    """Clients that query without pause; each connection serves 40 queries."""

    def __init__(self, world: World, threads: int = 3) -> None:
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []
        self._world = world
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    @property
    def total(self) -> int:
        return sum(self.answers.values()) + len(self.errors)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with self._world.connect() as connection:
                    for _ in range(40):
                        row = connection.execute("SELECT name || ' ' || current_user FROM who").fetchone()
                        assert row is not None
                        self.answers[row[0]] += 1
            except psycopg.Error as error:
                self.errors.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Queries:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)


def test_no_query_of_ten_thousand_fails_while_traffic_moves_and_passwords_rotate(world: World) -> None:
    world.start()
    steps = [("two", "blue"), ("two", "green"), ("one", "green"), ("one", "blue")]
    changes = 0
    with Queries(world) as load:
        while load.total < QUERIES or changes < 2 * len(steps):
            server, role = steps[changes % len(steps)]
            world.point(server, role)
            world.wait_answer(server if role == "blue" else f"{server} {role}")
            changes += 1
    assert load.errors == []
    assert set(load.answers) == {f"{server} {role}" for server, role in steps}
    print(f"{load.total} queries, {changes} changes: {dict(load.answers)}")


def test_a_password_is_rotated(world: World) -> None:
    """The role gets a new password, the key follows, and new connections to the server use it."""
    world.start()
    cluster = world.clusters["one"]
    cluster.execute("ALTER ROLE blue PASSWORD 'n\\e''w \"p'")
    try:
        world.point("one", password="n\\e'w \"p")
        wait_for(lambda: "n\\e''w \"p" in world.ini.read_text(), "the file has it")
        world.agent.wait_status("pool", state="APPLIED", reload_pending=False)
        with world.connect("admin", "ad'min", "pgbouncer") as console:
            console.execute("RECONNECT")
        cluster.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'blue'")
        world.wait_answer("one")
        assert "n\\e" not in world.agent.log, "a sensitive value is never logged"
    finally:
        cluster.execute("ALTER ROLE blue PASSWORD 'blue''s'")


def test_a_bad_value_changes_nothing(world: World) -> None:
    world.start()
    good = world.ini.read_text()
    world.put("/databases/app", json.dumps({"host": "two words", "user": "u"}))
    assert "/demo/databases/app: host: expected" in world.agent.wait_status("pool", state="FAILED")["error"]
    world.point("two", pgbouncer={"pool_sise": "5"})
    wait_for(lambda: "unknown setting 'pool_sise'" in world.agent.status("pool")["error"], "it is refused")
    assert world.ini.read_text() == good and world.answer() == "one"
    world.point("two", pgbouncer={"pool_size": "5"})
    world.wait_answer("two")


def test_a_reload_that_does_not_take_is_rolled_back(world: World) -> None:
    """RELOAD succeeds, but pgbouncer stops reading at a value that it does not know."""
    world.write('[reload]\ntimeout = "2s"\n')
    world.start()
    good = world.ini.read_text()
    world.put("/pgbouncer/pool_mode", "transactional")
    error = world.agent.wait_status("pool", state="ROLLED_BACK", reload_pending=False)["error"]
    assert "it has not read its files to their end" in error
    assert 'invalid value "transactional"' in world.log
    assert world.ini.read_text() == good and world.answer() == "one"
    world.put("/pgbouncer/pool_mode", "transaction")
    world.point("two")
    world.wait_answer("two")


def test_a_reload_command_without_effect_is_caught_by_the_health_check(world: World) -> None:
    world.write('[reload]\ncmd = "true"\n')
    world.start()
    good = world.ini.read_text()
    world.point("two")
    error = world.agent.wait_status("pool", state="ROLLED_BACK")["error"]
    assert "pgbouncer has not read the files on disk" in error
    assert world.ini.read_text() == good and world.answer() == "one"


HARD = ["p@ss:w/ord?#&=%+", "it's", 'say "hi"', "back\\slash\\", "'\"'", "$HOME `id`", " lead and trail ",
        "# no", "; no", "ünï 漢字", "a:b\\:c", "=", "%41", "''", '""']  # fmt: skip


def test_psql_and_pgbouncer_read_what_is_written(clusters: tuple[Cluster, Cluster], tmp_path: Path) -> None:
    """Roles and databases with every awkward name and password, by the password file and through the pool."""
    with installed_plugins(tmp_path / "packages"):
        model, formats, pool = (plugin_module(f"database.{name}") for name in ("model", "formats", "pool"))
        (cluster, _), (port,) = clusters, free_ports(1)
        databases = []
        with cluster.connect() as connection:
            for number, text in enumerate(HARD):
                names = {"role": sql.Identifier(f"r{text}"), "database": sql.Identifier(f"d{text}")}
                statement = sql.SQL("CREATE ROLE {role} LOGIN PASSWORD {password}")
                connection.execute(statement.format(**names, password=sql.Literal(text)))
                if number < 6:
                    connection.execute(sql.SQL("CREATE DATABASE {database}").format(**names))
                hosts = (("127.0.0.1", cluster.port),)
                name = f"d{text}" if number < 6 else "app"
                databases.append(model.Database(f"db{number}", "postgresql", hosts, f"r{text}", text, name))
        passfile = tmp_path / "pgpass"
        passfile.write_text(formats.pgpass(databases))
        passfile.chmod(0o600)
        for each in databases:
            # The URI without its password: that is what the file is for.
            bare = formats.libpq_uri(
                model.Database(each.name, each.engine, each.hosts, each.user, None, each.database)
            )
            shown = subprocess.run(
                ["psql", "-X", "-w", "-At", "-d", bare, "-c", "SELECT current_user, current_database()"],
                env={**os.environ, "PGPASSFILE": str(passfile)}, capture_output=True, text=True, timeout=20,
            )  # fmt: skip
            assert shown.stdout == f"{each.user}|{each.database}\n", shown.stderr
        run = Path(tempfile.mkdtemp(prefix="etcd-py-pgbouncer-"))
        settings = {"listen_addr": "127.0.0.1", "listen_port": str(port), "unix_socket_dir": "",
                    "auth_type": "scram-sha-256", "auth_file": f"{run}/users"}  # fmt: skip
        (run / "pgbouncer.ini").write_text(pool.ini(databases, model.Pool(settings, {})))
        (run / "users").write_text(pool.userlist(databases, model.Pool(settings, {})))
        for path in (run, run / "pgbouncer.ini", run / "users"):
            postgres.give(path)
        pgbouncer = Pgbouncer(run / "pgbouncer.ini", run / "log")
        try:
            for each in databases:
                wait_for(lambda each=each: _logs_in(port, each.name, each.user, each.password), each.user)
        finally:
            pgbouncer.stop()
            shutil.rmtree(run)


def _logs_in(port: int, dbname: str, user: str, password: str) -> bool:
    try:
        with psycopg.connect(
            host="127.0.0.1", port=port, user=user, password=password, dbname=dbname, connect_timeout=5
        ) as connection:
            return connection.execute("SELECT current_user").fetchone() == (user,)
    except psycopg.OperationalError as error:
        assert "refused" in str(error), error
        return False
