"""Keys -> file_sd files, read back; the question to Prometheus, against a server that answers as it does."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from etcd_agent import RenderError
from etcd_agent.errors import ConfigError
from etcd_agent.values import Applied
from tests.plugin_support import SECTIONS, Readme, installed_plugins, plugin_module, rendered, resource_of

KEYS = {
    "/targets/node/b": '{"address": "10.0.0.2:9100", "labels": {"rack": "r2"}}',
    "/targets/node/a": "10.0.0.1:9100",
    "/targets/node/c": '{"targets": ["10.0.0.3:9100", "[0::1]:9100"]}',
    "/targets/app/x": "app.example:80",
}


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


@pytest.mark.parametrize(
    ("template", "parse"), [("file_sd.json.j2", json.loads), ("file_sd.yml.j2", yaml.safe_load)]
)
def test_all_jobs_in_one_file(template: str, parse: Any) -> None:
    resource = resource_of("prometheus", {"labels": {"site": "fra1", "rack": "none"}}, prefix="")
    groups = parse(rendered("prometheus", resource, KEYS, template))
    assert groups == [
        {"targets": ["app.example:80"], "labels": {"job": "app", "rack": "none", "site": "fra1"}},
        {
            "targets": ["10.0.0.1:9100", "10.0.0.3:9100", "[::1]:9100"],
            "labels": {"job": "node", "rack": "none", "site": "fra1"},
        },
        {"targets": ["10.0.0.2:9100"], "labels": {"job": "node", "rack": "r2", "site": "fra1"}},
    ]


def test_no_targets_are_an_empty_list() -> None:
    assert rendered("prometheus", resource_of("prometheus"), {}, "file_sd.json.j2") == "[]\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("10.0.0.1", "address: expected host:port"),
        ("http://a:1/metrics", "expected host:port"),
        ('{"adress": "a:1"}', "unknown field 'adress'; did you mean 'address'"),
        ('{"labels": {}}', "expected an address, or targets"),
        ('{"address": "a:1", "targets": ["b:1"]}', "expected an address, or targets"),
        ('{"targets": []}', "targets: expected a list of addresses"),
        ('{"address": "a:1", "labels": {"a-b": "x"}}', "labels: expected the name of a label"),
        ('{"address": "a:1", "labels": {"a": 1}}', "labels: a: expected a text"),
        ("10.0.0.1:9100", "10.0.0.1:9100 is there already, by /targets/node/a"),
    ],
)
def test_wrong_values_name_their_key(value: str, message: str) -> None:
    with pytest.raises(RenderError) as refused:
        rendered(
            "prometheus", resource_of("prometheus"), {**KEYS, "/targets/node/z": value}, "file_sd.json.j2"
        )
    assert message in str(refused.value) and "/targets/node/z" in str(refused.value)


def test_health_asks_prometheus_for_every_target(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    path.write_text('[{"targets": ["a:1", "b:1"], "labels": {"x": "y"}}]')
    answer: dict[str, Any] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, format: str, *arguments: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    resource = resource_of("prometheus", {"api": f"http://127.0.0.1:{server.server_port}/"})
    module = plugin_module("prometheus")

    def health(active: list[str], dropped: list[str], file: Path = path) -> str:
        data = {
            kind: [
                {"discoveredLabels": {"__address__": each, "__meta_filepath": str(file)}} for each in found
            ]
            for kind, found in (("activeTargets", active), ("droppedTargets", dropped))
        }
        answer["body"] = json.dumps({"status": "success", "data": data}).encode()
        return str(module.agent_health(resource=resource, applied=Applied(1, (str(path), "/none"), ())))

    try:
        assert health(["a:1"], ["b:1"]) == "None"
        assert health(["a:1"], []) == f"{path}: Prometheus has not found 1 targets yet, such as b:1"
        assert "2 targets" in health(["a:1", "b:1"], [], tmp_path / "another.json")
        answer["body"] = b"<html>"
        problem = str(module.agent_health(resource=resource, applied=Applied(1, (str(path),), ())))
        assert "does not say what it has found: " in problem
    finally:
        server.shutdown()
        server.server_close()
    assert module.agent_health(resource=resource, applied=Applied(1, (str(path),), ())) is None, (
        "it is not there"
    )
    assert module.agent_reload(resource=resource) == "Prometheus follows its files by itself"
    assert module.agent_health(resource=resource_of("prometheus"), applied=Applied(1, (), ())) is None


def test_settings() -> None:
    settings_of = plugin_module("prometheus").settings_of
    for wrong, message in (
        ({"api": "localhost:9090"}, "expected a URL"),
        ({"labels": {"a-b": "x"}}, "the name of a label"),
        ({"label": {}}, "did you mean 'labels'"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings_of(resource_of("prometheus", wrong))


def test_the_manual_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Readme("prometheus")
    assert readme.sections == SECTIONS
    assert readme.settings == {
        field.name for field in dataclasses.fields(plugin_module("prometheus").Settings)
    }
    files = readme.render(tmp_path, monkeypatch)
    assert json.loads(files["/etc/prometheus/file_sd/node.json"]) == [
        {"targets": ["10.0.0.2:9100"], "labels": {"rack": "r2", "site": "fra1"}},
        {"targets": ["10.0.0.1:9100"], "labels": {"site": "fra1"}},
    ]
    assert json.loads(files["/etc/prometheus/file_sd/app.json"])[0]["targets"] == [
        "[::1]:8080",
        "app.example:8080",
    ]
