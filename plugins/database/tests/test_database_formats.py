"""What is written, the real parser reads back: libpq, MySQL's option files, Java, PHP, Python, shells."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dotenv
import psycopg
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_agent import RenderError
from tests.plugin_support import installed_plugins, plugin_module

HARD = [
    "plain", "p@ss:w/ord?#&=%+", "it's", 'say "hi"', "back\\slash", "\\", "'", '"', "''", "$HOME `id` ${x}",
    " leading and trailing ", "# no comment", "; no comment", "ünï çödé 漢字 🐘", "a:b\\:c", "=", "!", "%41",
    "{{ x }}", "\\n\\t\\s\\\\", "a;b", "*", "",
]  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(HARD),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20),
    st.text(st.sampled_from("'\"\\$`;:#=%@/? ab+&!{}"), max_size=12),
)
FILLED = TEXT.filter(bool)


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def formats() -> Any:
    return plugin_module("database.formats")


def database(password: str | None = "secret", *, user: str = "u", name: str = "d", **more: Any) -> Any:
    fields = {"engine": "postgresql", "hosts": (("db.example", 5432),), **more}
    return plugin_module("database.model").Database(
        "app", user=user, password=password, database=name, **fields
    )


def need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


FAST = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FAST
@given(FILLED, TEXT, FILLED, FILLED)
def test_libpq_reads_the_uri_and_the_dsn(user: str, password: str, name: str, option: str) -> None:
    for hosts, shown in (
        ((("db.example", 5433),), "db.example"),
        ((("::1", 5433), ("10.0.0.1", 5433)), "::1,10.0.0.1"),
        ((("/run/pg", 5433),), "/run/pg"),
    ):
        made = database(password, user=user, name=name, hosts=hosts, options={"application_name": option})
        expected = {
            "user": user, "password": password, "dbname": name, "host": shown,
            "port": ",".join(["5433"] * len(hosts)), "application_name": option,
        }  # fmt: skip
        for form in (formats().libpq_uri, formats().libpq_dsn):
            read = psycopg.conninfo.conninfo_to_dict(form(made))
            assert {name: read.get(name, "") for name in expected} == expected
    assert "password" not in psycopg.conninfo.conninfo_to_dict(formats().libpq_uri(database(None)))


@FAST
@given(FILLED, TEXT, st.from_regex(r"[A-Za-z0-9_.~-]+", fullmatch=True), FILLED)
def test_sqlalchemy_reads_its_url(user: str, password: str, name: str, option: str) -> None:
    made = database(password, user=user, name=name, options={"application_name": option})
    url = sqlalchemy.make_url(formats().sqlalchemy_url(made))
    assert (url.username, url.password, url.database) == (user, password, name)
    assert (url.host, url.port, url.drivername) == ("db.example", 5432, "postgresql+psycopg")
    assert dict(url.query) == {"application_name": option}


def test_sqlalchemy_and_sockets_ipv6_and_several_hosts() -> None:
    def url(**more: Any) -> sqlalchemy.URL:
        return sqlalchemy.make_url(formats().sqlalchemy_url(database(**more)))

    assert url(hosts=(("::1", 1),)).host == "::1"
    assert dict(url(hosts=(("/run/pg", 5433),)).query) == {"host": "/run/pg", "port": "5433"}
    assert dict(url(hosts=(("/run/my", 1),), engine="mysql").query) == {"unix_socket": "/run/my"}
    assert url(hosts=(("a", 1), ("::1", 2))).query["host"] == ("a:1", "[::1]:2")
    with pytest.raises(RenderError, match="knows one host"):
        url(hosts=(("a", 1), ("b", 2)), engine="mysql")
    with pytest.raises(RenderError, match="cannot hold the database name"):
        url(name="a b")


def test_mysql_reads_its_option_file(tmp_path: Path) -> None:
    program = need("my_print_defaults")
    for number, text in enumerate([*HARD, *(a + b for a in HARD[:12] for b in HARD[:12])]):
        made = database(
            text, user="u" + text, name="n" + text, engine="mysql", options={"ssl-ca": f"/{text}"}
        )
        path = tmp_path / f"{number}.cnf"
        path.write_text(formats().my_cnf(made))
        shown = subprocess.run(
            [program, f"--defaults-file={path}", "client", "mysql"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout  # fmt: skip
        assert shown.splitlines() == [
            "--host=db.example", "--port=5432", f"--user=u{text}", f"--ssl-ca=/{text}", f"--password={text}",
            f"--database=n{text}",
        ]  # fmt: skip


JAVA = """
import java.io.*; import java.util.*;
class Read { public static void main(String[] paths) throws IOException {
  PrintStream out = new PrintStream(System.out, true, "UTF-8");
  for (String path : paths) { Properties read = new Properties(); read.load(new FileInputStream(path));
    out.println(read.getProperty("user") + "\\u0001" + read.getProperty("password") + "\\u0001"
      + read.getProperty("url") + "\\u0001" + read.size()); } } }
"""


def test_java_reads_its_properties(tmp_path: Path) -> None:
    program = need("javac") and need("java")
    (tmp_path / "Read.java").write_text(JAVA)
    paths, expected = [], []
    for number, text in enumerate([*HARD, *(a + b for a in HARD[:10] for b in HARD[:10])]):
        made = database(text, user="u" + text, name="n", options={"connect_timeout": "3"}, jdbc={"a": text})
        paths.append(tmp_path / f"{number}.properties")
        paths[-1].write_text(formats().jdbc_properties(made), encoding="latin-1")
        expected.append([f"u{text}", text, formats().jdbc_url(made), "3"])
    result = subprocess.run(
        [program, tmp_path / "Read.java", *paths], capture_output=True, text=True, timeout=100, check=True
    )
    assert [line.split("\1") for line in result.stdout.splitlines()] == expected


def test_jdbc_urls_and_their_options() -> None:
    made = database(
        hosts=(("::1", 1), ("b", 2)), name="a b/c", options={"sslmode": "require"}, jdbc={"x": "&"}
    )
    assert formats().jdbc_url(made) == "jdbc:postgresql://[::1]:1,b:2/a%20b%2Fc?sslmode=require&x=%26"
    with pytest.raises(RenderError, match="'target_session_attrs' has no name in JDBC"):
        formats().jdbc_url(database(options={"target_session_attrs": "read-write"}))
    with pytest.raises(RenderError, match="no Unix sockets"):
        formats().jdbc_url(database(hosts=(("/run", 1),)))


@FAST
@given(FILLED, TEXT, FILLED, FILLED)
def test_python_reads_what_django_imports(user: str, password: str, name: str, option: str) -> None:
    made = database(password, user=user, name=name, options={"application_name": option})
    other = database(None, engine="mysql", hosts=(("m", 3306),))
    text = formats().django_databases([made], "app")
    (assignment,) = ast.parse(text).body
    assert isinstance(assignment, ast.Assign) and ast.unparse(assignment.targets[0]) == "DATABASES"
    assert ast.literal_eval(assignment.value) == {
        "default": {
            "ENGINE": "django.db.backends.postgresql", "NAME": name, "USER": user, "PASSWORD": password,
            "HOST": "db.example", "PORT": "5432", "OPTIONS": {"application_name": option},
        }
    }  # fmt: skip
    assert "PASSWORD" not in formats().django_databases([other]) and "'app': {" in formats().django_databases(
        [other]
    )


def test_php_reads_its_array(tmp_path: Path) -> None:
    program = need("php")
    paths, expected = [], []
    for number, text in enumerate([*HARD, *(a + b for a in HARD[:10] for b in HARD[:10])]):
        made = database(text, user="u" + text, name="n" + text.replace(";", ""))
        paths.append(tmp_path / f"{number}.php")
        paths[-1].write_text(formats().php_array(made))
        expected.append([made.user, text, made.database])
    script = 'foreach (array_slice($argv, 1) as $p) echo json_encode(include $p), "\\n";'
    result = subprocess.run(
        [program, "-r", script, "--", *paths], capture_output=True, text=True, timeout=30, check=True
    )
    for line, (user, password, name) in zip(result.stdout.splitlines(), expected, strict=True):
        read = json.loads(line)
        assert (read["username"], read["password"]) == (user, password)
        conninfo = read["dsn"].removeprefix("pgsql:").replace(";", " ")  # as PDO's driver does
        assert psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"] == name
    with pytest.raises(RenderError, match="cannot hold a semicolon"):
        formats().php_array(database(name="a;b"))


def test_shells_read_the_environment_file(tmp_path: Path) -> None:
    made = [database(text, user="u" + text) for text in (*HARD, *(a + b for a in HARD for b in HARD[:12]))]
    script = "".join(
        formats().libpq_env(each) + 'printf "%s\\1%s\\0" "$PGPASSWORD" "$PGUSER"\n' for each in made
    )
    (tmp_path / "all.sh").write_text(script)
    for shell in ("sh", "bash"):
        result = subprocess.run(
            [need(shell), tmp_path / "all.sh"], capture_output=True, timeout=30, check=True, cwd=tmp_path
        )
        read = [part.split("\1") for part in result.stdout.decode().split("\0")[:-1]]
        assert read == [[each.password, each.user] for each in made]


@FAST
@given(TEXT.filter(lambda text: not (set("'\\") & set(text) and set("$`") & set(text))))
def test_dotenv_reads_the_environment_file(password: str) -> None:
    """A single quote or a backslash beside a dollar or a backquote is where dotenv and shells differ."""
    text = formats().database_env(database(password, user="me"), "DB_")
    from io import StringIO

    read = dotenv.dotenv_values(stream=StringIO(text), interpolate=False)
    assert read == {
        "DB_URL": formats().libpq_uri(database(password, user="me")), "DB_HOST": "db.example",
        "DB_PORT": "5432", "DB_NAME": "d", "DB_USER": "me", "DB_PASSWORD": password,
    }  # fmt: skip


def test_mysql_urls_in_the_environment() -> None:
    made = database("p@", engine="mysql", hosts=(("m", 3306),), options={"ssl": "true"})
    assert "DATABASE_URL='mysql://u:p%40@m:3306/d?ssl=true'\n" in formats().database_env(made)
    made = database("p", engine="mysql", hosts=(("/run/my.sock", 3306),))
    assert "mysql://u:p@localhost/d?socket=%2Frun%2Fmy.sock" in formats().database_env(made)
    for form in (formats().libpq_uri, formats().libpq_dsn, formats().libpq_env):
        with pytest.raises(RenderError, match="is for postgresql, not for mysql"):
            form(made)
    with pytest.raises(RenderError, match="reads 'gssencmode' from no environment"):
        formats().libpq_env(database(options={"gssencmode": "disable"}))


def test_json_has_every_field() -> None:
    read = json.loads(formats().as_json(database("ü", hosts=(("a", 1), ("b", 2)))))
    assert read == {
        "engine": "postgresql", "hosts": [{"host": "a", "port": 1}, {"host": "b", "port": 2}], "user": "u",
        "password": "ü", "database": "d", "options": {},
    }  # fmt: skip


def test_the_password_file_line_by_line() -> None:
    made = [
        database("a:b\\c"),
        database(None, user="nobody"),
        database("x", hosts=(("::1", 1), ("/run/postgresql", 2)), name="*"),
        database("y", engine="mysql"),
    ]
    assert formats().pgpass(made) == (
        "db.example:5432:d:u:a\\:b\\\\c\n\\:\\:1:1:*:u:x\n/run/postgresql:2:*:u:x\nlocalhost:2:*:u:x\n"
    )  # that psql takes it is seen in tests/integration/test_plugin_database.py
