"""The rounds of an orchestrator's goal as people see them: what was planned, why, and what became of each task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loomq.orchestrator.outline import Step
from loomq.orchestrator.tasks import Subtask
from loomq.redaction import redacted_json
from loomq.services.stage_views import cost_json
from loomq.store import details, rounds, spending

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from sqlalchemy import Row

    from loomq.loom import Loom
    from loomq.runs.plan import StagePlan
    from loomq.services.stage_views import ChildView, StageView


@dataclass(frozen=True)
class TaskView:
    """One task of a round.

    Args:
        stage: How it stands.
        round_id: The goal that it is a stage of: ``loomq explain ROUND_ID/NAME``.
        worker_type: The worker, the pipeline or the orchestrator that does it.
        children: The goals that are its work, if it runs a pipeline or an orchestrator.
    """

    stage: StageView
    round_id: UUID
    worker_type: str
    depends_on: tuple[str, ...]
    rationale: str | None
    children: tuple[ChildView, ...] = ()

    @property
    def name(self) -> str:
        """The task's name."""
        return self.stage.name

    def to_json(self) -> dict[str, Any]:
        """Describe the task, without what it gave."""
        stage = self.stage
        return {
            "task": stage.name,
            "worker_type": self.worker_type,
            "goal_id": str(self.round_id),
            "status": str(stage.status),
            "state": stage.state,
            "tier": stage.tier,
            "attempt": stage.attempt,
            "depends_on": list(self.depends_on),
            "rationale": redacted_json(self.rationale),
            "processing_time_ms": stage.processing_time_ms,
            "wall_time_ms": stage.wall_time_ms,
            "model_used": stage.model_used,
            "tokens": stage.tokens,
            "cost": cost_json(stage.spent),
            "reason": redacted_json(stage.reason),
            "error": stage.error,
            "children": [child.to_json() for child in self.children],
        }


@dataclass(frozen=True)
class RoundView:
    """One round.

    Args:
        number: From 1.
        goal_id: The goal of its tasks; ``None`` before it has one.
    """

    number: int
    goal_id: UUID | None
    tasks: tuple[TaskView, ...]

    @property
    def told(self) -> str:
        """How its tasks stand, in words: ``3 tasks: 2 completed, 1 failed``."""
        statuses = [str(task.stage.status) for task in self.tasks]
        counts = ", ".join(f"{statuses.count(one)} {one}" for one in dict.fromkeys(statuses))
        return f"{len(statuses):,} task{'' if len(statuses) == 1 else 's'}{f': {counts}' if counts else ''}"

    def to_json(self) -> dict[str, Any]:
        """Describe the round."""
        return {
            "round": self.number,
            "goal_id": str(self.goal_id) if self.goal_id else None,
            "tasks": [task.to_json() for task in self.tasks],
        }


def of_goal(
    loom: Loom,
    goal_id: UUID,
    describe: Callable[[Row[Any], StagePlan], StageView],
    children_of: Callable[[UUID], Mapping[str, tuple[ChildView, ...]]],
) -> tuple[RoundView, ...]:
    """Read the rounds of an orchestrator's goal.

    Args:
        describe: Makes the view of a stage's row.
        children_of: Gives the goals that are the work of a goal's stages.
    """
    database = loom.database
    found = []
    for row in rounds.of_goal(database, goal_id):
        step = Step.of(row.stage)
        if step is None:
            continue
        plan = loom.plans.get(row.snapshot)
        tokens, spent = details.tokens(database, row.goal_id), spending.of_stages(database, row.goal_id)
        children = children_of(row.goal_id)
        tasks = []
        for one in rounds.tasks(database, [row.goal_id], outputs=False):
            task = plan.stages[one.name].task or Subtask(one.name, one.worker, {})
            stage = replace(
                describe(one, plan.stages[one.name]), tokens=tokens.get(one.name), spent=spent.get(one.name)
            )
            tasks.append(
                TaskView(
                    stage, row.goal_id, task.worker_type, task.depends_on, task.rationale, children.get(one.name, ())
                )
            )
        found.append(RoundView(step.round, row.goal_id, tuple(tasks)))
    return tuple(found)
