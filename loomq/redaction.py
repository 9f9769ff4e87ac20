"""Secrets out of texts and JSON: the one filter in front of results, errors, logs and terminals.

A secret is known by its shape (``key_shapes``), by the name that it stands behind (``api_key=…``), or by its value:
what loomq itself was given is told to ``know`` when it is read. What is hidden becomes ``***``, after the beginning
that says what it was.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from loomq.key_shapes import HIDDEN, SHAPES, is_secret_name, is_secret_value

_SHORTEST = 4  # hiding every "a" because a key is "a" would hide the text
_SHORTEST_KNOWN = 8
_LONGEST_WORD = 16

# What this process was given. It only grows, and nothing acts on it but the functions below.
_known: set[str] = set()


def know(*secrets: str | None) -> None:
    """Hide these values from now on, in everything that this process redacts.

    Words and what is shorter than 8 characters are not taken: the password ``postgres`` would hide each mention of
    Postgres. They are still hidden where their place gives them away, in URLs and behind names.
    """
    for secret in secrets:
        if secret and len(secret) >= _SHORTEST_KNOWN and not (secret.isalpha() and len(secret) < _LONGEST_WORD):
            _known.add(secret)
            _known.add(_in_json(secret))


def know_url(*urls: str | None) -> None:
    """Hide the passwords of these URLs from now on, as they are written there and decoded."""
    for url in urls:
        for part in (url or "").split(";"):  # kombu takes several brokers
            found = re.search(r"://[^/@]*?:([^/@]+)@", part) or re.search(r"[?&]password=([^&]+)", part)
            if found:
                know(found[1], unquote(found[1]))


def redacted(text: str, *secrets: str) -> str:
    """Replace the given secrets, those that are known, and whatever has the shape of one, in a text.

    Args:
        secrets: Keys known by value; those of fewer than 4 characters are left alone.
    """
    given = [secret for secret in secrets if len(secret) >= _SHORTEST]
    for secret in sorted({*given, *_known}, key=len, reverse=True) if given or _known else ():
        text = text.replace(secret, HIDDEN)
    if _GLANCES.search(text):
        for shape in _EXACT:
            if any(sign in text for sign in shape.signs):
                text = shape.hide(text)
    lower = text.lower()
    for shape in _OF_ANY_CASE:
        if any(sign in lower for sign in shape.signs):
            text = shape.hide(text)
    return text


def excerpt(text: str, *secrets: str, length: int = 200) -> str:
    """Quote the beginning of a text, on one line and redacted."""
    # Redacted before it is cut, or half a key could stand at the end.
    flat = " ".join(redacted(text, *secrets).split())
    return flat if len(flat) <= length else f"{flat[:length]}…"


def redacted_json(value: Any) -> Any:
    """Redact the strings and keys of a JSON value; the same object comes back if there is nothing to hide.

    Raises:
        TypeError, ValueError: It is not JSON.
    """
    written = json.dumps(value, ensure_ascii=False)
    shown = redacted_written(written)
    return value if shown is written else json.loads(shown)


def redacted_written(text: str) -> str:
    """Redact the strings and keys of a JSON text; the same text comes back if there is nothing to hide."""
    if not _has_sign(text) and not any(secret in text for secret in _known):
        return text
    shown = _STRING.sub(_Strings().hidden, text)
    return text if shown == text else shown


def redacted_content(text: str) -> str:
    """Redact what somebody said; of JSON a value is seen with its key."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return redacted(text)
    return redacted_written(text)


class _Strings:
    """Redact the strings of a JSON text in their order, so that a value is seen with its key."""

    def __init__(self) -> None:
        self._name = ""

    def hidden(self, match: re.Match[str]) -> str:
        written, colon = match[1], match[2]
        text: str = json.loads(f'"{written}"') if "\\" in written else written
        shown = redacted(text)
        if colon:
            self._name = text if is_secret_name(text) else ""
        else:
            if self._name and not re.search(r"\s", text) and is_secret_value(self._name, text):
                shown = HIDDEN
            self._name = ""
        return match[0] if shown == text else f'"{_in_json(shown)}"{colon}'


_STRING = re.compile(r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"(\s*:|)')


def _in_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _glances() -> str:
    """Write one pattern that finds every sign from its rarest letter on: ``re`` skips fast to a few letters only."""
    signs = {sign for shape in _EXACT if not shape.glance for sign in shape.signs}
    signs = {sign for sign in signs if not any(other in sign for other in signs - {sign})}
    found = [shape.glance for shape in _EXACT if shape.glance]
    for end in "-_":  # a long word follows, which few dashes have behind them
        ending = sorted(sign for sign in signs if sign.endswith(end) and sign.islower())
        found.append(f"{end}(?=[\\w+/*\\-]{{10}})(?:" + "|".join(f"(?<={re.escape(sign)})" for sign in ending) + ")")
        signs -= set(ending)
    for sign in sorted(signs):
        at = max(range(len(sign)), key=lambda number, sign=sign: _rarity(sign[number]))  # type: ignore[misc]
        behind = f"(?<={re.escape(sign[: at + 1])})" if at else ""
        found.append(f"{re.escape(sign[at])}{behind}{re.escape(sign[at + 1 :])}")
    return "|".join(found)


def _rarity(letter: str) -> int:
    return 100 if letter.isupper() else "0123456789etaoinshrdlcumwfgypbvkjxqz".find(letter) % 99


_EXACT = tuple(shape for shape in SHAPES if not shape.any_case)
_OF_ANY_CASE = tuple(shape for shape in SHAPES if shape.any_case)
_SIGNS_OF_ANY_CASE = tuple(sign for shape in _OF_ANY_CASE for sign in shape.signs)
_GLANCES = re.compile(_glances())


def _has_sign(text: str) -> bool:
    """Say whether a text may hold a key: fast, since most hold none."""
    if _GLANCES.search(text):
        return True
    lower = text.lower()
    return any(sign in lower for sign in _SIGNS_OF_ANY_CASE)
