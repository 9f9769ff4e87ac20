"""What a schema says about a path: never a false alarm, and the certain mistakes found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON, JSON_SCHEMAS

from loomq.contracts import Contract
from loomq.pipelines.shapes import ANYTHING, TYPES, Impossible, Shape, meet, type_of


def walk(schema, *parts):
    shape = Shape.of(schema)
    for part in parts:
        shape = shape.child(part)
        if isinstance(shape, Impossible):
            return shape
    return shape


OPEN = {"type": "object", "properties": {"a": {"type": "string"}}}
CLOSED = {**OPEN, "additionalProperties": False}
LIST = {"type": "array", "items": CLOSED, "maxItems": 3}
LINKED = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    }
}


@pytest.mark.parametrize(
    ("schema", "parts"),
    [
        (CLOSED, ["b"]),
        (CLOSED, ["a", "b"]),
        (CLOSED, [0]),
        ({"type": "string"}, ["a"]),
        (LIST, ["a"]),
        (LIST, [0, "b"]),
        (LIST, ["0", "b"]),
        (LIST, [3]),
        ({"type": "array", "prefixItems": [CLOSED], "items": False}, [1]),
        ({"type": "object", "properties": {"a": False}}, ["a"]),
        ({**LINKED, "$ref": "#/$defs/node"}, ["next", "next", "nxt"]),
        ({"anyOf": [CLOSED, {"type": "null"}]}, ["b"]),
        ({"oneOf": [CLOSED, LIST]}, ["b"]),
        ({"allOf": [OPEN, CLOSED]}, ["b"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["x", "y"]),
        ({"const": 5}, ["a"]),
        ({"enum": ["x", None]}, ["a"]),
        (False, ["a"]),
    ],
)
def test_a_step_that_no_value_can_take_is_impossible(schema, parts):
    assert isinstance(walk(schema, *parts), Impossible)


@pytest.mark.parametrize(
    ("schema", "parts"),
    [
        (None, ["a", 0, "b"]),
        ({}, ["a"]),
        (OPEN, ["b"]),
        (LIST, [2, "a"]),
        ({"type": ["array", "object"], "items": {"type": "string"}}, ["0"]),
        ({"type": "object", "patternProperties": {"^b": {}}, "additionalProperties": False}, ["b"]),
        ({"anyOf": [CLOSED, {"type": "object"}]}, ["b"]),
        ({"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}], **LINKED}, ["b"]),
        ({"$ref": "#somewhere"}, ["b"]),
        ({"$dynamicRef": "#x"}, ["b"]),
        ({"$ref": "#"}, ["b"]),
        ({"type": "array", "prefixItems": [CLOSED]}, [1, "b"]),
        ({"if": CLOSED, "then": CLOSED}, ["b"]),
    ],
)
def test_what_is_not_certain_is_allowed(schema, parts):
    assert isinstance(walk(schema, *parts), Shape)


def test_types_are_narrowed_by_what_is_certain():
    assert walk(CLOSED, "a").types() == {"string"}
    assert Shape.of({"anyOf": [{"type": "string"}, {"type": "null"}]}).types() == {"string", "null"}
    assert Shape.of({"type": ["string", "array"], "allOf": [{"type": ["array", "null"]}]}).types() == {"array"}
    assert Shape.of({"enum": [1, "a"]}).types() == {"integer", "string"}
    assert ANYTHING.types() == TYPES


def test_an_integer_is_a_number():
    assert meet(frozenset({"integer"}), frozenset({"number"})) == {"integer"}
    assert not meet(frozenset({"boolean"}), frozenset({"number"}))


def test_a_near_miss_in_an_open_object_is_noticed():
    shape = Shape.of({"type": "object", "properties": {"title": {}}})
    assert shape.undeclared("titel") == 'did you mean "title"?'
    assert shape.undeclared("title") == shape.undeclared("weight") == ""


def test_required_keys_of_alternatives_are_those_of_all():
    assert (Shape.of({"required": ["a", "b"]}) | Shape.of({"required": ["b"]})).required() == {"b"}


def test_the_items_of_a_list_have_the_shape_of_any_of_them():
    assert Shape.of({**LINKED, "type": "array", "items": {"$ref": "#/$defs/node"}}).element().types() == {"object"}
    assert Shape.of({"prefixItems": [{"type": "null"}], "items": False}).element().types() == {"null"}
    assert Shape.of({"type": ["array", "null"], "items": CLOSED}).element().types() == {"object"}
    assert (Shape.of({"type": "array", "items": CLOSED}) | Shape.of_value([])).element().types() == {"object"}
    for unknown in ({}, {"type": "array"}, {"anyOf": [LIST]}, {"type": "string"}):
        assert Shape.of(unknown).element().types() == TYPES


def test_the_shape_of_a_value_is_that_value():
    shape = Shape.of_value({"a": {"b": [1, "x"]}})
    assert shape.child("a").child("b").child(1).types() == {"integer", "string"}
    assert shape.child("c") == Impossible('there is no "c"', "there are: a")
    assert isinstance(shape.child("a").child("b").child("b"), Impossible)
    assert isinstance(Shape.of_value([]).child(0).child("a"), Impossible)


def steps(value):
    """Every path into a value, with what stands there."""
    yield (), value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        for path, found in steps(child):
            yield (key, *path), found


@st.composite
def schemas_of(draw, value):
    """A schema that a value fits, said more or less narrowly."""
    exact = {"type": type_of(value)}
    if isinstance(value, dict):
        below = {key: draw(schemas_of(child)) for key, child in value.items()}
        rest = draw(st.sampled_from([{}, {"additionalProperties": False}]))
        exact |= {"properties": below, "required": sorted(below), **rest}
        exact |= draw(
            st.sampled_from([{}, {"properties": {}, "additionalProperties": {"anyOf": [*below.values(), False]}}])
        )
    if isinstance(value, list):
        below = [draw(schemas_of(child)) for child in value]
        open_list = {"items": {"anyOf": below}} if below else {}
        exact |= draw(
            st.sampled_from(
                [open_list, {"prefixItems": below, "items": False, "maxItems": len(below)} if below else {}]
            )
        )
    other = draw(JSON_SCHEMAS)
    forms = [exact, {}, {"anyOf": [other, exact]}, {"allOf": [{}, exact]}, {"enum": [value]}, {"type": [*TYPES]}]
    return draw(st.sampled_from([exact, exact, exact, *forms]))


@given(st.data(), JSON)
def test_no_path_of_a_value_that_fits_is_ever_called_impossible(data, value):
    schema = data.draw(schemas_of(value))
    assert Contract(schema).holds(value)
    for path, found in steps(value):
        shape = walk(schema, *path)
        assert isinstance(shape, Shape)
        assert meet(frozenset({type_of(found)}), shape.types())
