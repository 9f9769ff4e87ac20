"""Chunk: cut documents into passages at paragraphs and sentences, each with its place in file and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.contrib.pydocs.place import workspace
from loomq.contrib.pydocs.records import Chunk, Document, read_records, write_records
from loomq.errors import BackendError
from loomq.llm.fake_server.prose import paragraphs, sentences
from loomq.workers.base import SyncProcessingBackend

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Cut(SyncProcessingBackend):
    """Cut the documents of all shards.

    Args:
        max_chars: No passage is longer.
        min_chars: A shorter passage joins its neighbour where both fit.
    """

    def __init__(self, max_chars: int = 900, min_chars: int = 200) -> None:
        self._max_chars = max_chars
        self._min_chars = min_chars

    def process_sync(self, payload: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Write the passages as JSON lines, sorted by file and place.

        Raises:
            BackendError: The shards hold no documents.
        """
        space = workspace()
        found: dict[str, Document] = {}
        for ref in payload["docs"].values():
            found.update((document.id, document) for document in read_records(space, ref, Document))
        if not found:
            raise BackendError("the shards hold no documents")
        documents = sorted(found.values(), key=lambda document: (document.file, document.line, document.symbol))
        chunks = [chunk for document in documents for chunk in cut(document, self._max_chars, self._min_chars)]
        ref = f"{payload['goal_id']}/chunks.jsonl"
        output = {
            "chunks_ref": ref,
            "chunks": write_records(space, ref, chunks),
            "docs": len(documents),
            "chars": sum(len(document.text) for document in documents),
            "packages": len({document.package for document in documents}),
        }
        return {"output": output, "model_used": None}


def cut(document: Document, max_chars: int, min_chars: int) -> Iterator[Chunk]:
    """Cut one document; the passages lose nothing but space between them.

    Args:
        document: What to cut.
        max_chars: No passage is longer.
        min_chars: A shorter passage joins its neighbour where both fit.
    """
    text = document.text
    for number, (start, end) in enumerate(_packed(text, max_chars, min_chars)):
        yield Chunk(
            id=f"{document.id}#{number}",
            doc=document.id,
            package=document.package,
            symbol=document.symbol,
            file=document.file,
            line=document.line_at(start),
            kind=document.kind,
            start=start,
            end=end,
            text=text[start:end],
        )


def _packed(text: str, max_chars: int, min_chars: int) -> Iterator[tuple[int, int]]:
    """Join neighbouring pieces while they fit; a paragraph that is long enough stands alone."""
    start = end = -1
    for left, right in _pieces(text, max_chars):
        fits = right - start <= max_chars
        if start >= 0 and fits and (end - start < min_chars or right - left < min_chars):
            end = right
            continue
        if start >= 0:
            yield start, end
        start, end = left, right
    if start >= 0:
        yield start, end


def _pieces(text: str, max_chars: int) -> Iterator[tuple[int, int]]:
    """Cut at blank lines, a long paragraph at its sentences, a long sentence where a word ends."""
    for start, end in paragraphs(text):
        if end - start <= max_chars:
            yield start, end
            continue
        for left, right in sentences(text[start:end]):
            yield from _hard_cut(text, start + left, start + right, max_chars)


def _hard_cut(text: str, start: int, end: int, max_chars: int) -> Iterator[tuple[int, int]]:
    while end - start > max_chars:
        half, full = start + max_chars // 2, start + max_chars
        line_end, word_end = text.rfind("\n", half, full), text.rfind(" ", half, full)
        stop = next((place for place in (line_end, word_end) if place > 0), full)
        yield start, start + len(text[start:stop].rstrip())
        start = stop + len(text[stop:end]) - len(text[stop:end].lstrip())
    yield start, end
