"""Vectors without a model."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.llm.fake_server.embeddings import vector


@given(text=st.text(), dimensions=st.integers(1, 100))
def test_every_text_has_a_vector_of_length_one_and_always_the_same(text, dimensions):
    found = vector(text, dimensions)
    assert len(found) == dimensions
    assert math.hypot(*found) == pytest.approx(1)
    assert found == vector(text, dimensions)


def test_texts_that_share_words_are_alike():
    cat, same, other = map(vector, ("A cat sat.", "sat a CAT", "brokers keep messages"))
    assert cat == pytest.approx(same)
    assert sum(one * two for one, two in zip(cat, other, strict=True)) < 0.5
