"""Cases made from the whole field space of the requests, by a seed.

Every field of a request may be set, nested messages included, to values drawn from small pools: small, so
that requests meet each other's keys, revisions and leases, and with the odd values (0, negative, from the
future) in them. Enums stay inside their range here: what is outside is tested by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from etcd_server.api.proto import rpc_pb2
from tests.conformance.target import Target, rpc_named

KEYS = (*(b"a", b"b", b"c", b"aa", b"ab", b"abc", b"d") * 6, b"b\0", b"\0", b"\xff", b"")
RANGE_ENDS = (b"", b"", b"b", b"c", b"b\0", b"\0", b"a", b"\xff\xff", b"ac")
VALUES = (b"", b"1", b"2", b"same", b"same", b"\0\xff", b"long" * 200)
LEASES = (0, 0, 7, 8, 9, -1)
TTLS = (60, 100, 1000, 9_000_000_001)
LIMITS = (0, 1, 2, 3, 100, -1)
# How probable it is that a field is set; the fields not named here: half of the time.
LIKELY = {
    "key": 0.99,
    "success": 0.9,
    "range_end": 0.4,
    "lease": 0.2,
    "limit": 0.3,
    "ID": 0.97,
    "TTL": 0.97,
    "ignore_value": 0.05,
    "ignore_lease": 0.05,
}
UNLIKELY = 0.15
_RARE = frozenset(
    {
        "revision",
        "min_mod_revision",
        "max_mod_revision",
        "min_create_revision",
        "max_create_revision",
        "count_only",
        "serializable",
        "physical",
    }
)
METHODS = (
    ("KV/Put", 30),
    ("KV/Range", 30),
    ("KV/Txn", 22),
    ("KV/DeleteRange", 8),
    ("KV/Compact", 2),
    ("Lease/LeaseGrant", 4),
    ("Lease/LeaseRevoke", 1),
    ("Lease/LeaseTimeToLive", 3),
)
DEEPEST = 2


class Generator:
    """Draws requests; revisions are around those that the case has seen."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.base = 0
        self.current = 0

    def request(self) -> tuple[str, Message]:
        """A method and a request for it."""
        names, weights = zip(*METHODS, strict=True)
        method = self._random.choices(names, weights)[0]
        return method, self.message(rpc_named(method).request, DEEPEST)

    def message(self, kind: type[Message], depth: int) -> Any:
        """A message of `kind` with some of its fields set; at most `depth` messages inside each other."""
        made = kind()
        fields: list[Any] = list(made.DESCRIPTOR.fields)
        for group in made.DESCRIPTOR.oneofs:
            left_empty = self._random.random() < 0.02
            chosen: Any = None if left_empty else self._random.choice(list(group.fields))
            if chosen is not None and chosen.name == "request_txn" and depth == 0:
                chosen = made.DESCRIPTOR.fields_by_name["request_range"]
            fields = [field for field in fields if field.containing_oneof is not group or field is chosen]
        for field in fields:
            probability = LIKELY.get(field.name, UNLIKELY if field.name in _RARE else 0.5)
            if field.containing_oneof is not None or self._random.random() < probability:
                self._set(made, field, depth)
        return made

    def _set(self, made: Any, field: FieldDescriptor, depth: int) -> None:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            assert field.message_type is not None
            kind = getattr(rpc_pb2, field.message_type.name)
            if field.is_repeated:
                count = self._random.randint(1, 3)
                getattr(made, field.name).extend(self.message(kind, depth - 1) for _ in range(count))
            else:
                getattr(made, field.name).CopyFrom(self.message(kind, depth - 1))
        else:
            setattr(made, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> Any:
        random = self._random
        if field.type == FieldDescriptor.TYPE_ENUM:
            assert field.enum_type is not None
            return random.choice([value.number for value in field.enum_type.values])
        if field.type == FieldDescriptor.TYPE_BOOL:
            return True
        if field.name.endswith("revision"):
            return self._revision()
        pools: dict[str, tuple[Any, ...]] = {
            "key": KEYS,
            "range_end": RANGE_ENDS,
            "value": VALUES,
            "lease": LEASES,
            "ID": LEASES[2:5],
            "TTL": TTLS,
            "limit": LIMITS,
            "version": (0, 1, 2, 3),
        }
        return random.choice(pools[field.name])

    def _revision(self) -> int:
        random = self._random
        near = random.randint(self.base, self.current + 1)
        return random.choice((near, near, near, self.current, self.current, 0, -1, self.base - 1))


def generated_case(seed: int, count: int) -> Callable[[Target], None]:
    """A case of `count` generated requests that ends with everything that watchers would have seen."""

    def run(t: Target) -> None:
        generator = Generator(seed)
        generator.base = generator.current = t.base
        for _ in range(count):
            answer = t.call(*generator.request())
            if answer is not None:
                generator.current = max(generator.current, answer.header.revision)
        t.range(b"\0", b"\0")
        t.leases()
        t.events_since(max(t.rev(1), generator.current - 3))

    return run
