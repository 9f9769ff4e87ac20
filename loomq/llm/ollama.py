"""Ollama's chat."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from loomq.errors import LLMAnswerError
from loomq.llm.base import LLMBackend, LLMReply, LLMRequest, StopReason, ToolCall
from loomq.llm.endpoint import Endpoint, Tokens, Wire
from loomq.redaction import excerpt

if TYPE_CHECKING:
    from loomq.llm.base import LLMMessage, TextListener
    from loomq.llm.http import HttpPool

DEFAULT_URL = "http://localhost:11434"

_STOPS = {"stop": StopReason.END_TURN, "length": StopReason.MAX_TOKENS}


class _Function(Wire):
    name: str
    arguments: dict[str, Any]


class _ToolCall(Wire):
    id: str | None = None
    function: _Function


class _Message(Wire):
    content: str = ""
    tool_calls: list[_ToolCall] | None = None


class _Chat(Wire):
    model: str
    message: _Message
    done: Literal[True]
    done_reason: str = "stop"
    prompt_eval_count: Tokens = 0  # absent when the whole prompt was cached
    eval_count: Tokens = 0


class _Model(Wire):
    model: str


class _Tags(Wire):
    models: list[_Model]


class OllamaBackend(LLMBackend):
    """A model that an Ollama server runs."""

    provider = "Ollama"
    code = "ollama"

    def __init__(self, pool: HttpPool, model: str, *, base_url: str = DEFAULT_URL) -> None:
        super().__init__(model)
        self._endpoint = Endpoint(pool, self.provider, base_url.rstrip("/"))

    async def complete(self, request: LLMRequest, on_text: TextListener | None = None) -> LLMReply:
        """Ask the model; errors as in ``LLMBackend``."""
        body = self._body(request)
        if on_text is None:
            return self._reply(await self._endpoint.post("/api/chat", body, _Chat, request.timeout_s), request)
        stream = _Stream(on_text)
        await self._endpoint.stream("/api/chat", {**body, "stream": True}, stream.hear, request.timeout_s)
        if not stream.is_over:
            raise self._endpoint.broken_off()
        return self._reply(self._endpoint.parsed(stream.chat(), _Chat), request)

    def _body(self, request: LLMRequest) -> dict[str, Any]:
        system = [{"role": "system", "content": request.system}] if request.system else []
        options: dict[str, Any] = {"num_predict": request.max_output_tokens}
        if request.temperature is not None:
            options["temperature"] = request.temperature
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *map(_turn, request.messages)],
            "stream": False,
            "options": options,
        }
        offered = request.tools if request.may_call_tools else ()
        if offered:
            body["tools"] = [{"type": "function", "function": tool.model_dump()} for tool in offered]
        elif request.output_schema is not None:  # with tools the form would forbid to call one
            body["format"] = request.output_schema
        return body

    def _reply(self, found: _Chat, request: LLMRequest) -> LLMReply:
        # Ids are loomq's where the server gives none; they must differ over the rounds of one conversation.
        begun = sum(len(message.tool_calls) for message in request.messages)
        tool_calls = tuple(
            ToolCall(id=one.id or f"call_{number}", name=one.function.name, arguments=one.function.arguments)
            for number, one in enumerate(found.message.tool_calls or (), begun)
        )
        if found.done_reason not in _STOPS:
            raise LLMAnswerError(f"Ollama stopped for a reason unknown here: {excerpt(found.done_reason)}")
        return LLMReply(
            content=found.message.content,
            model=found.model,
            prompt_tokens=found.prompt_eval_count,
            completion_tokens=found.eval_count,
            tool_calls=tool_calls or None,
            stop_reason=StopReason.TOOL_USE if tool_calls else _STOPS[found.done_reason],
        )

    async def list_models(self, timeout_s: float = 5.0) -> list[str]:
        """List the models that are on the server's disk."""
        found = await self._endpoint.get("/api/tags", _Tags, timeout_s)
        return [model.model for model in found.models]


def _turn(message: LLMMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
        ]
    if message.role == "tool":
        turn["tool_name"] = message.tool_name
    return turn


class _Stream:
    """Put a chat's answer together out of the lines that tell it."""

    def __init__(self, on_text: TextListener) -> None:
        self._on_text = on_text
        self._texts: list[str] = []
        self._calls: list[Any] = []
        self._last: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        """Whether the line came that ends it."""
        return self._last.get("done") is True

    def hear(self, line: dict[str, Any]) -> None:
        """Take the next line."""
        self._last = line
        message = line.get("message")
        if not isinstance(message, dict):
            return
        if text := message.get("content"):
            self._texts.append(str(text))
            self._on_text(str(text))
        self._calls += message.get("tool_calls") or ()

    def chat(self) -> str:
        """Give the whole answer as JSON, for the check that every answer passes."""
        message = {"content": "".join(self._texts), "tool_calls": self._calls or None}
        return json.dumps({**self._last, "message": message})
