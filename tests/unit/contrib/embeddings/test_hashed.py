"""Hashed vectors: the same everywhere, of length 1, near where words are shared."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.contrib.embeddings.hashed import HashedEmbeddingProvider
from loomq.errors import ConfigError


def embed(*texts, **more):
    return asyncio.run(HashedEmbeddingProvider(**more).embed_batch(texts))


def near(one, other):
    first, second = embed(one, other)
    return sum(left * right for left, right in zip(first, second, strict=True))


@given(st.text(st.characters(codec=None), max_size=60), st.integers(1, 64))
def test_a_vector_has_length_one_or_there_is_no_word(text, dimensions):
    [vector] = embed(text, dimensions=dimensions)
    assert len(vector) == dimensions
    length = math.hypot(*vector)
    # Features that collide with opposite signs may cancel out.
    assert length == pytest.approx(1) or length == 0


def test_vectors_are_the_same_on_every_machine_and_in_every_process():
    [vector] = embed("retry", dimensions=8)
    assert [round(number, 3) for number in vector] == [-0.298, 0.0, -0.298, 0.745, 0.0, -0.298, 0.298, 0.298]


def test_shared_words_and_parts_of_words_are_near_and_their_case_is_nothing():
    asked = "retrying a lost connection"
    assert near(asked, "Retrying a LOST connection!") == pytest.approx(1)
    assert near(asked, "retries of connections that were lost") > near(asked, "the volcano above the harbour") + 0.2


def test_a_word_that_is_repeated_counts_more_but_not_as_often():
    assert near("cat dog", "cat dog dog dog dog") > near("cat dog", "dog")


def test_no_word_is_the_zero_vector():
    assert embed("… ?!", dimensions=3) == [[0.0, 0.0, 0.0]]


def test_the_length_of_vectors_is_known_beforehand():
    assert asyncio.run(HashedEmbeddingProvider(7).dimensions()) == 7
    with pytest.raises(ConfigError):
        HashedEmbeddingProvider(0)
