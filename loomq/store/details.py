"""What is to be told of a goal beyond its stages' rows: items, goals that it contains, tokens, pauses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, select
from sqlalchemy.dialects.postgresql import distinct_on

from loomq.store.tables import stages

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    from loomq.store.engine import Database


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """How the items of a stage that fanned out stand."""

    total: int
    done: int
    failed: int
    running: int
    skipped: int
    cancelled: int


@dataclass(frozen=True, slots=True)
class Child:
    """A goal that is the work of a stage.

    Args:
        item: The item whose work it is, or -1.
    """

    goal_id: UUID
    stage: str
    item: int
    pipeline: str
    state: str


def item_counts(database: Database, goal_id: UUID) -> dict[str, ItemCounts]:
    """Count the items of each stage that fanned out."""
    rows = database.call(
        "SELECT name, count(*), count(*) FILTER (WHERE state = 'done'),"
        " count(*) FILTER (WHERE state IN ('failed', 'dead')), count(*) FILTER (WHERE state = 'claimed'),"
        " count(*) FILTER (WHERE state = 'skipped'), count(*) FILTER (WHERE state = 'cancelled')"
        " FROM stages WHERE goal_id = %(goal)s AND item >= 0 GROUP BY name",
        {"goal": goal_id},
    )
    return {name: ItemCounts(*counts) for name, *counts in rows}


def last_items(database: Database, goal_id: UUID) -> dict[str, Row[Any]]:
    """Read of each stage that fanned out the item that ended last, without its output."""
    columns = [column for column in stages.c if column.name not in {"output", "element"}]
    query = (
        select(*columns)
        .ext(distinct_on(stages.c.name))
        .where(stages.c.goal_id == goal_id, stages.c.item >= 0, stages.c.started_at.is_not(None))
        .order_by(stages.c.name, stages.c.ended_at.desc().nulls_last(), stages.c.item)
    )
    with database.reading() as connection:
        return {row.name: row for row in connection.execute(query)}


def one(database: Database, goal_id: UUID, name: str, item: int = -1) -> Row[Any] | None:
    """Read one stage's or item's row; of a stage that fanned out without its items' outputs."""
    query = select(stages).where(stages.c.goal_id == goal_id, stages.c.name == name, stages.c.item == item)
    with database.reading() as connection:
        return connection.execute(query).one_or_none()


def children(database: Database, goal_id: UUID, limit: int = 5) -> list[Child]:
    """List the goals that are the work of a goal's stages, of each stage up to ``limit``: those that failed first."""
    rows = database.call(
        "WITH newest AS (SELECT DISTINCT ON (parent_stage, parent_item) id, parent_stage, parent_item, pipeline, state"
        " FROM goals WHERE parent_goal = %(goal)s ORDER BY parent_stage, parent_item, id DESC),"
        " ranked AS (SELECT n.*, row_number() OVER (PARTITION BY parent_stage"
        " ORDER BY state <> 'failed', state <> 'open', parent_item) AS place FROM newest n)"
        " SELECT id, parent_stage, parent_item, pipeline, state FROM ranked WHERE place <= %(limit)s"
        " ORDER BY parent_stage, place",
        {"goal": goal_id, "limit": limit},
    )
    return [Child(*row) for row in rows]


def tokens(database: Database, goal_id: UUID) -> dict[str, dict[str, int]]:
    """Add up the tokens of each stage that used any: its own, its items', and those of the goals that it contains.

    They are those of the calls that are written down, and those that a result tells of where there are none.
    """
    rows = database.call(
        "WITH RECURSIVE family (id, stage) AS (SELECT %(goal)s::uuid, NULL::text"
        " UNION ALL SELECT g.id, coalesce(f.stage, g.parent_stage) FROM goals g JOIN family f ON g.parent_goal = f.id),"
        " spent AS (SELECT coalesce(f.stage, c.stage) AS name, c.prompt_tokens AS prompt, c.completion_tokens AS answer"
        " FROM family f JOIN llm_calls c ON c.goal_id = f.id WHERE c.state <> 'cached'"
        " UNION ALL SELECT coalesce(f.stage, s.name), (s.token_usage ->> 'prompt_tokens')::bigint,"
        " (s.token_usage ->> 'completion_tokens')::bigint"
        " FROM family f JOIN stages s ON s.goal_id = f.id WHERE s.token_usage IS NOT NULL AND NOT EXISTS ("
        "SELECT 1 FROM llm_calls c WHERE c.goal_id = s.goal_id AND c.stage = s.name AND c.item = s.item))"
        " SELECT name, sum(prompt)::bigint, sum(answer)::bigint FROM spent GROUP BY name",
        {"goal": goal_id},
    )
    return {name: {"prompt_tokens": prompt or 0, "completion_tokens": answer or 0} for name, prompt, answer in rows}


def pauses(database: Database, goal_id: UUID) -> list[tuple[datetime, datetime | None]]:
    """List when a goal was paused and resumed; ``None`` if it has not been."""
    rows = database.call(
        "SELECT kind, at FROM events WHERE goal_id = %(goal)s AND kind IN ('goal_paused', 'goal_resumed')"
        " ORDER BY at, seq",
        {"goal": goal_id},
    )
    found: list[tuple[datetime, datetime | None]] = []
    for kind, at in rows:
        is_paused = bool(found) and found[-1][1] is None
        if kind == "goal_paused" and not is_paused:
            found.append((at, None))
        elif kind == "goal_resumed" and is_paused:
            found[-1] = (found[-1][0], at)
    return found


def now(database: Database) -> datetime:
    """Read Postgres' clock, which every time of a stage is of."""
    found: datetime = database.call("SELECT clock_timestamp()", {})[0][0]
    return found


def hostnames(database: Database, nodes: Collection[str]) -> dict[str, str]:
    """Name those of some nodes, given by their ids, that are still known."""
    rows = database.call(
        "SELECT id::text, hostname FROM nodes WHERE id = ANY (%(nodes)s::uuid[])", {"nodes": list(nodes)}
    )
    return dict(rows)
