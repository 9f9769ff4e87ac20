"""Near duplicates: passages that say almost the same, found exactly by the Jaccard similarity of their word runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import workspace
from loomq.contrib.pydocs.records import Chunk, read_records
from loomq.llm.fake_server.prose import words
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Pair:
    """Two passages by their numbers, and how alike they are: from 0 to 1."""

    left: int
    right: int
    similarity: float


class NearDuplicates(SyncProcessingBackend):
    """Group passages that share most of their runs of words.

    Args:
        threshold: The least Jaccard similarity of two passages in a group.
        run: How many words a run has.
        min_words: Shorter passages are not compared.
    """

    def __init__(self, threshold: float = 0.7, run: int = 5, min_words: int = 12) -> None:
        self._threshold = threshold
        self._run = run
        self._min_words = min_words

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Write the groups as a JSON list, the largest first."""
        space = workspace()
        chunks, runs = [], []
        for chunk in read_records(space, payload["chunks_ref"], Chunk):
            spoken = words(chunk.text)
            if len(spoken) >= self._min_words:
                chunks.append(chunk)
                runs.append(word_runs(spoken, self._run))
        pairs = list(similar_pairs(runs, self._threshold))
        groups = [_described(chunks, group, pairs) for group in grouped(pairs)]
        groups.sort(key=lambda group: (-len(group["members"]), group["members"][0]["id"]))
        ref = f"{payload['goal_id']}/near_duplicates.json"
        space.write_json(ref, groups)
        output = {
            "groups_ref": ref,
            "groups": len(groups),
            "passages": sum(len(group["members"]) for group in groups),
            "compared": len(chunks),
            "threshold": self._threshold,
        }
        return {"output": output, "model_used": None}


def word_runs(spoken: Sequence[str], length: int) -> frozenset[str]:
    """List every run of so many neighbouring words."""
    return frozenset(" ".join(spoken[at : at + length]) for at in range(len(spoken) - length + 1))


def similar_pairs(sets: Sequence[frozenset[str]], threshold: float) -> Iterator[Pair]:
    """Find every pair with a Jaccard similarity of at least ``threshold``.

    Prefix filtering keeps it exact and fast: if both sets are sorted by rarity, a pair that alike must meet within
    the first ``n - ceil(threshold * n) + 1`` elements, so only those are looked up (Bayardo, Ma and Srikant 2007).
    """
    spread = Counter(element for elements in sets for element in elements)
    seen: dict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(sets)), key=lambda index: (len(sets[index]), index)):
        elements = sets[number]
        if not elements:
            continue
        rarest = sorted(elements, key=lambda element: (spread[element], element))
        prefix = rarest[: len(rarest) - math.ceil(threshold * len(rarest)) + 1]
        shared = [element for element in prefix if spread[element] > 1]
        for other in sorted({candidate for element in shared for candidate in seen[element]}):
            similarity = len(elements & sets[other]) / len(elements | sets[other])
            if similarity >= threshold:
                yield Pair(other, number, similarity)
        for element in shared:
            seen[element].append(number)


def grouped(pairs: Sequence[Pair]) -> list[list[int]]:
    """Join pairs that share a passage."""
    leader: dict[int, int] = {}

    def find(member: int) -> int:
        while leader.setdefault(member, member) != member:
            leader[member] = leader[leader[member]]
            member = leader[member]
        return member

    for pair in pairs:
        leader[find(pair.left)] = find(pair.right)
    groups: dict[int, list[int]] = defaultdict(list)
    for member in sorted(leader):
        groups[find(member)].append(member)
    return list(groups.values())


def _described(chunks: Sequence[Chunk], group: Sequence[int], pairs: Sequence[Pair]) -> dict[str, Any]:
    inside = set(group)
    weakest = min(pair.similarity for pair in pairs if pair.left in inside)
    members = [
        {"id": chunk.id, "symbol": chunk.symbol, "file": chunk.file, "line": chunk.line}
        for chunk in (chunks[number] for number in group)
    ]
    return {"members": members, "similarity": round(weakest, 3), "text": chunks[group[0]].text}
