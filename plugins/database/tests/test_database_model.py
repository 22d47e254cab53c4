"""Keys -> databases, pgbouncer's files and its console's answers; settings; the README's examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_agent import ReloadError, RenderError
from etcd_agent.errors import ConfigError
from etcd_agent.values import Applied, Reload, Resource, Template
from tests.plugin_support import (
    SECTIONS,
    Readme,
    installed_plugins,
    plugin_module,
    rendered,
    resource_of,
    view_of,
)

RESOURCE = resource_of("database", prefix="/p", keys=("/databases", "/pgbouncer", "/clients"))


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def databases(**values: str) -> Any:
    keys = {f"/p/databases/{name.replace('__', '/')}": value for name, value in values.items()}
    return plugin_module("database.model").databases(view_of(RESOURCE, keys))


def test_json_and_single_keys_say_the_same() -> None:
    (one,) = databases(
        app='{"host": "a,[::1]", "port": "1,2", "user": "u ", "password": "", "options": {"b": true, "a": 3}}'
    )
    (two,) = databases(
        app__host="a, ::1", app__port="1,2", app__user="u ", app__password="", app__options__a="3",
        app__options__b="true",
    )  # fmt: skip
    assert one == two
    assert one.hosts == (("a", 1), ("::1", 2)) and (one.user, one.password, one.database) == ("u ", "", "app")
    assert list(one.options.items()) == [("a", "3"), ("b", "true")]
    (socket,) = databases(app='{"engine": "mysql", "host": "/run/mysqld/mysqld.sock", "user": "u"}')
    assert socket.hosts == (("/run/mysqld/mysqld.sock", 3306),) and socket.password is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"app": '{"host": "a"}'}, "the field 'user' is missing"),
        ({"app": '{"user": "u", "pasword": "x"}'}, "unknown field 'pasword'; did you mean 'password'"),
        ({"app": '{"user": "u", "password": 5}'}, "password: expected a text, not int"),
        ({"app__user": "u", "app__password": "secret\n"}, "is there a line feed at its end"),
        ({"app__user": ""}, "user: expected a text that is not empty"),
        ({"app__user": "u", "app__host": "a b"}, "host: expected a host name, an IP address or a folder"),
        ({"app__user": "u", "app__host": "1.2.3"}, "host: expected a host name"),
        ({"app__user": "u", "app__port": "x"}, "expected a port from 1"),
        ({"app__user": "u", "app__host": "a,b,c", "app__port": "1,2"}, "expected one port or 3"),
        ({"app__user": "u", "app__engine": "oracle"}, "engine: expected one of postgresql, mysql"),
        ({"app__user": "u", "app__options": "x"}, "expected an object of names"),
        ({"app__user": "u", "app__options__a b": "x"}, "expected a name of letters"),
        ({"app": '{"user": "u", "options": {"a b": "x"}}'}, "options: expected the name of an option"),
        ({"app": '{"user": "u", "options": {"a": []}}'}, "options.a: expected a text"),
        ({"app": '{"user": "u"}', "app__host": "a"}, "expected one value here"),
    ],
)
def test_wrong_values_name_their_key_and_no_password(values: dict[str, str], message: str) -> None:
    with pytest.raises(RenderError) as refused:
        databases(**values)
    assert message in str(refused.value) and "/p/databases/app" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_which_database() -> None:
    find = plugin_module("database.model").database
    one = view_of(RESOURCE, {"/p/databases/app/user": "u"})
    two = view_of(RESOURCE, {"/p/databases/app/user": "u", "/p/databases/log/user": "u"})
    assert find(one, "").name == "app" and find(two, "log").name == "log"
    with pytest.raises(RenderError, match="which database"):
        find(two, "")
    with pytest.raises(RenderError, match="there is no database 'web'; known below /p/databases: app, log"):
        find(two, "web")


POOL = {
    "/p/databases/app": '{"host": "10.0.0.1", "user": "a b", "password": "it\'s", '
    '"pgbouncer": {"pool_size": 3}}',
    "/p/databases/my": '{"engine": "mysql", "user": "m"}',
    "/p/pgbouncer/pool_mode": "transaction",
    "/p/pgbouncer/listen_addr": "127.0.0.1",
}


def test_pgbouncer_ini_ends_with_its_marker() -> None:
    text = rendered("database", RESOURCE, POOL, "pgbouncer.ini.j2")
    assert text.splitlines()[1:-1] == [
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        "pool_mode = transaction",
        "",
        "[databases]",
        "app = host=10.0.0.1 port=5432 dbname=app user='a b' password='it''s' pool_size=3",
    ]

    def marker(**changes: str) -> str:
        values = {**POOL, **{f"/p/{name.replace('__', '/')}": value for name, value in changes.items()}}
        return rendered("database", RESOURCE, values, "pgbouncer.ini.j2").splitlines()[-1]

    assert marker() == text.splitlines()[-1]
    assert marker().startswith("etcd_py_agent = host=127.0.0.1 port=1 dbname=")
    others = [marker(clients__web="x"), marker(clients__web="y"), marker(pgbouncer__pool_mode="session")]
    assert len({marker(), *others}) == 4
    alone = {name: value for name, value in POOL.items() if "pgbouncer/" not in name}
    assert rendered("database", RESOURCE, alone, "pgbouncer.ini.j2").splitlines()[1] == "[databases]"


def test_userlist() -> None:
    assert rendered("database", RESOURCE, POOL, "userlist.txt.j2") == '"a b" "it\'s"\n'
    clients = {**POOL, "/p/clients/web": 'w"eb', "/p/clients/adm": "\\"}
    assert rendered("database", RESOURCE, clients, "userlist.txt.j2") == '"adm" "\\"\n"web" "w""eb"\n'
    clash = {**POOL, "/p/databases/two": '{"user": "a b", "password": "other"}'}
    with pytest.raises(RenderError, match="'a b' has two passwords"):
        rendered("database", RESOURCE, clash, "userlist.txt.j2")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("databases/app", '{"user": "u", "pgbouncer": {"pol": 1}}', "unknown setting 'pol'"),
        ("databases/app", '{"user": "u", "host": "a,b", "port": "1,2"}', "one port for all hosts"),
        ("databases/etcd_py_agent", '{"user": "u"}', "taken by the marker"),
        ("pgbouncer/x", "a\n[databases]", "without control characters"),
        ("pgbouncer/x", " a", "without white space at its ends"),
        ("pgbouncer/X", "a", "expected the name of a setting"),
    ],
)
def test_what_pgbouncer_ini_cannot_hold(key: str, value: str, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        rendered("database", RESOURCE, {**POOL, f"/p/{key}": value}, "pgbouncer.ini.j2")


def test_what_moves_is_known_from_the_console_and_the_file() -> None:
    pool = plugin_module("database.pool")
    text = rendered("database", RESOURCE, POOL, "pgbouncer.ini.j2")
    table = (
        "app\t10.0.0.1\t5432\tapp\ta b\t3\t0\netcd_py_agent\t127.0.0.1\t1\t0011223344556677\t\t1\t0\n"
        "pgbouncer\t\t6432\tpgbouncer\tpgbouncer\t2\t0\n"
    )
    before = pool.shown(table)
    assert before.marker == "0011223344556677" and list(before.servers) == ["app"]
    assert pool.moved(before, text) == []
    assert pool.moved(pool.shown(table.replace("10.0.0.1", "10.0.0.2")), text) == ["app"]
    assert pool.moved(pool.shown(table.replace("a b", "a c")), text) == ["app"]
    assert pool.moved(pool.shown(""), text) == [], "what was not there has no clients"
    assert pool.logins("database\tuser\tsv_login\napp\ta\t2\napp\tb\t1\nlog\tc\t0\n") == {"app": 3, "log": 0}


PSQL = """#!/bin/sh
cd {folder}
for sql in "$@"; do :; done
echo "$sql" >> log
case $sql in
"SHOW DATABASES") test ! -e away || {{ echo "psql: error: ... Connection refused" >&2; exit 2; }}
    if grep -q RELOAD log && [ ! -e deaf ]; then cat new; else cat old; fi ;;
"SHOW POOLS") printf 'database\\tuser\\tsv_login\\napp\\tu\\t%s\\n' "$(cat logins)"; echo 0 > logins ;;
RELOAD) test ! -e refuse || {{ echo "ERROR: no admin" >&2; exit 1; }} ;;
esac
"""


def test_a_reload_waits_for_logins_and_then_for_its_proof(tmp_path: Path) -> None:
    """What the console is asked, in which order, by a psql that answers as pgbouncer does."""
    text = rendered("database", RESOURCE, POOL, "pgbouncer.ini.j2")
    ini = tmp_path / "pgbouncer.ini"
    ini.write_text(text)
    marker = text.rpartition("dbname=")[2].split()[0]
    rows = "name\thost\tport\tdatabase\tforce_user\napp\t{host}\t5432\tapp\ta b\n"
    rows += "etcd_py_agent\t-\t1\t{marker}\t\n"
    (tmp_path / "old").write_text(rows.format(host="10.0.0.9", marker="0"))
    (tmp_path / "new").write_text(rows.format(host="10.0.0.1", marker=marker))
    (tmp_path / "psql").write_text(PSQL.format(folder=tmp_path))
    (tmp_path / "psql").chmod(0o755)
    settings = {"pgbouncer": "host=/run", "psql": str(tmp_path / "psql")}
    plugin, resource = plugin_module("database"), resource_of("database", settings)

    def reload(*files: str) -> tuple[str, list[str]]:
        (tmp_path / "log").write_text("")
        (tmp_path / "logins").write_text("2")
        try:
            done = str(plugin.agent_reload(resource=resource, applied=Applied(1, files, files)))
        except ReloadError as error:
            done = str(error)
        return done, (tmp_path / "log").read_text().splitlines()

    resource = dataclasses.replace(resource, reload=Reload(timeout_s=10.0))
    done, asked = reload(str(ini))
    assert done == "pgbouncer reloaded"
    assert asked == ["SHOW DATABASES", *["SHOW POOLS"] * 3, "RELOAD", "SHOW DATABASES"]
    assert plugin.agent_health(resource=resource, applied=Applied(1, (str(ini),), ())) is None
    assert reload("/userlist.txt") == ("pgbouncer was told to reload", ["SHOW DATABASES", "RELOAD"])

    resource = dataclasses.replace(resource, reload=Reload(timeout_s=0.5))
    (tmp_path / "deaf").touch()
    assert "it has not read its files to their end" in reload(str(ini))[0]
    problem = plugin.agent_health(resource=resource, applied=Applied(1, (str(ini),), ()))
    assert "has not read the files on disk" in str(problem)
    (tmp_path / "refuse").touch()
    assert "ERROR: no admin" in reload(str(ini))[0]
    (tmp_path / "away").touch()
    assert reload(str(ini))[0] == "pgbouncer does not run; it reads its files when it starts"
    assert plugin.agent_health(resource=resource, applied=Applied(1, (str(ini),), ())) is None


def test_files_with_passwords_are_kept_from_others() -> None:
    check = plugin_module("database").agent_check_settings

    def refusal(src: str, **more: Any) -> str:
        template = Template(src, "/x", **{"mode": 0o640, "sensitive": True, **more})
        return str(check(Resource("r", "r.toml", "", ("",), (template,), plugins={"database": {}})))

    assert refusal("database:env.j2") == "None" and refusal("database:pgpass.j2", mode=0o600) == "None"
    assert "set sensitive = true" in refusal("database:env.j2", sensitive=False)
    assert "set a mode" in refusal("mine.j2", mode=0o644)
    assert "set a mode" in refusal("mine.j2", mode=None)
    assert '"0600"' in refusal("database:pgpass.j2")


def test_settings() -> None:
    settings_of = plugin_module("database").settings_of
    for wrong, message in (
        ({"pgbouncer": "host=a password=x"}, "expected no password here"),
        ({"pgbouncer": "postgresql://u:p@h/"}, "expected no password here"),
        ({"env_prefix": "A-"}, "beginning of a variable's name"),
        ({"pase": "1s"}, "unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings_of(resource_of("database", wrong))


def test_the_manual_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Readme("database")
    assert readme.sections == SECTIONS
    fields = {
        field.name.removesuffix("_s") for field in dataclasses.fields(plugin_module("database").Settings)
    }
    assert readme.settings == fields
    for name in (Path(__file__).parents[1] / "templates").iterdir():
        assert f"`database:{name.name}`" in readme.text
    for name in plugin_module("database")._functions(plugin_module("database").settings_of(RESOURCE)):
        assert f"`{name}(" in readme.text, name
    files = readme.render(tmp_path, monkeypatch)
    assert "DATABASE_PASSWORD='pa:ss word'\n" in files["/etc/app/database.env"]
    assert "10.0.0.5:5432:app:blue:pa\\:ss word\n" in files["/etc/app/pgpass"]
    assert "url=jdbc\\:postgresql\\://10.0.0.5\\:5432/app\n" in files["/etc/app/jdbc.properties"]
    assert '"web" "what the application logs in with"\n' in files["/etc/pgbouncer/userlist.txt"]
    pool = files["/etc/pgbouncer/pgbouncer.ini"]
    expected = (
        "stats = host=db1.example,db2.example port=5432 dbname=stats user=reader password='it''s' pool_size=5"
    )
    assert f"{expected}\n" in pool
