"""What may be written to a terminal: colours only where they are wanted, and no control characters of strangers."""

from __future__ import annotations

import os
import re
from typing import TextIO

_CODES = {"red": "31", "green": "32", "yellow": "33", "dim": "2"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def has_color(stream: TextIO) -> bool:
    """Say whether colours belong on that stream: a terminal, and neither ``NO_COLOR`` nor ``TERM=dumb``."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO) -> bool:
    """Say whether somebody looks at that stream."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def colored(text: str, color: str, stream: TextIO) -> str:
    """Colour a text if the stream takes it."""
    return f"\x1b[{_CODES[color]}m{text}\x1b[0m" if has_color(stream) else text


def printable(text: str) -> str:
    """Replace what could steer a terminal; texts come from workers and files that anybody wrote."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def shortened(text: str, most: int = 200) -> str:
    """Cut a long text, and say how long it was."""
    clean = printable(text)
    if len(clean) <= most:
        return clean
    return f"{clean[:most].rstrip()} … ({len(text):,} characters)"
