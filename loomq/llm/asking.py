"""One call to a tier: short waits are waited out, the models that stand in are asked in turn, the cost is known."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from typing import TYPE_CHECKING, Protocol

from loomq.errors import BudgetExceededError, LLMError, LLMRefusedError

if TYPE_CHECKING:
    from loomq.llm.base import LLMBackend, LLMReply, LLMRequest, TextListener
    from loomq.llm.tiers import Tiers

logger = logging.getLogger(__name__)

MAX_TRIES = 3
#: The longest wait that a task's slot is kept for; for a longer one the task goes back to its queue.
MAX_WAIT_S = 2.0
_FIRST_WAIT_S = 0.25
_SHORTEST_S = 0.1


class Watch(Protocol):
    """Whoever keeps account of the calls that are made."""

    async def asking(self, backend: LLMBackend) -> None:
        """Hear which model is asked next, for each try.

        Raises:
            BudgetExceededError: It must not be.
        """

    async def failed(self, backend: LLMBackend, error: LLMError) -> None:
        """Hear that it did not answer."""


class Asker:
    """Ask the models of tiers.

    Args:
        tiers: Which backends serve which tier.
    """

    def __init__(self, tiers: Tiers) -> None:
        self.tiers = tiers
        self._unstructured: set[tuple[str, str, str]] = set()  # models whose server did not take a schema

    async def ask(
        self,
        request: LLMRequest,
        tier: str,
        *,
        watch: Watch | None = None,
        on_text: TextListener | None = None,
        stand_ins: bool = True,
    ) -> LLMReply:
        """Ask a tier's model, and those that stand in for it when it fails otherwise than by refusing.

        Args:
            request: Its ``timeout_s`` is for all calls together. One call has the tier's own timeout, or an equal share
                of what is left with the models that are still to be asked.
            stand_ins: Whether models that stand in are asked at all.

        Returns:
            The reply, with its cost and who gave it.

        Raises:
            ConfigError: The tier has no backend or no model.
            LLMError: None of them answered. It is the fault that says the most: of several that may pass, the one that
                passes first.
        """
        faults: list[LLMError] = []
        until = time.monotonic() + request.timeout_s
        own_s = self.tiers.timeout_s(tier)
        backends = self.tiers.models(tier)[: None if stand_ins else 1]
        for number, backend in enumerate(backends):
            try:
                if watch is not None:
                    await watch.asking(backend)
            except BudgetExceededError:
                if not faults:
                    raise
                continue  # too dear to stand in
            left_s = max(until - time.monotonic(), _SHORTEST_S)
            call_s = min(own_s, left_s) if own_s is not None else left_s / (len(backends) - number)
            try:
                return await self._try(backend, request.model_copy(update={"timeout_s": call_s}), on_text, watch)
            except LLMError as error:
                if watch is not None:
                    await watch.failed(backend, error)
                if isinstance(error, LLMRefusedError):
                    raise
                faults.append(error)
                if backend is not backends[-1]:
                    logger.warning("%s of %s: %s; the next model is asked", backend.model, backend.provider, error)
        raise _most_telling(faults)

    async def _try(
        self,
        backend: LLMBackend,
        request: LLMRequest,
        on_text: TextListener | None,
        watch: Watch | None,
    ) -> LLMReply:
        """Ask one model, again after a short wait if that may help; each try is one of the account's."""
        until = time.monotonic() + request.timeout_s
        for left in reversed(range(MAX_TRIES)):
            try:
                return await self._once(backend, request, on_text)
            except LLMError as error:
                wait_s = _wait_s(error, MAX_TRIES - left)
                if not (left and error.retryable) or wait_s > MAX_WAIT_S or time.monotonic() + wait_s >= until:
                    raise
                logger.info("%s of %s: %s; asked again in %.2f s", backend.model, backend.provider, error, wait_s)
                if watch is not None:
                    await watch.failed(backend, error)
            await asyncio.sleep(wait_s)
            if watch is not None:
                await watch.asking(backend)
        raise AssertionError("not reached")

    async def _once(self, backend: LLMBackend, request: LLMRequest, on_text: TextListener | None) -> LLMReply:
        """Ask once; a server that does not take a schema is asked without, now and from now on."""
        which = (backend.code, backend.model, json.dumps(request.output_schema, sort_keys=True))
        if request.output_schema is not None and (which in self._unstructured or not self.tiers.may_structure):
            request = request.model_copy(update={"output_schema": None})
        try:
            reply = await backend.complete(request, on_text)
        except LLMError as error:
            if error.kind != "structured_output" or request.output_schema is None:
                raise
            logger.warning("%s of %s is asked without a schema: %s", backend.model, backend.provider, error.message)
            self._unstructured.add(which)
            return await self._once(backend, request, on_text)
        who = {"provider": backend.code, "asked": backend.model}
        return reply.model_copy(update={**who, "cost": self.tiers.cost(backend, reply)})


def _wait_s(error: LLMError, tries: int) -> float:
    if error.retry_after_s is not None:
        return float(error.retry_after_s)
    return random.uniform(0.5, 1.0) * _FIRST_WAIT_S * 2.0**tries  # noqa: S311


def _most_telling(faults: list[LLMError]) -> LLMError:
    passing = [fault for fault in faults if fault.retryable]
    return min(passing, key=lambda fault: fault.retry_after_s or 0.0) if passing else faults[0]
