"""JSON of messages against protobuf's own json_format, on random messages of every type the gateway
carries."""

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_server.api.methods import GATEWAY_PATHS
from etcd_server.transport.protojson import dump, parse, to_object, values

KINDS = sorted(
    {kind for rpc in GATEWAY_PATHS.values() for kind in (rpc.request, rpc.response)},
    key=lambda kind: kind.DESCRIPTOR.full_name,
)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    3: st.integers(-(2**63), 2**63 - 1),
    4: st.integers(0, 2**64 - 1),
    8: st.booleans(),
    9: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    12: st.binary(max_size=8),
    13: st.integers(0, 2**32 - 1),
}


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], depth: int = 4) -> Message:
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        one: st.SearchStrategy[Any]
        if field.message_type is not None:
            if depth == 0:
                continue
            inner = type(getattr(message, field.name)) if not field.is_repeated else None
            inner = inner or type(getattr(kind(), field.name).add())
            one = messages(inner, depth - 1)
        elif field.enum_type is not None:
            one = st.sampled_from([value.number for value in field.enum_type.values] + [77])
        else:
            one = SCALARS[field.type]
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(one, max_size=3)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(one))
        else:
            setattr(message, field.name, draw(one))
    return message


ANY = st.sampled_from(KINDS).flatmap(messages)


@given(ANY)
@settings(max_examples=400, deadline=None)
def test_written_as_protobuf_writes_it(message: Message) -> None:
    expected = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert to_object(message) == expected


@given(ANY, st.booleans())
@settings(max_examples=400, deadline=None)
def test_read_as_protobuf_reads_it_whatever_the_style_of_names(message: Message, original: bool) -> None:
    text = json_format.MessageToJson(message, preserving_proto_field_name=original)
    (value,) = values(text.encode())
    assert parse(type(message), value) == message


@given(st.lists(ANY, max_size=4))
@settings(max_examples=100, deadline=None)
def test_messages_one_after_another(several: list[Message]) -> None:
    body = b"\n".join(dump(to_object(message)) for message in several)
    again = [parse(type(m), value) for m, value in zip(several, values(body), strict=True)]
    assert again == several


@given(ANY)
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_plain_json_without_spaces(message: Message) -> None:
    written = dump(to_object(message))
    assert json.dumps(json.loads(written), ensure_ascii=False, separators=(",", ":")).encode() == written
