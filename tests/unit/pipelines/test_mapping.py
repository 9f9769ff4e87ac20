"""input_mapping: parsed once, applied exactly, and clear about what is missing."""

import pickle
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON, NAMES

from loomq.errors import ConfigError, PipelineMappingError
from loomq.pipelines.mapping import Mapping, parse_mapping
from loomq.pipelines.paths import MISSING, Literal, Path, parse_expression
from loomq.pipelines.scanner import MalformedError

GOAL = {"goal_id": "g1", "instruction": "do it", "context": {"text": "hi", "items": [{"n": 1}, {"n": 2}], "0": "zero"}}
STAGES = {
    "read": {
        "output": {"title": "T", "items": ["a", "b"], "none": None, "deep": {"list": [[1, 2], [3]]}},
        "model_used": None,
        "processing_time_ms": 7,
        "started_at": "2024-01-01T00:00:00Z",
        "ended_at": "2024-01-01T00:00:01Z",
        "wall_time_ms": 1000,
    }
}


def apply(raw):
    return Mapping.parse(raw).apply(GOAL, STAGES)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("goal.goal_id", "g1"),
        ("goal.instruction", "do it"),
        ("goal.context", GOAL["context"]),
        ("goal.context.text", "hi"),
        ("goal.context.items.0.n", 1),
        ("goal.context.items[1].n", 2),
        ("goal.context.items[1]", {"n": 2}),
        ("goal.context.0", "zero"),
        ("read.output", STAGES["read"]["output"]),
        ("read.output.title", "T"),
        ("read.output.items", ["a", "b"]),
        ("read.output.deep.list[0][1]", 2),
        ("read.output.deep.list.1.0", 3),
        ("read.output.none", None),
        ("read.model_used", None),
        ("read.processing_time_ms", 7),
        ("read.started_at", "2024-01-01T00:00:00Z"),
        ("read.ended_at", "2024-01-01T00:00:01Z"),
        ("read.wall_time_ms", 1000),
        ("  read.output.title  ", "T"),
        ("'store'", "store"),
        ('"store"', "store"),
        ("'it''s'", "it's"),
        ("''", ""),
        ("'read.output.title'", "read.output.title"),
        (5, 5),
        (2.5, 2.5),
        (True, True),
        ("read.output.gone | default(3)", 3),
        ("read.output.gone|default('x')", "x"),
        ('read.output.gone | default("x")', "x"),
        ('read.output.gone | default({"a": [1, null]})', {"a": [1, None]}),
        ("read.output.gone | default( [] )", []),
        ("read.output.title | default(3)", "T"),
        ("read.output.none | default(3)", None),
        ("gone.output.title | default(false)", False),
        ("read.output.items[9] | default(0)", 0),
        ("read.output.title.length | default(0)", 0),
        (
            {"a": "read.output.title", "b": {"c": "goal.context.text", "d": "'x'"}},
            {"a": "T", "b": {"c": "hi", "d": "x"}},
        ),
        ({}, {}),
    ],
    ids=str,
)
def test_every_form_of_an_expression_gives_its_value(path, expected):
    found = apply({"target": path})["target"]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "path", ["read.output.gone?", "gone.output.title?", "goal.context.items[7]?", "read.output.items.x?"]
)
def test_an_optional_path_that_leads_nowhere_is_left_out(path):
    assert apply({"a": path, "b": {"c": path}}) == {"b": {}}


def test_an_optional_path_that_leads_somewhere_is_taken():
    assert apply({"a": "read.output.title?", "b": "read.output.none?"}) == {"a": "T", "b": None}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (
            "goal.context.txt",
            ["goal.context.txt", 'goal.context has no "txt"', "there are: 0, items, text", 'did you mean "text"?'],
        ),
        ("read.output.items[5]", ["read.output.items is a list of 2"]),
        ("read.output.title.x", ['read.output.title is a text, it has no "x"']),
        ("read.output.none.x", ["read.output.none is null"]),
        ("gone.output.x", ['"gone"', "there are: goal, read"]),
    ],
)
def test_a_missing_path_is_named_with_what_is_there(path, words):
    with pytest.raises(PipelineMappingError) as caught:
        apply({"target": path})
    for word in words:
        assert word in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("", 0),
        ("store", 0),
        ("goal", 0),
        ("read", 0),
        ("goal.x", 5),
        ("read.x", 5),
        ("goal.goal_id.x", 5),
        ("read.model_used.x", 5),
        ("goal.context.", 13),
        ("goal.context..a", 13),
        (".goal.context", 0),
        ("goal.context.a b", 15),
        ("goal.context.a[", 14),
        ("goal.context.a[-1]", 14),
        ("goal.context.a[1.5]", 14),
        ("goal.context.a['k']", 14),
        ("goal.context.a??", 15),
        ("goal.context.a | default", 15),
        ("goal.context.a | upper(1)", 15),
        ("goal.context.a | default(x)", 25),
        ("goal.context.a | default(NaN)", 25),
        ("goal.context.a | default(1", 26),
        ("goal.context.a | default()", 25),
        ("'open", 0),
        ("'a' b", 4),
        ("'a'?", 3),
    ],
)
def test_a_malformed_expression_is_refused_at_its_character(text, offset):
    with pytest.raises(MalformedError) as caught:
        parse_expression(text)
    assert caught.value.offset == offset


def test_all_faults_of_a_mapping_are_reported_together():
    mapping, faults = parse_mapping({"a": "store", "b": {"c": ["x"], "d": None}, "ok": "goal.instruction"})
    assert [fault.target for fault in faults] == [("a",), ("b", "c"), ("b", "d")]
    assert mapping.apply(GOAL, {}) == {"b": {}, "ok": "do it"}
    with pytest.raises(ConfigError, match=r"a: .*; b\.c: .*; b\.d: "):
        Mapping.parse({"a": "store", "b": {"c": ["x"], "d": None}})


def test_roots_are_the_stages_that_paths_start_at():
    mapping = Mapping.parse(
        {"a": "z.output.x", "b": {"c": "y.output?", "d": "'q.output'"}, "e": "goal.context", "f": "z.output.y"}
    )
    assert mapping.roots == ("z", "y")
    assert [target for target, _ in mapping.paths] == [("a",), ("b", "c"), ("e",), ("f",)]


def test_a_mapping_needs_the_stages_of_its_required_paths():
    mapping = Mapping.parse(
        {"a": "z.output.x?", "b": {"c": "y.output", "d": "y.output.e?"}, "e": "x.output | default(1)"}
    )
    assert (mapping.roots, mapping.needs) == (("z", "y", "x"), ("y",))


def test_an_item_and_its_index_are_no_stages_where_there_is_a_for_each():
    raw = {"a": "item", "b": "item.url[0]", "c": "index", "d": "item.gone?", "e": "read.output.title"}
    mapping = Mapping.parse(raw, has_items=True)
    roots = {**STAGES, "goal": GOAL, "item": {"url": ["x"]}, "index": 3}
    assert mapping.evaluate(roots) == {"a": {"url": ["x"]}, "b": "x", "c": 3, "e": "T"}
    assert (mapping.roots, mapping.reads_item) == (("read",), True)
    with pytest.raises(ConfigError, match=r"a: .*for_each.*; b: .*for_each.*; c: .*for_each"):
        Mapping.parse(raw)
    with pytest.raises(ConfigError, match="index is a number"):
        Mapping.parse({"a": "index.x"}, has_items=True)


def test_elsewhere_item_and_index_are_stages_like_any_other():
    mapping = Mapping.parse({"a": "item.output.x", "b": "index.model_used"})
    assert (mapping.roots, mapping.reads_item) == (("item", "index"), False)


def test_a_default_is_given_out_as_a_copy():
    mapping = Mapping.parse({"a": "goal.context.gone | default([1])"})
    mapping.apply(GOAL, {})["a"].append(2)
    assert mapping.apply(GOAL, {}) == {"a": [1]}


def test_a_mapping_survives_pickling():
    mapping = Mapping.parse({"a": "goal.context.gone?", "b": "goal.context.gone | default(1)"})
    assert pickle.loads(pickle.dumps(mapping)).apply(GOAL, {}) == {"b": 1}


KEYS = st.text(string.ascii_letters + string.digits + "_-é", min_size=1, max_size=5)


@st.composite
def values_with_paths(draw):
    """A value, a way into it, and the value there."""
    value = leaf = draw(JSON)
    parts = []
    for _ in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            key = draw(KEYS)
            value = {**draw(st.dictionaries(KEYS, JSON, max_size=2)), key: value}
            parts.insert(0, f".{key}")
        else:
            before = draw(st.lists(JSON, max_size=2))
            value = [*before, value]
            parts.insert(0, draw(st.sampled_from([f"[{len(before)}]", f".{len(before)}"])))
    return value, "".join(parts), leaf


@given(values_with_paths(), NAMES)
def test_a_path_leads_to_what_stands_there(found, stage):
    value, way, leaf = found
    mapping = Mapping.parse({"t": f"{stage}.output{way}", "o": f"{stage}.output{way}?"})
    assert mapping.apply(GOAL, {stage: {"output": value}}) == {"t": leaf, "o": leaf}
    assert mapping.roots == (stage,)


@given(st.text(max_size=20))
def test_any_text_can_be_quoted(text):
    quoted = "'" + text.replace("'", "''") + "'"
    assert parse_expression(quoted) == Literal(text)
    assert parse_expression(f"goal.context | default({quoted})").default == text


@given(st.text(st.sampled_from("goal.context[]0?|default('\") x"), max_size=25))
def test_parsing_answers_or_says_where_it_failed(text):
    mapping, faults = parse_mapping({"t": text})
    assert bool(mapping.entries) != bool(faults)
    assert all(0 <= fault.offset <= len(text) for fault in faults)
    assert all(isinstance(found, Path | Literal) for _, found in mapping.entries)
    assert all(path.default is MISSING or "default" in text for _, path in mapping.paths)
