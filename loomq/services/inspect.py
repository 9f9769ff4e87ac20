"""Look at goals: what a face may know of a goal and its stages, as plain data."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any
from uuid import UUID

from loomq.errors import GoalNotFoundError, PipelineMappingError
from loomq.messages import TaskStatus
from loomq.queues.names import priority_named
from loomq.runs.about import about
from loomq.runs.result import result_of
from loomq.services import rounds, tracks
from loomq.services.views import (
    SCHEMA_VERSION,
    ChildView,
    GoalLine,
    GoalView,
    ItemsView,
    Links,
    NodeView,
    StageView,
)
from loomq.services.waiting import Waits
from loomq.store import details, goals, nodes, silos, spending
from loomq.store import rounds as store_rounds

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy import Row

    from loomq.loom import Loom
    from loomq.runs.plan import Plan, StagePlan
    from loomq.services.timing import GoalTiming

__all__ = ["SCHEMA_VERSION", "GoalLine", "GoalView", "NodeView", "StageView"]

_STAGE_STATUS = {
    "waiting": TaskStatus.PENDING,
    "ready": TaskStatus.PENDING,
    "published": TaskStatus.PENDING,
    "claimed": TaskStatus.PROCESSING,
    "done": TaskStatus.COMPLETED,
    "failed": TaskStatus.FAILED,
    "dead": TaskStatus.FAILED,
    "skipped": TaskStatus.SKIPPED,
    "cancelled": TaskStatus.CANCELLED,
}
_GOAL_STATUS = {"done": TaskStatus.COMPLETED, "failed": TaskStatus.FAILED, "cancelled": TaskStatus.CANCELLED}
_UNTOUCHED = {"waiting", "ready", "published"}
_NEVER = 9000  # the year of what somebody has put away
_MOST_FAILURES = 5  # items of a stage that are told one by one


def find(loom: Loom, text: str) -> UUID:
    """Find a goal by its id, or by the beginning of it.

    Raises:
        GoalNotFoundError: There is none, or more than one begins so.
    """
    try:
        goal_id = UUID(text)
    except ValueError:
        pass
    else:
        if goals.get(loom.database, goal_id) is None:
            raise GoalNotFoundError(f"there is no goal {text}", hint="list them: loomq list")
        return goal_id
    beginning = text.lower()
    found = goals.find_by_prefix(loom.database, beginning) if set(beginning) <= set("0123456789abcdef-") else []
    if len(found) == 1:
        return found[0]
    if found:
        raise GoalNotFoundError(f"{len(found)} goals or more begin with {text}", hint="give more of the id")
    raise GoalNotFoundError(f"there is no goal {text}", hint="list them: loomq list")


def status(loom: Loom, goal_id: UUID) -> TaskStatus:
    """Say how a goal is.

    Raises:
        GoalNotFoundError: There is no such goal.
    """
    found = goals.states(loom.database, goal_id)
    if found is None:
        raise GoalNotFoundError(f"there is no goal {goal_id}")
    return _status(*found)


def has_ended(loom: Loom, goal_id: UUID) -> bool:
    """Say whether a goal has reached its end, whichever.

    Raises:
        GoalNotFoundError: There is no such goal.
    """
    state = goals.state_of(loom.database, goal_id)
    if state is None:
        raise GoalNotFoundError(f"there is no goal {goal_id}")
    return state != "open"


def goal(loom: Loom, goal_id: UUID) -> GoalView:
    """Read a goal with its stages and its result so far.

    Raises:
        GoalNotFoundError: There is no such goal.
    """
    row = _row(loom, goal_id)
    plan = loom.plans.get(row.snapshot)
    return _view(loom, row, plan, goals.stages_of(loom.database, goal_id))


def detailed(loom: Loom, goal_id: UUID) -> GoalView:
    """Read a goal with all that is known of it: items, goals that it contains, tokens, and where its time went.

    What the items of a stage gave is read only if the goal's result needs it: there may be ten thousand.

    Raises:
        GoalNotFoundError: There is no such goal.
    """
    row = _row(loom, goal_id)
    plan = loom.plans.get(row.snapshot)
    needed = plan.output.roots if plan.output is not None and row.state == "done" else None
    view = _view(loom, row, plan, goals.stages_of(loom.database, goal_id, items=needed))
    stages = tuple(_with_waits(loom, _with_details(loom, goal_id, view.stages), view))
    view = replace(view, stages=stages, tokens=_sum([stage.tokens for stage in stages if stage.tokens]))
    if row.kind == "orchestrator":
        found = rounds.of_goal(loom, goal_id, stage_view, lambda round_id: children_of(loom, round_id))
        view = replace(view, rounds=found)
    return replace(view, timing=_timing(loom, view, plan))


def progress(loom: Loom, goal_id: UUID) -> list[StageView]:
    """Read a goal's stages without their outputs."""
    return [stage_view(stage) for stage in goals.stages_of(loom.database, goal_id, outputs=False)]


def at_work(loom: Loom, goal_id: UUID) -> list[StageView]:
    """Read what ``progress`` does, and of an orchestrator's goal each round's tasks, as ``tasks_1/NAME``, behind it."""
    found = []
    parts = {row.stage: row.goal_id for row in store_rounds.of_goal(loom.database, goal_id)}
    for stage in progress(loom, goal_id):
        found.append(stage)
        if stage.name in parts:
            tasks = store_rounds.tasks(loom.database, [parts[stage.name]], outputs=False)
            found += [replace(stage_view(task), name=f"{stage.name}/{task.name}") for task in tasks]
    return found


def listed(loom: Loom, *, limit: int = 20, status: TaskStatus | None = None, name: str | None = None) -> list[GoalLine]:
    """List goals, newest first.

    Args:
        status: Only goals in that status; ``pending`` and ``processing`` both mean those that have not ended.
        name: Only goals of that pipeline or worker.
    """
    states = {public: inner for inner, public in _GOAL_STATUS.items()}
    state = states.get(status, "open") if status else None
    return [
        GoalLine(
            goal_id=row.id,
            name=row.pipeline,
            kind=row.kind,
            status=_GOAL_STATUS.get(
                row.state, TaskStatus.PROCESSING if row.stages_running or row.stages_done else TaskStatus.PENDING
            ),
            created_at=row.created_at,
            ended_at=row.ended_at,
            stages_total=row.stages_total,
            stages_done=row.stages_done,
            stages_running=row.stages_running,
            instruction=row.instruction,
        )
        for row in goals.listed(loom.database, limit=limit, state=state, pipeline=name)
    ]


def live_nodes(loom: Loom) -> list[NodeView]:
    """List the worker nodes that are alive."""
    within_s = nodes.silent_after_s(loom.settings.heartbeat_seconds)
    return [
        NodeView(node.hostname, node.pid, node.pool, node.slots, node.queues, node.version, started, seen)
        for node, started, seen in nodes.live(loom.database, within_s)
    ]


def goal_status(state: str) -> TaskStatus:
    """Give the public status of a goal's inner state; one that has not ended counts as processing."""
    return _GOAL_STATUS.get(state, TaskStatus.PROCESSING)


def _status(state: str, stage_states: set[str]) -> TaskStatus:
    if state in _GOAL_STATUS:
        return _GOAL_STATUS[state]
    return TaskStatus.PENDING if stage_states <= _UNTOUCHED else TaskStatus.PROCESSING


def _row(loom: Loom, goal_id: UUID) -> Row[Any]:
    row = goals.get(loom.database, goal_id)
    if row is None:
        raise GoalNotFoundError(f"there is no goal {goal_id}", hint="list them: loomq list")
    return row


def _view(loom: Loom, row: Row[Any], plan: Plan, rows: Sequence[Row[Any]]) -> GoalView:
    stages = tuple(_with_costs(loom, row.id, plan, [stage_view(one, plan.stages.get(one.name)) for one in rows]))
    return GoalView(
        goal_id=row.id,
        name=row.pipeline,
        kind=row.kind,
        instruction=row.instruction,
        context=row.context,
        priority=str(priority_named(row.priority)),
        status=_status(row.state, {stage.state for stage in stages}),
        created_at=row.created_at,
        ended_at=row.ended_at,
        error=row.error,
        stages=stages,
        result=_result(loom, row, plan, stages),
        partial=row.state == "done" and row.error is not None,
        budget=row.budget,
        links=Links(
            parent=(row.parent_goal, row.parent_stage, row.parent_item) if row.parent_goal else None,
            rerun_of=row.rerun_of,
            paused_at=row.paused_at if row.state == "open" else None,
            admitted_at=row.admitted_at,
            max_concurrent=row.max_concurrent,
        ),
    )


def stage_view(row: Row[Any], plan: StagePlan | None = None) -> StageView:
    """Describe a stage's row, or an item's.

    Args:
        plan: What its goal's snapshot says of it; without it nothing is said of pipelines and fallbacks.
    """
    is_retry = row.state in {"ready", "published"} and row.reason == "retry"
    fallback = None
    if row.reason == "fallback" and row.state == "done":
        fallback = "value"
    elif plan is not None and plan.run_by(row.worker, row.tier) is not plan:
        fallback = "worker"
    return StageView(
        name=row.name,
        worker=row.worker,
        tier=row.tier,
        status=TaskStatus.RETRY if is_retry else _STAGE_STATUS[row.state],
        state=row.state,
        attempt=row.attempt,
        deliveries=row.deliveries,
        queued_at=row.ready_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        queue_time_ms=_ms(_due(row), row.started_at),
        wall_time_ms=_ms(row.started_at, row.ended_at),
        processing_time_ms=row.processing_time_ms,
        model_used=row.model_used,
        token_usage=row.token_usage,
        pid=row.pid,
        node=row.node,
        reason=row.reason,
        error=row.error,
        history=row.history,
        output=row._mapping.get("output"),  # noqa: SLF001  (SQLAlchemy's public name for it)
        due_at=None if row.not_before is None or row.not_before.year >= _NEVER else row.not_before,
        fallback=fallback,
        pipeline=plan.pipeline if plan is not None else None,
        fan_out=row.fan_out,
        max_parallel=row.max_parallel,
        notes=row.notes or {},
    )


def _with_costs(loom: Loom, goal_id: UUID, plan: Plan, stages: Sequence[StageView]) -> Sequence[StageView]:
    """Add what stages have spent, and what became of the changes of silos that came with them."""
    doers = [one for stage in plan.stages.values() for one in (stage, stage.other) if one is not None]
    if not any(one.pipeline or one.worker.worker_kind == "llm" for one in doers):
        return stages
    spent = spending.of_stages(loom.database, goal_id)
    writes = any(one.worker.folders for one in doers)
    changes = silos.of_goal(loom.database, goal_id) if writes else []
    return [
        replace(
            stage,
            spent=spent.get(stage.name),
            silo_updates=tuple(one for one in changes if one.stage == stage.name),
        )
        for stage in stages
    ]


def _due(row: Row[Any]) -> datetime | None:
    """Give the time from which a stage queued: when it was ready, or when its back-off was over."""
    ready: datetime | None = row.ready_at
    last = row.history[-1] if row.history else {}
    return max(ready, tracks.time_of(last["due_at"])) if ready is not None and last.get("due_at") else ready


def _result(loom: Loom, row: Row[Any], plan: Plan, stages: Sequence[StageView]) -> dict[str, Any]:
    outputs = {stage.name: stage.output for stage in stages if stage.state == "done"}
    finished = {stage.name: {**stage.timeline(), "output": stage.output} for stage in stages if stage.state == "done"}
    try:
        is_whole = row.state == "done" or plan.kind in {"worker", "orchestrator"}
        found = result_of(loom.database, plan, about(row), finished) if is_whole else outputs
    except PipelineMappingError as error:
        unread = [stage.name for stage in stages if stage.name in outputs and stage.output is None]
        again = goals.stages_of(loom.database, row.id, items=unread) if unread else []
        outputs |= {stage.name: stage.output for stage in again if stage.name in unread}
        found = {**outputs, "_output_error": error.to_json()}
    if plan.kind == "worker":
        return found
    failed = {stage.name: stage.error for stage in stages if stage.state in {"failed", "dead"}}
    errors = {"_errors": failed} if row.state == "done" and row.error is not None else {}
    return {**found, **errors, "_timeline": [stage.timeline() for stage in stages]}


def _with_details(loom: Loom, goal_id: UUID, stages: Sequence[StageView]) -> list[StageView]:
    """Add what items, goals and tokens there are of some stages of a goal."""
    tokens = details.tokens(loom.database, goal_id)
    found = [replace(stage, tokens=tokens.get(stage.name)) for stage in stages]
    fanned = [stage.name for stage in stages if stage.fan_out is not None]
    items = items_of(loom, goal_id, fanned) if fanned else {}
    children = children_of(loom, goal_id)
    return [replace(stage, items=items.get(stage.name), children=children.get(stage.name, ())) for stage in found]


def _with_waits(loom: Loom, stages: Sequence[StageView], goal: GoalView) -> list[StageView]:
    """Add why those stages wait that are due, as far as anything keeps them."""
    waits = Waits(loom)
    if goal.links.paused_at or goal.links.waits_for_turn:
        return list(stages)
    return [
        replace(stage, waits=waits.of(stage)) if stage.state in {"ready", "published"} else stage for stage in stages
    ]


def items_of(loom: Loom, goal_id: UUID, names: Collection[str]) -> dict[str, ItemsView]:
    """Say how the items of stages that fanned out stand, with the first failures."""
    counts = details.item_counts(loom.database, goal_id)
    found = {}
    for name in names:
        count = counts.get(name, details.ItemCounts(0, 0, 0, 0, 0, 0))
        failed = (
            goals.items_of(loom.database, goal_id, name, limit=_MOST_FAILURES, states=("failed", "dead"))
            if count.failed
            else []
        )
        found[name] = ItemsView(
            total=count.total,
            done=count.done,
            failed=count.failed,
            running=count.running,
            skipped=count.skipped,
            cancelled=count.cancelled,
            failures=tuple((row.item, row.error or {}) for row in failed),
        )
    return found


def children_of(loom: Loom, goal_id: UUID) -> dict[str, tuple[ChildView, ...]]:
    """Name the first goals that are the work of each stage, those that failed before others."""
    rows = groupby(details.children(loom.database, goal_id), lambda child: child.stage)
    return {
        name: tuple(ChildView(one.goal_id, one.pipeline, goal_status(one.state), one.item) for one in some)
        for name, some in rows
    }


def _timing(loom: Loom, view: GoalView, plan: Plan) -> GoalTiming:
    fanned = any(stage.fan_out is not None for stage in view.stages)
    items = details.last_items(loom.database, view.goal_id) if fanned else {}
    return tracks.goal_timing(
        view,
        plan.graph.parents,
        details.now(loom.database),
        pauses=details.pauses(loom.database, view.goal_id),
        last_items={name: stage_view(row) for name, row in items.items()},
    )


def _sum(tokens: Sequence[dict[str, int]]) -> dict[str, int] | None:
    return {kind: sum(one[kind] for one in tokens) for kind in tokens[0]} if tokens else None


def _ms(start: datetime | None, end: datetime | None) -> int | None:
    if start is None or end is None or end < start:
        return None
    return round((end - start).total_seconds() * 1000)
