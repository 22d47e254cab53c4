"""Keys -> hosts files and dnsmasq's configuration; both against a real dnsmasq."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_agent import RenderError
from etcd_agent.errors import ConfigError
from etcd_agent.values import Applied, Resource, Staged, StagedFile, Template
from tests.plugin_support import (
    SECTIONS,
    Readme,
    ended,
    installed_plugins,
    plugin_module,
    rendered,
    resource_of,
    wait_for,
)
from tests.servers import free_ports

DNSMASQ = "/usr/sbin/dnsmasq"
KEYS = {
    "/hosts/db1.example": "10.0.0.5 fd00:0::5",
    "/hosts/Web1": '{"addresses": ["10.0.0.6"], "aliases": ["WEB", "www.example"]}',
    "/cnames/database.example": "db1.example",
    "/domains/apps.example": "10.0.0.6",
    "/services/_pg._tcp.example/a": "db1.example:5432",
    "/services/_pg._tcp.example/b": '{"address": "web1:1", "priority": 5, "weight": 0}',
}
installed = pytest.mark.skipif(not os.path.exists(DNSMASQ), reason="dnsmasq is not installed")


@pytest.fixture(scope="module", autouse=True)
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed_plugins(tmp_path_factory.mktemp("plugins") / "packages"):
        yield


def text_of(values: dict[str, str], template: str = "hosts.j2", **settings: Any) -> str:
    return rendered("hosts", resource_of("hosts", settings), values, template)


def test_a_hosts_file() -> None:
    text = text_of(KEYS)
    assert text.splitlines()[1:] == [
        "127.0.0.1 localhost",
        "::1 localhost ip6-localhost ip6-loopback",
        "10.0.0.6 web1 web www.example",
        "10.0.0.5 db1.example",
        "fd00::5 db1.example",
    ]
    assert plugin_module("hosts.model").hosts_in(text) == {
        "web1": ["10.0.0.6"], "web": ["10.0.0.6"], "www.example": ["10.0.0.6"],
        "db1.example": ["10.0.0.5", "fd00::5"],
    }  # fmt: skip
    assert "localhost" not in text_of(KEYS, localhost=False)


def test_a_configuration_for_dnsmasq() -> None:
    assert text_of(KEYS, "dnsmasq.conf.j2").splitlines()[1:] == [
        "host-record=web1,web,www.example,10.0.0.6",
        "host-record=db1.example,10.0.0.5",
        "host-record=db1.example,fd00::5",
        "cname=database.example,db1.example",
        "address=/apps.example/10.0.0.6",
        "srv-host=_pg._tcp.example,db1.example,5432,0,1",
        "srv-host=_pg._tcp.example,web1,1,5,0",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("/hosts/a", "10.0.0.256", "addresses: expected IP addresses"),
        ("/hosts/a", "", "at least one IP address"),
        ("/hosts/a", "10.0.0.1\n6.6.6.6 bank.example", "expected IP addresses"),
        ("/hosts/a", '{"addresses": ["::1"], "alias": []}', "did you mean 'aliases'"),
        ("/hosts/a", '{"addresses": ["::1"], "aliases": ["a b\\n"]}', "aliases: expected the name of a host"),
        ("/hosts/a", '{"addresses": ["::1"], "aliases": ["db1.EXAMPLE"]}', "is a name of a"),
        ("/hosts/1.2.3.4", "::1", "expected the name of a host"),
        ("/hosts/a b", "::1", "expected a name of letters"),
        ("/cnames/a", "b c", "expected the name of a host"),
        ("/domains/a", "x", "expected IP addresses"),
        ("/services/http/a", "a:1", "expected a name such as"),
        ("/services/_a._tcp.b/a", "10.0.0.1:1", "expected the name of a host and a port"),
        ("/services/_a._tcp.b/a", '{"address": "a:1", "weight": 65536}', "weight: expected an integer"),
    ],
)
def test_wrong_values_name_their_key(key: str, value: str, message: str) -> None:
    with pytest.raises(RenderError) as refused:
        text_of({**KEYS, key: value})
    assert message in str(refused.value) and "key /" in str(refused.value)


@installed
def test_dnsmasq_checks_reads_and_answers(tmp_path: Path) -> None:
    """From the check of the staged files to the answers after a SIGHUP."""
    (port,) = free_ports(1)
    hosts, conf = tmp_path / "hosts", tmp_path / "dnsmasq.conf"
    module = plugin_module("hosts")
    settings = {
        "pid": f"{tmp_path}/pid",
        "server": f"127.0.0.1:{port}",
        "localhost": False,
        "restart": "true",
    }
    templates = (Template("hosts:hosts.j2", str(hosts)), Template("hosts:dnsmasq.conf.j2", str(conf)))
    resource = Resource("r", "r.toml", "", ("",), templates, plugins={"hosts": settings})
    applied = Applied(1, (str(hosts), str(conf)), (str(hosts),))
    assert module.agent_reload(resource=resource, applied=applied) is not None
    assert module.agent_health(resource=resource, applied=applied) is None, "it does not run"

    hosts.write_text(text_of(KEYS, localhost=False))
    conf.write_text(text_of(KEYS, "dnsmasq.conf.j2"))
    files = tuple(StagedFile(str(path), str(path), True) for path in (hosts, conf))
    staged = Staged(str(tmp_path), files)
    assert module.agent_validate(resource=resource, staged=staged) is None
    wrong = tmp_path / "wrong"
    wrong.write_text("host-record=a b c\n")
    staged = Staged("", (StagedFile(str(conf), str(wrong), True),))
    refused = module.agent_validate(resource=resource, staged=staged)
    assert str(refused).startswith("dnsmasq --test: ") and f"Bad host-record at line 1 of {conf}" in str(
        refused
    )

    command = [DNSMASQ, "-k", "-R", "-h", "--conf-file=/dev/null", f"--addn-hosts={hosts}", f"--port={port}"]
    command += [
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        f"--pid-file={tmp_path}/pid",
        "--user=root",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def health() -> str:
        return str(module.agent_health(resource=resource, applied=applied))

    try:
        wait_for(lambda: (tmp_path / "pid").exists() and health() == "None", health)
        hosts.write_text(
            text_of({**KEYS, "/hosts/db1.example": "10.0.0.7", "/hosts/new": "::7"}, localhost=False)
        )
        assert "db1.example: answered with 10.0.0.5, expected 10.0.0.7" in health()
        assert (
            module.agent_reload(resource=resource, applied=applied) == "dnsmasq reads its hosts files again"
        )
        wait_for(lambda: health() == "None", health)
        # What stands on disk, but is not a hosts file of this dnsmasq.
        hosts.write_text("10.0.0.9 nobody.example\n")
        assert "nobody.example: answered with " in health()
    finally:
        ended([process])
    assert health() == "None"
    changed = Applied(1, applied.files, (str(conf),))
    assert module.agent_reload(resource=resource, applied=changed) == "dnsmasq restarted"


def test_settings() -> None:
    module = plugin_module("hosts")
    assert module.settings_of(resource_of("nginx")) is None
    assert module.settings_of(resource_of("hosts", {"server": "[::1]:53"})).server == "[::1]:53"
    for wrong, message in (
        ({"server": "53"}, "expected an address with a port"),
        ({"server": "ns.example:53"}, "expected an IP address"),
        ({"pid": "x"}, "expected an absolute path"),
        ({"restart": []}, "expected a command"),
        ({"locahost": True}, "did you mean 'localhost'"),
    ):
        with pytest.raises(ConfigError, match=message):
            module.settings_of(resource_of("hosts", wrong))
    templates = (Template("hosts:dnsmasq.conf.j2", "/x"),)
    refused = module.agent_check_settings(resource=resource_of("hosts", {"pid": "/x"}, templates=templates))
    assert "only at its start: set plugins.hosts.restart" in str(refused)


def test_the_manual_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Readme("hosts")
    assert readme.sections == SECTIONS
    assert readme.settings == {field.name for field in dataclasses.fields(plugin_module("hosts").Settings)}
    files = readme.render(tmp_path, monkeypatch)
    assert "10.0.0.6 web1.example web www.example\n" in files["/etc/hosts"]
    assert "localhost" in files["/etc/hosts"] and "localhost" not in files["/etc/dnsmasq.hosts/etcd"]
    assert "srv-host=_postgresql._tcp.example,db1.example,5432,0,1\n" in files["/etc/dnsmasq.d/etcd.conf"]
