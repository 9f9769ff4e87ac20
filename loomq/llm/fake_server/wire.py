"""What the three wires share: a call that was understood, an answer to render, a refusal in the wire's shape."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHARS_A_TOKEN = 4
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
    """One request for an answer.

    Args:
        system: The system prompt.
        prompt: The text of the last user turn.
        text: All texts of the request, which rules look at.
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with.

    Args:
        stop: ``end``, ``length``, ``tools`` or ``refusal``.
        tool_calls: Name and arguments of each.
    """

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    stop: str = "end"
    tool_calls: tuple[tuple[str, dict[str, Any]], ...] = ()

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
    def render(self, call: Call, answer: Answer) -> bytes:
        """Write an answer."""

    @abstractmethod
    def models(self, offer: Offer, query: Mapping[str, str], name: str | None) -> Mapping[str, Any]:
        """List the models, or describe one.

        Raises:
            RefusedError: There is no such model.
        """

    @abstractmethod
    def error(self, status: int, message: str, code: str | None = None) -> RefusedError:
        """Make an error in the wire's shape."""


def tokens(text: str) -> int:
    """Count tokens, in the fake's own and only tokenizer: four characters each."""
    return math.ceil(len(text) / CHARS_A_TOKEN)


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


def text_of(content: Any) -> str:
    """Read a message's content: a text, or a list of blocks with texts in them."""
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    return "\n".join(str(block.get("text", "")) for block in blocks if isinstance(block, dict))


def turns(messages: Sequence[Mapping[str, Any]], role: str) -> list[str]:
    """List the texts of one role's messages."""
    return [text_of(message.get("content")) for message in messages if message.get("role") == role]


def is_integer(value: Any) -> bool:
    """Say whether a JSON value is a whole number; ``true`` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Say whether a JSON value is a number; ``true`` is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
