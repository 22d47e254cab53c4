"""JSON Schemas for the values of a prefix, checked before anything is rendered.

The value of the key ``/_schemas/app/ports`` (below the agent's ``schema.prefix``) is a JSON Schema for the
values of ``/app/ports`` and of every key below it; of several the one with the longest prefix counts. A
value is taken as JSON if it is JSON and otherwise as a string; one that is JSON may also match as the string
that it is, so ``{"type": "string"}`` takes ``8080`` too. Messages name key and schema, never the value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema
from jsonschema.protocols import Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from etcd_agent.errors import SchemaError
from etcd_agent.values import Entry, Snapshot


def schemas_of(prefix: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The schemas among the keys below ``prefix``, by what they describe ("" is everything)."""
    return {key[len(prefix) :]: entry for key, entry in entries.items() if key.startswith(f"{prefix}/")}


def check(snapshot: Snapshot) -> None:
    """Raises SchemaError for the first key (sorted) whose value does not match its schema."""
    if not snapshot.schemas:
        return
    for key, entry in sorted(snapshot.entries.items()):
        prefix = _nearest(key, snapshot.schemas)
        if prefix is not None:
            _check_value(key, entry.value, prefix, snapshot.schemas[prefix].value)


def _nearest(key: str, schemas: Mapping[str, Entry]) -> str | None:
    while key:
        if key in schemas:
            return key
        key = key.rpartition("/")[0]
    return None


def _check_value(key: str, value: bytes, prefix: str, schema: bytes) -> None:
    validator = _validator(prefix, schema)
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SchemaError(f"the value of {key} is not UTF-8 (byte {error.start})") from error
    try:
        document = json.loads(text)
    except ValueError:
        document = text
    try:
        if validator.is_valid(text):
            return
        problem = jsonschema.exceptions.best_match(validator.iter_errors(document))
    except Unresolvable as error:
        raise SchemaError(f"the schema of {prefix} refers to {error.ref!r}, which is not in it") from error
    if problem is not None:
        raise SchemaError(f"the value of {key} does not match the schema of {prefix}: {_reason(problem)}")


def _reason(problem: jsonschema.ValidationError) -> str:
    """What was expected where. The library's own message quotes the value."""
    where = problem.json_path.removeprefix("$").lstrip(".")
    wanted = json.dumps(problem.validator_value)
    shown = wanted if len(wanted) <= 60 else f"{wanted[:57]}..."
    return f"{where + ': ' if where else ''}expected {problem.validator} {shown}"


@lru_cache(maxsize=256)
def _validator(prefix: str, schema: bytes) -> Validator:
    try:
        document: Any = json.loads(schema)
        kind = jsonschema.validators.validator_for(document, default=jsonschema.Draft202012Validator)
        kind.check_schema(document)
    except ValueError as error:
        raise SchemaError(f"the schema of {prefix} is not JSON: {error}") from error
    except jsonschema.SchemaError as error:
        raise SchemaError(f"the schema of {prefix} is no JSON Schema: {error.message}") from error
    # With a registry of its own, the library fetches nothing from anywhere.
    return kind(document, registry=Registry())
