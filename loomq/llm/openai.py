"""OpenAI's chat completions, and the many servers that speak them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from loomq.errors import LLMAnswerError, LLMRefusedError
from loomq.llm.base import LLMBackend, LLMReply, LLMRequest, StopReason, ToolCall
from loomq.llm.endpoint import Endpoint, Tokens, Wire
from loomq.redaction import excerpt

if TYPE_CHECKING:
    from pydantic import SecretStr

    from loomq.llm.http import HttpPool

DEFAULT_URL = "https://api.openai.com/v1"
#: How the limit of the answer is called; older servers only know the second.
TokensField = Literal["max_completion_tokens", "max_tokens"]

_STOPS = {
    "stop": StopReason.END_TURN,
    "length": StopReason.MAX_TOKENS,
    "tool_calls": StopReason.TOOL_USE,
}


class _Function(Wire):
    name: str
    arguments: str


class _ToolCall(Wire):
    id: str
    function: _Function


class _Message(Wire):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Wire):
    finish_reason: str
    message: _Message


class _Usage(Wire):
    prompt_tokens: Tokens
    completion_tokens: Tokens


class _Completion(Wire):
    model: str
    choices: list[_Choice]
    usage: _Usage | None = None


class _Model(Wire):
    id: str


class _Models(Wire):
    data: list[_Model]


class OpenAIBackend(LLMBackend):
    """A model behind an OpenAI-compatible server.

    Args:
        key: ``None`` for servers of one's own that ask for none.
        base_url: With the version in it, as ``https://api.openai.com/v1``.
        tokens_field: How the limit of the answer is called.
    """

    provider = "OpenAI"

    def __init__(
        self,
        pool: HttpPool,
        model: str,
        key: SecretStr | None,
        *,
        base_url: str = DEFAULT_URL,
        tokens_field: TokensField = "max_completion_tokens",
    ) -> None:
        super().__init__(model)
        if base_url.rstrip("/") != DEFAULT_URL:
            self.provider = "the OpenAI-compatible server"
        self._tokens_field = tokens_field
        self._endpoint = Endpoint(pool, self.provider, base_url.rstrip("/"), key, "OPENAI_API_KEY")

    async def complete(self, request: LLMRequest) -> LLMReply:
        """Ask the model; errors as in ``LLMBackend``."""
        system = [{"role": "system", "content": request.system}] if request.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *(message.model_dump() for message in request.messages)],
            self._tokens_field: request.max_output_tokens,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        found = await self._endpoint.post("/chat/completions", body, _Completion, request.timeout_s)
        if len(found.choices) != 1:
            raise LLMAnswerError(f"{self.provider} gave {len(found.choices)} choices and not one")
        choice = found.choices[0]
        usage = found.usage or _Usage(prompt_tokens=0, completion_tokens=0)  # some servers count nothing
        return LLMReply(
            content=choice.message.content or "",
            model=found.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            tool_calls=tuple(self._tool_call(one) for one in choice.message.tool_calls or ()) or None,
            stop_reason=self._stop(found.model, choice),
        )

    def _stop(self, model: str, choice: _Choice) -> StopReason:
        if choice.message.refusal:
            raise LLMRefusedError(f"{model} refused to answer: {excerpt(choice.message.refusal)}")
        if choice.finish_reason == "content_filter":
            raise LLMRefusedError(f"a content filter of {self.provider} withheld the answer of {model}")
        if choice.finish_reason not in _STOPS:
            raise LLMAnswerError(f"{self.provider} stopped for a reason unknown here: {excerpt(choice.finish_reason)}")
        if choice.message.tool_calls and choice.finish_reason == "stop":  # as some servers say
            return StopReason.TOOL_USE
        return _STOPS[choice.finish_reason]

    def _tool_call(self, call: _ToolCall) -> ToolCall:
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            told = excerpt(call.function.arguments)
            raise LLMAnswerError(f"the arguments for the tool {call.function.name} are no JSON object: {told}")
        return ToolCall(id=call.id, name=call.function.name, arguments=arguments)

    async def list_models(self, timeout_s: float = 5.0) -> list[str]:
        """List the models, in the server's order."""
        found = await self._endpoint.get("/models", _Models, timeout_s)
        return [model.id for model in found.data]
