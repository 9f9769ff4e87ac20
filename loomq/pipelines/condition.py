"""A stage's condition: parsed once into comparisons, told true or false from what a goal and its stages hold.

``path op value``, joined by ``and``, ``or``, ``not`` and parentheses (formats.md §2). Nothing is ever run as code.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from loomq.pipelines.compare import TESTS
from loomq.pipelines.mapping import stages_of
from loomq.pipelines.paths import MISSING, Path, parse_path
from loomq.pipelines.scanner import CONDITION_KEY, MAX_DEPTH, MalformedError, Scanner
from loomq.problems import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

MAX_LENGTH = 4000
_SHOWN = 60  # characters of a value in an explanation

_NOT = re.compile(r"not(?=[\s(])")
_JOINS = {"and": re.compile(r"and(?=[\s(])"), "or": re.compile(r"or(?=[\s(])")}
_OPERATOR = re.compile(r"==|!=|<=|>=|<|>|(?:not-in|in|contains|exists)(?![^\s()\[{'\"])")
_WORD = re.compile(r"[^\s()]+")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None, "none": None}


@dataclass(frozen=True, slots=True)
class Comparison:
    """``path op value``.

    Args:
        op: A key of ``compare.TESTS``, or ``exists``, which has no value.
        is_bare: The value is a word without quotes, taken for text.
        at: Where in the condition the path begins, and the value, for carets.
    """

    path: Path
    op: str
    value: Any = None
    is_bare: bool = field(default=False, compare=False, repr=False)
    at: tuple[int, int] = field(default=(0, 0), compare=False, repr=False)

    def evaluate(self, roots: Mapping[str, Any]) -> bool:
        """Compare; a path that leads nowhere makes it false."""
        found = self.path.find(roots)
        return found is not MISSING and (self.op == "exists" or TESTS[self.op](found, self.value))

    def told(self, roots: Mapping[str, Any]) -> str:
        """Write the comparison with the value found."""
        found = self.path.find(roots)
        return f"{self} (it is {'missing' if found is MISSING else _shown(found)})"

    def __str__(self) -> str:
        default = "" if self.path.default is MISSING else f" | default({as_written(self.path.default)})"
        value = "" if self.op == "exists" else f" {as_written(self.value)}"
        return f"{self.path.text}{default} {self.op}{value}"


@dataclass(frozen=True, slots=True)
class Negation:
    """``not``."""

    of: Term

    def evaluate(self, roots: Mapping[str, Any]) -> bool:
        """Say the opposite."""
        return not self.of.evaluate(roots)

    def told(self, roots: Mapping[str, Any]) -> str:
        """Write what it negates with the values found."""
        return f"not ({self.of.told(roots)})"

    def __str__(self) -> str:
        return f"not ({self.of})"


@dataclass(frozen=True, slots=True)
class Junction:
    """Terms that are joined by one word, ``and`` or ``or``."""

    word: str
    terms: tuple[Term, ...]

    def evaluate(self, roots: Mapping[str, Any]) -> bool:
        """Ask the terms until one decides."""
        quantifier = all if self.word == "and" else any
        return quantifier(term.evaluate(roots) for term in self.terms)

    def told(self, roots: Mapping[str, Any]) -> str:
        """Write the term that decides, a false one of `and` or a true one of `or`; without one all of them do."""
        decides = self.word == "or"
        for term in self.terms:
            if term.evaluate(roots) == decides:
                return term.told(roots)
        return f" {self.word} ".join(_grouped(term, term.told(roots)) for term in self.terms)

    def __str__(self) -> str:
        return f" {self.word} ".join(_grouped(term, str(term)) for term in self.terms)


Term = Comparison | Negation | Junction


@dataclass(frozen=True)
class Condition:
    """A parsed ``condition``; its text is one that parses to the same again."""

    term: Term

    @classmethod
    def parse(cls, text: str, *, has_items: bool = False) -> Condition:
        """Parse what the YAML says.

        Args:
            has_items: It is that of a stage with ``for_each``.

        Raises:
            MalformedError: It is malformed.
        """
        if len(text) > MAX_LENGTH:
            raise MalformedError(f"the condition is longer than {MAX_LENGTH} characters", MAX_LENGTH)
        return cls(_Parser(text, has_items=has_items).condition())

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison, in the order written."""
        return tuple(_comparisons(self.term))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every path, in the order written."""
        return tuple(one.path for one in self.comparisons)

    @property
    def roots(self) -> tuple[str, ...]:
        """The stages that the paths start at, each once, in the order written."""
        return stages_of(self.paths)

    @property
    def reads_item(self) -> bool:
        """Whether it differs from item to item of a ``for_each``."""
        return any(path.of_item for path in self.paths)

    def evaluate(self, roots: Mapping[str, Any]) -> bool:
        """Say whether it holds; no value makes this fail.

        Args:
            roots: ``goal`` and the finished stages by name; for an item of a ``for_each`` also ``item`` and ``index``.
        """
        return self.term.evaluate(roots)

    def told(self, roots: Mapping[str, Any]) -> str:
        """Say in one line why it holds or does not: the comparisons that decide, each with the value found."""
        return printable(self.term.told(roots))

    def __str__(self) -> str:
        return str(self.term)


class _Parser:
    """Recursive descent: ``or`` binds weakest, then ``and``, then ``not``."""

    def __init__(self, text: str, *, has_items: bool) -> None:
        self._scanner = Scanner(text, CONDITION_KEY)
        self._has_items = has_items
        self._depth = 0

    def condition(self) -> Term:
        found = self._either()
        if self._scanner.peek() == ")":
            raise MalformedError("there is no ( for this )", self._scanner.at)
        rest = self._scanner.text[self._scanner.at :]
        if rest:
            hint = "join comparisons by and, or; quote a text of several words"
            raise MalformedError(f"unexpected {rest[:40]!r}", self._scanner.at, hint)
        return found

    def _either(self) -> Term:
        return self._joined("or", self._both)

    def _both(self) -> Term:
        return self._joined("and", self._negation)

    def _joined(self, word: str, below: Callable[[], Term]) -> Term:
        terms = [below()]
        while self._scanner.take(_JOINS[word]):
            terms.append(below())
        return terms[0] if len(terms) == 1 else Junction(word, tuple(terms))

    def _negation(self, *, is_counted: bool = False) -> Term:
        scanner = self._scanner
        scanner.spaces()
        start = scanner.at
        is_not = bool(scanner.take(_NOT))
        if not is_not and scanner.peek() != "(":
            return self._comparison()
        # `not (…)` is one level, so that no condition is deeper as it is written out again.
        levels = int(is_not or not is_counted)
        self._depth += levels
        if self._depth > MAX_DEPTH:
            raise MalformedError(f"the condition is nested more than {MAX_DEPTH} levels deep", start)
        found = Negation(self._negation(is_counted=True)) if is_not else self._parenthesis()
        self._depth -= levels
        return found

    def _parenthesis(self) -> Term:
        scanner = self._scanner
        start = scanner.at
        scanner.at += 1
        found = self._either()
        if scanner.peek() != ")":
            raise MalformedError("the ( is not closed", start)
        scanner.at += 1
        scanner.spaces()
        return found

    def _comparison(self) -> Comparison:
        scanner = self._scanner
        start = scanner.at
        if not scanner.peek():
            raise MalformedError("a comparison is expected", start, "write path op value: score.output.value > 0.5")
        path = parse_path(scanner, has_items=self._has_items)
        if path.optional:
            hint = "a path that leads nowhere is false anyway"
            raise MalformedError("a ? makes no sense in a condition", start, hint)
        scanner.spaces()
        op = self._operator()
        scanner.spaces()
        at = (start, scanner.at)
        if op == "exists":
            if path.default is not MISSING:
                raise MalformedError("a path with a default always exists", start, "leave the default out")
            return Comparison(path, op, at=at)
        value, is_bare = self._value()
        if op in ("in", "not-in") and not isinstance(value, list | str):
            raise MalformedError(f"{op} takes a list or a text", at[1], 'write ["a", "b"]')
        scanner.spaces()
        return Comparison(path, op, value, is_bare, at)

    def _operator(self) -> str:
        scanner = self._scanner
        op = scanner.take(_OPERATOR)
        if not op:
            at, word = scanner.at, scanner.take(_WORD)
            told = f"not {word[:20]!r}" if word else "and the condition ends here"
            hint = "write ==" if word.startswith("=") else f"there are: {', '.join([*TESTS, 'exists'])}"
            raise MalformedError(f"an operator is expected, {told}", at, hint)
        return op

    def _value(self) -> tuple[Any, bool]:
        scanner = self._scanner
        start = scanner.at
        if scanner.peek() in ("'", '"'):
            return scanner.quoted(), False
        if scanner.peek() in ("[", "{"):
            return scanner.json("this is no JSON list or object"), False
        word = scanner.take(_WORD)
        if not word or word in ("and", "or", "not"):
            hint = "write a list as [1, 2]" if scanner.peek() == "(" else "quote a text: 'and'" if word else ""
            raise MalformedError("a value is expected", start, hint)
        if word.lower() in _WORDS:
            return _WORDS[word.lower()], False
        if _NUMBER.fullmatch(word):
            scanner.at = start
            return scanner.json("this is no number that JSON can carry"), False
        if _is_almost_a_number(word):
            hint = "write it as 0.5 or 1000, or quote it for a text"
            raise MalformedError(f"{word!r} is no JSON number", start, hint)
        return word, True


def _is_almost_a_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return any(char.isdigit() for char in word)


def _comparisons(term: Term) -> Iterator[Comparison]:
    if isinstance(term, Comparison):
        yield term
    elif isinstance(term, Negation):
        yield from _comparisons(term.of)
    else:
        for one in term.terms:
            yield from _comparisons(one)


def _grouped(term: Term, text: str) -> str:
    return f"({text})" if isinstance(term, Junction) else text


def as_written(value: Any) -> str:
    """Write a value so that it is read as the same again."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    """Write a value that was found, however large it is, no further than it is shown."""
    text = ""
    # In pieces: the encoder does not go deeper or further than it is asked to.
    for piece in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
        text += piece
        if len(text) > _SHOWN:
            text = f"{text[: _SHOWN - 1]}…"
            break
    return text
