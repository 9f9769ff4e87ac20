"""Keys out of texts: what a provider or a library says may repeat a key, and errors and journals must not."""

from __future__ import annotations

import re

HIDDEN = "***"

# A key by its shape, for those that are not known by value: sk-…, key-…, "Bearer …".
_SHAPES = re.compile(
    r"\b(?:sk|pk|rk|key|api|gsk|xai|hf|ghp|AIza)[-_][A-Za-z0-9_\-*]{8,}|(?<=\bBearer )[^\s\"',;]+", re.IGNORECASE
)
_SHORTEST = 4  # hiding every "a" because a key is "a" would hide the text


def redacted(text: str, *secrets: str) -> str:
    """Replace the given secrets, and whatever has the shape of a key, in a text.

    Args:
        secrets: Keys known by value; those of fewer than 4 characters are left alone.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    return _SHAPES.sub(HIDDEN, text)


def excerpt(text: str, *secrets: str, length: int = 200) -> str:
    """Quote the beginning of a text, on one line and redacted."""
    # Redacted before it is cut, or half a key could stand at the end.
    flat = " ".join(redacted(text, *secrets).split())
    return flat if len(flat) <= length else f"{flat[:length]}…"
