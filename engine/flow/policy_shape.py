"""What pydantic checks a policy file against, and the JSON Schema for editors.

Importing pydantic costs a start more than loading all policies does, so this file is imported by who has to say what is
wrong with a file or prints the schema, and by nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Required

from pydantic import ConfigDict, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from engine.flow.policy_model import KEYS, NAME, ROW_KEYS, SOURCE_KEYS, Key, Kind


def shape_errors(data: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """pydantic's errors for the plain YAML of one file, all of them."""
    try:
        _shape().validate_python(data)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a policy file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_shape().json_schema()}


@cache
def _shape() -> TypeAdapter[Any]:
    fields = _tree([(key.path.split("."), key) for key in KEYS])
    fields["provider"] = Required[_value(NAME, "the provider's name")]
    fields["sources"] = list[_row("source", SOURCE_KEYS, ("for", "say"))] | None  # type: ignore[misc]
    fields["replies"] = list[_row("reply", ROW_KEYS, ("reason", "examples"))] | None  # type: ignore[misc]
    return TypeAdapter(_mapping("policy", fields))


def _tree(keys: Sequence[tuple[list[str], Key]]) -> dict[str, Any]:
    """The fields of one level: values, and what is nested in them. Any may be null."""
    fields: dict[str, Any] = {}
    for head in dict.fromkeys(path[0] for path, _ in keys):
        below = [(path[1:], key) for path, key in keys if path[0] == head]
        rest, key = below[0]
        fields[head] = _mapping(head, _tree(below)) | None if rest else _value_or_null(key.kind, key.meaning)
    return fields


def _row(name: str, kinds: Mapping[str, Kind], required: Sequence[str]) -> Any:
    fields = {key: _value(kind) for key, kind in kinds.items()}
    return _mapping(name, {key: Required[field] if key in required else field for key, field in fields.items()})


def _mapping(name: str, fields: Mapping[str, Any]) -> Any:
    typed: Any = TypedDict(name, fields, total=False)  # type: ignore[misc]
    return with_config(ConfigDict(extra="forbid", title=name))(typed)


def _value(kind: Kind, meaning: str = "") -> Any:
    return _annotated(kind.read, dict(kind.schema), meaning)


def _value_or_null(kind: Kind, meaning: str) -> Any:
    def read(given: Any) -> Any:
        return None if given is None else kind.read(given)

    return _annotated(read, {"anyOf": [dict(kind.schema), {"type": "null"}]}, meaning)


def _annotated(read: Callable[[Any], Any], schema: dict[str, Any], meaning: str) -> Any:
    return Annotated[Any, PlainValidator(read), WithJsonSchema(schema | ({"description": meaning} if meaning else {}))]
