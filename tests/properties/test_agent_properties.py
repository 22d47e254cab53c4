"""The agent's pure parts against dumb twins: whatever the input, one error type, no half plan, no dropped
change."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_agent.commands import expand, uses
from etcd_agent.config import load, load_resource
from etcd_agent.errors import AgentError, CheckError, ConfigError, GuardError
from etcd_agent.keyspace import Mirror, View
from etcd_agent.loop import NEVER, Pacer, Scheduler
from etcd_agent.manifest import Bad, Content, FileRecord, Manifest, Phase, from_json, to_json
from etcd_agent.notify import Notifier
from etcd_agent.plan import diff, make_plan
from etcd_agent.tables import locate
from etcd_agent.values import (
    APPLIED,
    Entry,
    FileState,
    Outcome,
    Reload,
    RenderedFile,
    Resource,
    Retry,
    Safety,
    Snapshot,
    Template,
    Wait,
    minimal_ranges,
)

SEGMENTS = st.sampled_from(["a", "b", "ab", "c", "x y", "é"])
KEYS = st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
NAMES = [
    "resource",
    "template",
    "check",
    "reload",
    "health",
    "src",
    "dest",
    "keys",
    "mode",
    "cmd",
    "name",
    "prefix",
]
SCALARS = st.one_of(
    st.integers(-1, 10**10),
    st.booleans(),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["1s", "/a"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
)


def toml_line(item: tuple[str, object]) -> str:
    return f"{item[0]} = {json.dumps(item[1])}"


LINES = st.one_of(
    st.tuples(st.sampled_from(NAMES), VALUES).map(toml_line),
    st.sampled_from(NAMES).map(lambda name: f"[{name}]"),
    st.sampled_from(NAMES).map(lambda name: f"[[{name}]]"),
    st.text(max_size=20),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=st.lists(LINES, max_size=12))
def test_any_file_is_a_configuration_or_one_line(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "x.toml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    for read in (load, load_resource):
        try:
            read(str(path))
        except ConfigError as error:
            assert str(error).startswith(str(path))


@given(text=st.text(max_size=80), path=st.lists(st.sampled_from(NAMES) | st.integers(0, 3), max_size=4))
def test_locate_never_fails(text: str, path: list[str | int]) -> None:
    found = locate(text, tuple(path))
    assert found is None or found[0] >= 1 <= found[1]


STATES = st.builds(
    FileState,
    content=st.sampled_from([b"", b"a\n", b"b\n", b"\xff"]),
    mode=st.sampled_from([0o600, 0o644]),
    uid=st.integers(0, 2),
    gid=st.integers(0, 2),
)
DESTINATIONS = [f"/etc/x/{name}" for name in "abcdef"]
RENDERED = st.builds(
    RenderedFile,
    dest=st.sampled_from(DESTINATIONS),
    content=st.sampled_from([b"", b"a\n", b"b\n"]),
    mode=st.sampled_from([None, 0o600, 0o640]),
    uid=st.sampled_from([None, 1]),
    gid=st.none(),
    template=st.integers(0, 1),
)


@given(
    files=st.lists(RENDERED, max_size=6, unique_by=lambda file: file.dest),
    disk=st.dictionaries(st.sampled_from(DESTINATIONS), STATES),
    owned=st.dictionaries(st.sampled_from(DESTINATIONS), st.integers(0, 3)),
    refuse_empty=st.booleans(),
)
def test_a_plan_carried_out_leaves_nothing_to_plan(
    files: list[RenderedFile], disk: dict[str, FileState], owned: dict[str, int], refuse_empty: bool
) -> None:
    resource = Resource(
        "r", "f", "", ("/a",), (Template("a", "/a"), Template("b", "/b", for_each="/*", prune=True))
    )
    records = {dest: FileRecord("", 0, 0, 0, template) for dest, template in owned.items()}
    manifest = Manifest("r", Content(files=records))
    safety = Safety(refuse_empty=refuse_empty)
    everything = {dest: disk.get(dest) for dest in DESTINATIONS}
    before = dict(everything)
    snapshot = Snapshot(1, 5, {})
    try:
        plan = make_plan(resource, snapshot, files, everything, manifest, safety=safety)
    except GuardError:
        assert refuse_empty and any(
            not file.content and (old := disk.get(file.dest)) and old.content.strip() for file in files
        )
        return
    assert everything == before, "planning is pure"
    diff(plan)
    for action in plan.actions:
        assert action.before == everything[action.dest] != action.after
        everything[action.dest] = action.after
    wanted = {file.dest: file for file in files}
    for dest, state in everything.items():
        if dest in wanted:
            assert state is not None and state.content == wanted[dest].content
            assert wanted[dest].mode in (None, state.mode) and wanted[dest].uid in (None, state.uid)
        elif owned.get(dest) != 1:
            assert state == before[dest], "what no pruning template has made is not touched"
    again = make_plan(resource, snapshot, files, everything, Manifest("r", plan.target), safety=safety)
    assert not again.actions and again.empty
    assert again.target == plan.target


RECORDS = st.builds(FileRecord, st.text(max_size=4), *[st.integers(0, 9)] * 4)
CONTENTS = st.builds(
    Content, *[st.integers(0, 2**64)] * 3, st.text(max_size=4), st.dictionaries(KEYS, RECORDS, max_size=3)
)
MANIFESTS = st.builds(
    Manifest,
    resource=st.text(max_size=5),
    current=CONTENTS,
    target=st.none() | CONTENTS,
    phase=st.sampled_from(Phase),
    reload_pending=st.booleans(),
    generation=st.integers(0, 9),
    removed=st.lists(KEYS, max_size=2).map(tuple),
    changed=st.lists(KEYS, max_size=2).map(tuple),
    bad=st.none() | st.builds(Bad, st.integers(), st.text(), st.text()),
)


@given(MANIFESTS)
def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert from_json(to_json(manifest)) == manifest


@given(manifest=MANIFESTS, cut=st.integers(0, 400), junk=st.binary(max_size=5))
def test_a_damaged_manifest_is_a_value_error_or_a_manifest(manifest: Manifest, cut: int, junk: bytes) -> None:
    data = to_json(manifest)
    with contextlib.suppress(ValueError):
        from_json(data[:cut] + junk)


@given(
    tree=st.dictionaries(KEYS, st.text(max_size=3)), watched=st.lists(KEYS, min_size=1, max_size=3), top=KEYS
)
def test_ls_and_lsdir_against_a_dumb_twin(tree: dict[str, str], watched: list[str], top: str) -> None:
    resource = Resource("r", "f", "/p", tuple(watched), ())
    entries = {f"/p{key}": Entry(value.encode(), 1) for key, value in tree.items()}
    view = View(resource, Snapshot(1, 1, entries))
    seen = [key for key in tree if any(key == each or key.startswith(each + "/") for each in watched)]
    assert view.keys() == sorted(seen)
    for each in watched:
        below = [key[len(each) + 1 :].split("/") for key in seen if key.startswith(each + "/")]
        own = {each.rsplit("/", 1)[1]} if each in tree else set()
        assert view.ls(each) == sorted({parts[0] for parts in below} | own)
        assert view.lsdir(each) == sorted({parts[0] for parts in below if len(parts) > 1})
    assert resource.covers(top) == any(top == each or top.startswith(each + "/") for each in watched)


@given(st.lists(st.dictionaries(KEYS, st.none() | st.integers(0, 9), max_size=3), max_size=8))
def test_mirror_against_a_dictionary(batches: list[dict[str, int | None]]) -> None:
    mirror, twin = Mirror(["/a"]), {}
    kept = []
    for revision, batch in enumerate(batches, start=1):
        changes = [
            (key, None if value is None else Entry(b"%d" % value, revision)) for key, value in batch.items()
        ]
        mirror.apply(revision, changes)
        for key, entry in changes:
            if key == "/a" or key.startswith("/a/"):
                twin[key] = entry
        alive = {key: entry for key, entry in twin.items() if entry is not None}
        assert mirror.snapshot().entries == alive
        kept.append((mirror.snapshot(), alive))
    assert all(snapshot.entries == alive for snapshot, alive in kept), "old snapshots stay as they were"


@given(st.lists(KEYS, max_size=8))
def test_minimal_ranges_cover_all_and_no_one_covers_another(keys: list[str]) -> None:
    tops = minimal_ranges(keys)
    assert all(any(key == top or key.startswith(top + "/") for top in tops) for key in keys)
    assert not [(a, b) for a in tops for b in tops if a != b and b.startswith(a + "/")]


STEPS = st.lists(
    st.tuples(st.sampled_from(["change", "finish", "fail", "roll back", "wait"]), st.floats(0.0, 50.0)),
    max_size=30,
)


@given(steps=STEPS, wait=st.tuples(st.floats(0, 5), st.floats(5, 20)), min_interval_s=st.floats(0, 60))
def test_no_change_is_ever_dropped(
    steps: list[tuple[str, float]], wait: tuple[float, float], min_interval_s: float
) -> None:
    """After any history, a change since the last start makes a pass due within the configured limits."""
    resource = Resource(
        "r", "f", "", ("/a",), (), wait=Wait(*wait), reload=Reload(min_interval_s=min_interval_s)
    )
    made = Scheduler(
        Retry(jitter=False, max_backoff_s=30), 10**6, "retry", random=lambda: 0.5, clock=lambda: 0.0
    )
    made.set_resources([resource], 0.0)
    now, unseen, running, started_at = 0.0, True, False, []
    for what, seconds in steps:
        now += seconds
        if not running and made.due(now):
            made.started(resource, now)
            running, unseen = True, False
            started_at.append(now)
        if what == "change":
            made.changed(resource, now)
            unseen = True
        elif running and what != "wait":
            results: dict[str, Outcome | AgentError] = {
                "finish": Outcome(APPLIED, 1, reloaded=True),
                "fail": CheckError("no"),
                "roll back": Outcome("rolled_back", 1, reloaded=True),
            }
            made.finished(resource, results[what], now, pending=what == "roll back")
            running = False
    if unseen and not running:
        limit = max(wait[1], wait[0]) + min_interval_s + 30
        assert made.next_at() <= now + limit
        assert made.due(now + limit) == [resource]


@given(st.text(max_size=50))
def test_a_status_is_one_ascii_line(text: str) -> None:
    sent: list[str] = []
    Notifier(sent.append, {}).status(text)
    assert all(each.isascii() and each.count("\n") == 0 for each in sent)


@given(src=st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text))
def test_a_variable_is_one_word_for_the_shell(src: str) -> None:
    expanded = expand("check {{src}} {{ .src }}", {"src": src})
    assert isinstance(expanded, str) and shlex.split(expanded) == ["check", src, src]
    assert uses("a {{.src}}", "src") and not uses("a {{dest}}", "src")


def test_pacer_with_nothing_to_do_waits_for_ever() -> None:
    resource = Resource("r", "f", "", ("/a",), ())
    assert Pacer(resource, Retry(), 1.0, "retry", lambda: 0.0).due_at() == NEVER
