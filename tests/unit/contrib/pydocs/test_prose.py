"""Words, sentences and what counts as prose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.llm.fake_server.prose import is_prose, paragraphs, sentences, words


def pieces(text):
    return [text[start:end] for start, end in sentences(text)]


def test_sentences_end_at_full_stops_and_blank_lines():
    text = 'Open a file. Read it, e.g. Text.  "Why?" Because\nit is there.\n\nA heading\n\nLast (of all.) Done'
    assert pieces(text) == [
        "Open a file.",
        "Read it, e.g. Text.",
        '"Why?"',
        "Because\nit is there.",
        "A heading",
        "Last (of all.)",
        "Done",
    ]


@given(st.text(alphabet="aB.!? \n\t\"')1", max_size=80))
def test_sentences_and_paragraphs_lose_nothing_but_space(text):
    for split in (sentences, paragraphs):
        spans = list(split(text))
        assert "".join("".join(text[start:end] for start, end in spans).split()) == "".join(text.split())
        assert all(text[start:end] == text[start:end].strip() for start, end in spans)
        assert spans == sorted(spans)


def test_words_are_lower_case_and_keep_underscores():
    assert words("The __init__ of HTTPServer2, a x_y") == ["the", "__init__", "of", "httpserver2", "x_y"]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Return the next item from the iterator.", True),
        ("The file is opened by the caller; it stays open.", True),
        (">>> Return the next item from it.", False),
        ("return the next item from the iterator.", False),
        ("Too few words.", False),
        ("Return the next item from the iterator", False),
        ("X = [a for a in b if c[a] == {d: e}].", False),
        ("Arguments are: host: the name to use, port: the number to use.", False),
        ("", False),
    ],
)
def test_prose_is_told_from_code_and_lists(sentence, expected):
    assert is_prose(sentence) is expected
