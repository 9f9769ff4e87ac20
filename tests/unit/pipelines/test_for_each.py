"""for_each: the list that a stage runs over."""

import pytest

from loomq.errors import PipelineMappingError
from loomq.pipelines.for_each import ForEach
from loomq.pipelines.scanner import MalformedError

ROOTS = {"goal": {"context": {"list": [1, {"a": 2}], "text": "abc", "empty": []}}, "find": {"output": {"urls": ["x"]}}}


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("goal.context.list", [1, {"a": 2}]),
        ("goal.context.empty", []),
        ("find.output.urls", ["x"]),
        ("goal.context.gone?", []),
        ("later.output.urls?", []),
        ("goal.context.gone | default([3])", [3]),
    ],
)
def test_the_items_are_those_of_the_list(text, items):
    assert ForEach.parse(text).evaluate(ROOTS) == items


@pytest.mark.parametrize(
    ("text", "words"),
    [("goal.context.gone", 'has no "gone"'), ("goal.context.text", "is string"), ("goal.context.text?", "is string")],
)
def test_what_is_no_list_fails_with_what_is_there(text, words):
    with pytest.raises(PipelineMappingError, match=words):
        ForEach.parse(text).evaluate(ROOTS)


@pytest.mark.parametrize("text", ["'abc'", "item.parts", "index", "goal.context.x | default(3)", "goal.context..x", ""])
def test_what_can_lead_to_no_list_is_malformed(text):
    with pytest.raises(MalformedError):
        ForEach.parse(text)


def test_only_a_required_path_needs_its_stage():
    assert (ForEach.parse("find.output.urls").roots, ForEach.parse("find.output.urls").needs) == (("find",), ("find",))
    assert (ForEach.parse("find.output.urls?").roots, ForEach.parse("find.output.urls?").needs) == (("find",), ())
    assert ForEach.parse("goal.context.urls").roots == ()
