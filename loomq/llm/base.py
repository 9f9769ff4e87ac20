"""What an LLM backend is: a request goes in, a reply comes out, whatever the wire in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class StopReason(StrEnum):
    """Why a model stopped; a refusal and a full context window are errors and not replies."""

    END_TURN = "end_turn"
    STOP_SEQUENCE = "stop_sequence"
    TOOL_USE = "tool_use"
    MAX_TOKENS = "max_tokens"
    PAUSE_TURN = "pause_turn"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ToolCall(_Frozen):
    """A tool that the model wants called.

    Args:
        malformed: The arguments as they were written, if they are no JSON object; ``arguments`` is then empty.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    malformed: str | None = None


class ToolDefinition(_Frozen):
    """A tool that the model may call.

    Args:
        parameters: JSON Schema of its arguments, an object.
    """

    name: str
    description: str
    parameters: dict[str, Any]


class Native(_Frozen):
    """An assistant's turn in its provider's own blocks, which it wants back unchanged: thinking, above all."""

    provider: str
    blocks: tuple[dict[str, Any], ...]


class LLMMessage(_Frozen):
    """One turn of a conversation.

    Args:
        tool_calls: What an assistant's turn asked for.
        tool_call_id, tool_name, is_error: Of a ``tool`` turn: what it answers, and whether the call failed.
    """

    role: Literal["user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    native: Native | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    is_error: bool = False


class LLMRequest(_Frozen):
    """What a model is asked; the model itself is the backend's.

    Args:
        output_schema: JSON Schema that the answer shall keep, for providers that can be told so.
        may_call_tools: False offers the tools, which earlier turns used, and has none called.
    """

    system: str = ""
    messages: Annotated[tuple[LLMMessage, ...], Field(min_length=1)]
    max_output_tokens: Annotated[int, Field(ge=1)]
    temperature: float | None = Field(None, description="Sent only when set: newer APIs refuse it.")
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    tools: tuple[ToolDefinition, ...] = ()
    may_call_tools: bool = True
    output_schema: dict[str, Any] | None = None


class LLMReply(_Frozen):
    """What a model answered.

    Args:
        prompt_tokens: All that were sent, with those that the provider had cached.
        cached_tokens, cache_write_tokens: Those of them that it read from its cache, and that it put there.
        provider, asked: Who was asked: the provider's code, and the model in our words.
        cost: What the call cost, in US dollars; ``None`` if nobody knows the price.
    """

    content: str
    model: str = Field(description="The model that answered, in the provider's words.")
    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]
    cached_tokens: Annotated[int, Field(ge=0)] = 0
    cache_write_tokens: Annotated[int, Field(ge=0)] = 0
    tool_calls: tuple[ToolCall, ...] | None = None
    stop_reason: StopReason
    native: Native | None = None
    provider: str = ""
    asked: str = ""
    cost: float | None = None

    def as_turn(self) -> LLMMessage:
        """Give the reply as the assistant's turn of the conversation that goes on."""
        return LLMMessage(role="assistant", content=self.content, tool_calls=self.tool_calls or (), native=self.native)


#: Hears the text of a reply while it is written, piece by piece.
TextListener = Callable[[str], None]


class LLMBackend(ABC):
    """One model of one provider.

    Args:
        model: Its name there.
    """

    #: The provider, as error texts name it.
    provider: str
    #: The provider, as settings and price tables name it.
    code: str

    def __init__(self, model: str) -> None:
        self.model = model

    @abstractmethod
    async def complete(self, request: LLMRequest, on_text: TextListener | None = None) -> LLMReply:
        """Ask the model.

        Args:
            on_text: If given, the reply is streamed to it.

        Raises:
            LLMRateLimitError: The provider takes no more calls for now.
            LLMUnavailableError: It is out of reach, overloaded or broken for now.
            LLMAnswerError: Its response is malformed.
            LLMRefusedError: The model declined to answer.
            LLMError: The provider does not accept the call.
        """

    @abstractmethod
    async def list_models(self, timeout_s: float = 5.0) -> list[str]:
        """List the models that the provider offers to this key, in its order.

        Raises:
            LLMError: As for ``complete``.
        """
