"""Settings: where they come from, what they mean, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_server.config import Config, ConfigError, Loaded, UsageError, load, parse_command_line
from etcd_server.flags import FLAGS, FORMER_NAMES, GROUPS, IGNORED, LATER, Kind

CLIENT = ("--listen-client-urls", "http://127.0.0.1:1", "--advertise-client-urls", "http://127.0.0.1:1")


def loaded(*arguments: str, **environment: str) -> Loaded:
    return load(parse_command_line(arguments), environment)


def config(*arguments: str, **environment: str) -> Config:
    return loaded(*arguments, **environment).config


def refusal(*arguments: str, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(*arguments, **environment)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 1
    return str(caught.value)


def warnings(*arguments: str, **environment: str) -> list[tuple[str, dict[str, object]]]:
    notices = loaded("--name", "m", "--data-dir", "d", *arguments, **environment).notices
    return [(notice.message, dict(notice.fields)) for notice in notices if notice.level == "warn"]


# --- defaults -----------------------------------------------------------------------------------------


def test_defaults_are_those_of_etcd() -> None:
    assert config() == Config(
        name="default",
        data_dir="default.etcd",
        listen_client_urls=("http://localhost:2379",),
        listen_peer_urls=("http://localhost:2380",),
        listen_metrics_urls=(),
        advertise_client_urls=("http://localhost:2379",),
        initial_advertise_peer_urls=("http://localhost:2380",),
        initial_cluster="default=http://localhost:2380",
        initial_cluster_state="new",
        initial_cluster_token="etcd-cluster",
        heartbeat_interval_ms=100,
        election_timeout_ms=1000,
        pre_vote=True,
        strict_reconfig_check=True,
        initial_election_tick_advance=True,
        max_learners=1,
        force_new_cluster=False,
        snapshot_count=10_000,
        snapshot_catchup_entries=5_000,
        quota_backend_bytes=0,
        max_txn_ops=128,
        max_request_bytes=1_572_864,
        max_concurrent_streams=4096,
        grpc_keepalive_min_time_s=5.0,
        grpc_keepalive_interval_s=7200.0,
        grpc_keepalive_timeout_s=20.0,
        auto_compaction_mode="periodic",
        auto_compaction_retention=0.0,
        watch_progress_notify_interval_s=600.0,
        log_level="info",
        log_format="json",
        log_outputs=("default",),
    )


def test_the_default_name_and_directory_are_advised_against() -> None:
    messages = [notice.message for notice in loaded().notices]
    assert messages[0] == "'data-dir' was empty; using default"
    assert messages[1].startswith("it isn't recommended to use default name, please set a value for --name.")
    assert warnings() == []


def test_the_directory_and_the_cluster_follow_the_name() -> None:
    named = config(
        "--name", "m1", "--initial-advertise-peer-urls", "http://10.0.0.1:2380,http://10.0.0.2:2380"
    )
    assert named.data_dir == "m1.etcd"
    assert named.initial_cluster == "m1=http://10.0.0.1:2380,m1=http://10.0.0.2:2380"


# --- the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-txn-ops", "7"],
        ["-max-txn-ops", "7"],
        ["--max-txn-ops=7"],
        ["-max-txn-ops=7"],
        ["--max-txn-ops=0x7"],
        ["--max-txn-ops=1", "-max-txn-ops=7"],
    ],
)
def test_one_dash_or_two_with_or_without_an_equals_sign(arguments: list[str]) -> None:
    assert config(*arguments).max_txn_ops == 7


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--pre-vote"], True),
        (["-pre-vote=false"], False),
        (["--pre-vote=F"], False),
        (["--pre-vote=1"], True),
        (["--pre-vote=false", "--pre-vote"], True),
    ],
)
def test_a_switch_alone_means_true(arguments: list[str], value: bool) -> None:
    assert config(*arguments).pre_vote is value


def test_a_switch_takes_no_further_argument() -> None:
    with pytest.raises(UsageError, match=r'^"false" is not a valid flag$'):
        parse_command_line(["--pre-vote", "false"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nosuch"], "flag provided but not defined: --nosuch"),
        (["-nosuch=1"], "flag provided but not defined: -nosuch"),
        (["--data-dri", "x"], "flag provided but not defined: --data-dri (did you mean --data-dir?)"),
        (["--name"], "flag needs an argument: --name: text"),
        (["serve"], '"serve" is not a valid flag'),
        (["--name", "a", "--", "b"], '"--" is not a valid flag'),
        (["-"], '"-" is not a valid flag'),
    ],
)
def test_a_command_line_that_cannot_be_read(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(arguments)
    assert str(caught.value) == text
    assert caught.value.exit_status == 2


# --- values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5.0),
        ("100ms", 0.1),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("2m0.5s", 120.5),
        ("600000000us", 600.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert config("--watch-progress-notify-interval", text).watch_progress_notify_interval_s == seconds


@pytest.mark.parametrize("text", ["5", "s", "5 s", "5x", "1h-5m", "", "-", "."])
def test_what_is_no_duration(text: str) -> None:
    if text:
        assert refusal("--watch-progress-notify-interval", text) == (
            f'invalid value "{text}" for --watch-progress-notify-interval: '
            'expected a duration such as "100ms", "5s" or "1h30m"'
        )
    else:
        assert config("--watch-progress-notify-interval", text).watch_progress_notify_interval_s == 600.0


@pytest.mark.parametrize(
    ("mode", "text", "retention"),
    [
        ("periodic", "0", 0.0),
        ("periodic", "2", 7200.0),
        ("periodic", "30m", 1800.0),
        ("revision", "0", 0.0),
        ("revision", "1000", 1000.0),
    ],
)
def test_retention_counts_hours_or_revisions(mode: str, text: str, retention: float) -> None:
    settings = config("--auto-compaction-mode", mode, "--auto-compaction-retention", text)
    assert (settings.auto_compaction_mode, settings.auto_compaction_retention) == (mode, retention)


@pytest.mark.parametrize(
    ("mode", "text"), [("periodic", "-1"), ("periodic", "soon"), ("revision", "5m"), ("revision", "-1")]
)
def test_what_is_no_retention(mode: str, text: str) -> None:
    text_of_error = refusal("--auto-compaction-mode", mode, f"--auto-compaction-retention={text}")
    assert text_of_error.startswith(
        f'invalid value "{text}" for --auto-compaction-retention: expected a number of'
    )


def test_urls_are_sorted_and_each_is_there_once() -> None:
    urls = "http://127.0.0.1:9, http://[::1]:5,http://127.0.0.1:9,unix:///run/etcd.sock"
    assert config("--listen-metrics-urls", urls).listen_metrics_urls == (
        "http://127.0.0.1:9",
        "http://[::1]:5",
        "unix:///run/etcd.sock",
    )


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("foo", "URL scheme must be http, https, unix, or unixs: foo"),
        ("ftp://a:1", "URL scheme must be http, https, unix, or unixs: ftp://a:1"),
        ("http://127.0.0.1", 'URL address does not have the form "host:port": http://127.0.0.1'),
        ("http://127.0.0.1:99999", 'URL address does not have the form "host:port": http://127.0.0.1:99999'),
        ("http://::1:2379", 'URL address does not have the form "host:port": http://::1:2379'),
        ("http://127.0.0.1:1/x", "URL must not contain a path: http://127.0.0.1:1/x"),
        (
            "http://u@127.0.0.1:1",
            "URL must be a scheme, a host and a port, and nothing else: http://u@127.0.0.1:1",
        ),
        ("unix://", "URL has no path of a socket: unix://"),
    ],
)
@pytest.mark.parametrize("flag", ["listen-client-urls", "advertise-client-urls", "listen-metrics-urls"])
def test_what_is_no_url(flag: str, url: str, text: str) -> None:
    assert refusal(f"--{flag}", url) == f'invalid value "{url}" for --{flag}: {text}'


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--heartbeat-interval", "abc"],
            'invalid value "abc" for --heartbeat-interval: expected a whole number',
        ),
        (["--max-txn-ops=-1"], 'invalid value "-1" for --max-txn-ops: expected a whole number, not negative'),
        (
            ["--max-txn-ops=9223372036854775808"],
            'invalid value "9223372036854775808" for --max-txn-ops: value out of range',
        ),
        (["--pre-vote=maybe"], 'invalid value "maybe" for --pre-vote: expected true or false'),
        (
            ["--log-level", "loud"],
            'invalid value "loud" for --log-level: expected debug or info or warn or error or panic or fatal',
        ),
        (
            ["--auto-compaction-mode", "x"],
            'invalid value "x" for --auto-compaction-mode: expected periodic or revision',
        ),
        (
            ["--initial-cluster-state", "x"],
            'invalid value "x" for --initial-cluster-state: expected new or existing',
        ),
        (["--logger", "capnslog"], 'invalid value "capnslog" for --logger: expected zap'),
    ],
)
def test_wrong_values_are_named(arguments: list[str], text: str) -> None:
    assert refusal(*arguments) == text


# --- checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--listen-client-urls", "http://127.0.0.1:1"],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            [
                "--listen-client-urls",
                "http://example.com:1",
                "--advertise-client-urls",
                "http://example.com:1",
            ],
            "--listen-client-urls: expected IP in URL for binding (http://example.com:1)",
        ),
        (
            ["--listen-peer-urls", "http://:2380"],
            "--listen-peer-urls: expected IP in URL for binding (http://:2380)",
        ),
        (
            ["--advertise-client-urls", "http://:2379"],
            '--advertise-client-urls "http://:2379" must be "host:port" (unexpected empty host (http://:2379))',
        ),
        (
            ["--listen-peer-urls", "https://127.0.0.1:2380"],
            "--listen-peer-urls https://127.0.0.1:2380: TLS is not supported by this version yet; "
            "expected http or unix",
        ),
        (
            ["--listen-metrics-urls", "unixs:///x"],
            "--listen-metrics-urls unixs:///x: TLS is not supported by this version yet; "
            "expected http or unix",
        ),
        (["--heartbeat-interval", "0"], "--heartbeat-interval must be >0 (set to 0ms)"),
        (["--election-timeout", "0"], "--election-timeout must be >0 (set to 0ms)"),
        (
            ["--election-timeout", "499"],
            "--election-timeout[499ms] should be at least as 5 times as --heartbeat-interval[100ms]",
        ),
        (
            ["--election-timeout", "50001"],
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
        ),
        (["--log-outputs", "default,stdout"], 'multi logoutput for "default" is not supported yet'),
        (
            ["--watch-progress-notify-interval=-1s"],
            "--watch-progress-notify-interval must be >0 (set to -1s)",
        ),
        (["--max-request-bytes", "0"], "--max-request-bytes must be >0 (set to 0)"),
        (["--snapshot-count", "0"], "--snapshot-count must be >0 (set to 0)"),
        (
            ["--max-request-bytes", "3000000000"],
            "--max-request-bytes must be at most 2147483647 (set to 3000000000)",
        ),
    ],
)
def test_checks(arguments: list[str], text: str) -> None:
    assert refusal(*arguments) == text


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("")
    assert refusal("--data-dir", str(path)) == f"--data-dir {path}: expected a directory, found a file"


def test_large_sizes_are_advised_against() -> None:
    assert [message for message, _ in warnings("--quota-backend-bytes", str(9 * 1024**3))] == [
        "quota exceeds the recommended maximum"
    ]
    assert [message for message, _ in warnings("--max-request-bytes", str(11 * 1024**2))] == [
        "exceeded recommended request limit"
    ]


# --- the environment ----------------------------------------------------------------------------------


def test_the_environment_sets_what_no_flag_sets() -> None:
    settings = config("--name", "flag", ETCD_NAME="environment", ETCD_MAX_TXN_OPS="7", ETCD_SNAPSHOT_COUNT="")
    assert (settings.name, settings.max_txn_ops, settings.snapshot_count) == ("flag", 7, 10_000)


def test_what_the_environment_is_not_used_for_is_said() -> None:
    found = warnings(ETCD_NAME="x", ETCD_NONSENSE="1", ETCD_VERSION="2", ETCDCTL_API="3", HOME="/")
    assert found == [
        ("environment variable is shadowed by the command-line flag", {"environment-variable": "ETCD_NAME"}),
        ("unrecognized environment variable", {"environment-variable": "ETCD_NONSENSE"}),
        ("unrecognized environment variable", {"environment-variable": "ETCD_VERSION"}),
    ]


def test_a_wrong_value_in_the_environment_is_named() -> None:
    assert (
        refusal(ETCD_MAX_TXN_OPS="many")
        == 'invalid value "many" for ETCD_MAX_TXN_OPS: expected a whole number'
    )


# --- flags that are not honoured ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [flag.name for flag in FLAGS.values() if flag.support is LATER])
def test_what_is_not_there_yet_is_refused_but_for_its_default(name: str) -> None:
    flag = FLAGS[name]
    config(f"--{name}={flag.default}")
    given = {Kind.SWITCH: "false" if flag.default == "true" else "true", Kind.URLS: "http://127.0.0.1:1"}
    text = given.get(flag.kind, "something")
    assert refusal(f"--{name}={text}").startswith(
        f'--{name} "{text}" is not supported by this version yet; leave it'
    )


@pytest.mark.parametrize("name", [flag.name for flag in FLAGS.values() if flag.support is IGNORED])
def test_what_has_no_effect_is_accepted_and_said(name: str) -> None:
    flag = FLAGS[name]
    assert warnings(f"--{name}={flag.default}") == []
    other = {
        Kind.SWITCH: "false" if flag.default == "true" else "true",
        Kind.COUNT: "77",
        Kind.INTEGER: "77",
        Kind.DURATION: "77s",
    }
    text = (
        "AllAlpha=true"
        if name == "feature-gates"
        else other.get(flag.kind, flag.choices[-1] if flag.choices else "x")
    )
    assert warnings(f"--{name}={text}") == [
        ("setting has no effect here", {"setting": f"--{name}", "value": text})
    ]


def test_former_names_are_accepted() -> None:
    settings = config("--experimental-watch-progress-notify-interval", "5s", ETCD_LOG_OUTPUT="stderr")
    assert settings.watch_progress_notify_interval_s == 5.0
    assert settings.log_outputs == ("stderr",)
    assert set(FORMER_NAMES.values()) <= set(FLAGS)
    assert not set(FORMER_NAMES) & set(FLAGS)


def test_feature_gates_are_read_and_unknown_ones_refused() -> None:
    assert refusal("--feature-gates", "Nonsense=true").startswith(
        'invalid value "Nonsense=true" for --feature-gates: unknown gate Nonsense; there are AllAlpha,'
    )
    assert refusal("--feature-gates", "AllBeta").endswith("AllBeta: expected true or false")


def test_the_table_is_consistent() -> None:
    names = [flag.name for flags in GROUPS.values() for flag in flags]
    assert len(names) == len(set(names))
    for flag in FLAGS.values():
        assert flag.help.endswith((".", ".)")) and "\n" not in flag.help, flag.name
        assert flag.environment_name == "ETCD_" + flag.name.replace("-", "_").upper()
