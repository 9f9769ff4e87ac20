"""The page: well formed, alone, and safe with any text."""

from __future__ import annotations

from html.parser import HTMLParser

from loomq.contrib.pydocs.page import render

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "br"}


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(text):
    place = {"symbol": text, "file": text, "line": 3}
    told = {**place, "citation": f"{text}:3", "text": text}
    scores = {"reading_ease": 50.0, "grade": 9.0, "words_per_sentence": 15.0, "sentences": 30, "words": 450}
    return {
        "python": text,
        "figures": {
            "files": 1, "source_bytes": 2, "documents": 3, "chars": 4, "passages": 5, "packages": 6,
            "near_duplicate_groups": 7, "reading_ease": 8.5,
        },
        "answer": {
            "question": text, "answer": text, "root": text,
            "passages": [{**told, "sentence": text, "highlights": [[1, 7], [8, 13]]}],
        },
        "summary": {"text": f"So: {text}", "model": text, "quotes": [told]},
        "digest": {"sentences": [told], "packages": [{"package": text, "sentences": [told]}], "method": text},
        "keywords": {"overall": [{"term": text, "score": 1}], "packages": {text: [{"term": text, "score": 0.5}]}},
        "readability": {"overall": scores, "packages": [{"package": text, **scores}]},
        "near_duplicates": [{"members": [place, place], "similarity": 0.75, "text": text}],
    }  # fmt: skip


def test_every_text_is_escaped_and_the_page_needs_nothing_else():
    page = render(report(EVIL), groups=5)
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    assert not {"script", "link", "img", "iframe"} & set(outline.seen)
    assert outline.text.count("alert('x')") >= 15
    assert not [value for name, value in outline.attributes if name in {"src", "href"} or name.startswith("on")]
    assert "http://" not in page
    assert "https://" not in page


def test_the_words_of_the_question_are_marked():
    assert "<mark>script</mark>&gt;<mark>alert</mark>" in render(report(EVIL), groups=5)


def test_a_question_without_an_answer_says_so():
    found = report("x")
    found["answer"] = {**found["answer"], "passages": [], "answer": "Nothing there."}
    assert "<p>Nothing there.</p>" in render(found, groups=0)


def test_a_summary_in_a_model_s_own_words_stands_above_the_sentences_that_it_points_to():
    found = report("x")
    page = render({**found, "summary": {**found["summary"], "model": "llama (local)"}}, groups=0)
    assert "<p>So: x</p>" in page
    assert page.index("So: x") < page.index("It points to:") < page.index("x:3", page.index("It points to:"))
    assert "Written by <b>llama (local)</b>" in page


def test_a_summary_that_only_quotes_is_shown_once_with_the_places():
    found = report("x")
    page = render({**found, "summary": {**found["summary"], "text": "x"}}, groups=0)
    assert "It points to:" not in page
    assert "<h2>Summary</h2><p>x <span" in page
