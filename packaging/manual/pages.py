"""Writes the manual pages and the completions of all commands: pages.py DIRECTORY.

They are made from what the programs themselves say, from the flags, the options and commands, and from docs/,
so that they cannot say anything else. DIRECTORY gets man1, man5, man8, bash, zsh and fish.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete
from etcd_py_firewall import cli as firewall
from roff import bold, escaped, example, head, markdown, paragraph, section, subsection, term

from etcd_agent.cli import cli as agent
from etcd_client.ctl import commands as ctl
from etcd_server.cli import USAGE
from etcd_server.flags import GROUPS, HONOURED, Flag, Kind
from etcd_server.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
SEE = {
    "etcd-py": "etcd-py.conf(5), etcd-pyctl(1), etcd-py-firewall(8)",
    "etcd-pyctl": "etcd-py(8)",
    "etcd-py-agent": "etcd-py-agent.toml(5), etcd-py(8)",
    "etcd-py-firewall": "etcd-py(8), firewall-cmd(1)",
    "etcd-py.conf": "etcd-py(8), systemd.exec(5)",
    "etcd-py-agent.toml": "etcd-py-agent(8)",
}
COMMANDS = {"etcd-pyctl": (ctl, 1), "etcd-py-agent": (agent, 8), "etcd-py-firewall": (firewall, 8)}
SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
FILES = {
    "/etc/etcd-py/etcd-py.conf": "Settings, as variables of the unit etcd-py.service.",
    "/etc/etcd-py/etcd-py.toml": "Settings, when ETCD_CONFIG_FILE names this file.",
    "/var/lib/etcd-py": "The data.",
}
AGENT_SECTIONS = {
    "Settings": "agent.toml",
    "Resource files": "Resource files: `conf.d/*.toml`",
    "Templates": "Templates",
    "Schemas": "Schemas",
}
"""Title in the manual: heading in docs/agent.md."""


# --- the server ---------------------------------------------------------------------------------------------


def honoured() -> Iterator[tuple[str, tuple[Flag, ...]]]:
    return ((group, flags) for group, flags in GROUPS.items() if flags[0].support is HONOURED)


def meaning(flag: Flag) -> str:
    choices = f" One of: {', '.join(flag.choices)}." if len(flag.choices) > 1 else ""
    switch = flag.kind is Kind.SWITCH and flag.default == "false"
    default = f" Default: {flag.default}" if flag.default and not switch else ""
    return flag.help + choices + default


def flag_terms(flags: tuple[Flag, ...]) -> str:
    return "".join(term(bold(f"--{flag.name}"), meaning(flag)) for flag in flags)


def server_page() -> str:
    synopsis, _, rest = USAGE.partition("\n\nExamples:\n\n")
    examples, _, notes = rest.partition("\n\n")
    return (
        head("etcd-py", 8, "System administration", VERSION)
        + section("Name", f"etcd\\-py \\- {escaped('a member of a distributed key-value store')}\n")
        + section("Synopsis", example(inspect.cleandoc(synopsis.partition("\n\n")[2])))
        + section("Description", *(paragraph(" ".join(each.split())) for each in notes.split("\n\n") if each))
        + section("Flags", *(subsection(group, flag_terms(flags)) for group, flags in honoured()))
        + section("Examples", example(inspect.cleandoc(examples)))
        + section("Files", *(term(bold(path), text) for path, text in FILES.items()))
        + section("Exit status", *(term(bold(n), text) for n, text in exit_statuses().items()))
        + section("See also", escaped(SEE["etcd-py"]) + "\n")
    )


def exit_statuses() -> dict[str, str]:
    """As the docstring of the server's command line tells them."""
    said = " ".join((inspect.getdoc(sys.modules["etcd_server.cli"]) or "").split())
    return dict(re.findall(r"(\d+): ([^.]+\.)", said))


def settings_page() -> str:
    variables = (
        subsection(
            group, *(term(bold(flag.environment_name), meaning(flag)) for flag in flags if group != "General")
        )
        for group, flags in honoured()
        if group != "General"
    )
    return (
        head("etcd-py.conf", 5, "File formats", VERSION)
        + section("Name", f"{escaped('etcd-py.conf, etcd-py.toml')} \\- settings of etcd\\-py\n")
        + section(
            "Description",
            paragraph(
                '`/etc/etcd-py/etcd-py.conf` is read by etcd-py.service: lines `NAME="value"`, and comments '
                "that begin with #. The flag `--a-b` of etcd-py(8) is the variable `ETCD_A_B`."
            ),
            paragraph(
                'With `ETCD_CONFIG_FILE="/etc/etcd-py/etcd-py.toml"` there, all settings are taken from that '
                'file, in TOML with the names of the flags as keys: `a-b = "value"`.'
            ),
            paragraph("A change has an effect after `systemctl restart etcd-py`."),
        )
        + section("Variables", *variables)
        + section("See also", escaped(SEE["etcd-py.conf"]) + "\n")
    )


# --- commands made with click -------------------------------------------------------------------------------


def help_blocks(text: str) -> str:
    """The text of a help: paragraphs, and blocks that click is told to leave as they are."""
    shown = []
    for block in inspect.cleandoc(text).split("\n\n"):
        lines = block.splitlines()
        if lines and lines[0] == "\b":
            shown.append(example("\n".join(lines[1:])))
        else:
            shown.append(paragraph(" ".join(lines)))
    return "".join(shown)


def context_of(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def options_of(command: click.Command, context: click.Context) -> str:
    terms = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:
            terms.append(term(bold(record[0]), record[1]))
    return "".join(terms)


def subcommands(command: click.Command, context: click.Context, path: str = "") -> str:
    """Each command below, with the commands below it."""
    if not isinstance(command, click.Group):
        return ""
    shown = []
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        inner = context_of(below, name, context)
        usage = " ".join([f"{path}{name}", *below.collect_usage_pieces(inner)])
        shown.append(subsection(usage, help_blocks(below.help or ""), options_of(below, inner)))
        shown.append(subcommands(below, inner, f"{path}{name} "))
    return "".join(shown)


def command_page(name: str, command: click.Group, volume: int) -> str:
    context = context_of(command, name)
    first, _, rest = inspect.cleandoc(command.help or "").partition("\n\n")
    title = "User commands" if volume == 1 else "System administration"
    return (
        head(name, volume, title, VERSION)
        + section("Name", f"{escaped(name)} \\- {escaped(' '.join(first.split()).rstrip('.'))}\n")
        + section("Synopsis", paragraph(f"**{name}** {' '.join(command.collect_usage_pieces(context))}"))
        + (section("Description", help_blocks(rest)) if rest else "")
        + section("Options", options_of(command, context))
        + section("Commands", subcommands(command, context))
        + section("See also", escaped(SEE[name]) + "\n")
    )


# --- pages from docs/ ---------------------------------------------------------------------------------------


def document_section(text: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    found = re.search(rf"^## {re.escape(heading)}$\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def agent_settings_page() -> str:
    document = (ROOT / "docs/agent.md").read_text()
    return (
        head("etcd-py-agent.toml", 5, "File formats", VERSION)
        + section(
            "Name", f"{escaped('etcd-py-agent.toml')} \\- settings and resources of etcd\\-py\\-agent\n"
        )
        + section(
            "Description",
            paragraph(
                "`/etc/etcd-py-agent/agent.toml` has the settings of the agent, "
                "`/etc/etcd-py-agent/conf.d/*.toml` the resources that it keeps, and "
                "`/etc/etcd-py-agent/templates` their templates."
            ),
        )
        + "".join(
            section(title, markdown(document_section(document, heading)))
            for title, heading in AGENT_SECTIONS.items()
        )
        + section("See also", escaped(SEE["etcd-py-agent.toml"]) + "\n")
    )


# --- completions --------------------------------------------------------------------------------------------


def server_completions() -> dict[str, str]:
    """{shell: script} of etcd-py, whose command line is not click's."""
    flags = [(flag.name, flag.help) for _, group in honoured() for flag in group]
    words = " ".join(["verify", "version", *(f"--{name}" for name, _ in flags)])
    fish = [f"complete -c etcd-py -l {name} -d '{text.replace(chr(39), '')}'" for name, text in flags]
    zsh = [
        f"  '--{name}[{re.sub(r'[][:]', '', text).replace(chr(39), '')}]:value:_files'"
        for name, text in flags
    ]
    return {
        "bash": f"complete -o default -W '{words}' etcd-py\n",
        "zsh": "#compdef etcd-py\n_arguments \\\n" + " \\\n".join(zsh) + "\n",
        "fish": "\n".join([*fish, "complete -c etcd-py -n __fish_use_subcommand -a 'verify version'"]) + "\n",
    }


def completion(shell: str, name: str, command: click.Command) -> str:
    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    return SHELLS[shell](command, {}, name, variable).source() + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    pages = {
        "man8/etcd-py.8": server_page(),
        "man5/etcd-py.conf.5": settings_page(),
        "man5/etcd-py.toml.5": ".so man5/etcd-py.conf.5\n",
        "man5/etcd-py-agent.toml.5": agent_settings_page(),
    }
    for name, (command, volume) in COMMANDS.items():
        pages[f"man{volume}/{name}.{volume}"] = command_page(name, command, volume)
        for shell in SHELLS:
            pages[file_of(shell, name)] = completion(shell, name, command)
    for shell, script in server_completions().items():
        pages[file_of(shell, "etcd-py")] = script
    for path, text in pages.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def file_of(shell: str, name: str) -> str:
    """Where the shells look for the completion of a command."""
    return {"bash": f"bash/{name}", "zsh": f"zsh/_{name}", "fish": f"fish/{name}.fish"}[shell]


if __name__ == "__main__":
    main()
