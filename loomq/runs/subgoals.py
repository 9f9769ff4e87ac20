"""Stages that run a pipeline, an orchestrator or a round of tasks: each is the work of a goal of its own."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from loomq.contracts import Contract
from loomq.messages import OrchestratorGoal
from loomq.orchestrator.manifest import ORCHESTRATOR_INPUT
from loomq.orchestrator.tasks import Subtask
from loomq.queues.names import priority_named
from loomq.runs.snapshot import snapshot_of_round, snapshot_within
from loomq.store import goals, openings

if TYPE_CHECKING:
    from uuid import UUID

    from loomq.runs.plan import Plan, StagePlan
    from loomq.runs.sequel import Sequel
    from loomq.runs.submit import Submitter
    from loomq.store.engine import Database
    from loomq.store.stages import Claim

logger = logging.getLogger(__name__)


class Subgoals:
    """Open the goals that stages are made of; their end is told by ``Sequel``."""

    def __init__(self, database: Database, submitter: Submitter, sequel: Sequel) -> None:
        self._database = database
        self._submitter = submitter
        self._sequel = sequel

    def open(self, plan: Plan, stage: StagePlan, claim: Claim, context: dict[str, Any]) -> None:
        """Submit the goal of a claimed stage and leave the stage to it.

        A second delivery finds the goal of the first.

        Raises:
            PipelineValidationError: The context breaks the pipeline's contract.
            InlineValueError: It is too large.
        """
        instruction = claim.instruction
        if stage.pipeline in plan.orchestrators:
            Contract(ORCHESTRATOR_INPUT).check(context, "input", stage=stage.name)
            instruction, context = context["instruction"], context.get("context", {})
        body = snapshot_within(plan, str(stage.pipeline))
        self._leave(claim, self._child(body, claim, context, instruction, self._deadline(stage, claim)))

    def open_round(self, plan: Plan, stage: StagePlan, claim: Claim) -> None:
        """Submit the tasks of a plan as a goal of their own, and leave the claimed stage to it; as ``open``."""
        assert plan.frozen is not None
        said = [task for name in stage.reads for task in claim.inputs[name]["output"]["tasks"]]
        tasks = [Subtask.of(one) for one in said]
        body = snapshot_of_round(plan.name, tasks, plan.frozen.spec.max_concurrent_tasks, plan)
        payloads = {task.name: task.payload for task in tasks}
        self._leave(claim, self._child(body, claim, payloads, claim.instruction, self._deadline(stage, claim)))

    def _leave(self, claim: Claim, child: UUID) -> None:
        verdict = openings.delegate(self._database, claim.key, claim.token, child)
        if verdict == "fenced":
            logger.warning("stage %s of goal %s was taken back while it opened", claim.key.name, claim.key.goal_id)
        self._sequel.close(child)  # it may have ended before the stage was left to it

    def _child(
        self,
        body: dict[str, Any],
        claim: Claim,
        context: dict[str, Any],
        instruction: str,
        deadline: datetime | None,
    ) -> UUID:
        newest = openings.newest_child(self._database, claim.key)
        # A round whose tasks have all failed is one that was done: its failures are told, and not tried anew.
        stands = {"open", "done", *(["failed"] if body["kind"] == "round" else [])}
        if newest is not None and newest[1] in stands:
            return newest[0]
        key = claim.key
        goal = OrchestratorGoal(
            instruction=instruction,
            pipeline=body["name"],
            context=context,
            priority=priority_named(claim.priority),
            deadline=deadline,
            idempotency_key=f"part:{key.goal_id}/{key.name}/{key.item}#{newest[2] if newest else 0}",
        )
        return self._submitter.submit(goal, body=body, parent=key).goal_id

    def _deadline(self, stage: StagePlan, claim: Claim) -> datetime | None:
        row = goals.get(self._database, claim.key.goal_id)
        limit_s = stage.spec.timeout_seconds if stage.spec else None
        own = datetime.now(UTC) + timedelta(seconds=limit_s) if limit_s else None
        known = [when for when in (row.deadline if row else None, own) if when is not None]
        return min(known, default=None)
