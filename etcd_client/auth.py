"""Who is asking: a user's token, obtained with the password by Authenticate and renewed when it is refused.

etcd's tokens end without notice: a simple token after a time without use (`--auth-token-ttl`) and with the
member's restart, a JWT at its `exp`, any of them when users or roles change ("revision of auth store is
old"). So nothing is predicted here: a call that is refused because of its token is sent once more with a new
one. That is safe for writes, too, because the server looks at the token before it does anything.

A server without authentication answers Authenticate with an error of its own; the calls then go without a
token, and the first one that is refused asks again. So authentication may be switched on and off meanwhile.

The password may be given as a function, which is called for each Authenticate: a rotated password file is
read anew. The token and the password are never logged and never in an error.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from etcd_client.errors import EtcdError, FailedPrecondition, Unauthenticated, Unavailable, Unsupported
from etcd_client.types import Json

logger = logging.getLogger(__name__)

AUTHENTICATE = "/v3/auth/authenticate"
TOKEN_TEXTS = ("invalid auth token", "user name is empty", "revision of auth store is old")
Ask = Callable[[str, Json], Json]
"""`ask(path, body)`: one POST without a token to the endpoint that is about to be called."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and the password, or a function that gives it."""

    user: str
    password: str | Callable[[], str] = field(repr=False)

    def current_password(self) -> str:
        """The password now. Raises Unauthenticated when it cannot be read."""
        if isinstance(self.password, str):
            return self.password
        try:
            return self.password()
        except (OSError, ValueError) as error:
            raise Unauthenticated(f"user {self.user!r}: the password cannot be read: {error}") from error


class Tokens:
    """The token of one user, shared by all threads of a client. `current` is "" when none is needed."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._lock = threading.Lock()
        self._token: str | None = None
        self._told = False

    def get(self, ask: Ask, timeout_s: float) -> str:
        """The token; obtained first if there is none yet. Raises the errors of the call."""
        token = self._token
        return self.renew(None, ask, timeout_s) if token is None else token

    def renew(self, refused: str | None, ask: Ask, timeout_s: float) -> str:
        """Another token than `refused`, obtained by one thread for all that wait for it.

        Raises the errors of the call, and Unavailable when another thread needs longer than `timeout_s`.
        """
        if not self._lock.acquire(timeout=timeout_s):
            raise Unavailable("timed out while another thread authenticates")
        try:
            if self._token is None or self._token == refused:
                self._token = self._authenticate(ask)
            return self._token
        finally:
            self._lock.release()

    def _authenticate(self, ask: Ask) -> str:
        credentials = self._credentials
        body = {"name": credentials.user, "password": credentials.current_password()}
        try:
            token = ask(AUTHENTICATE, body).get("token")
        except (FailedPrecondition, Unsupported) as error:
            if not self._told:
                self._told = True
                logger.warning("user %r: %s; going on without", credentials.user, error)
            return ""
        except Unauthenticated as error:
            text = f"user {credentials.user!r}: {error.text}"
            raise Unauthenticated(text, code=error.code, endpoint=error.endpoint) from None
        self._told = False
        return str(token or "")


def is_about_the_token(error: EtcdError) -> bool:
    """Whether the call was refused because of its token alone (clientv3's shouldRefreshToken)."""
    return any(text in error.text for text in TOKEN_TEXTS)


def header_of(token: str) -> dict[str, str]:
    """The HTTP header that etcd's gateway takes a token from."""
    return {"Authorization": token} if token else {}
