"""Stages as a face sees them: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any

from loomq.redaction import redacted, redacted_json

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from loomq.messages import TaskStatus
    from loomq.store.silos import SiloUpdate
    from loomq.store.spending import Spent


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
            "queued_at": iso(self.queued_at),
            "started_at": iso(self.started_at),
            "ended_at": iso(self.ended_at),
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


def iso(when: datetime | None) -> str | None:
    """Write a moment as JSON has it."""
    return when.astimezone(UTC).isoformat() if when else None
