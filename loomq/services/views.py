"""Goals and nodes as a face sees them, and their stages: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loomq.redaction import redacted, redacted_json
from loomq.services.stage_views import ChildView, ItemsView, StageView, cost_json, iso
from loomq.store.spending import Spent

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from loomq.messages import TaskStatus
    from loomq.services.rounds import RoundView
    from loomq.services.timing import GoalTiming

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
            "paused_at": iso(self.paused_at),
            "admitted_at": iso(self.admitted_at),
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
        rounds: Of an orchestrator's goal what was planned and what became of it; read for its details only.
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
    rounds: tuple[RoundView, ...] = ()

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
            "created_at": iso(self.created_at),
            "ended_at": iso(self.ended_at),
            **self.links.to_json(),
            "error": self.error,
            "tokens": self.tokens,
            "cost": cost_json(self.spent),
            "budget": self.budget,
            "stages": [stage.to_json() for stage in self.stages],
            "timing": self.timing.to_json() if self.timing else None,
            **({"rounds": [one.to_json() for one in self.rounds]} if self.kind == "orchestrator" else {}),
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
            "created_at": iso(self.created_at),
            "ended_at": iso(self.ended_at),
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
            "started_at": iso(self.started_at),
            "seen_at": iso(self.seen_at),
        }
