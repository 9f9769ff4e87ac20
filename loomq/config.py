"""YAML in, a frozen spec or a list of problems out: the only door for files that people write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from loomq.problems import EXPLANATIONS, Problem, dotted, listed, suggest
from loomq.yaml_text import Document, KeyPath, parse_document, read_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = [
    "EXPLANATIONS",
    "ConcurrencyKey",
    "Count",
    "Document",
    "DottedName",
    "Flag",
    "JsonSchema",
    "KeyPath",
    "Name",
    "NotYet",
    "Number",
    "Problem",
    "Rate",
    "Seconds",
    "Size",
    "Spec",
    "Text",
    "contradiction",
    "dotted",
    "listed",
    "load_spec",
    "not_yet",
    "parse_document",
    "publish_x_keys",
    "read_document",
    "read_spec",
    "refuse_no_rate",
    "suggest",
]

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
DOTTED_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+$"
RATE_PATTERN = r"^[0-9]+(\.[0-9]+)?(/[smh])?$"
HIGHEST_RATE = 1_000_000  # a second
KEY_PATTERN = r"^(payload(\.[A-Za-z0-9_-]+)+|[a-z][a-z0-9_-]*)$"

# Numbers and flags are strict: YAML has types, and `true` is no number and "60" is no duration.
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=100)]
DottedName = Annotated[str, StringConstraints(pattern=DOTTED_PATTERN, max_length=300)]
Rate = Annotated[str, StringConstraints(pattern=RATE_PATTERN, max_length=30)]
ConcurrencyKey = Annotated[str, StringConstraints(pattern=KEY_PATTERN, max_length=200)]
Text = Annotated[str, StringConstraints(min_length=1)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=30 * 86400, allow_inf_nan=False)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
Size = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]
Flag = Annotated[bool, Field(strict=True)]
JsonSchema = dict[str, Any]

S = TypeVar("S", bound="Spec")

# What the patterns above mean, for messages.
_FORMS = {
    NAME_PATTERN: ("LQ115", "name", "use lower-case letters, digits and _, beginning with a letter"),
    DOTTED_PATTERN: ("LQ114", "dotted name", "write package.module.Class"),
    RATE_PATTERN: ("LQ114", "rate", 'write "10/s", "100/m" or "1000/h"'),
    KEY_PATTERN: (
        "LQ114",
        "concurrency key",
        "write payload.field, or a name of lower-case letters, digits, - and _",
    ),
}

# pydantic's error types for a wrong type, in YAML's words.
_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
}


def publish_x_keys(schema: dict[str, Any]) -> None:
    """Say in a published JSON Schema that keys beginning with ``x-`` are free."""
    schema["patternProperties"] = {"^x-": {}}


class Spec(BaseModel):
    """What one mapping of a YAML file may say: frozen, unknown keys refused, keys that begin with ``x-`` dropped."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", json_schema_extra=publish_x_keys, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_x_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and any(isinstance(key, str) and key.startswith("x-") for key in data):
            return {key: value for key, value in data.items() if not str(key).startswith("x-")}
        return data


@dataclass(frozen=True, slots=True)
class NotYet:
    """A row of a spec's table of keys that the formats have and this version does not act on.

    Args:
        path: Key path with ``*`` for every index or key, ``pipeline_stages.*.condition``; empty for the whole file.
        values: Only these values are unsupported; a missing key counts with its default.
    """

    path: str
    values: tuple[Any, ...] | None = None


def contradiction(message: str, key: str = "", *, id: str = "LQ117", hint: str = "") -> PydanticCustomError:  # noqa: A002
    """Make the error that a spec's own validator raises, to stand at one of its keys.

    Args:
        message: What is wrong, in one line.
        key: The key to point at; the mapping itself if empty.
        id: Its stable id.
        hint: The way out.
    """
    context = {"key": key, "id": id, "hint": hint}
    # The message may hold braces, which pydantic would take for placeholders.
    return PydanticCustomError("loomq", "{text}", {**context, "text": message})


def refuse_no_rate(rate: str | None, key: str) -> None:
    """Refuse a rate in a file that limits nothing, or is 0: in Celery that is no limit, and may be meant otherwise.

    Raises:
        PydanticCustomError: It is such a one.
    """
    if rate is not None and float(rate.partition("/")[0]) > HIGHEST_RATE:
        raise contradiction(
            f"{rate} is more than {HIGHEST_RATE:,}", key, id="LQ114", hint="leave the key out for no limit"
        )
    if rate is not None and not float(rate.partition("/")[0]):
        hint = "leave the key out for no limit; to let nothing start, end the worker's nodes"
        raise contradiction(f"{rate} is no rate", key, id="LQ114", hint=hint)


def load_spec(path: Path, model: type[S], *, name: str | None = None) -> tuple[S | None, list[Problem]]:
    """Read one YAML file as one kind of spec; unsupported keys are not looked for (see ``not_yet``).

    Args:
        path: The file.
        model: The kind, as its Pydantic model.
        name: What to call the file in problems; its path if not given.

    Returns:
        The spec and no problem, or None and at least one problem.
    """
    document, problems = read_document(path, name)
    if document is None:
        return None, problems
    spec, more = read_spec(document, model)
    problems += more
    return (None if problems else spec), problems


def read_spec(document: Document, model: type[S]) -> tuple[S | None, list[Problem]]:
    """Check a document against a model, with every fault at its place; unsupported keys are not looked for.

    Args:
        document: A file that was read.
        model: The kind of spec.

    Returns:
        The spec and no problem, or None and at least one problem.
    """
    if not isinstance(document.value, dict):
        return None, [document.problem("LQ112", "the file must be a mapping of keys, like `name: …`")]
    try:
        return model.model_validate(document.value), []
    except ValidationError as error:
        faults = error.errors(include_url=False)
    # A list whose items have faults of their own also counts as too short.
    inner = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
    faults = [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in inner]
    problems = [_as_problem(document, model, fault) for fault in faults]
    return None, sorted(set(problems), key=lambda problem: (problem.line, problem.col))


def not_yet(document: Document, spec: Spec, table: Sequence[NotYet], what: str) -> list[Problem]:
    """Report every key of a file whose behaviour does not exist yet, so that none is silently ignored.

    Args:
        document: The file.
        spec: What it says.
        table: The rows of the spec's kind.
        what: The kind, for rows that stand for the whole file ("schedules").
    """
    problems = []
    for row in table:
        if not row.path:
            problems.append(document.problem("LQ120", f"{what} are not supported yet"))
        elif row.values is None:
            problems += [
                document.problem("LQ120", "not supported yet", path, key=True, hint="remove the key")
                for path in _matches(document, row.path)
            ]
        else:
            key = row.path
            value = getattr(spec, key)
            if value in row.values:
                default = "" if document.node((key,)) else " (it is the default, and the file has no such key)"
                problems.append(document.problem("LQ120", f"{value} is not supported yet{default}", (key,)))
    return problems


def _matches(document: Document, pattern: str) -> Iterator[KeyPath]:
    """Find the key paths of a document that a dotted pattern with ``*`` stands for."""
    found: list[KeyPath] = [()]
    for part in pattern.split("."):
        deeper: list[KeyPath] = []
        for path in found:
            node = document.node(path)
            names = list(node.items) if node else []
            deeper += [(*path, name) for name in names if part in ("*", name)]
        found = deeper
    yield from found


def _as_problem(document: Document, model: type[BaseModel], fault: Any) -> Problem:
    """Turn one of pydantic's errors into a problem at its place, in our words."""
    path = _real_path(document, fault["loc"])
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "loomq":
        path = (*path, context["key"]) if context["key"] else path
        return document.problem(context["id"], context["text"], path, hint=context["hint"])
    name = str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        return document.problem(
            "LQ110", f"unknown key {_shown(name)}", path, key=True, hint=_near_key(model, fault["loc"])
        )
    if kind in ("missing", "union_tag_not_found"):
        path = (*path, context["discriminator"].strip("'")) if "discriminator" in context else path
        return document.problem("LQ111", f'the key "{path[-1]}" is missing', path)
    if kind in ("enum", "literal_error", "union_tag_invalid"):
        return _not_allowed(document, path, fault)
    return _not_fitting(document, path, fault)


def _not_fitting(document: Document, path: KeyPath, fault: Any) -> Problem:
    kind, context, value = fault["type"], fault.get("ctx", {}), _shown(fault["input"])
    if kind == "string_pattern_mismatch" and context["pattern"] in _FORMS:
        problem_id, what, hint = _FORMS[context["pattern"]]
        return document.problem(problem_id, f"{value} is not a {what}", path, hint=hint)
    said = re.sub(r"^(Input should|Value should|String should) ", "must ", fault["msg"])
    if kind == "too_short":
        return document.problem("LQ114", "must not be empty", path)
    if kind in _TYPES:
        return document.problem("LQ112", f"must be {_TYPES[kind]}, not {value}", path)
    return document.problem("LQ114", f"{said[:1].lower()}{said[1:]}, not {value}", path)


def _real_path(document: Document, loc: tuple[str | int, ...]) -> KeyPath:
    """Drop what pydantic puts into a loc for unions, so that the path is one of the file's."""
    path: list[str | int] = []
    node = document.root
    for at, part in enumerate(loc):
        child = node.items.get(part)
        if child is None and at < len(loc) - 1:
            continue
        path.append(part)
        node = child or node
    return tuple(path)


def _near_key(model: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    known = set(_keys_at(model.model_json_schema(), loc[:-1]))
    return suggest(str(loc[-1]), known) or (f"known keys: {listed(sorted(known), most=30)}" if known else "")


def _keys_at(schema: dict[str, Any], loc: tuple[str | int, ...]) -> Iterator[str]:
    """Walk a model's JSON Schema to the mapping at a loc and give the keys that it has."""
    definitions = schema.get("$defs", {})
    level = [schema]
    for part in (*loc, None):
        open_, flat = list(level), []
        while open_:
            one = open_.pop()
            one = definitions.get(one["$ref"].rpartition("/")[2], {}) if "$ref" in one else one
            flat.append(one)
            open_ += [*one.get("anyOf", []), *one.get("oneOf", [])]
        # A union's tag in the loc has no place in the schema: stay where we are.
        level = flat if part is None else [child for one in flat for child in _below(one, part)] or flat
    for one in level:
        yield from one.get("properties", {})


def _below(schema: dict[str, Any], part: str | int) -> list[dict[str, Any]]:
    named = schema.get("items") if isinstance(part, int) else schema.get("properties", {}).get(part)
    return [child for child in (named, schema.get("additionalProperties")) if isinstance(child, dict)]


def _not_allowed(document: Document, path: KeyPath, fault: Any) -> Problem:
    context, value = fault["ctx"], fault["input"]
    text = str(context.get("expected") or context.get("expected_tags")).replace("True", "true")
    if fault["type"] == "union_tag_invalid":
        path, value = (*path, context["discriminator"].strip("'")), context["tag"]
    allowed = re.findall(r"'([^']*)'", text)
    hint = suggest(value, allowed) if isinstance(value, str) else ""
    text = text.replace("'", '"')
    return document.problem("LQ113", f"{_shown(value)} is not {text}", path, hint=hint)


def _shown(value: Any) -> str:
    """Show a value in a message: short, and in YAML's words."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value[:40]}…"' if len(value) > 40 else f'"{value}"'  # noqa: PLR2004
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else str(value)[:40]
