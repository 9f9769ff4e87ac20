"""What has happened in an orchestrator's goal so far: its rounds, each with its plan and what the tasks gave."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.orchestrator.tasks import Subtask


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task that was planned, and what became of it.

    Args:
        task_id: What Flower and ``loomq explain`` know it by.
        state: ``done``, ``failed``, ``dead``, ``skipped`` or ``cancelled``; anything else has not ended.
        reason: Why it was skipped or cancelled.
    """

    name: str
    round: int
    worker_type: str
    task_id: str
    state: str
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    reason: str | None = None
    model_used: str | None = None
    processing_time_ms: int | None = None
    tokens: int = 0

    @property
    def is_done(self) -> bool:
        """Whether it has a result."""
        return self.state == "done"

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in {"done", "failed", "dead", "skipped", "cancelled"}

    @property
    def status(self) -> str:
        """How it ended, in the words of ``TaskStatus``."""
        return {"done": "completed", "dead": "failed"}.get(self.state, self.state)

    def fault(self) -> dict[str, Any]:
        """Say why it has no result."""
        return self.error or {"type": self.state, "message": self.reason or f"the task is {self.state}"}


@dataclass(frozen=True)
class Round:
    """One round.

    Args:
        number: From 1.
    """

    number: int
    tasks: tuple[Subtask, ...] = ()
    records: tuple[TaskRecord, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Entry:
    """One interaction of the conversation: a plan of the model's, or what one task gave.

    Args:
        record: The task, if it is one's.
        planned: The tasks of a plan.
    """

    role: Literal["assistant", "user"]
    text: str
    record: TaskRecord | None = None
    planned: tuple[Subtask, ...] = ()


def entries_of(rounds: Sequence[Round]) -> list[Entry]:
    """Tell the rounds as a conversation, interaction by interaction; the same rounds always give the same text."""
    found: list[Entry] = []
    for one in rounds:
        if one.tasks:
            plan = written([task.to_json() for task in one.tasks])
            found.append(Entry("assistant", plan, planned=one.tasks))
            found += [Entry("user", written(told(record)), record) for record in one.records]
    return found


def told(record: TaskRecord) -> dict[str, Any]:
    """Describe a task's end for the model."""
    found: dict[str, Any] = {"task": record.name, "worker_type": record.worker_type, "status": record.status}
    if record.is_done:
        return {**found, "output": record.output}
    fault = record.fault()
    return {**found, "error": fault.get("message") or fault.get("type")}


def written(value: Any) -> str:
    """Write a value as the model is sent it."""
    return json.dumps(value, ensure_ascii=False)
