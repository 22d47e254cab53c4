"""The pages for people and monitors: /health, /livez, /readyz, /version, /metrics. Pure: no I/O, no state.

A page may rest on reads that only the engine can make, so there are two steps: `checks_needed` says which,
the caller makes them and puts their results, with what the member knows of itself, into a `HealthSnapshot`,
and `answer` writes the page. Texts and statuses are etcd's (server/etcdserver/api/etcdhttp, v3.6 and v3.7;
/health recorded from 3.5.1). Two things are added: HEAD is answered like GET, since load balancers ask so,
and /version names this server.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from etcd_server.transport.answers import HttpAnswer, error_text, page_not_found
from etcd_server.transport.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from etcd_server.transport.protojson import dump


class Read(Enum):
    """A read of at most one key that shows whether the member can serve."""

    SERIALIZABLE = "serializable_read"
    LINEARIZABLE = "linearizable_read"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSnapshot:
    """What the health pages are written from.

    `alarms`: names of the raised alarms ("NOSPACE", "CORRUPT") in the order of the alarm list.
    `data_corruption`: the member knows its data to be damaged, whether or not the alarm has been raised
    yet. `serializable_read`, `linearizable_read`: None when it went well, or was not needed, or the text of
    its error.
    """

    has_leader: bool
    is_learner: bool
    alarms: tuple[str, ...] = ()
    data_corruption: bool = False
    serializable_read: str | None = None
    linearizable_read: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """What /version tells: the etcd release whose API is served, the cluster's version ("" until it is
    decided), the version of the stored format ("" when it has none), and the release of this server
    itself."""

    etcdserver: str
    etcdcluster: str
    storage: str
    etcdpy: str


class CheckResult(NamedTuple):
    """One check of a page; `error` is None when it passed. The metrics of health checks are made of these."""

    page: str
    name: str
    error: str | None


def serves(target: str) -> bool:
    """Whether a request for `target` is answered here."""
    path = _path(target)
    return path in ("/health", "/version", "/metrics") or _checks(path) is not None


def checks_needed(method: str, target: str) -> frozenset[Read]:
    """The reads whose results `answer` needs; none for a method or path that it refuses."""
    if method not in _METHODS:
        return frozenset()
    path, query = _path(target), _query(target)
    if path == "/health":
        return frozenset({_health_read(query)})
    names = _selected(path, query)
    return frozenset(read for read in Read if read.value in names)


def check_results(method: str, target: str, health: HealthSnapshot) -> list[CheckResult]:
    """The checks that the page of this request consists of, in its order; empty when it has none."""
    if method not in _METHODS:
        return []
    path, query = _path(target), _query(target)
    if path == "/health":
        return [CheckResult("health", "", _health_problem(query, health))]
    page = path.split("/")[1]
    return [CheckResult(page, name, _CHECKS[name](health)) for name in _selected(path, query)]


def answer(
    method: str, target: str, health: HealthSnapshot, versions: Versions, metrics: Callable[[], bytes]
) -> HttpAnswer:
    """The page for a request. `metrics` renders /metrics and is called only for that."""
    if not serves(target):
        return page_not_found()
    path = _path(target)
    if path == "/metrics":  # any method, as in etcd
        return HttpAnswer(200, [("Content-Type", METRICS_CONTENT_TYPE)], metrics())
    if method not in _METHODS:
        return error_text(405, "Method Not Allowed", ("Allow", ", ".join(_METHODS)))
    if path == "/version":
        return _version(versions)
    if path == "/health":
        return _health(_health_problem(_query(target), health))
    return _listed_checks(check_results(method, target, health), verbose="verbose" in _query(target))


_METHODS = ("GET", "HEAD")
Query = dict[str, list[str]]


def _path(target: str) -> str:
    return unquote(target.partition("?")[0])


def _query(target: str) -> Query:
    return parse_qs(target.partition("?")[2], keep_blank_values=True)


# --- /version ---------------------------------------------------------------------------------------------


def _version(versions: Versions) -> HttpAnswer:
    told = {
        "etcdserver": versions.etcdserver,
        "etcdcluster": versions.etcdcluster or "not_decided",
        "storage": versions.storage or "unknown",
        "etcdpy": versions.etcdpy,
    }
    return HttpAnswer(200, [("Content-Type", "application/json")], dump(told))


# --- /health ----------------------------------------------------------------------------------------------


def _health_read(query: Query) -> Read:
    return Read.SERIALIZABLE if query.get("serializable", [""])[0] == "true" else Read.LINEARIZABLE


def _health_problem(query: Query, health: HealthSnapshot) -> str | None:
    """The first problem in etcd's order: alarms that are not excluded, then the leader, then a read."""
    excluded = query.get("exclude", [])
    for alarm in health.alarms:
        if alarm not in excluded:
            return f"ALARM {alarm}"
    read = _health_read(query)
    if read is Read.LINEARIZABLE and not health.has_leader:
        return "RAFT NO LEADER"
    error = health.serializable_read if read is Read.SERIALIZABLE else health.linearizable_read
    return None if error is None else f"RANGE ERROR:{error}"


def _health(problem: str | None) -> HttpAnswer:
    if problem is None:
        body = dump({"health": "true", "reason": ""})
        return HttpAnswer(200, [("Content-Type", "text/plain; charset=utf-8")], body)
    return error_text(503, dump({"health": "false", "reason": problem}).decode())


# --- /livez, /readyz --------------------------------------------------------------------------------------


def _check_corruption(health: HealthSnapshot) -> str | None:
    return "alarm activated: CORRUPT" if health.data_corruption or "CORRUPT" in health.alarms else None


def _check_learner(health: HealthSnapshot) -> str | None:
    return "not supported for learner" if health.is_learner else None


_CHECKS: dict[str, Callable[[HealthSnapshot], str | None]] = {
    "data_corruption": _check_corruption,
    "serializable_read": lambda health: health.serializable_read,
    "linearizable_read": lambda health: health.linearizable_read,
    "non_learner": _check_learner,
}
_PAGES: dict[str, tuple[str, ...]] = {
    "/livez": ("serializable_read",),
    "/readyz": ("data_corruption", "serializable_read", "linearizable_read", "non_learner"),
}


def _checks(path: str) -> tuple[str, ...] | None:
    """The checks of a page, or the one check of a page below it; None when there is no such page."""
    if path in _PAGES:
        return _PAGES[path]
    page, _, name = path.rpartition("/")
    return (name,) if name in _PAGES.get(page, ()) else None


def _selected(path: str, query: Query) -> tuple[str, ...]:
    names = _checks(path) or ()
    excluded = query.get("exclude", []) if path in _PAGES else []
    return tuple(name for name in names if name not in excluded)


def _lines(results: list[CheckResult]) -> Iterator[str]:
    for _, name, error in results:
        yield f"[+]{name} ok\n" if error is None else f"[-]{name} failed: {error}\n"


def _listed_checks(results: list[CheckResult], *, verbose: bool) -> HttpAnswer:
    listed = "".join(_lines(results))
    if any(result.error is not None for result in results):
        return error_text(503, listed)
    kind = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
    return HttpAnswer(200, kind, f"{listed if verbose else ''}ok\n".encode())
