"""Services of a host: their files, when they count as well, and what checks say."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import toml
from hypothesis import given
from hypothesis import strategies as st

from etcd_agent.errors import ConfigError
from etcd_agent.registration import Judge, load_service, load_services, problem
from etcd_agent.tables import Table
from etcd_agent.values import ServiceCheck, ServiceConfig
from tests import markdown
from tests.unit.agent.support import write_tree

MINIMAL = '[service]\naddress = "%H:8080"\n'


def test_a_service_file(tmp_path: Path) -> None:
    text = """
        [service]
        name = "shop"
        address = "%H:8080"
        key = "/live/shop/%H"
        metadata = { version = "1.2" }
        ttl = "30s"
        [check]
        tcp = "127.0.0.1:8080"
        http = "http://127.0.0.1:8080/healthz"
        expect = 204
        cmd = ["/bin/true"]
        interval = "1s"
        timeout = "500ms"
        rise = 3
        fall = 5
    """
    write_tree(tmp_path, {"services.d/a.toml": text, "services.d/web.toml": MINIMAL})
    shop, web = load_services(str(tmp_path), "web1/x")
    assert shop == ServiceConfig(
        "shop", f"{tmp_path}/services.d/a.toml", "web1/x:8080", "/live/shop/web1%2Fx", {"version": "1.2"}, 30,
        ServiceCheck("127.0.0.1:8080", "http://127.0.0.1:8080/healthz", 204, ("/bin/true",), 1.0, 0.5, 3, 5),
    )  # fmt: skip
    assert (web.name, web.key, web.check.configured) == ("web", "/services/web/web1%2Fx", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[check]\n", "expected a table [service]"),
        ("[service]\n", "service.address is missing"),
        ('[service]\naddress = "web1"\n', "expected host:port, not 'web1'"),
        ('[service]\naddress = "web1:99999"\n', "expected a port from 1 to 65535"),
        (MINIMAL + 'ttl = "10ms"\n', "expected a duration of a second or more"),
        (MINIMAL + "prot = 1\n", "unknown key 'service.prot'"),
        (MINIMAL + "[check]\nrise = 0\n", "expected an integer from 1"),
        (MINIMAL + '[check]\nhttp = "ftp://x"\n', "expected a URL such as"),
        (MINIMAL + '[check]\ntcp = "x"\n', "expected host:port"),
        (MINIMAL + 'key = "/"\n', "expected a key such as"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    write_tree(tmp_path, {"services.d/web.toml": text})
    with pytest.raises(ConfigError) as caught:
        load_service(f"{tmp_path}/services.d/web.toml", "web1")
    assert expected in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/services.d/web.toml")


def test_two_services_under_one_key_are_refused(tmp_path: Path) -> None:
    same = MINIMAL + 'key = "/services/x"\n'
    write_tree(tmp_path, {"services.d/a.toml": same, "services.d/b.toml": same})
    with pytest.raises(ConfigError, match=r"b\.toml: the key /services/x is that of .*a\.toml, too"):
        load_services(str(tmp_path), "web1")


def test_every_setting_is_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = markdown.section(markdown.read("docs/fleet.md"), "Services: `services.d/*.toml`")
    (example,) = (block.text for block in markdown.blocks(text) if block.language == "toml")
    documented = {f"{table}.{key}" for table, keys in toml.loads(example).items() for key in keys}
    asked: set[str] = set()
    for name in ("take", "require"):
        method = getattr(Table, name)

        def ask(table: Table, key: str, *arguments: object, method: object = method) -> object:
            asked.add(table._dotted(key))
            return method(table, key, *arguments)  # type: ignore[operator]

        monkeypatch.setattr(Table, name, ask)
    write_tree(tmp_path, {"services.d/web.toml": example})
    load_services(str(tmp_path), "web1")
    assert asked == documented


def test_rise_and_fall() -> None:
    judge = Judge(rise=2, fall=3)
    results = "+-++-+--+---++"  # two in a row up, three in a row down
    seen = "".join("+" if judge.observe(result == "+") else "-" for result in results)
    assert seen == "---++++++++--+"


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_it_takes_a_whole_row_to_change(rise: int, fall: int, results: list[bool]) -> None:
    judge = Judge(rise, fall)
    states = [False]
    for result in results:
        states.append(judge.observe(result))
    for at in range(1, len(states)):
        if states[at] != states[at - 1]:
            need = rise if states[at] else fall
            assert results[at - need : at] == [states[at]] * need
    if results:
        tail = results[-max(rise, fall) :]
        if len(set(tail)) == 1 and len(tail) == max(rise, fall):
            assert states[-1] == results[-1]


def test_a_service_that_was_well_before_a_reload_still_is() -> None:
    judge = Judge(rise=2, fall=2, well=True)
    assert [judge.observe(passed) for passed in (False, True, False, False)] == [True, True, True, False]


def test_checks() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert problem(ServiceCheck(tcp=address)) is None
    assert problem(ServiceCheck(tcp=address)) == f"{address}: Connection refused"
    assert problem(ServiceCheck(cmd=("/bin/true",))) is None
    assert "exit status 1" in str(problem(ServiceCheck(cmd=("/bin/false",))))
    assert "ran longer than 0.1 s" in str(problem(ServiceCheck(cmd="sleep 5", timeout_s=0.1)))
    assert problem(ServiceCheck()) is None


def test_http_check() -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/healthz"
        assert problem(ServiceCheck(http=url, expect=204)) is None
        assert problem(ServiceCheck(http=url)) == f"{url}: answers 204, expected 200"
        server.shutdown()
        thread.join(5)
    assert problem(ServiceCheck(http=url)) == f"{url}: no answer: ConnectionError"
