"""A cursor over one expression of a pipeline's file: keys, indexes, quoted texts and JSON values."""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: What a key may be made of in a mapping; in a condition an operator may follow without a space.
MAPPING_KEY = re.compile(r"""[^\s.\[\]()|?'"]+""")
CONDITION_KEY = re.compile(r"""[^\s.\[\]()|?'"=!<>]+""")

#: Levels that a literal or a condition may have, so that nothing that walks them runs out of stack.
MAX_DEPTH = 64

_SPACE = re.compile(r"\s*")
_INDEX = re.compile(r"\[([0-9]{1,9})\]")
_DEFAULT = re.compile(r"\|\s*default\s*\(\s*")


class MalformedError(ValueError):
    """An expression that cannot be parsed: what is wrong, at which character, and the way out."""

    def __init__(self, message: str, offset: int, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.offset, self.hint = message, offset, hint


class Scanner:
    """A cursor over one expression.

    Args:
        keys: What a key may be made of.
    """

    def __init__(self, text: str, keys: re.Pattern[str] = MAPPING_KEY) -> None:
        self.text = text
        self.at = 0
        self._keys = keys

    def peek(self) -> str:
        """Give the next character, or nothing at the end."""
        return self.text[self.at : self.at + 1]

    def spaces(self) -> None:
        """Pass over white space."""
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def take(self, pattern: re.Pattern[str]) -> str:
        """Read what a pattern matches here, or nothing."""
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match.group() if match else ""

    def end(self) -> None:
        """Refuse what follows the expression.

        Raises:
            MalformedError: Something does.
        """
        self.spaces()
        if self.at < len(self.text):
            raise MalformedError(f"unexpected {self.text[self.at :]!r}", self.at)

    def key(self) -> str:
        """Read a key."""
        found = self.take(self._keys)
        if not found:
            told = f"not {self.peek()!r}" if self.peek() else "the path ends here"
            raise MalformedError(f"a key is expected, {told}", self.at)
        return found

    def index(self) -> int:
        """Read an index with its brackets."""
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
        """Read a default with its bar and its parentheses."""
        if not self.take(_DEFAULT):
            raise MalformedError("after | only default(…) may follow", self.at)
        value = self.quoted() if self.peek() == "'" else self.json("default(…) takes a JSON value or a quoted text")
        self.spaces()
        if self.peek() != ")":
            raise MalformedError("default( has no closing )", self.at)
        self.at += 1
        return value

    def json(self, wanted: str) -> Any:
        """Read a JSON value.

        Args:
            wanted: What to say when there is none.
        """
        start = self.at
        try:
            value, self.at = _JSON.raw_decode(self.text, start)
        except (ValueError, RecursionError):
            raise MalformedError(wanted, start, "write text as 'text'") from None
        if _is_deep(value):
            raise MalformedError(f"the value is nested more than {MAX_DEPTH} levels deep", start)
        return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            below
            for one in level
            if isinstance(one, dict | list)
            for below in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_JSON = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
