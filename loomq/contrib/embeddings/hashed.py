"""Hashed embeddings: vectors out of the letters of a text, with no weights, no server and no dependency."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from loomq.llm.embeddings import EmbeddingProvider

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD = re.compile(r"\w+")
# A word has about as many trigrams as letters: together they shall count for about as much as the word itself.
_TRIGRAM_WEIGHT = 0.4


class HashedEmbeddingProvider(EmbeddingProvider):
    """Texts are near each other if they share words, or parts of words. It knows no meaning.

    "car" and "automobile" are as far apart as any two words, and a sentence is as near as can be to its negation. It
    finds what a search for words finds, inflected and misspelt forms with it, and it is the same on every machine.
    For meaning take a model.

    Method: words and character trigrams, each counted as 1 + log(count), are hashed with a sign (Weinberger et al.,
    "Feature Hashing for Large Scale Multitask Learning", 2009) and the vector is brought to length 1. A text without
    a word is the zero vector.

    Args:
        dimensions: How long the vectors are; the shorter, the more features collide.
    """

    provider = "the hashed embedding"

    def __init__(self, dimensions: int = 256) -> None:
        super().__init__(dimensions)
        self.model = f"hashed-{dimensions}"
        self._width = dimensions

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> list[float]:
        vector = [0.0] * self._width
        for feature, count in Counter(_features(text)).items():
            digest = hashlib.blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=9).digest()
            weight = (1.0 if feature[0] == "w" else _TRIGRAM_WEIGHT) * (1 + math.log(count))
            vector[int.from_bytes(digest[1:]) % self._width] += weight if digest[0] & 1 else -weight
        length = math.hypot(*vector)
        return [number / length for number in vector] if length else vector


def _features(text: str) -> Iterator[str]:
    for word in _WORD.findall(text.casefold()):
        yield f"w{word}"
        edged = f"^{word}$"
        yield from (f"t{edged[start : start + 3]}" for start in range(len(edged) - 2))
