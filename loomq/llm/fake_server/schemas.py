"""Which JSON Schemas the providers take for structured output, and how they say that they don't."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.contracts import schema_faults
from loomq.problems import dotted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ANYWHERE = {"$defs", "type", "anyOf", "allOf", "enum", "const", "title", "description"}
OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems"},
    "string": {"format"},
}
FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid",
}  # fmt: skip
NOT_STRICT = {
    "allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "default", "minLength",
    "maxLength", "patternProperties", "propertyNames", "contains", "uniqueItems",
}  # fmt: skip


def schema_fault(schema: Any) -> str | None:
    """Say why something is no JSON Schema; which draft it names is not looked at."""
    if not isinstance(schema, dict):
        return "Input should be a valid dictionary"
    faults = schema_faults({key: value for key, value in schema.items() if key != "$schema"})
    return f"{dotted(faults[0][0]) or 'schema'}: {faults[0][1]}" if faults else None


def anthropic_fault(schema: Any) -> str | None:
    """Say what Anthropic does not take in a schema; that is what the transformer of its own client would take out.

    https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations
    """
    if fault := schema_fault(schema):
        return fault
    for path, one in _walk(schema, ()):
        for fault in _anthropic_faults(one, schema):
            return f"{'.'.join(path)}: {fault}" if path else fault
    return "Recursive schemas are not supported" if _is_recursive(schema, schema, ()) else None


def _anthropic_faults(schema: Any, root: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(schema, dict):
        yield "Schema should be an object"
    elif "$ref" in schema:
        if _referred(root, schema["$ref"]) is None:
            yield f"Unsupported or unknown $ref: {schema['$ref']}"
        yield from (f"Property '{key}' is not supported beside '$ref'" for key in schema.keys() - {"$ref", "$defs"})
    else:
        yield from _faults_of_keywords(schema)


def _faults_of_keywords(schema: Mapping[str, Any]) -> Iterator[str]:
    types = _types(schema)
    if not types and not schema.keys() & {"anyOf", "allOf", "enum", "const"}:
        yield "Schema must have a 'type', 'anyOf', 'allOf', 'enum' or 'const' field"
    if any(isinstance(value, dict | list) for value in [*schema.get("enum", []), schema.get("const")]):
        yield "Only strings, numbers, booleans and null are supported in 'enum' and 'const'"
    if "object" in types and schema.get("additionalProperties") is not False:
        yield "For 'object' type, 'additionalProperties' must be explicitly set to false"
    for key in sorted(schema.keys() - ANYWHERE.union(*(OF_TYPE.get(one, set()) for one in types))):
        yield f"For '{types[0] if types else 'any'}' type, property '{key}' is not supported"
    if schema.get("format", "uuid") not in FORMATS:
        yield f"For 'string' type, format '{schema['format']}' is not supported"
    if schema.get("minItems", 0) not in (0, 1):
        yield "For 'array' type, 'minItems' values other than 0 or 1 are not supported"


def strict_fault(schema: Any) -> str | None:
    """Say what OpenAI does not take in a schema that is strict.

    https://developers.openai.com/api/docs/guides/structured-outputs#supported-schemas
    """
    if fault := plain_fault(schema):
        return fault
    for path, one in _walk(schema, ()):
        where = "In context=" + repr(tuple(path))
        if not isinstance(one, dict):
            return f"{where}, {one!r} is not of type 'object', 'boolean'."
        if banned := sorted(one.keys() & NOT_STRICT):
            return f"{where}, '{banned[0]}' is not permitted."
        if "object" not in _types(one):
            continue
        if one.get("additionalProperties") is not False:
            return f"{where}, 'additionalProperties' is required to be supplied and to be false."
        if missing := sorted(one.get("properties", {}).keys() - set(one.get("required", []))):
            return (
                f"{where}, 'required' is required to be supplied and to be an array including every key in "
                f"properties. Missing '{missing[0]}'."
            )
    return None


def plain_fault(schema: Any) -> str | None:
    """Say what OpenAI does not take in any schema: its root has to be an object."""
    if fault := schema_fault(schema):
        return fault
    said = schema.get("type")
    return None if said == "object" else f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{said}\"'."


def _walk(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give a schema and all in it, each with its path."""
    yield path, schema
    if not isinstance(schema, dict):
        return
    for key in ("properties", "$defs"):
        for name, inner in schema.get(key, {}).items():
            yield from _walk(inner, (*path, key, name))
    for key in ("anyOf", "allOf"):
        for number, inner in enumerate(schema.get(key, [])):
            yield from _walk(inner, (*path, key, str(number)))
    if "items" in schema:
        yield from _walk(schema["items"], (*path, "items"))


def _types(schema: Mapping[str, Any]) -> list[str]:
    said = schema.get("type", [])
    return said if isinstance(said, list) else [said]


def _referred(root: Mapping[str, Any], ref: Any) -> Any:
    """Find what a local reference means; ``None`` if it is none."""
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return None
    found: Any = root
    for part in ref[2:].split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _is_recursive(schema: Any, root: Mapping[str, Any], open_refs: tuple[str, ...]) -> bool:
    for path, one in _walk(schema, ()):
        ref = one.get("$ref") if isinstance(one, dict) else None
        if path[:1] == ("$defs",) or ref is None:  # a definition counts where it is used
            continue
        if ref in open_refs or _is_recursive(_referred(root, ref), root, (*open_refs, ref)):
            return True
    return False
