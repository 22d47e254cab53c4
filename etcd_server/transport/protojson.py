"""Protobuf messages as JSON, in the dialect of etcd's gateway, and the JSON of its clients as messages.

Written: field names as in the .proto files, 64-bit integers as strings, bytes as base64, enums by name,
fields with their zero value left out. Read: the same, and what clients of grpc-gateway have come to send
(its JSONPb marshaller in etcd <= 3.5, protojson since 3.6): lowerCamel names, integers as numbers, base64
in the URL alphabet or without padding, enums by number, null for an absent field, fields that nobody knows.
Of a field named twice, and of two fields of one oneof, the last counts.

protobuf's own json_format is not used because it takes more than etcd does and so loses data in silence: it
drops what is not base64 from a bytes field and, once unknown fields are to be ignored, a misspelt enum name.
"""

import binascii
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Never, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from etcd_server.api.methods import GATEWAY_PATHS

M = TypeVar("M", bound=Message)

MAX_DEPTH = 100
"""Messages within messages; protobuf's own limit."""


class WrongJson(ValueError):
    """JSON that is not the message asked for. Its text is one line: where, what was expected, what came."""


def parse(kind: type[M], value: object) -> M:
    """The message that a JSON value stands for; null is the empty message. Raises WrongJson."""
    message = kind()
    if value is not None:
        _fill(message, value, "", MAX_DEPTH)
    return message


def to_object(message: Message) -> dict[str, object]:
    """What a message looks like to `dump`, its fields in the order of their numbers."""
    written: dict[str, object] = {}
    for field in _WRITTEN[message.DESCRIPTOR.full_name]:
        name = field.name
        if field.has_presence:
            if message.HasField(name):
                written[name] = field.write(getattr(message, name))
        elif value := getattr(message, name):
            written[name] = [field.write(item) for item in value] if field.is_repeated else field.write(value)
    return written


def values(text: bytes) -> Iterator[object]:
    """The JSON values that follow each other in `text`, with or without space between them.

    Raises WrongJson when it comes to something that is not JSON.
    """
    try:
        body = text.decode()
    except UnicodeDecodeError as error:
        raise WrongJson(f"byte {error.start} is not UTF-8") from None
    position = _after_space(body, 0)
    while position < len(body):
        try:
            value, position = _DECODER.raw_decode(body, position)
        except json.JSONDecodeError as error:
            raise WrongJson(f"not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
        except RecursionError:
            raise WrongJson("nested too deeply") from None
        except WrongJson:
            raise
        except ValueError:  # an integer of more digits than the interpreter converts
            raise WrongJson("a number has too many digits") from None
        yield value
        position = _after_space(body, position)


def dump(value: object) -> bytes:
    """JSON without spaces, as etcd writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


# --- reading ------------------------------------------------------------------------------------------------

_SPACE = re.compile(r"[ \t\r\n]*")
_INTEGER = re.compile(r"\s*(-?[0-9]{1,20})\s*", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_TO_STANDARD_ALPHABET = str.maketrans("-_", "+/", "\r\n")


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None  # it matches the empty string
    return match.end()


def _refuse_constant(word: str) -> Never:
    raise WrongJson(f"{word} is no JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _fill(message: Message, value: object, where: str, depth: int) -> None:
    if not isinstance(value, dict):
        raise _expected(where, "an object", value)
    if depth == 0:
        raise WrongJson("nested too deeply")
    fields = _READ[message.DESCRIPTOR.full_name]
    for key, item in value.items():
        field = fields.get(key)
        if field is None or item is None:
            continue
        path = f"{where}.{key}" if where else key
        if field.is_repeated:
            if not isinstance(item, list):
                raise _expected(path, "an array", item)
            target = getattr(message, field.name)
            for number, element in enumerate(item):
                here = f"{path}[{number}]"
                if field.read is None:
                    _fill(target.add(), element, here, depth - 1)
                else:
                    target.append(field.read(element, here))
        elif field.read is None:
            target = getattr(message, field.name)
            target.SetInParent()
            _fill(target, item, path, depth - 1)
        else:
            setattr(message, field.name, field.read(item, path))


_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}


def _expected(where: str, what: str, value: object) -> WrongJson:
    got = "null" if value is None else _KINDS.get(type(value), "an object")
    return WrongJson(f"{where + ': ' if where else ''}expected {what}, got {got}")


def _read_integer(low: int, high: int) -> Callable[[object, str], int]:
    def read(value: object, where: str) -> int:
        if isinstance(value, str):
            match = _INTEGER.fullmatch(value)
            if match is None:
                raise WrongJson(f"{where}: expected an integer, got {value[:40]!r}")
            number = int(match[1])
        elif isinstance(value, float):
            if not value.is_integer():
                raise WrongJson(f"{where}: expected an integer, got {value}")
            number = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        else:
            raise _expected(where, "an integer", value)
        if not low <= number <= high:
            raise WrongJson(f"{where}: expected an integer from {low} to {high}, got {str(number)[:40]}")
        return number

    return read


def _read_bool(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _expected(where, "true or false", value)
    return value


def _read_string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _expected(where, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WrongJson(f"{where}: half of a surrogate pair stands alone") from None
    return value


def _read_bytes(value: object, where: str) -> bytes:
    if not isinstance(value, str):
        raise _expected(where, "a base64 string", value)
    text = value.translate(_TO_STANDARD_ALPHABET)
    if not text.endswith("="):
        text += "=" * (-len(text) % 4)
    try:
        if _BASE64.fullmatch(text) is None:
            raise binascii.Error
        return b64decode(text)
    except binascii.Error:
        raise WrongJson(f"{where}: expected a base64 string, got {value[:40]!r}") from None


def _read_enum(numbers: Mapping[str, int]) -> Callable[[object, str], int]:
    read_number = _read_integer(-(2**31), 2**31 - 1)

    def read(value: object, where: str) -> int:
        if not isinstance(value, str):
            return read_number(value, where)
        if value not in numbers:
            raise WrongJson(f"{where}: expected one of {', '.join(numbers)}, got {value[:40]!r}")
        return numbers[value]

    return read


# --- writing ------------------------------------------------------------------------------------------------


def _write_bytes(value: bytes) -> str:
    return b64encode(value).decode("ascii")


def _write_enum(names: Mapping[int, str]) -> Callable[[int], object]:
    return lambda number: names.get(number, number)


def _as_it_is(value: object) -> object:
    return value


# --- what a field is to JSON ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field is read and written. `read` is None for a message, which is filled where it stands."""

    name: str
    is_repeated: bool
    has_presence: bool
    read: Callable[[object, str], object] | None
    write: Callable[[Any], object]


_SCALARS: Mapping[int, tuple[Callable[[object, str], object], Callable[[Any], object]]] = MappingProxyType(
    {
        FieldDescriptor.TYPE_INT64: (_read_integer(-(2**63), 2**63 - 1), str),
        FieldDescriptor.TYPE_UINT64: (_read_integer(0, 2**64 - 1), str),
        FieldDescriptor.TYPE_UINT32: (_read_integer(0, 2**32 - 1), _as_it_is),
        FieldDescriptor.TYPE_BOOL: (_read_bool, _as_it_is),
        FieldDescriptor.TYPE_STRING: (_read_string, _as_it_is),
        FieldDescriptor.TYPE_BYTES: (_read_bytes, _write_bytes),
    }
)


def _field(descriptor: FieldDescriptor) -> _Field:
    read: Callable[[object, str], object] | None
    write: Callable[[Any], object]
    if descriptor.message_type is not None:
        read, write = None, to_object
    elif descriptor.enum_type is not None:
        numbers = {value.name: value.number for value in descriptor.enum_type.values}
        read, write = _read_enum(numbers), _write_enum({number: name for name, number in numbers.items()})
    else:
        read, write = _SCALARS[descriptor.type]
    return _Field(descriptor.name, descriptor.is_repeated, descriptor.has_presence, read, write)


def _tables() -> tuple[Mapping[str, Mapping[str, _Field]], Mapping[str, tuple[_Field, ...]]]:
    """For each message that the gateway carries: its fields by each name JSON may give them, and in order."""
    read: dict[str, dict[str, _Field]] = {}
    written: dict[str, tuple[_Field, ...]] = {}
    kinds = [kind for rpc in GATEWAY_PATHS.values() for kind in (rpc.request, rpc.response)]
    # The type stubs know descriptors as two classes; at run time there is one.
    waiting = [cast(Descriptor, kind.DESCRIPTOR) for kind in kinds]
    while waiting:
        message = waiting.pop()
        if message.full_name in written:
            continue
        fields = {field.number: _field(field) for field in message.fields}
        written[message.full_name] = tuple(fields[number] for number in sorted(fields))
        read[message.full_name] = {
            name: fields[field.number] for field in message.fields for name in (field.name, field.json_name)
        }
        waiting.extend(field.message_type for field in message.fields if field.message_type is not None)
    return MappingProxyType(read), MappingProxyType(written)


_READ, _WRITTEN = _tables()
