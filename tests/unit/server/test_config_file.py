"""The configuration file in its three notations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from etcd_server.config import Config, ConfigError, Loaded, load, parse_command_line


def from_file(path: Path, *arguments: str, **environment: str) -> Loaded:
    return load(parse_command_line(["--config-file", str(path), *arguments]), environment)


def config_of(tmp_path: Path, text: str, name: str = "etcd.yml") -> Config:
    path = tmp_path / name
    path.write_text(text)
    return from_file(path).config


def refusal(tmp_path: Path, text: str, name: str = "etcd.yml") -> str:
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, text, name)
    assert caught.value.exit_status == 1 and "\n" not in str(caught.value)
    return str(caught.value).replace(str(tmp_path) + "/", "")


YAML = """
name: m1
data-dir: /var/lib/etcd-py
wal-dir:
snapshot-count: 5000
heartbeat-interval: 50
election-timeout: 500
quota-backend-bytes: 0
listen-peer-urls: http://127.0.0.1:2380
listen-client-urls: http://127.0.0.1:2379,http://[::1]:2379
max-wals: 5
cors:
initial-advertise-peer-urls: http://127.0.0.1:2380
advertise-client-urls: [http://127.0.0.1:2379]
discovery:
discovery-srv:
initial-cluster:
initial-cluster-token: token
initial-cluster-state: new
strict-reconfig-check: true
client-transport-security:
  cert-file:
  client-cert-auth: false
peer-transport-security:
  auto-tls: false
  allowed-cn:
log-level: debug
logger: zap
log-outputs: [stderr]
force-new-cluster: false
auto-compaction-mode: periodic
auto-compaction-retention: 1
watch-progress-notify-interval: 5000000000
grpc-keepalive-min-time: 10s
"""


def test_a_file_like_that_of_etcd(tmp_path: Path) -> None:
    config = config_of(tmp_path, YAML)
    assert (config.name, config.data_dir, config.snapshot_count) == ("m1", "/var/lib/etcd-py", 5000)
    assert (config.heartbeat_interval_ms, config.election_timeout_ms) == (50, 500)
    assert config.listen_client_urls == ("http://127.0.0.1:2379", "http://[::1]:2379")
    assert config.advertise_client_urls == ("http://127.0.0.1:2379",)
    assert config.initial_cluster == "m1=http://127.0.0.1:2380"
    assert config.initial_cluster_token == "token"
    assert (config.log_level, config.log_outputs) == ("debug", ("stderr",))
    assert config.auto_compaction_retention == 3600.0
    assert config.watch_progress_notify_interval_s == 5.0
    assert config.grpc_keepalive_min_time_s == 10.0


def test_json_and_toml_mean_the_same(tmp_path: Path) -> None:
    settings = {
        "name": "m1",
        "data-dir": "/d",
        "max-txn-ops": 7,
        "pre-vote": False,
        "log-outputs": ["stdout"],
        "watch-progress-notify-interval": "5s",
        "client-transport-security": {"auto-tls": False},
    }
    toml = (
        'name = "m1"\ndata-dir = "/d"\nmax-txn-ops = 7\npre-vote = false\nlog-outputs = ["stdout"]\n'
        'watch-progress-notify-interval = "5s"\n[client-transport-security]\nauto-tls = false\n'
    )
    as_toml = config_of(tmp_path, toml, "etcd.toml")
    assert config_of(tmp_path, json.dumps(settings), "etcd.json") == as_toml
    assert (as_toml.max_txn_ops, as_toml.pre_vote, as_toml.log_outputs) == (7, False, ("stdout",))


def test_flags_and_environment_are_ignored_and_this_is_said(tmp_path: Path) -> None:
    path = tmp_path / "etcd.yml"
    path.write_text("name: m1\ndata-dir: d\n")
    loaded = from_file(path, "--name", "m2", ETCD_MAX_TXN_OPS="7")
    assert (loaded.config.name, loaded.config.max_txn_ops) == ("m1", 128)
    (notice,) = loaded.notices
    assert notice.level == "warn"
    assert notice.message.startswith("loaded server configuration, other configuration command line flags")
    assert notice.fields == {"path": str(path), "ignored": ["--name", "ETCD_MAX_TXN_OPS"]}


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "etcd.yml"
    path.write_text("name: m1\ndata-dir: d\n")
    loaded = load(parse_command_line([]), {"ETCD_CONFIG_FILE": str(path)})
    assert loaded.config.name == "m1"
    assert [notice.level for notice in loaded.notices] == ["info"]


def test_listening_without_advertising_is_accepted_as_in_etcd_and_said(tmp_path: Path) -> None:
    path = tmp_path / "etcd.yml"
    path.write_text("name: m1\ndata-dir: d\nlisten-client-urls: http://127.0.0.1:1\n")
    loaded = from_file(path)
    assert loaded.config.advertise_client_urls == ("http://localhost:2379",)
    assert "--advertise-client-urls is required" in loaded.notices[-1].message


@pytest.mark.parametrize("name", ["etcd.yml", "etcd.toml"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, name: str) -> None:
    assert config_of(tmp_path, "", name) == load(parse_command_line([]), {}).config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data-dri: /d", 'etcd.yml: unknown key "data-dri"; did you mean "data-dir"?'),
        ("zzz: 1", 'etcd.yml: unknown key "zzz"'),
        ("config-file: x", 'etcd.yml: unknown key "config-file"'),
        (
            "client-transport-security: {cert-fil: x}",
            'etcd.yml: unknown key "client-transport-security.cert-fil"; did you mean "cert-file"?',
        ),
        (
            "client-transport-security: 1",
            "etcd.yml: client-transport-security: expected a section of keys, found 1",
        ),
        ("max-txn-ops: many", 'invalid value "many" for max-txn-ops in etcd.yml: expected a whole number'),
        (
            "max-txn-ops: true",
            "etcd.yml: max-txn-ops: expected a whole number, not negative, found true or false",
        ),
        ("pre-vote: 1", "etcd.yml: pre-vote: expected true or false, found 1"),
        ("name: [a]", "etcd.yml: name: expected text, found a list"),
        ("log-outputs: {a: 1}", "etcd.yml: log-outputs: expected a comma-separated list, found a section"),
        ("- a", "etcd.yml: expected keys with values, found a list"),
        ("a: b: c", "etcd.yml: line 1, column 5: mapping values are not allowed here"),
        (
            "peer-transport-security: {cert-file: /c}",
            'peer-transport-security.cert-file in etcd.yml "/c" is not supported by this version yet; '
            "leave it out",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(tmp_path, text) == expected


def test_wrong_toml_is_named_with_its_line(tmp_path: Path) -> None:
    assert refusal(tmp_path, 'name = "a"\nmax-txn-ops = \n', "etcd.toml").startswith("etcd.toml: line 2: ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path / "none.yml")
    assert (
        str(caught.value) == f"cannot read configuration file {tmp_path}/none.yml: No such file or directory"
    )
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        from_file(tmp_path / "binary.yml")
