"""Plain HTTP on the client and peer ports: the JSON gateway and the pages for people and tools.

What a request means is decided by pure functions (`gateway.py`, `operations.py`); here it is put to the
engine and the answer is sent when it comes. A page that needs reads is answered when the engine has answered
them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from typing import Any

from etcd_server.api.errors import DeadlineExceeded, EtcdError, Unimplemented
from etcd_server.api.methods import Kind, Rpc
from etcd_server.services.events import Batch
from etcd_server.transport import gateway, v2members
from etcd_server.transport.access import AccessRules
from etcd_server.transport.answers import Headers, HttpAnswer
from etcd_server.transport.pages import Pages
from etcd_server.transport.wire import CLIENT, PEER, REQUIRE_LEADER, Transport

TIME_IS_UP = "context deadline exceeded"


class HttpFront:
    """Plain HTTP of one member."""

    def __init__(
        self,
        transport: Transport,
        served: Collection[str],
        max_message_bytes: int,
        pages: Pages,
        access: AccessRules,
    ) -> None:
        """`served`: the gRPC paths that the engine serves; another RPC is answered as not implemented."""
        self._transport = transport
        self._served = frozenset(served)
        self._max_message_bytes = max_message_bytes
        self._pages = pages
        self._access = access
        self._deadlines: list[tuple[float, int, Callable[[Batch], None]]] = []
        self._held: list[tuple[Any, ...]] = []  # calls that came before the member serves

    def take(self, event: tuple[Any, ...], batch: Batch, now: float) -> None:
        """One HTTP event of the wire."""
        _, exchange_id, method, target, headers, body, connection = event
        exchange = _Exchange(self._transport, exchange_id, self._access.headers(headers))
        refusal = self._access.answer(method, headers, over_tls=False)
        if refusal is not None:
            self._transport.respond(exchange_id, *refusal)
        elif gateway.serves(target) and connection[0] == CLIENT:
            if not self._transport.is_serving:
                self._held.append(event)
                return
            self._call(exchange, method, target, headers, body, batch, now)
        elif connection[0] in (CLIENT, PEER) and v2members.serves(target, is_peer=connection[0] == PEER):
            self._pages.answer_members(batch, method, target, headers, body, exchange.respond)
        else:
            self._pages.answer(batch, method, target, exchange.respond)

    def _call(
        self,
        exchange: _Exchange,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        batch: Batch,
        now: float,
    ) -> None:
        call = gateway.decode(method, target, headers, body, self._max_message_bytes)
        transport = self._transport
        if isinstance(call, HttpAnswer):
            exchange.respond(call)
        elif call.rpc.path not in self._served:
            refusal = Unimplemented(f"unknown method {call.rpc.method} for service {call.rpc.service}")
            exchange.respond(gateway.failure(refusal))
        elif call.rpc.kind is Kind.UNARY:
            unary = _Unary(exchange, call.rpc)
            call_id = transport.ask(batch, call.rpc.path, call.requests[0], unary.answer)
            batch.gateway_calls.append(call_id)
            if call.metadata.get(REQUIRE_LEADER) == "true":
                batch.requiring_leader.append(call_id)
            self._limit(call.timeout_s, exchange.exchange_id, unary.time_out, now)
        else:
            stream = _Stream(exchange, call.rpc)
            requires_leader = call.metadata.get(REQUIRE_LEADER) == "true"
            transport.open_stream(
                batch,
                exchange.exchange_id,
                call.rpc.path,
                call.requests,
                stream,
                requires_leader=requires_leader,
            )
            self._limit(call.timeout_s, exchange.exchange_id, stream.time_out, now)

    def _limit(
        self, timeout_s: float | None, exchange_id: int, time_out: Callable[[Batch], None], now: float
    ) -> None:
        if timeout_s is not None:
            heapq.heappush(self._deadlines, (now + timeout_s, exchange_id, time_out))

    def tick(self, batch: Batch, now: float) -> None:
        """Take the calls that were held back, end the exchanges whose time is up."""
        if self._held and self._transport.is_serving:
            held, self._held = self._held, []
            for event in held:
                self.take(event, batch, now)
        while self._deadlines and self._deadlines[0][0] <= now:
            heapq.heappop(self._deadlines)[2](batch)


class _Exchange:
    """One plain HTTP request and the way back to it. The wire drops what is sent after the end."""

    def __init__(self, transport: Transport, exchange_id: int, headers: Headers) -> None:
        """`headers`: what every answer to this request carries besides its own."""
        self.transport = transport
        self.exchange_id = exchange_id
        self._headers = headers

    def respond(self, answer: HttpAnswer) -> None:
        self.transport.respond(
            self.exchange_id, answer.status, [*answer.headers, *self._headers], answer.body
        )

    def begin(self, status: int, headers: Headers) -> None:
        self.transport.begin(self.exchange_id, status, [*headers, *self._headers])


class _Unary:
    """One unary call that came as JSON."""

    def __init__(self, exchange: _Exchange, rpc: Rpc) -> None:
        self._exchange = exchange
        self._rpc = rpc

    def answer(self, answer: bytes | EtcdError) -> None:
        if isinstance(answer, EtcdError):
            self._exchange.respond(gateway.failure(answer))
        else:
            self._exchange.respond(gateway.answer(self._rpc, answer))

    def time_out(self, batch: Batch) -> None:
        self._exchange.respond(gateway.failure(DeadlineExceeded(TIME_IS_UP)))


class _Stream:
    """One streaming call that came as JSON: a line for each message. Its head is sent with the first."""

    def __init__(self, exchange: _Exchange, rpc: Rpc) -> None:
        self._exchange = exchange
        self._transport = exchange.transport
        self._rpc = rpc
        self._begun = False

    def message(self, response: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._exchange.begin(gateway.STREAM_STATUS, gateway.STREAM_HEADERS)
        self._transport.chunk(self._exchange.exchange_id, gateway.frame(self._rpc, response))

    def end(self, error: EtcdError | None) -> None:
        if not self._begun:
            self._exchange.respond(gateway.empty_stream() if error is None else gateway.stream_failure(error))
            return
        if error is not None:
            self._transport.chunk(self._exchange.exchange_id, gateway.error_frame(error))
        self._transport.finish(self._exchange.exchange_id)

    def time_out(self, batch: Batch) -> None:
        self._transport.end_stream(batch, self._exchange.exchange_id)
        self.end(DeadlineExceeded(TIME_IS_UP))
