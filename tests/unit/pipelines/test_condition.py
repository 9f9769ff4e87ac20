"""Conditions: parsed once, never run as code, and clear about why they hold or do not."""

import json
import operator
import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import JSON, KEYS

from loomq.pipelines.condition import MAX_LENGTH, Condition
from loomq.pipelines.scanner import MAX_DEPTH, MalformedError

ROOTS = {
    "goal": {"goal_id": "g1", "instruction": "do it", "context": {"lang": "de", "n": 5, "yes": True, "no": None}},
    "score": {
        "output": {"value": 0.81, "tags": ["a", 1, True, {"k": [1.0]}], "title": "a b", "and": 1, "whole": 1.0},
        "model_used": None,
    },
    "not": {"output": {"x": 1}},
}


def holds(text, **more):
    return Condition.parse(text, has_items=bool(more)).evaluate({**ROOTS, **more})


@pytest.mark.parametrize(
    "text",
    [
        "score.output.value > 0.5",
        "score.output.value>0.5",
        "score.output.value >= 0.81 and score.output.value <= 0.81",
        "score.output.whole == 1",
        "score.output.title == 'a b'",
        'score.output.title == "a b"',
        "score.output.title < 'b'",
        "goal.context.lang == de",
        "goal.context.lang in [\"de\", 'fr']".replace("'", '"'),
        "goal.context.lang in 'de, fr'",
        "goal.context.lang not-in [1, null]",
        "goal.context.n not-in 'text'",
        "goal.context.n != five",
        "goal.context.yes == TRUE",
        "goal.context.no == None",
        "goal.context.no exists",
        "score.model_used == null",
        "score.output.tags contains a",
        "score.output.tags contains true",
        'score.output.tags contains {"k": [1]}',
        "score.output.tags[0] == a and score.output.tags.1 == 1",
        "score.output contains title",
        "score.output.title contains ' '",
        "score.output.and == 1",
        "not.output.x == 1",
        "not(not.output.x == 2)",
        "not goal.context.gone == 1",
        "goal.context.gone | default(3) > 2",
        "goal.context.n == 5 or goal.context.n == 6 and goal.context.n == 7",
        "(goal.context.n==5)and(goal.context.lang==de)",
        "goal.context.n == 1 or (goal.context.n == 5 and (goal.context.lang exists))",
        "\n  goal.context.n\n  == 5  ",
    ],
)
def test_a_condition_holds(text):
    assert holds(text)


@pytest.mark.parametrize(
    "text",
    [
        "goal.context.gone == 1",
        "goal.context.gone != 1",
        "goal.context.gone not-in [1]",
        "goal.context.gone exists",
        "later.output.x == 1",
        "goal.context.yes == 1",
        "goal.context.yes > 0",
        "goal.context.n == '5'",
        "goal.context.n < '6'",
        "goal.context.lang > 1",
        "goal.context.no < 1",
        "goal.context.n contains 5",
        "goal.context.n in '5'",
        "score.output.tags contains 0",
        "goal.context.n == 5 and not goal.context.lang == de",
        "(goal.context.n == 5 or goal.context.n == 6) and goal.context.n == 7",
    ],
)
def test_a_condition_does_not_hold(text):
    assert not holds(text)


def test_an_item_and_its_index_are_there_where_there_is_a_for_each():
    assert holds("item.url contains http and index < 3", item={"url": "http://a"}, index=2)
    assert not holds("item == a", item="b", index=0)
    condition = Condition.parse("item.n > 1 or score.output.value > 1 or goal.context.n == 1", has_items=True)
    assert (condition.roots, condition.reads_item) == (("score",), True)
    assert not Condition.parse("item.output.n > 1").reads_item  # a stage that is called so
    with pytest.raises(MalformedError, match="only in a stage with for_each"):
        Condition.parse("item.url exists")


@pytest.mark.parametrize(
    ("text", "offset", "words"),
    [
        ("", 0, "a comparison is expected"),
        ("score.output.value", 18, "the condition ends here"),
        ("score.output.value >", 20, "a value is expected"),
        ("score.output.value = 1", 19, "not '='"),
        ("score.output.value is 1", 19, "not 'is'"),
        ("score.output.value > 1 2", 23, "unexpected '2'"),
        ("score.output.value > 1 && x", 23, "unexpected"),
        ("score.output.value exists true", 26, "unexpected"),
        ("score.output.value > .5", 21, "no JSON number"),
        ("score.output.value > 1_000", 21, "no JSON number"),
        ("score.output.value > 1e999", 21, "no number that JSON can carry"),
        ("score.output.value in 5", 22, "a list or a text"),
        ("score.output.value in (1, 2)", 22, "a value is expected"),
        ("score.output.value in [1, 2", 22, "no JSON list"),
        ("score.output.value in [NaN]", 22, "no JSON list"),
        ("score.output.value == and", 22, "a value is expected"),
        ("score.output.value == 'a", 22, "no closing"),
        ("score.output.value? == 1", 0, r"a \? makes no sense"),
        ("score.output.value | default(1) exists", 0, "always exists"),
        ("(score.output.value == 1", 0, "not closed"),
        ("score.output.value == 1)", 23, "no \\( for this"),
        ("score.output.value == 1 and", 24, "unexpected 'and'"),
        ("score.output.value == 1 and ", 28, "a comparison is expected"),
        ("value > 1", 0, "names no field"),
        ("score.value > 1", 6, 'a stage has no "value"'),
        ("score.output.value == 1 or not goal.contxt.n == 1", 36, 'the goal has no "contxt"'),
        ("5 == score.output.value", 0, "names no field"),
        ("not " * (MAX_DEPTH + 1) + "a.output == 1", 4 * MAX_DEPTH, "levels deep"),
        ("(" * (MAX_DEPTH + 1) + "a.output == 1" + ")" * (MAX_DEPTH + 1), MAX_DEPTH, "levels deep"),
        ("a.output == " + "[" * 70 + "]" * 70, 12, "levels deep"),
        ("a.output == " + "x" * MAX_LENGTH, MAX_LENGTH, "longer than"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_condition_is_refused_at_its_character(text, offset, words):
    with pytest.raises(MalformedError, match=words) as caught:
        Condition.parse(text)
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("score.output.value<0.5", "score.output.value < 0.5 (it is 0.81)"),
        ("goal.context.gone == 'it''s'", "goal.context.gone == 'it''s' (it is missing)"),
        ("goal.context.n == 5 and score.output.value > 1 and a.output.x > 1", "score.output.value > 1 (it is 0.81)"),
        ("goal.context.n == 1 or goal.context.n == 5", "goal.context.n == 5 (it is 5)"),
        (
            "goal.context.n == 1 or (goal.context.yes exists and not goal.context.lang == de)",
            "goal.context.n == 1 (it is 5) or (not (goal.context.lang == 'de' (it is \"de\")))",
        ),
        (
            "goal.context.n == 5 and (goal.context.lang == de)",
            "goal.context.n == 5 (it is 5) and goal.context.lang == 'de' (it is \"de\")",
        ),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_condition_tells_what_decided_with_the_values_found(text, told):
    assert Condition.parse(text).told(ROOTS) == told


def test_what_is_told_is_one_short_line_whatever_the_values_are():
    deep = []
    for _ in range(20_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, {"a": ["\n\u202e\x1b[2J"] * 100}, object()):
        told = Condition.parse("goal.context == 'a\nb'").told({"goal": {"context": value}})
        assert told.isprintable()
        assert len(told) < 120
    assert "…)" in Condition.parse("goal.context exists").told({"goal": {"context": "x" * 61}})


def test_a_condition_is_frozen_and_survives_pickling():
    condition = Condition.parse("score.output.value in [1, 2] and not goal.context.n | default({}) == 3")
    assert pickle.loads(pickle.dumps(condition)) == condition
    with pytest.raises(FrozenInstanceError):
        condition.term = None


def test_the_deepest_condition_is_evaluated_told_and_written_without_running_out_of_stack():
    text = "not (" * MAX_DEPTH + "score.output.value > 1" + ")" * MAX_DEPTH
    condition = Condition.parse(text)
    assert (condition.evaluate(ROOTS), str(condition)) == (False, text)
    assert condition.told(ROOTS).startswith("not (not (")


def tagged(value):
    """The same for the same JSON value only: ``True == 1`` in Python, and not in JSON."""
    if isinstance(value, dict):
        return ("object", sorted((key, tagged(below)) for key, below in value.items()))
    if isinstance(value, list):
        return ("array", [tagged(below) for below in value])
    return ("number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__, value)


def same(one, other):
    return repr(tagged(one)) == repr(tagged(other)) or (tagged(one)[0] == "number" == tagged(other)[0] and one == other)


def kind_of(value):
    return tagged(value)[0]


ORDERED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def inside(found, value):
    return (
        any(same(found, one) for one in value)
        if isinstance(value, list)
        else kind_of(found) == "str" and found in value
    )


def holding(found, value):
    if isinstance(found, list):
        return any(same(one, value) for one in found)
    return isinstance(value, str) and isinstance(found, str | dict) and value in found


def expected(found, op, value):
    """What a comparison should say, written as plainly as can be."""
    if found is ... or op == "exists":
        return found is not ...
    if op in ORDERED:
        return kind_of(found) == kind_of(value) in ("number", "str") and ORDERED[op](found, value)
    plain = {"==": same, "!=": same, "in": inside, "not-in": inside, "contains": holding}[op](found, value)
    return plain != (op in ("!=", "not-in"))


FLAT = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 0.5, "a", "ab", "", "it's", 'a"b'])
VALUES = FLAT | st.lists(FLAT, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), FLAT, max_size=2)


@st.composite
def comparisons(draw, context):
    """The text of a comparison over a context, and whether it holds."""
    key = draw(st.sampled_from([*context, "gone"]))
    found = context.get(key, ...)
    op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in", "not-in", "contains", "exists"]))
    near = [found] if found is not ... else []
    value = draw(st.sampled_from(near) | VALUES if near else VALUES)
    if op in ("in", "not-in"):
        value = draw(st.lists(st.sampled_from([value, *near]) | FLAT, max_size=3) | st.sampled_from(["abc", "ab", ""]))
    written = "'" + value.replace("'", "''") + "'" if isinstance(value, str) else json.dumps(value)
    text = f"goal.context.{key} {op}" + ("" if op == "exists" else f" {written}")
    return text, expected(found, op, value)


@st.composite
def conditions(draw):
    """A context, the text of a condition, and the same with True and False in place of its comparisons."""
    context = draw(st.dictionaries(st.sampled_from(["p", "q", "r"]), VALUES, min_size=1, max_size=3))
    leaf = comparisons(context).map(lambda one: (one[0], str(one[1])))
    tree = st.recursive(
        leaf,
        lambda inner: (
            st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map(
                lambda one: (one[0][0] + one[1] + one[2][0], one[0][1] + one[1] + one[2][1])
            )
            | inner.map(lambda one: (f"not {one[0]}", f"not {one[1]}"))
            | inner.map(lambda one: (f"({one[0]})", f"({one[1]})"))
        ),
        max_leaves=5,
    )
    return context, *draw(tree)


@settings(deadline=None)
@given(conditions())
def test_a_condition_says_what_python_says_of_its_comparisons(found):
    context, text, in_python = found
    condition = Condition.parse(text)
    roots = {"goal": {"context": context}}
    assert condition.evaluate(roots) is eval(in_python)
    assert Condition.parse(str(condition)) == condition
    assert condition.told(roots).isprintable()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["goal", "a", "item", "index"]), JSON), conditions(), KEYS)
def test_whatever_the_values_are_a_condition_answers(roots, found, key):
    text = f"{found[1]} or not (a.output.{key}[0] contains {key} and goal.context.{key} < 1 or item.{key} == [{{}}])"
    condition = Condition.parse(text, has_items=True)
    assert condition.evaluate(roots) in (True, False)
    assert isinstance(condition.told(roots), str)


@given(st.text(st.sampled_from("a.output.x=!<>()[]'\" andornti15|?,{}-e"), max_size=30))
def test_parsing_answers_or_says_where_it_failed(text):
    try:
        condition, offset = Condition.parse(text), 0
    except MalformedError as error:
        condition, offset = None, error.offset
    assert 0 <= offset <= len(text)
    assert condition is None or Condition.parse(str(condition)) == condition
