"""Sessions of etcdctl 3.4, command by command, as an administrator would type them.

A command is a list of words; `Rev(n)` among them is the revision n after the beginning, `Lease(n)` the n-th
lease that the session granted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Rev:
    offset: int


@dataclass(frozen=True, slots=True)
class Lease:
    number: int


Word = str | Rev | Lease


class Console(Protocol):
    """Runs etcdctl and writes down what it printed."""

    def run(self, *words: Word, stdin: str = "") -> None:
        """Runs a command to its end."""
        ...

    def watch(self, *words: Word, lines: int, meanwhile: Callable[[], object] | None = None) -> None:
        """Runs `watch` until it has printed `lines` lines; `meanwhile` runs once it is watching."""
        ...


def put_and_get(c: Console) -> None:
    c.run("put", "a", "1")
    c.run("put", "a", "2", "--prev-kv")
    c.run("put", "b", stdin="from standard input")
    c.run("put", "--", "c", "-3")
    c.run("put", "d", "")
    c.run("put", "a", "--ignore-value")
    c.run("put", "none", "--ignore-value")
    c.run("put", "a", "3", "--ignore-lease")
    c.run("put", "")
    c.run("get", "a")
    c.run("get", "none")
    c.run("get", "")
    for form in ("simple", "json", "fields"):
        c.run("get", "a", "-w", form)
    c.run("get", "a", "--hex")
    c.run("get", "a", "--print-value-only")
    c.run("put", "a", "4", "-w", "json")
    c.run("put", "a", "5", "-w", "fields", "--prev-kv")


def get_options(c: Console) -> None:
    for key, value in (("c", "1"), ("a", "3"), ("b", "2"), ("ab", "4"), ("a", "33")):
        c.run("put", key, value)
    c.run("get", "a", "c")
    c.run("get", "a", "--prefix")
    c.run("get", "", "--prefix")
    c.run("get", "b", "--from-key")
    c.run("get", "", "--from-key", "--keys-only")
    c.run("get", "a", "--prefix", "--keys-only")
    c.run("get", "a", "--prefix", "--count-only", "--write-out=fields")
    c.run("get", "", "--prefix", "--limit=2")
    c.run("get", "", "--prefix", "--limit=2", "-w", "json")
    for target in ("CREATE", "KEY", "MODIFY", "VALUE", "VERSION"):
        for order in ("ASCEND", "DESCEND"):
            c.run("get", "a", "--prefix", "--sort-by", target, "--order", order, "--keys-only")
    c.run("get", "", "--prefix", "--sort-by", "VALUE")
    c.run("get", "a", "--rev", Rev(2))
    c.run("get", "a", "--rev", Rev(3))
    c.run("get", "", "--prefix", "--rev", Rev(4), "-w", "json")
    c.run("get", "a", "--rev", Rev(99))
    c.run("get", "a", "--consistency", "s")
    c.run("get", "a", "--consistency", "x")
    c.run("get", "a", "--order", "SIDEWAYS")
    c.run("get", "a", "b", "--prefix")


def delete(c: Console) -> None:
    for key in ("a", "aa", "b", "c", "d"):
        c.run("put", key, key * 2)
    c.run("del", "none")
    c.run("del", "a")
    c.run("del", "aa", "--prev-kv")
    c.run("del", "b", "d", "--prev-kv", "-w", "json")
    c.run("del", "d", "--from-key", "-w", "fields")
    c.run("del", "")
    c.run("put", "x1", "1")
    c.run("put", "x2", "2")
    c.run("del", "x", "--prefix")
    c.run("get", "", "--prefix")


def transactions(c: Console) -> None:
    c.run("put", "k", "v")
    c.run("txn", stdin='mod("k") > "0"\n\nput k w\nget k\n\nget none\n\n')
    c.run("txn", stdin='value("k") = "v"\n\nput k x\n\nget k\ndel k\n\n')
    c.run(
        "txn",
        stdin='create("new") = "0"\nver("new") = "0"\n\nput new 1\nput other 2\n\n\n\n',
    )
    c.run("txn", "-w", "json", stdin='ver("new") < "5"\n\nget new\ndel other --prev-kv\n\n\n\n')
    c.run("txn", "-w", "fields", stdin='mod("new") > "0"\n\nget n --prefix\n\n\n\n')
    c.run("txn", stdin='value("new") != "1"\n\n\n\nput new 2\nput new 3\n\n')
    c.run("txn", stdin="\n\n\n")
    c.run("txn", stdin="rubbish\n\n\n\n")


def watches(c: Console) -> None:
    c.run("put", "k", "1")
    c.run("put", "k", "2")
    c.run("put", "k2", "x")
    c.run("del", "k")
    c.watch("watch", "k", "--rev", Rev(1), lines=9)
    c.watch("watch", "k", "--rev", Rev(1), "--prev-kv", lines=13)
    c.watch("watch", "k", "--prefix", "--rev", Rev(2), "-w", "json", lines=1)
    c.watch("watch", "k", "k3", "--rev", Rev(3), "-w", "fields", lines=18)
    c.watch("watch", "fresh", lines=3, meanwhile=lambda: c.run("put", "fresh", "now"))
    c.watch("watch", "", "--prefix", "--prev-kv", lines=5, meanwhile=lambda: c.run("put", "fresh", "now"))
    c.run("compaction", Rev(4))
    c.run("watch", "k", "--rev", Rev(1))


def leases(c: Console) -> None:
    c.run("lease", "grant", "100")
    c.run("lease", "grant", "200", "-w", "json")
    c.run("lease", "grant", "9000000001")
    c.run("lease", "grant", "many")
    c.run("put", "k", "v", "--lease", Lease(1))
    c.run("get", "k", "-w", "json")
    c.run("lease", "timetolive", Lease(1))
    c.run("lease", "timetolive", Lease(1), "--keys", "-w", "json")
    c.run("put", "j", "v", "--lease", Lease(1))
    c.run("lease", "list")
    c.run("lease", "keep-alive", "--once", Lease(1))
    c.run("lease", "keep-alive", "--once", "77")
    c.run("lease", "revoke", Lease(1))
    c.run("lease", "revoke", Lease(1))
    c.run("lease", "timetolive", Lease(1))
    c.run("get", "", "--prefix")
    c.run("lease", "list")
    c.run("put", "k", "v", "--lease", "77")


def compaction(c: Console) -> None:
    for value in ("1", "2", "3", "4"):
        c.run("put", "k", value)
    c.run("compaction", Rev(2))
    c.run("compaction", Rev(2))
    c.run("compaction", Rev(99))
    c.run("get", "k", "--rev", Rev(1))
    c.run("get", "k", "--rev", Rev(2))
    c.run("compaction", Rev(4), "--physical")
    c.run("compaction", "many")
    c.run("compaction", Rev(3), "-w", "json")


def endpoints(c: Console) -> None:
    c.run("endpoint", "health")
    c.run("endpoint", "health", "-w", "json")
    c.run("endpoint", "health", "--cluster")
    for form in ("simple", "json", "fields", "table"):
        c.run("endpoint", "status", "-w", form)
    for form in ("simple", "json", "fields", "table"):
        c.run("member", "list", "-w", form)
    c.run("alarm", "list")
    c.run("alarm", "disarm")
    c.run("version")


CASES: dict[str, Callable[[Console], None]] = {
    f"etcdctl_{case.__name__}": case
    for case in (put_and_get, get_options, delete, transactions, watches, leases, compaction, endpoints)
}
