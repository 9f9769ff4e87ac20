"""Streams on all three wires: the same reply as without, told while it is written, and every way to break."""

from __future__ import annotations

import asyncio

import pytest

from loomq.errors import LLMAnswerError, LLMError, LLMRefusedError, LLMUnavailableError
from loomq.llm.base import LLMMessage, LLMRequest, ToolDefinition
from loomq.llm.http import HttpPool
from loomq.llm.settings import LLMSettings
from loomq.llm.tiers import Tiers
from loomq.testing import fake_llm

WIRES = ["anthropic", "openai", "ollama"]
TOOL = ToolDefinition(name="look", description="Look.", parameters={"type": "object"})
TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. " * 20


def ask(server, wire, *, stream=True, timeout_s=10.0, tools=()):
    heard = []

    async def go():
        pool = HttpPool()
        backend = Tiers(pool, LLMSettings(server.environment(wire))).backend("standard")
        request = LLMRequest(
            messages=(LLMMessage(role="user", content="hi"),), max_output_tokens=5000, timeout_s=timeout_s, tools=tools
        )
        try:
            return await backend.complete(request, heard.append if stream else None)
        finally:
            await pool.aclose()

    return asyncio.run(go()), heard


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "rule",
    [
        {"text": TEXT, "prompt_tokens": 11, "completion_tokens": 7},
        {
            "text": "One moment.",
            "tool_calls": [{"name": "look", "arguments": {"at": [1, {"b": "ü"}]}}, {"name": "look"}],
        },
        {"text": TEXT, "fault": "truncated"},
        {"text": "{}", "prompt_tokens": 100, "cached_tokens": 60},
    ],
)
def test_a_stream_gives_what_the_whole_reply_gives(wire, rule):
    with fake_llm([rule]) as server:
        streamed, heard = ask(server, wire, tools=(TOOL,))
        whole, none = ask(server, wire, stream=False, tools=(TOOL,))
    ids = {"tool_calls": tuple(call.model_copy(update={"id": ""}) for call in whole.tool_calls or ()) or None}
    same = {"tool_calls": tuple(call.model_copy(update={"id": ""}) for call in streamed.tool_calls or ()) or None}
    assert streamed.model_copy(update=same) == whole.model_copy(update=ids)
    assert ("".join(heard), none) == (whole.content, [])


@pytest.mark.parametrize("wire", WIRES)
def test_the_text_comes_while_it_is_written(wire):
    with fake_llm([{"text": TEXT, "piece_delay_seconds": 0.01}]) as server:
        _, heard = ask(server, wire)
    assert len(heard) > 3


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("rule", "fault", "kind"),
    [
        ({"text": TEXT, "fault": "cut"}, LLMUnavailableError, "connection"),
        ({"text": TEXT, "fault": "malformed"}, LLMAnswerError, "malformed"),
        ({"status": 529}, LLMUnavailableError, "overloaded"),
        ({"status": 401}, LLMError, "auth"),
        ({"fault": "hang"}, LLMUnavailableError, "timeout"),
    ],
)
def test_a_stream_that_breaks_says_how(wire, rule, fault, kind):
    with fake_llm([rule]) as server, pytest.raises(fault) as caught:
        ask(server, wire, timeout_s=1.0)
    assert caught.value.kind == kind


@pytest.mark.parametrize("wire", WIRES)
def test_an_error_within_a_stream_is_worth_another_try(wire):
    with fake_llm([{"text": TEXT, "fault": "stream_error"}]) as server, pytest.raises(LLMUnavailableError):
        ask(server, wire)


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
def test_a_refusal_in_a_stream_is_a_refusal(wire):
    with fake_llm([{"fault": "refusal"}]) as server, pytest.raises(LLMRefusedError) as caught:
        ask(server, wire)
    assert caught.value.tokens is not None


@pytest.mark.parametrize(
    ("wire", "stop", "kind"),
    [
        ("anthropic", "context", "context_overflow"),
        ("openai", "context", "context_overflow"),
        ("ollama", "context", "context_overflow"),
        ("openai", "filter", "content_filter"),
        ("anthropic", "filter", "refusal"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_every_reason_to_stop_is_told(wire, stop, kind, stream):
    with fake_llm([{"text": "x", "stop": stop}]) as server, pytest.raises(LLMError) as caught:
        ask(server, wire, stream=stream)
    assert (caught.value.kind, caught.value.retryable) == (kind, False)


@pytest.mark.parametrize("wire", WIRES)
def test_thinking_is_no_part_of_the_answer(wire):
    with fake_llm([{"text": "So.", "thinking": "Hm, hm."}]) as server:
        for stream in (False, True):
            assert ask(server, wire, stream=stream)[0].content == "So."


@pytest.mark.parametrize("wire", ["anthropic", "openai"])
def test_tokens_that_a_provider_had_cached_are_told(wire):
    with fake_llm([{"text": "x", "prompt_tokens": 100, "cached_tokens": 60}]) as server:
        found, _ = ask(server, wire)
    assert (found.prompt_tokens, found.cached_tokens) == (100, 60)
