"""Between a stage's claim and its work: the limits that it has to pass, and what becomes of it if it may not start."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from celery.exceptions import Ignore

from loomq.errors import BrokerUnavailableError
from loomq.store import limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from loomq.queues.limits import Grant, Limiter
    from loomq.store.engine import Database
    from loomq.store.stages import Claim
    from loomq.workers.concurrency import Semaphore
    from loomq.workers.runtime import Done, Job, WorkerRuntime

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WITHOUT_REDIS_S = (1.0, 3.0)  # for how long a task steps aside when nobody can say whether it may start


class Needs(NamedTuple):
    """What a task needs to start, besides one start of each rate."""

    semaphore: Semaphore | None
    tokens: int


class Persist(Protocol):
    """Make a call until Postgres answers."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """Make it; it may be made twice."""


class Gate:
    """Let a claimed stage start, or put it back uncounted: it waits in the database and leaves its slot to others."""

    def __init__(self, database: Database, limiter: Limiter, runtime: WorkerRuntime, persist: Persist) -> None:
        self._database = database
        self._limiter = limiter
        self._runtime = runtime
        self._persist = persist

    def needs(self, job: Job) -> Needs:
        """Say what a task needs, for which the worker's code may have to be imported, and files read.

        Raises:
            PipelineValidationError: Its input breaks its contract: it shall not use anything up.
            Exception: Whatever importing the worker's code raises.
        """
        is_limited = self._limiter.is_limited(job.spec.name, job.tier)
        if is_limited:
            self._runtime.check_input(job)
        return Needs(self._runtime.semaphore(job), self._runtime.most_tokens(job) if is_limited else 0)

    def enter(self, request: Any, claim: Claim, job: Job, needs: Needs) -> Grant:
        """Take what a stage needs: its semaphore's slot, one start of each rate, and the tokens that it may use.

        Raises:
            celery.exceptions.Ignore: It may not start yet, and is put back; or it was taken back.
        """
        semaphore = needs.semaphore
        if semaphore is not None:
            verdict = self._persist(
                lambda: limits.enter(self._database, claim.key, claim.token, semaphore.name, semaphore.slots)
            )
            if verdict != "entered":
                logger.info("stage %s of goal %s is %s at %s", claim.key.name, claim.key.goal_id, verdict, semaphore)
                raise Ignore
            request.loomq_semaphore = semaphore.name
        try:
            grant = self._limiter.take(job.spec.name, job.tier, needs.tokens)
        except BrokerUnavailableError as error:
            self._hold(request, claim, error.message, random.uniform(*_WITHOUT_REDIS_S))  # noqa: S311
            raise Ignore from error
        if grant.wait_s > 0:
            self._hold(request, claim, grant.reason, 0.0)
            raise Ignore
        return grant

    def _hold(self, request: Any, claim: Claim, reason: str, wait_s: float) -> None:
        self._persist(lambda: limits.hold(self._database, claim.key, claim.token, reason, wait_s))
        self.leave(request)
        logger.info("stage %s of goal %s is held: %s", claim.key.name, claim.key.goal_id, reason)

    def settle(self, grant: Grant, done: Done) -> None:
        """Charge the tokens that were really used; what a failed call has used nobody knows, and it stays charged."""
        usage = done.token_usage or {}
        try:
            self._limiter.settle(grant, usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0))
        except BrokerUnavailableError as error:
            logger.warning("what a call has used is not told to the limits: %s", error.message)

    def leave(self, request: Any) -> None:
        """Let those go that waited for the semaphore of a stage which ended otherwise than with a result."""
        semaphore = getattr(request, "loomq_semaphore", None)
        if semaphore is not None:
            self._persist(lambda: limits.wake(self._database, semaphore))
