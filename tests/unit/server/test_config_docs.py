"""docs/configuration.md and the table of flags say the same."""

from __future__ import annotations

import re
from pathlib import Path

from etcd_server.config import load, parse_command_line
from etcd_server.flags import FORMER_NAMES, GROUPS, Flag

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def row(flag: Flag) -> str:
    default = f"`{flag.default}`" if flag.default else ""
    choices = f" One of `{'`, `'.join(flag.choices)}`." if len(flag.choices) > 1 else ""
    return f"| `--{flag.name}` | {default} | {flag.help}{choices} |"


def sections() -> dict[str, list[str]]:
    """{heading: the rows of its table}."""
    found: dict[str, list[str]] = {}
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("#"):
            found[line.lstrip("# ")] = rows = []
        elif line.startswith("| `--"):
            rows.append(line)
    return found


def test_every_flag_has_its_line_in_the_document() -> None:
    found = sections()
    for group, flags in GROUPS.items():
        assert found[group] == [row(flag) for flag in flags], f"docs/configuration.md, section {group}"
    assert found["Former names"] == [
        f"| `--{former}` | `--{name}` |" for former, name in sorted(FORMER_NAMES.items())
    ]


def test_the_example_of_a_file_is_true(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    path = tmp_path / "etcd-py.toml"
    path.write_text(example)
    config = load(parse_command_line(["--config-file", str(path)]), {}).config
    assert config.listen_client_urls == ("http://10.0.0.1:2379", "http://127.0.0.1:2379")
    assert (config.name, config.watch_progress_notify_interval_s) == ("host1", 5.0)
    assert config.auto_compaction_retention == 3600.0
