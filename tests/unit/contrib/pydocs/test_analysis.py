"""Keywords, near duplicates, readability and the summary, each against what can be reckoned by hand."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomq.contrib.pydocs.digest import prose_of
from loomq.contrib.pydocs.keywords import rank
from loomq.contrib.pydocs.near_duplicates import grouped, similar_pairs, word_runs
from loomq.contrib.pydocs.readability import Measure, syllables
from loomq.contrib.pydocs.records import Chunk
from loomq.llm.fake_server.extractive import MAX_OVERLAP, choose, text_rank

SETS = st.lists(st.frozensets(st.sampled_from("abcdefghij"), max_size=8), max_size=14)


def chunk(text, package="p", symbol="p", kind="module", start=0):
    return Chunk(f"{symbol}:{text[:20]}", symbol, package, symbol, "p.py", 7, kind, start, start + len(text), text)


def test_a_word_that_every_package_uses_is_no_keyword():
    counts = {name: Counter({"the": 50, name * 3: 4, "rare": 1}) for name in ("a", "b", "c", "d")}
    packages, overall = rank(counts, 5)
    assert {name: [entry["term"] for entry in entries] for name, entries in packages.items()} == {
        name: [name * 3] for name in counts
    }
    assert overall == []


def test_the_name_of_a_package_is_not_its_keyword():
    packages, _ = rank({"email": Counter(email=9, header=5), "json": Counter(decode=2)}, 5)
    assert [entry["term"] for entry in packages["email"]] == ["header"]


@given(SETS, st.sampled_from([0.3, 0.5, 0.7, 0.9, 1.0]))
def test_every_similar_pair_is_found_and_no_other(sets, threshold):
    found = {frozenset((pair.left, pair.right)): pair.similarity for pair in similar_pairs(sets, threshold)}
    expected = {
        frozenset((left, right)): len(sets[left] & sets[right]) / len(sets[left] | sets[right])
        for left, right in itertools.combinations(range(len(sets)), 2)
        if sets[left] and sets[right] and len(sets[left] & sets[right]) >= threshold * len(sets[left] | sets[right])
    }
    assert found == expected


def test_pairs_that_share_a_passage_are_one_group():
    texts = [
        "one two three four five six seven",
        "one two three four five six seven",
        "one two three four five six x",
        "other words that no passage shares at all",
    ]
    pairs = list(similar_pairs([word_runs(text.split(), 3) for text in texts], 0.6))
    assert [sorted(group) for group in grouped(pairs)] == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("file", 1),
        ("files", 1),
        ("classes", 2),
        ("tables", 2),
        ("the", 1),
        ("table", 2),
        ("documentation", 5),
        ("python", 2),
        ("named", 1),
        ("x", 1),
    ],
)
def test_syllables_are_counted(word, count):
    assert syllables(word) == count


def test_reading_ease_and_grade_follow_the_formulas():
    measure = Measure()
    measure.add("The cat sat on the mat.")
    scores = measure.scores()
    assert scores["reading_ease"] == pytest.approx(206.835 - 1.015 * 6 - 84.6, abs=0.05)
    assert scores["grade"] == pytest.approx(0.39 * 6 + 11.8 - 15.59, abs=0.05)


def test_a_summary_only_quotes_and_does_not_repeat_itself():
    told = [
        "Sockets connect programs over a network.",
        "Sockets connect programs across a network.",
        "Archives keep many files within one file.",
        "Iterators give one item after another item.",
    ]
    chunks = [chunk(text, package=f"p{number}", symbol=f"p{number}") for number, text in enumerate(told)]
    chunks.append(chunk("Nothing that continues a document is an opening.", start=40))
    found = prose_of(chunks)
    assert [sentence.text for sentence in found] == told
    ranks = text_rank(found)
    assert sum(ranks) == pytest.approx(1)
    assert ranks[0] > ranks[3]
    chosen = choose(found, 4)
    assert len(chosen) == 3
    assert all(a.likeness(b.vector) <= MAX_OVERLAP for a, b in itertools.combinations(chosen, 2))


def test_a_module_speaks_for_its_package_before_a_function_does():
    found = prose_of([
        chunk("Function texts stand behind all of the others.", symbol="p.f", kind="function"),
        chunk("Module texts speak for the whole of the package.", symbol="p"),
    ])  # fmt: skip
    assert choose(found, 1)[0].chunk.kind == "module"


def test_no_sentences_give_no_summary():
    assert choose([], 3) == []
