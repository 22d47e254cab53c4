"""The commands on the servers themselves: status."""

from __future__ import annotations

import dataclasses

import click

from etcd_client import EtcdError, Status
from etcd_client.ctl.output import size_text, write_json, write_table
from etcd_client.ctl.settings import Settings, exit_status, with_settings
from etcd_client.session import parse_endpoints

TITLES = (
    "ENDPOINT",
    "ID",
    "VERSION",
    "DB SIZE",
    "IN USE",
    "LEADER",
    "LEARNER",
    "RAFT TERM",
    "RAFT INDEX",
    "APPLIED",
    "REVISION",
    "ERRORS",
)


@click.command()
@with_settings
def status(settings: Settings) -> None:
    """Ask every endpoint for its state, and show them side by side.

    An endpoint that does not answer is named on standard error, and the exit status is then 3.

    \b
    Examples:
      etcd-pyctl status -w table
      etcd-pyctl --endpoints http://10.0.0.1:2379,http://10.0.0.2:2379 status
    """
    answers: list[Status] = []
    failures: list[EtcdError] = []
    with settings.client() as client:
        for endpoint in parse_endpoints(settings.endpoints):
            try:
                answers.append(client.status(endpoint))
            except EtcdError as error:
                failures.append(error)
    if settings.write_out == "json":
        write_json({"statuses": [dataclasses.asdict(answer) for answer in answers]})
    elif settings.write_out == "table":
        write_table(TITLES, map(_row, answers))
    else:
        for answer in answers:
            click.echo(", ".join(_row(answer)))
    for failure in failures:
        click.echo(f"etcd-pyctl: {failure}", err=True)
    if failures:
        raise SystemExit(max(map(exit_status, failures)))


def _row(answer: Status) -> tuple[str, ...]:
    return (
        answer.endpoint,
        f"{answer.member_id:x}",
        answer.version,
        size_text(answer.db_size_bytes),
        size_text(answer.db_size_in_use_bytes),
        str(answer.is_leader).lower(),
        str(answer.is_learner).lower(),
        str(answer.raft_term),
        str(answer.raft_index),
        str(answer.raft_applied_index),
        str(answer.revision),
        "; ".join(answer.errors),
    )
