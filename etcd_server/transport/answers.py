"""A whole HTTP answer as a value, and the plain-text ones that etcd's pages share."""

from typing import NamedTuple

Headers = list[tuple[str, str]]


class HttpAnswer(NamedTuple):
    """What the wire is to answer an HTTP request with."""

    status: int
    headers: Headers
    body: bytes


def error_text(status: int, text: str, *headers: tuple[str, str]) -> HttpAnswer:
    """An error as Go's net/http words it: `text` and a line feed, which no browser may take for HTML."""
    kind = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
    return HttpAnswer(status, [*headers, *kind], f"{text}\n".encode())


def page_not_found() -> HttpAnswer:
    """The answer to a path that nobody serves."""
    return error_text(404, "404 page not found")
