"""Which endpoint a call goes to, when it may be sent again, and what its answer means.

The rule that everything here keeps: a call that may change something is sent a second time only if the
first was certainly not received, or was refused before anything was done by a server that lacked a leader.
Reads are sent again, to the next endpoint, until they succeed or the time allowed is over.

Clock, waiting and jitter are arguments, so that all of it can be tested without a network or a real second.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar
from urllib.parse import urlsplit

from etcd_client.auth import Tokens, header_of, is_about_the_token
from etcd_client.errors import (
    UNKNOWN,
    BadAnswer,
    Closed,
    EtcdError,
    OutcomeUnknown,
    ServerError,
    Unavailable,
    Unreachable,
    from_status,
)
from etcd_client.transport import ConnectFailed, Request, Response, Transport, TransportError
from etcd_client.types import Json

T = TypeVar("T")

# An answer larger than this in an error message would hide the message.
_EXCERPT_BYTES = 200
_MIN_ATTEMPT_S = 0.05


def parse_endpoints(endpoints: str | Iterable[str]) -> tuple[str, ...]:
    """`http(s)://host:port` URLs from a list or a comma-separated string; `host:port` means http.

    Raises ValueError that names the endpoint which cannot be used.
    """
    parts = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    urls = tuple(dict.fromkeys(_endpoint_url(part.strip()) for part in parts if part.strip()))
    if not urls:
        raise ValueError("no endpoint given: expected at least one URL such as http://127.0.0.1:2379")
    return urls


def _endpoint_url(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    expected = "expected http://HOST:PORT, https://HOST:PORT or HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"endpoint {text!r}: {error}; {expected}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"endpoint {text!r}: {expected}")
    if parts.username is not None or parts.path not in ("", "/"):
        raise ValueError(f"endpoint {text!r}: {expected}, without user name or path")
    return f"{parts.scheme}://{parts.netloc}" if port else f"{parts.scheme}://{parts.netloc}:2379"


class Backoff:
    """Waits that double from `base_s` to `max_s`, each drawn between half of itself and all of it.

    Not thread-safe: one for each loop that retries.
    """

    def __init__(self, random: Random, *, base_s: float = 0.1, max_s: float = 5.0) -> None:
        self._random = random
        self._base_s = base_s
        self._max_s = max_s
        self._step = 0

    def next_s(self) -> float:
        """How long to wait before the next attempt, in seconds."""
        ceiling = min(self._max_s, self._base_s * 2.0 ** min(self._step, 30))
        self._step += 1
        return ceiling * (0.5 + 0.5 * self._random.random())

    def reset(self) -> None:
        """Begin again from `base_s`, after a success."""
        self._step = 0


class Session:
    """The endpoints of one cluster and the calls to them. Thread-safe."""

    def __init__(
        self,
        endpoints: tuple[str, ...],
        transport: Transport,
        *,
        timeout_s: float,
        connect_timeout_s: float,
        random: Random,
        tokens: Tokens | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.endpoints = endpoints
        self._tokens = tokens
        self.timeout_s = timeout_s
        self.random = random
        self._transport = transport
        self._connect_timeout_s = connect_timeout_s
        self.clock = clock
        self._closing = threading.Event()
        self._wait = wait or self._closing.wait
        self._preferred = 0

    @property
    def has_user(self) -> bool:
        """Calls are made in the name of a user."""
        return self._tokens is not None

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def close(self) -> None:
        """No further calls; waits between attempts end now."""
        self._closing.set()
        self._transport.close()

    def preferred(self) -> str:
        """The endpoint that answered last."""
        return self.endpoints[self._preferred]

    def rotate(self, failed: str) -> None:
        """Prefer the endpoint after `failed`, unless somebody has moved on from it already."""
        if self.endpoints[self._preferred] == failed:
            self._preferred = (self._preferred + 1) % len(self.endpoints)

    def call(
        self,
        path: str,
        body: Json,
        *,
        repeatable: bool,
        endpoint: str | None = None,
        stream: bool = False,
        timeout_s: float | None = None,
    ) -> Json:
        """POSTs `body` to `path` and returns the answer; with `stream`, the first message of the stream.

        `endpoint` pins the call to one endpoint. Raises the errors of etcd_client.errors. Takes at most
        about `timeout_s`, by default the session's.
        """
        deadline = self.clock() + (self.timeout_s if timeout_s is None else timeout_s)
        backoff = Backoff(self.random, max_s=1.0)
        endpoints = (endpoint,) if endpoint else self.endpoints
        last: EtcdError | None = None
        while True:
            start = 0 if endpoint else self._preferred
            for turn in range(len(endpoints)):
                if self.closed:
                    raise Closed("the client is closed")
                remaining_s = deadline - self.clock()
                if last is not None and remaining_s <= _MIN_ATTEMPT_S:
                    raise last
                target = endpoints[(start + turn) % len(endpoints)]
                # A read leaves time for the endpoints that have not been asked; a write that has been
                # sent is not sent elsewhere, so it may wait for its answer until the end.
                share_s = remaining_s / (len(endpoints) - turn)
                try:
                    answer = self._attempt_as_user(
                        _Attempt(
                            target,
                            connect_timeout_s=min(share_s, self._connect_timeout_s),
                            read_timeout_s=share_s if repeatable else remaining_s,
                            repeatable=repeatable,
                            stream=stream,
                        ),
                        path,
                        body,
                    )
                except (Unreachable, Unavailable) as error:
                    last = error
                    if not endpoint:
                        self.rotate(target)
                else:
                    return answer
            pause_s = backoff.next_s()
            if deadline - self.clock() <= pause_s + _MIN_ATTEMPT_S:
                raise last or Unavailable("timed out")
            self._wait(pause_s)

    def open_stream(
        self,
        endpoint: str,
        path: str,
        body: Json,
        *,
        token: str,
        headers: Mapping[str, str],
        idle_timeout_s: float,
    ) -> Response:
        """POSTs `body` and returns the answer, which must be a stream. One attempt, to one endpoint.

        Raises the errors of etcd_client.errors; TransportError becomes Unreachable or Unavailable.
        """
        if self.closed:
            raise Closed("the client is closed")
        request = Request(
            url=endpoint + path,
            body=_encoded(body),
            connect_timeout_s=self._connect_timeout_s,
            read_timeout_s=self.timeout_s,
            body_timeout_s=idle_timeout_s,
            headers={**headers, **header_of(token)},
        )
        try:
            response = self._transport.send(request)
            if response.status == 200:
                return response
            try:
                raise _error_answer(response.status, response.read(), endpoint, repeatable=True)
            finally:
                response.close()
        except TransportError as error:
            raise no_answer(error, endpoint, repeatable=True) from error

    def token(self, endpoint: str, *, instead_of: str | None = None) -> str:
        """The user's token, "" without a user; another one than `instead_of`, which was refused."""
        if self._tokens is None:
            return ""
        attempt = _Attempt(
            endpoint,
            connect_timeout_s=self._connect_timeout_s,
            read_timeout_s=self.timeout_s,
            repeatable=True,
        )
        return self._token(self._tokens, attempt, instead_of)

    def _token(self, tokens: Tokens, attempt: _Attempt, refused: str | None = None) -> str:
        def ask(path: str, body: Json) -> Json:
            return self._attempt(replace(attempt, repeatable=True, stream=False), path, body, "")

        if refused is None:
            return tokens.get(ask, attempt.read_timeout_s)
        return tokens.renew(refused, ask, attempt.read_timeout_s)

    def _attempt_as_user(self, attempt: _Attempt, path: str, body: Json) -> Json:
        """One attempt with the user's token, and one more with a new token if it is refused for its token."""
        if self._tokens is None:
            return self._attempt(attempt, path, body, "")
        token = self._token(self._tokens, attempt)
        try:
            return self._attempt(attempt, path, body, token)
        except EtcdError as error:
            if not is_about_the_token(error):
                raise
        return self._attempt(attempt, path, body, self._token(self._tokens, attempt, token))

    def _attempt(self, attempt: _Attempt, path: str, body: Json, token: str) -> Json:
        endpoint, repeatable = attempt.endpoint, attempt.repeatable
        request = Request(
            url=endpoint + path,
            body=_encoded(body),
            connect_timeout_s=max(attempt.connect_timeout_s, _MIN_ATTEMPT_S),
            read_timeout_s=max(attempt.read_timeout_s, _MIN_ATTEMPT_S),
            headers=header_of(token),
        )
        try:
            response = self._transport.send(request)
            try:
                if response.status != 200:
                    raise _error_answer(response.status, response.read(), endpoint, repeatable=repeatable)
                content = response.read()
            finally:
                response.close()
        except TransportError as error:
            raise no_answer(error, endpoint, repeatable=repeatable) from error
        if not attempt.stream:
            return decode(content, endpoint)
        lines = content.split(b"\n", 1)
        return result_of_frame(decode(lines[0], endpoint), endpoint, repeatable=repeatable)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Where one request goes, and what it may take and mean. `stream`: only the first message counts."""

    endpoint: str
    connect_timeout_s: float
    read_timeout_s: float
    repeatable: bool
    stream: bool = False


def decode(content: bytes, endpoint: str) -> Json:
    """The JSON object in `content`. Raises BadAnswer."""
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        excerpt = content[:_EXCERPT_BYTES].decode("utf-8", "replace")
        raise BadAnswer(f"the answer is not a JSON object: {excerpt!r}", endpoint=endpoint)
    return document


def parsed(parse: Callable[[Json], T], document: Json, endpoint: str) -> T:
    """`parse(document)`. Raises BadAnswer when a field is missing or of the wrong shape."""
    try:
        return parse(document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        excerpt = json.dumps(document)[:_EXCERPT_BYTES]
        raise BadAnswer(
            f"the answer has not the expected shape ({error}): {excerpt}", endpoint=endpoint
        ) from error


def result_of_frame(frame: Json, endpoint: str, *, repeatable: bool) -> Json:
    """The `result` of one message of a stream. Raises the error that an `error` frame stands for."""
    error = frame.get("error")
    if error is not None:
        details = error if isinstance(error, dict) else {"message": str(error)}
        # grpc-gateway v1 says grpc_code, v2 says code.
        code = int(details.get("grpc_code") or details.get("code") or UNKNOWN)
        text = str(details.get("message", "error without a message"))
        raise from_status(code, text, endpoint=endpoint, repeatable=repeatable)
    result = frame.get("result")
    if not isinstance(result, dict):
        raise BadAnswer(f"a stream message without result or error: {frame!r}", endpoint=endpoint)
    return result


def _encoded(body: Json) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def _error_answer(status: int, content: bytes, endpoint: str, *, repeatable: bool) -> EtcdError:
    """The error for an answer whose HTTP status is not 200."""
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict) and "code" in document:
        text = str(document.get("message") or document.get("error") or f"HTTP status {status}")
        return from_status(int(document["code"]), text, endpoint=endpoint, repeatable=repeatable)
    words = content[:_EXCERPT_BYTES].decode("utf-8", "replace").strip() or "no text"
    text = f"HTTP status {status}: {words}"
    if status in (404, 405):
        return from_status(12, text, endpoint=endpoint, repeatable=repeatable)
    if 400 <= status < 500:
        return from_status(3, text, endpoint=endpoint, repeatable=repeatable)
    # A 502, 503 or 504 without etcd's body comes from a proxy, which may have passed the request on.
    if status in (502, 503, 504):
        return from_status(14, text, endpoint=endpoint, repeatable=repeatable)
    return ServerError(text, endpoint=endpoint) if repeatable else OutcomeUnknown(text, endpoint=endpoint)


def no_answer(error: TransportError, endpoint: str, *, repeatable: bool) -> EtcdError:
    """The error for a request that got no complete answer."""
    if isinstance(error, ConnectFailed):
        return Unreachable(f"cannot connect: {error}", endpoint=endpoint)
    if repeatable:
        return Unavailable(f"no answer: {error}", endpoint=endpoint)
    return OutcomeUnknown(f"no answer, so it may have been done or not: {error}", endpoint=endpoint)
