"""Answers of models that are kept for others: look at them, and forget them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from loomq.redaction import redacted
from loomq.store import answers

if TYPE_CHECKING:
    from loomq.loom import Loom
    from loomq.store.answers import Kept


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One answer that is kept.

    Args:
        is_plan: Whether it is the first plan of an orchestrator.
    """

    kept: Kept
    is_plan: bool

    @property
    def content(self) -> str:
        """What the model said, without secrets."""
        return redacted(self.kept.content or "")

    def to_json(self) -> dict[str, Any]:
        """Describe it."""
        kept = self.kept
        return {
            "key": kept.key,
            "kind": "plan" if self.is_plan else "answer",
            "worker": kept.worker,
            "model": kept.model,
            "content": self.content,
            "created_at": kept.created_at.astimezone(UTC).isoformat(),
            "expires_at": kept.expires_at.astimezone(UTC).isoformat(),
        }


def list_answers(loom: Loom, worker: str | None = None, limit: int = 20) -> list[AnswerView]:
    """List the answers that are kept, the newest first.

    Args:
        worker: Only those of this worker or orchestrator.

    Raises:
        DatabaseUnavailableError: Postgres does not answer.
    """
    plans = loom.catalog.orchestrators
    return [AnswerView(one, one.worker in plans) for one in answers.listed(loom.database, worker, limit)]


def clear_answers(loom: Loom, worker: str | None = None) -> int:
    """Forget the answers that are kept; arguments and errors as above, and gives how many there were."""
    return answers.clear(loom.database, worker)
