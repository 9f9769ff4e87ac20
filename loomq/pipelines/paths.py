"""One expression of a mapping: a path into the goal or a stage's result, or a quoted literal."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from loomq.errors import PipelineMappingError
from loomq.problems import dotted, listed, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

GOAL_FIELDS = ("goal_id", "instruction", "context")
STAGE_FIELDS = ("output", "model_used", "processing_time_ms", "started_at", "ended_at", "wall_time_ms")

_KEY = re.compile(r"""[^\s.\[\]()|?'"]+""")
_SPACE = re.compile(r"\s*")
_INDEX = re.compile(r"\[([0-9]{1,9})\]")
_DIGITS = re.compile(r"[0-9]{1,9}")
_DEFAULT = re.compile(r"\|\s*default\s*\(\s*")


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
        root: ``goal`` or a stage's name.
        parts: What follows: text is a key of an object (or, if digits, an index of a list); a number is an index.
        spots: For each part the character of ``text`` where it begins, for carets.
        optional: A missing value is left out, and is no error.
        default: What stands for a missing value, or ``MISSING``.
    """

    text: str
    root: str
    parts: tuple[str | int, ...]
    spots: tuple[int, ...] = field(default=(), compare=False, repr=False)
    optional: bool = False
    default: Any = MISSING

    @property
    def is_optional(self) -> bool:
        """Whether a missing value is no error."""
        return self.optional or self.default is not MISSING

    def evaluate(self, roots: Mapping[str, Any]) -> Any:
        """Follow the path.

        Args:
            roots: ``goal`` and the stages by name.

        Returns:
            The value itself (not a copy), or ``MISSING`` for an optional path that leads nowhere.

        Raises:
            PipelineMappingError: A required path leads nowhere.
        """
        value: Any = roots
        for at, part in enumerate((self.root, *self.parts)):
            value, before = _step(value, part), value
            if value is MISSING:
                if self.default is not MISSING:
                    return copy.deepcopy(self.default)
                if self.optional:
                    return MISSING
                raise PipelineMappingError(f'the path "{self.text}" leads nowhere: {self._dead_end(at, before)}')
        return value

    def _dead_end(self, at: int, value: Any) -> str:
        way = (self.root, *self.parts)
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


class MalformedError(ValueError):
    """An expression that cannot be parsed: what is wrong, at which character, and the way out."""

    def __init__(self, message: str, offset: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.offset, self.hint = message, offset, hint


def parse_expression(text: str) -> Expression:
    """Parse one expression: a path with ``?`` or ``| default(…)``, or a quoted literal.

    Raises:
        MalformedError: It is malformed.
    """
    scanner = _Scanner(text)
    scanner.spaces()
    if scanner.peek() in ("'", '"'):
        found: Expression = Literal(scanner.quoted())
    else:
        found = _parse_path(scanner)
    scanner.spaces()
    if scanner.at < len(text):
        raise MalformedError(f"unexpected {text[scanner.at :]!r}", scanner.at)
    return found


def _parse_path(scanner: _Scanner) -> Path:
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
    _check_field(text, root, parts, start)
    optional = scanner.peek() == "?"
    scanner.at += optional
    scanner.spaces()
    default = scanner.default() if scanner.peek() == "|" else MISSING
    return Path(text, root, tuple(parts), tuple(spots[:-1]), optional, default)


def _check_field(text: str, root: str, parts: Sequence[str | int], start: int) -> None:
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


class _Scanner:
    """A cursor over one expression."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def spaces(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def key(self) -> str:
        match = _KEY.match(self.text, self.at)
        if not match:
            found = f"not {self.peek()!r}" if self.peek() else "the path ends here"
            raise MalformedError(f"a key is expected, {found}", self.at)
        self.at = match.end()
        return match.group()

    def index(self) -> int:
        match = _INDEX.match(self.text, self.at)
        if not match:
            raise MalformedError("an index is written [0], [1], …", self.at)
        self.at = match.end()
        return int(match.group(1))

    def quoted(self) -> str:
        """Read a quoted text; the quote itself is written twice, as in YAML."""
        quote = self.peek()
        start, found = self.at, []
        self.at += 1
        while True:
            end = self.text.find(quote, self.at)
            if end < 0:
                raise MalformedError(f"the literal has no closing {quote}", start)
            found.append(self.text[self.at : end])
            self.at = end + 1
            if self.peek() != quote:
                return quote.join(found)
            self.at += 1

    def default(self) -> Any:
        match = _DEFAULT.match(self.text, self.at)
        if not match:
            raise MalformedError("after | only default(…) may follow", self.at)
        self.at = match.end()
        value = self.quoted() if self.peek() == "'" else self.json()
        self.spaces()
        if self.peek() != ")":
            raise MalformedError("default( has no closing )", self.at)
        self.at += 1
        return value

    def json(self) -> Any:
        try:
            value, self.at = _JSON.raw_decode(self.text, self.at)
        except (ValueError, RecursionError):
            hint = "write text as 'text'"
            raise MalformedError("default(…) takes a JSON value or a quoted text", self.at, hint) from None
        return value


def _no_constant(name: str) -> Any:
    raise ValueError(name)


_JSON = json.JSONDecoder(parse_constant=_no_constant)


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
