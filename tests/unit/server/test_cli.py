"""The command `etcd-py`: what it prints, where, and its exit status. Nothing here starts a server."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_server import cli, logs
from etcd_server.config import Config
from etcd_server.flags import FLAGS
from etcd_server.version import ETCD_VERSION, VERSION

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    for variable in [name for name in os.environ if name.startswith("ETCD_")]:
        monkeypatch.delenv(variable)
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    for handler in handlers:
        if handler not in root.handlers:
            root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = raising


def test_version_begins_with_the_line_that_scripts_read(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["-version"], ["version"], ["--name", "x", "--version=true"]):
        assert cli.main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [f"etcd Version: {ETCD_VERSION}", f"etcd-py Version: {VERSION}"]
    assert ETCD_VERSION.startswith("3.6.")


def test_the_version_is_that_of_the_package() -> None:
    assert f'\nversion = "{VERSION}"\n' in (ROOT / "pyproject.toml").read_text()


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("--help", "-h", "-help"):
        assert cli.main([argument]) == 0
    printed = capsys.readouterr().out
    for flag in FLAGS.values():
        assert f"--{flag.name}" in printed or f" {flag.name}" in printed, flag.name
    assert max(map(len, printed.splitlines())) <= 110
    assert "ETCD_DATA_DIR" in printed


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["--nosuch"], 2, "etcd-py: flag provided but not defined: --nosuch; see etcd-py --help"),
        (["--name"], 2, "etcd-py: flag needs an argument: --name: text; see etcd-py --help"),
        (["start"], 2, 'etcd-py: "start" is not a valid flag; see etcd-py --help'),
        (["version", "x"], 2, 'etcd-py: version: unexpected argument "x"; see etcd-py --help'),
        (["--version=maybe"], 1, 'etcd-py: invalid value "maybe" for --version: expected true or false'),
        (["--election-timeout", "0"], 1, "etcd-py: --election-timeout must be >0 (set to 0ms)"),
        (
            ["--initial-cluster", "a=http://a:1"],
            1,
            'etcd-py: couldn\'t find local name "default" in the initial cluster configuration '
            "(--initial-cluster a=http://a:1)",
        ),
        (
            ["--log-outputs", "/nonexistent/x.log"],
            1,
            "etcd-py: --log-outputs: cannot open /nonexistent/x.log: No such file or directory",
        ),
    ],
)
def test_what_is_wrong_is_one_line_on_standard_error_and_nothing_is_written(
    arguments: list[str],
    status: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == line + "\n"
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_server_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etcd_server import assembly
    from etcd_server.storage.errors import DirectoryInUse

    seen: list[Config] = []

    def run(config: Config) -> int:
        seen.append(config)
        raise DirectoryInUse("d: in use by another process; stop that one first")

    monkeypatch.setattr(assembly, "run", run)
    log = tmp_path / "log"
    arguments = [
        "--name",
        "m",
        "--data-dir",
        str(tmp_path / "d"),
        "--max-wals",
        "9",
        "--log-outputs",
        str(log),
    ]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == "etcd-py: d: in use by another process; stop that one first\n"
    assert seen[0].name == "m"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["level"], line["msg"]) for line in lines] == [
        ("warn", "setting has no effect here"),
        ("fatal", "failed to run"),
    ]
    assert (lines[0]["setting"], lines[0]["value"]) == ("--max-wals", "9")


def test_the_exit_status_of_the_server_is_that_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etcd_server import assembly

    monkeypatch.setattr(assembly, "run", lambda config: 7)
    assert cli.main(["--data-dir", str(tmp_path / "d"), "--log-outputs", str(tmp_path / "log")]) == 7


def test_an_interrupt_during_the_start_leaves_no_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etcd_server import assembly

    def run(config: Config) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(assembly, "run", run)
    assert cli.main(["--data-dir", str(tmp_path / "d"), "--log-outputs", str(tmp_path / "log")]) == 130
    assert capsys.readouterr() == ("", "")


def test_verify_of_what_is_no_data_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(tmp_path / "none")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("etcd-py: ") and captured.err.count("\n") == 1


def test_verify_of_a_sound_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from etcd_server.storage.datadir import DataDirectory

    DataDirectory.open(tmp_path / "d").close()
    assert cli.main(["verify", str(tmp_path / "d")]) == 0
    assert "no problem was found" in capsys.readouterr().out


def test_verify_without_a_directory_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify"])
    assert caught.value.code == 2


def test_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "etcd_server.cli", "--listen-client-urls=foo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        'etcd-py: invalid value "foo" for --listen-client-urls: '
        "URL scheme must be http, https, unix, or unixs: foo\n"
    )


# --- the log ------------------------------------------------------------------------------------------


def written(form: str, path: Path, level: str = "info") -> str:
    logs.configure(level, form, [str(path)])
    log = logging.getLogger("etcd_server.test")
    log.debug("hidden")
    log.info("ready to serve client requests", extra={"address": "http://x:1", "count": 3})
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it \u00e4rgert")
    return path.read_text(encoding="utf-8")


def test_json_has_the_fields_of_etcds_log(tmp_path: Path) -> None:
    first, second = map(json.loads, written("json", tmp_path / "log").splitlines())
    assert list(first) == ["level", "ts", "caller", "msg", "address", "count"]
    assert (first["level"], first["msg"]) == ("info", "ready to serve client requests")
    assert (first["address"], first["count"]) == ("http://x:1", 3)
    assert first["ts"].endswith("Z") and len(first["ts"]) == len("2026-01-02T03:04:05.678901Z")
    assert first["caller"].startswith("tests/unit/server/test_cli.py:")
    assert (second["level"], second["msg"], second["error"]) == ("error", "it \u00e4rgert", "broken")
    assert "ValueError" in second["stacktrace"]


def test_console_is_separated_by_tabs(tmp_path: Path) -> None:
    first = written("console", tmp_path / "log").splitlines()[0].split("\t")
    assert first[1] == "info"
    assert first[3:] == ["ready to serve client requests", '{"address":"http://x:1","count":3}']


def test_the_level_is_the_least_severe_that_is_written(tmp_path: Path) -> None:
    assert len(written("json", tmp_path / "a", "debug").splitlines()) == 3
    assert len(written("json", tmp_path / "b", "error").splitlines()) == 1
    assert written("json", tmp_path / "c", "fatal") == ""


def test_several_outputs_and_a_file_that_is_moved_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    logs.configure("info", "json", ["stdout", "stderr", str(path)])
    logging.getLogger("x").info("one")
    path.rename(tmp_path / "log.1")
    logs.reopen()
    logging.getLogger("x").info("two")
    assert (tmp_path / "log.1").read_text().count("one") == 1
    assert '"msg":"two"' in path.read_text() and "one" not in path.read_text()
    captured = capsys.readouterr()
    assert captured.out.count("\n") == captured.err.count("\n") == 2
