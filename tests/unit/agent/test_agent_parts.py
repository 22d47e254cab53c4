"""The small parts: what the store's groups make of what they see, schemas, locks, threads, audit, pages."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from etcd_agent import audit as audit_module
from etcd_agent import schema
from etcd_agent.audit import Audit, changes
from etcd_agent.errors import AgentError, ConfigError, FilesError, LockedError, SchemaError
from etcd_agent.follow import Store
from etcd_agent.locks import DestinationLocks
from etcd_agent.manifest import Content, FileRecord
from etcd_agent.pages import CONTROL, Listener, Page, order
from etcd_agent.redact import redacted
from etcd_agent.runtime import pass_limit_s
from etcd_agent.sources import Batch, Group, Listed, Sources, Trouble
from etcd_agent.values import AgentConfig, Entry, Resource, Snapshot, State, Template
from etcd_agent.workers import Workers, idle
from etcd_client import Event, EventKind, KeyValue, WatchBatch
from tests.unit.agent.live import MemoryStore, running, wait_for
from tests.unit.agent.support import load_config, snapshot


class StillFollower:
    """Follows nothing; counts what it is asked."""

    def __init__(self) -> None:
        self.relists = 0
        self.stopped = False
        self.denied = False
        self.away: str | None = None

    def relist(self) -> None:
        self.relists += 1

    def stop(self) -> None:
        self.stopped = True

    def trouble(self, now_s: float) -> str | None:
        return self.away


class StillSources(Sources):
    def _start(self, group: Group, config: AgentConfig, store: Store) -> None:
        group.follower = cast(Any, StillFollower())


def config_of(folder: Path, keys: dict[str, str], head: str = "") -> AgentConfig:
    """A resource for each name, with its list of keys."""
    resources = {
        name: f'[resource]\nkeys = {listed}\n[[template]]\nsrc = "a.j2"\ndest = "{folder}/{name}"\n'
        for name, listed in keys.items()
    }
    return load_config(folder, resources, {"a.j2": ""}, head)


def followed(config: AgentConfig) -> StillSources:
    sources = StillSources(put=lambda seen: None)
    sources.follow(config, cast(Store, None))
    return sources


def put(key: str, value: str, revision: int) -> WatchBatch:
    kv = KeyValue(key.encode(), value.encode(), revision, revision, 1)
    return WatchBatch(revision, (Event(EventKind.PUT, kv),), 7)


def names(resources: Any) -> list[str]:
    return sorted(resource.name for resource in resources)


def test_changes_reach_the_resources_that_they_concern(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"one": '["/p/one"]', "two": '["/p/two", "/p/both"]', "all": '["/p"]'})
    sources = followed(config)
    (group,) = sources._groups
    one, two, everything = (next(r for r in config.resources if r.name == n) for n in ("one", "two", "all"))
    assert sources.reader(one, cast(Store, None))() is None, "never listed"
    assert names(sources.take(Listed(group, snapshot({"/p/one": "1"}, 10)))) == ["all", "one", "two"]
    assert names(sources.take(Batch(group, put("/p/two/x", "2", 11)))) == ["all", "two"]
    assert names(sources.take(Batch(group, put("/p/else", "2", 12)))) == ["all"]
    assert names(sources.take(Batch(group, put("/q", "2", 13)))) == []
    read = sources.reader(two, cast(Store, None))
    sources.take(Batch(group, put("/p/both", "3", 14)))
    found = read()
    assert found is not None and set(found.entries) == {"/p/two/x"}, "as of the moment when it was asked for"
    assert found.revision == 13
    assert set(sources.reader(everything, cast(Store, None))().entries) >= {"/p/one", "/p/both"}  # type: ignore[union-attr]
    assert names(sources.take(Listed(group, snapshot({"/p/one": "1"}, 20)))) == ["all", "one", "two"]


def test_an_old_list_is_refused_and_so_is_what_follows_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"one": '["/p/one"]'})
    sources = followed(config)
    sources.expect({7: 50})
    (group,) = sources._groups
    follower = cast(StillFollower, group.follower)
    assert not sources.take(Listed(group, snapshot({"/p/one": "old"}, 40)))
    assert not sources.take(Batch(group, put("/p/one", "new", 41)))
    assert (
        sources.check_troubles(0.0) and "revision 40, but revision 50 of the same cluster" in sources.trouble
    )
    assert sources.reader(config.resources[0], cast(Store, None))() is None
    sources.relist_if_due(0.0, 600.0)
    assert follower.relists == 1, "it is asked again soon"
    assert names(sources.take(Listed(group, snapshot({"/p/one": "good"}, 51)))) == ["one"]
    assert sources.check_troubles(1.0) and sources.trouble == ""
    sources.take(Batch(group, put("/p/one", "newer", 60)))
    assert not sources.take(Listed(group, snapshot({"/p/one": "old"}, 59))), "nor what is older than was seen"
    sources.accept()
    assert sources.take(Listed(group, snapshot({"/p/one": "old"}, 59))), "unless a person accepts it"


def test_schemas_are_a_group_of_their_own(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, {"one": '["/p/one"]', "two": '["/p/two"]'}, '[schema]\nprefix = "/_schemas"\n'
    )
    sources = followed(config)
    data, schemas = sorted(sources._groups, key=lambda group: group.schemas)
    sources.take(Listed(data, snapshot({"/p/one": "1"}, 10)))
    assert sources.reader(config.resources[0], cast(Store, None))() is None, "nothing unchecked"
    listed = snapshot({"/_schemas/p/one": '{"type": "string"}'}, 9)
    assert names(sources.take(Listed(schemas, listed))) == ["one"]
    found = sources.reader(config.resources[0], cast(Store, None))()
    assert found is not None and set(found.schemas) == {"/p/one"}
    assert names(sources.take(Batch(schemas, put("/_schemas/p", "{}", 11)))) == ["one", "two"]


def test_keys_under_several_watches_are_read_together(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"one": '["/p/one", "/q"]'})
    sources = followed(config)
    assert [group.above for group in sources._groups] == ["/p/one", "/q"]
    for group in sources._groups:
        sources.take(Listed(group, snapshot({}, 10)))

    class Reads:
        def read(self, tops: tuple[str, ...]) -> Snapshot:
            return snapshot(dict.fromkeys(tops, "x"), 12)

    found = sources.reader(config.resources[0], cast(Store, Reads()))()
    assert found is not None and (set(found.entries), found.revision) == ({"/p/one", "/q"}, 12)


def test_a_user_who_may_not_read_all_gets_a_watch_for_each_subtree(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"one": '["/p/one"]', "two": '["/p/two", "/p/two/x"]'})
    sources = followed(config)
    (group,) = sources._groups
    follower = cast(StillFollower, group.follower)
    follower.denied = True
    sources.take(Trouble(group))
    assert follower.stopped
    assert [(each.above, each.tops) for each in sources._groups] == [
        ("/p/one", ("/p/one",)),
        ("/p/two", ("/p/two",)),
    ]
    sources.take(Listed(sources._groups[0], snapshot({"/p/one": "1"}, 10)))
    assert sources.reader(config.resources[0], cast(Store, None))() is not None


def test_a_new_configuration_keeps_the_groups_that_stay(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"one": '["/p/one"]', "two": '["/q/two"]'})
    sources = followed(config)
    kept, gone = sources._groups
    sources.take(Listed(kept, snapshot({"/p/one": "1"}, 10)))
    (tmp_path / "conf.d/two.toml").unlink()
    sources.follow(replace(config, resources=config.resources[:1]), cast(Store, None))
    assert sources._groups == [kept] and kept.listed
    assert cast(StillFollower, gone.follower).stopped
    assert not sources.take(Batch(gone, put("/q/two", "1", 11))), "what comes late is not taken"


def checked(value: str, schemas: dict[str, str], key: str = "/a/b/c") -> str:
    """ "" or the refusal of one value."""
    entries = {prefix: Entry(text.encode(), 1) for prefix, text in schemas.items()}
    try:
        schema.check(Snapshot(1, 1, {key: Entry(value.encode(), 1)}, entries))
    except SchemaError as error:
        return str(error)
    return ""


def test_the_nearest_schema_counts_and_the_value_is_not_told() -> None:
    number, text = '{"type": "integer", "maximum": 9}', '{"type": "string"}'
    assert checked("8", {"/a": number}) == ""
    problem = checked("secret-77", {"/a": number})
    assert problem == 'the value of /a/b/c does not match the schema of /a: expected type "integer"'
    assert checked("77", {"/a": text, "/a/b": number}).endswith("expected maximum 9")
    assert checked("77", {"/a": number, "/a/b": text}) == "", "JSON may also be the string that it is"
    assert checked("77", {"/ab": number, "/a/b/c/d": number}) == "", "another prefix"
    nested = '{"properties": {"port": {"type": "integer"}}, "type": "object"}'
    assert checked('{"port": "x"}', {"/a": nested}).endswith('port: expected type "integer"')


def test_a_schema_that_is_none_refuses() -> None:
    assert "the schema of /a is not JSON" in checked("1", {"/a": "{"})
    assert "the schema of /a is no JSON Schema" in checked("1", {"/a": '{"type": 7}'})
    problem = checked("1", {"/a": '{"$ref": "http://192.0.2.1/schema.json"}'})
    assert "refers to 'http://192.0.2.1/schema.json', which is not in it" in problem


def test_values_are_masked_line_by_line() -> None:
    keys = snapshot({"/a": "one secret\nanother one", "/b": "x"}, 1)
    assert redacted("x: 'one secret' and another one", keys) == "x: '***' and ***"


def test_a_destination_has_one_writer(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    lock = str(tmp_path / "run/destinations.lock")
    mine = DestinationLocks(lock)
    mine.take([f"{tmp_path}/real", "/other"])
    mine.take(["/other"])

    def child(dest: str) -> int:
        pid = os.fork()
        if pid == 0:
            status = 2
            try:
                DestinationLocks(lock).take([dest])
                status = 0
            except LockedError:
                status = 1
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert child(f"{tmp_path}/link") == 1, "the same file by another name"
    assert child(f"{tmp_path}/free") == 0
    mine.close()
    assert child(f"{tmp_path}/real") == 0


def test_few_work_and_those_that_wait_take_no_place() -> None:
    workers = Workers(working=2, most=50)
    gate, done = threading.Event(), threading.Semaphore(0)
    working, most = [0], [0]
    lock = threading.Lock()

    def hang() -> None:
        with idle():
            gate.wait(10)
        done.release()

    def work() -> None:
        with lock:
            working[0] += 1
            most[0] = max(most[0], working[0])
        with lock:
            working[0] -= 1
        done.release()

    for _ in range(20):
        workers.submit(hang)
    for _ in range(30):
        workers.submit(work)
    for _ in range(30):
        assert done.acquire(timeout=5), "twenty commands hang, and the others go on"
    assert most[0] <= 2
    gate.set()
    for _ in range(20):
        assert done.acquire(timeout=5)
    threads = threading.active_count()
    for _ in range(10):
        workers.submit(work)
        assert done.acquire(timeout=5)
    assert threading.active_count() <= threads + 1, "threads are used again"


def test_audit_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MAX_BYTES", 400)
    audit = Audit(str(tmp_path / "audit.jsonl"))
    for number in range(12):
        audit.write({"resource": "app" if number % 2 else "other", "number": number})
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"resource": "app", "num')
    kept = [line["number"] for line in audit.lines("app")]
    assert kept == sorted(kept) and kept[-1] == 11
    assert (tmp_path / "audit.jsonl.1").stat().st_mode & 0o777 == 0o600


def test_an_audit_line_says_what_changed_but_no_hash_of_a_secret() -> None:
    before = Content(1, 10, 10, "", {"/a": FileRecord("old", 0, 0, 0)}, {"/k": 9, "/gone": 3})
    after = Content(1, 12, 12, "", {"/a": FileRecord("new", 0, 0, 0)}, {"/k": 12})
    plain = Resource("r", "f", "", ("/",), (Template("a", "/a"),))
    assert changes(plain, before, after) == {
        "keys": {"/gone": [3, 0], "/k": [9, 12]},
        "files": {"/a": ["old", "new"]},
        "revisions": [10, 12],
    }
    secret = replace(plain, templates=(Template("a", "/a", sensitive=True),))
    assert "old" not in json.dumps(changes(secret, before, after))


def test_the_control_socket_is_private_and_may_have_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / ("path-" * 20)
    folder.mkdir(parents=True)
    given: list[dict[str, str]] = []

    def refuse(arguments: Any) -> Any:
        given.append(dict(arguments))
        raise ConfigError("no")

    def accept(arguments: Any) -> Any:
        return {"message": "done", "exit_status": 0}

    orders: dict[str, Callable[[Any], Any]] = {"/refuse": refuse, "/accept": accept}
    listener = Listener(f"unix:{folder}/{CONTROL}", {"/page": lambda: Page(b"x")}, orders)
    try:
        assert (folder / CONTROL).stat().st_mode & 0o777 == 0o600
        assert order(str(folder), "/accept", {}, 5.0) == {"message": "done", "exit_status": 0}
        assert order(str(folder), "/refuse", {"a": "b c"}, 5.0) == {"error": "no", "exit_status": 1}
        assert given == [{"a": "b c"}]
    finally:
        listener.close()
    wait_for(lambda: not (folder / CONTROL).exists())
    with pytest.raises(FilesError, match="the running agent does not answer"):
        order(str(folder), "/accept", {}, 5.0)


def test_an_address_in_use_is_one_line(tmp_path: Path) -> None:
    listener = Listener("127.0.0.1:0", {})
    try:
        with pytest.raises(AgentError, match="cannot be listened on: Address already in use"):
            Listener(f"127.0.0.1:{listener.port}", {})
    finally:
        listener.close()


def test_the_watchdog_starves_when_a_pass_runs_far_beyond_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, {"one": '["/p/one"]'})
    (only,) = config.resources
    store = MemoryStore()
    store.put({"/p/one": "1"})
    with running(monkeypatch, config, store) as live:
        live.wait("one", state=State.APPLIED)
        agent = live.agent
        assert agent.healthy
        now = time.monotonic()
        agent._scheduler._running["one"] = now - pass_limit_s(only)
        assert agent.healthy, "it may take as long as its commands and health checks may"
        agent._scheduler._running["one"] = now - pass_limit_s(only) - 61
        assert not agent.healthy and agent._stuck(now)
        del agent._scheduler._running["one"]
