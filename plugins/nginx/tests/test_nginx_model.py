"""Keys -> nginx's model: what is accepted, and that nothing else can get into the configuration."""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_agent import RenderError, View
from etcd_agent.render import Renderer
from etcd_agent.values import Entry, Resource, Snapshot, Template
from tests.unit.agent.support import ROOT, nginx_module, plugin_packages

BASE = {
    "/nginx/upstreams/app/servers/a": "10.0.0.1:8080",
    "/nginx/servers/web/listen": "80",
    "/nginx/servers/web/locations/root": '{"path": "/", "upstream": "app"}',
}


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with plugin_packages(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def resource(settings: Mapping[str, Any] | None = None) -> Resource:
    return Resource(
        "nginx",
        "nginx.toml",
        "/nginx",
        ("/upstreams", "/servers"),
        (Template("nginx:http.conf.j2", "/x"),),
        plugins={"nginx": settings or {}},
    )


def snapshot(values: Mapping[str, str]) -> Snapshot:
    return Snapshot(1, 1, {key: Entry(value.encode(), 1) for key, value in values.items()})


def build(values: Mapping[str, str]) -> Any:
    model = nginx_module("model")

    return model.build(View(resource(), snapshot(values)))


def render(values: Mapping[str, str], settings: Mapping[str, Any] | None = None) -> str:
    model = nginx_module("model")

    renderer = Renderer("/nowhere", plugin_templates={"nginx": str(ROOT / "plugins/nginx/templates")})
    (file,) = renderer.render(resource(settings), snapshot(values), {"nginx": model.build})
    return file.content.decode()


def test_a_small_site() -> None:
    text = render(
        {
            **BASE,
            "/nginx/upstreams/app/servers/b": json.dumps(
                {
                    "address": "app2.example:8080",
                    "weight": 5,
                    "max_fails": 0,
                    "fail_timeout": "3s",
                    "backup": True,
                }
            ),
            "/nginx/upstreams/app/method": "least_conn",
            "/nginx/upstreams/app/keepalive": "16",
            "/nginx/servers/web/listen": '["80", "[::]:80"]',
            "/nginx/servers/web/server_name": "example.com *.example.com",
            "/nginx/servers/web/default": "true",
            "/nginx/servers/web/locations/old": json.dumps(
                {"path": "/old", "exact": True, "return": 301, "to": "/new"}
            ),
            "/nginx/servers/web/locations/static": '{"path": "/static/", "root": "/srv/www"}',
        },
        {"marker": "127.0.0.1:8099"},
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for wanted in (
        "upstream app {",
        "least_conn;",
        "server 10.0.0.1:8080 weight=1 max_fails=1 fail_timeout=10s;",
        "server app2.example:8080 weight=5 max_fails=0 fail_timeout=3s backup;",
        "keepalive 16;",
        "listen 80 default_server;",
        "listen [::]:80 default_server;",
        "server_name example.com *.example.com;",
        "location / {",
        "proxy_pass http://app;",
        "location = /old {",
        "return 301 /new;",
        "location /static/ {",
        "root /srv/www;",
        "listen 127.0.0.1:8099;",
    ):
        assert wanted in lines, wanted
    marker = lines[1].removeprefix("# etcd-py-agent marker ")
    assert f'return 200 "{marker}\\n";' in lines


def test_no_keys_render_to_a_comment() -> None:
    assert all(line.startswith("#") for line in render({}).splitlines())


def test_the_marker_follows_the_content_only() -> None:
    other = {**BASE, "/nginx/upstreams/app/servers/a": "10.0.0.2:8080"}
    assert build(BASE).marker == build(dict(reversed(BASE.items()))).marker != build(other).marker


def test_an_upstream_without_servers_matters_only_if_it_is_used() -> None:
    values = {**BASE, "/nginx/upstreams/spare/method": "ip_hash"}
    assert [upstream.name for upstream in build(values).upstreams] == ["app"]
    values["/nginx/servers/web/locations/spare"] = '{"path": "/spare", "upstream": "spare"}'
    with pytest.raises(RenderError, match="location /spare names upstream 'spare', which has no servers"):
        build(values)


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("app.internal:65535", "app.internal:65535"),
        ("[2001:DB8::1]:80", "[2001:db8::1]:80"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
        (" 10.0.0.1:80\n", "10.0.0.1:80"),
    ],
)
def test_good_addresses(address: str, wanted: str) -> None:
    values = {**BASE, "/nginx/upstreams/app/servers/a": address}
    assert build(values).upstreams[0].servers[0].address == wanted


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.0.0.1",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.256:80",
        "10.0.0.1:80; } server { listen 81",
        "10.0.0.1:80 backup",
        "a b:80",
        "$host:80",
        "-x:80",
        "a..b:80",
        "host:80\nserver x:1",
        "[::1:80",
        "[::g]:80",
        "unix:relative",
        "unix:/a b",
        "unix:/a;b",
        "http://a:80",
        "\uff41:80",
        "a:\uff18\uff10",
        "#:80",
        "'a':80",
    ],
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(RenderError, match=r"key /nginx/upstreams/app/servers/a: address: expected"):
        build({**BASE, "/nginx/upstreams/app/servers/a": address})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("upstreams/app/servers/a", '{"weight": 1}', "servers/a: the field 'address' is missing"),
        (
            "upstreams/app/servers/a",
            '{"address": "a:1", "wieght": 1}',
            "unknown field 'wieght'; did you mean 'weight'?",
        ),
        (
            "upstreams/app/servers/a",
            '{"address": "a:1", "weight": "5"}',
            "weight: expected an integer from 1",
        ),
        ("upstreams/app/servers/a", '{"address": "a:1", "weight": true}', "weight: expected an integer"),
        ("upstreams/app/servers/a", '{"address": "a:1", "backup": 1}', "backup: expected true or false"),
        (
            "upstreams/app/servers/a",
            '{"address": "a:1", "fail_timeout": "1s;"}',
            "fail_timeout: expected a time",
        ),
        ("upstreams/app/servers/a", "{", "expected a JSON object: line 1"),
        ("upstreams/app/servers/a/b", "x", "expected one value here and no keys below it"),
        ("upstreams/app/servrs/a", "x", "unknown key; known below /upstreams/app: servers, method"),
        ("upstreams/app", "x", "key /nginx/upstreams/app: unknown key"),
        ("upstreams/a b/servers/x", "a:1", "expected a name of letters"),
        ("upstreams/app/method", "fastest", "method: expected one of round_robin, least_conn"),
        ("upstreams/app/keepalive", "-1", "keepalive: expected an integer"),
        ("servers/web/listen", "80 default_server", "listen: expected"),
        ("servers/web/listen", "localhost:80", "expected an IP address before the port"),
        ("servers/web/listen", "70000", "expected a port from 1 to 65535"),
        ("servers/web/listen", '["80"', "listen: not JSON"),
        ("servers/web/listen", "80 80", "a value is there twice"),
        ("servers/web/server_name", "a;b", "expected a host name"),
        ("servers/web/server_name", "~^regex$", "expected a host name"),
        ("servers/web/default", "yes", "expected true or false, not 'yes'"),
        ("servers/bare/server_name", "x", "key /nginx/servers/bare/listen: is missing"),
        ("servers/web/locations/root", '{"path": "/"}', "expected exactly one of upstream, root and return"),
        ("servers/web/locations/root", '{"path": "/", "upstream": "app", "root": "/x"}', "exactly one of"),
        ("servers/web/locations/root", '{"upstream": "app"}', "upstream"),
        ("servers/web/locations/root", '{"path": "/ {", "upstream": "app"}', "path: expected a path"),
        ("servers/web/locations/root", '{"path": "/$x", "upstream": "app"}', "path: expected a path"),
        (
            "servers/web/locations/root",
            '{"path": "/", "upstream": "none"}',
            "upstream 'none', which is not there",
        ),
        (
            "servers/web/locations/root",
            '{"path": "/", "return": 301, "to": "$evil"}',
            "to: expected a path or URL",
        ),
        ("servers/web/locations/root", '{"path": "/", "return": 600}', "return: expected one of 200"),
        ("servers/web/locations/root", '{"path": "/", "root": "/x", "to": "/y"}', "to needs return"),
        ("servers/web/locations/two", '{"path": "/", "root": "/x"}', "two locations have the path /"),
        ("servers/web/locations/root", "[]", "expected a JSON object"),
    ],
)
def test_wrong_keys_name_the_key_and_what_was_expected(key: str, value: str, message: str) -> None:
    values = {**BASE, f"/nginx/{key}": value}
    if message == "upstream":  # a location without a path is the one for "/"
        assert build(values).servers[0].locations[0].path == "/"
        return
    with pytest.raises(RenderError) as caught:
        build(values)
    assert message in str(caught.value) and "\n" not in str(caught.value)


KEYS = [
    "upstreams/app/servers/a",
    "upstreams/app/method",
    "upstreams/app/keepalive",
    "servers/web/listen",
    "servers/web/server_name",
    "servers/web/default",
    "servers/web/locations/root",
]
EVIL = st.text(alphabet=string.ascii_letters + string.digits + ":./-_[]{};#'\"$\\ \n\t*,é", max_size=40)
FIELDS = [
    "address",
    "weight",
    "fail_timeout",
    "path",
    "upstream",
    "root",
    "return",
    "to",
    "scheme",
    "read_timeout",
]
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), EVIL | st.integers(-5, 700) | st.booleans(), max_size=5)


@settings(max_examples=600, deadline=None)
@given(key=st.sampled_from(KEYS), value=EVIL | OBJECTS.map(json.dumps))
def test_no_value_can_add_a_directive(key: str, value: str) -> None:
    """Whatever is accepted leaves the structure of the configuration as it was."""
    tree = nginx_module("tree")
    try:
        text = render({**BASE, f"/nginx/{key}": value})
    except RenderError:
        return
    shape = [token.group() for token in tree._TOKEN.finditer(text) if token.group() in "{};"]
    assert shape.count("{") == shape.count("}") == 3
    known = """
        upstream server server_name listen location proxy_pass proxy_http_version proxy_set_header least_conn
        ip_hash random keepalive return root proxy_read_timeout proxy_connect_timeout
    """.split()  # noqa: SIM905 (easier to read)
    assert set(directives(text)) <= set(known)
    assert len(list(directives(text))) <= 16


def directives(text: str) -> Iterator[str]:
    """The first word of every directive, as nginx reads them."""
    tree = nginx_module("tree")

    first = True
    for token in tree._TOKEN.finditer(text):
        shown = token.group()
        if shown[0].isspace() or shown[0] == "#":
            continue
        if shown in "{};":
            first = True
        elif first:
            first = False
            yield shown


def test_settings(tmp_path: Path) -> None:
    settings_of = nginx_module().settings_of

    from etcd_agent import AgentError

    assert settings_of(Resource("x", "f.toml", "", ("/a",), ())) is None
    found = settings_of(resource({"marker": "127.0.0.1:8099", "prefix": "/srv"}))
    assert found is not None and found.binary == "/usr/sbin/nginx" and found.prefix == "/srv"
    for wrong, message in (
        ({"binry": "/x"}, "unknown key 'plugins.nginx.binry'; did you mean 'binary'?"),
        ({"marker": "0.0.0.0:80"}, "plugins.nginx.marker: expected a loopback address"),
        ({"marker": "8099"}, "expected a loopback address"),
        ({"conf": "nginx.conf"}, "plugins.nginx.conf: expected an absolute path"),
        ({"check": "yes"}, "expected true or false"),
    ):
        with pytest.raises(AgentError) as caught:
            settings_of(resource(wrong))
        assert message in str(caught.value) and str(caught.value).startswith("nginx.toml: ")
