"""Changes of silos on their way from a result to the disk: in order, one writer a folder over the whole cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from loomq.store.engine import Database

_NEXT = """
SELECT goal_id, stage, item, nth, silo, asked FROM silo_updates
WHERE folder = %(folder)s AND state = 'pending' ORDER BY seq LIMIT 1
"""
_END = """
UPDATE silo_updates SET state = %(state)s, reason = %(reason)s, ended_at = clock_timestamp()
WHERE goal_id = %(goal)s AND stage = %(stage)s AND item = %(item)s AND nth = %(nth)s
"""


@dataclass(frozen=True, slots=True)
class SiloUpdate:
    """One change that a result came with.

    Args:
        asked: ``{silo, action, filename}``.
        state: ``pending``, ``applied`` or ``refused``.
        reason: Why it was refused.
    """

    stage: str
    item: int
    asked: dict[str, Any]
    state: str
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """Describe the change, without the content."""
        shown = {key: self.asked.get(key) for key in ("silo", "action", "filename")}
        return {**shown, "state": self.state, "reason": self.reason}


def apply_next(database: Database, folder: str, apply: Callable[[dict[str, Any], dict[str, Any]], str | None]) -> bool:
    """Make a folder's oldest pending change while nobody else makes one; False if there is none.

    A crash in between leaves it pending, and it is made again: ``apply`` stands that.

    Args:
        apply: Gets the silo and what was asked, and gives the reason for a refusal or ``None``.

    Raises:
        OSError: What ``apply`` raised; the change is still pending.
    """
    with database.begin() as connection:
        run = connection.exec_driver_sql
        run("SELECT pg_advisory_xact_lock(hashtextextended('loomq silo ' || %(folder)s, 0))", {"folder": folder})
        row = run(_NEXT, {"folder": folder}).one_or_none()
        if row is None:
            return False
        reason = apply(row.silo, row.asked)
        key = {"goal": row.goal_id, "stage": row.stage, "item": row.item, "nth": row.nth}
        run(_END, {**key, "state": "applied" if reason is None else "refused", "reason": reason})
    return True


def give_up(database: Database, folder: str, reason: str, after_s: float) -> bool:
    """Refuse a folder's oldest pending change if it has waited for too long; False if it has not."""
    rows = database.call(
        "UPDATE silo_updates SET state = 'refused', reason = %(reason)s, ended_at = clock_timestamp()"
        " WHERE state = 'pending' AND at < clock_timestamp() - make_interval(secs => %(after)s)"
        " AND (goal_id, stage, item, nth) = (SELECT goal_id, stage, item, nth FROM silo_updates"
        " WHERE folder = %(folder)s AND state = 'pending' ORDER BY seq LIMIT 1) RETURNING 1",
        {"folder": folder, "reason": reason, "after": after_s},
    )
    return bool(rows)


def has_pending(database: Database, folder: str) -> bool:
    """Say whether a folder has changes that wait."""
    rows = database.call(
        "SELECT 1 FROM silo_updates WHERE folder = %(folder)s AND state = 'pending' LIMIT 1", {"folder": folder}
    )
    return bool(rows)


def waiting(database: Database, older_than_s: float, limit: int = 100) -> dict[str, set[str | None]]:
    """List the folders that have changes which nobody has made for some time, with the hosts that brought them."""
    rows = database.call(
        "SELECT DISTINCT folder, host FROM silo_updates WHERE state = 'pending'"
        " AND at < clock_timestamp() - make_interval(secs => %(age)s) LIMIT %(limit)s",
        {"age": older_than_s, "limit": limit},
    )
    found: dict[str, set[str | None]] = {}
    for folder, host in rows:
        found.setdefault(folder, set()).add(host)
    return found


def of_goal(database: Database, goal_id: UUID) -> list[SiloUpdate]:
    """List the changes that a goal's results came with, in their order."""
    rows = database.call(
        "SELECT stage, item, asked - 'content', state, reason FROM silo_updates WHERE goal_id = %(goal)s"
        " ORDER BY stage, item, nth",
        {"goal": goal_id},
    )
    return [SiloUpdate(*row) for row in rows]
