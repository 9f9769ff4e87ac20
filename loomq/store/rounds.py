"""The rounds of an orchestrator's goal: each is a goal of its own, whose stages are the tasks of one plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from loomq.store.tables import stages

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from sqlalchemy import Row

    from loomq.store.engine import Database


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round.

    Args:
        stage: The stage of the orchestrator's goal whose work it is.
        goal_id: The goal of its tasks; of a rerun's round that was taken over, the earlier goal's.
    """

    stage: str
    goal_id: UUID
    state: str
    snapshot: str


def of_goal(database: Database, goal_id: UUID) -> list[RoundRow]:
    """List a goal's rounds in their order; those of stages that began again are the last ones."""
    rows = database.call(
        "SELECT s.name, g.id, g.state, g.snapshot FROM stages s JOIN goals g ON g.id = coalesce("
        "(s.output ->> 'goal_id')::uuid, (SELECT c.id FROM goals c WHERE c.parent_goal = s.goal_id"
        " AND c.parent_stage = s.name AND c.parent_item = -1 ORDER BY c.id DESC LIMIT 1))"
        " WHERE s.goal_id = %(goal)s AND s.item = -1 AND g.kind = 'round' ORDER BY g.id",
        {"goal": goal_id},
    )
    return [RoundRow(*row) for row in rows]


def tasks(
    database: Database, rounds: Sequence[UUID], *, outputs: bool = True, names: Collection[str] | None = None
) -> list[Row[Any]]:
    """Read the tasks of some rounds, in the order of the rounds and of their plans.

    Args:
        outputs: False leaves what they gave in the database.
        names: Only those; ``None`` is all.
    """
    columns = [column for column in stages.c if outputs or column.name != "output"]
    query = select(*columns).where(stages.c.goal_id.in_(list(rounds)), stages.c.item == -1)
    if names is not None:
        query = query.where(stages.c.name.in_(list(names)))
    with database.reading() as connection:
        return list(connection.execute(query.order_by(stages.c.goal_id, stages.c.place)))


def counts(database: Database, round_id: UUID) -> dict[str, int]:
    """Count the tasks of a round by their state."""
    rows = database.call(
        "SELECT state, count(*) FROM stages WHERE goal_id = %(goal)s AND item = -1 GROUP BY state", {"goal": round_id}
    )
    return dict(rows)


def let_go(database: Database, round_id: UUID) -> list[str]:
    """Let as many tasks of a round go as its window has room for, and name them."""
    return [row[0] for row in database.call("SELECT loomq_window(%(goal)s)", {"goal": round_id})]


def stuck(database: Database, limit: int = 100) -> list[UUID]:
    """List rounds of which fewer tasks are under way than could be."""
    return [row[0] for row in database.call("SELECT loomq_stuck_rounds(%(limit)s)", {"limit": limit})]
