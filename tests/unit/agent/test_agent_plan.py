"""Plans as a person reads them: each case is disk + manifest + rendered files -> the plan's diff and
actions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from etcd_agent.manifest import Bad, Content, FileRecord, Manifest, Phase, from_json, to_json
from etcd_agent.plan import Plan, content_hash, diff, make_plan, record_of, sha256
from etcd_agent.values import FileState, RenderedFile, Resource, Snapshot, Template

RESOURCE = Resource(
    "web",
    "web.toml",
    "",
    ("/web",),
    (
        Template("main.j2", "/etc/web/main.conf"),
        Template("s.j2", "/etc/web/{{ n }}", for_each="/s/*", prune=True),
    ),
)
SNAPSHOT = Snapshot(7, 42, {})


def file(content: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> FileState:
    return FileState(content.encode(), mode, uid, gid)


def owned(*destinations: str, template: int = 1) -> Manifest:
    records = {dest: FileRecord("", 0o644, 0, 0, template) for dest in destinations}
    return Manifest("web", current=Content(7, 40, 40, "h", records))


def plan(
    files: list[RenderedFile], disk: Mapping[str, FileState | None], manifest: Manifest | None = None
) -> Plan:
    return make_plan(RESOURCE, SNAPSHOT, files, disk, manifest or Manifest("web"))


def text(made: Plan) -> str:
    return diff(made) + "".join(f"{action.kind} {action.dest}\n" for action in made.actions)


MAIN = "/etc/web/main.conf"

CASES: dict[str, tuple[list[RenderedFile], Mapping[str, FileState | None], Manifest | None, str]] = {
    "nothing to do": (
        [RenderedFile(MAIN, b"a\n")],
        {MAIN: file("a\n")},
        None,
        "",
    ),
    "a new file": (
        [RenderedFile(MAIN, b"a\nb\n", mode=0o640)],
        {MAIN: None},
        None,
        """\
# /etc/web/main.conf: new, mode 0640, owner 0:0
--- /dev/null
+++ /etc/web/main.conf
@@ -0,0 +1,2 @@
+a
+b
create /etc/web/main.conf
""",
    ),
    "a changed line, mode kept": (
        [RenderedFile(MAIN, b"a\nB\n")],
        {MAIN: file("a\nb\n", mode=0o600)},
        None,
        """\
--- /etc/web/main.conf
+++ /etc/web/main.conf
@@ -1,2 +1,2 @@
 a
-b
+B
replace /etc/web/main.conf
""",
    ),
    "no newline at the end": (
        [RenderedFile(MAIN, b"b")],
        {MAIN: file("a")},
        None,
        """\
--- /etc/web/main.conf
+++ /etc/web/main.conf
@@ -1 +1 @@
-a
\\ No newline at end of file
+b
\\ No newline at end of file
replace /etc/web/main.conf
""",
    ),
    "only mode and owner": (
        [RenderedFile(MAIN, b"a\n", mode=0o600, uid=33)],
        {MAIN: file("a\n")},
        None,
        """\
# /etc/web/main.conf: mode 0644 -> 0600
# /etc/web/main.conf: owner 0:0 -> 33:0
attributes /etc/web/main.conf
""",
    ),
    "a key was deleted: its file is pruned": (
        [RenderedFile(MAIN, b"a\n")],
        {MAIN: file("a\n"), "/etc/web/gone": file("x\n")},
        owned("/etc/web/gone"),
        """\
--- /etc/web/gone
+++ /dev/null
@@ -1 +0,0 @@
-x
remove /etc/web/gone
""",
    ),
    "a pruned file that is gone already": (
        [RenderedFile(MAIN, b"a\n")],
        {MAIN: file("a\n"), "/etc/web/gone": None},
        owned("/etc/web/gone"),
        "",
    ),
    "a file of a template without prune stays": (
        [],
        {"/etc/web/old": file("x\n")},
        owned("/etc/web/old", template=0),
        "",
    ),
    "a sensitive file shows no content": (
        [RenderedFile(MAIN, b"password\n", sensitive=True)],
        {MAIN: file("older password\n")},
        None,
        """\
# /etc/web/main.conf: replace (sensitive, content not shown)
replace /etc/web/main.conf
""",
    ),
    "bytes that are not UTF-8": (
        [RenderedFile(MAIN, b"\xff\n")],
        {MAIN: None},
        None,
        """\
# /etc/web/main.conf: new, mode 0644, owner 0:0
--- /dev/null
+++ /etc/web/main.conf
@@ -0,0 +1 @@
+\ufffd
create /etc/web/main.conf
""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_plan(name: str) -> None:
    files, disk, manifest, wanted = CASES[name]
    assert text(plan(files, disk, manifest)) == wanted


def test_a_pending_reload_is_not_nothing() -> None:
    manifest = Manifest("web", reload_pending=True)
    made = plan([RenderedFile(MAIN, b"a\n")], {MAIN: file("a\n")}, manifest)
    assert not made.actions and not made.empty


def test_the_hash_is_of_everything_that_is_on_disk() -> None:
    def hashed(content: str, mode: int = 0o644, dest: str = MAIN) -> str:
        return content_hash({dest: record_of(file(content, mode), 0)})

    assert hashed("a") == hashed("a")
    assert len({hashed("a"), hashed("b"), hashed("a", 0o600), hashed("a", dest="/x")}) == 4


def test_a_manifest_survives_its_file() -> None:
    content = Content(7, 42, 41, "hash", {MAIN: FileRecord(sha256(b"a"), 0o640, 1, 2, 0)})
    manifest = Manifest(
        "web", content, content, Phase.RELOADING, True, 3, ("/x",), (MAIN,), Bad(41, "hash", "why"), 1.5
    )
    assert from_json(to_json(manifest)) == manifest
    assert from_json(to_json(Manifest("web"))) == Manifest("web")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"format": 2}', b'{"format": 1}', b'{"format": 1, "x": 1}']
)
def test_a_wrong_manifest_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        from_json(data)
