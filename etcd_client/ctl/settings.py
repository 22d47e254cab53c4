"""What every command has in common: where the servers are, how answers look, and how errors end the program.

Exit status: 0 done · 1 the server refused the request · 2 the command line is wrong · 3 no server could serve
it now, nothing was changed · 4 the outcome of a write is unknown · 130 interrupted.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from etcd_client import Client, EtcdError, NotNow, OutcomeUnknown

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

REFUSED, NOT_NOW, UNKNOWN, INTERRUPTED = 1, 3, 4, 130
FORMATS = ("simple", "json", "table")


@dataclass(frozen=True, slots=True)
class Settings:
    """The common options, after the command line and the environment have been read."""

    endpoints: str = "http://127.0.0.1:2379"
    write_out: str = "simple"
    command_timeout_s: float = 5.0
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    insecure_skip_tls_verify: bool = False
    user: str | None = None
    password: str | None = None

    def client(self) -> AbstractContextManager[Client]:
        """A client for these settings. Raises click.UsageError for an endpoint that is not a URL."""
        if (self.cert_file is None) != (self.key_file is None):
            raise click.UsageError("--cert and --key are only of use together")
        cert = (self.cert_file, self.key_file) if self.cert_file and self.key_file else None
        user, password = self._user()
        try:
            return Client(
                self.endpoints,
                timeout_s=self.command_timeout_s,
                ca_file=self.ca_file,
                cert=cert,
                server_name=self.server_name,
                insecure_skip_tls_verify=self.insecure_skip_tls_verify,
                user=user,
                password=password,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    def _user(self) -> tuple[str | None, str]:
        """The user's name and password, as etcdctl takes them; asked for on a terminal if it is missing."""
        if self.user is None:
            if self.password is not None:
                raise click.UsageError("--password is only of use with --user")
            return None, ""
        if self.password is not None:
            return self.user, self.password
        name, colon, password = self.user.partition(":")
        return name, password if colon else click.prompt("Password", hide_input=True, err=True)


class Duration(click.ParamType[float]):
    """A time in seconds: 5, 0.5, or with a unit as etcdctl writes it: 5s, 500ms, 1m."""

    name = "DURATION"
    _units = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0}

    def convert(self, value: object, param: click.Parameter | None, context: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|ms|m|)", str(value))
        if found is None or float(found[1]) == 0:
            self.fail(f"{value!r}: expected a time such as 5s, 500ms or 1m", param, context)
        return float(found[1]) * self._units[found[2]]


_FILE = click.Path(exists=True, dir_okay=False)
_FLAG = object()
# flags, field of Settings, type, help; the environment variable is ETCDCTL_ and the long flag
_COMMON: tuple[tuple[tuple[str, ...], str, Any, str], ...] = (
    (("--endpoints",), "endpoints", None, "Servers, comma-separated URLs. [default: http://127.0.0.1:2379]"),
    (("-w", "--write-out"), "write_out", click.Choice(FORMATS), "Form of the answer. [default: simple]"),
    (("--command-timeout",), "command_timeout_s", Duration(), "Time limit of one request. [default: 5s]"),
    (("--cacert",), "ca_file", _FILE, "CA certificates (PEM) to check https servers with."),
    (("--cert",), "cert_file", _FILE, "Client certificate (PEM)."),
    (("--key",), "key_file", _FILE, "Key of the client certificate (PEM)."),
    (("--tls-server-name",), "server_name", None, "Name that the servers' certificates must have."),
    (("--insecure-skip-tls-verify",), "insecure_skip_tls_verify", _FLAG, "Believe any server."),
    (("--user",), "user", None, "NAME[:PASSWORD]; asks for a password that is not given."),
    (("--password",), "password", None, "Password of --user, which then is the name alone."),
)


def common_options(*, environment: bool) -> Callable[[F], F]:
    """Adds the common options. With `environment` they are read from there as well.

    They stand before the command's name or after it; what stands after it wins, and the environment
    counts only where neither was given.
    """

    def add(command: F) -> F:
        for flags, name, kind, text in reversed(_COMMON):
            variable = "ETCDCTL_" + flags[-1].removeprefix("--").replace("-", "_").upper()
            variable_read = variable if environment else None
            if kind is _FLAG:
                # None when it is not given, so that merged() leaves what stands before the command's name.
                option = click.option(
                    *flags, name, is_flag=True, default=None, envvar=variable_read, help=text
                )
            else:
                option = click.option(*flags, name, type=kind, envvar=variable_read, help=text)
            command = option(command)
        return command

    return add


def merged(settings: Settings, options: dict[str, Any]) -> Settings:
    """`settings` with the common options taken out of `options` where they were given."""
    given = {name: options.pop(name, None) for _, name, _, _ in _COMMON}
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def with_settings(function: Callable[Concatenate[Settings, P], R]) -> Callable[P, R]:
    """Gives a command its Settings, from the options before and after its name."""

    @common_options(environment=False)
    @click.pass_context
    @functools.wraps(function)
    def command(context: click.Context, /, **options: Any) -> R:
        settings = merged(context.find_object(Settings) or Settings(), options)
        return function(settings, **options)  # type: ignore[call-arg]

    return command  # type: ignore[return-value]


def exit_status(error: EtcdError) -> int:
    """The exit status that stands for an error of the library."""
    if isinstance(error, OutcomeUnknown):
        return UNKNOWN
    return NOT_NOW if isinstance(error, NotNow) else REFUSED
