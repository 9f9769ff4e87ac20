"""A contract in the part of JSON Schema that providers take."""

from __future__ import annotations

import pytest
from anthropic.lib._parse._transform import transform_schema
from hypothesis import given
from hypothesis import strategies as st

from loomq.contracts import Contract
from loomq.llm.schemas import closed, is_strict

TEXT, NUMBER = {"type": "string"}, {"type": "number"}


def an_object(properties, required=(), **more):
    return {"type": "object", "properties": properties, "required": list(required), **more}


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        (an_object({"a": TEXT}), an_object({"a": TEXT}, additionalProperties=False)),
        (
            an_object({"a": {"type": "integer", "minimum": 0, "description": "count"}}, ["a", "gone"]),
            an_object({"a": {"type": "integer", "description": "count"}}, ["a"], additionalProperties=False),
        ),
        ({"type": "array", "items": TEXT, "maxItems": 3}, {"type": "array", "items": TEXT}),
        ({"type": ["string", "null"]}, {"anyOf": [TEXT, {"type": "null"}]}),
        ({"oneOf": [TEXT, NUMBER]}, {"anyOf": [TEXT, NUMBER]}),
        ({"type": "string", "enum": ["x", "y"]}, {"enum": ["x", "y"]}),
        ({"const": 1}, {"const": 1}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "string", "format": "colour", "pattern": "^a"}, TEXT),
        (
            {"$defs": {"t": TEXT}, **an_object({"a": {"$ref": "#/$defs/t"}})},
            {"$defs": {"t": TEXT}, **an_object({"a": {"$ref": "#/$defs/t"}}, additionalProperties=False)},
        ),
    ],
)
def test_a_schema_is_closed_and_rid_of_what_only_narrows(schema, found):
    assert closed(schema) == found


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        an_object({"a": TEXT}, additionalProperties=TEXT),
        an_object({"a": TEXT}, patternProperties={"^x": TEXT}),
        an_object({"a": {}}),
        {"type": "array"},
        {"not": TEXT},
        {"type": "string", "if": TEXT, "then": TEXT},
        {"allOf": [TEXT]},
        {"type": "colour"},
        an_object({"a": {"type": "array", "items": {"type": "object"}}}),
    ],
)
def test_what_cannot_be_said_in_it_is_not_said(schema):
    assert closed(schema) is None


def test_a_schema_that_is_too_deep_is_not_said():
    schema = TEXT
    for _ in range(40):
        schema = {"type": "array", "items": schema}
    assert closed(schema) is None


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (an_object({"a": TEXT}, ["a"]), True),
        (an_object({"a": TEXT, "b": TEXT}, ["a"]), False),
        ({"type": "array", "items": an_object({"a": TEXT})}, False),
        ({"anyOf": [TEXT, an_object({"a": TEXT}, ["a"])]}, True),
    ],
)
def test_strict_is_where_every_property_is_required(schema, strict):
    assert is_strict(schema) is strict


LEAVES = st.sampled_from([
    TEXT, NUMBER, {"type": "integer", "minimum": 3}, {"type": "boolean"}, {"type": "string", "maxLength": 5},
    {"enum": ["a", 1, None]}, {"type": ["integer", "null"], "description": "maybe"},
])  # fmt: skip
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(
            lambda properties, all_of_them: an_object(properties, properties if all_of_them else ()),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
            st.booleans(),
        ),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=8,
)


@given(SCHEMAS)
def test_what_is_said_is_a_contract_and_anthropic_s_own_client_would_change_nothing_in_it(schema):
    found = closed(schema)
    assert found is not None
    Contract(found)
    assert transform_schema(found) == found
    assert closed(found) == found
