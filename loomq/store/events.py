"""What happened to a goal, in the one order in which every reader sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from loomq.store.engine import Database
    from loomq.store.stages import StageKey

_WATCHED_S = 30.0


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far somebody has read.

    Args:
        number: Of the last event read, or of the one to go on behind; the first event's is 1.
        xid, seq: Where that one stands; ``seq`` 0 is the beginning, from which ``number`` events are passed over.
    """

    number: int = 0
    xid: int = -(2**63)
    seq: int = 0


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event and where it stands."""

    cursor: Cursor
    at: datetime
    kind: str
    stage: str | None
    item: int | None
    detail: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Page:
    """What was read at once.

    Args:
        has_ended: Whether the goal has.
        is_settled: Whether there is nothing else that may not be read yet.
    """

    rows: list[EventRow]
    has_ended: bool
    is_settled: bool


# An event is read when every older transaction has ended: then nothing can appear before it any more. When it is an
# hour old it is read in any case: no transaction of ours lasts so long, and somebody else's may last for days.
_READ = """
WITH horizon AS (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xid, now() - interval '1 hour' AS at)
SELECT g.state <> 'open', NOT EXISTS (
        SELECT 1 FROM events p WHERE p.goal_id = g.id AND p.xid >= h.xid AND p.at >= h.at),
    e.xid, e.seq, e.at, e.kind, e.stage, e.item, e.detail
FROM goals g CROSS JOIN horizon h LEFT JOIN LATERAL (
    SELECT * FROM events f
    WHERE f.goal_id = g.id AND (f.xid, f.seq) > (%(xid)s, %(seq)s) AND (f.xid < h.xid OR f.at < h.at)
    ORDER BY f.xid, f.seq OFFSET %(skip)s LIMIT %(limit)s
) AS e ON true
WHERE g.id = %(goal)s ORDER BY e.xid, e.seq
"""
# What can be seen and has an id that is yet to be given was written by another server, whose dump was restored here:
# in its order, it goes before everything of this one.
_ADOPT = """
UPDATE events SET xid = xid - (1::bigint << 62)
WHERE goal_id = %(goal)s AND xid >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
"""
_WATCH = """
UPDATE goals SET watched_until = clock_timestamp() + make_interval(secs => %(seconds)s) WHERE id = (
    SELECT id FROM goals WHERE id = %(goal)s AND state = 'open' FOR NO KEY UPDATE SKIP LOCKED)
"""


def read(database: Database, goal_id: UUID, after: Cursor, limit: int) -> Page | None:
    """Read up to ``limit`` events behind a cursor; ``None`` if there is no such goal."""
    skip = 0 if after.seq else after.number
    found = database.call(_READ, {"goal": goal_id, "xid": after.xid, "seq": after.seq, "skip": skip, "limit": limit})
    if not found:
        return None
    rows = [
        EventRow(Cursor(number, xid, seq), *rest)
        for number, (_, _, xid, seq, *rest) in enumerate(found, start=after.number + 1)
        if xid is not None
    ]
    return Page(rows, *found[0][:2])


def adopt(database: Database, goal_id: UUID) -> None:
    """Put events that came with another server's dump before those of this one; to be done before reading."""
    database.call(_ADOPT, {"goal": goal_id})


def tell(database: Database, key: StageKey, kind: str, detail: dict[str, Any]) -> None:
    """Write an event of a stage down."""
    database.call(
        "SELECT loomq_tell(%(goal)s, %(kind)s, %(name)s, %(item)s, %(detail)s)",
        {**key.parameters(), "kind": kind, "detail": json.dumps(detail)},
    )


def watch(database: Database, goal_id: UUID) -> None:
    """Ask to be notified of a goal's events for the next half minute; not while somebody holds the goal."""
    database.call(_WATCH, {"goal": goal_id, "seconds": _WATCHED_S})
