"""What an LLM backend is: a request goes in, a reply comes out, whatever the wire in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class LLMMessage(_Frozen):
    """One turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str


class LLMRequest(_Frozen):
    """What a model is asked; the model itself is the backend's."""

    system: str = ""
    messages: Annotated[tuple[LLMMessage, ...], Field(min_length=1)]
    max_output_tokens: Annotated[int, Field(ge=1)]
    temperature: float | None = Field(None, description="Sent only when set: newer APIs refuse it.")
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ToolCall(_Frozen):
    """A tool that the model wants called."""

    id: str
    name: str
    arguments: dict[str, Any]


class LLMReply(_Frozen):
    """What a model answered."""

    content: str
    model: str = Field(description="The model that answered, in the provider's words.")
    prompt_tokens: Annotated[int, Field(ge=0)]
    completion_tokens: Annotated[int, Field(ge=0)]
    tool_calls: tuple[ToolCall, ...] | None = None
    stop_reason: StopReason


class LLMBackend(ABC):
    """One model of one provider.

    Args:
        model: Its name there.
    """

    #: The provider, as error texts name it.
    provider: str

    def __init__(self, model: str) -> None:
        self.model = model

    @abstractmethod
    async def complete(self, request: LLMRequest) -> LLMReply:
        """Ask the model.

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
