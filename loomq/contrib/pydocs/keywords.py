"""Keywords: the words that set each package apart from the others, by TF-IDF."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import workspace
from loomq.contrib.pydocs.records import Chunk, read_records
from loomq.llm.fake_server.prose import words
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MIN_LETTERS = 3
MIN_COUNT = 2
MIN_PACKAGES_OVERALL = 3


class Keywords(SyncProcessingBackend):
    """Rank the words of each package, and of the whole corpus.

    Args:
        per_package: How many keywords a package gets.
    """

    def __init__(self, per_package: int = 8) -> None:
        self._per_package = per_package

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Write the keywords as JSON: ``overall`` and ``packages``, each a list of ``{term, score}``."""
        space = workspace()
        counts = count_words(read_records(space, payload["chunks_ref"], Chunk))
        packages, overall = rank(counts, self._per_package)
        ref = f"{payload['goal_id']}/keywords.json"
        space.write_json(ref, {"overall": overall, "packages": packages})
        output = {"keywords_ref": ref, "packages": len(packages), "top": [entry["term"] for entry in overall[:12]]}
        return {"output": output, "model_used": None}


def count_words(chunks: Iterable[Chunk]) -> dict[str, Counter[str]]:
    """Count the words of each package."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for chunk in chunks:
        counts[chunk.package].update(word for word in words(chunk.text) if len(word) >= MIN_LETTERS)
    return counts


def rank(counts: dict[str, Counter[str]], per_package: int) -> tuple[dict[str, list[Any]], list[Any]]:
    """Weigh words by ``(1 + log count) * log(packages / packages with the word)``.

    No list of stop words is needed: a word that every package uses weighs nothing.

    Returns:
        The best words of each package, and those whose weight over all packages is greatest; both with scores.
    """
    spread = Counter(word for counted in counts.values() for word in counted)
    rarity = {word: math.log(len(counts) / number) for word, number in spread.items()}
    packages: dict[str, list[Any]] = {}
    totals: Counter[str] = Counter()
    for package in sorted(counts):
        counted = counts[package]
        weights = {
            word: (1 + math.log(number)) * rarity[word] for word, number in counted.items() if number >= MIN_COUNT
        }
        own = set(package.lower().split())
        packages[package] = _best({word: weight for word, weight in weights.items() if word not in own}, per_package)
        totals.update({word: weight for word, weight in weights.items() if spread[word] >= MIN_PACKAGES_OVERALL})
    return packages, _best(totals, 100)


def _best(weights: Mapping[str, float], limit: int) -> list[Any]:
    ordered = sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [{"term": word, "score": round(weight, 3)} for word, weight in ordered if weight > 0]
