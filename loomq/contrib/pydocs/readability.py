"""Readability: how hard each package's prose is to read, by Flesch's reading ease and Kincaid's grade."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import workspace
from loomq.contrib.pydocs.records import Chunk, read_records
from loomq.llm.fake_server.prose import is_prose, sentences
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN = 8

_SPOKEN = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"(?:[^laeiouycgsxz]es|[aeiouy]les?|[^aeiouytd]ed|[^laeiouy]e)$")


@dataclass(slots=True)
class Measure:
    """What is counted of a text."""

    sentences: int = 0
    words: int = 0
    syllables: int = 0

    def add(self, sentence: str) -> None:
        """Count one sentence."""
        spoken = _SPOKEN.findall(sentence)
        self.sentences += 1
        self.words += len(spoken)
        self.syllables += sum(syllables(word.lower()) for word in spoken)

    def scores(self) -> dict[str, Any]:
        """Give reading ease (100 is easy, 0 is hard), school grade, and what was counted."""
        length = self.words / max(self.sentences, 1)
        weight = self.syllables / max(self.words, 1)
        return {
            "reading_ease": round(206.835 - 1.015 * length - 84.6 * weight, 1),
            "grade": round(0.39 * length + 11.8 * weight - 15.59, 1),
            "words_per_sentence": round(length, 1),
            "sentences": self.sentences,
            "words": self.words,
        }


class Readability(SyncProcessingBackend):
    """Measure the prose of each package; code, tables and headings are left out.

    Args:
        min_sentences: A package with fewer is not ranked.
    """

    def __init__(self, min_sentences: int = 20) -> None:
        self._min_sentences = min_sentences

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Write the scores of every package that is ranked as JSON, the easiest first."""
        space = workspace()
        overall = Measure()
        packages: dict[str, Measure] = defaultdict(Measure)
        for chunk in read_records(space, payload["chunks_ref"], Chunk):
            for start, end in sentences(chunk.text):
                sentence = chunk.text[start:end]
                if is_prose(sentence):
                    overall.add(sentence)
                    packages[chunk.package].add(sentence)
        scored = [
            {"package": name, **measure.scores()}
            for name, measure in packages.items()
            if measure.sentences >= self._min_sentences
        ]
        ranked = sorted(scored, key=lambda entry: (-entry["reading_ease"], entry["package"]))
        ref = f"{payload['goal_id']}/readability.json"
        space.write_json(ref, ranked)
        output = {
            "readability_ref": ref,
            "packages": len(ranked),
            "overall": overall.scores(),
            "easiest": [entry["package"] for entry in ranked[:SHOWN]],
            "hardest": [entry["package"] for entry in ranked[: -SHOWN - 1 : -1]],
        }
        return {"output": output, "model_used": None}


@lru_cache(maxsize=50_000)
def syllables(word: str) -> int:
    """Estimate the syllables of a lower-case English word: its groups of vowels, less a silent e."""
    groups = len(_VOWELS.findall(word))
    if groups > 1 and _SILENT.search(word):
        groups -= 1
    return max(groups, 1)
