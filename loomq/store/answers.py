"""Answers that are kept for others: those of workers with a cache, and first plans of orchestrators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from loomq.store.engine import Database

_FITS = "(%(worker)s::text IS NULL OR worker = %(worker)s)"


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer.

    Args:
        key: The hash of who was asked what.
        worker: The worker, or the orchestrator, whose it is.
    """

    key: str
    worker: str
    model: str
    content: str
    created_at: datetime
    expires_at: datetime


def listed(database: Database, worker: str | None, limit: int) -> list[Kept]:
    """List the answers that have not expired, the newest first."""
    rows = database.call(
        "SELECT key, worker, reply ->> 'model', reply ->> 'content', created_at, expires_at FROM llm_cache"  # noqa: S608
        f" WHERE expires_at > clock_timestamp() AND {_FITS} ORDER BY created_at DESC, key LIMIT %(limit)s",
        {"worker": worker, "limit": limit},
    )
    return [Kept(*row) for row in rows]


def clear(database: Database, worker: str | None) -> int:
    """Forget answers, of one worker or all; gives how many."""
    rows = database.call(f"DELETE FROM llm_cache WHERE {_FITS} RETURNING 1", {"worker": worker})  # noqa: S608
    return len(rows)
