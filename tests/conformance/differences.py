"""Where servers that speak one protocol answer differently: every known case, in a table, with the reason.

BETWEEN_ETCDS lists how etcd 3.4.23 and etcd 3.5.1 differ, and which of them etcd-py follows. OURS lists where
etcd-py answers unlike the etcd that it follows, on purpose. A difference that is in neither table fails a
test, and so does an entry that no longer describes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.conformance.target import Exchange


@dataclass(frozen=True, slots=True)
class Difference:
    """Exchanges of the cases whose name starts with `case` and whose request starts with `request`.

    `follows`: the version of etcd that etcd-py answers like; "" for an answer of its own.
    """

    case: str
    request: str
    follows: str
    why: str

    def covers(self, case: str, exchange: Exchange) -> bool:
        return case.startswith(self.case) and exchange.request.startswith(self.request)


BETWEEN_ETCDS: tuple[Difference, ...] = (
    Difference(
        case="rest_",
        request="Maintenance/Alarm",
        follows="3.5",
        why="3.4 leaves the header of AlarmResponse out (and keeps an alarm of kind NONE, which 3.5 ignores)",
    ),
    Difference(
        case="gateway_maintenance",
        request="POST /v3/maintenance/alarm",
        follows="3.5",
        why="3.4 leaves the header of AlarmResponse out",
    ),
    Difference(
        case="gateway_",
        request="POST /v3/lease/grant",
        follows="3.5",
        why="a failed precondition is HTTP status 412 in 3.4 and 400 since 3.5",
    ),
    Difference(
        case="gateway_pages",
        request="GET /health",
        follows="3.5",
        why="3.4 does not give a reason",
    ),
)

OURS: tuple[Difference, ...] = (
    Difference(
        case="watch_negative_start",
        request="Watch/Watch receive",
        follows="3.7",
        why="a negative start revision is refused when the watch is made, not when the next event comes",
    ),
    Difference(
        case="watch_deletion_at_the_compacted_revision",
        request="Watch/Watch receive",
        follows="3.6",
        why="a deletion at the compacted revision itself is still delivered (etcd issue 18089)",
    ),
    Difference(
        case="gateway_odd_json",
        request='POST /v3/kv/range {"key":"YQ"}',
        follows="3.6",
        why="base64 without its padding is read, as by the second grpc-gateway",
    ),
    Difference(
        case="gateway_odd_json",
        request='POST /v3/kv/range {"key":"_w=="}',
        follows="3.6",
        why="base64 with the URL alphabet is read, as by the second grpc-gateway",
    ),
    Difference(
        case="gateway_pages",
        request="GET /version",
        follows="",
        why="the storage version is told as since 3.6, and etcd-py's own version beside it",
    ),
    Difference(
        case="gateway_pages",
        request="POST /",
        follows="",
        why="the pages answer HEAD as well as GET, and the Allow header says so",
    ),
)


def find(table: Sequence[Difference], case: str, exchange: Exchange) -> Difference | None:
    """The entry of `table` that covers an exchange."""
    return next((entry for entry in table if entry.covers(case, exchange)), None)


TXN_ERRORS = frozenset(
    {
        "INVALID_ARGUMENT: etcdserver: key not found",
        "NOT_FOUND: etcdserver: requested lease not found",
        "OUT_OF_RANGE: etcdserver: mvcc: required revision has been compacted",
        "OUT_OF_RANGE: etcdserver: mvcc: required revision is a future revision",
    }
)


def tell_another_error(one: Exchange, other: Exchange) -> bool:
    """A txn has several errors, and each server tells another of them: up to 3.5 etcd checks all puts before
    all ranges, since 3.6 it goes through the txn in order, as etcd-py does."""
    return "KV/Txn" in one.request and {one.answer, other.answer} <= TXN_ERRORS


def unexplained(
    table: Sequence[Difference], case: str, left: list[Exchange], right: list[Exchange]
) -> list[str]:
    """The exchanges in which two transcripts differ without an entry in `table`, as text to read."""
    found = []
    for step in range(max(len(left), len(right))):
        one = left[step] if step < len(left) else Exchange("(no such step)", "")
        other = right[step] if step < len(right) else Exchange("(no such step)", "")
        if one == other or find(table, case, one) or find(table, case, other):
            continue
        if one.request == other.request and tell_another_error(one, other):
            continue
        requests = one.request if one.request == other.request else f"{one.request}\n   or {other.request}"
        found.append(f"step {step}: {requests}\n  expected {one.answer}\n  got      {other.answer}")
    return found


def expected_of_ours(case: str, of_3_4: list[Exchange], of_3_5: list[Exchange]) -> list[Exchange]:
    """What etcd-py is to answer: like both etcds, or like the one that the table says it follows."""
    expected = list(of_3_5)
    for step, exchange in enumerate(of_3_5):
        entry = find(BETWEEN_ETCDS, case, exchange)
        if entry is not None and entry.follows == "3.4" and step < len(of_3_4):
            expected[step] = of_3_4[step]
    return expected
