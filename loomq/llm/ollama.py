"""Ollama's chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from loomq.errors import LLMAnswerError
from loomq.llm.base import LLMBackend, LLMReply, LLMRequest, StopReason, ToolCall
from loomq.llm.endpoint import Endpoint, Tokens, Wire
from loomq.redaction import excerpt

if TYPE_CHECKING:
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

    def __init__(self, pool: HttpPool, model: str, *, base_url: str = DEFAULT_URL) -> None:
        super().__init__(model)
        self._endpoint = Endpoint(pool, self.provider, base_url.rstrip("/"))

    async def complete(self, request: LLMRequest) -> LLMReply:
        """Ask the model; errors as in ``LLMBackend``."""
        system = [{"role": "system", "content": request.system}] if request.system else []
        options: dict[str, Any] = {"num_predict": request.max_output_tokens}
        if request.temperature is not None:
            options["temperature"] = request.temperature
        body = {
            "model": self.model,
            "messages": [*system, *(message.model_dump() for message in request.messages)],
            "stream": False,
            "options": options,
        }
        found = await self._endpoint.post("/api/chat", body, _Chat, request.timeout_s)
        calls = enumerate(found.message.tool_calls or ())
        tool_calls = tuple(
            ToolCall(id=one.id or f"call_{number}", name=one.function.name, arguments=one.function.arguments)
            for number, one in calls
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
