"""`etcd-pyctl`: the command line over etcd_client, with etcdctl's verbs, options and simple output."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from etcd_client import EtcdError, OutcomeUnknown
from etcd_client.ctl import cluster, keys
from etcd_client.ctl.settings import INTERRUPTED, Settings, common_options, exit_status, merged

PROGRAM = "etcd-pyctl"


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    }
)
@common_options(environment=True)
@click.version_option(package_name="etcd-py", prog_name=PROGRAM)
@click.pass_context
def commands(context: click.Context, /, **options: Any) -> None:
    """Read, write and watch keys in etcd-py or etcd.

    \b
    Examples:
      etcd-pyctl put /app/db postgres://db1/app
      etcd-pyctl get --prefix /app/
      etcd-pyctl watch --prefix /app/
      etcd-pyctl status -w table

    The common options may stand before or after the command, and each can be set in the environment:
    ETCDCTL_ and the long option, such as ETCDCTL_ENDPOINTS, ETCDCTL_COMMAND_TIMEOUT or ETCDCTL_PASSWORD.

    \b
    Exit status:
      0    done
      1    the server refused the request
      2    the command line is wrong
      3    no server could serve it now; nothing was changed
      4    the outcome of a write is unknown: read the key before trying again
      130  interrupted
    """
    context.obj = merged(Settings(), options)


for command in (keys.put, keys.get, keys.delete, keys.watch, cluster.status):
    commands.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The program: every failure is one line on standard error and an exit status of `commands`' help."""
    try:
        status = commands.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        click.echo(f"{PROGRAM}: {error.format_message()}{hint}", err=True)
        status = error.exit_code
    except EtcdError as error:
        hint = "; read the key before trying again" if isinstance(error, OutcomeUnknown) else ""
        click.echo(f"{PROGRAM}: {error}{hint}", err=True)
        status = exit_status(error)
    except click.Abort:
        status = INTERRUPTED
    sys.exit(status)
