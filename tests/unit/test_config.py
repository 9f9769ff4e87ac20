"""A document becomes a spec, or problems at their places."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from loomq.config import Name, NotYet, Seconds, Spec, contradiction, load_spec, not_yet, read_spec
from loomq.yaml_text import parse_document


class Cat(Spec):
    kind: Literal["cat"]
    lives: int = 9


class Dog(Spec):
    kind: Literal["dog"]
    tricks: tuple[str, ...] = ()


class House(Spec):
    name: Name
    colour: Literal["red", "green"] = "red"
    wait_seconds: Seconds = 1
    pets: tuple[Annotated[Cat | Dog, Field(discriminator="kind")], ...] = ()
    rooms: dict[str, Cat] = Field(default_factory=dict)
    anything: dict[str, Any] = Field(default_factory=dict)
    door: tuple[Cat, ...] | Literal["open"] = "open"


def problems(text):
    document, _ = parse_document(text, "h.yaml")
    spec, found = read_spec(document, House)
    assert spec is None
    return found


def only(text):
    found = problems(text)
    assert len(found) == 1, [problem.headline() for problem in found]
    return found[0]


def test_an_unknown_key_is_pointed_at_by_its_name_and_a_value_by_itself():
    key = only("name: a\ncolor: red\n")
    assert (key.id, key.line, key.col, key.width) == ("LQ110", 2, 1, 5)
    assert key.hint == 'did you mean "colour"?'
    value = only("name: a\ncolour: redd\n")
    assert (value.id, value.line, value.col, value.width) == ("LQ113", 2, 9, 4)
    assert value.hint == 'did you mean "red"?'


def test_an_unknown_key_without_a_near_one_lists_the_known_ones():
    assert only("name: a\nzzz: 1\n").hint.startswith("known keys: anything, colour")


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        ("pets: [{kind: cat, live: 1}]", "pets.0.live", 'did you mean "lives"?'),
        ("pets: [{kind: dog, trick: []}]", "pets.0.trick", 'did you mean "tricks"?'),
        ("rooms: {hall: {kind: cat, live: 1}}", "rooms.hall.live", 'did you mean "lives"?'),
        ("pets: [{kind: cta}]", "pets.0.kind", 'did you mean "cat"?'),
        ("pets: [{lives: 1}]", "pets.0.kind", ""),
    ],
)
def test_faults_inside_lists_unions_and_mappings_have_the_path_of_the_file(text, path, hint):
    found = only(f"name: a\n{text}\n")
    assert (found.path, found.hint) == (path, hint)


def test_a_missing_key_stands_at_its_mapping():
    found = only("# words\ncolour: red\n")
    assert (found.id, found.line, found.path) == ("LQ111", 2, "name")


def test_numbers_are_no_text_and_booleans_no_numbers():
    assert only('name: a\nwait_seconds: "3"\n').id == "LQ112"
    assert only("name: a\nwait_seconds: true\n").message == "must be a number, not true"
    assert only("name: 5\n").message == "must be text, not 5"


def test_every_problem_comes_at_once_in_the_order_of_the_file():
    found = problems("name: A\nwait_seconds: -1\ncolour: blue\nfoo: 1\n")
    assert [problem.line for problem in found] == [1, 2, 3, 4]


def test_a_file_that_is_no_mapping_is_told_so():
    assert only("- a\n").id == "LQ112"


def test_keys_that_begin_with_x_are_free_in_every_mapping_of_keys():
    document, _ = parse_document("name: a\nx-a: 1\npets: [{kind: cat, x-b: {c: d}}]\n", "f")
    spec, found = read_spec(document, House)
    assert not found
    assert "x-a" not in spec.model_dump()
    assert only("name: a\nx_a: 1\n").id == "LQ110"


def test_free_mappings_keep_their_keys():
    document, _ = parse_document("name: a\nanything: {x-a: 1, b: {x-c: 2}}\n", "f")
    assert read_spec(document, House)[0].anything == {"x-a": 1, "b": {"x-c": 2}}


def test_specs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        House(name="a").name = "b"


def test_an_unsupported_key_is_found_wherever_it_stands():
    table = (NotYet("pets.*.tricks"), NotYet("colour", values=("green",)))
    document, _ = parse_document("name: a\ncolour: green\npets: [{kind: cat}, {kind: dog, tricks: [sit]}]\n", "f")
    spec, _ = read_spec(document, House)
    assert [(one.id, one.path) for one in not_yet(document, spec, table, "houses")] == [
        ("LQ120", "pets.1.tricks"),
        ("LQ120", "colour"),
    ]
    assert not not_yet(document, House(name="a"), (NotYet("rooms"),), "houses")


def test_an_unsupported_default_is_refused_although_the_key_is_absent():
    document, _ = parse_document("name: a\n", "f")
    found = not_yet(document, House(name="a"), (NotYet("colour", values=("red",)),), "houses")
    assert "default" in found[0].message


def test_a_message_of_ours_may_hold_braces():
    assert contradiction("a {brace} and {0}").message() == "a {brace} and {0}"


def test_the_door_reads_a_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("name: a\nname: b\n")
    spec, found = load_spec(file, House, name="shown.yaml")
    assert spec is None
    assert [(problem.id, problem.file) for problem in found] == [("LQ103", "shown.yaml")]
    file.write_text("name: a\n")
    assert load_spec(file, House) == (House(name="a"), [])
    assert load_spec(tmp_path / "none.yaml", House)[1][0].id == "LQ101"
