"""The conditions of a transaction: what of a key is compared, and with what.

    from etcd_client import compare, ops

    client.txn(
        compare=[compare.mod_revision("k") == 7, compare.value("owner") == "me"],
        success=[ops.put("k", "new"), ops.get("other")],
        failure=[ops.get("k")],
    )

A comparison reads as it is written: `mod_revision`, `create_revision`, `version`, `value` and `lease` name
what is compared, and `== != < >` (etcd has no others) say how. With `range_end` every key of the
range must pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from etcd_client.types import BytesLike, Json, base64_text

# target name on the wire, and the field that carries the operand
_TARGETS = {
    "MOD": "mod_revision",
    "CREATE": "create_revision",
    "VERSION": "version",
    "LEASE": "lease",
    "VALUE": "value",
}


@dataclass(frozen=True, slots=True)
class Compare:
    """One comparison, as etcdserverpb.Compare in proto3 JSON."""

    body: Json


class Comparand:
    """One side of a comparison: something of a key. `==`, `!=`, `<` and `>` make the Compare."""

    __slots__ = ("_key", "_range_end", "_target")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, target: str, key: BytesLike, range_end: BytesLike | None) -> None:
        self._target = target
        self._key = key
        self._range_end = range_end

    def __eq__(self, other: object) -> Compare:  # type: ignore[override]
        return self._compare("EQUAL", other)

    def __ne__(self, other: object) -> Compare:  # type: ignore[override]
        return self._compare("NOT_EQUAL", other)

    def __lt__(self, other: object) -> Compare:
        return self._compare("LESS", other)

    def __gt__(self, other: object) -> Compare:
        return self._compare("GREATER", other)

    def _compare(self, result: str, other: object) -> Compare:
        if self._target == "VALUE":
            if not isinstance(other, bytes | str):
                raise TypeError(f"a value is compared with bytes or str, not {type(other).__name__}")
            operand = base64_text(other)
        elif isinstance(other, int) and not isinstance(other, bool):
            operand = str(other)
        else:
            name = _TARGETS[self._target]
            raise TypeError(f"{name} is compared with an int, not {type(other).__name__}")
        body: Json = {
            "result": result,
            "target": self._target,
            "key": base64_text(self._key),
            _TARGETS[self._target]: operand,
        }
        if self._range_end is not None:
            body["range_end"] = base64_text(self._range_end)
        return Compare(body)


def mod_revision(key: BytesLike, range_end: BytesLike | None = None) -> Comparand:
    """The revision of the key's last change; 0 when the key does not exist."""
    return Comparand("MOD", key, range_end)


def create_revision(key: BytesLike, range_end: BytesLike | None = None) -> Comparand:
    """The revision of the key's creation; 0 when the key does not exist."""
    return Comparand("CREATE", key, range_end)


def version(key: BytesLike, range_end: BytesLike | None = None) -> Comparand:
    """How often the key was put since its creation; 0 when the key does not exist."""
    return Comparand("VERSION", key, range_end)


def value(key: BytesLike, range_end: BytesLike | None = None) -> Comparand:
    """The key's value. Every comparison with the value of a key that does not exist is false."""
    return Comparand("VALUE", key, range_end)


def lease(key: BytesLike, range_end: BytesLike | None = None) -> Comparand:
    """The id of the lease the key is attached to; 0 when it has none or does not exist."""
    return Comparand("LEASE", key, range_end)


def exists(key: BytesLike) -> Compare:
    """The key exists."""
    return create_revision(key) > 0


def missing(key: BytesLike) -> Compare:
    """The key does not exist."""
    return create_revision(key) == 0
