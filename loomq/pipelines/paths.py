"""One expression of a mapping: a path into the goal, a stage's result or an item, or a quoted literal."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from loomq.errors import PipelineMappingError
from loomq.pipelines.scanner import MalformedError, Scanner
from loomq.problems import dotted, listed, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The roots that a stage with for_each has for each of its items; elsewhere they are names like any other.
ITEM_ROOTS = ("item", "index")
GOAL_FIELDS = ("goal_id", "instruction", "context")
STAGE_FIELDS = ("output", "model_used", "processing_time_ms", "started_at", "ended_at", "wall_time_ms")

_DIGITS = re.compile(r"[0-9]{1,9}")


class _Missing(Enum):
    """The answer of an optional path that leads nowhere; an enum, so that a copy is still the same thing."""

    MISSING = "missing"


MISSING: Final = _Missing.MISSING


@dataclass(frozen=True, slots=True)
class Literal:
    """A value written in the mapping itself."""

    value: Any

    def evaluate(self, roots: Mapping[str, Any]) -> Any:  # noqa: ARG002  (the same call as Path's)
        """Give the value, as a copy that the caller may change."""
        return copy.deepcopy(self.value)


@dataclass(frozen=True, slots=True)
class Path:
    """A way from a root to a value.

    Args:
        text: As it was written.
        root: ``goal``, ``item``, ``index`` or a stage's name.
        parts: What follows: text is a key of an object (or, if digits, an index of a list); a number is an index.
        spots: For each part the character of ``text`` where it begins, for carets.
        optional: A missing value is left out, and is no error.
        default: What stands for a missing value, or ``MISSING``.
        of_item: It starts at an item of a ``for_each``.
    """

    text: str
    root: str
    parts: tuple[str | int, ...]
    spots: tuple[int, ...] = field(default=(), compare=False, repr=False)
    optional: bool = False
    default: Any = MISSING
    of_item: bool = False

    @property
    def stage(self) -> str | None:
        """The stage that it starts at, if it does."""
        return None if self.root == "goal" or self.of_item else self.root

    @property
    def is_optional(self) -> bool:
        """Whether a missing value is no error."""
        return self.optional or self.default is not MISSING

    def evaluate(self, roots: Mapping[str, Any]) -> Any:
        """Follow the path.

        Args:
            roots: ``goal`` and the stages by name; for an item of a ``for_each`` also ``item`` and ``index``.

        Returns:
            The value itself (not a copy), or ``MISSING`` for an optional path that leads nowhere.

        Raises:
            PipelineMappingError: A required path leads nowhere.
        """
        value = self.find(roots)
        if value is MISSING and not self.optional:
            raise PipelineMappingError(f'the path "{self.text}" leads nowhere: {self._dead_end(roots)}')
        return value

    def find(self, roots: Mapping[str, Any]) -> Any:
        """Follow the path as ``evaluate`` does, and give its default or ``MISSING`` if it leads nowhere."""
        value: Any = roots
        for part in (self.root, *self.parts):
            value = _step(value, part)
            if value is MISSING:
                return copy.deepcopy(self.default)
        return value

    def _dead_end(self, roots: Mapping[str, Any]) -> str:
        way, value, at = (self.root, *self.parts), roots, 0
        while (below := _step(value, way[at])) is not MISSING:
            value, at = below, at + 1
        where, wanted = dotted(way[:at]) or "the goal", way[at]
        if isinstance(value, Mapping):
            keys = sorted(str(key) for key in value)
            there = f"there are: {listed(keys)}" if keys else "it is empty"
            near = suggest(str(wanted), keys)
            return f'{where} has no "{wanted}", {there}{f"; {near}" if near else ""}'
        if isinstance(value, list):
            return f"{where} is a list of {len(value)}, it has no {wanted}"
        return f'{where} is {_kind(value)}, it has no "{wanted}"'


Expression = Path | Literal


def parse_expression(text: str, *, has_items: bool = False) -> Expression:
    """Parse one expression: a path with ``?`` or ``| default(…)``, or a quoted literal.

    Args:
        has_items: Paths may start at ``item`` and ``index``.

    Raises:
        MalformedError: It is malformed.
    """
    scanner = Scanner(text)
    scanner.spaces()
    if scanner.peek() in ("'", '"'):
        found: Expression = Literal(scanner.quoted())
    else:
        found = parse_path(scanner, has_items=has_items)
    scanner.end()
    return found


def parse_path(scanner: Scanner, *, has_items: bool) -> Path:
    """Read a path with ``?`` or ``| default(…)``, and no further; arguments and errors as ``parse_expression``."""
    start = scanner.at
    root = scanner.key()
    parts: list[str | int] = []
    spots: list[int] = []
    while True:
        spots.append(scanner.at + (scanner.peek() == ".") - start)
        if scanner.peek() == ".":
            scanner.at += 1
            parts.append(scanner.key())
        elif scanner.peek() == "[":
            parts.append(scanner.index())
        else:
            break
    text = scanner.text[start : scanner.at]
    of_item = has_items and root in ITEM_ROOTS
    _check_item(root, parts, start) if of_item else _check_field(text, root, parts, start)
    optional = scanner.peek() == "?"
    scanner.at += optional
    scanner.spaces()
    default = scanner.default() if scanner.peek() == "|" else MISSING
    return Path(text, root, tuple(parts), tuple(spots[:-1]), optional, default, of_item)


def _check_item(root: str, parts: Sequence[str | int], start: int) -> None:
    if root == "index" and parts:
        raise MalformedError("index is a number, nothing stands below it", start + len(root) + 1)


def _check_field(text: str, root: str, parts: Sequence[str | int], start: int) -> None:
    if root in ITEM_ROOTS and not (parts and parts[0] in STAGE_FIELDS):
        hint = "add `for_each: <path of a list>` to the stage, or read <stage>.output.items"
        raise MalformedError(f'"{root}" is there only in a stage with for_each', start, hint)
    fields = GOAL_FIELDS if root == "goal" else STAGE_FIELDS
    if not parts:
        field = "context" if root == "goal" else "output"
        raise MalformedError(f'"{text}" names no field', start, f"write {root}.{field}, or \"'{text}'\" for a literal")
    if parts[0] not in fields:
        near = suggest(str(parts[0]), fields) or f"there are: {listed(fields)}"
        message = f'{"the goal" if root == "goal" else "a stage"} has no "{parts[0]}"'
        raise MalformedError(message, start + len(root) + 1, near)
    if len(parts) > 1 and parts[0] not in ("context", "output"):
        raise MalformedError(f"{root}.{parts[0]} is a single value, nothing stands below it", start + len(root) + 1)


def _step(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, MISSING) if isinstance(part, str) else MISSING
    if isinstance(value, list):
        if isinstance(part, str):
            part = int(part) if _DIGITS.fullmatch(part) else len(value)
        return value[part] if part < len(value) else MISSING
    return MISSING


def _kind(value: Any) -> str:
    names = {str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
