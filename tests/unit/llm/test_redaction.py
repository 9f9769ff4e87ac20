"""Keys are hidden by value and by shape."""

from __future__ import annotations

import pytest

from loomq.llm.redaction import excerpt, redacted


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-abcdefgh12345678.",
        "Authorization: Bearer eyJhbGciOi.abc",
        "key is sk-ant-api03-AAAABBBBCCCC",
        "gsk_1234567890abcdef",
    ],
)
def test_a_key_is_known_by_its_shape(text):
    assert not any(part in redacted(text) for part in ("abcdefgh", "eyJhb", "AAAABBBB", "1234567890"))
    assert "***" in redacted(text)


def test_a_key_is_known_by_its_value_whatever_its_shape():
    assert redacted("the secret hunter2! failed", "hunter2!") == "the secret *** failed"


def test_a_key_that_holds_another_is_hidden_whole():
    assert redacted("abcdef abcd", "abcd", "abcdef") == "*** ***"


def test_what_is_too_short_to_be_a_key_hides_nothing():
    assert redacted("a cat", "a") == "a cat"


def test_an_excerpt_is_one_short_line_without_half_a_key():
    text = "word " * 38 + "hunter2-hunter2-hunter2" + " tail" * 100
    shown = excerpt(text, "hunter2-hunter2-hunter2")
    assert "hunter" not in shown
    assert len(shown) == 201
    assert "\n" not in excerpt("a\nb")
