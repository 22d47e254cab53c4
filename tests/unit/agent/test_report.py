"""What a host says of itself: what is news, what is never said, and where it may stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from etcd_agent.errors import ConfigError
from etcd_agent.loop import Scheduler
from etcd_agent.report import MAX_ERROR, check_prefixes, document_of, host_key, is_news, open_reporter, parse
from etcd_agent.rollout import open_gate
from etcd_agent.values import UNCHANGED, Outcome, Report, ResourceStatus, Retry, Rollout, State
from tests.unit.agent.support import load_config

STATUS = ResourceStatus("web", State.APPLIED, 7, 10.0004, hash="abc", drift=("/etc/web.conf",))


def test_a_report() -> None:
    assert document_of(STATUS, sensitive=False) == {
        "state": "APPLIED", "revision": 7, "hash": "abc", "since": 10.0, "error": "", "reload_pending": False,
        "drift": ["/etc/web.conf"],
    }  # fmt: skip


def test_an_error_is_one_short_line_and_none_of_a_sensitive_resource() -> None:
    failed = replace(STATUS, state=State.FAILED, error="check: line 1\n  password=hunter2 " + "x" * 1000)
    error = document_of(failed, sensitive=False)["error"]
    assert error.startswith("check: line 1 password=") and len(error) == MAX_ERROR
    assert "hunter2" not in str(document_of(failed, sensitive=True))
    assert document_of(STATUS, sensitive=True)["error"] == ""


def test_what_is_news() -> None:
    first = document_of(STATUS, sensitive=False)
    assert is_news(None, first)
    assert not is_news(first, first)
    later = replace(STATUS, revision=8, since=11.0, passes=5, waiting="settling", due_at=3.0)
    assert not is_news(first, document_of(later, sensitive=False))
    for change in (
        {"state": State.PENDING},
        {"error": "x"},
        {"hash": "d"},
        {"drift": ()},
        {"reload_pending": True},
    ):
        assert is_news(first, document_of(replace(STATUS, **change), sensitive=False)), change


def test_names_are_one_part_of_a_key() -> None:
    assert host_key("/_agents/status", "a/b c") == "/_agents/status/a%2Fb%20c"
    assert parse(b"[]") == {} and parse(b"\xff") == {} and parse(b'{"state":1}') == {"state": 1}


@pytest.mark.parametrize("keys", ["/_agents/status/web1", "/_agents", "/"])
def test_what_agents_write_must_not_be_watched(tmp_path: Path, keys: str) -> None:
    text = f'[resource]\nkeys = ["{keys}"]\n[[template]]\nsrc = "a.j2"\ndest = "{tmp_path}/a"\n'
    config = load_config(tmp_path, {"web": text}, {"a.j2": ""})
    check_prefixes(config)
    reporting = replace(config, report=Report(enabled=True))
    with pytest.raises(ConfigError, match=r"web\.toml: watches /.* meets report\.prefix /_agents/status"):
        open_reporter(reporting, Mock())
    check_prefixes(
        replace(reporting, report=Report(enabled=True, prefix="/elsewhere")) if keys != "/" else config
    )


def test_canaries_need_reports(tmp_path: Path) -> None:
    config = load_config(tmp_path, {}, {})
    lonely = replace(config, rollout=Rollout("web", canary=("c1",)))
    with pytest.raises(ConfigError, match=r"rollout\.canary needs \[report\] enabled = true"):
        open_gate(lonely, Mock(), print)


def test_a_pass_without_keys_is_no_apply(tmp_path: Path) -> None:
    """Before the store has answered, a host that has never applied anything does not say that it has."""
    text = f'[resource]\nkeys = ["/a"]\n[[template]]\nsrc = "a.j2"\ndest = "{tmp_path}/a"\n'
    (resource,) = load_config(tmp_path, {"web": text}, {"a.j2": ""}).resources
    said: list[ResourceStatus] = []
    scheduler = Scheduler(Retry(), 600, "retry", random=lambda: 0.5, clock=lambda: 9.0, on_status=said.append)
    scheduler.set_resources([resource], 0.0)
    scheduler.due(0.0)
    scheduler.started(resource, 0.0)
    scheduler.finished(resource, Outcome(UNCHANGED, 0), 0.1, pending=False, complete=False)
    assert State.APPLIED not in {status.state for status in said}
    scheduler.changed(resource, 0.2)
    scheduler.due(0.2)
    scheduler.started(resource, 0.2)
    scheduler.finished(resource, Outcome(UNCHANGED, 5, hash="h"), 0.3, pending=False, complete=True)
    assert (said[-1].state, said[-1].revision) == (State.APPLIED, 5)
