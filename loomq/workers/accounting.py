"""The account of a round's calls: money is put aside before each, and each is written down at what it came to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loomq.ids import uuid7
from loomq.llm.base import LLMReply, StopReason
from loomq.llm.tokens import request_tokens
from loomq.redaction import redacted
from loomq.workers.journal import Asked

if TYPE_CHECKING:
    from uuid import UUID

    from loomq.errors import LLMError
    from loomq.llm.base import LLMBackend, LLMRequest
    from loomq.llm.tiers import Tiers
    from loomq.workers.journal import Journal
    from loomq.workers.loop import EventLoop

# What a provider may charge though it gave no answer that can be used.
_MAY_BE_CHARGED = {"timeout", "connection", "malformed"}


class Account:
    """The account of one round: what is put aside for each model that is asked, and what it came to.

    Args:
        digest: The hash of what is asked.
        has_budget: Whether anything has to be put aside.

    Attributes:
        fault: What the last call that failed did so with, and whose it was.
    """

    def __init__(
        self,
        journal: Journal,
        loop: EventLoop,
        tiers: Tiers,
        at_round: int,
        digest: str,
        request: LLMRequest,
        *,
        has_budget: bool,
    ) -> None:
        self.round = at_round
        self._journal = journal
        self._loop = loop
        self._tiers = tiers
        self._digest = digest
        self._most = (request_tokens(request), request.max_output_tokens)
        self._has_budget = has_budget
        self._id: UUID = uuid7()
        self.fault = ""

    async def asking(self, backend: LLMBackend) -> None:
        """Put aside what a call to this model may cost at most."""
        self._id = uuid7()
        if self._has_budget:
            prompt, answer = self._most
            cost = self._tiers.most(backend, prompt, answer)
            asked = self._asked(backend.code, backend.model, prompt, answer, cost)
            await self._loop.aside(lambda: self._journal.reserve(asked))

    async def failed(self, backend: LLMBackend, error: LLMError) -> None:
        """Write down what a call cost that gave nothing, or give back what was put aside for it."""
        self.fault = f"{backend.model}: {redacted(error.message)}"
        if (tokens := error.tokens) is not None:
            await self._loop.aside(lambda: self.waste(backend, *tokens))
        elif self._has_budget and error.kind not in _MAY_BE_CHARGED:
            call_id = self._id
            await self._loop.aside(lambda: self._journal.unreserve(call_id))

    def waste(self, backend: LLMBackend, prompt_tokens: int, completion_tokens: int, cost: float | None = None) -> None:
        """Write down a call that was charged and is of no use."""
        reply = LLMReply(
            content="",
            model=backend.model,
            provider=backend.code,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            stop_reason=StopReason.END_TURN,
        )
        cost = self._tiers.cost(backend, reply) if cost is None else cost
        self.keep(reply.model_copy(update={"cost": cost}), 0, is_usable=False)
        self._id = uuid7()

    def keep(self, reply: LLMReply, took_ms: int, *, is_usable: bool = True) -> None:
        """Write down what the round came to."""
        asked = self._asked(reply.provider, reply.model, reply.prompt_tokens, reply.completion_tokens, reply.cost)
        self._journal.keep_reply(asked, reply, is_usable=is_usable, is_cached=False, took_ms=took_ms)

    def _asked(self, provider: str, model: str, prompt: int, answer: int, cost: float | None) -> Asked:
        return Asked(self._id, self.round, self._digest, provider, model, prompt, answer, cost)
