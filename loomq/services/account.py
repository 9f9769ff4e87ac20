"""What became of a goal or of a stage, and why: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.redaction import redacted_json
from loomq.services.views import SCHEMA_VERSION, cost_json

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from loomq.llm.base import LLMRequest
    from loomq.messages import TaskStatus
    from loomq.services.timing import StageTiming
    from loomq.services.views import GoalView, StageView


@dataclass(frozen=True)
class Checked:
    """A value, and how it stands to its contract.

    Args:
        fault: Why there is no value.
        errors: What breaks the contract; ``None`` without one.
    """

    value: dict[str, Any] | None
    fault: str | None = None
    errors: list[str] | None = None

    @property
    def verdict(self) -> str | None:
        """``holds`` or ``broken``, ``none`` without a contract, ``None`` without a value."""
        if self.value is None:
            return None
        return "none" if self.errors is None else "broken" if self.errors else "holds"

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {"value": self.value, "fault": self.fault, "contract": self.verdict, "errors": self.errors or []}


@dataclass(frozen=True)
class Asked:
    """A condition with the values that it found.

    Args:
        told: The comparisons that decide, each with its value.
        holds: ``None`` where it has not been asked: the stages that it reads have not ended, or each item is asked.
    """

    text: str
    holds: bool | None
    told: str | None

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {"text": self.text, "holds": self.holds, "told": self.told}


@dataclass(frozen=True)
class Attempt:
    """One time in which a process had the stage, or a replay.

    Args:
        outcome: ``completed failed lost cancelled running waiting``, or ``replayed``.
        where: The node, and the process if it is known.
        by: Who has replayed it.
    """

    outcome: str
    attempt: int | None
    delivery: int | None
    start: datetime
    end: datetime | None
    where: str | None = None
    error: dict[str, Any] | None = None
    by: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        return {
            "outcome": self.outcome,
            "attempt": self.attempt,
            "delivery": self.delivery,
            "started_at": self.start.isoformat(),
            "ended_at": self.end.isoformat() if self.end else None,
            "where": self.where,
            "error": self.error,
            "by": self.by,
        }


@dataclass(frozen=True)
class Round:
    """One call to a language model, or of a tool, as the journal has it.

    Args:
        kind: ``call`` or ``tool``.
        state: ``done``; of a call also ``cached`` (answered from the cache) and ``open`` (nobody saw its end).
        tokens: Of the prompt and of the answer.
        cost: US dollars; ``None`` if nobody knows.
        said: What was answered; ``None`` of an answer that was no good.
    """

    number: int
    at: datetime
    kind: str
    state: str
    model: str | None
    tokens: tuple[int, int] | None
    cost: float | None
    took_ms: int | None
    said: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        prompt, answer = self.tokens or (None, None)
        return {
            "round": self.number,
            "at": self.at.isoformat(),
            "kind": self.kind,
            "state": self.state,
            "model": self.model,
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "cost_usd": self.cost,
            "took_ms": self.took_ms,
            "said": self.said,
        }


@dataclass(frozen=True)
class StageAccount:
    """A stage, or an item of it, explained.

    Args:
        item: Which item, or -1.
        why: Why it stands as it does, in one line.
        parents: The stages that it waits for, and how they stand.
        for_each: The path of the list that it fans out over.
        payload: What it gets by its mapping, or by whoever edited it.
        prompt: Of a language model worker, what the model is sent.
        rounds: The calls to models that were made, and what tools gave.
    """

    goal_id: UUID
    kind: str
    name: str
    stage: StageView
    item: int
    why: str
    parents: dict[str, TaskStatus]
    condition: Asked | None
    for_each: str | None
    payload: Checked
    is_edited: bool
    output: Checked
    attempts: tuple[Attempt, ...]
    timing: StageTiming | None
    fallback: dict[str, Any] | None
    prompt: LLMRequest | None
    prompt_fault: str | None
    rounds: tuple[Round, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Describe it, with what looks like a secret hidden."""
        stage = self.stage
        found: dict[str, Any] = redacted_json({
            "schema_version": SCHEMA_VERSION,
            "goal_id": str(self.goal_id),
            self.kind: self.name,
            "stage": stage.name,
            "item": self.item if self.item >= 0 else None,
            "status": str(stage.status),
            "state": stage.state,
            "why": self.why,
            "worker": None if stage.pipeline else stage.worker,
            "runs_pipeline": stage.pipeline,
            "tier": stage.tier,
            "waits_for": {name: str(status) for name, status in self.parents.items()},
            "condition": self.condition.to_json() if self.condition else None,
            "for_each": self.for_each,
            "items": stage.items.to_json() if stage.items else None,
            "children": [child.to_json() for child in stage.children],
            "input": {**self.payload.to_json(), "edited": self.is_edited},
            "output": self.output.to_json(),
            "attempts": [attempt.to_json() for attempt in self.attempts],
            "timing": self.timing.to_json() if self.timing else None,
            "fallback": {"written": self.fallback, "used": stage.fallback},
            "model_used": stage.model_used,
            "tokens": stage.tokens,
            "cost": cost_json(stage.spent),
            "notes": stage.notes,
            "silo_updates": [update.to_json() for update in stage.silo_updates],
            "rounds": [one.to_json() for one in self.rounds],
            "prompt": self.prompt.model_dump(mode="json") if self.prompt else None,
            "prompt_fault": self.prompt_fault,
            "error": stage.error,
        })  # fmt: skip
        return found


@dataclass(frozen=True)
class GoalAccount:
    """A goal explained, stage by stage.

    Args:
        order: The stages in the order of the DAG, each with why it stands as it does.
    """

    view: GoalView
    order: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Describe it, with what looks like a secret hidden."""
        view, stages = self.view, {stage.name: stage.to_json() for stage in self.view.stages}
        found: dict[str, Any] = redacted_json({
            "schema_version": SCHEMA_VERSION,
            "goal_id": str(view.goal_id),
            view.kind: view.name,
            "status": str(view.status),
            "partial": view.partial,
            **view.links.to_json(),
            "error": view.error,
            "tokens": view.tokens,
            "cost": cost_json(view.spent),
            "budget": view.budget,
            "stages": [
                {key: stages[name][key] for key in ("stage", "status", "items", "children")} | {"why": why}
                for name, why in self.order.items()
            ],
            "timing": view.timing.to_json() if view.timing else None,
        })  # fmt: skip
        return found
