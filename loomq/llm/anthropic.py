"""Anthropic's Messages API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Discriminator, Tag

from loomq.errors import LLMAnswerError, LLMError, LLMRefusedError
from loomq.llm.base import LLMBackend, LLMReply, LLMRequest, StopReason, ToolCall
from loomq.llm.endpoint import Endpoint, Tokens, Wire
from loomq.redaction import excerpt

if TYPE_CHECKING:
    from pydantic import SecretStr

    from loomq.llm.http import HttpPool

DEFAULT_URL = "https://api.anthropic.com"
DEFAULT_VERSION = "2026-10-21"
#: The versions before the current one take the key in a header of their own.
_OLD_VERSIONS = {"2023-01-01", "2023-06-01"}
_PAGE, _MAX_PAGES = 1000, 10

_STOPS = {reason.value: reason for reason in StopReason}


class _Text(Wire):
    type: Literal["text"]
    text: str


class _ToolUse(Wire):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class _Other(Wire):
    """Thinking, and whatever blocks come later: nothing that a worker reads."""

    type: str


def _kind(block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    return kind if kind in ("text", "tool_use") else "other"


_Block = Annotated[
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
    content: list[_Block]
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

    async def complete(self, request: LLMRequest) -> LLMReply:
        """Ask the model; errors as in ``LLMBackend``."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": request.max_output_tokens,
            "messages": [message.model_dump() for message in request.messages],
        }
        if request.system:
            body["system"] = request.system
        if request.temperature is not None:
            body["temperature"] = request.temperature
        message = await self._endpoint.post("/v1/messages", body, _Message, request.timeout_s)
        usage = message.usage
        calls = [block for block in message.content if isinstance(block, _ToolUse)]
        return LLMReply(
            content="".join(block.text for block in message.content if isinstance(block, _Text)),
            model=message.model,
            prompt_tokens=usage.input_tokens
            + (usage.cache_creation_input_tokens or 0)
            + (usage.cache_read_input_tokens or 0),
            completion_tokens=usage.output_tokens,
            tool_calls=tuple(ToolCall(id=one.id, name=one.name, arguments=one.input) for one in calls) or None,
            stop_reason=self._stop(message),
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
