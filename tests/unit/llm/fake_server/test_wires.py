"""Whatever is asked, a wire understands or refuses it."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON

from loomq.llm.fake_server.anthropic import AnthropicWire
from loomq.llm.fake_server.ollama import OllamaWire
from loomq.llm.fake_server.openai import OpenAIWire
from loomq.llm.fake_server.rules import Rule
from loomq.llm.fake_server.schemas import anthropic_fault, strict_fault
from loomq.llm.fake_server.wire import Call, Offer, RefusedError, pieces

WIRES = [AnthropicWire(), OpenAIWire(), OllamaWire()]
HEADERS = {"anthropic-version": "2026-10-21", "authorization": "Bearer k"}
OFFER = Offer(("m",), {})
SCHEMA = {
    "type": "object", "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/b"}}}, "required": ["a"],
    "additionalProperties": False, "$defs": {"b": {"enum": ["x", "y"]}},
}  # fmt: skip
CALLED = {"id": "1", "type": "function", "function": {"name": "t", "arguments": "{}"}}
ANTHROPIC = {
    "model": "m", "max_tokens": 9, "system": [{"type": "text", "text": "s"}], "stream": True,
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "t", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "x"}]},
    ],
    "tools": [{"name": "t", "input_schema": SCHEMA, "strict": True}], "tool_choice": {"type": "tool", "name": "t"},
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}, "thinking": {"type": "disabled"},
}  # fmt: skip
OPENAI = {
    "model": "m", "max_tokens": 9, "temperature": 1, "stream": True, "stream_options": {"include_usage": True},
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ],
    "tools": [{"type": "function", "function": {"name": "t", "parameters": SCHEMA, "strict": True}}],
    "tool_choice": {"type": "function", "function": {"name": "t"}}, "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
}  # fmt: skip
OLLAMA = {
    "model": "m", "options": {"num_predict": 9, "temperature": 1}, "format": SCHEMA,
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "t", "arguments": {}}}]},
        {"role": "tool", "tool_name": "t", "content": "x"},
    ],
    "tools": [{"type": "function", "function": {"name": "t", "parameters": SCHEMA}}],
}  # fmt: skip
BODIES = [*zip(WIRES, (ANTHROPIC, OPENAI, OLLAMA), strict=True)]
EMBEDS = {"model": "m", "input": ["a", "b"], "dimensions": 4}
WORDS = st.sampled_from(["user", "tool", "tool_use", "thinking", "text", "object", "any", "m", "1", "t", ""])
SHAPES = st.recursive(
    WORDS | JSON,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(SCHEMA)), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw, body):
    """Put something else in one place of a request, or leave it out."""
    found = copy.deepcopy(body)
    at = found
    while True:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or draw(st.booleans()):
            break
        at = at[key]
    if draw(st.booleans()):
        at[key] = draw(SHAPES)
    else:
        del at[key]
    return found


@pytest.mark.parametrize(("wire", "body"), BODIES, ids=lambda one: getattr(one, "name", ""))
def test_a_request_with_everything_in_it_is_understood(wire, body):
    call = wire.read(HEADERS, body, OFFER)
    assert (call.tools, call.tool_results, call.schema, call.stream) == (("t",), 1, SCHEMA, True)
    assert call.tool_choice == ("auto" if wire.name == "ollama" else "t")


@pytest.mark.parametrize(("wire", "body"), BODIES, ids=lambda one: getattr(one, "name", ""))
@given(data=st.data())
def test_a_request_with_anything_in_it_is_answered_or_refused(wire, body, data):
    for read, whole in ((wire.read, body), (wire.read_inputs, EMBEDS)):
        with contextlib.suppress(RefusedError):
            call = read(HEADERS, data.draw(damaged(whole)), OFFER)
            assert all(wire.framed(event) for event in wire.stream(call, Rule(text="x").answer(call, "m")))


@given(schema=SHAPES)
def test_any_schema_is_taken_or_a_fault_is_told(schema):
    for fault in (anthropic_fault(schema), strict_fault(schema)):
        assert fault is None or fault


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)
@given(text=st.text(min_size=1), thinking=st.text(), arguments=st.dictionaries(st.text(), JSON))
def test_the_pieces_of_a_stream_add_up(wire, text, thinking, arguments):
    call = Call(wire.name, "m", "", "", "", None, None, stream=True, body={})
    rule = Rule(text=text, thinking=thinking or None, tool_calls=[{"name": "look_up", "arguments": arguments}])
    events = list(wire.stream(call, rule.answer(call, "m")))
    told = {"text": "", "thinking": "", "arguments": ""}
    for event in events:
        delta = event.get("delta") or event.get("message") or (event.get("choices") or [{}])[0].get("delta") or {}
        said = delta.get("text", delta.get("content"))
        told["text"] += said if isinstance(said, str) else ""
        told["thinking"] += delta.get("thinking", "")
        told["arguments"] += delta.get("partial_json", "")
        for one in delta.get("tool_calls", []):
            given_ = one["function"]["arguments"]
            told["arguments"] += given_ if isinstance(given_, str) else json.dumps(given_)
    assert told["text"] == text
    assert told["thinking"] == ("" if wire.name == "openai" else thinking)
    assert json.loads(told["arguments"] or "{}") == arguments


@given(st.text())
def test_pieces_lose_nothing(text):
    assert "".join(pieces(text)) == text
    assert len(pieces(text)) <= 64
