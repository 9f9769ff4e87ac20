"""Few-shot files: lists of inputs and outputs, and texts that are none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import JSON

from loomq.knowledge.examples import numbered
from loomq.yaml_text import MAX_BYTES

WRITTEN = 'Example 1\nInput: {"text":"ß","n":1}\nOutput: yes\n\nExample 2\nInput: two\nlines\nOutput: [1,null,true]'
EXAMPLES = [{"input": {"text": "ß", "n": 1}, "output": "yes"}, {"input": "two\nlines", "output": [1, None, True]}]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(EXAMPLES),
        json.dumps(EXAMPLES, indent="\t"),
        json.dumps([{**EXAMPLES[0], "note": "left out"}, EXAMPLES[1]], ensure_ascii=False),
        """
# YAML
- input: {text: ß, n: 1}
  output: yes
- input: |-
    two
    lines
  output:
    - 1
    -
    - true
""",
    ],
)
def test_examples_are_numbered(text):
    assert numbered(text) == WRITTEN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Answer briefly.",
        "- input: only",
        "[]",
        "{}",
        '{"input": 1, "output": 2}',
        "- one\n- two",
        '[{"input": 1, "output": NaN}]',
        '[{"input": 1, "output": 1e999}]',
        '[{"input": 1, "output": 2}',
        "- input: 1\n  input: 2\n  output: 3",
        "- input: !!python/object:os.system 1\n  output: 3",
        "[" * 5000,
        '[{"input": ' + "[" * 5000 + "]" * 5000 + ', "output": 1}]',
        '[{"input": 1' + "0" * 5000 + ', "output": 1}]',
        json.dumps([{"input": "x" * MAX_BYTES, "output": 1}]),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_list_of_examples_is_just_text(text):
    assert numbered(text) is None


def test_a_bomb_is_just_text():
    levels = "\n".join(f"- &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))
    assert numbered(f"- &l0 x\n{levels}\n") is None
    repeated = f"- &a {{input: {'x' * 100_000}, output: x}}\n" + "- *a\n" * 10_000
    assert numbered(repeated) is None
    assert numbered(f"- input: &a {'x' * 100_000}\n  output: [{'*a, ' * 10_000}]\n") is None


def test_half_a_surrogate_pair_becomes_what_can_be_sent():
    assert numbered(r'[{"input": "\ud83d\ude00", "output": {"a": "\ud83d"}}]') == (
        'Example 1\nInput: 😀\nOutput: {"a":"?"}'
    )


@settings(max_examples=50)
@given(st.text(max_size=60) | JSON.map(json.dumps) | st.lists(JSON).map(json.dumps))
def test_no_text_is_too_odd(text):
    assert numbered(text) == numbered(text)


@settings(max_examples=50)
@given(st.lists(st.fixed_dictionaries({"input": JSON, "output": JSON}), min_size=1, max_size=5))
def test_every_example_is_there_once(examples):
    written = numbered(json.dumps(examples))
    assert written is not None
    assert written.count("Input: ") >= len(examples)
    assert f"Example {len(examples)}\n" in written
