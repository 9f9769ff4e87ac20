"""What waits for its turn, and what is on its way to a worker process: taken for publishing, and found lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loomq.store.stages import StageKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loomq.store.engine import Database

UNPUBLISHED_AT_ONCE = 5000
URGENCIES = 8  # two a priority: the first of its goal on a queue, and those behind it


@dataclass(frozen=True, slots=True)
class Due:
    """A stage taken for publishing.

    Args:
        bulk: Whether it stands behind another one of its goal on the queue.
    """

    key: StageKey
    worker: str
    tier: str
    priority: int
    bulk: bool
    task_id: str | None
    canvas: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Fairness:
    """How what waits long is kept from starving.

    Args:
        age_s: How long a stage waits before it may go with the most urgent.
        share: Which part of the places are for such.
    """

    age_s: float
    share: float


def take_ready(
    database: Database,
    routes: Sequence[tuple[str, str]],
    free: Sequence[Sequence[int]],
    limit: int,
    fairness: Fairness,
) -> list[Due]:
    """Take waiting stages of some routes for publishing; they count as published from here on.

    Args:
        routes: Workers and tiers.
        free: For each route, how many messages its queue takes of each urgency (``names.urgency``) and more.
        limit: At most so many in all.

    Returns:
        The order to send them in: the most urgent first, and in turn over goals.
    """
    rows = database.call(
        "SELECT * FROM loomq_take_ready_2(%(workers)s, %(tiers)s, %(free)s, %(limit)s, %(age)s, %(share)s)",
        {
            "workers": [worker for worker, _ in routes],
            "tiers": [tier for _, tier in routes],
            "free": [number for numbers in free for number in numbers],
            "limit": limit,
            "age": fairness.age_s,
            "share": fairness.share,
        },
    )
    return [due_of(row) for row in rows]


def due_of(row: Any) -> Due:
    """Read a row of those that were taken for publishing."""
    goal_id, name, item, *rest = row
    return Due(StageKey(goal_id, name, item), *rest)


def published_by_urgency(database: Database, routes: Sequence[tuple[str, str]]) -> list[int]:
    """Count what some routes have published and nobody has claimed, by urgency."""
    rows = database.call(
        "SELECT 2 * s.priority + (NOT s.bulk)::integer, count(*)"
        " FROM unnest(%(workers)s::text[], %(tiers)s::text[]) AS r (worker, tier)"
        " JOIN stages s ON s.state = 'published' AND s.worker = r.worker AND s.tier = r.tier GROUP BY 1",
        {"workers": [worker for worker, _ in routes], "tiers": [tier for _, tier in routes]},
    )
    counts = dict(map(tuple, rows))
    return [counts.get(urgency, 0) for urgency in range(URGENCIES)]


def unpublish(database: Database, keys: Sequence[StageKey]) -> None:
    """Say that these stages did not reach the broker after all."""
    database.call(
        "UPDATE stages s SET state = 'ready', published_at = NULL"
        " FROM unnest(%(goals)s::uuid[], %(names)s::text[], %(items)s::int[]) AS k (goal_id, name, item)"
        " WHERE s.goal_id = k.goal_id AND s.name = k.name AND s.item = k.item AND s.state = 'published'",
        {
            "goals": [key.goal_id for key in keys],
            "names": [key.name for key in keys],
            "items": [key.item for key in keys],
        },
    )


def unpublish_all(
    database: Database,
    *,
    route: tuple[str, str, int] | None = None,
    older_s: float = 0,
    reason: str = "message lost",
) -> int:
    """Make published and unclaimed stages ready again: all of them, or one route's.

    Args:
        route: Worker, tier and urgency.
        older_s: Only those published longer ago than this.

    Returns:
        How many there were, up to ``UNPUBLISHED_AT_ONCE``.
    """
    worker, tier, urgency = route or (None, None, None)
    rows = database.call(
        "UPDATE stages s SET state = 'ready', published_at = NULL, reason = %(reason)s FROM ("
        "SELECT goal_id, name, item FROM stages WHERE state = 'published'"
        " AND (%(worker)s::text IS NULL OR worker = %(worker)s AND tier = %(tier)s"
        " AND priority = %(urgency)s / 2 AND bulk = (%(urgency)s %% 2 = 0))"
        " AND published_at < now() - make_interval(secs => %(older)s) LIMIT %(limit)s FOR UPDATE SKIP LOCKED"
        ") AS p WHERE s.goal_id = p.goal_id AND s.name = p.name AND s.item = p.item RETURNING 1",
        {
            "worker": worker,
            "tier": tier,
            "urgency": urgency,
            "reason": reason,
            "older": older_s,
            "limit": UNPUBLISHED_AT_ONCE,
        },
    )
    return len(rows)


def unpublish_overtaken(database: Database, margin_s: float) -> int:
    """Make published stages ready again that a later message of their queue has overtaken: theirs were lost.

    A queue hands out messages of one priority in the order in which they came. Where nodes reserve messages (RabbitMQ),
    the message may instead lie in the hand of a busy one; then it is doubled, and runs where there is room.

    Args:
        margin_s: How much later the other message must have been sent.

    Returns:
        How many there were.
    """
    rows = database.call(
        "WITH taken AS MATERIALIZED (SELECT worker, tier, 2 * priority + (NOT bulk)::integer AS urgency,"
        " max(published_at) AS latest FROM stages WHERE state = 'claimed' GROUP BY 1, 2, 3),"
        " passed AS MATERIALIZED (SELECT t.worker, t.tier, (p.urgency / 2)::smallint AS priority,"
        " p.urgency %% 2 = 0 AS bulk, max(t.latest) - make_interval(secs => %(margin)s) AS until"
        " FROM taken t, generate_series(t.urgency, %(highest)s) AS p (urgency)"
        " GROUP BY t.worker, t.tier, p.urgency)"
        " UPDATE stages s SET state = 'ready', published_at = NULL, reason = 'message lost' FROM ("
        "SELECT o.goal_id, o.name, o.item FROM passed p JOIN stages o ON o.state = 'published' AND o.worker = p.worker"
        " AND o.tier = p.tier AND o.priority = p.priority AND o.bulk = p.bulk AND o.published_at < p.until"
        " WHERE o.published_at < now() - make_interval(secs => %(margin)s) FOR UPDATE OF o SKIP LOCKED"
        ") AS o WHERE s.goal_id = o.goal_id AND s.name = o.name AND s.item = o.item RETURNING 1",
        {"margin": margin_s, "highest": URGENCIES - 1},
    )
    return len(rows)
