"""The running agent seen from outside: its pages, and its control socket."""

from __future__ import annotations

import json
import queue
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from etcd_agent.errors import AgentError, ConfigError
from etcd_agent.metrics import CONTENT_TYPE
from etcd_agent.pages import CONTROL, Listener, Page
from etcd_agent.status import summary
from etcd_agent.values import AgentConfig

if TYPE_CHECKING:
    from etcd_agent.runtime import Agent

# An order is a whole apply; the caller has a limit of its own.
_ORDER_LIMIT_S = 3600.0


@dataclass(slots=True)
class Order:
    """What a person wants of the running agent: ``kind`` is apply, rollback or accept-cluster."""

    kind: str
    name: str = ""
    force: bool = False
    number: int | None = None
    answer: queue.SimpleQueue[Mapping[str, Any]] = field(default_factory=queue.SimpleQueue)

    def refuse(self, reason: str) -> None:
        self.answer.put({"error": reason, "exit_status": 1})


class Operation:
    """Owned by the main loop; its handlers run in threads of the listeners and only read, or give orders."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._pages: Listener | None = None
        self._listen = ""
        self._control: Listener | None = None

    def open(self, config: AgentConfig) -> None:
        """Raises ConfigError if an address cannot be listened on."""
        self._control = Listener(
            f"unix:{config.state_dir}/{CONTROL}",
            self._answers(),
            {"/apply": self._apply, "/rollback": self._roll_back, "/accept-cluster": self._accept_cluster},
        )
        self.change(config)

    def change(self, config: AgentConfig) -> None:
        """Listen on what another configuration says. Raises ConfigError; the old one is then kept."""
        if config.listen == self._listen:
            return
        pages = Listener(config.listen, self._answers()) if config.listen else None
        if self._pages is not None:
            self._pages.close()
        self._pages, self._listen = pages, config.listen

    def close(self) -> None:
        for listener in (self._pages, self._control):
            if listener is not None:
                listener.close()

    def _answers(self) -> Mapping[str, Any]:
        return {
            "/metrics": lambda: Page(
                self._agent.metrics.page(self._agent.status()), content_type=CONTENT_TYPE
            ),
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/status": lambda: Page(
                json.dumps(asdict(self._agent.status()), indent=1).encode() + b"\n",
                content_type="application/json",
            ),
        }

    def _healthz(self) -> Page:
        """Alive: the main loop turns, and no pass runs far beyond its own limits."""
        return Page(b"ok\n") if self._agent.healthy else Page(b"stuck\n", HTTPStatus.SERVICE_UNAVAILABLE)

    def _readyz(self) -> Page:
        """Everything is applied and the store answers; else what is wrong."""
        status = self._agent.status()
        good = status.ready and not status.degraded
        code = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        return Page(f"{summary(status)}\n".encode(), code)

    def _apply(self, arguments: Mapping[str, str]) -> Mapping[str, Any]:
        return self._order(kind="apply", name=_resource(arguments), force=arguments.get("force") == "1")

    def _roll_back(self, arguments: Mapping[str, str]) -> Mapping[str, Any]:
        number = arguments.get("to", "")
        if number and not number.isdigit():
            raise ConfigError(f"to: expected the number of a generation, not {number!r}")
        return self._order(kind="rollback", name=_resource(arguments), number=int(number) if number else None)

    def _accept_cluster(self, arguments: Mapping[str, str]) -> Mapping[str, Any]:
        return self._order(kind="accept-cluster")

    def _order(self, **fields: Any) -> Mapping[str, Any]:
        order = Order(**fields)
        self._agent.give(order)
        try:
            return order.answer.get(timeout=_ORDER_LIMIT_S)
        except queue.Empty:
            raise AgentError("the order is still being carried out") from None


def _resource(arguments: Mapping[str, str]) -> str:
    name = arguments.get("resource", "")
    if not name:
        raise ConfigError("resource is missing")
    return name
