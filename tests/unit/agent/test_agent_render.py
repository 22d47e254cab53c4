"""Keys as templates see them: confd's functions, the sandbox, and errors with file and line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from etcd_agent.errors import RenderError
from etcd_agent.keyspace import Mirror, View, path_match, watch_groups
from etcd_agent.render import FUNCTIONS, Renderer
from etcd_agent.values import Entry, Resource, Snapshot, Template
from tests.unit.agent.support import snapshot

KEYS = {
    "/prod/app/db/host": "db1",
    "/prod/app/db/port": "5432",
    "/prod/app/up/a": "10.0.0.2",
    "/prod/app/up/b": "10.0.0.1",
    "/prod/app/up/deep/x": "1",
    "/prod/app/json": '{"a": [1, 2]}',
    "/prod/app/other": "not watched",
    "/prod/application": "not below",
}


def resource(*templates: Template, keys: tuple[str, ...] = ("/db", "/up", "/json")) -> Resource:
    return Resource("app", "app.toml", "/prod/app", keys, templates)


def render(folder: Path, text: str, values: Mapping[str, str] = KEYS, **options: object) -> str:
    (folder / "t.j2").write_text(text)
    renderer = Renderer(str(folder), host_id="web1", labels={"role": "lb"}, **options)  # type: ignore[arg-type]
    (file,) = renderer.render(resource(Template("t.j2", "/x")), snapshot(values))
    return file.content.decode()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{{ getv("/db/host") }}', "db1"),
        ('{{ getv("/db/none", "dflt") }}', "dflt"),
        ('{{ get("/db/host").key }}={{ get("/db/host").Value }}', "/db/host=db1"),
        (
            '{% for p in gets("/up/*") %}{{ p.key }}={{ p.value }};{% endfor %}',
            "/up/a=10.0.0.2;/up/b=10.0.0.1;",
        ),
        ('{{ getvs("/up/*") | join(",") }}', "10.0.0.1,10.0.0.2"),
        ('{{ gets("/up/nothing/*") }}', "[]"),
        ('{{ ls("/up") }}', "['a', 'b', 'deep']"),
        ('{{ ls("/db/host") }}', "['host']"),
        ('{{ ls("/") }}', "['db', 'json', 'up']"),
        ('{{ lsdir("/up") }}', "['deep']"),
        ('{{ exists("/db/host") }}{{ exists("/db/x") }}', "TrueFalse"),
        ('{{ json(getv("/json")).a[1] }}', "2"),
        ('{{ jsonArray("[1,2]") | length }}', "2"),
        ('{{ base("/a/b") }} {{ dir("/a/b") }} {{ dir("b") }}', "b /a ."),
        ('{{ split("a,b", ",") }} {{ join(["a","b"], "-") }}', "['a', 'b'] a-b"),
        (
            '{{ toUpper("a") }}{{ toLower("B") }}{{ contains("abc","b") }}{{ replace("aaa","a","b",2) }}',
            "AbTruebba",
        ),
        ('{{ trimSuffix("a.conf", ".conf") }}', "a"),
        ('{{ base64Decode(base64Encode("é")) }}', "é"),
        (
            '{{ parseBool("T") }} {{ reverse([1,2]) }} {{ seq(1,3) }} {{ atoi("7") + 1 }}',
            "True [2, 1] [1, 2, 3] 8",
        ),
        ("{{ add(1,2) }} {{ sub(1,2) }} {{ mul(2,3) }} {{ div(-7,2) }} {{ mod(-7,2) }}", "3 -1 6 -3 -1"),
        ('{{ map("a", 1, "b", 2).b }}', "2"),
        ('{{ sortByLength(["ccc","a","bb"]) }}', "['a', 'bb', 'ccc']"),
        ('{{ sortKVByLength(gets("/up/*"))[0].key }}', "/up/a"),
        ("{{ revision }} {{ host }} {{ labels.role }}", "10 web1 lb"),
        ("{% if true %}\nx\n{% endif %}\ny\n", "x\ny\n"),
        ("<&>", "<&>"),
        ('{{ "A" | toLower }}', "a"),
    ],
)
def test_functions(tmp_path: Path, text: str, wanted: str) -> None:
    assert render(tmp_path, text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'a\n{{ getv("/db/none") }}',
            "t.j2:2: key /prod/app/db/none does not exist and getv was given no default",
        ),
        ('{{ get("/db/none") }}', "t.j2:1: key /prod/app/db/none does not exist"),
        ('{{ getv("/other") }}', "t.j2:1: key '/other' lies outside the resource's keys"),
        ('{{ gets("/other/*") }}', "lies outside"),
        ('{{ gets("/*") }}', "lies outside"),
        ('{{ ls("/oth") }}', "lies outside"),
        ('{{ exists("/upx") }}', "lies outside"),
        ('{{ getv("db") }}', "a key starts with '/', not 'db'"),
        ("{{ nothing }}", "t.j2:1: 'nothing' is undefined"),
        ("x\n{% if %}", "t.j2:2: "),
        ('{{ json("x") }}', "t.j2:1: json: not JSON at line 1 column 1"),
        ('{{ json("[]") }}', "expected an object; use jsonArray"),
        ("{{ div(1,0) }}", "division by zero"),
        ('{{ "".__class__.__mro__ }}', "t.j2:1: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ range(99999999) }}", "t.j2:1: "),
        ('{% include "nothing.j2" %}', "template 'nothing.j2' does not exist"),
        ('{% include "t.j2" %}', "includes itself without end"),
        ("{{ 1 + 'a' }}", "t.j2:1: TypeError"),
        ('{{ base64Decode("%") }}', "not the base64 of a UTF-8 text"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RenderError) as caught:
        render(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_is_never_in_an_error(tmp_path: Path) -> None:
    values = {"/prod/app/json": "s3cret not json"}
    for function in ("json", "jsonArray", "atoi", "base64Decode"):
        with pytest.raises(RenderError) as caught:
            render(tmp_path, f'{{{{ {function}(getv("/json")) }}}}', values)
        assert "s3cret" not in str(caught.value)


def test_a_value_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "t.j2").write_text('{{ getv("/db") }}')
    broken = Snapshot(1, 1, {"/prod/app/db": Entry(b"a\xff", 1)})
    with pytest.raises(RenderError, match=r"the value of /prod/app/db is not UTF-8 \(byte 1\)"):
        Renderer(str(tmp_path)).render(resource(Template("t.j2", "/x")), broken)


def test_missing_keys_may_be_empty_if_so_configured(tmp_path: Path) -> None:
    assert render(tmp_path, '[{{ getv("/db/none") }}]', error_on_missing_key=False) == "[]"


def test_getenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE", "fra1")
    monkeypatch.delenv("NONE_SUCH", raising=False)
    assert render(tmp_path, '{{ getenv("SITE") }} {{ env("NONE_SUCH", "x") }}') == "fra1 x"


def test_every_function_of_the_list_is_there() -> None:
    wanted = """add atoi base base64Decode base64Encode contains dir div env getenv join json jsonArray map
    mod mul
        parseBool replace reverse seq sortByLength sortKVByLength split sub toLower toUpper trimSuffix"""
    assert set(FUNCTIONS) == set(wanted.split())


def test_for_each_makes_one_file_for_each_child(tmp_path: Path) -> None:
    (tmp_path / "u.j2").write_text("{{ item.name }} {{ item.key }} {{ item.value }}\n")
    each = Template("u.j2", "/x/up-{{ item.name }}.conf", for_each="/up/*", mode=0o600)
    files = Renderer(str(tmp_path)).render(resource(each), snapshot(KEYS))
    assert [file.dest for file in files] == ["/x/up-a.conf", "/x/up-b.conf", "/x/up-deep.conf"]
    assert files[0].content == b"a /up/a 10.0.0.2\n"
    assert files[2].content == b"deep /up/deep None\n"


@pytest.mark.parametrize("name", ["..", ".", "a\nb", "x" * 300])
def test_a_key_cannot_choose_another_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "u.j2").write_text("x")
    each = Template("u.j2", "/x/{{ item.name }}", for_each="/up/*")
    with pytest.raises(RenderError, match="is no file beside"):
        Renderer(str(tmp_path)).render(resource(each), snapshot({f"/prod/app/up/{name}": "1"}))


def test_two_templates_may_not_make_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "u.j2").write_text("x")
    each = Template("u.j2", "/x/{{ item.name }}", for_each="/up/*")
    with pytest.raises(RenderError, match="would write /x/a"):
        Renderer(str(tmp_path)).render(
            resource(each, Template("u.j2", "/x/a")), snapshot({"/prod/app/up/a": "1"})
        )


def test_unknown_owner(tmp_path: Path) -> None:
    (tmp_path / "u.j2").write_text("x")
    with pytest.raises(RenderError, match="this host has no user 'nobody-such'"):
        Renderer(str(tmp_path)).render(resource(Template("u.j2", "/x", owner="nobody-such")), snapshot({}))


def test_mirror_follows_and_old_snapshots_stay() -> None:
    mirror = Mirror(["/a"])
    assert mirror.replace(1, 5, {"/a/x": Entry(b"1", 5), "/ab": Entry(b"no", 4)})
    first = mirror.snapshot()
    assert mirror.apply(6, [("/a/x", None), ("/a/y", Entry(b"2", 6))])
    assert not mirror.apply(7, [("/ab", Entry(b"no", 7))])
    assert (set(first.entries), first.revision) == ({"/a/x"}, 5)
    assert (set(mirror.snapshot().entries), mirror.snapshot().revision) == ({"/a/y"}, 7)
    assert not mirror.replace(1, 9, {"/a/y": Entry(b"2", 6)})
    assert mirror.replace(2, 3, {"/a/y": Entry(b"2", 6)}), "another cluster is a change"


def test_a_mirror_holds_each_subtree_apart() -> None:
    mirror = Mirror(["/prod/app/db", "/prod/app/db/host", "/prod/app/json"])
    entries = snapshot(KEYS).entries
    assert mirror.replace(1, 5, entries) == {"/prod/app/db", "/prod/app/db/host", "/prod/app/json"}
    assert mirror.apply(6, [("/prod/app/db/port", Entry(b"1", 6))]) == {"/prod/app/db"}
    assert mirror.apply(7, [("/prod/app/db/host", None)]) == {"/prod/app/db", "/prod/app/db/host"}
    assert set(mirror.snapshot(["/prod/app/db", "/prod/app/json"]).entries) == {
        "/prod/app/db/port",
        "/prod/app/json",
    }


def test_one_watch_for_all_subtrees_below_one_key() -> None:
    many = [f"/production/resource-{number}/x" for number in range(1000)]
    assert watch_groups(many) == {"/production": tuple(sorted(many))}
    assert watch_groups(["/p/a", "/p/a/b", "/q/x/1", "/q/x/2"]) == {
        "/p/a": ("/p/a",),
        "/q/x": ("/q/x/1", "/q/x/2"),
    }
    assert watch_groups(["", "/a"]) == {"": ("",)}


def test_everything_under_an_empty_prefix() -> None:
    view = View(Resource("r", "f", "", ("",), ()), snapshot({"/a/b": "1", "/c": "2"}))
    assert (view.ls("/"), view.lsdir("/"), view.getv("/a/b")) == (["a", "c"], ["a"], "1")


@pytest.mark.parametrize(
    ("key", "pattern", "matches"),
    [("/a/b", "/a/*", True), ("/a/b/c", "/a/*", False), ("/a/bc", "/a/b?", True), ("/a", "/a/*", False)],
)
def test_path_match(key: str, pattern: str, matches: bool) -> None:
    assert path_match(key, pattern) is matches


def test_delimiters_of_ones_own(tmp_path: Path) -> None:
    """Each template has its own; what is included is read as what includes it."""
    (tmp_path / "go.j2").write_text(
        '{{ .Go }} << getv("/db/host") >>\n{% if true %}{# gone #}<% include "in.j2" %>'
    )
    (tmp_path / "in.j2").write_text("{% endif %} << revision >>\n")
    (tmp_path / "usual.j2").write_text('<< {{ getv("/db/host") }}{% if true %} >>{% endif %}')
    four = ("<<", ">>", "<%", "%>")
    templates = (
        Template("go.j2", "/go", delimiters=four),
        Template("usual.j2", "/usual"),
        Template(
            "", "/two", contents="{% if revision %}$[[ host ]]$ {{ x }}{% endif %}", delimiters=("$[[", "]]$")
        ),
    )
    renderer = Renderer(str(tmp_path), host_id="web1")
    renderer.check(resource(*templates))
    files = renderer.render(resource(*templates), snapshot(KEYS))
    assert [file.content.decode() for file in files] == [
        "{{ .Go }} db1\n{% if true %}{% endif %} 10\n",
        "<< db1 >>",
        "web1 {{ x }}",
    ]
    with pytest.raises(RenderError, match=r"t\.j2:2: 'nobody' is undefined"):
        (tmp_path / "t.j2").write_text("{{ x }}\n<< nobody >>")
        renderer.render(resource(Template("t.j2", "/x", delimiters=four)), snapshot(KEYS))
