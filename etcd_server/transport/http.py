"""Plain HTTP on the client and peer ports: the JSON gateway and the pages for people and tools.

What a request means is decided by pure functions (`gateway.py`, `operations.py`); here it is put to the
engine and the answer is sent when it comes. A page that needs reads is answered when the engine has answered
them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from typing import Any

from etcd_server.api.errors import DeadlineExceeded, EtcdError, Unimplemented
from etcd_server.api.methods import Kind, Rpc
from etcd_server.services.events import Batch
from etcd_server.transport import gateway
from etcd_server.transport.answers import HttpAnswer
from etcd_server.transport.wire import Transport

Page = Callable[[Batch, str, str, Callable[[HttpAnswer], None]], None]
"""(batch, HTTP method, target, respond): answers a page, now or after reads that it adds to the batch."""


class HttpFront:
    """Plain HTTP of one member."""

    def __init__(
        self, transport: Transport, served: Collection[str], max_message_bytes: int, page: Page
    ) -> None:
        self._transport = transport
        self._served = frozenset(served)
        self._max_message_bytes = max_message_bytes
        self._page = page
        self._deadlines: list[tuple[float, int, Callable[[Batch], None]]] = []

    def take(self, event: tuple[Any, ...], batch: Batch, now: float) -> None:
        """One HTTP event of the wire."""
        _, exchange_id, method, target, headers, body, _ = event
        if gateway.serves(target):
            self._call(exchange_id, method, target, headers, body, batch, now)
        else:
            self._page(batch, method, target, lambda answer: self._transport.respond(exchange_id, *answer))

    def _call(
        self,
        exchange_id: int,
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
            transport.respond(exchange_id, *call)
        elif call.rpc.path not in self._served:
            refusal = Unimplemented(f"unknown method {call.rpc.method} for service {call.rpc.service}")
            transport.respond(exchange_id, *gateway.failure(refusal))
        elif call.rpc.kind is Kind.UNARY:
            exchange = _Unary(transport, exchange_id, call.rpc)
            transport.ask(batch, call.rpc.path, call.requests[0], exchange.answer)
            self._limit(call.timeout_s, exchange_id, exchange.time_out, now)
        else:
            stream = _Stream(transport, exchange_id, call.rpc)
            transport.open_stream(batch, exchange_id, call.rpc.path, call.requests, stream)
            self._limit(call.timeout_s, exchange_id, stream.time_out, now)

    def _limit(
        self, timeout_s: float | None, exchange_id: int, time_out: Callable[[Batch], None], now: float
    ) -> None:
        if timeout_s is not None:
            heapq.heappush(self._deadlines, (now + timeout_s, exchange_id, time_out))

    def tick(self, batch: Batch, now: float) -> None:
        """End the exchanges whose time is up."""
        while self._deadlines and self._deadlines[0][0] <= now:
            heapq.heappop(self._deadlines)[2](batch)


class _Unary:
    """One unary call that came as JSON."""

    def __init__(self, transport: Transport, exchange_id: int, rpc: Rpc) -> None:
        self._transport = transport
        self._exchange_id = exchange_id
        self._rpc = rpc

    def answer(self, answer: bytes | EtcdError) -> None:
        told = gateway.failure(answer) if isinstance(answer, EtcdError) else gateway.answer(self._rpc, answer)
        self._transport.respond(self._exchange_id, *told)

    def time_out(self, batch: Batch) -> None:
        """Too late; the wire drops a second answer to the same exchange."""
        self._transport.respond(self._exchange_id, *gateway.failure(DeadlineExceeded()))


class _Stream:
    """One streaming call that came as JSON: a line for each message. Its head is sent with the first."""

    def __init__(self, transport: Transport, exchange_id: int, rpc: Rpc) -> None:
        self._transport = transport
        self._exchange_id = exchange_id
        self._rpc = rpc
        self._begun = False

    def message(self, response: bytes) -> None:
        if not self._begun:
            self._begun = True
            self._transport.begin(self._exchange_id, gateway.STREAM_STATUS, gateway.STREAM_HEADERS)
        self._transport.chunk(self._exchange_id, gateway.frame(self._rpc, response))

    def end(self, error: EtcdError | None) -> None:
        if self._begun:
            if error is not None:
                self._transport.chunk(self._exchange_id, gateway.error_frame(error))
            self._transport.finish(self._exchange_id)
        else:
            told = gateway.empty_stream() if error is None else gateway.stream_failure(error)
            self._transport.respond(self._exchange_id, *told)

    def time_out(self, batch: Batch) -> None:
        self._transport.end_stream(batch, self._exchange_id)
        self.end(DeadlineExceeded())
