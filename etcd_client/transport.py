"""One HTTP request over one connection: the only module that knows `requests`.

The seam is one method, `Transport.send`. A transport says, of a request that got no answer, the one thing
that decides about retrying: was it possibly received (`ConnectionLost`), or certainly not (`ConnectFailed`)?
It knows nothing of etcd, endpoints or retries. Tests put a scripted transport in its place.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import requests
import urllib3

from etcd_client.tls import Tls, TlsAdapter, handshake_problem, lost_connection


class TransportError(Exception):
    """No complete answer came back."""


class ConnectFailed(TransportError):
    """No connection: the request was certainly not received."""


class ConnectionLost(TransportError):
    """The connection ended, or timed out, after the request may have been received."""


class IdleTimeout(ConnectionLost):
    """The peer sent nothing for `read_timeout_s`."""


@dataclass(frozen=True, slots=True)
class Request:
    """A POST of `body` to `url`.

    `read_timeout_s` limits each wait for bytes, not the whole answer; `body_timeout_s` takes its place
    once the head of the answer is there.
    """

    url: str
    body: bytes
    connect_timeout_s: float
    read_timeout_s: float
    body_timeout_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Response(Protocol):
    """An answer whose head has arrived. `read`, `chunks` and `close` belong to the thread that sent it."""

    status: int

    def read(self) -> bytes:
        """The whole body. Raises ConnectionLost."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives, never empty, ending with the body. Raises ConnectionLost, IdleTimeout."""
        ...

    def abort(self) -> None:
        """From any thread: ends the body now; a blocked `chunks` returns or raises ConnectionLost."""
        ...

    def close(self) -> None:
        """Gives the connection back, or closes it when the body was not read to its end."""
        ...


class Transport(Protocol):
    """Sends requests; safe to use from several threads at once."""

    def send(self, request: Request) -> Response:
        """Sends and waits for the head of the answer. Raises ConnectFailed, ConnectionLost, IdleTimeout."""
        ...

    def close(self) -> None:
        """Closes idle connections. Open streams are ended by who opened them."""
        ...


class RequestsTransport:
    """Transport over `requests`. Proxy settings and .netrc of the environment are deliberately not used.

    A `requests.Session` is not promised to be thread-safe, so each request borrows one of its own, and
    a returned one is used again with its open connections. Raises ValueError for TLS files that cannot be
    used.
    """

    def __init__(self, tls: Tls = Tls()) -> None:  # noqa: B008 (frozen)
        tls.check_files()
        self._tls = tls
        if tls.insecure_skip_verify:
            # It was asked for by name; a warning for each request would be noise.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        self._lock = threading.Lock()
        self._idle: list[requests.Session] = []
        self._closed = False

    def send(self, request: Request) -> Response:
        session = self._borrow()
        try:
            response = session.post(
                request.url,
                data=request.body,
                headers={"Content-Type": "application/json", **request.headers},
                timeout=(request.connect_timeout_s, request.read_timeout_s),
                stream=True,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            self._give_back(session)
            raise _translated(error) from error
        if request.body_timeout_s is not None:
            # requests has one time limit for head and body. A connection without a socket object is one
            # that the server will not keep open: its body then stays under read_timeout_s.
            sock = getattr(response.raw.connection, "sock", None)
            if sock is not None:
                sock.settimeout(request.body_timeout_s)
        return _RequestsResponse(response, session, self)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()

    def _borrow(self) -> requests.Session:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        session = requests.Session()
        session.trust_env = False
        session.verify = not self._tls.insecure_skip_verify and (self._tls.ca_file or True)
        session.cert = self._tls.cert
        if self._tls.server_name is not None:
            session.mount("https://", TlsAdapter(self._tls.server_name))
        return session

    def _give_back(self, session: requests.Session) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(session)
                return
        session.close()


class _RequestsResponse:
    def __init__(
        self, response: requests.Response, session: requests.Session, transport: RequestsTransport
    ) -> None:
        self.status = response.status_code
        self._response = response
        self._session: requests.Session | None = session
        self._transport = transport

    def read(self) -> bytes:
        try:
            return self._response.content
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise _translated(error) from error

    def chunks(self) -> Iterator[bytes]:
        raw: urllib3.HTTPResponse = self._response.raw
        while True:
            try:
                chunk = raw.read1(65536, decode_content=True)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise _translated(error) from error
            if not chunk:
                return
            yield chunk

    def abort(self) -> None:
        try:
            self._response.raw.shutdown()
        except (RuntimeError, ValueError, OSError):
            # The body has already ended and its connection gone back to the pool: nothing is left to abort.
            return

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._response.close()
            self._transport._give_back(session)


def _translated(error: Exception) -> TransportError:
    """Which of our three errors a requests or urllib3 error is. Unclear means ConnectionLost."""
    causes = list(_chain(error))
    text = _innermost_text(causes)
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return ConnectFailed(text)
    for cause in causes:
        # The handshake goes before any byte of the request; other TLS errors may come later, prove nothing.
        problem = handshake_problem(cause) if isinstance(cause, OSError) else None
        if problem is not None:
            return ConnectFailed(problem)
    for cause in causes:
        # NewConnectionError covers refusal, no route and name resolution.
        if isinstance(
            cause,
            requests.ConnectTimeout
            | urllib3.exceptions.ConnectTimeoutError
            | urllib3.exceptions.NewConnectionError,
        ):
            return ConnectFailed(text)
    for cause in causes:
        if isinstance(cause, requests.ReadTimeout | urllib3.exceptions.ReadTimeoutError | TimeoutError):
            return IdleTimeout("no answer within the time allowed")
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return ConnectionLost(lost_connection(cause))
    return ConnectionLost(text)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what it wraps and what caused it, each once."""
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending.extend(
            inner
            for inner in (
                current.__cause__,
                current.__context__,
                getattr(current, "reason", None),
                *current.args,
            )
            if isinstance(inner, BaseException)
        )


def _innermost_text(causes: list[BaseException]) -> str:
    """The operating system's words where there are any ("Connection refused"), else the shortest text."""
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return min((str(cause) for cause in causes if str(cause)), key=len, default="connection failed")
