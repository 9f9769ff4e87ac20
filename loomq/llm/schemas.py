"""A contract in the part of JSON Schema that providers take for structured output."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 32

_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
_PLAIN = {"string", "integer", "number", "boolean", "null"}
_KEPT = ("title", "description")
_OF_OBJECTS = {"properties", "required", "additionalProperties"}
# What only narrows: left out, it stays the contract's business.
_DROPPED = {
    "$schema", "$id", "$comment", "default", "examples", "deprecated", "readOnly", "writeOnly", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern", "minItems", "maxItems",
    "uniqueItems", "minProperties", "maxProperties", "format", "contains", "minContains", "maxContains",
}  # fmt: skip


class _CannotSayError(Exception):
    """The schema means something that the part which providers take has no words for."""


def closed(schema: dict[str, Any]) -> dict[str, Any] | None:
    """Write a schema so that every object is closed and nothing but the common keywords is left.

    It may allow less than the contract (no additional properties) or more (no ranges, no lengths); the contract is
    checked all the same. ``None`` if the schema cannot be written so: an object of any keys, say.
    """
    try:
        return _closed(schema, 0)
    except _CannotSayError:
        return None


def is_strict(schema: Any) -> bool:
    """Say whether a closed schema requires every property of each object, as OpenAI's strict form wants it."""
    if isinstance(schema, list):
        return all(is_strict(one) for one in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict) and set(schema.get("required", ())) != properties.keys():
        return False
    return all(is_strict(one) for one in schema.values())


def _closed(schema: Any, depth: int) -> dict[str, Any]:
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        raise _CannotSayError
    found: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    rest = schema.keys() - set(_KEPT) - _DROPPED
    if definitions := schema.get("$defs"):
        found["$defs"] = {name: _closed(one, depth + 1) for name, one in definitions.items()}
    if "$ref" in schema:
        _only(rest, {"$ref", "$defs"})
        return {**found, "$ref": schema["$ref"]}
    for key in ("anyOf", "oneOf"):
        if key in schema:
            _only(rest, {key, "$defs", "type"})
            return {**found, "anyOf": [_closed(one, depth + 1) for one in schema[key]]}
    if "const" in schema or "enum" in schema:
        key = "const" if "const" in schema else "enum"
        _only(rest, {key, "type", "$defs"})
        return {**found, key: schema[key]}
    kind = schema.get("type")
    if isinstance(kind, list):
        bare = {key: value for key, value in schema.items() if key not in {*_KEPT, "$defs"}}
        return {**found, "anyOf": [_closed(_only_for(bare, one), depth + 1) for one in kind]}
    return {**found, "type": kind, **_of_kind(schema, kind, rest - {"$defs", "type"}, depth)}


def _of_kind(schema: dict[str, Any], kind: Any, rest: set[str], depth: int) -> dict[str, Any]:
    if kind == "object":
        properties = schema.get("properties")
        if not properties:
            raise _CannotSayError
        _only(rest, _OF_OBJECTS)
        if isinstance(schema.get("additionalProperties"), dict):
            raise _CannotSayError
        known = [name for name in schema.get("required", ()) if name in properties]
        return {
            "properties": {name: _closed(one, depth + 1) for name, one in properties.items()},
            "required": known,
            "additionalProperties": False,
        }
    if kind == "array":
        _only(rest, {"items"})
        return {"items": _closed(schema.get("items"), depth + 1)}
    _only(rest, set())
    if kind not in _PLAIN:
        raise _CannotSayError
    return {"format": schema["format"]} if kind == "string" and schema.get("format") in _FORMATS else {}


def _only_for(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    """Give what a schema of several types says of one of them."""
    others = {"object": {"items"}, "array": _OF_OBJECTS}.get(kind, {"items", *_OF_OBJECTS})
    return {**{key: value for key, value in schema.items() if key not in others}, "type": kind}


def _only(rest: set[str], allowed: set[str]) -> None:
    if rest - allowed:
        raise _CannotSayError
