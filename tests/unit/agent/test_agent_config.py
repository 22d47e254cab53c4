"""agent.toml and resource files: what loads, and the one line for what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_agent.config import instance_path, load
from etcd_agent.errors import ConfigError
from etcd_agent.tables import duration, parse_toml
from etcd_agent.values import Health, Reload, Template, Wait, minimal_ranges
from tests.unit.agent.support import load_config, write_tree

FULL = """
config_version = 1
prefix = "/production"
watch = true
interval = "5m"
noop = false
log_level = "debug"
log_format = "json"
nodes = ["http://a:2379", "http://b:2379"]
start_grace = 3
"""

RESOURCE = """
[resource]
name = "nginx"
prefix = "/nginx"
keys = ["/upstreams", "workers"]
wait = { min = "2s", max = "15s" }

[[template]]
src = "nginx.conf.j2"
dest = "/etc/nginx/nginx.conf"
owner = "root"
group = 0
mode = "0640"

[[template]]
src = "upstream.conf.j2"
for_each = "/upstreams/*"
dest = "/etc/nginx/conf.d/up-{{ item.name }}.conf"
prune = true

[check]
cmd = ["/usr/sbin/nginx", "-t"]
mode = "overlay"
timeout = "20s"

[reload]
unit = "nginx.service"
action = "signal:HUP"
splay = "10s"
min_interval = "1m30s"

[health]
http = "http://127.0.0.1:8080/healthz"
expect = 204

[rollback]
reload = false
"""


def test_a_whole_configuration(tmp_path: Path) -> None:
    config = load_config(tmp_path, {"nginx": RESOURCE}, {}, FULL)
    assert (config.interval_s, config.start_grace_s, config.log_format) == (300.0, 3.0, "json")
    assert config.nodes == ("http://a:2379", "http://b:2379")
    (resource,) = config.resources
    assert resource.prefix == "/production/nginx"
    assert resource.keys == ("/upstreams", "/workers")
    assert resource.ranges == ("/production/nginx/upstreams", "/production/nginx/workers")
    assert resource.wait == Wait(2.0, 15.0)
    assert resource.templates[0] == Template(
        "nginx.conf.j2", "/etc/nginx/nginx.conf", owner="root", group=0, mode=0o640
    )
    assert resource.templates[1].for_each == "/upstreams/*" and resource.templates[1].prune
    assert resource.check.cmd == ("/usr/sbin/nginx", "-t") and resource.check.timeout_s == 20
    assert resource.reload == Reload(
        unit="nginx.service", action="signal:HUP", splay_s=10, min_interval_s=90, timeout_s=60
    )
    assert resource.health == Health(http="http://127.0.0.1:8080/healthz", expect=204)
    assert resource.rollback.enabled and not resource.rollback.reload


def test_a_plain_confd_file_loads_as_it_is(tmp_path: Path) -> None:
    confd = """
[template]
src = "db.ini.j2"
dest = "/etc/myapp/db.ini"
owner = "nobody"
uid = 7
mode = "0600"
keys = ["/myapp/db", "/myapp/users/"]
prefix = "/site"
check_cmd = "/usr/bin/myapp --check {{.src}}"
reload_cmd = "/usr/bin/systemctl try-reload-or-restart myapp"
"""
    config = load_config(tmp_path, {"myapp": confd}, {}, 'prefix = "/prod"\n')
    (resource,) = config.resources
    assert (resource.name, resource.prefix) == ("myapp", "/prod/site")
    assert resource.keys == ("/myapp/db", "/myapp/users")
    assert resource.templates[0].owner == 7, "uid wins over owner, as in confd"
    assert resource.check.cmd == "/usr/bin/myapp --check {{.src}}" and resource.check.mode == "staged"
    assert resource.reload.cmd == "/usr/bin/systemctl try-reload-or-restart myapp"


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ('intervall = "1s"', "agent.toml:3:1: unknown key 'intervall'; did you mean 'interval'?"),
        (
            '[backend]\nrequst_timeout = "1s"',
            "agent.toml:4:1: unknown key 'backend.requst_timeout'; did you mean",
        ),
        ('interval = "5 minutes"', "agent.toml:3:1: interval: expected a duration such as"),
        ("interval = 0", "interval: expected a duration greater than zero"),
        (
            'log_level = "inf"',
            "log_level: expected one of debug, info, warning, error, not 'inf'; did you mean",
        ),
        ('nodes = ["127.0.0.1:2379"]', "nodes: expected a URL such as"),
        ('client_cert = "/a"', "client_cert and client_key belong together: expected both or neither"),
        ('username = "agent"', "username and password_file belong together: expected both or neither"),
        ('password_file = "x"', "password_file: expected an absolute path"),
        ('password_file = "${CREDENTIALS_DIRECTORY}/x"', "expected CREDENTIALS_DIRECTORY in the environment"),
        ("nodes = []", "nodes: expected at least one URL"),
        ('prefix = "production"', "prefix: expected a key that starts with '/'"),
        ("config_version = 2", "config_version: expected 1, the only version"),
        ('[rollout]\ngroup = "%{role}"', "rollout.group: expected a label of [host], not '%{role}'"),
        ("[rollout]\nmax_concurrent = 0", "rollout.max_concurrent: expected an integer from 1"),
        ('[report]\nttl = "10ms"', "report.ttl: expected a duration of a second or more"),
        ('[http]\nlisten = "0.0.0.0:9479"', "http.listen: expected a loopback address such as"),
        ("[http]\nlisten = 9479", "http.listen: expected a string"),
        ("[safety]\nmax_removed_ratio = 2", "safety.max_removed_ratio: expected a number from 0 to 1"),
        ('[schema]\nprefix = "x"', "schema.prefix: expected a key that starts with '/'"),
        ('[wait]\nmin = "9s"\nmax = "3s"', "max (3 s) must not be less than min (9 s)"),
        ("wait = 3", "wait: expected a table"),
        ("x = ", "agent.toml:3:"),
        ("[backend.retry]\nattempts = -1", "backend.retry.attempts: expected an integer from 0"),
    ],
)
def test_a_wrong_agent_toml_is_one_line(tmp_path: Path, head: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path, {}, {}, head + "\n")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("owner =", "ownr =", "conf.d/nginx.toml:11:1: unknown key 'template.ownr'; did you mean 'owner'?"),
        (
            "prune = true",
            "prun = true",
            "nginx.toml:19:1: unknown key 'template.prun'; did you mean 'prune'?",
        ),
        ("keys = [", "kees = [", "resource.keys is missing"),
        ('keys = ["/upstreams", "workers"]', "keys = []", "resource.keys: expected at least one key"),
        ('mode = "0640"', "mode = 640", 'expected an octal mode such as "0640", not 640'),
        ('mode = "0640"', 'mode = "rw"', "expected an octal mode"),
        ('src = "nginx.conf.j2"', 'src = "../x"', "expected a file below templates/"),
        ('dest = "/etc/nginx/nginx.conf"', 'dest = "nginx.conf"', "expected an absolute path"),
        ('dest = "/etc/nginx/nginx.conf"', 'dest = "/etc/../nginx.conf"', "is not a plain path"),
        ('for_each = "/upstreams/*"', 'for_each = "/upstreams"', "expected the children of a key"),
        ("up-{{ item.name }}", "up", "with for_each, dest must hold {{ item.name }}"),
        ("conf.d/up-{{ item.name }}", "{{ item.name }}/up", "only in its last part"),
        ('for_each = "/upstreams/*"\n', "", "prune removes the files of deleted keys and needs for_each"),
        (
            "nginx/nginx.conf",
            "{{ item.name }}.conf",
            "dest may hold {{ item.name }} only together with for_each",
        ),
        ('mode = "overlay"', 'mode = "overlai"', "did you mean 'overlay'?"),
        ('action = "signal:HUP"', 'action = "kill"', "expected reload, restart"),
        ('unit = "nginx.service"', 'unit = "nginx.service"\ncmd = "x"', "either cmd or unit, not both"),
        ("[rollback]", "[rollout]", "unknown key 'rollout.reload'; known here: bake, lease_ttl"),
        (
            "wait = {",
            'requires = ["x"]\nwait = {',
            "resource.requires: there is no resource 'x'; known: nginx",
        ),
        ("wait = {", 'requires = ["nginx"]\nwait = {', "a circle: nginx requires nginx"),
        ("wait = {", 'drift = "fix"\nwait = {', "resource.drift: expected one of report, repair, ignore"),
        ('mode = "0640"', 'mode = "0640"\naction = "x"', "template.action: expected reload, restart"),
        ("[check]", "[chek]", "unknown key 'chek'; did you mean 'check'?"),
        ('name = "nginx"', 'name = "a/b"', "resource.name: expected letters"),
        ('cmd = ["/usr/sbin/nginx", "-t"]', "cmd = []", "expected a command"),
    ],
)
def test_a_wrong_resource_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in RESOURCE
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path, {"nginx": RESOURCE.replace(old, new, 1)}, {})
    assert message in str(caught.value)
    assert f"{tmp_path}/conf.d/nginx.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_two_resources_must_not_share_a_name_or_a_file(tmp_path: Path) -> None:
    one = '[resource]\nname = "x"\nkeys = ["/a"]\n[[template]]\nsrc = "a"\ndest = "/x/a"\n'
    with pytest.raises(ConfigError, match=r"b.toml: the resource name 'x' is taken"):
        load_config(tmp_path, {"a": one, "b": one}, {})
    with pytest.raises(ConfigError, match=r"b.toml: /x/a is already written by .*a.toml"):
        load_config(tmp_path, {"a": one, "b": one.replace('"x"', '"y"')}, {})


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"agent.toml: cannot be read: No such file"):
        load(str(tmp_path / "agent.toml"))
    (tmp_path / "agent.toml").write_bytes(b"prefix = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 10"):
        load(str(tmp_path / "agent.toml"))


def test_plugin_settings_are_merged_with_the_resource_winning(tmp_path: Path) -> None:
    resource = (
        '[resource]\nkeys = ["/a"]\n[[template]]\nsrc = "a"\ndest = "/x/a"\n[plugins.nginx]\npid = "/p"\n'
    )
    head = '[plugins.config.nginx]\nbinary = "/b"\npid = "/q"\n'
    config = load_config(tmp_path, {"x": resource}, {}, head)
    assert config.resources[0].settings("nginx") == {"binary": "/b", "pid": "/p"}
    assert config.resources[0].settings("haproxy") is None


def test_position_of_the_second_table_of_an_array(tmp_path: Path) -> None:
    write_tree(tmp_path, {})
    text = "# x\n[[template]]\nsrc = 1\n[[template]]\nb = 1\n"
    second = parse_toml(text, "f.toml").tables("template")[1]
    assert str(second.error("wrong", "b")) == "f.toml:5:1: wrong"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("10s", 10), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400), (7, 7), ("0s", 0), ("1d", 86400)],
)
def test_durations(value: object, seconds: float) -> None:
    assert duration(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "10", "s", "10x", "-1s", "1s junk", -1, True, 1.5, None, ["1s"]])
def test_wrong_durations(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        duration(value)


def test_minimal_ranges() -> None:
    assert minimal_ranges(["/a/b", "/a", "/ab", "/a/b/c"]) == ("/a", "/ab")
    assert minimal_ranges(["/a", ""]) == ("",)


def test_an_instance_has_a_file_and_a_state_of_its_own(tmp_path: Path) -> None:
    assert instance_path(None) == "/etc/etcd-py-agent/agent.toml"
    assert instance_path("web") == "/etc/etcd-py-agent/web.toml"
    with pytest.raises(ConfigError, match="--instance: expected letters"):
        instance_path("../web")
    write_tree(tmp_path, {"web.toml": ""})
    config = load(str(tmp_path / "web.toml"), "web")
    assert (config.confdir, config.state_dir) == (f"{tmp_path}/web", "/var/lib/etcd-py-agent/web")


def test_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/agent")
    head = 'username = "agent"\npassword_file = "${CREDENTIALS_DIRECTORY}/etcd-password"\n'
    head += 'client_cert = "/a.crt"\nclient_key = "/a.key"\nnodes = ["https://a:2379"]\n'
    found = load_config(tmp_path, {}, {}, head).credentials
    assert found.password_file == "/run/credentials/agent/etcd-password"
    assert (found.username, found.client_cert, found.client_key) == ("agent", "/a.crt", "/a.key")


@pytest.mark.parametrize(
    "wrong",
    [
        '["<<"]',
        '["<<", ">>", "<%"]',
        '["<", ">"]',
        '["a<", ">>"]',
        '["{%", "%}"]',
        '["{#", "#}"]',
        '["<<", ">>", "<<", ">>"]',
        '"<<"',
    ],
)
def test_delimiters_that_cannot_be(tmp_path: Path, wrong: str) -> None:
    resource = f'[resource]\nkeys = ["/a"]\n[[template]]\nsrc = "a.j2"\ndest = "/a"\ndelimiters = {wrong}\n'
    with pytest.raises(ConfigError, match=r"delimiters: expected (two delimiters|a list)"):
        load_config(tmp_path, {"a": resource}, {})
