"""agent.toml and conf.d/*.toml -> one frozen ``AgentConfig``; the reference of every key is docs/agent.md.

confd's names where confd has one, consul-template's for what confd lacks. A file that holds a single
``[template]`` table is a confd resource and loads as it is. Keys of the format that this version cannot
honour are refused, not ignored. Everything is checked before anything is used: a reload with a wrong file
keeps the old configuration.
"""

from __future__ import annotations

import glob
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import urlsplit

from etcd_agent import tables
from etcd_agent.errors import ConfigError
from etcd_agent.registration import load_services
from etcd_agent.tables import Table, read_toml
from etcd_agent.values import (
    AgentConfig,
    Backend,
    Check,
    Command,
    Credentials,
    Health,
    PluginsConfig,
    Reload,
    Report,
    Resource,
    Retry,
    Rollback,
    Rollout,
    Safety,
    Srv,
    Template,
    Wait,
)

DEFAULT_PATH = "/etc/etcd-py-agent/agent.toml"
DEFAULT_STATE_DIR = "/var/lib/etcd-py-agent"
DEFAULT_RUNTIME_DIR = "/run/etcd-py-agent"
_CREDENTIALS = "${CREDENTIALS_DIRECTORY}"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DOMAIN = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_DELIMITER = re.compile(r"[!-/:-@\[-`{-~]{2,5}")
_ACTION = re.compile(r"reload|restart|reload-or-restart|none|signal:[A-Z][A-Z0-9+]*")


def instance_path(instance: str | None) -> str:
    """The file of one of several agents of this host, or of the only one. Raises ConfigError."""
    if instance is None:
        return DEFAULT_PATH
    if not _NAME.fullmatch(instance):
        raise ConfigError(f"--instance: expected letters, digits, '.', '_' and '-', not {instance!r}")
    return f"{os.path.dirname(DEFAULT_PATH)}/{instance}.toml"


def load(path: str, instance: str | None = None) -> AgentConfig:
    """The whole configuration; ``instance`` names the state directory if the file does not.

    Raises ConfigError: one line, ``FILE:LINE:COLUMN: what, and what was expected``.
    """
    root = read_toml(path)
    root.take("config_version", _version, 1)
    confdir = root.take("confdir", tables.absolute_path, _confdir(path, instance))
    prefix = root.take("prefix", tables.key_path, "")
    wait = _wait(root.table("wait"), Wait())
    commands = root.table("commands")
    check_timeout_s = commands.take("check_timeout", tables.duration, 30.0)
    reload_timeout_s = commands.take("reload_timeout", tables.duration, 60.0)
    on_error = commands.take("on_error", tables.choice("retry", "hold", "exit"), "retry")
    commands.finish()
    safety_table = root.table("safety")
    rollback = safety_table.take("rollback", tables.boolean, True)
    safety = _safety(safety_table)
    plugins_table = root.table("plugins")
    plugins, plugin_settings = _plugins(plugins_table, confdir)
    host = root.table("host")
    host_id = host.take("id", tables.string, "%H").replace("%H", socket.gethostname())
    labels: dict[str, str] = host.take("labels", tables.string_map, {})
    host.finish()
    state_dir = root.take("state_dir", tables.absolute_path, _state_dir(instance))
    rollout = _rollout(root.table("rollout"), Rollout(), labels)
    srv = _srv(root)
    defaults = _Defaults(prefix, wait, check_timeout_s, reload_timeout_s, rollback, plugin_settings, rollout)
    config = AgentConfig(
        source=path,
        confdir=confdir,
        state_dir=state_dir,
        nodes=root.take("nodes", _nodes, () if srv else ("http://127.0.0.1:2379",)),
        srv=srv,
        prefix=prefix,
        watch=root.take("watch", tables.boolean, True),
        interval_s=root.take("interval", _positive_duration, 600.0),
        start_grace_s=root.take("start_grace", tables.duration, 10.0),
        noop=root.take("noop", tables.boolean, False),
        sync_only=root.take("sync_only", tables.boolean, False),
        keep_stage_file=root.take("keep_stage_file", tables.boolean, False),
        log_level=root.take("log_level", tables.choice("debug", "info", "warning", "error"), "info"),
        log_format=root.take("log_format", tables.choice("journal", "text", "json"), "text"),
        host_id=host_id,
        labels=labels,
        backend=_backend(root.table("backend")),
        on_error=on_error,
        safety=safety,
        plugins=plugins,
        resources=load_resources(confdir, defaults),
        rollout=rollout,
        report=_report(root.table("report")),
        services=load_services(confdir, host_id),
        credentials=_credentials(root),
        listen=_listen(root.table("http")),
        schema_prefix=_schema_prefix(root.table("schema")),
        runtime_dir=root.take("runtime_dir", tables.absolute_path, _runtime_dir(state_dir)),
    )
    root.finish()
    return config


def _confdir(path: str, instance: str | None) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    return folder if instance is None else f"{folder}/{instance}"


def _state_dir(instance: str | None) -> str:
    return DEFAULT_STATE_DIR if instance is None else f"{DEFAULT_STATE_DIR}/{instance}"


class _Defaults:
    """What agent.toml says for all resources."""

    def __init__(
        self,
        prefix: str = "",
        wait: Wait = Wait(),  # noqa: B008 (frozen)
        check_timeout_s: float = 30.0,
        reload_timeout_s: float = 60.0,
        rollback: bool = True,
        plugins: dict[str, dict[str, Any]] | None = None,
        rollout: Rollout = Rollout(),  # noqa: B008 (frozen)
    ) -> None:
        self.prefix = prefix
        self.wait = wait
        self.check_timeout_s = check_timeout_s
        self.reload_timeout_s = reload_timeout_s
        self.rollback = rollback
        self.plugins = plugins or {}
        self.rollout = rollout


def load_resources(confdir: str, defaults: _Defaults) -> tuple[Resource, ...]:
    """All of ``confdir/conf.d/*.toml`` in the order of their names.

    Names and destinations must not repeat.
    """
    resources: list[Resource] = []
    owners: dict[str, str] = {}
    for path in sorted(glob.glob(f"{glob.escape(confdir)}/conf.d/*.toml")):
        resource = load_resource(path, defaults)
        if any(other.name == resource.name for other in resources):
            raise ConfigError(f"{path}: the resource name {resource.name!r} is taken by another file")
        for template in resource.templates:
            if template.dest in owners:
                raise ConfigError(f"{path}: {template.dest} is already written by {owners[template.dest]}")
            owners[template.dest] = path
        resources.append(resource)
    _check_requirements(resources)
    return tuple(resources)


def _check_requirements(resources: Sequence[Resource]) -> None:
    """Raises ConfigError for a resource that requires an unknown one, or itself by way of others."""
    known = {resource.name: resource for resource in resources}
    for resource in resources:
        for name in resource.requires:
            if name not in known:
                raise ConfigError(
                    f"{resource.source}: resource.requires: there is no resource {name!r}; "
                    f"known: {', '.join(known)}"
                )
    try:
        order = TopologicalSorter({name: each.requires for name, each in known.items()})
        order.prepare()
    except CycleError as error:
        circle = error.args[1]
        raise ConfigError(
            f"{known[circle[0]].source}: resource.requires: a circle: {' requires '.join(reversed(circle))}"
        ) from error


def load_resource(path: str, defaults: _Defaults | None = None) -> Resource:
    """One resource file: ``[resource]`` with its tables, or confd's single ``[template]``.

    Raises ConfigError.
    """
    root = read_toml(path)
    defaults = defaults or _Defaults()
    stem = os.path.basename(path).removesuffix(".toml")
    if "resource" not in root and isinstance(root.raw.get("template"), dict):
        return _confd_resource(root, stem, path, defaults)
    head = root.table("resource")
    name = head.take("name", _name, stem)
    resource_prefix = head.take("prefix", tables.key_path, "")
    keys = _keys(head)
    requires: tuple[str, ...] = head.take("requires", tables.strings, ())
    drift = head.take("drift", tables.choice("report", "repair", "ignore"), "repair")
    wait = _wait(head.table("wait"), defaults.wait)
    head.finish()
    templates = tuple(_template(table) for table in root.tables("template"))
    if not templates:
        raise root.error("a resource needs at least one [[template]]")
    resource = Resource(
        name=name,
        source=path,
        prefix=defaults.prefix + resource_prefix,
        keys=keys,
        templates=templates,
        wait=wait,
        requires=requires,
        drift=drift,
        check=_check(root.table("check"), defaults),
        reload=_reload(root.table("reload"), defaults),
        health=_health(root.table("health")),
        rollback=_rollback(root.table("rollback"), defaults),
        rollout=_rollout(root.table("rollout"), defaults.rollout, None),
        plugins=_attached(root.table("plugins"), defaults),
    )
    root.finish()
    _check_destinations(root, resource)
    return resource


def _confd_resource(root: Table, stem: str, path: str, defaults: _Defaults) -> Resource:
    if not _NAME.fullmatch(stem):
        raise root.error(f"the file's name {stem!r} cannot name a resource: letters, digits, '.', '_', '-'")
    table = root.table("template")
    keys = _keys(table)
    resource_prefix = table.take("prefix", tables.key_path, "")
    check = Check(
        cmd=table.take("check_cmd", _optional_command, None),
        format=table.take("output_format", _format, "none"),
        timeout_s=table.take("check_cmd_timeout", tables.duration, defaults.check_timeout_s),
    )
    reload = Reload(
        cmd=table.take("reload_cmd", _optional_command, None),
        timeout_s=table.take("reload_cmd_timeout", tables.duration, defaults.reload_timeout_s),
        min_interval_s=table.take("min_reload_interval", tables.duration, 0.0),
    )
    template = _template(table)
    root.finish()
    resource = Resource(
        name=stem,
        source=path,
        prefix=defaults.prefix + resource_prefix,
        keys=keys,
        templates=(template,),
        wait=defaults.wait,
        check=check,
        reload=reload,
        rollback=Rollback(enabled=defaults.rollback),
        rollout=defaults.rollout,
    )
    _check_destinations(root, resource)
    return resource


def _template(table: Table) -> Template:
    owner = table.take("owner", tables.account, None)
    group = table.take("group", tables.account, None)
    contents = table.take("contents", _optional_string, None)
    src = table.take("src", _optional_source, None)
    if (src is None) == (contents is None):
        raise table.error("a template has either src or contents: expected one of them", "src")
    dest: str = table.require("dest", tables.absolute_path)
    template = Template(
        src=src if src is not None else f"contents of {dest}",
        contents=contents,
        dest=dest,
        # confd's uid and gid win over owner and group, as they do there.
        owner=table.take("uid", tables.integer(0, 2**32 - 2), owner),
        group=table.take("gid", tables.integer(0, 2**32 - 2), group),
        mode=table.take("mode", tables.file_mode, None),
        for_each=table.take("for_each", _pattern, None),
        prune=table.take("prune", tables.boolean, False),
        sensitive=table.take("sensitive", tables.boolean, False),
        in_place=table.take("in_place", tables.boolean, False),
        action=table.take("action", _action, None),
        make_directories=table.take("make_directories", tables.boolean, False),
        delimiters=table.take("delimiters", _delimiters, ()),
    )
    if template.prune and template.for_each is None:
        raise table.error("prune removes the files of deleted keys and needs for_each", "prune")
    if template.for_each is None and "{{" in template.dest:
        raise table.error("dest may hold {{ item.name }} only together with for_each", "dest")
    if template.for_each is not None and "{{" not in template.dest:
        raise table.error(
            "with for_each, dest must hold {{ item.name }}: every key needs its own file", "dest"
        )
    if "{{" in os.path.dirname(template.dest):
        raise table.error("dest may hold {{ item.name }} only in its last part, not in the directory", "dest")
    table.finish()
    return template


def _check_destinations(root: Table, resource: Resource) -> None:
    seen: set[str] = set()
    for template in resource.templates:
        if os.path.normpath(template.dest) != template.dest or template.dest.endswith("/"):
            raise root.error(f"dest {template.dest!r} is not a plain path to a file", "template")
        if template.dest in seen:
            raise root.error(f"two templates write {template.dest}", "template")
        seen.add(template.dest)


def _wait(table: Table, default: Wait) -> Wait:
    min_s = table.take("min", tables.duration, default.min_s)
    max_s = table.take(
        "max", tables.duration, max(default.max_s, 4 * min_s) if "min" in table else default.max_s
    )
    table.finish()
    if max_s < min_s:
        raise table.error(f"max ({max_s:g} s) must not be less than min ({min_s:g} s)", "max")
    return Wait(min_s, max_s)


def _check(table: Table, defaults: _Defaults) -> Check:
    check = Check(
        cmd=table.take("cmd", _optional_command, None),
        mode=table.take("mode", tables.choice("staged", "overlay"), "staged"),
        format=table.take("format", _format, "none"),
        timeout_s=table.take("timeout", _positive_duration, defaults.check_timeout_s),
    )
    table.finish()
    return check


def _reload(table: Table, defaults: _Defaults) -> Reload:
    reload = Reload(
        cmd=table.take("cmd", _optional_command, None),
        unit=table.take("unit", _optional_string, None),
        action=table.take("action", _action, "reload"),
        splay_s=table.take("splay", tables.duration, 0.0),
        min_interval_s=table.take("min_interval", tables.duration, 0.0),
        timeout_s=table.take("timeout", _positive_duration, defaults.reload_timeout_s),
    )
    table.finish()
    if reload.cmd is not None and reload.unit is not None:
        raise table.error("reload has either cmd or unit, not both", "unit")
    return reload


def _health(table: Table) -> Health:
    health = Health(
        http=table.take("http", _url, None),
        expect=table.take("expect", tables.integer(100, 599), 200),
        cmd=table.take("cmd", _optional_command, None),
        retries=table.take("retries", tables.integer(0, 1000), 5),
        interval_s=table.take("interval", tables.duration, 1.0),
        timeout_s=table.take("timeout", _positive_duration, 5.0),
    )
    table.finish()
    return health


def _rollback(table: Table, defaults: _Defaults) -> Rollback:
    rollback = Rollback(
        enabled=table.take("enabled", tables.boolean, defaults.rollback),
        reload=table.take("reload", tables.boolean, True),
    )
    table.finish()
    return rollback


def _rollout(table: Table, default: Rollout, labels: dict[str, str] | None) -> Rollout:
    """agent.toml's table (with the host's labels), or a resource's that overrides some of it."""
    group = default.group
    canary, prefix = default.canary, default.prefix
    if labels is not None:
        group = table.take("group", lambda value: _group(value, labels), "")
        canary = table.take("canary", tables.strings, ())
        prefix = table.take("prefix", tables.key_path, default.prefix)
    rollout = Rollout(
        group=group,
        max_concurrent=table.take("max_concurrent", tables.integer(1, 10**6), default.max_concurrent),
        canary=canary,
        bake_s=table.take("bake", tables.duration, default.bake_s),
        max_failures=table.take("max_failures", tables.integer(0, 10**6), default.max_failures),
        lease_ttl_s=table.take("lease_ttl", _lease_ttl, default.lease_ttl_s),
        prefix=prefix,
    )
    table.finish()
    return rollout


def _group(value: Any, labels: dict[str, str]) -> str:
    """A name; ``%{role}`` stands for the host's label ``role``."""

    def label(match: re.Match[str]) -> str:
        if match[1] not in labels:
            raise ValueError(
                f"expected a label of [host], not {match[0]!r}; known: {', '.join(labels) or 'none'}"
            )
        return labels[match[1]]

    return _name(re.sub(r"%\{([^}]*)\}", label, tables.string(value)))


def _lease_ttl(value: Any) -> float:
    seconds = tables.duration(value)
    if seconds < 1:
        raise ValueError("expected a duration of a second or more")
    return seconds


def _report(table: Table) -> Report:
    report = Report(
        enabled=table.take("enabled", tables.boolean, False),
        prefix=table.take("prefix", tables.key_path, "/_agents/status"),
        ttl_s=table.take("ttl", _lease_ttl, 90.0),
    )
    table.finish()
    return report


def _backend(table: Table) -> Backend:
    table.take("type", tables.choice("etcd"), "etcd")
    retry_table = table.table("retry")
    retry = Retry(
        attempts=retry_table.take("attempts", tables.integer(0, 10**6), 0),
        backoff_s=retry_table.take("backoff", _positive_duration, 0.25),
        max_backoff_s=retry_table.take("max_backoff", _positive_duration, 60.0),
        jitter=retry_table.take("jitter", tables.boolean, True),
    )
    retry_table.finish()
    backend = Backend(
        dial_timeout_s=table.take("dial_timeout", _positive_duration, 5.0),
        request_timeout_s=table.take("request_timeout", _positive_duration, 10.0),
        serializable=table.take("serializable", tables.boolean, False),
        watch_idle_s=table.take("watch_idle", _positive_duration, 60.0),
        retry=retry,
    )
    table.finish()
    return backend


def _safety(table: Table) -> Safety:
    safety = Safety(
        error_on_missing_key=table.take("error_on_missing_key", tables.boolean, True),
        refuse_empty=table.take("refuse_empty", tables.boolean, True),
        max_removed_ratio=table.take("max_removed_ratio", _ratio, 0.5),
        backups=table.take("backups", tables.integer(1, 1000), 5),
        sensitive_backups=table.take("sensitive_backups", tables.boolean, True),
    )
    table.finish()
    return safety


def _credentials(root: Table) -> Credentials:
    credentials = Credentials(
        client_cert=root.take("client_cert", _optional_path, None),
        client_key=root.take("client_key", _optional_path, None),
        client_cakeys=root.take("client_cakeys", _optional_path, None),
        username=root.take("username", _optional_string, None),
        password_file=root.take("password_file", _optional_path, None),
    )
    if (credentials.client_cert is None) != (credentials.client_key is None):
        raise root.error(
            "client_cert and client_key belong together: expected both or neither", "client_cert"
        )
    if (credentials.username is None) != (credentials.password_file is None):
        raise root.error("username and password_file belong together: expected both or neither", "username")
    return credentials


def _srv(root: Table) -> Srv | None:
    domain = root.take("srv_domain", _domain, None)
    record = root.take("srv_record", _srv_record, None)
    if domain is not None and record is not None:
        raise root.error("srv_domain and srv_record say the same: expected one of them", "srv_record")
    if (domain or record) and "nodes" in root:
        raise root.error("the members are either listed or asked for: expected nodes or srv_domain", "nodes")
    if record is not None:
        return Srv(record.split(".", 2)[2], record)
    return Srv(domain) if domain is not None else None


def _listen(table: Table) -> str:
    listen: str = table.take("listen", _loopback, "")
    table.finish()
    return listen


def _loopback(value: Any) -> str:
    """``HOST:PORT`` of this host alone, or ``unix:PATH``: what the pages say is nobody else's business."""
    text = tables.string(value)
    if text.startswith("unix:/") and len(text) > len("unix:/"):
        return text
    parts = urlsplit(f"//{text}")
    try:
        address = ipaddress.ip_address(parts.hostname or "")
        port = parts.port
    except ValueError:
        address, port = None, None
    if address is None or not address.is_loopback or port is None:
        raise ValueError(
            f'expected a loopback address such as "127.0.0.1:9479", or "unix:/PATH", not {text!r}'
        )
    return text


def _schema_prefix(table: Table) -> str:
    prefix: str = table.take("prefix", tables.key_path, "")
    table.finish()
    return prefix


def _runtime_dir(state_dir: str) -> str:
    """systemd's RuntimeDirectory=; for who may not write there a user's own, or none that is shared."""
    if os.geteuid() == 0 or os.access(DEFAULT_RUNTIME_DIR, os.W_OK):
        return DEFAULT_RUNTIME_DIR
    user = os.environ.get("XDG_RUNTIME_DIR")
    return f"{user}/etcd-py-agent" if user else state_dir


def _ratio(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"expected a number from 0 to 1, not {tables.describe(value)}")
    return float(value)


def _optional_path(value: Any) -> str | None:
    """An absolute path; ``${CREDENTIALS_DIRECTORY}`` is systemd's, for LoadCredential=."""
    text = tables.string(value)
    if text.startswith(_CREDENTIALS):
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise ValueError(f"expected CREDENTIALS_DIRECTORY in the environment for {text!r}")
        text = directory + text[len(_CREDENTIALS) :]
    return tables.absolute_path(text)


def _plugins(table: Table, confdir: str) -> tuple[PluginsConfig, dict[str, dict[str, Any]]]:
    plugins = PluginsConfig(
        dir=table.take("dir", tables.absolute_path, f"{confdir}/plugins.d"),
        disable=table.take("disable", tables.strings, ()),
        strict=table.take("strict", tables.boolean, False),
    )
    settings = table.table("config")
    named = {name: dict(settings.table(name).raw) for name in settings.keys()}  # noqa: SIM118 (Table is no dict)
    table.finish()
    return plugins, named


def _attached(table: Table, defaults: _Defaults) -> dict[str, dict[str, Any]]:
    names = list(table.keys())
    return {name: {**defaults.plugins.get(name, {}), **table.table(name).raw} for name in names}


def _keys(table: Table) -> tuple[str, ...]:
    """``keys``, required: each names a key and everything below it, relative to the prefix."""

    def convert(value: Any) -> tuple[str, ...]:
        keys = tables.strings(value)
        if not keys:
            raise ValueError('expected at least one key; ["/"] means everything under the prefix')
        return tuple(
            dict.fromkeys(tables.key_path(key if key.startswith("/") else f"/{key}") for key in keys)
        )

    return table.require("keys", convert)


def _version(value: Any) -> int:
    if value != 1:
        raise ValueError(f"expected 1, the only version that this agent knows, not {tables.describe(value)}")
    return 1


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"expected letters, digits, '.', '_' and '-', not {tables.describe(value)}")
    return value


def _nodes(value: Any) -> tuple[str, ...]:
    nodes = tables.strings(value)
    if not nodes:
        raise ValueError("expected at least one URL of the store")
    for node in nodes:
        _url(node)
        if urlsplit(node).path not in ("", "/"):
            raise ValueError(f"expected a URL without a path, not {node!r}")
    return nodes


def _domain(value: Any) -> str:
    text = tables.string(value).removesuffix(".")
    if not _DOMAIN.fullmatch(text) or len(text) > 253:
        raise ValueError(f'expected a domain such as "example.com", not {value!r}')
    return text


def _srv_record(value: Any) -> str:
    text = _domain(value)
    if not re.fullmatch(r"_[^.]+\._tcp\..+", text):
        raise ValueError(f'expected a record such as "_etcd-client._tcp.example.com", not {value!r}')
    return text


def _url(value: Any) -> str:
    text = tables.string(value)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"expected a URL, not {text!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f'expected a URL such as "http://127.0.0.1:2379", not {text!r}')
    return text


def _source(value: Any) -> str:
    text = tables.string(value)
    if not text or text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"expected a file below templates/, or PLUGIN:FILE, not {text!r}")
    return text


def _delimiters(value: Any) -> tuple[str, ...]:
    """Two, or four, of them; none may be what comments or the other pair begin with."""
    found = tables.strings(value)
    begins = [*found[::2], "{#", *(("{%",) if len(found) == 2 else ())]
    if (
        len(found) not in (2, 4)
        or not all(_DELIMITER.fullmatch(each) for each in found)
        or len(set(begins)) != len(begins)
    ):
        raise ValueError(
            'expected two delimiters such as ["<<", ">>"], or four such as ["<<", ">>", "<%", "%>"], '
            f"of two to five signs each, not {tables.describe(value)}"
        )
    return found


def _pattern(value: Any) -> str:
    text = tables.string(value)
    if not text.startswith("/") or not text.endswith("/*") or "*" in text[:-1]:
        raise ValueError(f'expected the children of a key, such as "/upstreams/*", not {text!r}')
    return text


def _positive_duration(value: Any) -> float:
    seconds = tables.duration(value)
    if seconds <= 0:
        raise ValueError("expected a duration greater than zero")
    return seconds


def _action(value: Any) -> str:
    text = tables.string(value)
    if not _ACTION.fullmatch(text):
        raise ValueError(f"expected reload, restart, reload-or-restart, signal:NAME or none, not {text!r}")
    return text


def _optional_command(value: Any) -> Command | None:
    return tables.command(value)


def _optional_source(value: Any) -> str | None:
    return _source(value)


def _optional_string(value: Any) -> str | None:
    return tables.string(value)


_format = tables.choice("none", "json", "yaml", "toml", "xml", "ini")
