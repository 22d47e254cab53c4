"""The contract between the agent and its plugins, whole: one class, one docstring for each hook.

The project name of pluggy and the entry-point group are ``etcd_py_agent``; hooks begin with ``agent_``. A
plugin may leave out any hook, and any argument of a hook. Hooks run in the thread of the resource that
they are about, so that a slow one delays that resource alone. What can block for long belongs in a
command with a timeout.

What an exception in a plugin means depends on the class of the hook, and each docstring names its class:

- *collection*: called at start; an exception marks that plugin broken and leaves it out.
- *veto*: an exception counts as a refusal: the old files stay (a health veto: the old files come back).
- *provider*: the first plugin that answers is used; an exception fails the step, as a failing command would.
- *notification*: an exception is logged and counted, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pluggy

from etcd_agent.values import Applied, Event, Problem, Resource, Snapshot, Staged

PROJECT = "etcd_py_agent"
HOOK_API = "1.0"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class AgentSpecs:
    """The hooks, in the order in which an apply meets them."""

    @hookspec
    def agent_register_templates(self, register: Callable[[str, str], None]) -> None:
        """Offer templates. *Collection.* Since 1.0.

        ``register(name, directory)`` makes the files of ``directory`` usable as ``src = "NAME:FILE"``.
        """

    @hookspec
    def agent_register_functions(
        self, register: Callable[[str, Callable[..., Any]], None], resource: Resource
    ) -> None:
        """Offer functions to the templates of ``resource``. *Collection.* Since 1.0.

        ``register(name, function)``. The function is called with the resource's keys as first argument,
        an ``etcd_agent.keyspace.View``, and then with what the template passes. It raises RenderError (or
        ValueError) for a value that must not be used; the resource is then FAILED and its old files stay.
        It must depend on its arguments alone: no clock, no disk, no network.
        """

    @hookspec
    def agent_check_settings(self, resource: Resource) -> Problem | str | None:
        """Refuse wrong settings of this plugin when the configuration is loaded. *Veto.* Since 1.0.

        Called for each resource; ``resource.settings(NAME)`` is None where the plugin is not attached. A
        refusal is an error of the configuration: at start the agent ends, on a reload the old
        configuration stays.
        """

    @hookspec
    def agent_validate(self, resource: Resource, staged: Staged, snapshot: Snapshot) -> Problem | str | None:
        """Refuse staged files before any of them is swapped in. *Veto.* Since 1.0.

        ``staged`` names all files of the resource as they would be, changed or not, and the destinations that
        would be removed. None means no objection.
        """

    @hookspec(firstresult=True)
    def agent_reload(self, resource: Resource, applied: Applied) -> str | None:
        """Make the service read its files again. *Provider.* Since 1.0.

        Returns one line that says what was done, or None to leave the reload to the next plugin. Raises
        ReloadError when it failed or had no effect. Must return within ``resource.reload.timeout_s``.
        Called at least once after the last change of the files, perhaps more often.
        """

    @hookspec
    def agent_health(self, resource: Resource, applied: Applied) -> Problem | str | None:
        """Say that the service is not well with its new files. *Veto.* Since 1.0.

        Called after a reload, up to ``1 + resource.health.retries`` times until every plugin returns None.
        """

    @hookspec
    def agent_event(self, event: Event) -> None:
        """Hear what happened to a resource. *Notification.* Since 1.0."""


def problems(answers: Sequence[Problem | str]) -> list[Problem]:
    """The refusals among a veto's answers, each as a Problem."""
    return [Problem(answer) if isinstance(answer, str) else answer for answer in answers]
