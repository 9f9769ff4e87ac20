"""Embeddings without a model: vectors that are alike where texts share words."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import struct
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

DIMENSIONS = 64
MAX_DIMENSIONS = 4096
_WORD = re.compile(r"\w+")


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """Give the vector of a text, of length 1 and always the same.

    Each word adds to one dimension or takes from it, as its hash says (Weinberger et al. 2009).
    """
    found = [0.0] * dimensions
    for word, count in Counter(_WORD.findall(text.casefold())).items():
        at, sign = _place(word, dimensions)
        found[at] += sign * math.sqrt(count)
    if not any(found):  # no words, or words that cancel each other
        found[_place(f" {text}", dimensions)[0]] = 1.0
    length = math.hypot(*found)
    return [value / length for value in found]


def packed(values: Sequence[float]) -> str:
    """Write a vector as OpenAI does on request: base64 of little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _place(word: str, dimensions: int) -> tuple[int, int]:
    hashed = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return (hashed >> 1) % dimensions, 1 if hashed & 1 else -1
