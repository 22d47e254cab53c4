"""Writes the server's configuration files from the table of its flags: configuration.py DIRECTORY.

etcd-py.conf is the environment file of the unit, etcd-py.toml a file for --config-file. Both show
every flag that has an effect, with what it means and its default in a comment, so that they cannot say
anything else than --help.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from etcd_server.flags import GROUPS, HONOURED, Flag, Kind

SET = {
    "data-dir": "/var/lib/etcd-py",
    "name": "default",
    "listen-client-urls": "http://localhost:2379",
    "advertise-client-urls": "http://localhost:2379",
}
"""What the installed files set; all else stands in a comment, with its default."""

CONF_HEAD = """\
Settings of etcd-py, read by etcd-py.service as environment variables: flag --a-b is ETCD_A_B here.
A line that begins with # has no effect; those here show the defaults.
After a change: systemctl restart etcd-py

Data elsewhere than in /var/lib/etcd-py need ReadWritePaths= of that directory in `systemctl edit etcd-py`.
"""
CONF_FILE = """\
Take all settings from this file instead; then nothing else here has an effect.
"""
TOML_HEAD = """\
Settings of etcd-py, for --config-file. The keys are the flags of etcd-py(8). They are in force when
/etc/etcd-py/etcd-py.conf says ETCD_CONFIG_FILE="/etc/etcd-py/etcd-py.toml"; nothing else of it then is.
A line that begins with # has no effect; those here show the defaults.
"""


def shown() -> Iterator[tuple[str, Iterator[Flag]]]:
    """The groups of flags that have an effect."""
    for group, flags in GROUPS.items():
        if flags[0].support is HONOURED and group != "General":
            yield group, iter(flags)


def comment(text: str) -> list[str]:
    lines: list[str] = []
    for line in text.rstrip("\n").splitlines():
        wrapped = textwrap.wrap(line, 108, break_on_hyphens=False, break_long_words=False) or [""]
        lines += [f"# {each}".rstrip() for each in wrapped]
    return lines


def explained(flag: Flag) -> list[str]:
    choices = f" One of: {', '.join(flag.choices)}." if len(flag.choices) > 1 else ""
    return comment(flag.help + choices)


def environment_file() -> str:
    lines = comment(CONF_HEAD)
    lines += ["", *comment(CONF_FILE), '#ETCD_CONFIG_FILE="/etc/etcd-py/etcd-py.toml"']
    for group, flags in shown():
        lines += ["", f"# {group}"]
        for flag in flags:
            mark = "" if flag.name in SET else "#"
            value = SET.get(flag.name, flag.default)
            lines += ["", *explained(flag), f'{mark}{flag.environment_name}="{value}"']
    return "\n".join(lines) + "\n"


def toml_file() -> str:
    lines = comment(TOML_HEAD)
    for group, flags in shown():
        lines += ["", f"# {group}"]
        for flag in flags:
            mark = "" if flag.name in SET else "#"
            lines += ["", *explained(flag), f"{mark}{flag.name} = {_toml(flag)}"]
    return "\n".join(lines) + "\n"


def _toml(flag: Flag) -> str:
    value = SET.get(flag.name, flag.default)
    if flag.kind in (Kind.SWITCH, Kind.COUNT, Kind.INTEGER):
        return value
    return f'"{value}"'


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "etcd-py.conf").write_text(environment_file())
    (folder / "etcd-py.toml").write_text(toml_file())


if __name__ == "__main__":
    main()
