"""Where a task writes down what it was answered: in the database for a goal's, nowhere for a trial's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from uuid import UUID

    from loomq.llm.base import LLMMessage, LLMReply


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that is to be made, or was.

    Args:
        id: The same when it is written down again.
        round: Which of the task's conversation, from 0.
        request: The hash of what is asked.
        provider, model: Who is asked.
        prompt_tokens, completion_tokens, cost: The most that it may use, before it is made; ``None`` is a cost that
            nobody knows.
    """

    id: UUID
    round: int
    request: str
    provider: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost: float | None


@dataclass(frozen=True)
class Recalled:
    """What a task has been answered before, by another process maybe.

    Args:
        replies: By round and hash of the request.
        results: Tools' results by round and what makes a call that one.
        has_budget: Whether calls have to be allowed one by one.
    """

    replies: dict[tuple[int, str], LLMReply] = field(default_factory=dict)
    results: dict[tuple[int, str], LLMMessage] = field(default_factory=dict)
    has_budget: bool = False


class Journal(Protocol):
    """One task's memory of what was paid for."""

    def key(self, at_round: int, call: str) -> str:
        """Make the idempotency key of a tool's call: the same for the same call, whoever makes it again."""

    def recall(self) -> Recalled:
        """Read what is there."""

    def reserve(self, asked: Asked) -> None:
        """Put aside what a call may cost at most.

        Raises:
            BudgetExceededError: That is more than is left of a budget.
            LeaseLost: The task is somebody else's by now.
        """

    def unreserve(self, call_id: UUID) -> None:
        """Give back what was put aside for a call that nobody charges."""

    def keep_reply(self, asked: Asked, reply: LLMReply, *, is_usable: bool, is_cached: bool, took_ms: int) -> None:
        """Write down a reply and what it cost.

        Args:
            is_usable: Whether the same round may be answered with it again.
            is_cached: Whether it came from the cache of answers, and so cost nothing.

        Raises:
            LeaseLost: The task is somebody else's by now; what it cost is written down.
        """

    def keep_result(self, at_round: int, call: str, message: LLMMessage, took_ms: int) -> None:
        """Write down a tool's result.

        Args:
            call: What makes it that call and no other.

        Raises:
            LeaseLost: The task is somebody else's by now.
        """

    def drop(self, from_round: int) -> None:
        """Forget the replies from a round on, since they were no good."""

    def cached(self, key: str) -> LLMReply | None:
        """Give an answer that is kept for others."""

    def cache(self, key: str, reply: LLMReply, ttl_s: float) -> None:
        """Keep an answer for others."""

    def uncache(self, key: str) -> None:
        """Forget an answer that was kept for others, since it was no good here."""

    def tell(self, detail: dict[str, Any]) -> None:
        """Let those who watch the goal hear a piece of text; it may be lost."""

    def settle(self, folder: str) -> None:
        """Have the changes made that a folder still waits for."""


class NullJournal:
    """The memory of a task that nobody will take up again."""

    def key(self, at_round: int, call: str) -> str:
        """Make a key for this once."""
        return f"trial-{id(self):x}-{at_round}-{call}"

    def recall(self) -> Recalled:
        """Give nothing."""
        return Recalled()

    def reserve(self, asked: Asked) -> None:
        """Allow it."""

    def unreserve(self, call_id: UUID) -> None:
        """Forget it."""

    def keep_reply(self, asked: Asked, reply: LLMReply, *, is_usable: bool, is_cached: bool, took_ms: int) -> None:
        """Forget it."""

    def keep_result(self, at_round: int, call: str, message: LLMMessage, took_ms: int) -> None:
        """Forget it."""

    def drop(self, from_round: int) -> None:
        """Do nothing."""

    def cached(self, key: str) -> LLMReply | None:  # noqa: ARG002
        """Give nothing."""
        return None

    def cache(self, key: str, reply: LLMReply, ttl_s: float) -> None:
        """Forget it."""

    def uncache(self, key: str) -> None:
        """Do nothing."""

    def tell(self, detail: dict[str, Any]) -> None:
        """Say nothing."""

    def settle(self, folder: str) -> None:
        """Leave the folder as it is."""
