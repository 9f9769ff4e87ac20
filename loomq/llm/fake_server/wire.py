"""What the three wires share: a call that was understood, an answer to render, a refusal in the wire's shape."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHARS_A_TOKEN = 4
MOST_PIECES = 64
REFUSAL = "I can't help with that."


@dataclass(frozen=True, slots=True)
class Offer:
    """What a fake provider has.

    Args:
        models: What it lists, and the only ones that it answers for.
        labels: What a model is called in replies, where that differs.
        keys: Accepted keys; empty accepts any.
        needs_key: Whether a call without a key is refused.
    """

    models: tuple[str, ...]
    labels: Mapping[str, str]
    keys: frozenset[str] = frozenset()
    needs_key: bool = True

    def admits(self, key: str) -> bool:
        """Say whether a key opens the door."""
        return not self.needs_key or (bool(key) and (not self.keys or key in self.keys))


@dataclass(frozen=True, slots=True)
class Call:
    """One request for an answer, or for embeddings.

    Args:
        system: The system prompt.
        prompt: The text of the last user turn; results of tools are none.
        text: All texts of the request, which rules look at, with the calls and results of tools.
        kind: ``chat`` or ``embed``.
        tools: The names of the tools that are offered.
        tool_results: How many rounds of tool results the conversation has.
        tool_choice: ``auto``, ``none``, ``required`` or the name of a tool.
        schema: The JSON Schema that the answer should conform to.
        inputs: The texts to embed.
    """

    wire: str
    model: str
    system: str
    prompt: str
    text: str
    max_tokens: int | None
    temperature: float | None
    stream: bool
    body: Mapping[str, Any]
    kind: str = "chat"
    tools: tuple[str, ...] = ()
    tool_results: int = 0
    tool_choice: str = "none"
    schema: Mapping[str, Any] | None = None
    inputs: tuple[str, ...] = ()

    def tool_id(self, prefix: str, number: int) -> str:
        """Name a tool call of the answer: the same for the same conversation, another in its next round.

        Args:
            number: Which call of the answer it is, from 0.
        """
        return prefix + digest(f"{self.tool_results}/{number}/{self.text}")[:24]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that the answer asks for.

    Args:
        arguments: An object, or the text that the model wrote, which may be no JSON.
    """

    name: str
    arguments: Mapping[str, Any] | str

    @property
    def written(self) -> str:
        """The arguments as text."""
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments, ensure_ascii=False)

    @property
    def understood(self) -> Mapping[str, Any]:
        """The arguments as an object, without any if the model wrote something else."""
        return {} if isinstance(self.arguments, str) else self.arguments


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with.

    Args:
        prompt_tokens: All of them, cached ones too.
        stop: ``end``, ``length``, ``tools``, ``refusal``, ``pause``, ``context`` or ``filter``.
        thinking: What the model says to itself first.
        cached_tokens: How many of the prompt's came from a cache.
    """

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    stop: str = "end"
    tool_calls: tuple[ToolUse, ...] = ()
    thinking: str = ""
    cached_tokens: int = 0

    def cut(self, tokens: int) -> Answer:
        """Give as much of it as fits into so many tokens."""
        return replace(self, text=self.text[: tokens * CHARS_A_TOKEN], completion_tokens=tokens, stop="length")


class RefusedError(Exception):
    """The provider does not accept a request.

    Args:
        body: JSON, or plain text where the real server sends that.
    """

    def __init__(self, status: int, body: Mapping[str, Any] | str) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


class FakeWire(ABC):
    """One provider's way to speak."""

    name: str
    #: The header that a request's id is answered in.
    id_header = ""
    stream_type = "text/event-stream; charset=utf-8"
    #: What follows the last event of a stream.
    stream_end = ""
    #: The status of a provider with too much to do.
    overloaded = 503

    @abstractmethod
    def read(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:
        """Understand a request for an answer.

        Args:
            headers: By lower-case name.

        Raises:
            RefusedError: As the real server would refuse it.
        """

    @abstractmethod
    def admit(self, headers: Mapping[str, str], offer: Offer) -> None:
        """Check who calls, for requests without a body.

        Raises:
            RefusedError: A key or a header is missing.
        """

    @abstractmethod
    def render(self, call: Call, answer: Answer) -> Mapping[str, Any]:
        """Write an answer as one object."""

    @abstractmethod
    def stream(self, call: Call, answer: Answer) -> Iterator[Mapping[str, Any]]:
        """Write an answer as the events of a stream."""

    @abstractmethod
    def framed(self, event: Mapping[str, Any]) -> str:
        """Write an event, or an error's body, as a stream has it."""

    @abstractmethod
    def models(self, offer: Offer, query: Mapping[str, str], name: str | None) -> Mapping[str, Any]:
        """List the models, or describe one.

        Raises:
            RefusedError: There is no such model.
        """

    @abstractmethod
    def error(self, status: int, message: str, code: str | None = None) -> RefusedError:
        """Make an error in the wire's shape."""

    def read_inputs(self, headers: Mapping[str, str], body: Any, offer: Offer) -> Call:  # noqa: ARG002
        """Understand a request for embeddings.

        Raises:
            RefusedError: As the real server would refuse it; always, where the provider has none.
        """
        raise self.error(404, "Not Found")

    def render_vectors(self, call: Call, label: str) -> Mapping[str, Any]:
        """Write the embeddings of a call's inputs.

        Args:
            label: What the reply calls the model.
        """
        raise NotImplementedError(call.wire, label)

    def no_structured_output(self, call: Call) -> RefusedError | None:  # noqa: ARG002
        """Refuse a call for structured output as servers do that are older than it; ``None`` if it asks for none."""
        return None

    def context_exceeded(self) -> RefusedError | None:
        """Say as an error that the conversation is too long; ``None`` where that is a way to stop."""
        return self.error(400, "the conversation exceeds the context length", "context_length_exceeded")


def tokens(text: str) -> int:
    """Count tokens, in the fake's own and only tokenizer: four characters each."""
    return math.ceil(len(text) / CHARS_A_TOKEN)


def pieces(text: str) -> list[str]:
    """Cut a text as a stream sends it: a token each, more if it is long."""
    step = max(CHARS_A_TOKEN, math.ceil(len(text) / MOST_PIECES))
    return [text[at : at + step] for at in range(0, len(text), step)]


def digest(text: str) -> str:
    """Make a long name out of a text, always the same."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def new_id(prefix: str) -> str:
    """Make an id of the provider's form."""
    return f"{prefix}{uuid4().hex[:24]}"


def encoded(value: Mapping[str, Any]) -> bytes:
    """Write JSON."""
    return json.dumps(value, ensure_ascii=False).encode()


def bearer(headers: Mapping[str, str]) -> str:
    """Read a bearer token; empty if there is none."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def is_integer(value: Any) -> bool:
    """Say whether a JSON value is a whole number; ``true`` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Say whether a JSON value is a number; ``true`` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
