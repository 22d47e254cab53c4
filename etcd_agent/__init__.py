"""etcd-py-agent: turns keys of an etcd-compatible store into checked, running configuration.

This module is what a plugin imports: the hook marker, the values that hooks are given, the errors that
they raise. The agent imports ``etcd_client`` and never ``etcd_server``.
"""

from etcd_agent import commands, tables
from etcd_agent.errors import AgentError, CheckError, HealthError, ReloadError, RenderError
from etcd_agent.hookspecs import HOOK_API, hookimpl
from etcd_agent.keyspace import View
from etcd_agent.tables import Table
from etcd_agent.values import Applied, Event, Problem, Resource, Snapshot, Staged, StagedFile
from etcd_agent.workers import idle

__all__ = [
    "HOOK_API",
    "AgentError",
    "Applied",
    "CheckError",
    "Event",
    "HealthError",
    "Problem",
    "ReloadError",
    "RenderError",
    "Resource",
    "Snapshot",
    "Staged",
    "StagedFile",
    "Table",
    "View",
    "commands",
    "hookimpl",
    "idle",
    "tables",
]
