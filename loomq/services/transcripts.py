"""Sessions and what was said in them, as a face sees them: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any

from loomq.redaction import redacted, redacted_content, redacted_json

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from loomq.messages import TaskStatus


@dataclass(frozen=True)
class Session:
    """Goals that belong together.

    Args:
        title: Its first goal's instruction, unless somebody gave another; empty before either.
        messages: How many there are.
        goals: How many goals it has, by status.
        tokens: What its goals and those that these contain have used.
    """

    session_id: UUID
    title: str
    created_at: datetime
    updated_at: datetime
    messages: int
    goals: dict[TaskStatus, int]
    tokens: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Describe the session."""
        return {
            "session_id": str(self.session_id),
            "title": redacted(self.title),
            "created_at": _iso(self.created_at),
            "updated_at": _iso(self.updated_at),
            "messages": self.messages,
            "goals": {str(status): count for status, count in self.goals.items()},
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class SessionMessage:
    """One thing that was said.

    Args:
        role: ``user`` for what a goal asked, ``assistant`` for what its last stages gave.
        content: Text, or JSON.
        goal_id: Whose it is.
        pipeline, status, error: Of that goal; ``None`` when it has been pruned.
    """

    seq: int
    role: str
    content: str
    at: datetime
    goal_id: UUID | None
    pipeline: str | None
    status: TaskStatus | None
    error: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Describe the message."""
        return {
            "seq": self.seq,
            "role": self.role,
            "content": redacted_content(self.content),
            "at": _iso(self.at),
            "goal_id": str(self.goal_id) if self.goal_id else None,
            "pipeline": self.pipeline,
            "status": str(self.status) if self.status else None,
            "error": redacted_json(self.error),
        }


@dataclass(frozen=True)
class Transcript:
    """A session and its last messages, in order."""

    session: Session
    messages: tuple[SessionMessage, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe the session with the messages; the session's ``messages`` counts all there are."""
        return {"session": self.session.to_json(), "messages": [message.to_json() for message in self.messages]}


@dataclass(frozen=True)
class SessionHit:
    """What a search found: a message, or (without ``seq``) a session by its title.

    Args:
        snippet: Where the words stand, with ``**`` around them.
    """

    session_id: UUID
    title: str
    seq: int | None
    role: str | None
    at: datetime
    goal_id: UUID | None
    snippet: str

    def to_json(self) -> dict[str, Any]:
        """Describe the find."""
        return {
            "session_id": str(self.session_id),
            "title": redacted(self.title),
            "seq": self.seq,
            "role": self.role,
            "at": _iso(self.at),
            "goal_id": str(self.goal_id) if self.goal_id else None,
            "snippet": self.snippet,
        }


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).isoformat()
