"""Goals, stages and nodes as a face sees them: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any

from loomq.redaction import redacted, redacted_json
from loomq.store.spending import Spent

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from loomq.messages import TaskStatus
    from loomq.services.timing import GoalTiming
    from loomq.store.silos import SiloUpdate

__all__ = [
    "SCHEMA_VERSION",
    "ChildView",
    "GoalLine",
    "GoalView",
    "ItemsView",
    "Links",
    "NodeView",
    "Spent",
    "StageView",
    "cost_json",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ItemsView:
    """How the items of a stage that fanned out stand.

    Args:
        failures: The first that failed: index and error.
    """

    total: int
    done: int
    failed: int
    running: int
    skipped: int
    cancelled: int
    failures: tuple[tuple[int, dict[str, Any]], ...] = ()

    @property
    def waiting(self) -> int:
        """How many have not begun."""
        return self.total - self.done - self.failed - self.running - self.skipped - self.cancelled

    @property
    def told(self) -> str:
        """How they stand, in words: ``7 items: 6 done, 1 failed``."""
        kinds = ("done", "failed", "running", "waiting", "skipped", "cancelled")
        counts = ", ".join(f"{getattr(self, kind):,} {kind}" for kind in kinds if getattr(self, kind))
        return f"{self.total:,} item{'' if self.total == 1 else 's'}{f': {counts}' if counts else ''}"

    def to_json(self) -> dict[str, Any]:
        """Describe the items."""
        return {
            "total": self.total,
            "done": self.done,
            "failed": self.failed,
            "running": self.running,
            "waiting": self.waiting,
            "skipped": self.skipped,
            "cancelled": self.cancelled,
            "failures": [{"index": index, "error": error} for index, error in self.failures],
        }


@dataclass(frozen=True)
class ChildView:
    """A goal that is the work of a stage.

    Args:
        item: The item whose work it is, or -1.
    """

    goal_id: UUID
    pipeline: str
    status: TaskStatus
    item: int = -1

    def to_json(self) -> dict[str, Any]:
        """Describe the goal."""
        return {
            "goal_id": str(self.goal_id),
            "pipeline": self.pipeline,
            "status": str(self.status),
            "item": self.item if self.item >= 0 else None,
        }


@dataclass(frozen=True)
class StageView:
    """One stage as a user sees it.

    Args:
        state: The inner state (``waiting ready published claimed done failed skipped cancelled dead``).
        queued_at: When it was last ready.
        queue_time_ms: From ready, or from the end of a back-off, to started.
        wall_time_ms: From started to ended.
        reason: Why it is in that state, if there is something to say: of a skipped one its condition with the values.
        due_at: When it may be started at the earliest, if that has been put off.
        fallback: ``worker`` or ``value`` if that stands in for it.
        pipeline: What it runs instead of a worker.
        fan_out: How many items it has, if it has any.
        items: How they stand; like ``children`` and ``tokens`` read for a goal's details only.
        children: The goals that are its work, or its items', the first of them.
        tokens: What it, its items and the goals that are its work have used.
        waits: Why it waits though it is due: a limit, or a queue that nobody serves.
        spent: What calls to language models have cost in all attempts, like ``tokens`` with items and contained goals;
            ``None`` if none was made.
        notes: What is to be told of its result: ``repair``, ``degraded_modes``, ``stood_in``, ``rounds``,
            ``from_cache``, ``reused``.
        silo_updates: The changes of silos that came with its result, and what became of them.
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
    due_at: datetime | None = None
    fallback: str | None = None
    pipeline: str | None = None
    fan_out: int | None = None
    max_parallel: int | None = None
    items: ItemsView | None = None
    children: tuple[ChildView, ...] = ()
    tokens: dict[str, int] | None = None
    waits: str | None = None
    spent: Spent | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    silo_updates: tuple[SiloUpdate, ...] = ()

    @property
    def doer(self) -> str:
        """Who does it, in words: ``worker echo``, ``pipeline line``."""
        return f"pipeline {self.pipeline}" if self.pipeline else f"worker {self.worker}"

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
            "cost": cost_json(self.spent),
            "degraded_modes": self.notes.get("degraded_modes", []),
        }

    def to_json(self) -> dict[str, Any]:
        """Describe the stage, with its output."""
        return {
            **self.timeline(),
            "worker": self.worker,
            "pipeline": self.pipeline,
            "tier": self.tier,
            "state": self.state,
            "deliveries": self.deliveries,
            "pid": self.pid,
            "node": str(self.node) if self.node else None,
            "reason": redacted(self.reason) if self.reason else None,
            "waits": self.waits,
            "error": self.error,
            "history": self.history,
            "fallback": self.fallback,
            "items": self.items.to_json() if self.items else None,
            "children": [child.to_json() for child in self.children],
            "tokens": self.tokens,
            "notes": redacted_json(self.notes),
            "silo_updates": [redacted_json(update.to_json()) for update in self.silo_updates],
            "output": self.output,
        }


@dataclass(frozen=True)
class Links:
    """What other goals a goal belongs to, and what holds it up.

    Args:
        parent: The stage that it is the work of: goal, stage, and item or -1.
        rerun_of: The goal whose results it took over.
        paused_at: Since when it is paused.
        admitted_at: When it was let go; ``None`` of one that waits for its turn.
        max_concurrent: How many goals of its pipeline may be under way.
    """

    parent: tuple[UUID, str, int] | None = None
    rerun_of: UUID | None = None
    paused_at: datetime | None = None
    admitted_at: datetime | None = None
    max_concurrent: int | None = None

    @property
    def waits_for_turn(self) -> bool:
        """Whether too many goals of its pipeline are under way."""
        return self.max_concurrent is not None and self.admitted_at is None

    def to_json(self) -> dict[str, Any]:
        """Describe them."""
        parent = self.parent
        return {
            "parent": parent
            and {"goal_id": str(parent[0]), "stage": parent[1], "item": parent[2] if parent[2] >= 0 else None},
            "rerun_of": str(self.rerun_of) if self.rerun_of else None,
            "paused_at": _iso(self.paused_at),
            "admitted_at": _iso(self.admitted_at),
            "waits_for_turn": self.waits_for_turn,
        }


@dataclass(frozen=True)
class GoalView:
    """One goal as a user sees it.

    Args:
        result: What its ``output`` mapping selects of its finished stages, or all of their outputs, with ``_timeline``;
            of a partial goal with ``_errors`` by stage.
        partial: Whether it completed without some stages, which failed.
        tokens: What it and the goals that it contains have used; read for its details only, like ``timing``.
        budget: What it may spend on language models: ``max_cost``, ``max_tokens``, or either.
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
    partial: bool = False
    links: Links = field(default_factory=Links)
    tokens: dict[str, int] | None = None
    timing: GoalTiming | None = None
    budget: dict[str, Any] | None = None

    @property
    def spent(self) -> Spent | None:
        """What calls to language models have cost, in it and the goals that it contains."""
        found = [stage.spent for stage in self.stages if stage.spent is not None]
        return sum(found[1:], found[0]) if found else None

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
            "partial": self.partial,
            "created_at": _iso(self.created_at),
            "ended_at": _iso(self.ended_at),
            **self.links.to_json(),
            "error": self.error,
            "tokens": self.tokens,
            "cost": cost_json(self.spent),
            "budget": self.budget,
            "stages": [stage.to_json() for stage in self.stages],
            "timing": self.timing.to_json() if self.timing else None,
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


def cost_json(spent: Spent | None) -> dict[str, Any] | None:
    """Describe what calls to language models have cost: ``usd`` is ``null`` if a price is not known."""
    if spent is None:
        return None
    return {
        "usd": spent.cost,
        "known_usd": spent.known_cost,
        "calls": spent.calls,
        "from_cache": spent.cached_calls,
        "unpriced_calls": spent.unpriced_calls,
        "open_calls": spent.open_calls,
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "cached_tokens": spent.cached_tokens,
    }


def _iso(when: datetime | None) -> str | None:
    return when.astimezone(UTC).isoformat() if when else None
