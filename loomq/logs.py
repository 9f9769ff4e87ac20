"""Log lines that keep secrets to themselves, and that no text from outside can forge."""

from __future__ import annotations

import copy
import logging
import re
from typing import Any

from loomq.redaction import redacted

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_LINE_START = re.compile(r"\r\n?|\n(?=\S)")
_NUMBERS = (int, float, complex, type(None))


class SafeFormatter(logging.Formatter):
    """Format as another formatter does, then hide secrets: in the message, its arguments and the traceback.

    What a message is filled with stays on its line, and all further lines of a record are indented: neither a name
    nor an exception's text can pose as a record of its own.

    Args:
        inner: The formatter that decides how a record looks.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        """Format one record, and leave it as it is for other handlers."""
        shown = copy.copy(record)
        shown.args = _on_one_line(record.args)
        shown.exc_text = None  # what another handler has formatted
        return _LINE_START.sub("\n  ", redacted(self._inner.format(shown)))


class _OneLine:
    """An argument whose text has no control characters."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return _escaped(str(self._value))

    def __repr__(self) -> str:
        return _escaped(repr(self._value))


def guard(*loggers: logging.Logger) -> None:
    """Put the filter in front of every handler of these loggers, once."""
    for logger in loggers:
        for handler in logger.handlers:
            if not isinstance(handler.formatter, SafeFormatter):
                handler.setFormatter(SafeFormatter(handler.formatter))


def guard_last_resort() -> None:
    """Put the filter in front of what Python prints where no logging is set up, as in commands."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(SafeFormatter())


def _on_one_line(args: Any) -> Any:
    if isinstance(args, dict):
        return {name: _shown(value) for name, value in args.items()}
    return tuple(_shown(value) for value in args) if isinstance(args, tuple) else args


def _shown(value: Any) -> Any:
    return value if isinstance(value, _NUMBERS) else _OneLine(value)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
