"""OpenAI's chat completions, and the many servers that speak them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from loomq.errors import LLMAnswerError, LLMError, LLMRefusedError
from loomq.llm.base import LLMBackend, LLMReply, LLMRequest, StopReason, ToolCall
from loomq.llm.endpoint import Endpoint, Tokens, Wire
from loomq.llm.schemas import closed, is_strict
from loomq.llm.tokens import estimated_tokens, request_tokens
from loomq.redaction import excerpt

if TYPE_CHECKING:
    from pydantic import SecretStr

    from loomq.llm.base import LLMMessage, TextListener
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


class _PromptDetails(Wire):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None


class _Usage(Wire):
    prompt_tokens: Tokens
    completion_tokens: Tokens
    prompt_tokens_details: _PromptDetails | None = None


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
    code = "openai"

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
            self.provider, self.code = "the OpenAI-compatible server", "openai-compatible"
        self._tokens_field = tokens_field
        self._endpoint = Endpoint(pool, self.provider, base_url.rstrip("/"), key, "OPENAI_API_KEY")

    async def complete(self, request: LLMRequest, on_text: TextListener | None = None) -> LLMReply:
        """Ask the model; errors as in ``LLMBackend``."""
        body, path = self._body(request), "/chat/completions"
        if on_text is None:
            return self._reply(await self._endpoint.post(path, body, _Completion, request.timeout_s), request)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        stream = _Stream(on_text)
        await self._endpoint.stream(path, body, stream.hear, request.timeout_s)
        if not stream.is_over:
            raise self._endpoint.broken_off()
        return self._reply(self._endpoint.parsed(stream.completion(), _Completion), request)

    def _body(self, request: LLMRequest) -> dict[str, Any]:
        system = [{"role": "system", "content": request.system}] if request.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *map(_turn, request.messages)],
            self._tokens_field: request.max_output_tokens,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.tools:
            body["tools"] = [{"type": "function", "function": tool.model_dump()} for tool in request.tools]
            if not request.may_call_tools:
                body["tool_choice"] = "none"
        if request.output_schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": _format(request.output_schema)}
        return body

    def _reply(self, found: _Completion, request: LLMRequest) -> LLMReply:
        if len(found.choices) != 1:
            raise LLMAnswerError(f"{self.provider} gave {len(found.choices)} choices and not one")
        choice = found.choices[0]
        usage = found.usage or _estimate(request, choice.message)  # some servers count nothing
        details = usage.prompt_tokens_details or _PromptDetails()
        try:
            stop = self._stop(found.model, choice)
        except LLMError as error:
            error.tokens = (usage.prompt_tokens, usage.completion_tokens)
            raise
        return LLMReply(
            content=choice.message.content or "",
            model=found.model,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=min(details.cached_tokens or 0, usage.prompt_tokens),
            cache_write_tokens=min(details.cache_write_tokens or 0, usage.prompt_tokens),
            tool_calls=tuple(_tool_call(one) for one in choice.message.tool_calls or ()) or None,
            stop_reason=stop,
        )

    def _stop(self, model: str, choice: _Choice) -> StopReason:
        if choice.message.refusal:
            raise LLMRefusedError(f"{model} refused to answer: {excerpt(choice.message.refusal)}")
        if choice.finish_reason == "content_filter":
            told = f"a content filter of {self.provider} withheld the answer of {model}"
            raise LLMRefusedError(told, kind="content_filter")
        if choice.finish_reason not in _STOPS:
            raise LLMAnswerError(f"{self.provider} stopped for a reason unknown here: {excerpt(choice.finish_reason)}")
        if choice.message.tool_calls and choice.finish_reason == "stop":  # as some servers say
            return StopReason.TOOL_USE
        return _STOPS[choice.finish_reason]

    async def list_models(self, timeout_s: float = 5.0) -> list[str]:
        """List the models, in the server's order."""
        found = await self._endpoint.get("/models", _Models, timeout_s)
        return [model.id for model in found.data]


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    """Ask for a schema strictly if it can be written so, else as it is."""
    narrow = closed(schema)
    if narrow is not None and is_strict(narrow):
        return {"name": "output", "strict": True, "schema": narrow}
    return {"name": "output", "strict": False, "schema": schema}


def _estimate(request: LLMRequest, message: _Message) -> _Usage:
    said = [message.content or "", *(call.function.arguments for call in message.tool_calls or ())]
    return _Usage(prompt_tokens=request_tokens(request), completion_tokens=sum(map(estimated_tokens, said)))


def _tool_call(call: _ToolCall) -> ToolCall:
    """Read a call; what is wrong with its arguments the model is told, as it is told of any other wrong argument."""
    written = call.function.arguments
    try:
        arguments = json.loads(written or "{}", parse_constant=_refuse)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        return ToolCall(id=call.id, name=call.function.name, arguments={}, malformed=written)
    return ToolCall(id=call.id, name=call.function.name, arguments=arguments)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _turn(message: LLMMessage) -> dict[str, Any]:
    if message.role == "tool":
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["content"] = message.content or None
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.malformed if call.malformed is not None else json.dumps(call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    return turn


class _Stream:
    """Put a completion together out of the chunks that tell it."""

    def __init__(self, on_text: TextListener) -> None:
        self._on_text = on_text
        self._head: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {"content": [], "refusal": []}
        self._calls: dict[Any, dict[str, Any]] = {}
        self._stop: Any = None
        self._usage: Any = None

    @property
    def is_over(self) -> bool:
        """Whether it was told why the model stopped."""
        return self._stop is not None

    def hear(self, chunk: dict[str, Any]) -> None:
        """Take the next chunk."""
        self._head = self._head or chunk
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            self._stop = choice.get("finish_reason") or self._stop
            delta = choice.get("delta") or {}
            for name, texts in self._texts.items():
                if delta.get(name):
                    texts.append(str(delta[name]))
            if delta.get("content"):
                self._on_text(str(delta["content"]))
            for part in delta.get("tool_calls") or ():
                self._add(part)

    def _add(self, part: dict[str, Any]) -> None:
        """Take a piece of a tool call: name and id come first, its arguments in pieces."""
        call = self._calls.setdefault(part.get("index"), {"id": None, "function": {"name": None, "arguments": ""}})
        function = part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] = function.get("name") or call["function"]["name"]
        call["function"]["arguments"] += function.get("arguments") or ""

    def completion(self) -> str:
        """Give the whole completion as JSON, for the check that every completion passes."""
        message = {name: "".join(texts) or None for name, texts in self._texts.items()}
        message["tool_calls"] = list(self._calls.values()) or None  # type: ignore[assignment]
        choice = {"finish_reason": self._stop, "message": message}
        return json.dumps({"model": self._head.get("model"), "choices": [choice], "usage": self._usage})
