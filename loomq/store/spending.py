"""What calls to language models have cost: by stage and goal, and over all goals by worker, model, tier and day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from loomq.store.engine import Database

#: What spending may be added up by, and what that is in SQL.
GROUPS = {
    "worker": "worker",
    "model": "coalesce(model, '(unknown)')",
    "provider": "coalesce(provider, '(unknown)')",
    "tier": "tier",
    "goal": "goal_id::text",
    "day": "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_SUMS = """
count(*) FILTER (WHERE state <> 'cached'), count(*) FILTER (WHERE state = 'cached'),
count(*) FILTER (WHERE state = 'open'), count(*) FILTER (WHERE state <> 'cached' AND cost IS NULL),
coalesce(sum(prompt_tokens) FILTER (WHERE state <> 'cached'), 0)::bigint,
coalesce(sum(completion_tokens) FILTER (WHERE state <> 'cached'), 0)::bigint,
coalesce(sum(cached_tokens) FILTER (WHERE state <> 'cached'), 0)::bigint,
coalesce(sum(cost) FILTER (WHERE state <> 'cached'), 0)
"""


@dataclass(frozen=True, slots=True)
class Spent:
    """What some calls have used and cost.

    Args:
        calls: Those that were made.
        cached_calls: Those that were answered from the cache of answers, which cost nothing.
        open_calls: Those of ``calls`` whose end nobody saw, counted at the most that they may have used.
        unpriced_calls: Those of ``calls`` whose price nobody knows.
        prompt_tokens, completion_tokens: All of them, those of unpriced calls too.
        cached_tokens: Those of ``prompt_tokens`` that a provider had cached.
        known_cost: US dollars, without the unpriced calls.
    """

    calls: int
    cached_calls: int
    open_calls: int
    unpriced_calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    known_cost: float

    @property
    def cost(self) -> float | None:
        """US dollars; ``None`` if a price is not known."""
        return None if self.unpriced_calls else self.known_cost

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


def of_stages(database: Database, goal_id: UUID) -> dict[str, Spent]:
    """Add up what each stage of a goal has spent: its own calls, its items', and those of goals that are its work."""
    rows = database.call(
        "WITH RECURSIVE family (id, stage) AS ("  # noqa: S608
        "SELECT id, parent_stage FROM goals WHERE parent_goal = %(goal)s"
        " UNION ALL SELECT g.id, f.stage FROM goals g JOIN family f ON g.parent_goal = f.id),"
        " all_calls AS (SELECT stage AS doer, c.* FROM llm_calls c WHERE goal_id = %(goal)s"
        " UNION ALL SELECT f.stage, c.* FROM family f JOIN llm_calls c ON c.goal_id = f.id)"
        f" SELECT doer, {_SUMS} FROM all_calls GROUP BY doer",
        {"goal": goal_id},
    )
    return {stage: Spent(*sums) for stage, *sums in rows}


def of_item(database: Database, goal_id: UUID, stage: str, item: int) -> Spent | None:
    """Add up what one item of a stage, or the stage itself, has spent."""
    rows = database.call(
        f"SELECT {_SUMS} FROM llm_calls WHERE goal_id = %(goal)s AND stage = %(stage)s AND item = %(item)s"  # noqa: S608
        " HAVING count(*) > 0",
        {"goal": goal_id, "stage": stage, "item": item},
    )
    return Spent(*rows[0]) if rows else None


def by(database: Database, group: str, within: timedelta | None, limit: int) -> list[tuple[str, Spent]]:
    """Add up spending over all goals that are still kept, what cost most first; days by their date.

    Args:
        group: One of ``GROUPS``.
        within: Only calls that are no older.
    """
    order = "1 DESC" if group == "day" else "9 DESC, 6 DESC, 1"
    rows = database.call(
        f"SELECT {GROUPS[group]}, {_SUMS} FROM llm_calls"  # noqa: S608
        " WHERE %(within)s::interval IS NULL OR at > clock_timestamp() - %(within)s::interval"
        f" GROUP BY 1 ORDER BY {order} LIMIT %(limit)s",
        {"within": within, "limit": limit},
    )
    return [(name, Spent(*sums)) for name, *sums in rows]


def total(database: Database, within: timedelta | None) -> Spent | None:
    """Add up all spending, within a time as for ``by``; ``None`` if there was none."""
    rows = database.call(
        f"SELECT {_SUMS} FROM llm_calls"  # noqa: S608
        " WHERE %(within)s::interval IS NULL OR at > clock_timestamp() - %(within)s::interval HAVING count(*) > 0",
        {"within": within},
    )
    return Spent(*rows[0]) if rows else None
