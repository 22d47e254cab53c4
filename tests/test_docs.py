"""What the documentation says is there, and what is there is said: RPCs, errors, pages, limits, metrics,
hooks, settings, commands, exit statuses, targets, paths. The README's tour is run.

Flags are held by tests/unit/server/test_config_docs.py, the options of etcd-py-agent and each hook's line by
tests/unit/agent, the nginx plugin's settings and examples by its own tests.
"""

from __future__ import annotations

import doctest
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import toml

from etcd_agent import cli as agent_cli
from etcd_agent import errors as agent_errors
from etcd_agent.config import load, load_resource
from etcd_agent.hookspecs import AgentSpecs
from etcd_agent.tables import Table
from etcd_client import ctl
from etcd_client.ctl import settings as ctl_settings
from etcd_server.api.errors import every_error
from etcd_server.api.methods import METHODS, Kind
from etcd_server.flags import FLAGS
from etcd_server.services.engine import SERVED
from etcd_server.transport.metrics import KINDS
from tests import markdown, servers
from tests.markdown import ROOT, code, read, rows, section

API = read("docs/api.md")
DOCUMENTS = tuple(
    str(path.relative_to(ROOT))
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "etcd_*/**/*.md",
        "plugins/*/*.md",
        "tests/**/*.md",
        "benchmarks/*.md",
    )
    for path in sorted(ROOT.glob(pattern))
)
served = {f"{service}/{method}" for service, methods in SERVED.items() for method in methods}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A member that runs."""
    if servers.etcd_py_command() is None:
        pytest.skip("etcd-py is not built")
    with servers.start_server("etcd-py", tmp_path_factory.mktemp("member")) as member:
        yield member.url


# --- docs/api.md: RPCs and the JSON gateway ---------------------------------------------------------------


def served_table() -> dict[str, list[str]]:
    """RPC -> paths of the JSON gateway, as documented."""
    table = rows(section(API, "RPCs that are served"))
    return {code(cells[0])[0]: code(cells[1]) for cells in table}


def missing_table() -> set[str]:
    table = rows(section(API, "RPCs that are not served"))
    return {f"{code(service)[0]}/{method}" for service, methods in table for method in methods.split(", ")}


def test_the_rpcs_that_are_served() -> None:
    assert served_table() == {rpc: list(METHODS[f"/{rpc}"].gateway_paths) for rpc in served}


def test_the_rpcs_that_are_not_served() -> None:
    assert missing_table() == {path.removeprefix("/") for path in METHODS} - served


def test_the_gateway_answers_as_documented(url: str) -> None:
    missing = {rpc.path: requests.post(url + path, "{}", timeout=5).status_code
               for rpc in METHODS.values() for path in rpc.gateway_paths[:1]
               if rpc.path[1:] in missing_table()}  # fmt: skip
    assert missing and set(missing.values()) == {501}
    for path in (
        p for rpc, paths in served_table().items() for p in paths if METHODS[f"/{rpc}"].kind is Kind.UNARY
    ):
        for prefix in ("/v3/", "/v3beta/"):
            status = requests.post(url + path.replace("/v3/", prefix), "{}", timeout=5).status_code
            assert status in (200, 400, 404), path  # 404: a lease that is not there
            assert requests.get(url + path, timeout=5).status_code == 405
    assert requests.post(f"{url}/v3/kv/nothing", "{}", timeout=5).status_code == 404


def test_the_example_of_the_gateway(url: str) -> None:
    (block,) = (
        block for block in markdown.blocks(section(API, "The JSON gateway")) if block.language == "console"
    )
    command, _, expected = block.text.removeprefix("$ ").partition("\n")
    target, body = re.findall(r"127\.0\.0\.1:2379(\S+) -d '(.*)'", command)[0]
    assert_like(requests.post(url + target, body, timeout=5).text, expected.rstrip("\n"), command)


# --- docs/api.md: errors, pages, limits, metrics ----------------------------------------------------------


def test_every_error() -> None:
    documented = [tuple(cells[:4]) for cells in rows(section(API, "Errors"))]
    assert all(len(cells) == 5 and cells[4] for cells in rows(section(API, "Errors"))), "what to do"
    assert sorted(documented) == sorted(
        (error.__name__, f"`{error.text}`", error.code.name, str(error.http_status))
        for error in every_error()
    )


def documented_pages() -> set[str]:
    return {code(cells[0])[0] for cells in rows(section(API, "Pages"))}


def test_every_page(url: str) -> None:
    for page in documented_pages():
        assert requests.get(url + page, timeout=5).status_code == 200, page
    checks = {
        f"{page}/{name}"
        for page in ("/livez", "/readyz")
        for name in re.findall(r"\[\+\](\w+) ok", requests.get(f"{url}{page}?verbose", timeout=5).text)
    }
    assert documented_pages() == checks | {"/livez", "/readyz", "/health", "/version", "/metrics"}
    assert requests.get(f"{url}/metrix", timeout=5).status_code == 404


def test_the_fields_of_the_version_page(url: str) -> None:
    line = next(cells[1] for cells in rows(section(API, "Pages")) if cells[0] == "`/version`")
    assert set(code(line)) == set(requests.get(f"{url}/version", timeout=5).json())


def test_the_limits_that_are_flags() -> None:
    told = {
        flag: re.sub(r",| (?:bytes)?", "", value)
        for cells in rows(section(API, "Limits"))
        for flag, value in re.findall(r"`--([a-z-]+)`, ([^;]+)", cells[1])
    }
    assert told.pop("quota-backend-bytes") == "2GiB"  # its default is written as 0
    assert len(told) > 3 and told == {flag: FLAGS[flag].default for flag in told}


def test_every_metric(url: str) -> None:
    text = section(API, "Metrics")
    measured = {(code(cells[0])[0], cells[1]) for cells in rows(text)}
    left_out = set(code(text.rpartition("\n\n")[2]))
    assert {(kind.name, kind.type) for kind in KINDS.values() if kind.name not in left_out} == measured
    assert left_out <= {kind.name for kind in KINDS.values()}
    page = requests.get(f"{url}/metrics", timeout=5).text
    shown = set(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
    assert measured <= shown
    besides = {name for name, _ in shown - measured}
    assert {name for name in besides if not name.startswith("process_")} == {"os_fd_used", "os_fd_limit"}


# --- the agent and its plugins ----------------------------------------------------------------------------


def test_no_hook_is_documented_that_is_not_there() -> None:
    documented = re.findall(r"^### `(\w+)\(", read("docs/plugins.md"), re.MULTILINE)
    assert documented == [name for name in vars(AgentSpecs) if name.startswith("agent_")]


def settings_read(monkeypatch: pytest.MonkeyPatch, folder: Path, resource: str) -> set[str]:
    """Every key ("backend.retry.attempts") that the agent looks for in its file, or in a resource file."""
    asked: set[str] = set()

    def watched(name: str) -> None:
        method = getattr(Table, name)

        def ask(table: Table, key: str, *arguments: Any) -> Any:
            asked.add(table._dotted(key))
            return method(table, key, *arguments)

        monkeypatch.setattr(Table, name, ask)

    for name in ("take", "require"):
        watched(name)
    (folder / "conf.d").mkdir()
    (folder / "agent.toml").write_text("")
    if resource:
        (folder / "web.toml").write_text(resource)
        load_resource(str(folder / "web.toml"))
    else:
        load(str(folder / "agent.toml"))
    return asked


def test_every_setting_of_the_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = set()
    for cells in rows(section(read("docs/agent.md"), "agent.toml")):
        for names in code(cells[0]):
            table, keys = re.fullmatch(r"(?:\[([\w.]+)\] ?)?(.*)", names).groups()  # type: ignore[union-attr]
            documented |= {f"{table}.{key}" if table else key for key in re.split(r", ", keys) if key}
    assert documented == settings_read(monkeypatch, tmp_path, "")


def flat(data: dict[str, Any], at: str = "") -> Iterator[str]:
    for key, value in data.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield from flat(each, f"{at}{key}.")
            else:
                yield f"{at}{key}"


def test_every_setting_of_a_resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = section(read("docs/agent.md"), "Resource files: `conf.d/*.toml`")
    (example,) = (block.text for block in markdown.blocks(text) if block.language == "toml")
    documented = set(flat(toml.loads(example)))
    asked = settings_read(monkeypatch, tmp_path, example)  # which also refuses what is not there
    # Alternatives that cannot stand beside others in the example are in its comments or in the text.
    elsewhere = {
        "reload.cmd",
        "reload.timeout",
        "health.cmd",
        "template.sensitive",
        "template.contents",
        "template.uid",
        "template.gid",
    }
    assert asked - documented == elsewhere
    for key in ("cmd = ...", "cmd = [...]", "sensitive = true", "uid gid"):
        assert key in text, key


OURS = ("for_each", "prune", "sensitive", "in_place", "action", "contents", "make_directories", "delimiters")


def test_every_setting_of_a_confd_resource(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = section(read("docs/agent.md"), "Resource files: `conf.d/*.toml`")
    confd = re.search(r"loads as it is: (.*?)\. ", text, re.DOTALL)
    assert confd is not None
    documented = {f"template.{key}" for names in code(confd[1].replace("\n", " ")) for key in names.split()}
    minimal = '[template]\nsrc = "a.j2"\ndest = "/a"\nkeys = ["/a"]\n'
    ours = {f"template.{key}" for key in OURS}
    assert settings_read(monkeypatch, tmp_path, minimal) - ours == documented


def numbers(text: str) -> set[int]:
    """The statuses of a sentence such as "Exit statuses: 0 done, or no change; 1 wrong configuration"."""
    return {int(number) for number in re.findall(r"(?:: |; |\n)(\d+) [a-z`]", text)}


def test_the_commands_and_exit_statuses_of_the_agent() -> None:
    text = section(read("docs/agent.md"), "Commands")
    assert {code(cells[0])[0].split()[0] for cells in rows(text)} == set(agent_cli.cli.commands)
    errors = vars(agent_errors).values()
    statuses = {
        error.exit_status for error in errors if isinstance(error, type) and hasattr(error, "exit_status")
    }
    assert numbers(text[text.index("Exit statuses:") :]) == statuses | {0, agent_cli.CHANGES}


# --- the client -------------------------------------------------------------------------------------------


def test_the_commands_and_exit_statuses_of_the_command_line() -> None:
    text = section(read("docs/client.md"), "The command line")
    assert set(re.findall(r"^etcd-pyctl (\w+)", text, re.MULTILINE)) == set(ctl.commands.commands)
    given = {ctl_settings.REFUSED, ctl_settings.NOT_NOW, ctl_settings.UNKNOWN, ctl_settings.INTERRUPTED}
    usage = 2  # click's
    documented = numbers(text[text.index("Exit status:") :])
    assert documented == given | {0, usage}
    assert {
        int(number) for number in re.findall(r"^ +(\d+)  ", ctl.commands.help or "", re.MULTILINE)
    } == documented
    options = set(re.findall(r"--[a-z-]+", text))
    known = {option for command in (ctl.commands, *ctl.commands.commands.values())
             for parameter in command.params for option in parameter.opts}  # fmt: skip
    assert options <= known


# --- targets, links and paths -----------------------------------------------------------------------------


def test_every_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", read("Makefile"), re.MULTILINE))
    table = {
        code(cells[0])[0].removeprefix("make ")
        for cells in rows(section(read("CONTRIBUTING.md"), "Commands"))
    }
    assert table == targets
    mentioned = {
        (path, name) for path in DOCUMENTS for name in re.findall(r"[`\n]make ([a-z-]+)", read(path))
    }
    assert {name for _, name in mentioned} <= targets, mentioned


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links_lead_somewhere(path: str) -> None:
    for link in markdown.links(read(path)):
        if not link.startswith(("http://", "https://", "#")):
            target, _, place = link.partition("#")
            target_path = (ROOT / path).parent.joinpath(target)
            assert target_path.exists(), link
            if place and target_path.suffix == ".py":
                assert f"\ndef {place}(" in target_path.read_text(), f"{link}: there is no such test"


@pytest.mark.parametrize("path", DOCUMENTS)
def test_files_that_are_named_exist(path: str) -> None:
    """Paths in backticks that begin with a folder of the repository."""
    folders = "|".join(
        each.name for each in ROOT.iterdir() if each.is_dir() and not each.name.startswith(".")
    )
    for name in re.findall(rf"`((?:{folders})/[\w./*-]+)`", read(path)):
        assert any(ROOT.glob(name.rstrip("/").replace("NAME", "*"))), name


def test_the_index_lists_every_document() -> None:
    index = markdown.links(read("docs/README.md"))
    for document in (ROOT / "docs").rglob("*.md"):
        name = str(document.relative_to(ROOT / "docs"))
        assert name == "README.md" or name in index, name


# --- the README's tour ------------------------------------------------------------------------------------

SEPARATOR = "\x1e"


def assert_like(got: str, expected: str, what: str) -> None:
    """`expected` may have "..." for what differs from run to run."""
    checker = doctest.OutputChecker()
    example = doctest.Example(what, expected)
    if not checker.check_output(example.want, got.rstrip("\n") + "\n", doctest.ELLIPSIS):
        raise AssertionError(f"{what}\n{checker.output_difference(example, got, doctest.ELLIPSIS)}")


def tour() -> tuple[str, list[tuple[str, str]]]:
    """The tour as one shell script, and for each of its parts the commands and what they are to print."""
    script, parts = ["set -e"], []
    for block in markdown.blocks(section(read("README.md"), "A two-minute tour")):
        match block.language:
            case "sh":
                script += ["printf '\\036'", block.text]
                parts.append((block.text, ""))
            case "text":
                parts[-1] = (parts[-1][0], block.text)
            case "python":
                (name,) = re.findall(r"Save it as `(.*?)`", block.before)
                script.append(f"cat > {name} <<'END OF FILE'\n{block.text}END OF FILE\n")
            case other:
                raise AssertionError(f"a block of {other!r} in the tour")
    return "\n".join(script), parts


def test_the_tour_of_the_readme(tmp_path: Path) -> None:
    """From start to end in one shell, on free ports: the default ones are replaced in its text, and for the
    commands that need no address, in the environment."""
    for needed in ("etcdctl", "curl", "bash"):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    if not (Path(sys.prefix) / "bin/etcd-py").exists():
        pytest.skip("etcd-py is not installed")
    client, peer = (f"127.0.0.1:{port}" for port in servers.free_ports(2))
    variables = {f"ETCD_{name}_CLIENT_URLS": f"http://{client}" for name in ("LISTEN", "ADVERTISE")}
    variables |= {f"ETCD_{name}_PEER_URLS": f"http://{peer}" for name in ("LISTEN", "INITIAL_ADVERTISE")}
    variables |= {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": f"http://{client}"}
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script, parts = tour()
    shell = subprocess.Popen(
        ["bash", "-c", script.replace("127.0.0.1:2379", client)],
        cwd=tmp_path, env={**os.environ, **variables}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        printed, complaints = shell.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        log = (tmp_path / "tour/server.log").read_text()
        raise AssertionError(f"the tour takes longer than a minute; the server said:\n{log}") from None
    finally:
        if _is_alive(shell.pid):
            os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate()
    outputs = printed.split(SEPARATOR)[1:]
    for (commands, expected), output in zip(parts, outputs, strict=False):
        assert_like(output, expected.replace("127.0.0.1:2379", client), f"{commands}{complaints}")
    assert (shell.returncode, len(outputs)) == (0, len(parts)), complaints
    assert not complaints


def _is_alive(group: int) -> bool:
    """Whether a process of the tour is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
