"""Contracts: JSON Schema (Draft 2020-12) compiled once, checked fast, without network and without slow patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema_rs

from loomq.errors import ConfigError, PipelineValidationError
from loomq.problems import dotted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

DRAFT = "https://json-schema.org/draft/2020-12/schema"
MAX_DEPTH = 64
MAX_NODES = 50_000
MAX_VALUE_DEPTH = 100
MAX_SHOWN = 20
_MAX_TEXT = 200
_LINEAR = "runs in linear time (no look-around, no back-references, no huge repeats)"

# The engine without backtracking: time is linear in the text, so no pattern can hang a worker.
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20)
_META = jsonschema_rs.Draft202012Validator({"$ref": DRAFT}, offline=True)
_CHOICES = {"anyOf", "oneOf", "not", "if", "then", "else", "contains", "uniqueItems"}
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


class Contract:
    """One compiled JSON Schema.

    ``true`` is no integer and no number; formats are not asserted, as the draft has it.

    Args:
        schema: The schema; references only within itself.

    Raises:
        ConfigError: The schema is not usable; ``schema_faults`` says where.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        faults = schema_faults(schema)
        if faults:
            told = "; ".join(f"{dotted(path) or 'top level'}: {message}" for path, message in faults)
            raise ConfigError(f"the schema cannot be used: {told}")
        self._validator = _compile(schema)

    def errors(self, value: Any, unknown: Collection[tuple[str | int, ...]] = ()) -> list[str]:
        """List what is wrong with a value, each with its path; empty when the contract holds.

        At most ``MAX_SHOWN`` errors are listed.

        Args:
            unknown: Paths of what is not known yet; nothing is said of it, nor of what stands below.
        """
        found: list[str] = []
        if _is_too_deep(value):
            return [f"the value is nested more than {MAX_VALUE_DEPTH} levels deep"]
        try:
            for error in self._validator.iter_errors(value):
                path = tuple(error.instance_path)
                if any(path[: len(one)] == one or _may_hold_yet(error, path, one) for one in unknown):
                    continue
                if len(found) == MAX_SHOWN:
                    return [*found, "… and more"]
                found.append(_told(error))
        except ValueError as error:
            found.append(f"the value is not JSON that can be checked: {error}")
        return found

    def holds(self, value: Any) -> bool:
        """Say whether a value fits."""
        try:
            return not _is_too_deep(value) and self._validator.is_valid(value)
        except ValueError:
            return False

    def check(self, value: Any, what: str = "value", *, stage: str = "") -> None:
        """Refuse a value that does not fit.

        Args:
            value: JSON data.
            what: What it is, for the message: "input" or "output".
            stage: The stage it belongs to.

        Raises:
            PipelineValidationError: It does not fit; the message lists how.
        """
        if not self.holds(value):
            told = "; ".join(self.errors(value))
            raise PipelineValidationError(f"the {what} breaks its contract: {told}", stage=stage)


def schema_faults(schema: Mapping[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """List what makes a schema unusable; empty for a usable one.

    Returns:
        For each fault the keys that lead to it, and what is wrong.
    """
    faults = list(_refused(schema))
    if not faults:
        faults = [_explained(error) for error in _META.iter_errors(dict(schema))]
    if not faults:
        try:
            _compile(schema)
        except jsonschema_rs.ValidationError as error:
            faults.append(_explained(error))
        except ValueError as error:
            faults.append(((), _short(str(error))))
    return faults


def _explained(error: jsonschema_rs.ValidationError) -> tuple[tuple[str | int, ...], str]:
    path = tuple(error.instance_path)
    if error.message.endswith('is not a "regex"'):
        return path, f"{_short(str(error.instance))} is not a pattern that {_LINEAR}"
    if path and path[-1] == "type" and isinstance(error.instance, str):
        return path, f'"{_short(error.instance)}" is not a JSON type ({", ".join(_TYPES)})'
    return path, _short(error.message)


def _compile(schema: Mapping[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        dict(schema), pattern_options=_PATTERNS, offline=True, validate_formats=False
    )


def _refused(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Find what the engine would accept and we do not: depth, size, references outward, other drafts."""
    dialect = schema.get("$schema", DRAFT)
    if not isinstance(dialect, str) or dialect.rstrip("#") != DRAFT:
        yield ("$schema",), f"only Draft 2020-12 is supported ({DRAFT})"
    nodes = 0
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), schema)]
    while stack:
        path, value = stack.pop()
        nodes += 1
        if nodes > MAX_NODES or len(path) > MAX_DEPTH:
            yield path[:3], f"deeper than {MAX_DEPTH} levels or larger than {MAX_NODES} nodes"
            return
        if isinstance(value, dict):
            for key, below in value.items():
                if not isinstance(key, str):
                    yield path, f"the key {key!r} is not text"
                elif key in ("$ref", "$dynamicRef") and isinstance(below, str) and not below.startswith("#"):
                    yield (*path, key), f"{_short(below)} points outside this schema; only #/… is followed"
                stack.append(((*path, key), below))
        elif isinstance(value, list):
            stack += [((*path, index), below) for index, below in enumerate(value)]


def _is_too_deep(value: Any) -> bool:
    """Look level by level, because the engine recurses and some ten thousand levels would end the process."""
    level = [value]
    for _ in range(MAX_VALUE_DEPTH + 1):
        level = [
            child
            for one in level
            if isinstance(one, dict | list | tuple)
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, dict | list | tuple)
        ]
        if not level:
            return False
    return True


def _may_hold_yet(
    error: jsonschema_rs.ValidationError, path: tuple[str | int, ...], unknown: tuple[str | int, ...]
) -> bool:
    """Say whether an error is about a choice among schemas, above something that is not known yet."""
    keyword = str(error.schema_path[-1]) if error.schema_path else ""
    return keyword in _CHOICES and unknown[: len(path)] == path


def _told(error: jsonschema_rs.ValidationError) -> str:
    where = dotted(error.instance_path)
    return f"{where}: {_short(error.message)}" if where else _short(error.message)


def _short(text: str) -> str:
    text = " ".join(text.split())
    if len(text) <= _MAX_TEXT:
        return text
    return f"{text[: _MAX_TEXT // 2]} … {text[-_MAX_TEXT // 2 :]}"
