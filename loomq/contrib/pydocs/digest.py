"""Digest: the sentences that stand for the corpus and for its largest packages, chosen by TextRank, none invented."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import workspace
from loomq.contrib.pydocs.records import Chunk, read_records
from loomq.llm.fake_server.extractive import MAX_CHARS, MIN_CHARS, Candidate, choose, vectors
from loomq.llm.fake_server.prose import is_prose, sentences
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODEL = "TextRank over TF-IDF (extractive, not an LLM)"
METHOD = "Every sentence is quoted from the documentation; TextRank chose it, and no language model."

# How much a text of this kind says what its package is for.
OVERVIEW = {"module": 1.0, "topic": 1.0, "class": 0.4, "function": 0.1}
PRIVATE = 0.3


@dataclass(frozen=True, slots=True)
class Sentence(Candidate):
    """A sentence with its place; modules come before functions, outer before inner, first sentences before later."""

    chunk: Chunk
    line: int

    def to_json(self) -> dict[str, Any]:
        """Give what a reader needs."""
        return {"text": self.text, "symbol": self.chunk.symbol, "citation": f"{self.chunk.file}:{self.line}"}


class Digest(SyncProcessingBackend):
    """Choose what a summary is made from.

    Args:
        length: How many sentences stand for the corpus, at most.
        packages: How many of the largest packages are summed up.
        package_length: With how many sentences each.
        candidates: How many sentences of the corpus are ranked against each other, at most; of a package half as many.
    """

    def __init__(self, length: int = 24, packages: int = 6, package_length: int = 2, candidates: int = 240) -> None:
        self._length = length
        self._packages = packages
        self._package_length = package_length
        self._candidates = candidates

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Choose from the passages of ``chunks_ref``, with the corpus' keywords as what matters; the best first."""
        space = workspace()
        chunks = list(read_records(space, payload["chunks_ref"], Chunk))
        topic = {entry["term"]: entry["score"] for entry in space.read_json(payload["keywords_ref"])["overall"]}
        found = prose_of(chunks)
        openings: dict[str, Sentence] = {}
        for sentence in sorted(found, key=lambda sentence: -sentence.prior):
            chunk = sentence.chunk
            openings.setdefault(chunk.symbol if chunk.kind == "topic" else chunk.package, sentence)
        nearest = sorted(openings.values(), key=lambda sentence: -sentence.likeness(topic) * sentence.prior)
        chosen = choose(nearest[: self._candidates], self._length)
        packages = self._of_packages(chunks, found)
        output = {
            "text": "\n\n".join(sentence.text for sentence in chosen),
            "sentences": [sentence.to_json() for sentence in chosen],
            "packages": packages,
            "considered": len(found),
            "method": METHOD,
        }
        return {"output": output, "model_used": MODEL}

    def _of_packages(self, chunks: Sequence[Chunk], found: Sequence[Sentence]) -> list[dict[str, Any]]:
        """Sum up each of the largest packages, from what its modules and classes say of themselves."""
        volume = Counter[str]()
        for chunk in chunks:
            volume[chunk.package] += len(chunk.text)
        by_package: dict[str, list[Sentence]] = defaultdict(list)
        for sentence in sorted(found, key=lambda sentence: -sentence.prior):
            by_package[sentence.chunk.package].append(sentence)
        summed: list[dict[str, Any]] = []
        for package, chars in volume.most_common():
            if by_package[package] and len(summed) < self._packages:
                chosen = choose(by_package[package][: self._candidates // 2], self._package_length)
                told = [sentence.to_json() for sentence in chosen]
                summed.append({"package": package, "chars": chars, "sentences": told})
        return summed


def prose_of(chunks: Sequence[Chunk]) -> list[Sentence]:
    """List the sentences that open a document and can stand alone, each once."""
    places: dict[str, tuple[Chunk, int, float]] = {}
    for chunk in chunks:
        spans = sentences(chunk.text) if chunk.start == 0 else ()
        for number, (start, end) in enumerate(spans):
            raw = chunk.text[start:end]
            if MIN_CHARS <= len(raw) <= MAX_CHARS and is_prose(raw):
                line = chunk.line + chunk.text.count("\n", 0, start)
                places.setdefault(" ".join(raw.split()), (chunk, line, prior(chunk, number)))
    weighed = zip(places.items(), vectors(list(places)), strict=True)
    return [Sentence(text, weight, vector, chunk, line) for (text, (chunk, line, weight)), vector in weighed]


def prior(chunk: Chunk, number: int) -> float:
    """Weigh a sentence by its place: the ``number``-th of its document, from 0."""
    depth = 0 if chunk.kind == "topic" else chunk.symbol.count(".")
    return OVERVIEW[chunk.kind] * (PRIVATE if chunk.package.startswith("_") else 1) / (1 + depth) / (1 + number)
