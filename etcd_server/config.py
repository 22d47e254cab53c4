"""The settings of a member: from command line, environment or file to one frozen value, checked.

A flag wins over the environment; a configuration file replaces both (etcd: server/etcdmain/config.go).
Checks and their texts are etcd's (server/embed/config.go). Nothing is written and no port is opened here:
whoever has a `Config` knows that every check has passed that can be made without the disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from etcd_server import flag_values
from etcd_server.config_file import ConfigFileError, read_config_file
from etcd_server.flag_values import Value
from etcd_server.flags import FEATURE_GATES, FLAGS, FORMER_NAMES, Flag, Kind, Support, find, nearest

LONGEST_ELECTION_TIMEOUT_MS = 50_000
LARGEST_ADVISED_QUOTA_BYTES = 8 * 1024**3
LARGEST_ADVISED_REQUEST_BYTES = 10 * 1024**2

_NOT_SETTINGS = frozenset({"config-file", "version", "help"})
_NO_FLAGS_OF_OURS = frozenset({"ETCD_UNSUPPORTED_ARCH"})


class ConfigError(Exception):
    """The settings are wrong; the text is one line that names the flag, URL or file and what was expected."""

    exit_status = 1


class UsageError(ConfigError):
    """The command line cannot be read."""

    exit_status = 2


@dataclass(frozen=True, slots=True)
class Config:
    """What an administrator has set. Lists of URLs are sorted; none of them asks for TLS."""

    name: str
    data_dir: str
    listen_client_urls: tuple[str, ...]
    listen_peer_urls: tuple[str, ...]
    listen_metrics_urls: tuple[str, ...]
    advertise_client_urls: tuple[str, ...]
    initial_advertise_peer_urls: tuple[str, ...]
    initial_cluster: str
    """name=URL pairs; never empty."""
    initial_cluster_state: str
    """ "new" or "existing". """
    initial_cluster_token: str
    heartbeat_interval_ms: int
    election_timeout_ms: int
    pre_vote: bool
    strict_reconfig_check: bool
    initial_election_tick_advance: bool
    max_learners: int
    force_new_cluster: bool
    snapshot_count: int
    snapshot_catchup_entries: int
    quota_backend_bytes: int
    """0: etcd's default of 2 GiB. Negative: no limit."""
    max_txn_ops: int
    max_request_bytes: int
    max_concurrent_streams: int
    grpc_keepalive_min_time_s: float
    grpc_keepalive_interval_s: float
    grpc_keepalive_timeout_s: float
    auto_compaction_mode: str
    """ "periodic" or "revision". """
    auto_compaction_retention: float
    """Seconds in mode "periodic", revisions in mode "revision"; 0: keep everything."""
    watch_progress_notify_interval_s: float
    log_level: str
    log_format: str
    log_outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the log should say once it is open."""

    level: str
    """ "info" or "warn". """
    message: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and what there is to say about where they came from."""

    config: Config
    notices: tuple[Notice, ...]


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The flags as given: {today's name: (as written, text)}; the last of several wins."""

    given: Mapping[str, tuple[str, str]]

    def is_set(self, name: str) -> bool:
        """Whether a switch is given and on. Raises ConfigError when its value is neither true nor false."""
        source, text = self.given.get(name, ("", "false"))
        return bool(_read(FLAGS[name], source, text))


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Go's rules: one dash or two, `-flag=value` or `-flag value`, a switch alone means true.

    Raises UsageError.
    """
    given: dict[str, tuple[str, str]] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        stripped = argument[2:] if argument.startswith("--") else argument[1:]
        if not argument.startswith("-") or argument in ("-", "--"):
            raise UsageError(f'"{argument}" is not a valid flag')
        name, separator, text = stripped.partition("=")
        name = "help" if name == "h" else name
        flag = find(name)
        if flag is None:
            near = nearest(name)
            hint = f" (did you mean --{near}?)" if near else ""
            raise UsageError(f"flag provided but not defined: {argument.partition('=')[0]}{hint}")
        if not separator:
            if flag.kind is Kind.SWITCH:
                text = "true"
            elif rest:
                text = rest.pop(0)
            else:
                raise UsageError(f"flag needs an argument: {argument}: {flag.kind.value}")
        given[flag.name] = (f"--{name}", text)
    return CommandLine(given)


def load(command_line: CommandLine, environment: Mapping[str, str]) -> Loaded:
    """The settings, checked. Raises ConfigError."""
    notices: list[Notice] = []
    path = command_line.given.get("config-file", ("", ""))[1] or environment.get("ETCD_CONFIG_FILE", "")
    if path:
        try:
            given = {name: (f"{key} in {path}", text) for name, (key, text) in read_config_file(path).items()}
        except ConfigFileError as error:
            raise ConfigError(str(error)) from error
        notices.append(_file_notice(path, command_line, environment))
    else:
        given = _from_environment(command_line, environment, notices)
        given.update(command_line.given)
    values = {name: flag_values.default(flag) for name, flag in FLAGS.items()}
    for name, (source, text) in given.items():
        if name not in _NOT_SETTINGS and text != "":
            values[name] = _read(FLAGS[name], source, text)
            _check_support(FLAGS[name], source, text, values[name], notices)
    return Loaded(_build(values, given, from_file=bool(path), notices=notices), tuple(notices))


# --- sources ------------------------------------------------------------------------------------------


def _from_environment(
    command_line: CommandLine, environment: Mapping[str, str], notices: list[Notice]
) -> dict[str, tuple[str, str]]:
    names = {flag.environment_name: flag for flag in FLAGS.values()}
    names |= {"ETCD_" + old.upper().replace("-", "_"): FLAGS[name] for old, name in FORMER_NAMES.items()}
    given: dict[str, tuple[str, str]] = {}
    for variable in sorted(environment):
        text = environment[variable]
        flag = names.get(variable)
        if not variable.startswith("ETCD_") or variable in _NO_FLAGS_OF_OURS or not text:
            continue
        if flag is None or flag.name in _NOT_SETTINGS:
            notices.append(
                Notice("warn", "unrecognized environment variable", {"environment-variable": variable})
            )
        elif flag.name in command_line.given:
            shadowed = "environment variable is shadowed by the command-line flag"
            notices.append(Notice("warn", shadowed, {"environment-variable": variable}))
        else:
            given[flag.name] = (variable, text)
            used = {"variable-name": variable, "variable-value": text}
            notices.append(Notice("info", "recognized and used environment variable", used))
    return given


def _file_notice(path: str, command_line: CommandLine, environment: Mapping[str, str]) -> Notice:
    ignored = [source for name, (source, _) in command_line.given.items() if name not in _NOT_SETTINGS]
    ignored += sorted(
        variable
        for variable in environment
        if variable.startswith("ETCD_") and variable != "ETCD_CONFIG_FILE" and environment[variable]
    )
    text = (
        "loaded server configuration, other configuration command line flags and environment variables will "
        "be ignored if provided"
    )
    fields: dict[str, object] = {"path": path}
    if ignored:
        fields["ignored"] = ignored
    return Notice("warn" if ignored else "info", text, fields)


def _read(flag: Flag, source: str, text: str) -> Value:
    try:
        return flag_values.read(flag, text)
    except ValueError as error:
        raise ConfigError(f'invalid value "{text}" for {source}: {error}') from None


def _check_support(flag: Flag, source: str, text: str, value: Value, notices: list[Notice]) -> None:
    if flag.name == "feature-gates":
        _check_feature_gates(source, text)
    if flag.support is Support.HONOURED or value == flag_values.default(flag):
        return
    if flag.support is Support.LATER:
        remedy = f'leave it at its default "{flag.default}"' if flag.default else "leave it out"
        raise ConfigError(f'{source} "{text}" is not supported by this version yet; {remedy}')
    notices.append(Notice("warn", "setting has no effect here", {"setting": source, "value": text}))


def _check_feature_gates(source: str, text: str) -> None:
    for pair in flag_values.strings(text):
        gate, _, state = pair.partition("=")
        if gate not in FEATURE_GATES:
            known = ", ".join(sorted(FEATURE_GATES))
            raise ConfigError(f'invalid value "{text}" for {source}: unknown gate {gate}; there are {known}')
        try:
            flag_values.switch(state)
        except ValueError as error:
            raise ConfigError(f'invalid value "{text}" for {source}: {gate}: {error}') from None


# --- checks -------------------------------------------------------------------------------------------


def _build(
    values: dict[str, Value], given: Mapping[str, tuple[str, str]], *, from_file: bool, notices: list[Notice]
) -> Config:
    fields = {
        name.replace("-", "_"): values[name]
        for name, flag in FLAGS.items()
        if flag.support is Support.HONOURED and name not in _NOT_SETTINGS and name != "logger"
    }
    if "listen-client-urls" in given and "advertise-client-urls" not in given:
        text = "--advertise-client-urls is required when --listen-client-urls is set explicitly"
        if not from_file:
            raise ConfigError(text)
        notices.append(Notice("warn", text, {"default": FLAGS["advertise-client-urls"].default}))
    name = str(values["name"])
    if not values["data-dir"]:
        fields["data_dir"] = f"{name}.etcd"
        default = {"data-dir": f"{name}.etcd"}
        notices.append(Notice("warn", "'data-dir' was empty; using default", default))
    if not values["initial-cluster"]:
        peer_urls = _tuple(values["initial-advertise-peer-urls"])
        fields["initial_cluster"] = ",".join(f"{name}={peer_url}" for peer_url in peer_urls)
    fields["auto_compaction_retention"] = _retention(
        str(values["auto-compaction-mode"]), str(values["auto-compaction-retention"])
    )
    for old, new in (
        ("heartbeat_interval", "heartbeat_interval_ms"),
        ("election_timeout", "election_timeout_ms"),
        ("watch_progress_notify_interval", "watch_progress_notify_interval_s"),
        ("grpc_keepalive_min_time", "grpc_keepalive_min_time_s"),
        ("grpc_keepalive_interval", "grpc_keepalive_interval_s"),
        ("grpc_keepalive_timeout", "grpc_keepalive_timeout_s"),
    ):
        fields[new] = fields.pop(old)
    config = Config(**fields)  # type: ignore[arg-type]
    _check_logging(config)
    _check_urls(config)
    _check_times(config)
    _check_sizes(config, notices)
    _check_data_dir(config)
    if name == FLAGS["name"].default:
        advice = (
            "it isn't recommended to use default name, please set a value for --name. Note that etcd might "
            "run into issue when multiple members have the same default name"
        )
        notices.append(Notice("warn", advice, {"member-name": name}))
    return config


def _retention(mode: str, text: str) -> float:
    """Seconds or revisions. A bare number counts hours in mode periodic (etcd: parseCompactionRetention)."""
    try:
        number = flag_values.count(text)
    except ValueError:
        if mode == "revision":
            expected = "expected a number of revisions, not negative, in mode revision"
            raise ConfigError(f'invalid value "{text}" for --auto-compaction-retention: {expected}') from None
    else:
        return float(number if mode == "revision" else number * 3600)
    try:
        seconds = flag_values.duration_s(text)
    except ValueError:
        seconds = -1.0
    if seconds < 0:
        expected = 'expected a number of hours or a duration such as "30m", not negative'
        raise ConfigError(f'invalid value "{text}" for --auto-compaction-retention: {expected}')
    return seconds


def _check_logging(config: Config) -> None:
    if not config.log_outputs:
        raise ConfigError("--log-outputs: expected default, stdout, stderr or paths of files")
    if len(config.log_outputs) > 1 and "default" in config.log_outputs:
        raise ConfigError('multi logoutput for "default" is not supported yet')


def _check_urls(config: Config) -> None:
    for name, urls in (
        ("listen-peer-urls", config.listen_peer_urls),
        ("listen-client-urls", config.listen_client_urls),
        ("listen-metrics-urls", config.listen_metrics_urls),
    ):
        for url in urls:
            _refuse_tls(name, url)
            if not flag_values.is_socket_path(url) and not flag_values.is_bindable(flag_values.host(url)):
                raise ConfigError(f"--{name}: expected IP in URL for binding ({url})")
    if not config.listen_client_urls:
        raise ConfigError("--listen-client-urls: expected at least one URL")
    for name, urls in (
        ("initial-advertise-peer-urls", config.initial_advertise_peer_urls),
        ("advertise-client-urls", config.advertise_client_urls),
    ):
        if not urls:
            raise ConfigError(f"--{name}: expected at least one URL")
        for url in urls:
            _refuse_tls(name, url)
            if not flag_values.is_socket_path(url) and not flag_values.host(url):
                raise ConfigError(f'--{name} "{url}" must be "host:port" (unexpected empty host ({url}))')


def _refuse_tls(name: str, url: str) -> None:
    if flag_values.is_tls(url):
        raise ConfigError(f"--{name} {url}: TLS is not supported by this version yet; expected http or unix")


def _check_times(config: Config) -> None:
    heartbeat_ms, election_ms = config.heartbeat_interval_ms, config.election_timeout_ms
    if heartbeat_ms == 0:
        raise ConfigError(f"--heartbeat-interval must be >0 (set to {heartbeat_ms}ms)")
    if election_ms == 0:
        raise ConfigError(f"--election-timeout must be >0 (set to {election_ms}ms)")
    if 5 * heartbeat_ms > election_ms:
        raise ConfigError(
            f"--election-timeout[{election_ms}ms] should be at least as 5 times as "
            f"--heartbeat-interval[{heartbeat_ms}ms]"
        )
    if election_ms > LONGEST_ELECTION_TIMEOUT_MS:
        raise ConfigError(
            f"--election-timeout[{election_ms}ms] is too long, and should be set less than "
            f"{LONGEST_ELECTION_TIMEOUT_MS}ms"
        )
    for name, seconds in (
        ("watch-progress-notify-interval", config.watch_progress_notify_interval_s),
        ("grpc-keepalive-min-time", config.grpc_keepalive_min_time_s),
        ("grpc-keepalive-interval", config.grpc_keepalive_interval_s),
        ("grpc-keepalive-timeout", config.grpc_keepalive_timeout_s),
    ):
        if seconds <= 0:
            raise ConfigError(f"--{name} must be >0 (set to {seconds:g}s)")


def _check_sizes(config: Config, notices: list[Notice]) -> None:
    for name, number in (
        ("snapshot-count", config.snapshot_count),
        ("max-txn-ops", config.max_txn_ops),
        ("max-request-bytes", config.max_request_bytes),
        ("max-concurrent-streams", config.max_concurrent_streams),
    ):
        if number == 0:
            raise ConfigError(f"--{name} must be >0 (set to 0)")
    if config.max_request_bytes > 2**31 - 1:
        raise ConfigError(
            f"--max-request-bytes must be at most 2147483647 (set to {config.max_request_bytes})"
        )
    if config.max_concurrent_streams > 2**32 - 1:
        number = config.max_concurrent_streams
        raise ConfigError(f"--max-concurrent-streams must be at most 4294967295 (set to {number})")
    if config.max_request_bytes > LARGEST_ADVISED_REQUEST_BYTES:
        sizes = {"max-request-bytes": config.max_request_bytes, "advised": LARGEST_ADVISED_REQUEST_BYTES}
        notices.append(Notice("warn", "exceeded recommended request limit", sizes))
    if config.quota_backend_bytes > LARGEST_ADVISED_QUOTA_BYTES:
        sizes = {"quota-size-bytes": config.quota_backend_bytes, "advised": LARGEST_ADVISED_QUOTA_BYTES}
        notices.append(Notice("warn", "quota exceeds the recommended maximum", sizes))


def _check_data_dir(config: Config) -> None:
    if os.path.exists(config.data_dir) and not os.path.isdir(config.data_dir):
        raise ConfigError(f"--data-dir {config.data_dir}: expected a directory, found a file")


def _tuple(value: Value) -> tuple[str, ...]:
    assert isinstance(value, tuple)
    return value
