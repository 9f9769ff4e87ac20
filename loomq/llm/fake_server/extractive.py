"""A summarizer that is no language model: it quotes the sentences that TextRank chooses and invents none."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from loomq.llm.fake_server.prose import is_prose, sentences, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MODEL = "loomq-extractive-1"
LABEL = f"{MODEL} (not an LLM)"
METHOD = "Every sentence is quoted from the text; TextRank over TF-IDF chose it. No language model was involved."

MIN_CHARS, MAX_CHARS = 40, 260
DAMPING, ROUNDS = 0.5, 20
# Cosines: from where on a likeness counts, and how alike two chosen sentences may be.
MIN_LIKENESS, MAX_OVERLAP = 0.05, 0.25
LENGTH, MOST_CANDIDATES = 5, 240


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sentence that a summary may quote.

    Args:
        prior: How likely it says what the whole is about, by its place alone; more than 0.
        vector: Its words weighed by TF-IDF, of length 1.
    """

    text: str
    prior: float
    vector: dict[str, float]

    def likeness(self, other: Mapping[str, float]) -> float:
        """Give the cosine of two vectors."""
        return sum(weight * other.get(word, 0.0) for word, weight in self.vector.items())


C = TypeVar("C", bound=Candidate)


def answer(prompt: str) -> str:
    """Sum up the texts in a prompt as JSON: ``summary``, ``sentences`` (the same, one by one) and ``method``.

    Args:
        prompt: JSON, every text of which counts, or plain text. A whole number named ``length`` at its top says how
            many sentences are wanted.
    """
    try:
        payload = json.loads(prompt)
    except (ValueError, RecursionError):
        payload = prompt
    asked = payload.get("length") if isinstance(payload, dict) else None
    chosen = quoted(payload, asked if isinstance(asked, int) and asked > 0 else LENGTH)
    return json.dumps({"summary": " ".join(chosen), "sentences": chosen, "method": METHOD}, ensure_ascii=False)


def quoted(value: Any, length: int) -> list[str]:
    """Choose the sentences that say most of what all texts of a JSON value say."""
    return [sentence.text for sentence in choose(_candidates(value), length)]


def _candidates(payload: Any) -> list[Candidate]:
    """List the sentences of all texts, those that open a text first; what is no prose only if there is nothing else."""
    texts = list(_texts(payload))
    places: dict[str, float] = {}
    for fits in (_fits, lambda _: True):
        for text in texts:
            for number, (start, end) in enumerate(sentences(text)):
                flat = " ".join(text[start:end].split())
                if fits(flat):
                    places.setdefault(flat, 1 / (1 + number))
        if places:
            break
    best = sorted(places, key=lambda text: -places[text])[:MOST_CANDIDATES]
    return [Candidate(text, places[text], vector) for text, vector in zip(best, vectors(best), strict=True)]


def _fits(sentence: str) -> bool:
    return MIN_CHARS <= len(sentence) <= MAX_CHARS and is_prose(sentence)


def _texts(value: Any) -> Iterator[str]:
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, dict | list):
            stack += reversed(list(one.values()) if isinstance(one, dict) else one)


def vectors(texts: Sequence[str]) -> list[dict[str, float]]:
    """Weigh the words of each text by TF-IDF over all of them; each vector has the length 1, or 0 without words."""
    counts = [Counter(words(text)) for text in texts]
    spread = Counter(word for counted in counts for word in counted)
    return [_vector(counted, spread, len(texts)) for counted in counts]


def choose(candidates: Sequence[C], length: int) -> list[C]:
    """Take the sentences that rank highest and say different things, in the order of their rank."""
    ranks = text_rank(candidates)
    chosen: list[C] = []
    for number in sorted(range(len(candidates)), key=lambda index: (-ranks[index], index)):
        candidate = candidates[number]
        if len(chosen) < length and all(candidate.likeness(other.vector) <= MAX_OVERLAP for other in chosen):
            chosen.append(candidate)
    return chosen


def text_rank(candidates: Sequence[Candidate]) -> list[float]:
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


def _overlaps(candidates: Sequence[Candidate]) -> Iterator[tuple[int, int, float]]:
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
