"""The command `etcd-py`: run a member, check a data directory, say the version.

Exit status 0: done. 1: settings, ports or data are wrong; one line on standard error says what. 2: the
command line cannot be read. 130: interrupted by the keyboard before there was anything to stop.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence

from etcd_server import bootstrap, logs
from etcd_server.config import ConfigError, Loaded, UsageError, load, parse_command_line
from etcd_server.flags import GROUPS, HONOURED, Flag, Kind
from etcd_server.version import ETCD_VERSION, describe

log = logging.getLogger("etcd_server")

INTERRUPTED = 130

USAGE = """\
Usage:

  etcd-py [flags]              run a member
  etcd-py verify DATA-DIR      check the files of a member that is not running
  etcd-py version              print the version
  etcd-py --help               explain every flag

Examples:

  etcd-py --data-dir /var/lib/etcd-py
  etcd-py --name host1 --data-dir /var/lib/etcd-py \\
      --listen-client-urls http://127.0.0.1:2379,http://10.0.0.1:2379 \\
      --advertise-client-urls http://10.0.0.1:2379
  etcd-py --config-file /etc/etcd-py/etcd-py.toml

A flag is written with one dash or two, as -name=value or -name value; a switch alone means true. Each can
also be set by an environment variable: --data-dir is ETCD_DATA_DIR. A flag wins over the environment. With
--config-file (or ETCD_CONFIG_FILE) all settings are read from that file, by the same names, and the others
are ignored. A duration is written as 100ms, 5s or 1h30m.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = _COMMANDS.get(arguments[0]) if arguments else None
    try:
        return command(arguments[1:]) if command else _server(arguments)
    except UsageError as error:
        print(f"etcd-py: {error}; see etcd-py --help", file=sys.stderr)
        return error.exit_status
    except ConfigError as error:
        print(f"etcd-py: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED


def help_text() -> str:
    """What `--help` prints: how to call it, then every flag with its default."""
    lines = [USAGE]
    for group, flags in GROUPS.items():
        lines.append(f"{group}:")
        if flags[0].support is HONOURED:
            lines += [line for flag in flags for line in _flag_lines(flag)]
        else:
            names = ", ".join(flag.name for flag in flags)
            lines += textwrap.wrap(
                names, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
        lines.append("")
    lines.append(f"The flags are those of etcd {ETCD_VERSION}. More: docs/configuration.md\n")
    return "\n".join(lines)


def _flag_lines(flag: Flag) -> list[str]:
    head = f"  --{flag.name}" + (
        "" if flag.kind is Kind.SWITCH and flag.default == "false" else f" '{flag.default}'"
    )
    choices = f" One of: {', '.join(flag.choices)}." if len(flag.choices) > 1 else ""
    text = textwrap.wrap(flag.help + choices, 96, break_on_hyphens=False, break_long_words=False)
    return [head, *(f"      {line}" for line in text)]


def _server(arguments: Sequence[str]) -> int:
    command_line = parse_command_line(arguments)
    if command_line.is_set("help"):
        print(help_text(), end="")
        return 0
    if command_line.is_set("version"):
        print(describe(), end="")
        return 0
    loaded = load(command_line, os.environ)
    config = loaded.config
    if bootstrap.is_new(config.data_dir):
        bootstrap.first_entries(config)
    logs.configure(config.log_level, config.log_format, config.log_outputs)
    _tell(loaded)
    return _run(loaded)


def _tell(loaded: Loaded) -> None:
    for notice in loaded.notices:
        log.log(logs.LEVELS[notice.level], notice.message, extra=dict(notice.fields))


def _run(loaded: Loaded) -> int:
    # Not imported above, so that --help and --version answer at once.
    from etcd_server.assembly import run
    from etcd_server.storage.errors import StorageError
    from etcd_server.transport.wire import WireError

    try:
        return run(loaded.config)
    except (ConfigError, StorageError, WireError) as error:
        if not logs.to_standard_error(loaded.config.log_outputs):
            log.critical("failed to run", extra={"error": str(error)})
        print(f"etcd-py: {error}", file=sys.stderr)
        return 1


def _verify(arguments: Sequence[str]) -> int:
    from etcd_server.storage.errors import StorageError
    from etcd_server.storage.verify import verify

    parser = argparse.ArgumentParser(
        prog="etcd-py verify",
        description="Check the files of a member that is not running; nothing is written. "
        "Exit status 0: sound. 1: not sound, or not readable.",
    )
    parser.add_argument("data_dir", metavar="DATA-DIR", help="what the member is given as --data-dir")
    try:
        report = verify(parser.parse_args(arguments).data_dir)
    except StorageError as error:
        raise ConfigError(str(error)) from error
    print("\n".join(report.lines()))
    return 0 if report.is_sound else 1


def _version(arguments: Sequence[str]) -> int:
    if arguments:
        raise UsageError(f'version: unexpected argument "{arguments[0]}"')
    print(describe(), end="")
    return 0


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"verify": _verify, "version": _version}


if __name__ == "__main__":
    sys.exit(main())
