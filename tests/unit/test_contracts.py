"""Contracts: the whole draft, no network, no slow pattern, and a boolean is no number."""

import socket
import threading
import time

import pytest

from loomq.contracts import MAX_SHOWN, Contract, schema_faults
from loomq.errors import ConfigError, PipelineValidationError


def test_a_boolean_is_neither_integer_nor_number():
    for name in ("integer", "number"):
        assert not Contract({"type": name}).holds(True)
        assert Contract({"type": name}).holds(1)


def test_every_error_is_listed_with_its_path():
    contract = Contract(
        {
            "type": "object",
            "required": ["title"],
            "properties": {"tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
            "additionalProperties": False,
        }
    )
    errors = contract.errors({"tags": ["a", "z"], "other": 1})
    assert len(errors) == 3
    assert any(error.startswith("tags.1: ") for error in errors)
    assert any("title" in error for error in errors)


def test_the_whole_draft_is_checked():
    contract = Contract(
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"next": {"$ref": "#/$defs/node"}, "value": {"type": "integer"}},
                }
            },
            "$ref": "#/$defs/node",
            "unevaluatedProperties": False,
            "dependentRequired": {"next": ["value"]},
        }
    )
    assert contract.holds({"value": 1, "next": {"value": 2}})
    assert not contract.holds({"next": {}})
    assert not contract.holds({"value": 1, "other": 2})
    assert not contract.holds({"value": 1, "next": {"value": "x"}})


def test_a_breach_raises_with_its_stage_and_is_never_retried():
    with pytest.raises(PipelineValidationError, match="the input breaks its contract: a: ") as caught:
        Contract({"properties": {"a": {"type": "string"}}}).check({"a": 1}, "input", stage="read")
    assert caught.value.stage == "read"
    assert not caught.value.retryable
    Contract({}).check({"a": 1})


def test_the_number_and_the_length_of_errors_are_bounded():
    errors = Contract({"items": {"type": "string"}}).errors([["x" * 5000]] * 1000)
    assert len(errors) == MAX_SHOWN + 1
    assert max(map(len, errors)) < 300


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:{port}/s.json"},
        {"properties": {"a": {"$ref": "http://127.0.0.1:{port}/s.json#/a"}}},
        {"$dynamicRef": "http://127.0.0.1:{port}/s.json"},
        {"$id": "http://127.0.0.1:{port}/", "$ref": "s.json"},
        {"$schema": "http://127.0.0.1:{port}/meta"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "//127.0.0.1:{port}/s.json"},
    ],
    ids=str,
)
def test_a_reference_outward_is_refused_and_nothing_is_fetched(schema):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        seen = []
        listener = threading.Thread(target=lambda: seen.append(accepted(server)))
        listener.start()
        text = repr(schema).replace("{port}", str(port))
        with pytest.raises(ConfigError):
            Contract(eval(text))
        socket.create_connection(("127.0.0.1", port)).close()
        listener.join()
    # The first and only connection is our own, which says nothing.
    assert seen == [b""]


def accepted(server):
    connection, _ = server.accept()
    with connection:
        return connection.recv(100)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|aa)+$", "(a*)*b", "^(([a-z])+.)+[A-Z]([a-z])+$", "(.*)*x"])
def test_no_pattern_can_hang_a_worker(pattern):
    contract = Contract({"pattern": pattern})
    begin = time.process_time()
    contract.errors("a" * 50_000 + "!")
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", "(a", "(a{1000}){1000}", "(?<!x)y"])
def test_a_pattern_that_needs_backtracking_is_refused_at_its_place(pattern):
    faults = schema_faults({"properties": {"code": {"pattern": pattern}}})
    assert [path for path, _ in faults] == [("properties", "code", "pattern")]
    assert "linear" in faults[0][1]


def test_all_faults_of_a_schema_are_listed_with_their_places():
    faults = schema_faults({"type": "objct", "properties": {"a": {"minimum": "1"}}, "required": "a"})
    assert {path for path, _ in faults} == {("type",), ("properties", "a", "minimum"), ("required",)}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/none"},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"properties": {1: {}}},
        {"enum": [list(range(60_000))]},
    ],
)
def test_a_schema_that_cannot_work_is_refused(schema):
    with pytest.raises(ConfigError, match="schema cannot be used"):
        Contract(schema)


def test_a_schema_may_be_recursive_but_not_bottomless():
    assert Contract({"$ref": "#"}).holds(1)
    assert Contract({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}).holds(1)
    deep = {}
    for _ in range(200):
        deep = {"not": deep}
    assert schema_faults(deep)


def test_a_value_too_deep_or_not_json_breaks_the_contract_without_an_exception():
    contract = Contract({"properties": {"a": {"$ref": "#"}}})
    deep = {}
    for _ in range(2000):
        deep = {"a": deep}
    assert contract.errors(deep)
    assert not contract.holds(deep)
    assert Contract({"items": {"type": "string"}}).errors([object()])
