"""Every error of the agent, once.

::

    AgentError                  one line for a person: what, where, what was expected
    |- ConfigError              agent.toml or a resource file is wrong            exit status 1
    |- LockedError              another agent works on the same state or file     exit status 1
    |- RenderError              a template or a value cannot be rendered          exit status 3
    |- SchemaError              a value does not match its prefix's JSON Schema   exit status 3
    |- GuardError               a safety guard holds the new files back           exit status 3
    |- CheckError               the staged files did not pass a check             exit status 3
    |- FilesError               a destination cannot be read, written or owned    exit status 1
    |- ReloadError              the reload failed, hung, or did not take          exit status 5 (rolled back)
    |  `- BusyError             it cannot be reloaded right now; later it can      exit status 5
    |- HealthError              the service is not healthy after the reload       exit status 5 (rolled back)
    `- StoreError               the store cannot be reached or answered nonsense  exit status 4

A resource that meets one of these is FAILED (or ROLLED_BACK) and is tried again; the agent itself lives on.
Messages never carry a value of the store: values may be secrets. They name the key.
"""

from __future__ import annotations


class AgentError(Exception):
    """The root of the tree; ``exit_status`` is what ``etcd-py-agent once`` ends with."""

    exit_status = 1


class ConfigError(AgentError):
    """A configuration file is wrong. ``str(error)`` starts with ``FILE:LINE:COLUMN:`` where that is known."""


class LockedError(AgentError):
    """Another process holds the lock of the state directory, or of a destination."""


class RenderError(AgentError):
    """A template cannot be rendered from the keys as they are."""

    exit_status = 3


class SchemaError(AgentError):
    """A value does not match the JSON Schema of its prefix, or that schema is none."""

    exit_status = 3


class GuardError(AgentError):
    """A guard of ``[safety]`` refuses the new files; the old ones stay."""

    exit_status = 3


class CheckError(AgentError):
    """A veto hook, the format check or the check command refused the staged files."""

    exit_status = 3


class FilesError(AgentError):
    """A file could not be staged, saved or swapped in."""


class ReloadError(AgentError):
    """The reload failed, ran out of time, or had no effect."""

    exit_status = 5


class BusyError(ReloadError):
    """The service was (re)started too often; nothing is wrong with the files. They stay, and it is tried
    again.
    """


class HealthError(AgentError):
    """The service is not healthy after the reload."""

    exit_status = 5


class StoreError(AgentError):
    """The store cannot be reached, or refuses the request."""

    exit_status = 4
