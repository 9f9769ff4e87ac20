"""Loops of tool calls with the official clients, and conversations that the providers refuse."""

from __future__ import annotations

import json

import anthropic
import ollama
import openai
import pytest

from loomq.testing import fake_llm

ASK = [{"role": "user", "content": "Is it cold in Bern and in Rome?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "weather", "description": "Tell the temperature.", "input_schema": SCHEMA}
FUNCTION = {"type": "function", "function": {"name": "weather", "description": "Tell it.", "parameters": SCHEMA}}
CELSIUS = {"Bern": "2 degrees", "Rome": "14 degrees"}

#: Two calls at once, then a third, then the answer: as a file of rules would script it.
LOOP = [
    {
        "tool_results": 0,
        "offers": "weather",
        "text": "Let me see.",
        "tool_calls": [{"name": "weather", "arguments": {"city": city}} for city in CELSIUS],
    },
    {"tool_results": 1, "contains": "2 degrees", "tool_calls": [{"name": "weather", "arguments": {"city": "Bern"}}]},
    {"tool_results": 2, "matches": "(?s)Rome.*14 degrees", "text": "Only in Bern."},
]


def test_a_loop_with_anthropic_s_client(claude):
    with fake_llm(LOOP) as server:
        client, messages, ids = claude(server), [*ASK], []
        while True:
            found = client.messages.create(model="fake-small", max_tokens=99, messages=messages, tools=[TOOL])
            if found.stop_reason != "tool_use":
                break
            used = [block for block in found.content if block.type == "tool_use"]
            ids += [block.id for block in used]
            results = [
                {"type": "tool_result", "tool_use_id": one.id, "content": CELSIUS[one.input["city"]]} for one in used
            ]
            messages += [found.to_param(), {"role": "user", "content": results}]
        assert (found.content[0].text, found.stop_reason) == ("Only in Bern.", "end_turn")
        assert len({*ids}) == len(ids) == 3
        assert [entry.rule for entry in server.journal] == [0, 1, 2]


def test_a_loop_with_openai_s_client(gpt):
    with fake_llm(LOOP) as server:
        client, messages, ids = gpt(server), [*ASK], []
        while True:
            found = client.chat.completions.create(model="fake-small", messages=messages, tools=[FUNCTION]).choices[0]
            messages.append(found.message)
            if found.finish_reason != "tool_calls":
                break
            for one in found.message.tool_calls:
                city = json.loads(one.function.arguments)["city"]
                messages.append({"role": "tool", "tool_call_id": one.id, "content": CELSIUS[city]})
                ids.append(one.id)
        assert found.message.content == "Only in Bern."
        assert len({*ids}) == len(ids) == 3
        assert messages[1].content == "Let me see."


def test_a_loop_with_ollama_s_client(llama):
    with fake_llm(LOOP) as server:
        client, messages = llama(server), [*ASK]
        while True:
            found = client.chat("fake-small", messages=messages, tools=[FUNCTION]).message
            messages.append(found)
            if not found.tool_calls:
                break
            messages += [
                {"role": "tool", "tool_name": one.function.name, "content": CELSIUS[one.function.arguments["city"]]}
                for one in found.tool_calls
            ]
        assert found.content == "Only in Bern."
        assert [entry.rule for entry in server.journal] == [0, 1, 2]


def test_a_tool_that_nobody_offered_is_called_all_the_same(claude, gpt, llama):
    with fake_llm([{"tool_calls": [{"name": "invented"}]}]) as server:
        message = claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK, tools=[TOOL])
        assert message.content[0].name == "invented"
        found = gpt(server).chat.completions.create(
            model="fake-small", messages=ASK, tool_choice="none", tools=[FUNCTION]
        )
        assert found.choices[0].message.tool_calls[0].function.name == "invented"
        assert llama(server).chat("fake-small", messages=ASK).message.tool_calls[0].function.name == "invented"


def test_arguments_that_are_no_json_are_sent_as_the_model_wrote_them(claude, gpt, llama):
    with fake_llm([{"tool_calls": [{"name": "weather", "arguments": '{"city": ]'}]}]) as server:
        create = gpt(server).chat.completions.create
        (called,) = create(model="fake-small", messages=ASK).choices[0].message.tool_calls
        assert called.function.arguments == '{"city": ]'
        chunks = [one.choices[0].delta.tool_calls for one in create(model="fake-small", messages=ASK, stream=True)]
        assert "".join(found[0].function.arguments for found in chunks if found) == '{"city": ]'
        whole = claude(server).messages.create(model="fake-small", max_tokens=9, messages=ASK)
        assert whole.content[0].input == {}
        stream = claude(server).messages.stream(model="fake-small", max_tokens=9, messages=ASK)
        with stream as events, pytest.raises(ValueError, match="Unable to parse tool parameter JSON"):
            events.until_done()
        assert llama(server).chat("fake-small", messages=ASK).message.tool_calls[0].function.arguments == {}


def test_a_rule_sees_what_is_offered_and_chosen(claude, gpt):
    seen = []
    with fake_llm([lambda call: seen.append((call.tools, call.tool_choice)) or "ok"]) as server:
        ask = claude(server).messages.create
        for choice in ("auto", "any", "none"):
            ask(model="fake-small", max_tokens=9, messages=ASK, tools=[TOOL], tool_choice={"type": choice})
        named = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
        ask(model="fake-small", max_tokens=9, messages=ASK, tools=[TOOL], tool_choice=named)
        create = gpt(server).chat.completions.create
        for choice in ("auto", "required", "none", {"type": "function", "function": {"name": "weather"}}):
            create(
                model="fake-small", messages=ASK, tools=[FUNCTION], tool_choice=choice, parallel_tool_calls=False
            )  # fmt: skip
        create(model="fake-small", messages=ASK)
    offered = ("weather",)
    assert seen == [
        (offered, "auto"), (offered, "required"), (offered, "none"), (offered, "weather"),
        (offered, "auto"), (offered, "required"), (offered, "none"), (offered, "weather"),
        ((), "none"),
    ]  # fmt: skip


USED = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}}
CALLED = {"role": "assistant", "content": [USED]}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2 degrees"}
TEXT = {"type": "text", "text": "there"}
CLAUDE_REFUSES = [
    ({"messages": [*ASK, CALLED]}, "messages.1: `tool_use` ids were found without `tool_result` blocks"),
    ({"messages": [*ASK, CALLED, {"role": "user", "content": [TEXT, RESULT]}]}, "ids were found without"),
    ({"messages": [*ASK, CALLED, *ASK]}, "messages.1: `tool_use` ids were found without"),
    ({"messages": [{"role": "user", "content": [RESULT]}]}, "messages.0.content.0: unexpected `tool_use_id`"),
    ({"messages": [*ASK, CALLED, {"role": "user", "content": [RESULT]}], "tools": anthropic.omit}, "must define tools"),
    ({"messages": [{"role": "user", "content": [USED]}]}, "can only be in `assistant` messages"),
    ({"messages": [*ASK, {"role": "assistant", "content": [{**USED, "input": "{}"}]}]}, "valid dictionary"),
    ({"messages": [*ASK, {"role": "assistant", "content": [{**USED, "id": "to:1"}]}]}, "tool_use.id: String"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "must be non-empty"),
    ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}, "Input tag 'input_text'"),
    ({"messages": [{"role": "user", "content": [{**TEXT, "name": "x"}]}]}, "text.name: Extra inputs"),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools.0.custom.name: String should match pattern"),
    ({"tools": [{"name": "weather"}]}, "tools.0.custom.input_schema: Field required"),
    ({"tools": [{**TOOL, "input_schema": {"properties": {}}}]}, "input_schema.type"),
    ({"tools": [{**TOOL, "input_schema": {"type": "thing"}}]}, "JSON schema is invalid"),
    ({"tools": [FUNCTION]}, "Input tag 'function'"),
    ({"tools": [{**TOOL, "parameters": {}}]}, "tools.0.custom.parameters: Extra inputs"),
    ({"tools": [{**TOOL, "strict": True}]}, "'additionalProperties' must be explicitly set to false"),
    ({"tools": [TOOL, TOOL]}, "Tool names must be unique"),
    ({"tool_choice": {"type": "tool", "name": "none"}}, "not found in provided tools"),
    ({"tool_choice": {"type": "required"}}, "tool_choice: Input tag 'required'"),
    ({"tool_choice": {"type": "any"}, "tools": anthropic.omit}, "while providing tools"),
    ({"tool_choice": {"type": "any"}, "thinking": {"type": "adaptive"}}, "Thinking may not be enabled"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "told"), CLAUDE_REFUSES)
def test_anthropic_s_wire_refuses_tools_and_results_that_do_not_fit(claude, said, told):
    with fake_llm([{"text": "ok"}]) as server, pytest.raises(anthropic.BadRequestError) as caught:
        claude(server).messages.create(
            **{"model": "fake-small", "max_tokens": 9, "messages": ASK, "tools": [TOOL], **said}
        )
    assert told in caught.value.body["error"]["message"]


CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
REPLY = {"role": "tool", "tool_call_id": "call_1", "content": "2 degrees"}
GPT_REFUSES = [
    ({"messages": [*ASK, ASKED]}, "messages", "call_1"),
    ({"messages": [*ASK, ASKED, *ASK]}, "messages", "did not have response messages: call_1"),
    ({"messages": [*ASK, ASKED, *ASK, REPLY]}, "messages", "did not have response messages"),
    ({"messages": [*ASK, REPLY]}, "messages[1].role", "must be a response to a preceding message"),
    ({"messages": [*ASK, ASKED, REPLY, {**REPLY, "tool_call_id": "call_2"}]}, "messages[3].role", "must be a response"),
    ({"messages": [*ASK, {"role": "assistant", "content": None}]}, "messages[1].content", "got null"),
    ({"messages": [*ASK, {**ASKED, "tool_calls": []}]}, "messages[1].content", "got null"),
    ({"messages": [*ASK, {**ASKED, "content": "x", "tool_calls": []}]}, "messages[1].tool_calls", "empty array"),
    ({"messages": [*ASK, {**ASKED, "thinking": "x"}]}, "messages[1].thinking", "Unknown parameter"),
    ({"tools": []}, "tools", "empty array"),
    ({"tools": [TOOL]}, "tools[0].type", "Invalid value"),
    ({"tools": [{"type": "function", "name": "weather"}]}, "tools[0].name", "Unknown parameter"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name", "pattern"),
    (
        {"tools": [{"type": "function", "function": {"name": "x", "strict": True, "parameters": SCHEMA}}]},
        "tools[0].function.parameters",
        "'additionalProperties' is required to be supplied and to be false",
    ),
    ({"tool_choice": "any"}, "tool_choice", "Supported values"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "not found"),
    ({"tool_choice": "auto", "tools": openai.omit}, "tool_choice", "only allowed when 'tools'"),
    ({"parallel_tool_calls": True, "tools": openai.omit}, "parallel_tool_calls", "only allowed when 'tools'"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when 'stream'"),
]


@pytest.mark.parametrize(("said", "param", "told"), GPT_REFUSES)
def test_openai_s_wire_refuses_tools_and_results_that_do_not_fit(gpt, said, param, told):
    with fake_llm([{"text": "ok"}]) as server, pytest.raises(openai.BadRequestError) as caught:
        gpt(server).chat.completions.create(**{"model": "fake-small", "messages": ASK, "tools": [FUNCTION], **said})
    assert caught.value.param == param
    assert told in caught.value.body["message"]


def test_openai_s_arguments_are_text_and_ollama_s_are_an_object(gpt, llama):
    asked = {**ASKED, "tool_calls": [{**CALL, "function": {"name": "weather", "arguments": {}}}]}
    with fake_llm([{"text": "ok"}]) as server:
        with pytest.raises(openai.BadRequestError, match=r"function.arguments': expected a string"):
            gpt(server).chat.completions.create(model="fake-small", messages=[*ASK, asked, REPLY])
        with pytest.raises(ollama.ResponseError, match="cannot unmarshal"):
            llama(server)._request_raw(
                "POST", "/api/chat", json={"model": "fake-small", "messages": [*ASK, {**ASKED, "content": ""}]}
            )
