"""Summary: the sentences that stand for the corpus and for its largest packages, chosen by TextRank, none invented."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import workspace
from loomq.contrib.pydocs.prose import is_prose, sentences, words
from loomq.contrib.pydocs.records import Chunk, read_records
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MODEL = "TextRank over TF-IDF (extractive, not an LLM)"
METHOD = "Every sentence is quoted from the documentation; TextRank chose it. No language model was involved."

MIN_CHARS, MAX_CHARS = 40, 260
DAMPING, ROUNDS = 0.5, 20
# Cosines: from where on a likeness counts, and how alike two chosen sentences may be.
MIN_LIKENESS, MAX_OVERLAP = 0.05, 0.25
# How much a text of this kind says what its package is for.
OVERVIEW = {"module": 1.0, "topic": 1.0, "class": 0.4, "function": 0.1}
PRIVATE = 0.3


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence with its place.

    Args:
        prior: How likely it says what the whole is about, by its place alone: modules before functions, outer before
            inner, first sentences before later ones.
        vector: Its words weighed by TF-IDF, of length 1.
    """

    text: str
    chunk: Chunk
    line: int
    prior: float
    vector: dict[str, float]

    def likeness(self, other: Mapping[str, float]) -> float:
        """Give the cosine of two vectors."""
        return sum(weight * other.get(word, 0.0) for word, weight in self.vector.items())

    def to_json(self) -> dict[str, Any]:
        """Give what a reader needs."""
        return {"text": self.text, "symbol": self.chunk.symbol, "citation": f"{self.chunk.file}:{self.line}"}


class Summary(SyncProcessingBackend):
    """Choose the sentences of the summary.

    Args:
        length: How many sentences stand for the corpus.
        packages: How many of the largest packages are summed up.
        package_length: With how many sentences each.
        candidates: How many sentences of the corpus are ranked against each other, at most; of a package half as many.
    """

    def __init__(self, length: int = 5, packages: int = 6, package_length: int = 2, candidates: int = 240) -> None:
        self._length = length
        self._packages = packages
        self._package_length = package_length
        self._candidates = candidates

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Sum up the passages of ``chunks_ref``, with the corpus' keywords as what matters."""
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
            "text": " ".join(sentence.text for sentence in chosen),
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
    counts = {text: Counter(words(text)) for text in places}
    spread = Counter(word for counted in counts.values() for word in counted)
    return [Sentence(text, *place, _vector(counts[text], spread, len(places))) for text, place in places.items()]


def prior(chunk: Chunk, number: int) -> float:
    """Weigh a sentence by its place: the ``number``-th of its document, from 0."""
    depth = 0 if chunk.kind == "topic" else chunk.symbol.count(".")
    return OVERVIEW[chunk.kind] * (PRIVATE if chunk.package.startswith("_") else 1) / (1 + depth) / (1 + number)


def choose(candidates: Sequence[Sentence], length: int) -> list[Sentence]:
    """Take the sentences that rank highest and say different things, in the order of their rank."""
    ranks = text_rank(candidates)
    chosen: list[Sentence] = []
    for number in sorted(range(len(candidates)), key=lambda index: (-ranks[index], index)):
        candidate = candidates[number]
        if len(chosen) < length and all(candidate.likeness(other.vector) <= MAX_OVERLAP for other in chosen):
            chosen.append(candidate)
    return chosen


def text_rank(candidates: Sequence[Sentence]) -> list[float]:
    """Rank sentences by how much the others resemble them, starting from their priors; the ranks add up to 1.

    TextRank (Mihalcea and Tarau 2004) with a biased start, as in PageRank's personalised form.
    """
    likeness: list[dict[int, float]] = [{} for _ in candidates]
    for left, right, weight in _overlaps(candidates):
        likeness[left][right] = likeness[right][left] = weight
    totals = [sum(row.values()) for row in likeness]
    whole = sum(candidate.prior for candidate in candidates)
    starts = [candidate.prior / whole for candidate in candidates]
    ranks = starts
    for _ in range(ROUNDS):
        idle = sum(rank for rank, total in zip(ranks, totals, strict=True) if not total)
        ranks = [
            (1 - DAMPING + DAMPING * idle) * start
            + DAMPING * sum(weight / totals[other] * ranks[other] for other, weight in row.items())
            for start, row in zip(starts, likeness, strict=True)
        ]
    return ranks


def _overlaps(candidates: Sequence[Sentence]) -> Iterator[tuple[int, int, float]]:
    """Find the pairs that share a word, by way of the words."""
    holders: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, sentence in enumerate(candidates):
        shared: dict[int, float] = defaultdict(float)
        for word, weight in sentence.vector.items():
            for other, its_weight in holders[word]:
                shared[other] += weight * its_weight
            holders[word].append((number, weight))
        for other, likeness in shared.items():
            if likeness >= MIN_LIKENESS:
                yield other, number, likeness


def _vector(counted: Counter[str], spread: Counter[str], total: int) -> dict[str, float]:
    weights = {word: number * math.log(total / spread[word]) for word, number in counted.items()}
    length = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
    return {word: weight / length for word, weight in weights.items()}
