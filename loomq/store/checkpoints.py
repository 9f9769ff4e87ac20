"""The compressed memory of long orchestrations, by goal and number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uuid import UUID

    from loomq.store.engine import Database


def latest(database: Database, goal_id: UUID) -> dict[str, Any] | None:
    """Read a goal's newest checkpoint that has not expired."""
    rows = database.call(
        "SELECT state FROM checkpoints WHERE goal_id = %(goal)s AND expires_at > clock_timestamp()"
        " ORDER BY number DESC LIMIT 1",
        {"goal": goal_id},
    )
    found: dict[str, Any] | None = rows[0][0] if rows else None
    return found


def listed(database: Database, goal_id: UUID) -> list[dict[str, Any]]:
    """List all of a goal's, the oldest first."""
    rows = database.call("SELECT state FROM checkpoints WHERE goal_id = %(goal)s ORDER BY number", {"goal": goal_id})
    return [row[0] for row in rows]


def save(database: Database, goal_id: UUID, number: int, state: str, ttl_s: float) -> None:
    """Keep a checkpoint, as JSON; one of that number stays as it is, unless it has expired."""
    database.call(
        "INSERT INTO checkpoints AS c (goal_id, number, state, expires_at)"
        " SELECT %(goal)s, %(number)s, %(state)s, clock_timestamp() + make_interval(secs => %(ttl)s)"
        " WHERE EXISTS (SELECT 1 FROM goals g WHERE g.id = %(goal)s)"
        " ON CONFLICT (goal_id, number) DO UPDATE SET state = excluded.state, expires_at = excluded.expires_at"
        " WHERE c.expires_at <= clock_timestamp()",
        {"goal": goal_id, "number": number, "state": state, "ttl": ttl_s},
    )


def forget(database: Database, goal_id: UUID) -> None:
    """Forget all of a goal's."""
    database.call("DELETE FROM checkpoints WHERE goal_id = %(goal)s", {"goal": goal_id})
