"""Keys -> HAProxy's model and file: what is accepted, what the socket can change, that no value escapes."""

from __future__ import annotations

import json
import string
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_agent import RenderError
from tests.plugin_support import installed_plugins, plugin_module, rendered, resource_of, view_of

HAPROXY = "/usr/sbin/haproxy"
BASE = {
    "/ha/backends/app/servers/a": "10.0.0.1:80",
    "/ha/frontends/web/bind": "80",
    "/ha/frontends/web/backend": "app",
}
RESOURCE = resource_of("haproxy", prefix="/ha", keys=("/backends", "/frontends"))


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def build(values: dict[str, str]) -> Any:
    return plugin_module("haproxy.model").build(view_of(RESOURCE, values))


def text_of(values: dict[str, str]) -> str:
    return rendered("haproxy", RESOURCE, values, "haproxy.cfg.j2")


@pytest.mark.skipif(not Path(HAPROXY).exists(), reason="haproxy is not installed")
def test_a_small_site_is_a_configuration_for_haproxy(tmp_path: Path) -> None:
    text = text_of(
        {
            **BASE,
            "/ha/backends/app/servers/b": json.dumps(
                {"address": "[::1]:81", "weight": 7, "state": "maint", "backup": True, "maxconn": 3}
            ),
            "/ha/backends/app/servers/c": '{"address": "unix:/run/app.sock", "state": "drain"}',
            "/ha/backends/app/balance": "source",
            "/ha/backends/app/check": "/healthz",
            "/ha/backends/raw/servers/a": "10.0.0.2:443",
            "/ha/backends/raw/mode": "tcp",
            "/ha/backends/unused/mode": "tcp",
            "/ha/frontends/web/bind": '["80", "[::1]:8080", "unix:/run/web.sock"]',
            "/ha/frontends/web/routes/x": '{"host": "Files.example.com", "path": "/f/", "backend": "app"}',
            "/ha/frontends/tls/bind": "127.0.0.1:443",
            "/ha/frontends/tls/mode": "tcp",
            "/ha/frontends/tls/backend": "raw",
        }
    )
    for line in (
        "    server a 10.0.0.1:80 weight 1 check",
        "    server b [::1]:81 weight 7 disabled check backup maxconn 3",
        "    server c unix@/run/app.sock weight 0 check",
        "    bind *:80",
        "    bind unix@/run/web.sock",
        "    use_backend app if { hdr(host),field(1,:),lower -m str files.example.com } { path_beg /f/ }",
    ):
        assert f"{line}\n" in text
    assert "unused" not in text
    path = tmp_path / "ha.cfg"
    path.write_text(text)
    checked = subprocess.run([HAPROXY, "-c", "-f", path], capture_output=True, text=True, timeout=20)
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("/backends/app/servers/a", "10.0.0.1", "address: expected host:port"),
        ("/backends/app/servers/a", "10.0.0.1:80 disabled", "expected a port"),
        ("/backends/app/servers/a", '{"adress": "a:1"}', "unknown field 'adress'; did you mean 'address'"),
        (
            "/backends/app/servers/a",
            '{"address": "a:1", "weight": 257}',
            "weight: expected an integer from 0",
        ),
        (
            "/backends/app/servers/a",
            '{"address": "a:1", "state": "down"}',
            "state: expected one of ready, drain",
        ),
        ("/backends/app/servers/a/x", "1", "expected one value here"),
        ("/backends/app/balanse", "x", "did you mean /backends/app/balance?"),
        ("/backends/app/balance", "static-rr", "expected one of roundrobin"),
        ("/backends/app/check", "http", "expected tcp, off or a path"),
        ("/backends/app/server_timeout", "10", 'expected a time such as "10s"'),
        ("/backends/app/server_timeout", "10 s", 'expected a time such as "10s"'),
        ("/frontends/web/bind", "80\n    acl", "expected a port or address:port"),
        ("/frontends/web/backend", "other", "names backend 'other', which is not there"),
        ("/frontends/web/routes/x", '{"backend": "app"}', "expected host, path or both"),
        ("/frontends/web/routes/x", '{"backend": "app", "path": "/ }"}', "path: expected a path"),
        ("/frontends/web/routes/x", '{"backend": "none", "path": "/"}', "names backend 'none'"),
        ("/frontends/other/bind", "81", "/frontends/other/backend: is missing"),
        ("/backends/a b/servers/x", "a:1", "expected a name of letters"),
    ],
)
def test_wrong_values_name_their_key(key: str, value: str, message: str) -> None:
    values = {**BASE, f"/ha{key}": value}
    with pytest.raises(RenderError) as refused:
        build(values)
    assert message in str(refused.value) and "/ha/" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_the_socket_can_change_is_no_part_of_the_structure() -> None:
    def structure(server: str, **more: str) -> str:
        return str(build({**BASE, "/ha/backends/app/servers/a": server, **more}).structure)

    base = structure("10.0.0.1:80")
    assert base == structure('{"address": "10.0.0.9:81", "weight": 9, "state": "maint"}')
    assert base != structure("app.example:80")
    assert structure("app.example:80") != structure("app.example:81")
    assert base != structure('{"address": "10.0.0.1:80", "maxconn": 1}')
    assert base != structure("10.0.0.1:80", **{"/ha/backends/app/servers/b": "10.0.0.2:80"})
    assert base != structure("10.0.0.1:80", **{"/ha/frontends/web/bind": "81"})


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["servers/a", "balance", "check", "connect_timeout", "mode"]),
    st.text(st.sampled_from(string.printable + "é\0"), max_size=30),
)
def test_no_value_becomes_another_directive(name: str, value: str) -> None:
    try:
        text = text_of({**BASE, f"/ha/backends/app/{name}": value})
    except RenderError:
        return
    known = {"#", "global", "setenv", "backend", "frontend", "mode", "balance", "hash-type", "option"}
    known |= {"timeout", "server", "bind", "default_backend"}
    for line in text.splitlines():
        assert not line or line.split()[0] in known
        assert line.startswith("#") or "#" not in line
    assert text.count("\nbackend ") == 1 and text.count("    server ") == 1
