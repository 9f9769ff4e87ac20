"""The official clients read the fake server's streams, and see what goes wrong in them."""

from __future__ import annotations

import json

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest

from loomq.testing import fake_llm, wait_until

ASK = [{"role": "user", "content": "What is a cat?"}]
TEXT = "A cat is a small animal with a mind of its own, größer und übermütiger."
MODEL = {"model": "fake-small", "messages": ASK}
MESSAGE = {**MODEL, "max_tokens": 99}
LOOK_UP = {"name": "look_up", "arguments": {"word": "cat", "languages": ["en", "de"]}}
TOOL = {
    "name": "look_up",
    "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}},
}
FUNCTION = {"type": "function", "function": {"name": "look_up", "parameters": TOOL["input_schema"]}}


def test_anthropic_s_client_gathers_a_stream_to_the_whole_message(claude):
    rule = {"text": TEXT, "prompt_tokens": 11, "completion_tokens": 17, "cached_tokens": 8}
    with fake_llm([rule]) as server, claude(server).messages.stream(**MESSAGE) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
        assert ("".join(texts), len(texts) > 5) == (TEXT, True)
        assert message.content[0].text == TEXT
        assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 3, 17)
        assert message.usage.cache_read_input_tokens == 8
        assert stream.request_id.startswith("req_")
        assert stream.response.headers["content-type"] == "text/event-stream; charset=utf-8"


def test_anthropic_s_events_come_in_their_order_with_a_ping(claude):
    with fake_llm([{"thinking": "Hm.", "text": "ok", "tool_calls": [LOOK_UP]}]) as server:
        raw = claude(server).messages.with_streaming_response.create(**MESSAGE, tools=[TOOL], stream=True)
        with raw as response:
            lines = [line for line in response.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data:")]
    assert names == [event["type"] for event in events]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert names[1:3] == ["content_block_start", "ping"]
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert list(dict.fromkeys(deltas)) == ["thinking_delta", "signature_delta", "text_delta", "input_json_delta"]
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["type"], block.get("input")) for block in starts] == [
        ("thinking", None), ("text", None), ("tool_use", {})
    ]  # fmt: skip
    assert events[0]["message"]["stop_reason"] is None


def test_anthropic_s_client_gathers_thoughts_and_tool_calls(claude):
    calls = [LOOK_UP, {"name": "stop"}]
    rule = {"thinking": "Look it up.", "text": "One moment.", "tool_calls": calls}
    with fake_llm([rule]) as server, claude(server).messages.stream(**MESSAGE, tools=[TOOL]) as stream:
        found = stream.get_final_message()
        whole = claude(server).messages.create(**MESSAGE, tools=[TOOL])
        assert [block.to_dict() for block in found.to_param()["content"]] == [b.to_dict() for b in whole.content]
        assert found.stop_reason == "tool_use"
        assert [block.type for block in found.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert [block.input for block in found.content[2:]] == [LOOK_UP["arguments"], {}]
        assert len({block.id for block in found.content[2:]}) == 2


def test_openai_s_client_reads_chunks_and_the_usage_at_their_end(gpt):
    with fake_llm([{"text": TEXT, "prompt_tokens": 11, "completion_tokens": 17}]) as server:
        create = gpt(server).chat.completions.create
        chunks = list(create(**MODEL, stream=True, stream_options={"include_usage": True}))
        assert (chunks[0].choices[0].delta.role, chunks[0].choices[0].delta.content) == ("assistant", "")
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == TEXT
        assert (chunks[-2].choices[0].finish_reason, chunks[-2].usage) == ("stop", None)
        assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 28)
        assert len({chunk.id for chunk in chunks}) == 1
        assert all(chunk.usage is None for chunk in create(**MODEL, stream=True))


def test_openai_s_stream_ends_with_done(gpt):
    with fake_llm([{"text": "ok"}]) as server:
        raw = gpt(server).chat.completions.with_streaming_response.create(**MODEL, stream=True)
        with raw as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert list(response.iter_lines())[-2:] == ["data: [DONE]", ""]


def test_openai_s_client_gathers_tool_calls_and_refusals(gpt):
    rules = [{"text": "One moment.", "tool_calls": [LOOK_UP, {"name": "stop"}], "offers": "look_up"}]
    with fake_llm([*rules, {"fault": "refusal"}]) as server:
        with gpt(server).chat.completions.stream(**MODEL, tools=[FUNCTION]) as stream:
            found = stream.get_final_completion().choices[0]
        whole = gpt(server).chat.completions.create(**MODEL, tools=[FUNCTION]).choices[0]
        assert (found.finish_reason, found.message.content) == ("tool_calls", "One moment.")
        called = [(one.id, one.function.name, one.function.arguments) for one in found.message.tool_calls]
        assert called == [(one.id, one.function.name, one.function.arguments) for one in whole.message.tool_calls]
        assert json.loads(called[0][2]) == LOOK_UP["arguments"]
        with gpt(server).chat.completions.stream(**MODEL) as stream:
            refused = stream.get_final_completion().choices[0]
        assert (refused.message.content, refused.finish_reason) == (None, "stop")
        assert refused.message.refusal


def test_ollama_s_client_reads_lines(llama):
    rule = {"thinking": "Hm, hm.", "text": TEXT, "tool_calls": [LOOK_UP, {"name": "stop"}], "prompt_tokens": 11}
    with fake_llm([rule]) as server:
        *parts, last = llama(server).chat("fake-small", messages=ASK, stream=True)
        assert "".join(part.message.thinking or "" for part in parts) == "Hm, hm."
        assert "".join(part.message.content for part in parts) == TEXT
        called = [one.function for part in parts for one in part.message.tool_calls or ()]
        assert [(one.name, one.arguments) for one in called] == [("look_up", LOOK_UP["arguments"]), ("stop", {})]
        assert (any(part.done for part in parts), last.done, last.done_reason) == (False, True, "stop")
        assert last.prompt_eval_count == 11


@pytest.mark.parametrize("wire", ["anthropic", "openai", "ollama"])
def test_the_pieces_of_a_stream_come_one_after_the_other(claude, gpt, llama, wire):
    with fake_llm([{"text": TEXT, "piece_delay_seconds": 300}]) as server:
        streams = {
            "anthropic": lambda: claude(server).messages.create(**MESSAGE, stream=True),
            "openai": lambda: gpt(server).chat.completions.create(**MODEL, stream=True),
            "ollama": lambda: llama(server).chat("fake-small", messages=ASK, stream=True),
        }
        stream = iter(streams[wire]())
        assert next(stream)
        wait_until(lambda: len(server.journal) == 1, "the journal, which is written before the first piece")
        assert server.journal[0].status == 200
    with pytest.raises((httpx.HTTPError, httpx2.HTTPError, openai.APIConnectionError)):
        list(stream)


def test_a_stream_that_is_cut_is_an_error(claude, gpt, llama):
    with fake_llm([{"text": TEXT, "fault": "cut"}]) as server:
        with claude(server).messages.stream(**MESSAGE) as stream, pytest.raises(httpx2.RemoteProtocolError):
            stream.until_done()
        assert 0 < len(stream.current_message_snapshot.content[0].text) < len(TEXT)
        with pytest.raises(openai.APIConnectionError):
            list(gpt(server).chat.completions.create(**MODEL, stream=True))
        with pytest.raises(httpx.RemoteProtocolError):
            list(llama(server).chat("fake-small", messages=ASK, stream=True))


def test_a_broken_event_in_a_stream_is_no_json(claude, gpt, llama):
    with fake_llm([{"text": TEXT, "fault": "malformed"}]) as server:
        with claude(server).messages.stream(**MESSAGE) as stream, pytest.raises(json.JSONDecodeError):
            stream.until_done()
        with pytest.raises(json.JSONDecodeError):
            list(gpt(server).chat.completions.create(**MODEL, stream=True))
        with pytest.raises(json.JSONDecodeError):
            list(llama(server).chat("fake-small", messages=ASK, stream=True))


def test_a_provider_s_error_in_a_stream_comes_after_the_first_pieces(claude, gpt, llama):
    with fake_llm([{"text": TEXT, "fault": "stream_error"}]) as server:
        with claude(server).messages.stream(**MESSAGE) as stream, pytest.raises(anthropic.APIStatusError) as caught:
            stream.until_done()
        assert caught.value.body["error"]["type"] == "overloaded_error"
        assert stream.current_message_snapshot.content[0].text
        parts = []
        with pytest.raises(openai.APIError, match="Overloaded") as caught:
            parts.extend(gpt(server).chat.completions.create(**MODEL, stream=True))
        assert caught.value.type == "server_error"
        with pytest.raises(ollama.ResponseError, match="Overloaded"):
            parts.extend(llama(server).chat("fake-small", messages=ASK, stream=True))


def test_without_a_stream_that_error_is_a_status(claude, gpt, llama):
    with fake_llm([{"text": TEXT, "fault": "stream_error"}]) as server:
        with pytest.raises(anthropic.OverloadedError):
            claude(server).messages.create(**MESSAGE)
        with pytest.raises(openai.InternalServerError) as caught:
            gpt(server).chat.completions.create(**MODEL)
        assert caught.value.status_code == 503
        with pytest.raises(ollama.ResponseError) as failed:
            llama(server).chat("fake-small", messages=ASK)
        assert failed.value.status_code == 503


def test_errors_before_a_stream_are_what_they_are_without_one(claude, gpt, llama):
    with fake_llm([{"status": 429, "retry_after": 1}]) as server:
        with pytest.raises(anthropic.RateLimitError):
            claude(server).messages.create(**MESSAGE, stream=True)
        with pytest.raises(openai.RateLimitError):
            gpt(server).chat.completions.create(**MODEL, stream=True)
        with pytest.raises(ollama.ResponseError) as caught:
            list(llama(server).chat("fake-small", messages=ASK, stream=True))
        assert caught.value.status_code == 429


def test_a_connection_is_used_again_after_a_whole_stream(llama):
    with fake_llm([{"text": TEXT}]) as server:
        client = llama(server)
        for _ in range(3):
            assert list(client.chat("fake-small", messages=ASK, stream=True))
        assert server._http.accepted == 1
