"""Words and sentences in technical English, with their places in the text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_PROSE_WORDS = 5
MIN_LETTERS = 0.75
MAX_SYMBOLS = 0.06

_WORD = re.compile(r"_*[A-Za-z][A-Za-z0-9_]+")
_BLANK = re.compile(r"\n[ \t]*\n\s*")
_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(`*]*[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|approx|resp|no|fig|[A-Z]))\.\s+$")
_CODE = (">>>", "...", "::", "--")
_SYMBOLS = re.compile(r"[=<>{}\[\]|\\@#$^~_/+]")


def words(text: str) -> list[str]:
    """List the words of two letters or more, in lower case."""
    return _WORD.findall(text.lower())


def paragraphs(text: str) -> Iterator[tuple[int, int]]:
    """Find the blocks between blank lines, as ``(start, end)`` without surrounding space."""
    start = 0
    for gap in _BLANK.finditer(text):
        yield from _trimmed(text, start, gap.start())
        start = gap.end()
    yield from _trimmed(text, start, len(text))


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Find the sentences, as ``(start, end)``; none reaches over a blank line."""
    for first, last in paragraphs(text):
        start = first
        for stop in _END.finditer(text, first, last):
            if _ABBREVIATION.search(text, start, stop.end()):
                continue
            yield from _trimmed(text, start, stop.end())
            start = stop.end()
        yield from _trimmed(text, start, last)


def is_prose(sentence: str) -> bool:
    """Say whether a sentence is a sentence, and no code, table, heading or list of names."""
    flat = " ".join(sentence.split())
    if not flat[:1].isupper() or not flat.rstrip("\"')").endswith((".", "!", "?")):
        return False
    if len(_WORD.findall(flat)) < MIN_PROSE_WORDS or any(sign in flat for sign in _CODE):
        return False
    if flat.count(": ") > 1:  # a list of arguments, run together
        return False
    letters = sum(character.isalpha() or character == " " for character in flat)
    return letters >= MIN_LETTERS * len(flat) and len(_SYMBOLS.findall(flat)) <= MAX_SYMBOLS * len(flat)


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    part = text[start:end]
    left = len(part) - len(part.lstrip())
    right = len(part.rstrip())
    if right > left:
        yield start + left, start + right
