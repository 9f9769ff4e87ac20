"""A stage's journal in the database: what was paid for is not paid for again, whoever takes the stage up."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from loomq.errors import BudgetExceededError, DatabaseUnavailableError, LeaseLost
from loomq.inline import storable
from loomq.llm.base import LLMMessage, LLMReply
from loomq.store import events
from loomq.store import journal as store
from loomq.workers.deadline import undisturbed
from loomq.workers.journal import Recalled

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from loomq.runs.gate import Persist
    from loomq.runs.silos import Silos
    from loomq.store.engine import Database
    from loomq.store.stages import Claim
    from loomq.workers.journal import Asked

logger = logging.getLogger(__name__)

T = TypeVar("T")


class StageJournal:
    """One claimed stage's journal.

    Args:
        persist: Makes a call until Postgres answers.
    """

    def __init__(self, database: Database, silos: Silos, persist: Persist, claim: Claim, tier: str) -> None:
        self._database = database
        self._silos = silos
        self._persist = persist
        self._key = claim.key
        self._token = claim.token
        self._worker = claim.worker
        self._tier = tier

    def key(self, at_round: int, call: str) -> str:
        """Make the idempotency key of a tool's call."""
        parts = [str(self._key.goal_id), self._key.name, self._key.item, at_round, call]
        return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def recall(self) -> Recalled:
        """Read what the stage has been answered before."""
        found = self._call(lambda: store.read(self._database, self._key))
        return Recalled(
            {(one["round"], one["request"]): LLMReply.model_validate(one["reply"]) for one in found.calls},
            {(one["round"], one["call"]): LLMMessage.model_validate(one["message"]) for one in found.results},
            found.has_budget,
        )

    def reserve(self, asked: Asked) -> None:
        """Put aside what a call may cost at most.

        Raises:
            BudgetExceededError: That is more than is left of the goal's budget.
            LeaseLost: The stage was taken back.
        """
        said = json.dumps(self._said(asked))
        found = self._call(lambda: store.reserve(self._database, self._key, self._token, asked.id, said))
        if found["verdict"] == "fenced":
            raise _taken_back()
        if found["verdict"] == "refused":
            raise _over_budget(found, asked, str(self._key.goal_id))

    def unreserve(self, call_id: UUID) -> None:
        """Give back what was put aside."""
        self._call(lambda: store.unreserve(self._database, self._key, call_id))

    def keep_reply(self, asked: Asked, reply: LLMReply, *, is_usable: bool, is_cached: bool, took_ms: int) -> None:
        """Write down a reply and what it cost.

        Raises:
            LeaseLost: The stage was taken back; what it cost is written down.
        """
        said = {
            **self._said(asked),
            "state": "cached" if is_cached else "done",
            "cached_tokens": reply.cached_tokens,
            "took_ms": took_ms,
            "reply": storable(reply.model_dump(mode="json")) if is_usable else None,
        }
        self._held(lambda: store.keep_call(self._database, self._key, self._token, asked.id, json.dumps(said)))

    def keep_result(self, at_round: int, call: str, message: LLMMessage, took_ms: int) -> None:
        """Write down a tool's result.

        Raises:
            LeaseLost: The stage was taken back.
        """
        said = json.dumps(storable(message.model_dump(mode="json")))
        self._held(lambda: store.keep_result(self._database, self._key, self._token, at_round, call, said, took_ms))

    def drop(self, from_round: int) -> None:
        """Forget the replies from a round on."""
        self._call(lambda: store.drop(self._database, self._key, self._token, from_round))

    def cached(self, key: str) -> LLMReply | None:
        """Give an answer that is kept for others."""
        found = self._call(lambda: store.cached(self._database, key))
        return LLMReply.model_validate(found) if found is not None else None

    def cache(self, key: str, reply: LLMReply, ttl_s: float) -> None:
        """Keep an answer for others."""
        said = json.dumps(storable(reply.model_dump(mode="json")))
        self._call(lambda: store.cache(self._database, key, self._worker, said, ttl_s))

    def uncache(self, key: str) -> None:
        """Forget an answer that was kept for others."""
        self._call(lambda: store.uncache(self._database, key))

    def tell(self, detail: dict[str, Any]) -> None:
        """Let those who watch the goal hear a piece of text."""
        try:
            with undisturbed():
                events.tell(self._database, self._key, "stage_text", storable(detail))
        except DatabaseUnavailableError as error:
            logger.debug("a piece of text is not told: %s", error.message)

    def settle(self, folder: str) -> None:
        """Have the changes made that a folder still waits for."""
        self._call(lambda: self._silos.settle(folder))

    def _said(self, asked: Asked) -> dict[str, Any]:
        return {
            "round": asked.round,
            "request": asked.request,
            "worker": self._worker,
            "tier": self._tier,
            "provider": asked.provider,
            "model": storable(asked.model),
            "prompt_tokens": asked.prompt_tokens,
            "completion_tokens": asked.completion_tokens,
            "cost": asked.cost,
        }

    def _call(self, work: Callable[[], T]) -> T:
        """Make a call until Postgres answers; an interruption waits for the end of each try."""

        def once() -> T:
            with undisturbed():
                return work()

        return self._persist(once)

    def _held(self, work: Callable[[], bool]) -> None:
        if not self._call(work):
            raise _taken_back()


def _taken_back() -> LeaseLost:
    return LeaseLost("the stage was taken back while its model was asked")


def _over_budget(found: dict[str, Any], asked: Asked, goal_id: str) -> BudgetExceededError:
    whose = "the goal" if found["goal"] == goal_id else f"goal {found['goal']}, whose part this is,"
    if found["limit"] == "unknown_price":
        return BudgetExceededError(
            f"{whose} has a max_cost, and what {asked.model} costs is not known",
            hint=f"say what it costs: prices: {{{asked.model}: {{input: …, output: …}}}} in ~/.loomq/config.yaml,"
            " and start the nodes again",
        )
    if found["limit"] == "max_tokens":
        told = f"{found['spent']:,} of {found['most']:,} tokens are spent, and this call may use {found['needs']:,}"
    else:
        told = (
            f"${found['spent']:.4f} of ${found['most']:.4f} are spent, and this call to {asked.model} may cost"
            f" ${found['needs']:.4f}"
        )
    return BudgetExceededError(
        f"the call was not made, or it might break the budget of {whose.removesuffix(',')}: {told}",
        hint=f"submit it with a higher {found['limit']}, or lower the worker's max_output_tokens",
    )
