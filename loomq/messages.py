"""The messages that parts of loomq exchange: inert, frozen, JSON, and tolerant of keys that a newer version adds."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from loomq.ids import uuid7


def _now() -> datetime:
    return datetime.now(UTC)


class TaskPriority(StrEnum):
    """How urgent a goal or stage is; it holds under a backlog."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    CRITICAL = "critical"


class TaskStatus(StrEnum):
    """What a user is told about a task or a goal."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    RETRY = "retry"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class ModelTier(StrEnum):
    """Which class of model (or machine) a task is for."""

    LOCAL = "local"
    STANDARD = "standard"
    FRONTIER = "frontier"


class Message(BaseModel):
    """The common shape: frozen, unknown keys tolerated on read and never written."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TokenUsage(Message):
    """Tokens that a model call used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class TaskMessage(Message):
    """One task for one worker."""

    task_id: UUID = Field(default_factory=uuid7)
    parent_task_id: UUID | None = None
    worker_type: str
    payload: dict[str, Any]
    model_tier: ModelTier | None = Field(None, description="None until submit resolves it.")
    priority: TaskPriority = TaskPriority.NORMAL
    max_retries: int = 2
    retry_count: int = 0
    created_at: datetime = Field(default_factory=_now)
    request_id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)


class TaskResult(Message):
    """What became of one task."""

    task_id: UUID
    parent_task_id: UUID | None = None
    worker_type: str
    status: TaskStatus
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    model_used: str | None = None
    token_usage: TokenUsage = TokenUsage()
    processing_time_ms: int = 0
    completed_at: datetime = Field(default_factory=_now)
    metadata: dict[str, Any] = Field(default_factory=dict)
    degraded_modes: tuple[str, ...] = ()


class Budget(Message):
    """What a goal may spend on language models, with all that is its work; a call that might break it is not made.

    ``max_cost`` is in US dollars.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_cost: float | None = Field(None, gt=0, allow_inf_nan=False)
    max_tokens: int | None = Field(None, gt=0, strict=True)


class OrchestratorGoal(Message):
    """A goal as it is handed in."""

    goal_id: UUID = Field(default_factory=uuid7)
    instruction: str
    pipeline: str | None = None
    context: dict[str, Any] = Field(default_factory=dict)
    priority: TaskPriority = TaskPriority.NORMAL
    request_id: str | None = None
    idempotency_key: str | None = None
    session_id: UUID | None = None
    deadline: datetime | None = None
    budget: dict[str, Any] | None = None
    created_at: datetime = Field(default_factory=_now)


class CheckpointState(Message):
    """The compressed memory of a long orchestration."""

    goal_id: UUID
    original_instruction: str
    executive_summary: str
    completed_tasks: tuple[dict[str, Any], ...] = ()
    pending_tasks: tuple[dict[str, Any], ...] = ()
    open_issues: tuple[str, ...] = ()
    decisions_made: tuple[str, ...] = ()
    context_token_count: int = 0
    checkpoint_number: int = 0
    covers: int = Field(default=0, description="How many plans and results, from the first on, it stands for.")
    until: int = Field(
        default=0, description="How many it is to stand for: more than that, and further ones follow at once."
    )
    created_at: datetime = Field(default_factory=_now)
