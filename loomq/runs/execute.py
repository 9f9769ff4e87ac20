"""Run the message that a worker process has in hand: claim, work, complete, and publish what became ready."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from celery.exceptions import Ignore, Retry

from loomq.errors import (
    DatabaseUnavailableError,
    InlineValueError,
    PipelineValidationError,
    UnknownNameError,
)
from loomq.ids import uuid7
from loomq.inline import inline_json
from loomq.queues.names import HEADER, StageMessage, queue_name
from loomq.queues.task import payload_of
from loomq.redaction import redacted, redacted_written
from loomq.runs.faults import as_stage_error
from loomq.store import stages
from loomq.store.stages import Part, Place, StageKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from loomq.errors import LoomqError
    from loomq.queues.app import LoomCelery
    from loomq.runs.call import Calls
    from loomq.runs.plan import Plan, PlanCache, StagePlan
    from loomq.runs.publish import Publisher
    from loomq.settings import Settings
    from loomq.store.engine import Database
    from loomq.store.stages import Claim, Outcome
    from loomq.workers.runtime import Done, WorkerRuntime

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_PAUSE_S = 1.0


class Executor:
    """Run stages in this process.

    Args:
        node: The node's id, which the heartbeat extends leases by.
        process_lost: Called when Celery's parent process reports that a child of its pool has ended.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        app: LoomCelery,
        plans: PlanCache,
        publisher: Publisher,
        calls: Calls,
        runtime: WorkerRuntime,
        *,
        node: UUID,
        process_lost: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._app = app
        self._plans = plans
        self._publisher = publisher
        self._calls = calls
        self._runtime = runtime
        self._node = node
        self.process_lost = process_lost

    def submit_call(self, task: Any, payload: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Write a raw call down as a goal; see ``Calls.submit``."""
        return self._calls.submit(task.worker, payload, options)

    def put_back(self, task_id: str) -> None:
        """Make a stage ready again whose message came to a node that does not know its task (a rolling deploy)."""
        if StageMessage.is_id(task_id):
            unknown = UnknownNameError(f"task {task_id} is for a worker that this node does not know")
            self.not_sent(StageMessage.of_id(task_id), unknown)

    def not_sent(self, message: StageMessage, error: LoomqError) -> None:
        """Make a stage ready again whose message did not reach the broker."""
        self._publisher.not_sent([StageKey(message.goal_id, message.name, message.item)], error)

    def execute(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one message.

        Returns:
            A raw call's output, or ``{"stage": name}``.

        Raises:
            celery.exceptions.Ignore: The stage is not, or no longer, this message's to run.
            celery.exceptions.Retry: It failed and waits in the database for its next attempt.
            PipelineStageError: It failed for good.
        """
        request = task.request
        if getattr(request, HEADER, None) is None:
            message = self._calls.adopt(task.worker, payload_of(args, kwargs), request)
            setattr(request, HEADER, {"call": True})
        else:
            message = StageMessage.parse(args)
        key = StageKey(message.goal_id, message.name, message.item)
        token, place = uuid7(), Place(self._node, os.getpid(), str(request.id))
        request.loomq_goal = key.goal_id
        claim = self._persist(lambda: stages.claim(self._database, key, token, place, self._settings.lease_seconds))
        if claim is None:
            logger.info("stage %s of goal %s is not there to claim: a duplicate, or early", key.name, key.goal_id)
            raise Ignore
        stage = None
        try:
            plan = self._persist(lambda: self._plans.get(claim.snapshot))
            stage = plan.stages[key.name]
            done, text = self._inline(self._work(stage, claim), stage)
            outcome = self._complete(request, plan, claim, done, text)
        except (Ignore, DatabaseUnavailableError):
            raise
        except Exception as error:  # noqa: BLE001  (whatever is raised while a stage is held is that stage's failure)
            return self._failed(task.worker, stage, claim, error)
        return done.output if claim.task_id else {"stage": key.name, "goal_ended": outcome.goal_ended}

    def _work(self, stage: StagePlan, claim: Claim) -> Done:
        payload = claim.payload
        if payload is None:
            goal = {"goal_id": str(claim.key.goal_id), "instruction": claim.instruction, "context": claim.context}
            payload = stage.payload(goal, claim.inputs)
        tier = self._app.router.tier(stage.worker.name, claim.tier)
        return self._runtime.run(stage.job(payload, tier=tier, timeout_s=claim.timeout_s))

    def _inline(self, done: Done, stage: StagePlan) -> tuple[Done, str]:
        """Write the output as the JSON text that is kept, and show what is kept to whoever comes next."""
        try:
            text = inline_json(
                done.output, what=f"the output of stage {stage.name}", limit_bytes=self._settings.max_inline_bytes
            )
        except InlineValueError as error:
            raise PipelineValidationError(error.message, stage=stage.name, hint=error.hint) from error
        shown = redacted_written(text) if self._settings.redact_outputs else text
        return (done if shown is text else replace(done, output=json.loads(shown))), shown

    def _complete(self, request: Any, plan: Plan, claim: Claim, done: Done, text: str) -> Outcome:
        key = claim.key
        carried = carried_by(request)
        routes = {
            name: (plan.stages[name].worker.name, plan.stages[name].tier)
            for name in plan.graph.children[key.name]
            if name not in carried
        }
        room = self._publisher.room(routes.values()) if routes else {}
        canvas = claim.canvas or {}
        part = Part(canvas["group_id"], canvas.get("group_index") or 0) if canvas.get("chord") else None
        outcome = self._persist(
            lambda: stages.complete(
                self._database,
                key,
                claim.token,
                output=text,
                model_used=done.model_used and redacted(done.model_used),
                token_usage=done.token_usage,
                processing_time_ms=done.processing_time_ms,
                room={queue_name(*route): free for route, free in room.items()},
                carried=carried,
                part=part,
            )
        )
        if outcome.verdict == "fenced":
            logger.warning(
                "stage %s of goal %s was taken back while it ran: its result is refused", key.name, key.goal_id
            )
            raise Ignore
        request.loomq_outcome = outcome
        ours = [name for name in outcome.published if name not in carried]
        if ours:
            self._publisher.publish(key.goal_id, plan, ours, claim.priority)
        if outcome.backlog:
            stage = plan.stages[key.name]
            self._publisher.top_up(stage.worker.name, stage.tier, at_least=self._settings.window_min // 2)
        return outcome

    def _failed(self, worker: str, stage: StagePlan | None, claim: Claim, error: Exception) -> Any:
        fault = as_stage_error(error, claim.key.name, worker, claim.timeout_s)
        delay_s = max(backoff_s(stage, claim.attempt) if stage else 0.0, getattr(error, "retry_after_s", None) or 0.0)
        verdict = self._persist(
            lambda: stages.fail(
                self._database,
                claim.key,
                claim.token,
                error=fault.to_json(),
                retryable=fault.retryable,
                delay_s=delay_s,
            )
        )
        if verdict == "fenced":
            logger.warning("an error came after the end of stage %s: %s", claim.key.name, fault.message)
            raise Ignore from error
        if verdict == "retried":
            raise Retry(str(fault), fault, when=round(delay_s)) from error
        raise fault from error

    def _persist(self, work: Callable[[], T]) -> T:
        """Make a call until Postgres answers, for as long as a lease could still be held; each may be made twice."""
        until = time.monotonic() + max(4 * self._settings.lease_seconds, 30)
        pause = 0.05
        while True:
            try:
                return work()
            except DatabaseUnavailableError:
                if time.monotonic() >= until:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)


def carried_by(request: Any) -> tuple[str, ...]:
    """Name the stages that a message publishes by itself: the next of its chain, and the body of its chord."""
    following = [*(request.chain or ())[-1:], *([request.chord] if request.chord else ())]
    return tuple(
        signature["args"][1] for signature in following if HEADER in (signature["options"].get("headers") or {})
    )


def backoff_s(stage: StagePlan, attempt: int) -> float:
    """Give the pause before the next attempt: exponential from ``initial`` to ``max``; jitter takes off up to half."""
    backoff = stage.worker.retry_backoff
    longest = min(backoff.initial * 2 ** min(attempt - 1, 64), backoff.max)
    return random.uniform(longest / 2, longest) if backoff.jitter else longest  # noqa: S311
