"""How long a prompt is, without its model's tokenizer: rather too many tokens than too few."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loomq.llm.base import LLMMessage, LLMRequest

# English takes some 4 bytes a token, JSON and other scripts about 3: better to count too many.
BYTES_A_TOKEN = 3


def estimated_tokens(text: str) -> int:
    """Count a text's tokens."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN)


def request_tokens(request: LLMRequest) -> int:
    """Count a prompt's tokens, with the tools that it offers and the contract that it tells."""
    return sum(map(estimated_tokens, _texts(request)))


def _texts(request: LLMRequest) -> Iterator[str]:
    yield request.system
    yield from (tool.model_dump_json() for tool in request.tools)
    if request.output_schema is not None:
        yield json.dumps(request.output_schema)
    for message in request.messages:
        yield from _texts_of(message)


def _texts_of(message: LLMMessage) -> Iterator[str]:
    if message.native is not None:
        yield json.dumps(message.native.blocks, ensure_ascii=False)
        return
    yield message.content
    yield from (call.model_dump_json() for call in message.tool_calls)
