"""What an agent shares with others through the store, opened as the configuration wants it: the fleet's gate,
the reports of status, the services that this host offers."""

from __future__ import annotations

from collections.abc import Callable

from etcd_agent.registration import Registrar
from etcd_agent.report import open_reporter
from etcd_agent.rollout import open_gate
from etcd_agent.values import AgentConfig, Gate, Reporter, ResourceStatus
from etcd_client import Client


class Services:
    """``gate`` is None without ``[rollout] group``. Nothing is offered before ``offer``."""

    def __init__(self, config: AgentConfig, client: Client, wake: Callable[[str], None]) -> None:
        """Raises ConfigError: settings that cannot work together."""
        self._settings = _settings(config)
        self.gate: Gate | None = open_gate(config, client, wake) if config.rollout.group else None
        self._reporter: Reporter | None = open_reporter(config, client) if config.report.enabled else None
        self._registrar = Registrar(client)

    def offer(self, config: AgentConfig) -> None:
        """Put the host's services into the store while they are well; those offered before that are not in
        ``config`` are taken away.
        """
        self._registrar.set_services(config.services)

    def adopt(self, old: Services) -> None:
        """Take over what ``old`` offers, so that a new configuration takes no service away."""
        self._registrar.adopt(old._registrar)

    @property
    def offered(self) -> dict[str, str]:
        """Each service of this host: "registered", or why not."""
        return self._registrar.states()

    def differ(self, config: AgentConfig) -> bool:
        """Whether another configuration needs others. (Which services are offered may change.)"""
        return self._settings != _settings(config)

    def changed(self, status: ResourceStatus) -> None:
        if self._reporter is not None:
            self._reporter.changed(status)

    def close(self) -> None:
        """Take the services away, leave the rollout, say that the agent has stopped."""
        self._registrar.close()
        if self.gate is not None:
            self.gate.close()
        if self._reporter is not None:
            self._reporter.close()


def _settings(config: AgentConfig) -> tuple[object, ...]:
    ranges = tuple(sorted(top for resource in config.resources for top in resource.ranges))
    return config.rollout, config.report, config.host_id, config.labels, ranges
