"""Dead letters as a face sees them: plain data, with what looks like a secret hidden in whatever is written out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from loomq.queues.names import priority_named
from loomq.redaction import redacted, redacted_json
from loomq.services.inspect import goal_status

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row

    from loomq.messages import TaskStatus
    from loomq.store.malformed import Malformed
    from loomq.store.stages import StageKey

_SHOWN_BYTES = 4_000


@dataclass(frozen=True)
class DeadLetter:
    """A task that failed for good.

    Args:
        name: Its goal's pipeline, or worker.
        kind: ``pipeline`` or ``worker``.
        item: Which item of a fan-out, or -1 for the stage itself.
        state: ``failed``, or ``dead`` if it lost its process too often.
        error: What ended it, in its JSON form.
        attempts: How often it was tried since it was last replayed.
        deliveries: How often its last attempt was handed to a process.
        history: What became of each attempt, and each replay, in order.
        is_edited: Whether somebody has given it another input.
        task_id: Celery's id, if the goal is a raw call.
    """

    goal_id: UUID
    stage: str
    item: int
    worker: str
    tier: str
    priority: str
    name: str
    kind: str
    state: str
    error: dict[str, Any]
    attempts: int
    max_retries: int
    deliveries: int
    history: list[dict[str, Any]]
    is_edited: bool
    submitted_at: datetime
    failed_at: datetime
    goal_status: TaskStatus
    task_id: str | None

    @property
    def id(self) -> str:
        """The name that every call and command takes: ``goal/stage``, and ``/item`` for an item."""
        return letter_id(self.goal_id, self.stage, self.item)

    @property
    def error_type(self) -> str:
        """The type of the error."""
        return str(self.error.get("type", "error"))

    @property
    def reason(self) -> str:
        """Why it was given up, in words."""
        if self.state == "dead":
            return f"its process ended {self.deliveries} times"
        if self.error.get("retryable") and self.attempts > 1:
            return f"{self.attempts} attempts failed"
        if self.error.get("retryable"):
            return "it failed, and has no retries"
        return "it failed, and another attempt would not help"

    def to_json(self) -> dict[str, Any]:
        """Describe the letter."""
        found: dict[str, Any] = redacted_json({
            "id": self.id,
            "goal_id": str(self.goal_id),
            "stage": self.stage,
            "item": self.item if self.item >= 0 else None,
            "worker": self.worker,
            "tier": self.tier,
            "priority": self.priority,
            self.kind: self.name,
            "state": self.state,
            "reason": self.reason,
            "error": self.error,
            "attempts": self.attempts,
            "deliveries": self.deliveries,
            "history": self.history,
            "edited": self.is_edited,
            "submitted_at": _iso(self.submitted_at),
            "failed_at": _iso(self.failed_at),
            "goal_status": str(self.goal_status),
            "task_id": self.task_id,
        })  # fmt: skip
        return found


@dataclass(frozen=True)
class AuditEntry:
    """Who did what to a dead letter, and when.

    Args:
        action: ``replay edit drop``.
        detail: What came of it, and for an input the one before and the one after.
    """

    at: datetime
    actor: str
    action: str
    stage: str | None
    item: int | None
    detail: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Describe the entry."""
        found: dict[str, Any] = redacted_json({
            "at": _iso(self.at),
            "actor": self.actor,
            "action": self.action,
            "stage": self.stage,
            "item": self.item if self.item is not None and self.item >= 0 else None,
            "detail": self.detail,
        })  # fmt: skip
        return found


@dataclass(frozen=True)
class DeadLetterDetails:
    """A dead letter with everything that is known of it.

    Args:
        is_dropped: Somebody has said that it will not be replayed.
        payload: The input that a replay would begin with, as it is: nothing is hidden in it.
        payload_fault: Why the input cannot be told.
        message: The Celery message: task, task id, queue, arguments.
        audit: What was done to the dead letters of the goal, oldest first.
    """

    letter: DeadLetter
    is_dropped: bool
    payload: dict[str, Any] | None
    payload_fault: str | None
    message: dict[str, Any]
    audit: tuple[AuditEntry, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {
            **self.letter.to_json(),
            "dropped": self.is_dropped,
            "payload": redacted_json(self.payload),
            "payload_fault": redacted(self.payload_fault) if self.payload_fault else None,
            "message": self.message,
            "audit": [entry.to_json() for entry in self.audit],
        }


@dataclass(frozen=True)
class MalformedMessage:
    """A message that no task could be made of.

    Args:
        body: Its beginning, as text; bytes that are none are escaped.
        size: Its bytes.
        properties: What else is known of it.
    """

    id: str
    queue: str
    reason: str
    body: str
    size: int
    properties: dict[str, Any]
    seen_at: datetime
    is_dropped: bool
    audit: tuple[AuditEntry, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Describe the message."""
        found: dict[str, Any] = redacted_json({
            "id": self.id,
            "queue": self.queue,
            "reason": self.reason,
            "body": self.body,
            "size": self.size,
            "properties": self.properties,
            "seen_at": _iso(self.seen_at),
            "dropped": self.is_dropped,
        })  # fmt: skip
        return {**found, "audit": [entry.to_json() for entry in self.audit]}


@dataclass(frozen=True)
class Replay:
    """What became of a replay, or of an edit without one.

    Args:
        id: The dead letter that was asked for.
        outcome: ``replayed``, ``edited``, or ``nothing``: the stage is no dead letter (any more).
        state: The state of its stage now.
        replayed: The dead letters of the goal that begin anew.
        reopened: How many other stages of the goal go on.
    """

    id: str
    goal_id: UUID
    outcome: str
    state: str | None
    replayed: tuple[str, ...]
    reopened: int

    def to_json(self) -> dict[str, Any]:
        """Describe what was done."""
        return {
            "id": self.id,
            "goal_id": str(self.goal_id),
            "outcome": self.outcome,
            "state": self.state,
            "replayed": list(self.replayed),
            "reopened": self.reopened,
        }


@dataclass(frozen=True)
class BulkReplay:
    """What became of a replay of many.

    Args:
        replays: One a goal.
        refused: Dead letters that could not be replayed, with why.
        left: How many dead letters are still meant; ``None`` if they were named one by one.
    """

    replays: tuple[Replay, ...]
    refused: tuple[tuple[str, str], ...]
    left: int | None = None

    @property
    def letters(self) -> int:
        """How many dead letters begin anew."""
        return sum(len(one.replayed) for one in self.replays)

    def to_json(self) -> dict[str, Any]:
        """Describe what was done."""
        return {
            "goals": len(self.replays),
            "letters": self.letters,
            "replays": [one.to_json() for one in self.replays],
            "refused": [{"id": letter, "message": why} for letter, why in self.refused],
            "left": self.left,
        }


def letter_id(goal_id: UUID, stage: str, item: int) -> str:
    """Name a dead letter."""
    return f"{goal_id}/{stage}" if item < 0 else f"{goal_id}/{stage}/{item}"


def letter_id_of(key: StageKey) -> str:
    """Name the dead letter of a stage."""
    return letter_id(key.goal_id, key.name, key.item)


def letter_of(row: Row[Any]) -> DeadLetter:
    """Make a dead letter of its row."""
    return DeadLetter(
        goal_id=row.goal_id,
        stage=row.name,
        item=row.item,
        worker=row.worker,
        tier=row.tier,
        priority=str(priority_named(row.priority)),
        name=row.pipeline,
        kind=row.kind,
        state=row.state,
        error=row.error or {},
        attempts=row.attempt,
        max_retries=row.max_retries,
        deliveries=row.deliveries,
        history=row.history,
        is_edited=row.is_edited,
        submitted_at=row.submitted_at,
        failed_at=row.ended_at,
        goal_status=goal_status(row.goal_state),
        task_id=row.task_id,
    )


def message_of(row: Malformed, audit: tuple[AuditEntry, ...] = ()) -> MalformedMessage:
    """Make a malformed message of its row."""
    return MalformedMessage(
        id=str(row.id),
        queue=row.queue,
        reason=row.reason,
        body=row.body[:_SHOWN_BYTES].decode("utf-8", "backslashreplace"),
        size=row.properties.get("size", len(row.body)),
        properties=row.properties,
        seen_at=row.seen_at,
        is_dropped=row.dropped_at is not None,
        audit=audit,
    )


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat()
