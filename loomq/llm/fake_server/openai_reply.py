"""A chat completion of OpenAI's, whole or as the chunks of a stream."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server.wire import REFUSAL, Answer, Call, new_id, pieces, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STOPS = {
    "end": "stop",
    "length": "length",
    "tools": "tool_calls",
    "refusal": "stop",
    "filter": "content_filter",
    "pause": "stop",
}


def completion(call: Call, answer: Answer) -> dict[str, Any]:
    """Write a completion of one choice."""
    refused = answer.stop == "refusal"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if refused else _content(answer),
        "refusal": REFUSAL if refused else None,
        "annotations": [],
    }
    if answer.tool_calls:
        message["tool_calls"] = [
            {"id": one["id"], "type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}
            for one in _calls(call, answer)
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": STOPS[answer.stop]}
    return {**_head("chat.completion", answer), "choices": [choice], "usage": _usage(answer)}


def chunks(call: Call, answer: Answer) -> Iterator[Mapping[str, Any]]:
    """Write a completion as chunks; the counts of tokens come last and only if they are asked for."""
    head = _head("chat.completion.chunk", answer)
    counts = bool((call.body.get("stream_options") or {}).get("include_usage"))
    usage = {"usage": None} if counts else {}
    for delta in _deltas(call, answer):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        yield {**head, "choices": [choice], **usage}
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": STOPS[answer.stop]}
    yield {**head, "choices": [choice], **usage}
    if counts:
        yield {**head, "choices": [], "usage": _usage(answer)}


def _deltas(call: Call, answer: Answer) -> Iterator[dict[str, Any]]:
    """Give what each chunk adds: who speaks, then pieces of text, then each tool call and pieces of its arguments."""
    if answer.stop == "refusal":
        yield {"role": "assistant", "content": None, "refusal": ""}
        yield from ({"refusal": part} for part in pieces(REFUSAL))
        return
    yield {"role": "assistant", "content": None if _content(answer) is None else "", "refusal": None}
    yield from ({"content": part} for part in pieces(answer.text))
    for index, one in enumerate(_calls(call, answer)):
        begun = {"index": index, "id": one["id"], "type": "function"}
        yield {"tool_calls": [{**begun, "function": {"name": one["name"], "arguments": ""}}]}
        for part in pieces(one["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}


def _content(answer: Answer) -> str | None:
    return answer.text if answer.text or not answer.tool_calls else None


def _calls(call: Call, answer: Answer) -> list[dict[str, str]]:
    return [
        {"id": call.tool_id("call_", number), "name": one.name, "arguments": one.written}
        for number, one in enumerate(answer.tool_calls)
    ]


def _head(kind: str, answer: Answer) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl-"),
        "object": kind,
        "created": int(time.time()),
        "model": answer.model,
        "service_tier": "default",
    }


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": min(tokens(answer.thinking), answer.completion_tokens)},
    }
