"""Anthropic's Messages API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import ConfigDict, Discriminator, Tag

from loomq.errors import LLMAnswerError, LLMError, LLMRefusedError
from loomq.llm.base import LLMBackend, LLMReply, LLMRequest, Native, StopReason, ToolCall
from loomq.llm.endpoint import Endpoint, Tokens, Wire
from loomq.llm.schemas import closed
from loomq.redaction import excerpt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import SecretStr

    from loomq.llm.base import LLMMessage, TextListener
    from loomq.llm.http import HttpPool

DEFAULT_URL = "https://api.anthropic.com"
DEFAULT_VERSION = "2026-10-21"
#: The versions before the current one take the key in a header of their own.
_OLD_VERSIONS = {"2023-01-01", "2023-06-01"}
_PAGE, _MAX_PAGES = 1000, 10

_STOPS = {reason.value: reason for reason in StopReason}


class _Block(Wire):
    """A block that may have to be sent back as it came."""

    model_config = ConfigDict(extra="allow")


class _Text(_Block):
    type: Literal["text"]
    text: str


class _ToolUse(_Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class _Other(_Block):
    """Thinking, and whatever blocks come later: nothing that a worker reads."""

    type: str


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if kind in ("text", "tool_use") else "other"


_AnyBlock = Annotated[
    Annotated[_Text, Tag("text")] | Annotated[_ToolUse, Tag("tool_use")] | Annotated[_Other, Tag("other")],
    Discriminator(_kind),
]


class _Usage(Wire):
    input_tokens: Tokens
    output_tokens: Tokens
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None


class _StopDetails(Wire):
    category: str | None = None
    explanation: str | None = None


class _Message(Wire):
    type: Literal["message"]
    model: str
    content: list[_AnyBlock]
    stop_reason: str
    stop_details: _StopDetails | None = None
    usage: _Usage


class _Model(Wire):
    id: str


class _Models(Wire):
    data: list[_Model]
    has_more: bool = False
    last_id: str | None = None


class AnthropicBackend(LLMBackend):
    """A Claude model.

    Args:
        version: The ``anthropic-version``; it also decides how the key is sent.
    """

    provider = "Anthropic"
    code = "anthropic"

    def __init__(
        self,
        pool: HttpPool,
        model: str,
        key: SecretStr,
        *,
        base_url: str = DEFAULT_URL,
        version: str = DEFAULT_VERSION,
    ) -> None:
        super().__init__(model)
        self._endpoint = Endpoint(
            pool,
            self.provider,
            base_url.rstrip("/"),
            key,
            "ANTHROPIC_API_KEY",
            "x-api-key" if version in _OLD_VERSIONS else "authorization",
            {"anthropic-version": version},
        )

    async def complete(self, request: LLMRequest, on_text: TextListener | None = None) -> LLMReply:
        """Ask the model; errors as in ``LLMBackend``."""
        body = self._body(request)
        if on_text is None:
            return self._reply(await self._endpoint.post("/v1/messages", body, _Message, request.timeout_s))
        stream = _Stream(on_text)
        await self._endpoint.stream("/v1/messages", {**body, "stream": True}, stream.hear, request.timeout_s)
        if not stream.is_over:
            raise self._endpoint.broken_off()
        return self._reply(self._endpoint.parsed(stream.message(), _Message))

    def _body(self, request: LLMRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_output_tokens,
            "messages": list(_turns(request.messages)),
        }
        if request.system:
            body["system"] = request.system
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                for tool in request.tools
            ]
            if not request.may_call_tools:
                body["tool_choice"] = {"type": "none"}
        schema = closed(request.output_schema) if request.output_schema else None
        if schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return body

    def _reply(self, message: _Message) -> LLMReply:
        usage = message.usage
        calls = [block for block in message.content if isinstance(block, _ToolUse)]
        written, read = usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0
        blocks = tuple(block.model_dump() for block in message.content)
        prompt_tokens = usage.input_tokens + written + read
        try:
            stop = self._stop(message)
        except LLMError as error:
            error.tokens = (prompt_tokens, usage.output_tokens)
            raise
        has_others = any(isinstance(block, _Other) for block in message.content)
        return LLMReply(
            content="".join(block.text for block in message.content if isinstance(block, _Text)),
            model=message.model,
            prompt_tokens=prompt_tokens,
            completion_tokens=usage.output_tokens,
            cached_tokens=read,
            cache_write_tokens=written,
            tool_calls=tuple(ToolCall(id=one.id, name=one.name, arguments=one.input) for one in calls) or None,
            stop_reason=stop,
            native=Native(provider=self.code, blocks=blocks) if has_others else None,
        )

    def _stop(self, message: _Message) -> StopReason:
        if message.stop_reason == "refusal":
            details = message.stop_details or _StopDetails()
            why = ": ".join(part for part in (details.category, details.explanation) if part)
            raise LLMRefusedError(f"{message.model} refused to answer ({excerpt(why) or 'it gave no reason'})")
        if message.stop_reason == "model_context_window_exceeded":
            raise LLMError(
                f"prompt and answer do not fit into the context window of {message.model}",
                hint="send less, or lower max_output_tokens",
                kind="context_overflow",
            )
        if message.stop_reason not in _STOPS:
            raise LLMAnswerError(f"{self.provider} stopped for a reason unknown here: {excerpt(message.stop_reason)}")
        return _STOPS[message.stop_reason]

    async def list_models(self, timeout_s: float = 5.0) -> list[str]:
        """List the models, newest first."""
        found: list[str] = []
        after = ""
        for _ in range(_MAX_PAGES):
            page = await self._endpoint.get(f"/v1/models?limit={_PAGE}{after}", _Models, timeout_s)
            found += [model.id for model in page.data]
            if not (page.has_more and page.last_id):
                break
            after = f"&after_id={quote(page.last_id, safe='')}"
        return found


def _turns(messages: tuple[LLMMessage, ...]) -> Iterator[dict[str, Any]]:
    """Write the conversation; the results of one round of tools are one turn of the user's."""
    results: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "tool":
            result = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
            results.append({**result, "is_error": True} if message.is_error else result)
            continue
        if results:
            yield {"role": "user", "content": results}
            results = []
        yield {"role": message.role, "content": _content(message)}
    if results:
        yield {"role": "user", "content": results}


def _content(message: LLMMessage) -> str | list[dict[str, Any]]:
    if message.native is not None and message.native.provider == AnthropicBackend.code:
        return list(message.native.blocks)
    if not message.tool_calls:
        return message.content
    calls = [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in message.tool_calls
    ]
    return [{"type": "text", "text": message.content}, *calls] if message.content else calls


class _Stream:
    """Put a message together out of the events that tell it."""

    def __init__(self, on_text: TextListener) -> None:
        self._on_text = on_text
        self._message: dict[str, Any] = {}
        self._blocks: dict[Any, dict[str, Any]] = {}
        self._written: dict[Any, str] = {}
        self.is_over = False

    def hear(self, event: dict[str, Any]) -> None:
        """Take the next event."""
        kind = event.get("type")
        if kind == "message_start":
            self._message = _mapping(event.get("message"))
        elif kind == "content_block_start":
            self._blocks[event.get("index")] = _mapping(event.get("content_block"))
        elif kind == "content_block_delta":
            self._add(event.get("index"), _mapping(event.get("delta")))
        elif kind == "message_delta":
            self._message |= _mapping(event.get("delta"))
            self._message["usage"] = {**_mapping(self._message.get("usage")), **_mapping(event.get("usage"))}
        elif kind == "message_stop":
            self.is_over = True

    def _add(self, index: Any, delta: dict[str, Any]) -> None:
        block = self._blocks.setdefault(index, {"type": "missing"})
        if delta.get("type") == "input_json_delta":
            self._written[index] = self._written.get(index, "") + str(delta.get("partial_json", ""))
            return
        for key in ("text", "thinking", "signature"):
            if isinstance(delta.get(key), str):
                block[key] = str(block.get(key) or "") + delta[key]
        if delta.get("type") == "text_delta" and delta.get("text"):
            self._on_text(str(delta["text"]))

    def message(self) -> str:
        """Give the whole message as JSON, for the check that every message passes."""
        for index, text in self._written.items():
            self._blocks[index]["input"] = _json(text or "{}")
        return json.dumps({**self._message, "content": list(self._blocks.values())})


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
