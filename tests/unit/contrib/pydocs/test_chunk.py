"""Passages: whole, short enough, and where they say they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.contrib.pydocs.chunk import Cut, cut
from loomq.contrib.pydocs.records import Document
from loomq.errors import BackendError

TEXTS = st.lists(st.text(alphabet="abC. \n", min_size=1, max_size=60), min_size=1, max_size=12).map("\n\n".join)


def document(text):
    return Document("m.py:10:m", "m", "m", "m.py", ((0, 10),), "module", text)


@given(TEXTS.map(str.strip).filter(bool), st.integers(10, 80), st.integers(0, 40))
def test_passages_lose_nothing_and_are_never_too_long(text, max_chars, min_chars):
    chunks = list(cut(document(text), max_chars, min_chars))
    assert all(len(chunk.text) <= max_chars for chunk in chunks)
    assert all(chunk.text and chunk.text == text[chunk.start : chunk.end] for chunk in chunks)
    assert "".join("".join(chunk.text for chunk in chunks).split()) == "".join(text.split())
    assert all(chunk.line == 10 + text.count("\n", 0, chunk.start) for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == len(chunks)


def test_short_paragraphs_stay_together_and_long_ones_break_at_sentences():
    long = " ".join(f"This is sentence number {number}." for number in range(30))
    text = f"A heading\n\nA short paragraph.\n\n{long}"
    chunks = list(cut(document(text), 300, 100))
    assert chunks[0].text.startswith("A heading\n\nA short paragraph.\n\nThis")
    assert all(chunk.text.endswith(".") for chunk in chunks)


def test_shards_without_documents_are_refused(space):
    space.write_text("g/empty.jsonl", "")
    with pytest.raises(BackendError, match="no documents"):
        Cut().process_sync({"goal_id": "g", "docs": {"a": "g/empty.jsonl"}}, {})
