"""Steer goals that were accepted: cancel, pause, resume, run again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from loomq.errors import (
    ConfigError,
    EnvironmentNotReadyError,
    GoalNotFoundError,
    GoalStateError,
    NotSupportedYetError,
    UnknownNameError,
)
from loomq.messages import OrchestratorGoal
from loomq.queues.names import priority_named
from loomq.runs.freeze import freeze
from loomq.runs.rerun import RerunPlan, changed_context, plan_rerun
from loomq.runs.snapshot import parse
from loomq.runs.submit import Rerun
from loomq.store import goals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from loomq.loom import Loom
    from loomq.runs.plan import Plan

logger = logging.getLogger(__name__)

__all__ = ["RerunPlan", "cancel", "pause", "plan_of_rerun", "rerun", "resume"]


def cancel(loom: Loom, goal_id: UUID, *, reason: str = "somebody cancelled it") -> bool:
    """End a goal: what waits is cancelled, what runs is interrupted, what is finished is kept.

    Args:
        reason: Why, for whoever looks at the goal.

    Returns:
        False if it had ended before.

    Raises:
        GoalNotFoundError: There is no such goal.
    """
    _row(loom, goal_id)
    return loom.sequel.cancel(goal_id, reason)


def pause(loom: Loom, goal_id: UUID) -> bool:
    """Start nothing more of a goal until it is resumed; what runs goes on to its end. Answers as ``cancel``."""
    _row(loom, goal_id)
    return goals.pause(loom.database, goal_id)


def resume(loom: Loom, goal_id: UUID) -> bool:
    """Let a paused goal go on.

    Returns:
        False if it was not paused, or has ended.

    Raises:
        GoalNotFoundError: There is no such goal.
    """
    row = _row(loom, goal_id)
    is_resumed = goals.resume(loom.database, goal_id)
    if is_resumed:
        _at_once(lambda: _top_up(loom, loom.plans.get(row.snapshot)))
    return is_resumed


def _top_up(loom: Loom, plan: Plan) -> None:
    for route in {(stage.worker.name, stage.tier) for stage in plan.stages.values()}:
        loom.publisher.top_up(*route)


def _at_once(step: Callable[[], None]) -> None:
    """Do what follows from a change of a goal; it is made, so what cannot be done here is left to the sweeper."""
    try:
        step()
    except (ConfigError, EnvironmentNotReadyError) as error:
        logger.warning("%s; what follows is left to the sweeper", error.message)


def plan_of_rerun(
    loom: Loom,
    goal_id: UUID,
    *,
    start: str | None = None,
    changes: Mapping[str, Any] | None = None,
    current: bool = False,
) -> RerunPlan:
    """Say what ``rerun`` with the same arguments would run, and what it would reuse; errors as there."""
    row = _ended(loom, goal_id)
    new, _ = _target(loom, row, current=current)
    changed_context(row.context, changes or {})  # refuses what ``rerun`` would
    return _plan(loom, row, new, start, changes or {})


def rerun(
    loom: Loom,
    goal_id: UUID,
    *,
    start: str | None = None,
    changes: Mapping[str, Any] | None = None,
    current: bool = False,
) -> UUID:
    """Run a goal that has ended once more, as a new goal that takes over the results that still stand.

    Args:
        start: Run this stage and all below it again; ``None`` runs what has no result.
        changes: Other values for keys of the context, dotted.
        current: Run the pipeline as the project's files say now, and not as the goal's snapshot does; what has changed
            in them runs again.

    Returns:
        The new goal's id.

    Raises:
        GoalNotFoundError: There is no such goal.
        UnknownNameError: There is no such stage, or no such pipeline any more.
        GoalStateError: The goal still runs, or there is nothing to run again.
        PipelineValidationError: The new context breaks the pipeline's contract.
        SubmitUnavailableError: The new goal could not be written down.
    """
    row = _ended(loom, goal_id)
    new, body = _target(loom, row, current=current)
    plan = _plan(loom, row, new, start, changes or {})
    accepted = loom.submitter.submit(
        OrchestratorGoal(
            instruction=row.instruction,
            pipeline=row.pipeline,
            context=changed_context(row.context, changes or {}),
            priority=priority_named(row.priority),
            session_id=row.session_id,
            budget=row.budget,
        ),
        body=body,
        rerun=Rerun(goal_id, plan.reused),
        **_overrides(loom, row),
    )
    return accepted.goal_id


def _overrides(loom: Loom, row: Any) -> dict[str, Any]:
    """Give what a goal of one worker was submitted with in place of the worker's own."""
    if row.kind != "worker":
        return {}
    (stage,) = goals.stages_of(loom.database, row.id, outputs=False)
    return {"tier": stage.tier, "max_retries": stage.max_retries, "timeout_s": stage.timeout_s}


def _plan(loom: Loom, row: Any, new: Plan, start: str | None, changes: Mapping[str, Any]) -> RerunPlan:
    states = {stage.name: stage.state for stage in goals.stages_of(loom.database, row.id, outputs=False)}
    plan = plan_rerun(loom.plans.get(row.snapshot), new, states, start=start, changed=tuple(changes))
    if not plan.runs:
        way = f"no stage reads {', '.join(changes)} of its context; " if changes else ""
        raise GoalStateError(
            f"every stage of goal {row.id} has its result",
            hint=f"{way}say where to start: --from STAGE{'' if changes else ', or --set key=value'}",
        )
    return plan


def _target(loom: Loom, row: Any, *, current: bool) -> tuple[Plan, dict[str, Any]]:
    """Give what a rerun runs from: the goal's snapshot, or the project's files."""
    if not current:
        body = goals.read_snapshot(loom.database, row.snapshot)
        if body is None:
            raise GoalNotFoundError(f"the database holds no snapshot of goal {row.id}", hint="run it with --current")
        return loom.plans.get(row.snapshot), body
    if row.kind not in {"pipeline", "orchestrator"}:
        raise NotSupportedYetError("a task of one worker has no stages to reuse", hint="submit it anew")
    if row.pipeline not in {*loom.catalog.pipelines, *loom.catalog.orchestrators}:
        raise UnknownNameError(f'no {row.kind} is called "{row.pipeline}" any more', hint="run it without --current")
    body = freeze(loom.catalog, row.pipeline, allow=loom.settings.import_allow)
    return parse(body), body


def _ended(loom: Loom, goal_id: UUID) -> Any:
    row = _row(loom, goal_id)
    if row.kind == "round":
        raise GoalStateError(
            f"goal {goal_id} is a round of tasks, and part of goal {row.parent_goal}",
            hint=f"rerun that one: loomq rerun {row.parent_goal} --from {row.parent_stage}",
        )
    if row.state == "open":
        raise GoalStateError(f"goal {goal_id} has not ended", hint=f"cancel it first: loomq cancel {goal_id}")
    return row


def _row(loom: Loom, goal_id: UUID) -> Any:
    row = goals.get(loom.database, goal_id)
    if row is None:
        raise GoalNotFoundError(f"there is no goal {goal_id}", hint="list them: loomq list")
    return row
