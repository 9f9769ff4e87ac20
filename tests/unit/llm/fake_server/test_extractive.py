"""The summarizer that is no language model quotes, and only quotes."""

from __future__ import annotations

import json

from hypothesis import given
from strategies import JSON

from loomq.llm.fake_server.extractive import answer

TEXT = (
    "Celery hands each task to a worker process over a message broker. "
    "A broker keeps the messages of a task until a worker process takes them. "
    "Cats sleep for most of the day and hunt at night in the garden. "
    "When a worker process is lost, the message of its task goes to another worker. "
    "The weather was fine on the last day of the long journey home."
)


def test_every_sentence_of_the_summary_stands_in_the_text():
    found = json.loads(answer(json.dumps({"text": TEXT, "length": 2})))
    assert len(found["sentences"]) == 2
    assert all(sentence in TEXT for sentence in found["sentences"])
    assert found["summary"] == " ".join(found["sentences"])
    assert "No language model" in found["method"]


def test_the_sentences_that_resemble_others_are_chosen():
    found = json.loads(answer(json.dumps({"passages": [{"text": TEXT}], "length": 1})))
    assert "broker" in found["summary"] or "worker" in found["summary"]


def test_plain_text_and_short_text_have_summaries_too():
    assert json.loads(answer(TEXT))["sentences"]
    assert json.loads(answer("two words"))["summary"] == "two words"
    assert json.loads(answer(""))["sentences"] == []


@given(JSON)
def test_any_payload_is_answered(value):
    assert json.loads(answer(json.dumps(value)))["sentences"] is not None
