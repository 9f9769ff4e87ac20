"""Look at goals: what a face may know of a goal and its stages, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any
from uuid import UUID

from loomq.errors import GoalNotFoundError, PipelineMappingError
from loomq.messages import TaskStatus
from loomq.queues.names import priority_named
from loomq.redaction import redacted, redacted_json
from loomq.store import goals, nodes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Row

    from loomq.loom import Loom

SCHEMA_VERSION = 1

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


@dataclass(frozen=True)
class StageView:
    """One stage as a user sees it.

    Args:
        state: The inner state (``waiting ready published claimed done failed skipped cancelled dead``).
        queue_time_ms: From ready to started.
        wall_time_ms: From started to ended.
        where: The node and process that ran it, as ``pid@node``.
    """

    name: str
    worker: str
    tier: str
    status: TaskStatus
    state: str
    attempt: int
    deliveries: int
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    queue_time_ms: int | None
    wall_time_ms: int | None
    processing_time_ms: int | None
    model_used: str | None
    token_usage: dict[str, int] | None
    pid: int | None
    node: UUID | None
    reason: str | None
    error: dict[str, Any] | None
    history: list[dict[str, Any]]
    output: dict[str, Any] | None

    def timeline(self) -> dict[str, Any]:
        """Give the stage's entry in a result's ``_timeline``."""
        return {
            "stage": self.name,
            "status": str(self.status),
            "attempt": self.attempt,
            "queued_at": _iso(self.queued_at),
            "started_at": _iso(self.started_at),
            "ended_at": _iso(self.ended_at),
            "wall_time_ms": self.wall_time_ms,
            "queue_time_ms": self.queue_time_ms,
            "processing_time_ms": self.processing_time_ms,
            "model_used": self.model_used,
            "token_usage": self.token_usage,
        }

    def to_json(self) -> dict[str, Any]:
        """Describe the stage, with its output."""
        return {
            **self.timeline(),
            "worker": self.worker,
            "tier": self.tier,
            "state": self.state,
            "deliveries": self.deliveries,
            "pid": self.pid,
            "node": str(self.node) if self.node else None,
            "reason": self.reason,
            "error": self.error,
            "history": self.history,
            "output": self.output,
        }


@dataclass(frozen=True)
class GoalView:
    """One goal as a user sees it.

    Args:
        result: What its ``output`` mapping selects of its finished stages, or all of their outputs, with ``_timeline``.
    """

    goal_id: UUID
    name: str
    kind: str
    instruction: str
    context: dict[str, Any]
    priority: str
    status: TaskStatus
    created_at: datetime
    ended_at: datetime | None
    error: dict[str, Any] | None
    stages: tuple[StageView, ...]
    result: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Describe the goal with its stages."""
        return {
            "schema_version": SCHEMA_VERSION,
            "goal_id": str(self.goal_id),
            self.kind: self.name,
            "instruction": redacted(self.instruction),
            "context": redacted_json(self.context),
            "priority": self.priority,
            "status": str(self.status),
            "created_at": _iso(self.created_at),
            "ended_at": _iso(self.ended_at),
            "error": self.error,
            "stages": [stage.to_json() for stage in self.stages],
            "result": self.result,
        }


@dataclass(frozen=True)
class GoalLine:
    """One line of a list of goals."""

    goal_id: UUID
    name: str
    kind: str
    status: TaskStatus
    created_at: datetime
    ended_at: datetime | None
    stages_total: int
    stages_done: int
    stages_running: int
    instruction: str

    def to_json(self) -> dict[str, Any]:
        """Describe the line."""
        return {
            "goal_id": str(self.goal_id),
            self.kind: self.name,
            "status": str(self.status),
            "created_at": _iso(self.created_at),
            "ended_at": _iso(self.ended_at),
            "stages_total": self.stages_total,
            "stages_done": self.stages_done,
            "stages_running": self.stages_running,
            "instruction": redacted(self.instruction),
        }


@dataclass(frozen=True)
class NodeView:
    """One live worker node."""

    hostname: str
    pid: int
    pool: str
    slots: int
    queues: tuple[str, ...]
    version: str
    started_at: datetime
    seen_at: datetime

    def to_json(self) -> dict[str, Any]:
        """Describe the node."""
        return {
            "hostname": self.hostname,
            "pid": self.pid,
            "pool": self.pool,
            "slots": self.slots,
            "queues": list(self.queues),
            "version": self.version,
            "started_at": _iso(self.started_at),
            "seen_at": _iso(self.seen_at),
        }


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
    row = goals.get(loom.database, goal_id)
    if row is None:
        raise GoalNotFoundError(f"there is no goal {goal_id}")
    stages = tuple(_stage(stage) for stage in goals.stages_of(loom.database, goal_id))
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
        result=_result(loom, row, stages),
    )


def progress(loom: Loom, goal_id: UUID) -> list[StageView]:
    """Read a goal's stages without their outputs."""
    return [_stage(stage) for stage in goals.stages_of(loom.database, goal_id, outputs=False)]


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
    within_s = 4 * loom.settings.heartbeat_seconds + 5
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


def _stage(row: Row[Any]) -> StageView:
    is_retry = row.state in {"ready", "published"} and row.reason == "retry"
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
        queue_time_ms=_ms(row.ready_at, row.started_at),
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
    )


def _result(loom: Loom, row: Row[Any], stages: Sequence[StageView]) -> dict[str, Any]:
    outputs = {stage.name: stage.output for stage in stages if stage.state == "done"}
    if row.kind == "worker":
        return dict(outputs.get(row.pipeline) or {})
    timeline = [stage.timeline() for stage in stages]
    mapping = loom.plans.get(row.snapshot).output
    if mapping is None or row.state != "done":
        return {**outputs, "_timeline": timeline}
    about = {"goal_id": str(row.id), "instruction": row.instruction, "context": row.context}
    finished = {stage.name: {**stage.timeline(), "output": stage.output} for stage in stages if stage.state == "done"}
    try:
        return {**mapping.apply(about, finished), "_timeline": timeline}
    except PipelineMappingError as error:
        return {**outputs, "_timeline": timeline, "_output_error": error.to_json()}


def _ms(start: datetime | None, end: datetime | None) -> int | None:
    if start is None or end is None or end < start:
        return None
    return round((end - start).total_seconds() * 1000)


def _iso(when: datetime | None) -> str | None:
    return when.astimezone(UTC).isoformat() if when else None
