"""Reading the texts out of messages, whichever wire they came by."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def text_of(content: Any) -> str:
    """Read a message's content: a text, or a list of blocks with texts in them."""
    if isinstance(content, str):
        return content
    return "\n".join(str(block["text"]) for block in blocks_of(content) if "text" in block)


def everything_in(message: Mapping[str, Any]) -> str:
    """Read all that a message says: its texts, the results of tools, and the tool calls with their arguments."""
    content = message.get("content")
    said = [content] if isinstance(content, str) else [_text_of_block(block) for block in blocks_of(content)]
    return "\n".join(filter(None, [*said, *map(_text_of_call, blocks_of(message.get("tool_calls")))]))


def prompt_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Give the last text that the user said."""
    return next(filter(None, reversed(turns(messages, "user"))), "")


def turns(messages: Sequence[Mapping[str, Any]], role: str) -> list[str]:
    """List the texts of one role's messages."""
    return [text_of(message.get("content")) for message in messages if message.get("role") == role]


def rounds(messages: Sequence[Mapping[str, Any]]) -> int:
    """Count the runs of ``tool`` messages: OpenAI and Ollama send one a result."""
    roles = [None, *(message.get("role") for message in messages)]
    return sum(role == "tool" != before for before, role in pairwise(roles))


def blocks_of(content: Any) -> list[dict[str, Any]]:
    """List the blocks of a content, or whatever else should be a list of objects; a text has none."""
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _text_of_block(block: Mapping[str, Any]) -> str:
    if block.get("type") == "tool_use":
        return f"{block.get('name')} {json.dumps(block.get('input'), ensure_ascii=False)}"
    return text_of(block.get("content")) if block.get("type") == "tool_result" else str(block.get("text", ""))


def _text_of_call(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    if not isinstance(function, dict):
        return ""
    arguments = function.get("arguments")
    told = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"{function.get('name')} {told}"
