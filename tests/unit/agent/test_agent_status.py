"""What the agent says of itself: status file, systemd's datagrams, log lines, and the command's exit
statuses."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import click
import pytest
from click.testing import CliRunner

from etcd_agent import cli, logs
from etcd_agent.errors import AgentError, FilesError, LockedError
from etcd_agent.locks import is_locked, state_lock
from etcd_agent.notify import Notifier, watchdog_interval_s
from etcd_agent.status import AgentStatus, read_status, report, summary, write_status
from etcd_agent.values import ResourceStatus, State
from tests.unit.agent.support import load_config

GOOD = AgentStatus(
    pid=1,
    config="agent.toml",
    started=0.0,
    written=1.0,
    nodes=("http://a:1",),
    revision=4711,
    store_error="",
    stopping=False,
    ready=True,
    cluster_id=7,
    services={},
    resources=(ResourceStatus("web", State.APPLIED, 4711), ResourceStatus("db", State.APPLIED, 4700)),
)
FAILED = replace(GOOD, resources=(*GOOD.resources, ResourceStatus("x", State.FAILED, 1, error="no such key")))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command sets up logging for its process; here that is undone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_summary() -> None:
    assert summary(GOOD) == "rev 4711, 2/2 applied, watching"
    assert summary(FAILED) == "degraded: rev 4711, 2/3 applied, failed: x, watching"
    assert summary(replace(GOOD, store_error="refused")) == "degraded: rev 4711, 2/2 applied, store away"
    assert summary(replace(GOOD, stopping=True)).startswith("stopping: ")


def test_status_file(tmp_path: Path) -> None:
    with pytest.raises(FilesError, match="has the agent run with this state_dir"):
        read_status(str(tmp_path))
    write_status(str(tmp_path), FAILED)
    assert read_status(str(tmp_path)) == FAILED
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(FilesError, match="not a status file"):
        read_status(str(tmp_path))


def test_report() -> None:
    lines = list(report(FAILED, alive=False, now=10.0))
    assert lines[0].startswith("agent      NOT running")
    assert lines[1] == "store      http://a:1: revision 4711"
    assert lines[-2:] == ["x          FAILED at revision 1, for 10 s", "           no such key"]


def test_ready_and_status_travel_separately_and_in_ascii() -> None:
    sent: list[str] = []
    notifier = Notifier(sent.append, {})
    notifier.status("rev 1 → 2\nnext")
    notifier.status("rev 1 → 2\nnext")
    notifier.ready()
    notifier.reloading(12.5)
    notifier.stopping()
    assert sent == ["STATUS=rev 1 ? 2 next", "READY=1", "RELOADING=1\nMONOTONIC_USEC=12500000", "STOPPING=1"]


def test_watchdog_is_fed_at_half_the_interval_and_only_for_this_process() -> None:
    pid = str(os.getpid())
    assert watchdog_interval_s({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": pid}) == 30.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_interval_s({"WATCHDOG_USEC": "x"}) is None
    sent: list[str] = []
    notifier = Notifier(sent.append, {"WATCHDOG_USEC": "2000000"})
    for now in (0.0, 0.5, 0.9, 1.0, 1.5, 2.0):
        notifier.progress(now)
    assert sent == ["WATCHDOG=1"] * 3


def test_lock(tmp_path: Path) -> None:
    folder = str(tmp_path / "state")
    assert not is_locked(folder)
    with state_lock(folder):
        assert is_locked(folder)
        with pytest.raises(LockedError, match="in use by another agent"), state_lock(folder):
            raise AssertionError("locked twice")
    assert not is_locked(folder)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("style", ["text", "journal", "json"])
def test_a_record_is_one_line(style: str) -> None:
    stream = io.StringIO()
    logs.set_up("info", style, stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("x").exception("a\nb")
    (line,) = stream.getvalue().splitlines()
    assert "a b | Traceback" in line and "ValueError: two" in line
    if style == "journal":
        assert line.startswith("<3>")
    if style == "json":
        assert json.loads(line)["level"] == "error"


def run(*arguments: str) -> tuple[int, str, str]:
    """The command in this process: exit status, output, error output."""
    result = CliRunner().invoke(cast(click.Command, _Main()), list(arguments))
    assert not isinstance(result.exception, AgentError), "an error reached the user as a traceback"
    return result.exit_code, result.stdout, result.stderr


class _Main:
    """CliRunner's view of ``cli.main``, which turns errors into lines and statuses."""

    name = "etcd-py-agent"

    def main(self, args: list[str], prog_name: str, **extra: object) -> None:
        cli.main(args)


def test_usage_and_configuration_errors_are_status_1(tmp_path: Path) -> None:
    assert run("plan", "--nonsense")[0] == 1
    assert run("nonsense")[0] == 1
    status, _, error = run("--config", str(tmp_path / "none.toml"), "run")
    assert (status, error) == (
        1,
        f"etcd-py-agent: {tmp_path}/none.toml: cannot be read: No such file or directory\n",
    )


def test_help_lists_every_command() -> None:
    status, output, _ = run("--help")
    assert status == 0
    for command in ("run", "once", "plan", "status", "plugins", "check-config", "render"):
        assert f"  {command} " in output
    docs = Path(__file__).resolve().parents[3] / "docs"
    guide = "".join((docs / name).read_text() for name in ("agent.md", "fleet.md", "plugins.md"))
    for name, each in cli.cli.commands.items():
        assert f"`{name}" in guide, name
        for parameter in each.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option in guide, f"{name} {option}"


def test_check_config_and_render(tmp_path: Path) -> None:
    resource = f'[template]\nsrc = "a.j2"\ndest = "{tmp_path}/out"\nkeys = ["/a"]\n'
    load_config(tmp_path, {"a": resource}, {"a.j2": 'x {{ getv("/a") }}\n'})
    config = ("--config", str(tmp_path / "agent.toml"))
    assert run(*config, "check-config") == (0, f"{tmp_path}/agent.toml: 1 resources, no error\n", "")
    (tmp_path / "data.json").write_text('{"/a": "mocked"}')
    status, output, _ = run(*config, "render", "a", "--mock-data", str(tmp_path / "data.json"))
    assert (status, output) == (0, f"# {tmp_path}/out\nx mocked\n")
    status, _, error = run(*config, "render", "b")
    assert (status, error) == (1, "etcd-py-agent: there is no resource 'b'; known: a\n")
    (tmp_path / "templates/a.j2").write_text("{% if %}")
    status, _, error = run(*config, "check-config")
    assert status == 1 and f"{tmp_path}/conf.d/a.toml: a.j2:1:" in error
    assert run(*config, "status")[0] == 1


def test_an_attached_plugin_that_is_not_there(tmp_path: Path) -> None:
    resource = (
        f'[resource]\nkeys = ["/a"]\n[[template]]\nsrc = "a.j2"\ndest = "{tmp_path}/out"\n[plugins.ngnix]\n'
    )
    load_config(tmp_path, {"a": resource}, {"a.j2": ""})
    status, _, error = run("--config", str(tmp_path / "agent.toml"), "check-config")
    assert (status, error) == (
        1,
        f"etcd-py-agent: {tmp_path}/conf.d/a.toml: plugins.ngnix: there is no such plugin\n",
    )
