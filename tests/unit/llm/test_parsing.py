"""Lenient JSON: what counts as the answer, what is refused, and that no text takes long."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON

from loomq.errors import LLMAnswerError
from loomq.llm.parsing import MAX_BLOCKS, parse_object

OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)
# Prose without what could be an answer of its own.
PROSE = st.text(st.characters(blacklist_characters='{}[]"`<>', blacklist_categories=["Cs"]), max_size=60).map(
    lambda text: "Well: " + text
)
FENCE = "```"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', {"a": 1}),
        ('  \n{"a": 1}\n', {"a": 1}),
        ('\ufeff{"a": 1}', {"a": 1}),
        ("{}", {}),
        ('{"a": "two\nlines"}', {"a": "two\nlines"}),
        (f'Here it is:\n{FENCE}json\n{{"a": 1}}\n{FENCE}\nAnything else?', {"a": 1}),
        (f'{FENCE}\n{{"a": 1}}\n{FENCE}', {"a": 1}),
        (f'{FENCE}JSON\n{{"a": 1}}\n{FENCE}', {"a": 1}),
        (f'````json\n{{"a": "{FENCE}"}}\n````', {"a": FENCE}),
        (f'{FENCE}json\n{{"a": 1}}', {"a": 1}),
        (f'{FENCE}python\nx = 1\n{FENCE}\n{FENCE}json\n{{"a": 1}}\n{FENCE}', {"a": 1}),
        (f'{FENCE}yaml\na: 1\nb: {{"c": 2}}\n{FENCE}', {"a": 1, "b": {"c": 2}}),
        (f"{FENCE}yml\na: [x, y]\n{FENCE}", {"a": ["x", "y"]}),
        (f"{FENCE}\nanswer: 42\n{FENCE}", {"answer": 42}),
        ('Sure! {"a": {"b": [1, {}]}} Bye.', {"a": {"b": [1, {}]}}),
        ('Fill in {name}, as { in }: {"a": 1}', {"a": 1}),
        ('{"a": 1} and {"b": 2}', {"a": 1}),
        ('It is {"a": "}{", "b": "\\"}"}.', {"a": "}{", "b": '"}'}),
        ('{"first": oops} {"a": 1}', {"a": 1}),
        ('<think>maybe {"no": 1}</think>\n{"a": 1}', {"a": 1}),
        (f'<think>\n{FENCE}json\n{{"no": 1}}\n{FENCE}\n</think>\n{FENCE}json\n{{"a": 1}}\n{FENCE}', {"a": 1}),
        ('maybe {"no": 1}</think> so {"a": 1}', {"a": 1}),
        ('<think>x</think><think>{"no": 1}</think>{"a": "<think>kept</think>"}', {"a": "<think>kept</think>"}),
        ('{"a": "<think>{}</think>"}', {"a": "<think>{}</think>"}),
    ],
)
def test_the_object_that_the_model_meant_is_found(text, found):
    assert parse_object(text).value == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "(it is empty)"),
        ("Answer: 42", "begins: Answer: 42"),
        ("answer: 42\nmore: yes", "no JSON object"),
        ("42", "the value 42"),
        ("null", "the value null"),
        ('"text"', "a text"),
        ('[{"a": 1}]', "a list"),
        ('Here: [{"a": 1}, {"b": 2}]', "a list"),
        (f'{FENCE}json\n[{{"a": 1}}]\n{FENCE}', "a list"),
        (f"{FENCE}yaml\n- a\n- b\n{FENCE}", "no JSON object"),
        (f"{FENCE}yaml\na: 1\na: 2\n{FENCE}", "no JSON object"),
        (f"{FENCE}yaml\na: !!python/object/apply:os.system [x]\n{FENCE}", "no JSON object"),
        ('{"a": {"b": 1}, "c": "cut of', "no JSON object"),
        ('Sure: {"a": {"b": 1}, "c":', "no JSON object"),
        ('{"a": NaN}', "no JSON object"),
        ('<think>{"no": 1}</think>', "no JSON object"),
        ("}{", "no JSON object"),
    ],
)
def test_what_is_no_object_is_an_error_that_quotes_the_text(text, told):
    with pytest.raises(LLMAnswerError) as caught:
        parse_object(text)
    assert told in caught.value.message
    assert caught.value.retryable


def test_at_most_two_hundred_characters_are_quoted_and_no_key():
    text = "sk-canary-0123456789 " + "x" * 500
    with pytest.raises(LLMAnswerError) as caught:
        parse_object(text)
    assert "canary" not in caught.value.message
    assert "x" * 150 in caught.value.message
    assert "x" * 201 not in caught.value.message


@given(OBJECTS, PROSE, PROSE)
def test_an_object_is_found_whatever_stands_around_it(value, before, after):
    text = json.dumps(value)
    assert parse_object(text).value == value
    assert parse_object(f"{before}\n{FENCE}json\n{text}\n{FENCE}\n{after}") == (value, "fenced")
    assert parse_object(f"{before} {json.dumps({'answer': value})} {after}") == ({"answer": value}, "surrounded")
    assert parse_object(f"<think>{before} {text}</think>{json.dumps({'answer': value}, indent=2)}").value == {
        "answer": value
    }


@given(st.text(st.sampled_from('{}[]":,\\ `\n<think>/a1-'), max_size=200))
def test_any_text_gives_an_object_or_the_one_error(text):
    with contextlib.suppress(LLMAnswerError):
        assert isinstance(parse_object(text).value, dict)


@pytest.mark.parametrize(
    ("text", "repair"),
    [
        ('{"a": 1}', None),
        (' {"a": 1}\n', None),
        ('{"a": "1\n2"}', "unescaped"),
        ('\ufeff{"a": 1}', "unescaped"),
        (f'{FENCE}json\n{{"a": 1}}\n{FENCE}', "fenced"),
        (f'{FENCE}yaml\n{{"a": 1}}\n{FENCE}', "fenced"),
        (f"{FENCE}yaml\na: 1\n{FENCE}", "yaml"),
        (f"{FENCE}\na: 1\n{FENCE}", "yaml"),
        ('Sure: {"a": 1}', "surrounded"),
        ('<think>{"no": 1}</think>{"a": 1}', "surrounded"),
    ],
)
def test_what_had_to_be_done_to_read_an_answer_is_told(text, repair):
    assert parse_object(text).repair == repair


MEGABYTE = 1_000_000
UNITS = [
    "{", '{"', '{"a":', '{"a":[', '{"a":1,', '[{"a":1,', "[", "[ ", '{"a":"\\"', '{"a":"x', '"\\"', "{ ", "{ \n",
    "<think>", "</think>", "<think></think>", f"{FENCE}\n", f"{FENCE}yaml\na: b\n{FENCE}\n",
    f"{FENCE}\na: [b,\n{FENCE}\n",
    '{"a":1111', '{"k":[' + "1," * 400 + '{"a":[', '{"k":"' + "a" * 900 + '","b":{', "&a [*a,", "`", " ",
]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: repr(unit[:12]))
def test_the_time_for_a_megabyte_of_malice_grows_with_its_length_only(unit):
    def seconds(size):
        text = "x " + (unit * (size // len(unit) + 1))[:size]
        started = time.process_time()
        with contextlib.suppress(LLMAnswerError):
            parse_object(text)
        return time.process_time() - started

    tenth = max(min(seconds(MEGABYTE // 10) for _ in range(2)), 0.005)
    assert seconds(MEGABYTE) < 40 * tenth  # quadratic would be a hundred times


def test_only_so_many_fenced_blocks_are_looked_at():
    block = f"{FENCE}\nx\n{FENCE}\n"
    with pytest.raises(LLMAnswerError):
        parse_object(block * MAX_BLOCKS + f"{FENCE}\na: 1\n{FENCE}")
    assert parse_object(block * (MAX_BLOCKS - 1) + f"{FENCE}\na: 1\n{FENCE}") == ({"a": 1}, "yaml")
