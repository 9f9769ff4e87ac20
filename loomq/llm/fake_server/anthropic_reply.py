"""A message of Anthropic's, whole or as the events of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loomq.llm.fake_server.anthropic_request import signature
from loomq.llm.fake_server.wire import REFUSAL, Answer, Call, new_id, pieces, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STOPS = {
    "end": "end_turn",
    "length": "max_tokens",
    "tools": "tool_use",
    "refusal": "refusal",
    "filter": "refusal",
    "pause": "pause_turn",
    "context": "model_context_window_exceeded",
}


def message(call: Call, answer: Answer) -> dict[str, Any]:
    """Write a message."""
    return {**_head(answer), "content": _blocks(call, answer), **_stop(answer), "usage": _usage(answer)}


def events(call: Call, answer: Answer) -> Iterator[Mapping[str, Any]]:
    """Write a message as events; the counts of tokens in the last ones are totals."""
    stops: dict[str, Any] = dict.fromkeys(_stop(answer))
    usage = {**_usage(answer), "output_tokens": 1, "output_tokens_details": None}
    start = {**_head(answer), "content": [], **stops, "usage": usage}
    yield {"type": "message_start", "message": start}
    blocks = _blocks(call, answer)
    written = [*[""] * (len(blocks) - len(answer.tool_calls)), *(one.written for one in answer.tool_calls)]
    for index, (block, arguments) in enumerate(zip(blocks, written, strict=True)):
        empty, deltas = _apart(block, arguments)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        if not index:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    usage = {name: count for name, count in _usage(answer).items() if name != "service_tier"}
    yield {"type": "message_delta", "delta": {**_stop(answer), "container": None}, "usage": usage}
    yield {"type": "message_stop"}


def _head(answer: Answer) -> dict[str, Any]:
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "container": None,
        "diagnostics": None,
    }


def _blocks(call: Call, answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.thinking:
        blocks.append({"type": "thinking", "thinking": answer.thinking, "signature": signature(answer.thinking)})
    if answer.text and answer.stop != "refusal":
        blocks.append({"type": "text", "text": answer.text, "citations": None})
    for number, one in enumerate(answer.tool_calls):
        called = {"type": "tool_use", "id": call.tool_id("toolu_", number), "name": one.name, "input": one.understood}
        blocks.append({**called, "caller": {"type": "direct"}})
    return blocks


def _apart(block: Mapping[str, Any], arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Take a block apart: how it begins, and what is then added to it.

    Args:
        arguments: What the model wrote if the block is a tool call.
    """
    if block["type"] == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": part} for part in pieces(block["text"])]
    if block["type"] == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": part} for part in pieces(block["thinking"])]
        signed = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": "", "signature": ""}, [*deltas, signed]
    parts = ["", *pieces("" if arguments == "{}" else arguments)]  # as there: an empty piece first, and no empty object
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _stop(answer: Answer) -> dict[str, Any]:
    reason = STOPS[answer.stop]
    refusal = {"type": "refusal", "category": "general_harms", "explanation": REFUSAL}
    return {
        "stop_reason": reason,
        "stop_sequence": None,
        "stop_details": refusal if reason == "refusal" else None,
    }


def _usage(answer: Answer) -> dict[str, Any]:
    return {
        "input_tokens": answer.prompt_tokens - answer.cached_tokens,
        "output_tokens": answer.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens_details": {"thinking_tokens": min(tokens(answer.thinking), answer.completion_tokens)},
        "service_tier": "standard",
    }
